"""An ``EventSource`` on a real socket, which reads no faster than it is asked to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

SECONDS = 10


class Told(NamedTuple):
    """One event."""

    type: str
    data: Any
    id: str


class Source:
    """One response; ``last_id`` and ``retry`` are what a browser would have kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.last_id = ""
        self.retry = 0
        self._is_whole = False
        self._rest = b""

    async def begin(self) -> None:
        """Read the head."""
        async with asyncio.timeout(SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(head[0].split()[1])
        pairs = [line.partition(":") for line in head[1:] if line]
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}

    async def body(self) -> Any:
        """Return the JSON of a response that is no stream."""
        data = await self._reader.readexactly(int(self.headers["content-length"]))
        return json.loads(data)

    async def event(self) -> Told:
        """Return the next event that a page would see; EOFError at the end."""
        fields: dict[str, str] = {}
        while True:
            async with asyncio.timeout(SECONDS):
                line = await self._line()
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if line.startswith(":"):
                continue
            if name == "id":
                self.last_id = value
            elif name == "retry":
                self.retry = int(value)
            elif name:
                fields[name] = value
            elif "data" in fields:
                type_ = fields.get("event", "message")
                return Told(type_, json.loads(fields["data"]), self.last_id)
            else:
                fields.clear()

    async def comment(self) -> None:
        """Read on to the next comment; events before it are lost."""
        async with asyncio.timeout(SECONDS):
            while not (await self._line()).startswith(":"):
                pass

    async def until(self, type_: str) -> list[Told]:
        """Return the events up to the first of a type."""
        seen = [await self.event()]
        while seen[-1].type != type_:
            seen.append(await self.event())
        return seen

    async def end(self) -> list[Told]:
        """Return what comes before the end."""
        seen = []
        with contextlib.suppress(EOFError):
            while True:
                seen.append(await self.event())
        return seen

    async def _line(self) -> str:
        while b"\n" not in self._rest:
            self._rest += await self._more()
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def _more(self) -> bytes:
        if "content-length" in self.headers:
            if self._is_whole:
                raise EOFError
            self._is_whole = True
            return await self._reader.readexactly(int(self.headers["content-length"]))
        if self.headers.get("transfer-encoding") != "chunked":
            data = await self._reader.read(65536)
            if not data:
                raise EOFError
            return data
        size = int((await self._reader.readuntil(b"\r\n")).decode(), 16)
        data = await self._reader.readexactly(size + 2)
        if not size:
            raise EOFError
        return data[:-2]

    def vanish(self) -> None:
        """Be gone without a word."""
        self._writer.transport.abort()


@asynccontextmanager
async def source(
    port: int,
    stream: str,
    last_id: str = "",
    *,
    headers: Mapping[str, str] | None = None,
    version: str = "1.1",
    buffer: int = 0,
    path: str = "",
) -> AsyncIterator[Source]:
    """Open a stream; ``buffer`` is how many bytes the kernel may take for it.

    ``path`` is a Unix socket in place of the port.
    """
    plain = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    if buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, path or ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1024 if buffer else 65536)
    head = {"Host": "127.0.0.1", "Accept": "text/event-stream", **(headers or {})}
    if last_id:
        head["Last-Event-ID"] = last_id
    lines = [f"GET /events?stream={quote(stream)} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in head.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    found = Source(reader, writer)
    try:
        await found.begin()
        yield found
    finally:
        found.vanish()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
