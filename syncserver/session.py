"""One connected peer: a bounded inbox, a bounded outbox, and nothing of sockets.

In: texts become messages, which are handled one at a time and in order; a
command that suspends holds back the next, never the reading of pongs and closes.

Out: ``put`` is a plain function that costs a reference. What waits for a session is a
``Run`` of frames, the same object for all sessions that have the same waiting. A
``Flusher`` hands what a loop turn gathered to the transport in one write, a slice
of sessions per turn. An outbox over its bound ends the session with 4008; nobody
waits for it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from syncserver.admission.bucket import Bucket
from syncserver.client import Client, numbers
from syncserver.config import Limits
from syncserver.errors import CloseCode, ProtocolError
from syncserver.flusher import Flusher
from syncserver.protocols import base as wire
from syncserver.transport import Transport

__all__ = ["Client", "Session", "Transport"]

logger = logging.getLogger("syncserver.session")

_RETRY = '{"retry_after": 1000}'
_BYTES_OF_ONE = 4096  # what is long takes long to read: it counts as several messages
_LITTLE_BYTES = 64 * 1024

Incoming = wire.Message | wire.Command | wire.Event | ProtocolError


class Session(Client):
    """A connected peer.

    :param flusher: hands over what is put here.
    :param dispatch: handles one message; what it returns is awaited if it can be.
    :param on_end: told once, when the session can no longer be written to.
    """

    # Many are idle: no dictionary for each, unless a service notes something of its own.
    # fmt: off
    __slots__ = (
        "_allowance", "_closing", "_dispatch", "_entry", "_in_flight", "_inbox", "_inbox_bytes",
        "_limits", "_max_outbox_bytes", "_on_end", "_outbox", "_oversize", "_running", "_rushed",
        "_scheduled", "_transport", "_writable", "flusher", "identity", "number", "open",
        "pending", "protocol", "remote_address",
    )
    # fmt: on

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
        self.number = next(numbers)
        self.identity: Any = None
        self.open = True
        self.pending = 0
        self._transport: Transport | None = transport
        self.flusher = flusher
        self._dispatch = dispatch
        self._on_end = on_end
        self._limits = limits
        self._max_outbox_bytes = limits.max_outbox_bytes
        self._allowance: Bucket | None = None
        self._inbox: list[tuple[int, Incoming]] = []
        self._inbox_bytes = 0
        self._running: asyncio.Future[None] | None = None
        self._outbox: wire.Run | None = None
        self._in_flight = 0
        self._oversize = 0
        self._entry = 0
        self._scheduled = self._rushed = False
        self._closing: tuple[int, str] | None = None
        self._writable: asyncio.Future[None] | None = None

    def receive(self, text: str | bytes) -> None:
        """Take one text of the peer."""
        if not self.open or not self.spend(1 + len(text) // _BYTES_OF_ONE):
            return
        traffic = self.flusher.traffic
        traffic.received += 1
        traffic.received_bytes += len(text)
        incoming: Sequence[Incoming]
        try:
            incoming = self.protocol.receive(text)
        except ProtocolError as error:
            incoming = [error]
        if len(incoming) > 1 and not self.spend(len(incoming) - 1):
            return
        for message in incoming:
            self._inbox.append((len(text), message))
            self._inbox_bytes += len(text)
        self._pump()
        limits, count = self._limits, len(self._inbox)
        if self._inbox_bytes > limits.max_inbox_bytes or count > limits.max_inbox_messages:
            self.close(CloseCode.RATE, _RETRY)

    def spend(self, count: int = 1) -> bool:
        """Tell whether the peer may send so much more; if not, the session ends with 4013."""
        if self._allowance is None:
            limits = self._limits
            self._allowance = Bucket(limits.messages_per_second, limits.max_message_burst)
        if self._allowance.take(count):
            return True
        self.close(CloseCode.RATE, _RETRY)
        return False

    @property
    def is_silent(self) -> bool:
        """Tell whether the peer has sent nothing yet."""
        return self._allowance is None

    def held(self) -> dict[int, int]:
        """Return the sizes of what waits, by what it is: others may wait for the same."""
        found = None if self._transport is None else self._transport.held()
        if found is None:
            found = {id(self): self._in_flight}
        if self._outbox is not None:
            found[id(self._outbox)] = self._outbox.size
        return found

    def tell(self, event: wire.Event) -> None:
        """Encode one event for this peer alone and put it; end if the protocol says so then."""
        if isinstance(event, wire.Failure):
            self.flusher.traffic.errors.add(event.error.code)
        texts = self.protocol.encode(event)
        if texts:
            self.put(wire.Frame(texts))
        if self.protocol.closing is not None:
            self.close(self.protocol.closing)

    def put(self, frame: wire.Frame, entry: int = 0) -> None:
        """Add a frame to the outbox; synchronous, never fails, may end the session with 4008.

        :param entry: the number of what the frame is a part of, if it has others.
        """
        size = frame.size
        if not self.open or not size:
            return
        pending = self.pending
        total = pending + size if pending else size  # mostly one object for all
        if not pending or (entry and entry == self._entry):
            # An entry of any size is taken whole, and what is small after it.
            self._oversize = total if total > self._max_outbox_bytes else 0
            self._entry = entry
        elif total > self._max_outbox_bytes + self._oversize:
            if not self._in_flight:  # nothing is slow yet: much came in one turn of the loop
                self.flusher.flush(self)
                self._scheduled = self._rushed = True  # it stands in the flusher's line as before
                self.put(frame, entry)
                return
            if not self._rushed or total > 2 * self._max_outbox_bytes + self._oversize:
                self.abort(CloseCode.SLOW)
                return
        self.pending = total
        before, extended = self._outbox, self.flusher.extended
        run = extended.get(before)
        if run is None or run.last is not frame:
            run = extended[before] = wire.Run(before, frame)
        self._outbox = run
        if not self._scheduled:
            self._scheduled = True
            self.flusher.add(self)

    async def writable(self, size: int = 0) -> bool:
        """Wait until ``size`` bytes more are little for the outbox, or all of it is empty.

        False if the session ended instead. A peer that takes longer than ``stall_seconds`` for
        that little is cut off.
        """
        little = min(self._limits.max_outbox_bytes // 2, _LITTLE_BYTES)
        while self.open and self.pending and self.pending + size > little:
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
            self._outbox = None
            self._end(code, reason)

    def connection_lost(self) -> None:
        """Hear from the handler that the socket is gone."""
        self._transport = None  # which knows this session: not a cycle for the collector
        self._outbox = None
        self.pending = 0
        if self.open:
            self.open = False
            self.flusher.traffic.closed.add("peer")
            self._ended()

    def drained(self) -> None:
        """Hear from the transport that all it was given has left."""
        self._left()
        if self._outbox is not None and not self._scheduled:
            self._schedule()

    def flush(self) -> wire.Run | None:
        """Hand the outbox to the transport in one write and return it; for the flusher alone."""
        self._scheduled = self._rushed = False
        closing, transport = self._closing, self._transport
        if transport is None:
            return None
        run: wire.Run | None = None
        try:
            if self._outbox is not None and (closing is not None or not self._in_flight):
                run, self._outbox = self._outbox, None
                self._in_flight += run.size
                if transport.write(run):
                    self._left()
        finally:
            if closing is not None:
                self._closing = None
                transport.close(*closing)
        return run

    def _left(self) -> None:
        self.pending -= self._in_flight
        self._in_flight = 0
        if self._writable is not None:
            self._wake()

    def _schedule(self) -> None:
        self._scheduled = True
        self.flusher.add(self)

    def _end(self, code: int, reason: str) -> None:
        self.open = False
        self.flusher.traffic.closed.add(str(int(code)))
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
            size, message = self._inbox.pop(0)
            self._inbox_bytes -= size
            self._handle(message)

    def _handle(self, message: Incoming) -> None:
        if isinstance(message, ProtocolError):
            logger.info("Unreadable message from %s: %s", self, message.code)
            self.tell(wire.Failure(message.service, message.call_id, message))
            return
        if not isinstance(message, wire.Message | wire.Command):
            self.tell(message)
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
