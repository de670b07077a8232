"""A real daemon: in the test's own loop, or as a process of its own; and peers with real sockets.

``serving`` runs a ``Server`` on free ports of 127.0.0.1; ``Daemon`` is what it gives.
``process`` starts ``python -m syncserver serve``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httputil import HTTPHeaders
from tornado.websocket import WebSocketClientConnection, websocket_connect

from syncserver.apikeys import ApiKey
from syncserver.app import build, make_server
from syncserver.config import Backend, Config, Frontend, Limits, default_services
from syncserver.engines.base import Engine
from syncserver.registry import ServiceRegistry
from syncserver.server import Server
from syncserver.services.base import Service
from syncserver.siblings import Siblings
from tests.support.leaks import NOTED

KEY = "the-key-of-the-tests-is-long-enough"
SECONDS = 5.0
ROOT = Path(__file__).parents[2]

Message = dict[str, Any]


async def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Let the loop turn until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # a condition has no event
            await asyncio.sleep(0)


def settings(*, origins: Iterable[str] = (), services: Any = None, **limits: Any) -> Config:
    """Return a configuration on free ports with the key of the tests."""
    frontend = Frontend(port=0)
    if origins:
        frontend = Frontend(port=0, allowed_origins=tuple(origins))
    return Config(
        frontend=frontend,
        backend=Backend(port=0, api_keys=(ApiKey.of(KEY),)),
        limits=Limits(**limits),
        services=default_services() if services is None else services,
    )


class Peer:
    """A browser: one WebSocket, and what came over it.

    ``notices`` gathers the messages that were read on the way to an answer.
    """

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection
        self.notices: list[Message] = []
        self._ended = False
        self._numbers = itertools.count(1)

    async def read_text(self) -> str | bytes:
        """Return the next text; EOFError with code and reason at the end."""
        if not self._ended:
            async with asyncio.timeout(SECONDS):
                text = await self.connection.read_message()
            if text is not None:
                return text
        self._ended = True
        self.connection.close()
        raise EOFError(self.connection.close_code, self.connection.close_reason)

    async def read(self) -> Message:
        """Return the next envelope."""
        envelope: Message = json.loads(await self.read_text())
        return envelope

    def send_text(self, text: str | bytes) -> None:
        """Send a message; bytes go in a binary one."""
        self.connection.write_message(text, binary=isinstance(text, bytes))

    def send(self, service: str, message: Any) -> None:
        """Send an envelope."""
        self.send_text(json.dumps({"service": service, "message": message}))

    def begin_call(self, service: str, command: str, **params: Any) -> str:
        """Send a call and return its id."""
        NOTED.note(params.get("token"))
        call_id = f"call {next(self._numbers)}"
        self.send(service, {"command": command, "params": params, "callId": call_id})
        return call_id

    async def answer(self, call_id: Any) -> Message:
        """Return the answer to a call; what stands before it goes to ``notices``."""
        while True:
            message: Message = (await self.read())["message"]
            if isinstance(message, dict) and message.get("callId") == call_id:
                return message
            self.notices.append(message)

    async def call(self, service: str, command: str, **params: Any) -> Message:
        """Make a call and return its answer, a response or an error."""
        return await self.answer(self.begin_call(service, command, **params))

    async def rest(self) -> list[Message]:
        """Return what was sent up to now: everything before the answer to a marker."""
        marker = f"marker {next(self._numbers)}"
        self.send("no service of this name", {"callId": marker})
        await self.answer(marker)
        return self.take()

    def take(self) -> list[Message]:
        """Return and forget the notices."""
        taken, self.notices = self.notices, []
        return taken

    async def notice(self, type_: str) -> Message:
        """Return the next message of a type; those before it go to ``notices``."""
        while True:
            message: Message = (await self.read())["message"]
            if message["type"] == type_:
                return message
            self.notices.append(message)

    async def end(self) -> tuple[int | None, str | None]:
        """Wait for the end and return close code and reason; the rest goes to ``notices``."""
        try:
            while True:
                self.notices.append((await self.read())["message"])
        except EOFError as end:
            return end.args

    async def close(self) -> None:
        """Close the socket and see it closed."""
        self.connection.close()
        with contextlib.suppress(EOFError):
            while True:
                await self.read_text()


class Daemon:
    """A server that runs, and calls to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.frontend, self.backend = server.frontend, server.backend
        self.peers: list[Peer] = []
        self._client = AsyncHTTPClient(force_instance=True)

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.server.frontend_port}/ws"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.server.backend_port}"

    async def connect(self, headers: Mapping[str, str] | None = None, *, path: str = "/ws") -> Peer:
        """Connect a browser."""
        url = self.ws_url.removesuffix("/ws") + path
        request = HTTPRequest(url, headers=HTTPHeaders(dict(headers or {})))
        peer = Peer(await websocket_connect(request))
        self.peers.append(peer)
        return peer

    async def request(
        self,
        path: str = "/backend",
        *,
        method: str = "POST",
        body: str | bytes | None = None,
        headers: Mapping[str, str] | HTTPHeaders | None = None,
    ) -> HTTPResponse:
        """Make one request to the backend door, with the key unless ``headers`` has one."""
        head = HTTPHeaders(headers or {})
        head.setdefault("X-Backend-Key", KEY)
        head.setdefault("Content-Type", "application/json")
        return await self._client.fetch(
            HTTPRequest(
                self.http_url + path,
                method=method,
                body=body,
                headers=head,
                allow_nonstandard_methods=True,
                request_timeout=SECONDS,
            ),
            raise_error=False,
        )

    async def post(self, service: str, command: str, **params: Any) -> Message:
        """Make a call as the web app and return the message of the answer."""
        response = await self.request(body=call_body(service, command, params))
        message: Message = json.loads(response.body)["message"]
        return message

    async def authorize(self, *items: Any, identity: Any = None) -> str:
        """Return a token for items; pairs are dealer and query, triples have a tag."""
        wire = [dict(zip(("dealer", "query", "tag"), item, strict=False)) for item in items]
        answer = await self.post(
            "datasync_backend", "authorizeSubscription", items=wire, identity=identity
        )
        assert answer["type"] == "response", answer
        token: str = answer["data"]
        return token

    async def publish(self, *deltas: Message) -> None:
        """Publish a batch that is fine."""
        answer = await self.post("datasync_backend", "publishDeltas", deltas=deltas)
        assert answer == {"type": "response", "data": None}

    async def close(self) -> None:
        """Close all peers and the server."""
        for peer in self.peers:
            await peer.close()
        self._client.close()
        with contextlib.suppress(TimeoutError):
            await until(lambda: not self.frontend.sockets)
        await self.server.stop()
        for door in self.server._doors.values():
            await door.close_all_connections()
        assert not self.frontend.sockets, "a socket stayed open"
        assert not self.frontend.sessions, "a session was forgotten"


