"""The proxy of the fault tests fails in the ways that it says, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.proxy import DOWN, UP, Proxy, proxied

SECONDS = 5.0
SOON = 0.05

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that sends back what it is sent; ``heard`` is all of it."""

    def __init__(self) -> None:
        self.heard = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                self.heard += data
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def echoing(folder: Path) -> AsyncIterator[tuple[Echo, Proxy]]:
    echo = Echo()
    server = await asyncio.start_unix_server(echo.serve, str(folder / "s"))
    try:
        async with proxied(folder / "s") as proxy:
            yield echo, proxy
    finally:
        server.close()


async def connect(proxy: Proxy) -> Streams:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def said(streams: Streams, text: bytes) -> bytes:
    """Send a text and return what comes back in time."""
    reader, writer = streams
    writer.write(text)
    async with asyncio.timeout(SECONDS):
        return await reader.readexactly(len(text))


async def silent(streams: Streams, text: bytes) -> bool:
    """Send a text and tell whether nothing comes back soon."""
    reader, writer = streams
    writer.write(text)
    try:
        async with asyncio.timeout(SOON):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_bytes_go_through_and_late_ones_late(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (_, proxy):
        streams = await connect(proxy)
        assert await said(streams, b"one") == b"one"
        proxy.delay(2 * SOON)
        assert await silent(streams, b"two")
        async with asyncio.timeout(SECONDS):
            assert await streams[0].readexactly(3) == b"two"
        assert proxy.connections == 1
        streams[1].close()


async def test_a_cut_is_a_reset_and_new_connections_are_fine(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (_, proxy):
        streams = await connect(proxy)
        assert await said(streams, b"one") == b"one"
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            await said(streams, b"two")
        streams[1].close()
        again = await connect(proxy)
        assert await said(again, b"two") == b"two"
        again[1].close()


async def test_half_open_takes_everything_and_gives_nothing_until_it_is_mended(
    tmp_path: Path,
) -> None:
    async with echoing(tmp_path) as (echo, proxy):
        old = await connect(proxy)
        assert await said(old, b"one") == b"one"
        proxy.half_open()
        new = await connect(proxy)
        assert await silent(old, b"two")
        assert await silent(new, b"three")
        assert echo.heard == b"one"
        proxy.normal()
        for streams in (old, new):  # they have lost bytes: going on would be a lie
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await said(streams, b"four")
            streams[1].close()
        healed = await connect(proxy)
        assert await said(healed, b"five") == b"five"
        healed[1].close()


async def test_one_direction_may_fail_alone(tmp_path: Path) -> None:
    async with echoing(tmp_path) as (echo, proxy):
        streams = await connect(proxy)
        assert await said(streams, b"one") == b"one"
        proxy.one_way(UP)
        assert await silent(streams, b"two")
        assert echo.heard == b"onetwo"
        proxy.one_way(DOWN)
        assert await silent(streams, b"three")
        assert echo.heard == b"onetwo"
        streams[1].close()
