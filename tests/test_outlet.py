"""The order of what leaves: directly, by way of the stream, and both at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from tornado.iostream import IOStream

from syncserver.handlers import outlet
from syncserver.handlers.outlet import Outlet, text_frames
from syncserver.handlers.websocket import WebSocketHandler
from syncserver.protocols.base import Frame, Run
from syncserver.registry import ServiceRegistry
from tests.support.daemon import until
from tests.test_websocket import Echo, mounted

LARGE = b"x" * 400_000
HEAD = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
EXPECTED = (
    text_frames((LARGE,))
    + text_frames((b"second",))
    + b"\x89\x01p"
    + text_frames((b"third", b"fourth"))
    + b"\x88\x05\x0f\xa1end"
)


class WithoutLooking(Outlet):
    """The mutant: sends directly whatever stands in the stream."""

    __slots__ = ()

    def _has_more_to_write(self, stream: IOStream) -> bool:
        return False


class ByTheStream(Outlet):
    """Has every write made by the stream, as under TLS."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._direct = False


class ByMessage(Outlet):
    """Knows nothing of what is inside Tornado."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._stream = None


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


async def received(kind: Callable[..., Outlet]) -> bytes:
    """Fill the kernel's buffers, make room behind the stream's back, go on, and read it all."""
    opened: list[WebSocketHandler] = []

    class Noted(WebSocketHandler):
        def open(self, *args: str, **kwargs: str) -> None:
            super().open(*args, **kwargs)
            opened.append(self)

    loop = asyncio.get_running_loop()
    registry = ServiceRegistry([Echo("echo")])
    async with mounted(registry, Noted, ping_pong_interval=None) as port:
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.setblocking(False)
            await loop.sock_connect(plain, ("127.0.0.1", port))
            await loop.sock_sendall(plain, HEAD)
            await until(lambda: opened)
            await loop.sock_recv(plain, 4096)
            [handler] = opened
            left: list[bool] = []
            sending = kind(handler, lambda: left.append(True), 16_384)
            assert not sending.write(run_of(LARGE))
            got = [read_all(plain)]  # the kernel has room now, and the stream does not know
            assert 0 < len(got[0]) < len(LARGE)
            sending.write(run_of(b"second"))
            handler.ping(b"p")
            sending.write(run_of(b"third", b"fourth"))
            sending.close(4001, "end")
            while len(b"".join(got)) < len(EXPECTED):
                got.append(await loop.sock_recv(plain, 65_536))
            assert left
            return b"".join(got)


@pytest.mark.parametrize("kind", [Outlet, ByTheStream, ByMessage])
async def test_the_order_is_kept_when_the_kernel_makes_room_again(
    kind: Callable[..., Outlet],
) -> None:
    assert await received(kind) == EXPECTED


async def test_an_outlet_that_does_not_look_at_the_stream_is_found_out() -> None:
    assert await received(WithoutLooking) != EXPECTED


async def test_a_plain_connection_is_written_to_directly() -> None:
    opened: list[Outlet] = []

    class Noted(Outlet):
        __slots__ = ()

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("syncserver.handlers.websocket.Outlet", Noted)
        async with mounted(ServiceRegistry([Echo("echo")])) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD)
            await until(lambda: opened)
            assert opened[0]._direct
            assert opened[0]._stream is not None
            writer.close()


@pytest.mark.parametrize("change", ["no stream", "another stream", "a compressor"])
def test_a_connection_that_is_not_as_expected_is_left_to_tornado(change: str) -> None:
    class Connection:
        stream: Any = object() if change == "another stream" else None
        _compressor = object() if change == "a compressor" else None

    class Handler:
        ws_connection = Connection()

    if change == "a compressor":
        Connection.stream = IOStream.__new__(IOStream)
    assert outlet._stream_of(Handler()) is None  # type: ignore[arg-type]


def test_sessions_with_the_same_run_share_its_bytes() -> None:
    run = run_of(b"one", b"two")
    assert run.rendered(text_frames) == b"\x81\x03one\x81\x03two"
    assert run.rendered(text_frames) is run.rendered(text_frames)
    assert [frame.texts for frame in run] == [(b"one",), (b"two",)]
    assert run.size == sum(frame.size for frame in run)
    assert len(run) == 2
    assert run[1] is run.last
