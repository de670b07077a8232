"""One connected peer: a bounded inbox, a bounded outbox, and nothing of sockets.

In: texts become messages, which are handled one at a time and in order; a
command that suspends holds back the next, never the reading of pongs and closes.

Out: ``put`` is a plain function that costs a reference. A ``Flusher`` hands what
a loop turn gathered to the transport in one write, a slice of sessions per turn.
An outbox over its bound ends the session with 4008; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from syncserver.config import Limits
from syncserver.errors import CloseCode, ProtocolError
from syncserver.protocols import base as wire

logger = logging.getLogger("syncserver.session")

_FLUSHED_PER_TURN = 256

Incoming = wire.Message | wire.Command | ProtocolError


class Transport(Protocol):
    """What a session needs of the socket behind it."""

    def write(self, frames: Sequence[wire.Frame]) -> bool:
        """Send frames; False if some are still to go, ``Session.drained`` is called then."""

    def close(self, code: int, reason: str) -> None:
        """Close the socket after what was written; abort it if the peer does not read."""


class Flusher:
    """Writes out the sessions that have something waiting, some in each turn of the loop."""

    def __init__(self) -> None:
        self._due: deque[Session] = deque()

    def add(self, session: Session) -> None:
        """Flush ``session`` in a coming turn; the session sees to it that it is added once."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._turn)
        self._due.append(session)

    def _turn(self) -> None:
        for _ in range(min(len(self._due), _FLUSHED_PER_TURN)):
            session = self._due.popleft()
            try:
                session.flush()
            except Exception:
                logger.exception("Cannot write to %s", session.remote_address)
                session.abort(CloseCode.INTERNAL)
        if self._due:
            asyncio.get_running_loop().call_soon(self._turn)


class Client(ABC):
    """Whom services answer: a connected session, or the one call of a backend."""

    identity: Any = None
    """Who the client is, as a grant or a service of the application says (any JSON)."""
    idempotency_key: str | None = None
    """The key that the call of a backend came with."""
    remote_address: str = ""
    open: bool = True
    """False as soon as nothing that is told can reach the peer any more."""

    @abstractmethod
    def tell(self, event: wire.Event) -> None:
        """Send one event; ValueError if JSON cannot carry it."""

    def send(self, message: dict[str, Any]) -> None:
        """Send an envelope ``{"service": ..., "message": ...}``."""
        self.tell(wire.Notification(message["service"], message["message"]))


