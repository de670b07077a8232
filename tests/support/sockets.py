"""WebSockets by hand: raw bytes to a route, and what came back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.web import Application

from syncserver.handlers.websocket import WebSocketHandler
from syncserver.registry import ServiceRegistry
from syncserver.services.base import Service
from syncserver.session import Client
from syncserver.timers import Wheel
from tests.support.daemon import until

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Echo(Service):
    def process_message_from(self, client: Client, msg: Any) -> None:
        self.send_message_to(client, msg)


class RawPeer:
    """A WebSocket client by hand, which answers nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, port: int, path: str = "/ws", buffer: int = 0, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[RawPeer]:
        """Connect; ``buffer`` is how many bytes the kernel may take for it."""
        plain = socket.socket()
        if buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(
            sock=plain, limit=1024, ssl=tls, server_hostname="localhost" if tls else None
        )
        writer.write(HANDSHAKE.replace(b"/ws", path.encode()))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def send(self, opcode: int, payload: bytes = b"") -> None:
        """Send one frame, masked with zeros."""
        self.send_bytes(0x80 | opcode, payload)

    def send_bytes(self, first: int, payload: bytes) -> None:
        """Send one frame with this first byte."""
        length = bytes([0x80 | len(payload)])
        if len(payload) > 125:
            length = struct.pack("!BH", 0x80 | 126, len(payload))
        self._writer.write(bytes([first]) + length + bytes(4) + payload)

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    def send_json(self, service: str, message: Any) -> None:
        self.send(1, json.dumps({"service": service, "message": message}).encode())

    def acquire(self, token: str, **position: None) -> None:
        """Send the call that acquires a subscription."""
        params = {"token": token, **position}
        self.send_json("datasync", {"command": "acquireSubscription", "params": params})

    async def frame(self) -> tuple[int, int, bytes]:
        """Return the next frame: its first byte, the length of its header, its payload."""
        async with asyncio.timeout(5):
            first, length = await self._reader.readexactly(2)
            size = 2
            if length == 126:
                [length] = struct.unpack("!H", await self._reader.readexactly(2))
                size = 4
            elif length == 127:
                [length] = struct.unpack("!Q", await self._reader.readexactly(8))
                size = 10
            return first, size, await self._reader.readexactly(length)

    async def ended(self) -> bool:
        """Wait for the end of the connection; False if something came instead."""
        async with asyncio.timeout(5):
            return await self._reader.read(1) == b""

    async def close_code(self) -> int:
        """Read on to the close frame and return its code."""
        while True:
            first, _, payload = await self.frame()
            if first == 0x88:
                code: int = struct.unpack("!H", payload[:2])[0]
                return code

    def vanish(self) -> None:
        """Be gone without a word."""
        self._writer.transport.abort()


@asynccontextmanager
async def mounted(
    registry: ServiceRegistry, *, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[int]:
    """Serve a registry in an application of our own; give the port."""
    wheel = options.setdefault("wheel", Wheel(tick_seconds=0.02))
    application = Application([WebSocketHandler.get_route(registry, "/ws", **options)])
    server = HTTPServer(application, ssl_options=tls)
    server.listen(0, "127.0.0.1")
    [listening] = server._sockets.values()
    try:
        yield listening.getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()
        await until(lambda: not registry.sockets)
        wheel.close()
