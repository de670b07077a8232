"""What every engine is: ordered logs, and grants with one holder each.

An engine knows nothing of rows or dealers. Entries and the bodies of grants are
bytes to it, but for two *notices* that it appends itself, so that a change of
a grant and the word of it to all nodes are one step (``taken_notice``,
``revoked_notice``).

Errors: ``errors.Unavailable`` when the store is out of reach (nothing is known
of what was being written), ``errors.PositionLost`` from ``read``, the grant
errors below. No other exception of a store leaves its file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from syncserver.errors import RefetchReason
from syncserver.position import Position

GRANT_COST_BYTES = 500
"""What a grant costs beside its body, about."""


class Entry(NamedTuple):
    """What one append put into a stream; ``previous`` is the mark of the entry before."""

    position: Position
    previous: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token stands for: ``body`` from ``position`` of ``stream`` on."""

    stream: str
    position: Position
    body: bytes


def cost_of(grant: Grant) -> int:
    """Return what a grant counts for in ``limits.max_grants_bytes``."""
    return len(grant.body) + GRANT_COST_BYTES


class Taken(NamedTuple):
    """A grant and how many times it has been taken, this time included."""

    grant: Grant
    take: int


class GrantMissing(Exception):
    """No grant has this token, or it expired."""


class GrantRevoked(Exception):
    """The grant of this token was revoked a short while ago."""


class GrantHeld(Exception):
    """The grant is held and cannot be taken over."""


class Listener(Protocol):
    """Who follows a stream. All methods are called on the event loop and return at once.

    Entries come each once and in the order of the log, up to a ``position_lost``. A listener
    that cannot do with less checks it by their marks, as ``Stream`` does.
    """

    def entries_arrived(self, entries: Sequence[Entry]) -> None:
        """Take the next entries."""

    def went_stale(self) -> None:
        """Hear that the store is out of reach."""

    def came_fresh(self) -> None:
        """Hear that the store is in reach again."""

    def position_lost(self, reason: RefetchReason) -> None:
        """Hear that the store cannot give what follows the last entry."""


def taken_notice(token: str, take: int) -> bytes:
    """Return the entry that tells all nodes that ``token`` was taken over."""
    return b'{"taken":["%b",%d]}' % (token.encode(), take)


def revoked_notice(token: str) -> bytes:
    """Return the entry that tells all nodes that ``token`` was revoked."""
    return b'{"revoked":"%b"}' % token.encode()


class Engine(ABC):
    """The log and the grants. Every method may be called at any time by many tasks."""

    shared: ClassVar[bool] = False
    """Whether several processes may use one store at a time."""

    @abstractmethod
    async def append(
        self, stream: str, data: bytes, *, idempotency_key: str | None = None
    ) -> Position:
        """Append one entry and return its position, at once or not at all.

        With a key that was used on this stream before: the position of then if
        the data is the same, else IdempotencyConflict.
        """

    def waiting_grants(self) -> int | None:
        """Return how many grants nobody has acquired yet; None if the store would be asked."""
        return None

    @abstractmethod
    async def head(self, stream: str) -> Position:
        """Return the position of the last entry; a stream that is not there begins."""

    @abstractmethod
    async def since(self, stream: str, seconds: float) -> Position:
        """Return a position that all entries of so many last seconds follow, if still retained.

        More may follow it, as much as the store finds simpler to give.
        """

    @abstractmethod
    async def read(self, stream: str, after: Position, limit: int) -> list[Entry]:
        """Return up to ``limit`` entries that follow ``after``; PositionLost if there is a hole."""

    @abstractmethod
    async def follow(self, stream: str, after: Position, listener: Listener) -> Callable[[], None]:
        """Tell ``listener`` all that follows ``after``, until the result is called.

        PositionLost if there is a hole, as in ``read``. A call that is cancelled follows nothing.
        """

    @abstractmethod
    async def put_grant(self, token: str, grant: Grant, seconds: float) -> None:
        """Keep a grant that nobody has taken, for so long.

        TooManyGrants if as many wait to be taken as may; one that is taken, or whose time is
        over, waits no more. In a store of several nodes the bound is theirs together.
        """

    @abstractmethod
    async def take_grant(self, token: str, seconds: float, *, resumable: bool) -> Taken:
        """Take a grant and keep it for so long.

        A grant that is held can be taken over only if both takes are resumable;
        ``taken_notice`` is appended to its stream in the same step then. Raises
        GrantMissing, GrantRevoked or GrantHeld.
        """

    @abstractmethod
    async def renew_grants(self, tokens: Iterable[str], seconds: float) -> list[str]:
        """Keep held grants for so long from now; return the tokens that are no more.

        Those are the tokens without a grant, expired ones among them, and the revoked ones.
        """

    @abstractmethod
    async def release_grant(self, token: str, take: int, seconds: float) -> None:
        """Let go of a take: keep the grant for another, or drop it when ``seconds`` is 0.

        Does nothing when the grant was taken again meanwhile.
        """

    @abstractmethod
    async def revoke_grant(self, token: str, seconds: float) -> bool:
        """Revoke a grant, taken or not, appending ``revoked_notice``; False if there is none.

        For so long the token answers GrantRevoked.
        """

    async def open(self) -> None:
        """Reach the store before anything is served; Unavailable says what is wrong with it.

        A program may leave it out: every other method reaches for the store too.
        """
        return

    def compare(self, settings: str) -> None:  # noqa: B027  # only a shared store has others
        """Warn in the log, from now on, of processes of this store with other settings.

        :param settings: a digest of what has to be the same for all.
        """

    async def check(self) -> None:
        """Raise Unavailable when the store is out of reach; used for ``/ready``."""
        return

    async def clock(self) -> float | None:
        """Return the time of the store in seconds since 1970; None: it has no clock of its own."""
        return None

    async def close(self) -> None:
        """Let go of the store; nothing may be called afterwards."""
        return
