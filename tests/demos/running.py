"""The demo as its users run it, a peer that listens to the daemon, and a gate between the two."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClientConnection, websocket_connect

from demos.todo.daemon import Daemon

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
ANSWER_SECONDS = 15.0


async def request(
    method: str, url: str, body: Any = None, headers: dict[str, str] | None = None
) -> HTTPResponse:
    """Send one HTTP request, with a JSON body if one is given, and return whatever comes."""
    content = {} if body is None else {"Content-Type": "application/json"}
    client = AsyncHTTPClient(force_instance=True)
    try:
        return await client.fetch(
            url,
            method=method,
            body=None if body is None else body if isinstance(body, bytes) else json.dumps(body),
            headers=content | (headers or {}),
            raise_error=False,
            allow_nonstandard_methods=True,
        )
    finally:
        client.close()


class App:
    """``python -m demos.todo`` as a process, and the lines that it has printed."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.lines: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    @property
    def page(self) -> str:
        """The address of the page."""
        return self.said("page")[-1]

    @property
    def daemon(self) -> int:
        """The process id of the daemon that was started last."""
        return int(self.said("daemon")[-1])

    def said(self, name: str) -> list[str]:
        """Return the texts of the lines of this name."""
        return [text for found, text in self.lines if found == name]

    async def until_said(self, name: str, times: int = 1) -> None:
        """Wait until a line of this name has come so often."""
        async with asyncio.timeout(START_SECONDS):
            while len(self.said(name)) < times:
                assert self.process.returncode is None, await self.errors()
                self._news.clear()
                await self._news.wait()

    async def errors(self) -> str:
        """Return what it wrote on standard error, when it has ended."""
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def tasks(self, method: str, path: str = "", body: Any = None, **headers: str) -> Any:
        """Call the web app at ``/tasks`` and return the JSON of its answer, a success."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await request(method, f"{self.page}tasks{path}", body, given)
        assert response.code in {200, 201, 204}, response.body
        return json.loads(response.body) if response.body else None

    async def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        await self.process.wait()

    async def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End it in order; return its exit code and what it wrote on standard error."""
        self.process.send_signal(number)
        errors = await self.errors()
        return await self.process.wait(), errors

    async def read(self) -> None:
        """Take the lines, until it ends."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            name, _, text = line.decode().strip().partition(" ")
            self.lines.append((name, text))
            self._news.set()
        await self.process.wait()
        self._news.set()


@asynccontextmanager
async def running(*arguments: object, **environment: str) -> AsyncIterator[App]:
    """Give a running demo, on free ports, and end it."""
    paths = [str(ROOT), str(ROOT / "clients" / "python"), os.environ.get("PYTHONPATH", "")]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "demos.todo", "--port", "0"),
        *map(str, arguments),
        stdout=PIPE,
        stderr=PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment,
    )
    app = App(process)
    reader = asyncio.create_task(app.read())
    try:
        await app.until_said("page")
        yield app
    finally:
        if process.returncode is None:
            process.terminate()
        await reader
        await app.errors()


def attached(frontend: str, backend: str, database: Path) -> tuple[object, ...]:
    """Return the arguments for an app at a daemon that runs already."""
    return ("--frontend", frontend, "--backend", backend, "--database", database)


@asynccontextmanager
async def running_daemon(directory: Path) -> AsyncIterator[Daemon]:
    """Give the demo's daemon alone, on free ports, and end it."""
    daemon = Daemon(directory, 0, 0)
    await daemon.start()
    try:
        yield daemon
    finally:
        assert await daemon.stop() == 0


class Peer:
    """What a browser is to the daemon; ``deltas`` is what it was sent."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self.deltas: list[dict[str, Any]] = []
        self.over: list[str] = []

    async def acquire(self, token: str) -> None:
        """Make a subscription live on this connection."""
        params = {"token": token, "position": None}
        message = {"command": "acquireSubscription", "params": params, "callId": 1}
        await self._connection.write_message(
            json.dumps({"service": "datasync", "message": message})
        )
        while (answer := await self._read())["type"] not in {"response", "error"}:
            pass
        assert answer["type"] == "response", answer

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until something is true."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while not condition():
                await self._read()

    async def _read(self) -> dict[str, Any]:
        text = await self._connection.read_message()
        assert text is not None, "the daemon closed the connection"
        message: dict[str, Any] = json.loads(text)["message"]
        if message["type"] == "delta":
            self.deltas.append(message["delta"])
        elif message["type"] == "refetch":
            self.over.append(message["reason"])
        return message


@asynccontextmanager
async def listening(frontend: str, token: str) -> AsyncIterator[Peer]:
    """Give a peer that has acquired a token."""
    connection = await websocket_connect(frontend)
    try:
        peer = Peer(connection)
        await peer.acquire(token)
        yield peer
    finally:
        connection.close()
        while await connection.read_message() is not None:
            pass


class Gate:
    """Stands before the daemon's backend door, lets calls in, and may hold answers back.

    :ivar before_answer: awaited with the name of the command, when the daemon has answered.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.before_answer: Callable[[str], Awaitable[None]] | None = None
        self.keys: list[str] = []
        self.url = ""


class _GateHandler(RequestHandler):
    def initialize(self, gate: Gate) -> None:
        self._gate = gate

    async def post(self) -> None:
        sent = self.request.headers
        names = ("X-Backend-Key", "Idempotency-Key")
        headers = {name: sent[name] for name in names if name in sent}
        command = json.loads(self.request.body)["message"]["command"]
        answer = await request("POST", self._gate.target, self.request.body, headers)
        if command == "publishDeltas":
            self._gate.keys.append(headers["Idempotency-Key"])
        if self._gate.before_answer is not None:
            await self._gate.before_answer(command)
        self.set_status(answer.code)
        self.set_header("Content-Type", "application/json")
        with suppress(StreamClosedError):  # the app was killed while it waited
            await self.finish(answer.body)


@asynccontextmanager
async def gate_to(target: str) -> AsyncIterator[Gate]:
    """Give an open gate."""
    gate = Gate(target)
    server = HTTPServer(Application([("/backend", _GateHandler, {"gate": gate})]))
    listener, port = bind_unused_port()
    server.add_socket(listener)
    gate.url = f"http://127.0.0.1:{port}/backend"
    try:
        yield gate
    finally:
        server.stop()
        await server.close_all_connections()


def dead_url() -> str:
    """Return an address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/backend"
