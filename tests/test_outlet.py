"""The order of what leaves, over the socket itself and by way of Tornado's stream."""

from __future__ import annotations

import asyncio
import inspect
import select
import socket
import ssl
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.iostream import IOStream, SSLIOStream

from syncserver.handlers import outlet
from syncserver.handlers.connection import Connection
from syncserver.handlers.frames import text_frames
from syncserver.handlers.outlet import DirectConnection, StreamConnection, taken
from syncserver.protocols.base import Frame, Run
from syncserver.registry import ServiceRegistry
from tests.support.daemon import until
from tests.support.sockets import HANDSHAKE, Echo, mounted

LARGE = b"x" * 400_000
PING = b"\x89\x81\0\0\0\0"  # masked with zeros
EXPECTED = (
    text_frames((LARGE,))
    + text_frames((b"second",))
    + b"\x8a\x01q"
    + text_frames((b"third", b"fourth"))
    + b"\x88\x05\x0f\xa1end"
)


def run_of(*texts: bytes) -> Run:
    run = None
    for text in texts:
        run = Run(run, Frame((text,)))
    assert run is not None
    return run


def read_all(plain: socket.socket) -> bytes:
    """Return what is there, without a turn of the loop."""
    pieces = []
    while True:
        try:
            piece = plain.recv(65_536)
        except BlockingIOError:
            return b"".join(pieces)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def socket_of(connection: Connection) -> socket.socket:
    if isinstance(connection, DirectConnection):
        assert connection._socket is not None
        return connection._socket
    assert isinstance(connection, StreamConnection)
    plain: socket.socket = connection._stream.socket
    return plain


@asynccontextmanager
async def connected(
    patch: pytest.MonkeyPatch, **limits: Any
) -> AsyncIterator[tuple[socket.socket, Connection]]:
    """Give a client's socket with small buffers, and the server's end of it."""
    opened: list[Connection] = []
    made = Connection.__init__

    def noted(self: Connection, *args: Any) -> None:
        opened.append(self)
        made(self, *args)

    patch.setattr(Connection, "__init__", noted)
    loop = asyncio.get_running_loop()
    registry = ServiceRegistry([Echo("echo")])
    async with mounted(registry, ping_pong_interval=None) as port:
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.setblocking(False)
            await loop.sock_connect(plain, ("127.0.0.1", port))
            await loop.sock_sendall(plain, HANDSHAKE)
            assert (await loop.sock_recv(plain, 4096)).endswith(b"\r\n\r\n")
            yield plain, opened[0]


async def received(patch: pytest.MonkeyPatch) -> bytes:
    """Fill the kernel's buffers, make room behind the server's back, go on, and read it all."""
    loop = asyncio.get_running_loop()
    async with connected(patch) as (plain, connection):
        assert not connection.write(run_of(LARGE))
        got = b""
        while not select.select([], [socket_of(connection)], [], 0.01)[1]:
            got += read_all(plain)
        # The kernel has room now, and the server does not know.
        assert 0 < len(got) < len(LARGE)
        connection.write(run_of(b"second"))
        connection._received(PING + b"q")
        # Whether the pong waits for what is before it, or stands behind it, is the same to read.
        while connection._waits:
            got += await loop.sock_recv(plain, 65_536)
        connection.write(run_of(b"third", b"fourth"))
        connection.close(4001, "end")
        while len(got) < len(EXPECTED):
            got += await loop.sock_recv(plain, 65_536)
        return got


@pytest.mark.parametrize("kind", [DirectConnection, StreamConnection])
async def test_the_order_is_kept_when_the_kernel_makes_room_again(
    kind: type[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is StreamConnection:
        monkeypatch.setattr(outlet, "taken", lambda stream: None)
    assert await received(monkeypatch) == EXPECTED


async def test_a_server_that_does_not_look_at_what_waits_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = textwrap.dedent(inspect.getsource(DirectConnection._send))
    assert source.count("if self._queue:") == 1
    names: dict[str, Any] = {}
    mutant = source.replace("if self._queue:", "if False:")
    exec(mutant, outlet.__dict__, names)
    monkeypatch.setattr(DirectConnection, "_send", names["_send"])
    assert await received(monkeypatch) != EXPECTED


async def test_what_a_closing_session_has_left_and_the_close_come_after_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    async with connected(monkeypatch) as (plain, connection):
        session = connection.session
        session.put(Frame((LARGE,)))
        await until(lambda: connection._waits)
        read_all(plain)
        session.put(Frame((b"second",)))
        session.close(4001, "end")
        got = b""
        while not got.endswith(b"\x88\x05\x0f\xa1end"):
            got += await loop.sock_recv(plain, 65_536)
        assert got.endswith(b"x" + text_frames((b"second",)) + b"\x88\x05\x0f\xa1end")


async def test_of_many_pings_the_latest_is_answered_while_the_peer_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    async with connected(monkeypatch) as (plain, connection):
        connection.write(run_of(LARGE))
        assert isinstance(connection, DirectConnection)
        for number in range(1000):
            connection._received(PING + b"%d" % (number % 10))
        assert len(connection._queue) == 1
        got = b""
        while len(got) < len(LARGE) + 10 + 3:
            got += await loop.sock_recv(plain, 65_536)
        assert got[10 + len(LARGE) :] == b"\x8a\x019"


async def test_a_plain_connection_owns_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (plain, connection):
        assert isinstance(connection, DirectConnection)
        assert connection._socket is not None
        option = connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert option
        assert plain.fileno() != -1


async def test_a_socket_of_its_own_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(monkeypatch) as (plain, connection):
        assert isinstance(connection, DirectConnection)
        inner = connection._socket
        assert inner is not None
        plain.close()
        await until(lambda: connection._socket is None)
        assert inner.fileno() == -1
        assert connection.write(run_of(b"swallowed"))
        connection.close(4001, "")
        assert not connection.session.open


def test_a_stream_that_is_not_as_expected_keeps_its_socket() -> None:
    class Unknown(IOStream):
        pass

    async def look() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            stream = IOStream(ours)
            del stream._read_buffer
            assert taken(stream) is None
            assert taken(Unknown(theirs)) is None
            assert taken(object()) is None  # type: ignore[arg-type]

    asyncio.run(look())


async def test_a_stream_that_has_more_to_write_keeps_its_socket() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = IOStream(ours)
        writing = stream.write(bytes(10_000_000))
        assert stream.writing()
        assert taken(stream) is None
        stream.close()
        assert writing.exception()


async def test_bytes_that_came_with_the_handshake_are_not_lost() -> None:
    registry = ServiceRegistry([Echo("echo")])
    text = b'{"service":"echo","message":1}'
    async with mounted(registry) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE + bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(2 + len(text)) == text_frames((text,))
        writer.close()


def test_sessions_with_the_same_run_share_its_bytes() -> None:
    run = run_of(b"one", b"two")
    assert run.rendered(text_frames) == b"\x81\x03one\x81\x03two"
    assert run.rendered(text_frames) is run.rendered(text_frames)
    assert [frame.texts for frame in run] == [(b"one",), (b"two",)]
    assert run.size == sum(frame.size for frame in run)
    assert len(run) == 2
    assert run[1] is run.last


def test_tls_is_left_to_tornado() -> None:
    assert issubclass(SSLIOStream, IOStream)
    assert ssl.OPENSSL_VERSION

    async def look() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            wrapped = context.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
            stream = SSLIOStream(wrapped)
            assert taken(stream) is None
            stream.close()

    asyncio.run(look())
