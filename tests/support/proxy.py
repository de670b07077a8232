"""A network between two programs that can be told to fail.

``Proxy`` listens on a path or on a port of 127.0.0.1 and passes everything on to another
address, until it is told otherwise::

    async with proxied(str(valkey.socket), folder / "p") as proxy:
        proxy.delay(0.2)
        proxy.one_way(UP)
        proxy.normal()

*Up* is from those who connect to the server behind the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

UP = "up"
DOWN = "down"

Address = str | Path | int
"""A path of a Unix socket, or a port of 127.0.0.1 (0: any that is free)."""

_CHUNK_BYTES = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes bytes on, as far as its faults let it; ``connections`` counts those there were."""

    def __init__(self, server: Address) -> None:
        self.connections = 0
        self._server = server
        self._delay_seconds = 0.0
        self._swallowed: frozenset[str] = frozenset()
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        assert self._listener is not None
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def start(self, address: Address) -> None:
        """Listen."""
        if isinstance(address, int):
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", address)
        else:
            self._listener = await asyncio.start_unix_server(self._accept, str(address))

    async def close(self) -> None:
        """Cut everything and listen no longer."""
        assert self._listener is not None
        self._listener.close()
        for task in tuple(self._tasks):
            task.cancel()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lead_to(self, server: Address) -> None:
        """Pass on to another server from now on, as an address does after a failover."""
        self._server = server
        self.cut()

    def normal(self) -> None:
        """Pass everything on again; a connection that has lost bytes is cut."""
        self._delay_seconds = 0.0
        self._swallowed = frozenset()
        for pair in tuple(self._pairs):
            if pair.torn:
                pair.cut()

    def delay(self, seconds: float) -> None:
        """Pass everything on so much later."""
        self._delay_seconds = seconds

    def half_open(self) -> None:
        """Accept connections and bytes, and pass nothing on."""
        self._swallowed = frozenset((UP, DOWN))

    def one_way(self, direction: str) -> None:
        """Pass on only what goes in one direction."""
        self._swallowed = frozenset((UP, DOWN)) - {direction}

    def cut(self) -> int:
        """Reset all connections; return how many there were."""
        pairs = tuple(self._pairs)
        for pair in pairs:
            pair.cut()
        return len(pairs)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        pair = _Pair([writer])
        self._pairs.add(pair)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(pair, reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either side went away, or the proxy is closed
        finally:
            pair.cut()
            self._pairs.discard(pair)
            self._tasks.discard(task)

    async def _serve(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if UP in self._swallowed:
            pair.torn = True  # what it says is lost before there is anybody to hear it
            while await reader.read(_CHUNK_BYTES):
                pass
            return
        there, back = await self._connect()
        pair.writers.append(back)
        up = asyncio.ensure_future(self._pump(UP, pair, reader, back))
        down = asyncio.ensure_future(self._pump(DOWN, pair, there, writer))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in (up, down):
                pump.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._server, int):
            return await asyncio.open_connection("127.0.0.1", self._server)
        return await asyncio.open_unix_connection(str(self._server))

    async def _pump(
        self, direction: str, pair: _Pair, reader: Any, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            if direction in self._swallowed:
                pair.torn = True
                continue
            writer.write(data)
            await writer.drain()


class _Pair:
    """A connection and the one that carries it on; ``torn`` if bytes of it were swallowed."""

    def __init__(self, writers: list[asyncio.StreamWriter]) -> None:
        self.writers = writers
        self.torn = False

    def cut(self) -> None:
        for writer in self.writers:
            with contextlib.suppress(OSError):  # a socket that is closed by now
                connection = writer.get_extra_info("socket")
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


@asynccontextmanager
async def proxied(server: Address, address: Address = 0) -> AsyncIterator[Proxy]:
    """Run a proxy before a server."""
    proxy = Proxy(server)
    await proxy.start(address)
    try:
        yield proxy
    finally:
        await proxy.close()
