"""A WebSocket after its handshake: frames in, a session behind it, pings, and one end.

::

    OPEN --session closes--> CLOSING (a close frame was sent, the peer's is awaited) --> GONE
      |---peer closes-----> ANSWERED (the peer's was answered, what waits leaves) -----> GONE
      +---socket lost---------------------------------------------------------------> GONE

A frame that breaks the rules closes too, and nothing is read of its sender from then on. Whoever
does not let go is cut off after ``_LINGER_SECONDS``.

At each ping it is also seen whether the peer has ever said anything (``first_message_seconds``),
and whether a message that it began has come to its end (``message_seconds``).

A pong (or anything else that the peer sends or takes) must follow a ping within ``pong_seconds``,
or the session ends with 4012. At most one pong waits to be sent, for the latest ping (5.5.3).

How bytes leave and come is of the subclasses (``handlers.outlet``). They are slotted: what
an idle connection costs is this object, its session and its subscriptions.
"""

from __future__ import annotations

import enum
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from syncserver.config import Limits
from syncserver.errors import CloseCode
from syncserver.handlers import frames
from syncserver.protocols.base import Protocol, Run
from syncserver.registry import ServiceRegistry
from syncserver.session import Session
from syncserver.timers import Alarm, Wheel

logger = logging.getLogger("syncserver.websocket")

_LINGER_SECONDS = 5.0


class State(enum.Enum):
    """Where a connection stands."""

    OPEN = enum.auto()
    CLOSING = enum.auto()
    ANSWERED = enum.auto()
    GONE = enum.auto()


class Messages:
    """What texts are in the messages of a socket: each is one, and there are no others."""

    via: ClassVar[str] = "websocket"
    """What metrics call this way to connect."""
    opening: ClassVar[bytes] = b""
    """Frames that are sent before all others."""
    heartbeat: ClassVar[bytes] = b""
    """Frames that are sent with each ping."""

    def max_bytes(self, limits: Limits) -> int:
        """Return how long a message of the peer may be."""
        return limits.max_message_bytes

    @staticmethod
    def framed(texts: tuple[bytes, ...]) -> bytes:
        """Return the frames of texts (``Run.rendered``)."""
        return frames.text_frames(texts)

    def closing(self, code: int, reason: str) -> bytes:
        """Return what is sent before the close frame."""
        return b""

    def receive(self, content: str | bytes, session: Session, limits: Limits) -> None:
        """Hand a message of the peer to its session; Violation if it is none."""
        session.receive(content)


PLAIN = Messages()


@dataclass(frozen=True, slots=True)
class Terms:
    """What all connections of a route have in common; no pings with 0 ``ping_seconds``."""

    registry: ServiceRegistry
    protocol: Callable[[], Protocol]
    wheel: Wheel
    ping_seconds: float
    messages: Messages = PLAIN


