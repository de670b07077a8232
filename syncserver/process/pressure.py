"""What waits to be sent to all sessions together, and what memory the process has, each second.

Bytes that several sessions wait for are there once: they are looked at closely only when the sum
of what each of them waits for is over the bound. They come back when the last of them is closed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from syncserver.config import Limits
from syncserver.errors import CloseCode
from syncserver.process.memory import bound_of, give_back, resident_bytes
from syncserver.session import Session

logger = logging.getLogger("syncserver.session")

_ENDS = 0.95
_AIM = 0.9
_GROWTH = 0.01
_STILL_LOOKS = 60
_TRIMS = 6  # a second each: who does not read is cut off five seconds after it is closed
_SLOW_BYTES = 64 * 1024
_WORTH = 0.1
_MIB = 1024 * 1024


def relieve(sessions: Iterable[Session], limits: Limits) -> int:
    """Close those who have the most waiting with 4008, if all have too much; return how many."""
    waiting = [session for session in sessions if session.pending]
    most = limits.max_outboxes_bytes
    if sum(session.pending for session in waiting) <= most:
        return 0
    held = _Held(waiting)
    closed = held.close(held.bytes - most)
    if closed:
        logger.warning("Closed %s sessions: limits.max_outboxes_bytes waited in all", closed)
    return closed


class _Held:
    """What sessions have waiting, by what it is; several may wait for the same."""

    def __init__(self, sessions: Iterable[Session]) -> None:
        self._items = {session: session.held() for session in sessions}
        self._sizes: dict[int, int] = {}
        self._waiting: Counter[int] = Counter()
        for items in self._items.values():
            self._sizes.update(items)
            self._waiting.update(items.keys())
        self.bytes = sum(self._sizes.values())

    def close(self, excess: int, least: int = 0) -> int:
        """Close sessions until so many bytes come back; return how many.

        First those who have the most when what they share is divided among them, and nobody who
        has less than ``least`` of it; nobody at all where what would come back is little.
        """
        shares = {one: share for one in self._items if (share := self._share(one)) >= least}
        if sum(shares.values()) < excess * _WORTH:
            return 0
        closed = 0
        for session in sorted(shares, key=lambda one: self._rank(one, shares[one]), reverse=True):
            if excess <= 0:
                break
            excess -= self._take(session)
            closed += 1
            session.abort(CloseCode.SLOW)
        return closed

    def _share(self, session: Session) -> float:
        items = self._items[session].items()
        return sum(size / self._waiting[key] for key, size in items)

    def _rank(self, session: Session, share: float) -> tuple[float, int]:
        return share, max(self._items[session], default=0)  # who has the same stands together

    def _take(self, session: Session) -> int:
        """Return how many bytes only this one still waited for."""
        items = self._items[session]
        self._waiting.subtract(items.keys())
        return sum(size for key, size in items.items() if not self._waiting[key])


class Pressure:
    """Whether the process has more memory than it may, and less of it.

    Once it has, nobody new is to be let in (``is_high``) until it has a twentieth less than it
    may, or no more than it may and has not grown for sixty looks: Python gives little back.

    :param most: how much; None: as much as there is.
    :param resident: says how much it has.
    """

    def __init__(
        self, most: int | None, resident: Callable[[], int | None] = resident_bytes
    ) -> None:
        self.most = most
        self.is_high = False
        self._resident = resident
        self._trims = self._lowest = self._still = 0

    @classmethod
    def of(cls, limits: Limits, processes: int, *, tells: bool = True) -> Pressure:
        """Return that of one of so many processes; one of them tells what to know of the bound."""
        bound = bound_of(limits, processes, resident_bytes())
        if bound.note and tells:
            level = logging.WARNING if bound.is_set else logging.INFO
            logger.log(level, "Memory: %s", bound.note)
        return cls(bound.most)

    def look(self, sessions: Iterable[Session]) -> None:
        """Look at it; while there is more, close those who have the most waiting, the slow ones."""
        if self.most is None:
            return
        if self._trims:
            self._trims -= 1
            give_back()
        resident = self._resident()
        if resident is None:
            return
        if not self.is_high and resident > self.most:
            give_back()
            resident = self._resident() or resident
            if resident > self.most:
                self._begin(resident, self.most)
        elif self.is_high and self._ends(resident, self.most):
            logger.info("There is memory again: %s MiB are used", resident // _MIB)
            self.is_high = False
        if self.is_high and resident > self.most:
            self._close(sessions, resident - int(self.most * _AIM))

    def _begin(self, resident: int, most: int) -> None:
        self.is_high = True
        self._lowest, self._still = resident, 0
        text = "Memory is scarce: %s MiB are used, limits.max_process_bytes is %s MiB"
        logger.warning(text, resident // _MIB, most // _MIB)

    def _ends(self, resident: int, most: int) -> bool:
        if resident > self._lowest + most * _GROWTH:
            self._lowest, self._still = resident, 0
        else:
            self._lowest = min(self._lowest, resident)
            self._still += 1
        is_still = self._still >= _STILL_LOOKS and resident <= most
        return is_still or resident < most * _ENDS

    def _close(self, sessions: Iterable[Session], excess: int) -> None:
        slow = [one for one in sessions if one.open and one.pending >= _SLOW_BYTES]
        if closed := _Held(slow).close(excess, _SLOW_BYTES):
            self._trims = _TRIMS
            logger.warning("Closed %s slow sessions: memory is scarce", closed)
