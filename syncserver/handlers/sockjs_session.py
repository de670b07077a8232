"""A session of SockJS that lives on one HTTP response after the other.

It has at most one *receiver*, a response that waits for frames. The rules:

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
from syncserver.protocols.base import Run
from syncserver.session import Session
from syncserver.timers import Alarm, Wheel

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