def call_body(service: str, command: str, params: Mapping[str, Any]) -> str:
    """Return the body of a call."""
    return json.dumps({"service": service, "message": {"command": command, "params": params}})


@asynccontextmanager
async def serving(
    *services: Service,
    backend: Iterable[Service] = (),
    config: Config | None = None,
    engine: Engine | None = None,
    siblings: Siblings | None = None,
    **limits: Any,
) -> AsyncIterator[Daemon]:
    """Run a server with these services, or else with those of the configuration."""
    config = config or settings(**limits)
    trusted = tuple(backend)
    if services or trusted:
        registries = (
            ServiceRegistry(services, limits=config.limits),
            ServiceRegistry(trusted, limits=config.limits),
        )
    else:
        registries, engine = build(config)
    server = make_server(config, registries, engine, siblings=siblings)
    await server.start()
    daemon = Daemon(server)
    try:
        yield daemon
    finally:
        await daemon.close()


class DaemonProcess:
    """``python -m syncserver serve`` as a process; ``lines`` is what it has said."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.lines: list[str] = []
        self.log = ""

    def line(self, name: str) -> str:
        """Return what the start-up lines say of ``name``."""
        return next(line for line in self.lines if line.startswith(name + " "))[len(name) + 1 :]

    async def started(self) -> None:
        """Wait for the last of the start-up lines."""
        assert self.child.stdout is not None
        async with asyncio.timeout(15):
            while not (self.lines and self.lines[-1].startswith("engine ")):
                line = await self.child.stdout.readline()
                assert line, f"it ended: {await self.ended()}, {self.log}"
                self.lines.append(line.decode().rstrip("\n"))

    async def ended(self) -> int:
        """Wait for the end and return the exit code; ``log`` has what it wrote then."""
        async with asyncio.timeout(15):
            _, log = await self.child.communicate()
        self.log += log.decode()
        assert self.child.returncode is not None
        return self.child.returncode


@asynccontextmanager
async def process(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    program: Sequence[str] = (sys.executable, "-m", "syncserver"),
) -> AsyncIterator[DaemonProcess]:
    """Start ``syncserver ARGUMENTS``; at the end it is killed by its pid if it still runs."""
    path = os.pathsep.join([str(ROOT), str(cwd)])
    child = await asyncio.create_subprocess_exec(
        *program,
        *arguments,
        cwd=cwd,
        env={"PYTHONPATH": path, "PATH": os.environ.get("PATH", ""), **(environ or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = DaemonProcess(child)
    try:
        yield running
    finally:
        if child.returncode is None:
            child.kill()
            await running.ended()
        NOTED.hear("\n".join([*running.lines, running.log]))
