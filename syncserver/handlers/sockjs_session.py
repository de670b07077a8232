"""Sessions of SockJS that live on one HTTP response after the other.

A session has at most one *receiver*, a response that waits for frames. The rules:

1. What the core hands over is held here until a receiver comes, and counts as
   waiting all that time: a client that does not poll is cut off with 4008 like one
   that does not read.
2. What was given to a receiver that broke is put back: the next one gets it, and the
   one after that learns that the session was interrupted (1002).
3. Without a receiver for ``disconnect_seconds`` a session is forgotten. A session
   that was closed is remembered for as long, and says so to whoever asks.
4. One alarm serves a session, for heartbeats and for being forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from syncserver.config import Limits
from syncserver.errors import CloseCode
from syncserver.handlers import sockjs_framing as framing
from syncserver.protocols.base import Protocol as WireProtocol
from syncserver.protocols.base import Run
from syncserver.registry import ServiceRegistry
from syncserver.session import Session
from syncserver.wheel import Alarm, Wheel

_BUSY = framing.closing(2010, "Another connection still open")
_INTERRUPTED = "Connection interrupted"
_GONE = framing.closing(CloseCode.PROTOCOL_ERROR, _INTERRUPTED)
_RETRY = '{"retry_after": 1000}'


def receive(session: Session, texts: Sequence[bytes], limits: Limits) -> None:
    """Hand the messages of one request or frame to a session; too many or too large end it."""
    if len(texts) > limits.max_inbox_messages:
        session.close(CloseCode.RATE, _RETRY)
    for text in texts:
        if len(text) > limits.max_message_bytes:
            session.close(CloseCode.MESSAGE_TOO_BIG)
        session.receive(text)


class Receiver(Protocol):
    """A response that takes frames."""

    full: bool
    """Whether it has to end when what it was sent has left."""

    def send(self, frame: bytes) -> bool:
        """Send a frame; False if it is still to leave, ``PollingSession.left`` is called then."""

    def end(self) -> None:
        """End the response after what it was sent."""

    def abort(self) -> None:
        """Cut the connection."""


class PollingSession:
    """The transport (``session.Transport``) of one session, and what its requests do to it.

    :param origin: of the page that opened it, where that is known.
    :param told: called once, when there is nothing left to tell the client.
    :param gone: called once, when nobody may ask for the session any more.
    """

    session: Session

    def __init__(
        self,
        limits: Limits,
        wheel: Wheel,
        origin: str | None,
        *,
        told: Callable[[], None],
        gone: Callable[[], None],
    ) -> None:
        self.origin = origin
        self._limits = limits
        self._wheel = wheel
        self._told = told
        self._gone = gone
        self._receiver: Receiver | None = None
        self._held: list[Run] = []
        self._sending: list[Run] | None = None
        self._stuck: list[Run] | None = None
        self._owes = False
        self._beats = 0
        self._is_open = self._is_gone = False
        self._closing: bytes | None = None
        self._is_last = False
        self._is_told = False
        self._due = 0.0
        self._alarm: Alarm | None = None
        self._await(limits.disconnect_seconds)

    # Of the requests.

    def attach(self, receiver: Receiver) -> None:
        """Let a response have what comes; the second of two is turned away."""
        if self._is_gone or self._receiver is not None:
            receiver.send(_GONE if self._is_gone else _BUSY)
            receiver.end()
            return
        self._receiver = receiver
        if self._closing is None:
            self._await(self._limits.ping_seconds)
        if not self._is_open:
            self._is_open = True
            self._emit(receiver, framing.OPEN)
        self._pump()
        self._settle()

    def left(self, receiver: Receiver) -> None:
        """Hear from a receiver that what it was sent has left."""
        if receiver is self._receiver:
            self._passed(receiver)
            self._pump()
            self._settle()

    def lost(self, receiver: Receiver) -> None:
        """Hear from a receiver that its connection broke."""
        if receiver is self._receiver:
            self._held[:0] = self._sending or ()
            self._sending = None
            self._released()
            self.session.close(CloseCode.PROTOCOL_ERROR, _INTERRUPTED)
            self._tell()  # who broke off is not waited for

    # Of the core: session.Transport.

    def write(self, frames: Run) -> bool:
        """Send frames; False if some are still to go."""
        self._held.append(frames)
        self._pump()
        self._owes = bool(self._held or self._sending)
        return not self._owes

    def close(self, code: int, reason: str) -> None:
        """Tell the end after what was written, for a while to whoever asks."""
        self._closing = framing.closing(code, reason)
        self._await(self._limits.disconnect_seconds)
        self._pump()

    def held(self) -> dict[int, int]:
        """Return the sizes of what has not left, by what it is."""
        return {id(run): run.size for run in (*self._held, *(self._sending or ()))}

    # Of the table of sessions.

    def forget(self) -> None:
        """End at once what is left of the session."""
        self._is_gone = True
        if self._alarm is not None:
            self._alarm.cancel()
        receiver, self._receiver = self._receiver, None
        self._held.clear()
        self._sending = None
        self._gone()
        self._tell()
        self.session.connection_lost()
        if receiver is not None:
            receiver.abort()

    def _pump(self) -> None:
        """Send what there is, as far as a receiver takes it."""
        while self._receiver is not None and self._sending is None:
            if self._held:
                held, self._held = self._held, []
                inside = [run.rendered(framing.listed) for run in held]
                self._emit(self._receiver, framing.array(*inside), held)
            elif self._closing is not None:
                self._is_last = True
                self._emit(self._receiver, self._closing)
            else:
                return

    def _emit(self, receiver: Receiver, frame: bytes, held: Sequence[Run] = ()) -> None:
        self._sending = list(held)
        if receiver.send(frame):
            self._passed(receiver)

    def _passed(self, receiver: Receiver) -> None:
        self._sending = None
        if receiver.full or self._is_last:
            self._released()
            receiver.end()
        if self._is_last:
            self._tell()

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True
            self._told()

    def _released(self) -> None:
        self._receiver = None
        if self._closing is None:
            self._await(self._limits.disconnect_seconds)

    def _settle(self) -> None:
        """Tell the session when all it handed over has left."""
        if self._owes and not self._held and not self._sending:
            self._owes = False
            self.session.drained()

    def _await(self, seconds: float) -> None:
        self._due = asyncio.get_running_loop().time() + seconds
        if self._alarm is None:
            self._arm(seconds)

    def _arm(self, seconds: float) -> None:
        limits = self._limits
        # Never longer than the shorter time: what is due may become due earlier.
        soon = min(seconds, limits.disconnect_seconds, limits.ping_seconds)
        self._alarm = self._wheel.call_later(soon, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        left = self._due - asyncio.get_running_loop().time()
        if left > 0:
            self._arm(left)
        elif self._receiver is None or self._closing is not None:
            self.forget()
        else:
            self._beat(self._receiver)

    def _beat(self, receiver: Receiver) -> None:
        self._await(self._limits.ping_seconds)
        self._beats += 1
        silent = self._beats * self._limits.ping_seconds
        if self.session.is_silent and silent >= self._limits.first_message_seconds:
            self.session.close(CloseCode.TIMEOUT)
        if self._sending is None:
            self._emit(receiver, framing.HEARTBEAT)
        elif self._sending is self._stuck:
            receiver.abort()
        self._stuck = self._sending


class Sessions:
    """The polling sessions of one place, found by the id that their clients chose."""

    def __init__(
        self, registry: ServiceRegistry, protocol: Callable[[], WireProtocol], wheel: Wheel
    ) -> None:
        self._registry = registry
        self._protocol = protocol
        self._wheel = wheel
        self._sessions: dict[str, PollingSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, session_id: str, origin: str | None) -> PollingSession | None:
        """Return a session; one that was opened by a page of another origin is not there."""
        found = self._sessions.get(session_id)
        if found is None or (origin and found.origin and origin != found.origin):
            return None
        return found

    def is_taken(self, session_id: str) -> bool:
        """Tell whether an id stands for a session of whatever origin."""
        return session_id in self._sessions

    def refusal(self, address: str) -> str | None:
        """Return why no session may be opened for an address now, in a word; None: it may."""
        if self._registry.draining:
            return "draining"
        if len(self._sessions) >= self._registry.limits.max_polling_sessions:
            return "connections"
        return None if self._registry.admits(address) else "address"

    def open(self, session_id: str, origin: str | None, address: str) -> PollingSession:
        """Open a session, to which nothing is against."""
        limits = self._registry.limits

        def told() -> None:
            self._registry.sockets -= 1

        def gone() -> None:
            del self._sessions[session_id]

        self._registry.sockets += 1
        polling = PollingSession(limits, self._wheel, origin, told=told, gone=gone)
        self._sessions[session_id] = polling
        polling.session = self._registry.connect(
            self._protocol(), polling, remote_address=address, via="sockjs_http"
        )
        return polling

    def close(self) -> None:
        """Forget all sessions."""
        for polling in tuple(self._sessions.values()):
            polling.forget()
