"""How frames get from a session to a WebSocket's stream.

The rules:

1. The server does not mask, so the bytes of a frame are the same for every
   socket: they are made once (``text_frames``) and shared. So are the joined bytes of
   what several sessions have waiting (``Run``).
2. All that a session has waiting goes out in one write: no task, no coroutine for
   each peer.
3. *Direct*: while the stream has nothing of its own to write (pongs, pings, closes and the
   rest of an earlier run stand there), the bytes go to the socket itself. What
   the kernel does not take goes to the stream. Nothing is awaited between the look and the
   send, so the order is kept.
4. Otherwise the stream gets them (``IOStream.write``), which keeps the order too: under TLS
   always.
5. A session hands over more only when the last write has left, so that what waits
   is counted in one place, its outbox. Only what is left at its end comes sooner.
6. A connection that is not as this file knows Tornado's, or has a compressor, gets
   ``write_message`` for each text: slower, and right.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

from tornado.iostream import IOStream, StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from syncserver.protocols.base import Run

_FIN_TEXT = 0x81
_TWO_BYTES = 126
_EIGHT_BYTES = 127


def text_frames(texts: tuple[bytes, ...]) -> bytes:
    """Return each text as one final, unmasked text frame (RFC 6455, 5.2)."""
    return b"".join(_header(len(text)) + text for text in texts)


def _header(length: int) -> bytes:
    if length < _TWO_BYTES:
        return struct.pack("!BB", _FIN_TEXT, length)
    if length < 1 << 16:
        return struct.pack("!BBH", _FIN_TEXT, _TWO_BYTES, length)
    return struct.pack("!BBQ", _FIN_TEXT, _EIGHT_BYTES, length)


class Outlet:
    """The transport of one session (``session.Transport``).

    :param drained: called when a write that did not leave at once has left.
    """

    __slots__ = ("_direct", "_drained", "_handler", "_stream")

    def __init__(
        self, handler: WebSocketHandler, drained: Callable[[], None], send_buffer_bytes: int
    ) -> None:
        self._handler = handler
        self._drained = drained
        self._stream = _stream_of(handler)
        self._direct = type(self._stream) is IOStream
        _set_up(handler, send_buffer_bytes)

    def write(self, frames: Run) -> bool:
        """Send frames; False if some are still to leave. A closed socket swallows them."""
        try:
            future = self._begin(frames)
        except (StreamClosedError, WebSocketClosedError):
            return True
        if future is None or future.done():
            return True
        future.add_done_callback(self._left)
        return False

    def close(self, code: int, reason: str) -> None:
        """Close the socket after what was written; a peer that does not answer is aborted."""
        self._handler.close(code, reason)

    def _begin(self, frames: Run) -> asyncio.Future[None] | None:
        stream = self._stream
        if stream is None:
            writes = [self._handler.write_message(text) for one in frames for text in one.texts]
            for write in writes:
                write.add_done_callback(_note_exception)
            return writes[-1]
        data = frames.rendered(text_frames)
        if not self._direct or self._has_more_to_write(stream):
            return stream.write(data)
        sent = _send(stream.socket, data)
        return None if sent == len(data) else stream.write(memoryview(data)[sent:])

    def _has_more_to_write(self, stream: IOStream) -> bool:
        return stream.writing()

    def _left(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._drained()


def _send(plain: socket.socket | None, data: bytes) -> int:
    """Return how many bytes the kernel took; whatever went wrong the stream will find too."""
    try:
        return 0 if plain is None else plain.send(data)
    except OSError:
        return 0


def _set_up(handler: WebSocketHandler, send_buffer_bytes: int) -> None:
    plain = getattr(getattr(handler.ws_connection, "stream", None), "socket", None)
    if plain is None:
        return
    with contextlib.suppress(OSError):  # the peer is gone already
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)


def _note_exception(future: asyncio.Future[None]) -> None:
    """Keep asyncio from logging that nobody asked why a write to a closed socket failed."""
    if not future.cancelled():
        future.exception()


def _stream_of(handler: WebSocketHandler) -> IOStream | None:
    connection: Any = handler.ws_connection
    stream = getattr(connection, "stream", None)
    compressed = getattr(connection, "_compressor", None) is not None
    return stream if isinstance(stream, IOStream) and not compressed else None
