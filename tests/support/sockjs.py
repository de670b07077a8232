"""SockJS in the tests: places that speak it, and a client that reads a response piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.web import Application
from tornado.websocket import WebSocketClientConnection, websocket_connect

from syncserver.admission.gate import Seats
from syncserver.config import Frontend, Limits
from syncserver.doors import Door
from syncserver.handlers.sockjs import SockJSHandler
from syncserver.handlers.sockjs_table import Sessions
from syncserver.protocols.base import Event, Message, Notification, Protocol
from syncserver.registry import ServiceRegistry
from syncserver.services.base import Service
from syncserver.session import Client, Session
from syncserver.siblings import Siblings
from syncserver.timers import Wheel
from tests.support.daemon import Daemon, until

SECONDS = 10.0
OPEN = b"o\n"
PRELUDE = b"h" * 2048 + b"\n"
BUSY = b'c[2010,"Another connection still open"]\n'
AWAY = b'c[3000,"Go away!"]\n'
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Plain(Protocol):
    """Every text is a message for the service ``echo``."""

    def receive(self, text: str | bytes) -> list[Message]:
        return [Message("echo", text)]

    def encode(self, event: Event) -> tuple[bytes, ...]:
        assert isinstance(event, Notification)
        text: Any = event.message
        return (text if isinstance(text, bytes) else text.encode(),)


class Echo(Service):
    def process_message_from(self, client: Client, msg: Any) -> None:
        self.send_message_to(client, msg)


class Farewell(Service):
    def process_message_from(self, client: Client, msg: Any) -> None: ...

    def client_connected(self, client: Client) -> None:
        assert isinstance(client, Session)
        client.close(3000, "Go away!")


class Answer:
    """One response, whose body is read as it comes."""

    def __init__(self, status: int, version: str, headers: HTTPHeaders, line: Line) -> None:
        self.status = status
        self.version = version
        self.headers = headers
        self._line = line
        self._rest = b""
        self._left = int(headers.get("Content-Length", "-1"))
        self._chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"

    async def chunk(self) -> bytes:
        """Return the next piece; nothing at the end."""
        reader = self._line.reader
        async with asyncio.timeout(SECONDS):
            if self._chunked:
                size = int(await reader.readline(), 16)
                data = await reader.readexactly(size)
                await reader.readline()
                return data
            if self._left >= 0:
                data, self._left = await reader.readexactly(self._left), 0
                return data
            return await reader.read(65536)

    async def take(self, wanted: bytes) -> None:
        """Read as many bytes as ``wanted`` has, and see that they are the same."""
        while len(self._rest) < len(wanted):
            piece = await self.chunk()
            if not piece:
                break
            self._rest += piece
        found, self._rest = self._rest[: len(wanted)], self._rest[len(wanted) :]
        assert found == wanted

    async def body(self) -> bytes:
        """Return all up to the end."""
        while piece := await self.chunk():
            self._rest += piece
        found, self._rest = self._rest, b""
        return found

    async def ends(self) -> None:
        """See that nothing more comes."""
        assert await self.body() == b""

    def abort(self) -> None:
        """Break the connection."""
        self._line.writer.transport.abort()


class Line:
    """One connection for HTTP by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(
        self,
        method: str,
        path: str,
        body: str | bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        version: str = "1.1",
    ) -> Answer:
        """Send a request and return the head of its answer."""
        self.send(method, path, body, headers, version=version)
        return await self.head()

    def send(
        self,
        method: str,
        path: str,
        body: str | bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        version: str = "1.1",
    ) -> None:
        """Send a request."""
        body = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        given = {"Host": "localhost", **(headers or {})}
        if method == "POST":
            given["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/{version}", *(f"{n}: {v}" for n, v in given.items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def head(self) -> Answer:
        """Return the head of the next answer."""
        async with asyncio.timeout(SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, _, rest = head.partition("\r\n")
        version, status, *_ = first.split(" ")
        return Answer(int(status), version[5:], HTTPHeaders.parse(rest.strip()), self)


class Site:
    """A server with several places that speak SockJS; its requests have a connection each."""

    def __init__(self, port: int, registry: ServiceRegistry, sessions: Sessions) -> None:
        self.port = port
        self.registry = registry
        self.sessions = sessions
        self._lines: list[Line] = []
        self._sockets: list[WebSocketClientConnection] = []
        self._numbers = itertools.count(1)

    def session(self, place: str = "/echo") -> str:
        """Return the path of a new session."""
        return f"{place}/000/session-{next(self._numbers)}"

    async def line(self) -> Line:
        """Return a new connection."""
        line = Line(*await asyncio.open_connection("127.0.0.1", self.port))
        self._lines.append(line)
        return line

    async def request(
        self,
        method: str,
        path: str,
        body: str | bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Make a request and return the head of its answer."""
        return await (await self.line()).request(method, path, body, headers)

    async def get(self, path: str, **headers: str) -> Answer:
        """Make a GET."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("GET", path, headers=named)

    async def post(self, path: str, body: str | bytes = b"", **headers: str) -> Answer:
        """Make a POST."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("POST", path, body, named)

    async def poll(self, path: str, **headers: str) -> bytes:
        """Return what a poll brings."""
        answer = await self.post(f"{path}/xhr", **headers)
        assert answer.status == 200
        return await answer.body()

    async def say(self, path: str, *texts: str, **headers: str) -> None:
        """Send messages and see them taken."""
        answer = await self.post(f"{path}/xhr_send", json.dumps(texts), **headers)
        assert (answer.status, await answer.body() if answer._left > 0 else b"") == (204, b"")

    async def streaming(self, path: str) -> Answer:
        """Begin a streaming response and read its prelude."""
        answer = await self.post(f"{path}/xhr_streaming")
        assert answer.status == 200
        await answer.take(PRELUDE)
        return answer

    async def websocket(self, path: str) -> WebSocketClientConnection:
        """Open a WebSocket."""
        socket = await websocket_connect(f"ws://127.0.0.1:{self.port}{path}")
        self._sockets.append(socket)
        return socket

    async def close(self) -> None:
        """End all connections."""
        for socket in self._sockets:
            socket.close()
        for line in self._lines:
            line.writer.transport.abort()
            with contextlib.suppress(OSError):
                await line.writer.wait_closed()


async def read(socket: WebSocketClientConnection) -> str | bytes | None:
    """Return the next message of a WebSocket; None at its end."""
    async with asyncio.timeout(SECONDS):
        return await socket.read_message()


@asynccontextmanager
async def site(
    *,
    origins: Sequence[str] | None = ("*",),
    tick_seconds: float = 0.02,
    siblings: Siblings | None = None,
    **limits: Any,
) -> AsyncIterator[Site]:
    """Give a server: ``/echo``, the same as ``/plain`` and ``/cookie``, and ``/close``.

    With ``siblings`` it is one of several, and listens on its private socket too.
    """
    wheel = Wheel(tick_seconds)
    given = Limits(**({"max_response_bytes": 4096} | limits))
    echo, farewell = ServiceRegistry([Echo("echo")], limits=given), None
    farewell = ServiceRegistry([Farewell("echo")], limits=given)
    tables = {
        name: Sessions(registry, Plain, wheel)
        for name, registry in {"/echo": echo, "/close": farewell, "/plain": echo}.items()
    }
    tables["/cookie"] = Sessions(echo, Plain, wheel)
    options = {"/plain": {"websocket": False}, "/cookie": {"cookie_needed": True}}
    routes: list[Any] = []
    for name, sessions in tables.items():
        registry = farewell if name == "/close" else echo
        routes += SockJSHandler.get_routes(
            registry,
            name,
            protocol=Plain,
            allowed_origins=origins,
            wheel=wheel,
            sessions=sessions,
            client_url="https://cdn.example/sockjs.min.js",
            siblings=siblings,
            **options.get(name, {}),  # type: ignore[arg-type]
        )
    server = HTTPServer(Application(routes, log_function=lambda _: None))
    server.listen(0, "127.0.0.1")
    [listening] = server._sockets.values()
    private = None
    if siblings is not None:
        own = siblings.path(siblings.number)
        door = Frontend(unix_socket=own, trusted_proxies=("unix",))
        private = Door(door, routes, limits=given, idle_seconds=15, seats=Seats(1000))
        private.open()
    place = Site(listening.getsockname()[1], echo, tables["/echo"])
    try:
        yield place
    finally:
        server.stop()
        for sessions in tables.values():
            sessions.close()
        await place.close()
        await server.close_all_connections()
        if private is not None:
            private.stop()
            await private.close_all_connections()
        await until(lambda: not echo.sockets and not farewell.sockets)
        assert not echo.sessions
        assert not farewell.sessions
        wheel.close()


@asynccontextmanager
async def polling(daemon: Daemon) -> AsyncIterator[Site]:
    """Give a client of the daemon's own place for SockJS; its sessions are forgotten at the end."""
    [sessions] = daemon.server._sessions
    place = Site(daemon.server.frontend_port, daemon.frontend, sessions)
    try:
        yield place
    finally:
        await place.close()
        sessions.close()