class Session(Client):
    """A connected peer.

    :param dispatch: handles one message; what it returns is awaited if it can be.
    :param on_end: told once, when the session can no longer be written to.
    """

    def __init__(
        self,
        protocol: wire.Protocol,
        transport: Transport,
        flusher: Flusher,
        *,
        dispatch: Callable[[Client, wire.Message | wire.Command], Awaitable[None] | None],
        on_end: Callable[[Session], None],
        limits: Limits,
        remote_address: str = "",
    ) -> None:
        self.protocol = protocol
        self.remote_address = remote_address
        self.pending = 0
        self._transport = transport
        self._flusher = flusher
        self._dispatch = dispatch
        self._on_end = on_end
        self._limits = limits
        self._inbox: deque[tuple[int, Incoming]] = deque()
        self._inbox_bytes = 0
        self._running: asyncio.Future[None] | None = None
        self._outbox: list[wire.Frame] = []
        self._in_flight = 0
        self._oversize = 0
        self._scheduled = False
        self._closing: tuple[int, str] | None = None
        self._writable: asyncio.Future[None] | None = None

    def receive(self, text: str | bytes) -> None:
        """Take one text of the peer."""
        if not self.open:
            return
        incoming: Sequence[Incoming]
        try:
            incoming = self.protocol.receive(text)
        except ProtocolError as error:
            incoming = [error]
        for message in incoming:
            self._inbox.append((len(text), message))
            self._inbox_bytes += len(text)
        self._pump()
        limits = self._limits
        if (
            self._inbox_bytes > limits.max_inbox_bytes
            or len(self._inbox) > limits.max_inbox_messages
        ):
            self.close(CloseCode.RATE, '{"retry_after": 1000}')

    def tell(self, event: wire.Event) -> None:
        """Encode one event for this peer alone and put it."""
        texts = self.protocol.encode(event)
        if texts:
            self.put(wire.Frame(texts))

    def put(self, frame: wire.Frame) -> None:
        """Add a frame to the outbox; synchronous, never fails, may end the session with 4008."""
        if not self.open or not frame.texts:
            return
        bound = self._limits.max_outbox_bytes
        if not self.pending:  # one frame of any size is taken, and what is small after it
            self._oversize = frame.size if frame.size > bound else 0
        elif self.pending + frame.size > bound + self._oversize:
            self.abort(CloseCode.SLOW)
            return
        self.pending += frame.size
        self._outbox.append(frame)
        if not self._scheduled:
            self._schedule()

    async def writable(self, size: int = 0) -> bool:
        """Wait until half of the outbox has room for ``size`` bytes, or all of it is empty.

        False if the session ended instead. A peer that takes longer than ``stall_seconds`` is
        cut off.
        """
        half = self._limits.max_outbox_bytes // 2
        while self.open and self.pending and self.pending + size > half:
            if self._writable is None:
                self._writable = asyncio.get_running_loop().create_future()
            waiting = asyncio.shield(self._writable)
            try:
                await asyncio.wait_for(waiting, self._limits.stall_seconds)
            except TimeoutError:
                self.abort(CloseCode.SLOW)
        return self.open

    def close(self, code: int, reason: str = "") -> None:
        """End the session; what is in the outbox is still written."""
        if self.open:
            self._end(code, reason)

    def abort(self, code: int, reason: str = "") -> None:
        """End the session and forget its outbox."""
        if self.open:
            self._outbox.clear()
            self._end(code, reason)

    def connection_lost(self) -> None:
        """Hear from the handler that the socket is gone."""
        self._outbox.clear()
        self.pending = 0
        if self.open:
            self.open = False
            self._ended()

    def drained(self) -> None:
        """Hear from the transport that all it was given has left."""
        self.pending -= self._in_flight
        self._in_flight = 0
        self._wake()
        if self._outbox and not self._scheduled:
            self._schedule()

    def flush(self) -> None:
        """Hand the outbox to the transport in one write; called by the flusher alone."""
        self._scheduled = False
        try:
            if self._outbox and (self._closing or not self._in_flight):
                self._write()
        finally:
            if self._closing:
                (code, reason), self._closing = self._closing, None
                self._transport.close(code, reason)

    def _write(self) -> None:
        frames, self._outbox = self._outbox, []
        self._in_flight += sum(frame.size for frame in frames)
        if self._transport.write(frames):
            self.pending -= self._in_flight
            self._in_flight = 0
            self._wake()

    def _schedule(self) -> None:
        self._scheduled = True
        self._flusher.add(self)

    def _end(self, code: int, reason: str) -> None:
        self.open = False
        self._closing = (code, reason)
        if not self._scheduled:
            self._schedule()
        asyncio.get_running_loop().call_soon(self._ended)

    def _ended(self) -> None:
        self._inbox.clear()
        self._inbox_bytes = 0
        self._wake()
        self._on_end(self)

    def _wake(self) -> None:
        waiting, self._writable = self._writable, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _pump(self) -> None:
        while self.open and self._inbox and self._running is None:
            size, message = self._inbox.popleft()
            self._inbox_bytes -= size
            self._handle(message)

    def _handle(self, message: Incoming) -> None:
        if isinstance(message, ProtocolError):
            logger.info("Unreadable message from %s: %s", self.remote_address, message.code)
            self.tell(wire.Failure(message.service, message.call_id, message))
            return
        pending = self._dispatch(self, message)
        if inspect.isawaitable(pending):
            self._running = asyncio.ensure_future(pending)
            self._running.add_done_callback(self._handled)

    def _handled(self, future: asyncio.Future[None]) -> None:
        self._running = None
        if not future.cancelled() and future.exception() is not None:
            logger.error("A message was not handled", exc_info=future.exception())
        self._pump()