class Connection(ABC):
    """One WebSocket: the transport of its session (``session.Transport``)."""

    __slots__ = (
        "_alarm",
        "_alive",
        "_asked",
        "_begun",
        "_pings",
        "_pong",
        "_reader",
        "_spoke",
        "_state",
        "_terms",
        "session",
    )

    def __init__(self, terms: Terms, remote_address: str) -> None:
        self._terms = terms
        self._state = State.OPEN
        self._alive = True
        self._asked = self._spoke = False
        self._begun = self._pings = 0
        self._pong: bytes | None = None
        self._alarm: Alarm | None = None
        registry = terms.registry
        registry.sockets += 1
        self._reader: frames.FrameReader | None = frames.FrameReader(
            terms.messages.max_bytes(registry.limits)
        )
        self.session = registry.connect(
            terms.protocol(), self, remote_address=remote_address, via=terms.messages.via
        )
        if terms.messages.opening:
            self._send(terms.messages.opening)
        if terms.ping_seconds:
            self._alarm = terms.wheel.call_later(terms.ping_seconds, self._ping)

    # For the session.

    def write(self, run: Run) -> bool:
        """Send a run of frames; False if some are still to leave. A closed socket swallows them."""
        return self._send(run.rendered(self._terms.messages.framed))

    def close(self, code: int, reason: str) -> None:
        """Close the socket after what was written; a peer that does not answer is cut off."""
        if self._state is State.OPEN:
            self._state = State.CLOSING
            if code == CloseCode.RATE:  # who sends without end is read no more
                self._reader = None
            last = self._terms.messages.closing(code, reason)
            self._send(last + frames.close_frame(code, reason))
            self._linger()

    def held(self) -> dict[int, int] | None:
        """Return the sizes of what has not left, by what it is; None: all is its own."""
        return None

    # For the subclasses.

    @abstractmethod
    def _send(self, data: bytes) -> bool:
        """Send bytes after those before; False if some wait, ``_left`` is to be called then."""

    @property
    @abstractmethod
    def _waits(self) -> bool:
        """Whether bytes wait that the kernel did not take yet."""

    @abstractmethod
    def _drop(self) -> None:
        """Close the socket at once; harmless when it is closed."""

    def _received(self, data: bytes) -> None:
        """Take bytes of the peer."""
        self._alive = True
        reader = self._reader
        if reader is None:
            return
        try:
            reader.feed(data)
            while self._reader is not None and (received := reader.next()) is not None:
                self._handle(received)
        except frames.Violation as violation:
            logger.info("%s broke the protocol: %s", self.session, violation)
            self._reader = None
            self.session.abort(violation.code, violation.reason)

    def _left(self) -> None:
        """Hear that nothing waits any more."""
        self._alive = True
        if self._state is State.ANSWERED:
            self._lost()
            return
        if self._pong is not None:
            pong, self._pong = self._pong, None
            self._send(frames.frame(frames.PONG, pong))
        self.session.drained()

    def _lost(self) -> None:
        """Be gone: the socket is, or is no longer wanted."""
        if self._state is State.GONE:
            return
        self._state = State.GONE
        self._reader = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._drop()
        self._terms.registry.sockets -= 1
        self.session.connection_lost()

    # Within.

    def _handle(self, received: frames.Received) -> None:
        match received:
            case frames.Message(content):
                terms, self._spoke, self._begun = self._terms, True, 0
                terms.messages.receive(content, self.session, terms.registry.limits)
            case frames.Control(frames.CLOSE, payload):
                self._peer_closes(frames.close_code(payload))
            case frames.Control(frames.PONG, _) if self._asked:
                self._asked = False
            case _ if not self.session.spend():
                self._reader = None
            case frames.Control(frames.PING, payload) if self._state is State.OPEN:
                if self._waits:
                    self._pong = payload
                else:
                    self._send(frames.frame(frames.PONG, payload))

    def _peer_closes(self, code: int | None) -> None:
        self._reader = None
        answered = self._state is State.CLOSING
        self._state = State.ANSWERED
        if not answered:
            self._send(frames.close_frame(code))
        self.session.connection_lost()
        if self._waits:
            self._linger()
        else:
            self._lost()

    def _linger(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._terms.wheel.call_later(_LINGER_SECONDS, self._lost)

    def _ping(self) -> None:
        if self._is_overdue():
            logger.info("%s said nothing for too long", self.session.remote_address)
            self.session.close(CloseCode.TIMEOUT)
            return
        self._alive, self._asked = False, True
        self._send(frames.frame(frames.PING, b"") + self._terms.messages.heartbeat)
        limits = self._terms.registry.limits
        wait = min(limits.pong_seconds, self._terms.ping_seconds)
        self._alarm = self._terms.wheel.call_later(wait, functools.partial(self._expect_pong, wait))

    def _is_overdue(self) -> bool:
        """Tell whether the first message, or the end of one that was begun, took too long."""
        self._pings += 1
        if self._reader is not None and self._reader.is_within:
            self._begun += 1
        limits, seconds = self._terms.registry.limits, self._terms.ping_seconds
        is_mute = not self._spoke and self._pings * seconds >= limits.first_message_seconds
        return is_mute or (self._begun - 1) * seconds >= limits.message_seconds

    def _expect_pong(self, waited: float) -> None:
        if self._alive:
            left = self._terms.ping_seconds - waited
            self._alarm = self._terms.wheel.call_later(left, self._ping)
        else:
            logger.info("No pong from %s", self.session)
            self.session.abort(CloseCode.NO_PONG)
