"""What every wire protocol is: text in, messages out; events in, text out. Pure.

A protocol object serves one session. It does no I/O and knows no service; a
new wire protocol is one file beside this one and one row in ``app.PROTOCOLS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from syncserver.delta import Delta
from syncserver.errors import CloseCode, ProtocolError, RPCError


@dataclass(frozen=True, slots=True)
class Message:
    """A payload for a service that reads it itself."""

    service: str
    payload: Any


@dataclass(frozen=True, slots=True)
class Command:
    """A call of one command of an RPC service; ``call_id`` is echoed as it came."""

    service: str
    command: str
    params: Mapping[str, Any]
    call_id: Any = None


@dataclass(frozen=True, slots=True)
class Change:
    """A delta as the items under ``tag`` see it."""

    service: str
    delta: Delta
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Notification:
    """Whatever a service tells its client unasked."""

    service: str
    message: Any


@dataclass(frozen=True, slots=True)
class Acquired:
    """A subscription has gone live: the answer to its acquire.

    ``position`` is None where none was asked for; ``views`` are the model and the tag of each
    of its views.
    """

    service: str
    call_id: Any
    token: str
    position: str | None
    views: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class PositionReached:
    """All entries up to ``position`` have been sent to this session."""

    service: str
    position: str


@dataclass(frozen=True, slots=True)
class RefetchNotice:
    """A subscription is over; its rows are to be read again. ``views``: as in ``Acquired``."""

    service: str
    token: str
    reason: str
    views: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """A subscription is over and another session has it. ``views``: as in ``Acquired``."""

    service: str
    token: str
    reason: str
    views: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Freshness:
    """The log went out of reach (``stale``) or is back."""

    service: str
    stale: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a call."""

    service: str
    call_id: Any
    data: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """The refusal of a call, or of text that was none (``service`` may be None then)."""

    service: str | None
    call_id: Any
    error: RPCError | ProtocolError


Event = (
    Change
    | Notification
    | Acquired
    | PositionReached
    | RefetchNotice
    | Ended
    | Freshness
    | Reply
    | Failure
)

TEXT_OVERHEAD_BYTES = 16
"""What a text counts for in an outbox beside its length."""

Framing = Callable[[tuple[bytes, ...]], bytes]


class Frame:
    """Texts that go to a peer together; shared by all sessions that get the same.

    Its bytes on a socket are made once for each framing, by whoever needs them first.
    """

    __slots__ = ("_rendered", "size", "texts")

    def __init__(self, texts: tuple[bytes, ...]) -> None:
        self.texts = texts
        self.size = sum(map(len, texts)) + TEXT_OVERHEAD_BYTES * len(texts)
        self._rendered: dict[Framing, bytes] = {}

    def rendered(self, framing: Framing) -> bytes:
        """Return the texts as ``framing`` puts them on a socket."""
        try:
            return self._rendered[framing]
        except KeyError:
            data = self._rendered[framing] = framing(self.texts)
            return data


class Run(Sequence[Frame]):
    """Frames that leave together, in order; shared by all sessions that have the same waiting.

    A run is never changed: ``Run(run, frame)`` is a longer one. Its bytes are joined once.
    ``text_count`` is how many texts are in it.
    """

    __slots__ = ("_before", "_frames", "_rendered", "last", "size", "text_count")

    def __init__(self, before: Run | None, last: Frame) -> None:
        self._before = before
        self.last = last
        self.size: int = last.size
        self.text_count: int = len(last.texts)
        if before is not None:
            self.size += before.size
            self.text_count += before.text_count
        self._frames: tuple[Frame, ...] = ()
        self._rendered: dict[Framing, bytes] = {}

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Return the frames of the run."""
        if not self._frames:
            frames, run = [self.last], self._before
            while run is not None:
                frames.append(run.last)
                run = run._before
            self._frames = tuple(reversed(frames))
        return self._frames

    def rendered(self, framing: Framing) -> bytes:
        """Return all frames as ``framing`` puts them on a socket."""
        if self._before is None:
            return self.last.rendered(framing)
        try:
            return self._rendered[framing]
        except KeyError:
            data = b"".join([frame.rendered(framing) for frame in self.frames])
            self._rendered[framing] = data
            return data

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | Sequence[Frame]:
        return self.frames[index]


class Protocol(ABC):
    """The wire protocol of one session."""

    name: ClassVar[str] = "other"
    """What the protocol is called in metrics."""

    shared: ClassVar[bool] = True
    """True: ``encode`` gives the same for all sessions of what goes to many of them (changes,
    positions, notifications), so that its result is shared. False: it depends on what this
    session was sent before."""

    closing: CloseCode | None = None
    """Set by ``encode`` when the session is to end after what it has just returned."""

    @abstractmethod
    def receive(self, text: str | bytes) -> Sequence[Message | Command | Event]:
        """Read one text of the peer; ProtocolError on what cannot be read.

        An event is told to this peer in its turn: what the protocol answers by itself.
        """

    @abstractmethod
    def encode(self, event: Event) -> tuple[bytes, ...]:
        """Return the UTF-8 texts that tell ``event``; ValueError on what JSON cannot carry."""
