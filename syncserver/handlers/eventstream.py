"""How events get from a session to an HTTP response that does not end (``session.Transport``).

The bytes of a run are shared by all sessions, but for the place in each ``id`` where the
token of the session comes in. A comment each ``ping_seconds`` keeps proxies from taking
the connection for dead; a peer that takes nothing from one comment to the next is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import Callable
from typing import Any

from tornado.web import RequestHandler

from syncserver.errors import CloseCode
from syncserver.protocols.base import Run
from syncserver.protocols.events import ID_PLACE
from syncserver.timers import Alarm, Wheel

_COMMENT = b":\n\n"
_RETRY_MS = (1_000, 3_000)
_LAST_WRITE_SECONDS = 10.0


def event_blocks(texts: tuple[bytes, ...]) -> bytes:
    """Return each text as an event, with the empty line that ends it."""
    return b"".join([text + b"\n\n" for text in texts])


class EventStream:
    """The transport of one session.

    :param mark: what is told beside a position and comes back in ``Last-Event-ID``.
    :param drained: called when a write that did not leave at once has left.
    :param stalled: called when the peer takes nothing any more.
    """

    def __init__(
        self,
        handler: RequestHandler,
        mark: str,
        wheel: Wheel,
        *,
        ping_seconds: float,
        drained: Callable[[], None],
        stalled: Callable[[], None],
    ) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handler = handler
        self._mark = f"/{mark}".encode()
        self._wheel = wheel
        self._ping_seconds = ping_seconds
        self._drained = drained
        self._stalled = stalled
        self._is_busy = False
        self._was_busy = False
        self._is_closing = False
        self._alarm: Alarm | None = None

    def begin(self, position: str, send_buffer_bytes: int) -> None:
        """Send the head, and the ``id`` to come again with before anything else came."""
        _set_up(self._handler, send_buffer_bytes, self._ping_seconds)
        retry = random.randint(*_RETRY_MS)  # noqa: S311  # spreads load, guards nothing
        self._send(b"retry: %d\nid: %b%b\n\n" % (retry, position.encode(), self._mark))
        self._alarm = self._wheel.call_later(self._ping_seconds, self._comment)

    def write(self, frames: Run) -> bool:
        """Send frames; False if some are still to leave. A closed socket swallows them."""
        return self._send(frames.rendered(event_blocks).replace(ID_PLACE, self._mark))

    def close(self, code: int, reason: str) -> None:
        """End the response after what was written; a peer that takes nothing is cut off."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._is_busy and code in {CloseCode.SLOW, CloseCode.NO_PONG}:
            self._cut()
            return
        if code in {CloseCode.DRAIN, CloseCode.RATE}:
            with contextlib.suppress(ValueError, KeyError):
                self._send(b"retry: %d\n\n" % json.loads(reason)["retry_after"])
        self._is_closing = True
        if self._is_busy:
            self._alarm = self._wheel.call_later(_LAST_WRITE_SECONDS, self._cut)
        else:
            self.lost()

    def held(self) -> None:
        """Say that what has not left is of this stream alone: its token stands in it."""

    def lost(self) -> None:
        """Let the request of the stream end: all was sent, or the peer is gone."""
        if self._alarm is not None:
            self._alarm.cancel()
        if not self.ended.done():
            self.ended.set_result(None)

    def _send(self, data: bytes) -> bool:
        stream = self._stream()
        if stream is None or stream.closed():
            self.lost()  # Tornado tells nobody of what was closed before the request was read
            return True
        self._handler.write(data)
        future = self._handler.flush()
        if future.done():
            if future.exception() is not None:
                self.lost()
            return True
        self._is_busy = True
        future.add_done_callback(self._left)
        return False

    def _left(self, future: asyncio.Future[None]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        self._is_busy = self._was_busy = False
        self._drained()
        if self._is_closing and not self._is_busy:
            self.lost()

    def _comment(self) -> None:
        self._alarm = self._wheel.call_later(self._ping_seconds, self._comment)
        if not self._is_busy:
            self._send(_COMMENT)
        elif self._was_busy:
            self._stalled()
        self._was_busy = self._is_busy

    def _cut(self) -> None:
        stream = self._stream()
        if stream is not None:
            stream.close()
        self.lost()

    def _stream(self) -> Any:
        return getattr(self._handler.request.connection, "stream", None)


def _set_up(handler: RequestHandler, send_buffer_bytes: int, ping_seconds: float) -> None:
    """Send at once, keep little in the kernel, and notice a peer that vanished."""
    stream = getattr(handler.request.connection, "stream", None)
    plain = getattr(stream, "socket", None)
    if plain is None:
        return
    with contextlib.suppress(OSError):  # the peer is gone already, or it is a Unix socket
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if unacknowledged := getattr(socket, "TCP_USER_TIMEOUT", None):
            plain.setsockopt(socket.IPPROTO_TCP, unacknowledged, int(2_000 * ping_seconds))
