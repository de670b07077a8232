"""How bytes leave and come: over the socket itself, or over Tornado's stream.

The rules:

1. The server does not mask, so the bytes of a frame are the same for every socket: they are made
   once (``frames.text_frames``) and shared. So are the joined bytes of what several sessions
   have waiting (``Run``).
2. All that a session has waiting goes out in one write: no task, no coroutine for each peer.
3. *Direct*: while nothing waits for this socket, the bytes go to the kernel at once. What it does
   not take waits here, and whatever comes meanwhile (pongs, a close, a run) behind it. There is
   no await between the look and the send, so the order is kept.
4. Under TLS, and wherever Tornado's stream is not as this file knows it (``taken``), the stream
   has the bytes (``IOStream``): slower, and right.
5. A session hands over more only when the last write has left, so that what waits is
   counted in one place, its outbox. Only what is left at its end comes sooner.
6. Nagle's algorithm is off: what was written leaves. The kernel's buffer is bounded
   (``max_send_buffer_bytes``), since what lies there for a peer that does not read is counted
   nowhere; and a peer that acknowledges nothing is given up by the kernel too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from tornado.iostream import IOStream, StreamClosedError

from syncserver.handlers.connection import Connection, Terms

_READ_BYTES = 16 * 1024


class DirectConnection(Connection):
    """Owns its socket."""

    __slots__ = ("_loop", "_queue", "_socket")

    def __init__(self, terms: Terms, remote_address: str, plain: socket.socket) -> None:
        self._socket: socket.socket | None = plain
        self._queue: list[memoryview] | None = None
        self._loop = asyncio.get_running_loop()
        super().__init__(terms, remote_address)
        self._loop.add_reader(plain, self._readable)

    def held(self) -> dict[int, int]:
        return {id(view.obj): view.nbytes for view in self._queue or ()}

    @property
    def _waits(self) -> bool:
        return bool(self._queue)

    def _send(self, data: bytes) -> bool:
        plain = self._socket
        if plain is None:
            return True
        if self._queue:
            self._queue.append(memoryview(data))
            return False
        try:
            sent = plain.send(data)
        except OSError:  # full, or broken, which is looked at when the loop says so
            sent = 0
        if sent == len(data):
            return True
        self._queue = [memoryview(data)[sent:]]
        self._loop.add_writer(plain, self._writable)
        return False

    def _drop(self) -> None:
        plain, self._socket = self._socket, None
        if plain is not None:
            self._queue = None
            self._loop.remove_reader(plain)
            self._loop.remove_writer(plain)
            plain.close()

    def _readable(self) -> None:
        plain = self._socket
        if plain is None:
            return
        try:
            data = plain.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._received(data)
        else:
            self._lost()

    def _writable(self) -> None:
        plain, queue = self._socket, self._queue
        while plain is not None and queue:
            sent = _sent(plain, queue[0])
            self._alive = self._alive or sent > 0
            if sent < len(queue[0]):
                queue[0] = queue[0][sent:]
                return
            del queue[0]
        if plain is not None:
            self._queue = None
            self._loop.remove_writer(plain)
            self._left()


class StreamConnection(Connection):
    """Leaves its socket to Tornado's stream."""

    __slots__ = ("_stream",)

    def __init__(self, terms: Terms, remote_address: str, stream: IOStream) -> None:
        self._stream = stream
        super().__init__(terms, remote_address)
        self._read()

    @property
    def _waits(self) -> bool:
        return self._stream.writing()

    def _send(self, data: bytes) -> bool:
        try:
            future = self._stream.write(data)
        except StreamClosedError:
            return True
        if future.done():
            return True
        future.add_done_callback(self._written)
        return False

    def _drop(self) -> None:
        self._stream.close()

    def _read(self) -> None:
        try:
            reading = asyncio.ensure_future(self._stream.read_bytes(_READ_BYTES, partial=True))
        except StreamClosedError:
            asyncio.get_running_loop().call_soon(self._lost)
        else:
            reading.add_done_callback(self._has_read)

    def _has_read(self, reading: asyncio.Future[bytes]) -> None:
        if reading.cancelled() or reading.exception() is not None:
            self._lost()
        else:
            self._received(reading.result())
            self._read()

    def _written(self, writing: asyncio.Future[None]) -> None:
        if not writing.cancelled() and writing.exception() is None and not self._waits:
            self._left()


def connect(terms: Terms, remote_address: str, stream: IOStream) -> Connection | None:
    """Return the connection that goes on where the handshake has left ``stream``.

    None: the peer was gone before it was answered.
    """
    if stream.closed():
        return None
    plain, limits = stream.socket, terms.registry.limits
    with contextlib.suppress(OSError):  # the peer is gone already, or it is no TCP
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.max_send_buffer_bytes)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unacknowledged = getattr(socket, "TCP_USER_TIMEOUT", None)
        if unacknowledged is not None and terms.ping_seconds:
            seconds = terms.ping_seconds + limits.pong_seconds
            plain.setsockopt(socket.IPPROTO_TCP, unacknowledged, int(1_000 * seconds))
    found = taken(stream)
    if found is None:
        return StreamConnection(terms, remote_address, stream)
    plain, early = found
    connection = DirectConnection(terms, remote_address, plain)
    if early:
        connection._received(early)
    return connection


def taken(stream: IOStream) -> tuple[socket.socket, bytes] | None:
    """Take the socket out of a stream, with what was read too far; None if it cannot be.

    The stream is as good as closed then; it must have nothing to write, and nobody reading.
    """
    inside: Any = stream
    try:
        plain, early, state = inside.socket, bytes(inside._read_buffer), inside._state
        known = isinstance(plain, socket.socket) and inside._closed is False
    except (AttributeError, TypeError):
        return None
    if not known or type(stream) is not IOStream or stream.writing() or stream.reading():
        return None
    if state is not None:
        stream.io_loop.remove_handler(plain)
    inside._state, inside._closed, inside.socket = None, True, None
    return plain, early


def _sent(plain: socket.socket, data: bytes | memoryview) -> int:
    """Return how many bytes the kernel took; what else went wrong, reading will find."""
    try:
        return plain.send(data)
    except (BlockingIOError, InterruptedError):
        return 0
    except OSError:
        return len(data)
