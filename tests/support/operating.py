"""An operator's machine: the wheels in an environment of their own, programs that publish, pages.

``built`` and ``installed`` make the environment; nothing in it comes from the source tree. What the
wheels depend on is that of the tests' environment, so that no index is asked
(``tools/check_wheels.py`` installs that too).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from syncserver_client import Backend, BackendError
from tornado.httpclient import HTTPError, HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

from tests.support import npm
from tests.support.daemon import ROOT
from tests.support.leaks import NOTED
from tools.check_wheels import copy_of_the_checkout

SECONDS = 100.0
RESUME = ROOT / "tests" / "clients" / "resume.mjs"
GONE = (OSError, EOFError, HTTPError, WebSocketClosedError)


def built(folder: Path) -> Path:
    """Make both wheels of a copy of the checkout; return the directory that has them."""
    checkout = copy_of_the_checkout(folder)
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
    building = [
        subprocess.Popen([*pip, *options, str(project)], stderr=subprocess.PIPE, text=True)
        for project in (checkout, checkout / "clients" / "python")
    ]
    for child in building:
        _, said = child.communicate()
        assert child.returncode == 0, said
    return wheels


def environment(folder: Path, environment: Path) -> dict[str, str]:
    """Return what a shell of the operator has; its ``python3`` is the one of the tests."""
    return {
        "HOME": str(folder),
        "PATH": f"{environment / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def lend_dependencies(environment: Path) -> None:
    """Let an environment find, after its own packages, those of the tests."""
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has now, and that the kernel gives to nobody who asks for any."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


class Program:
    """A program of the web app: publishes one row after the other until it is told to end.

    Each is published until it is taken, always with the same idempotency key. ``url`` and ``key``
    may be changed at any time. ``refused`` counts the tries that failed, by their error.
    """

    def __init__(self, name: str, urls: Sequence[str], key: str) -> None:
        NOTED.note(key)
        self.name = name
        self.urls = list(urls)
        self.key = key
        self.taken = 0
        self.refused: Counter[str] = Counter()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Tell it to end when what it publishes now is taken."""
        self._ending.set()

    async def ended(self) -> None:
        await asyncio.to_thread(self._thread.join, SECONDS)
        assert not self._thread.is_alive(), f"{self.name} is not rid of row {self.taken + 1}"

    def _run(self) -> None:
        while not self._ending.wait(0.002):  # the pace
            while not self._is_taken(self.taken + 1):
                self._ending.wait(0.02)
            self.taken += 1

    def _is_taken(self, number: int) -> bool:
        name = f"{self.name}-{number}"
        row = {"id": name, "by": self.name, "n": number}
        with Backend(self.urls[0], self.key, retries=0, timeout=SECONDS) as backend:
            try:
                backend.publish(
                    [{"type": "insert", "model": "Task", "data": row}], idempotency_key=name
                )
            except BackendError as error:
                self.refused[type(error).__name__] += 1
                self.urls.append(self.urls.pop(0))
                return False
        return True


@contextmanager
def publishing(programs: Sequence[Program]) -> Iterator[None]:
    """Let programs publish; at the end all are told to end."""
    for program in programs:
        program.start()
    try:
        yield
    finally:
        for program in programs:
            program.end()


class Page:
    """A page that follows all tasks as the client library does.

    It applies what it gathered when a position comes, and goes on there after a lost connection, at
    the next of its doors. ``rows`` is what was applied, in order; ``ends`` has the close codes,
    ``refused`` what a door answered in place of a connection.

    :param trust: whose certificates it believes, where doors begin with ``wss``.
    """

    def __init__(
        self, doors: Sequence[str], token: str, trust: ssl.SSLContext | None = None
    ) -> None:
        NOTED.note(token)
        self.rows: list[tuple[str, int]] = []
        self.ends: Counter[int | None] = Counter()
        self.refused: Counter[str] = Counter()
        self._trust = trust
        self.live = False
        self._doors = list(doors)
        self._token = token
        self._position: str | None = None
        self._gathered: list[tuple[str, int]] = []

    async def run(self) -> None:
        """Be connected until it is cancelled."""
        while True:
            try:
                door = HTTPRequest(self._doors[0], connect_timeout=SECONDS, ssl_options=self._trust)
                connection = await websocket_connect(door)
            except GONE as error:
                self.refused[str(error)] += 1
                self._doors.append(self._doors.pop(0))
                await asyncio.sleep(0.02)
                continue
            try:
                await connection.write_message(self._acquire())
                while (text := await connection.read_message()) is not None:
                    self._hear(json.loads(text)["message"])
            except GONE:
                pass  # it is tried again
            finally:
                self.live, self._gathered = False, []
                protocol = connection.protocol
                connection.close()
                if protocol is not None:
                    protocol.stream.close()  # nobody waits for the answer
            self.ends[connection.close_code] += 1
            self._doors.append(self._doors.pop(0))

    def _acquire(self) -> str:
        params = {"token": self._token, "position": self._position}
        message = {"command": "acquireSubscription", "params": params, "callId": 1}
        return json.dumps({"service": "datasync", "message": message})

    def _hear(self, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "delta":
                row = message["delta"]["data"]
                self._gathered.append((row["by"], row["n"]))
            case "response":
                self.live = True
                self._apply(message["data"]["position"])
            case "position":
                self._apply(message["position"])
            case "stale" | "fresh":
                pass
            case _:
                raise AssertionError(message)

    def _apply(self, position: str) -> None:
        self.rows += self._gathered
        self._gathered = []
        self._position = position


class Library:
    """A page with the browser library over SockJS, in Node.js; it is followed as a ``Page`` is.

    :param authority: the file of whose certificates it believes.
    """

    def __init__(self, url: str, transport: str, token: str, authority: Path) -> None:
        NOTED.note(token)
        self.rows: list[tuple[str, int]] = []
        self.ends: Counter[int | None] = Counter()
        self.refused: Counter[str] = Counter()
        self.live = False
        self._command = ["node", str(RESUME), str(npm.modules()), url, transport, token]
        self._environ = {**os.environ, "NODE_EXTRA_CA_CERTS": str(authority)}

    async def run(self) -> None:
        """Be connected until it is cancelled."""
        child = await asyncio.create_subprocess_exec(
            *self._command, env=self._environ, stdout=subprocess.PIPE, limit=1 << 20
        )
        assert child.stdout is not None
        try:
            while line := await child.stdout.readline():
                self._hear(json.loads(line))
            raise AssertionError("Node.js has ended")
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()

    def _hear(self, told: Any) -> None:
        match told:
            case "live":
                self.live = True
            case {"ids": ids}:
                rows = [name.rpartition("-") for name in ids]
                self.rows = [(by, int(n)) for by, _, n in rows]
            case {"code": code}:
                self.ends[code] += 1
            case _:
                raise AssertionError(told)


def check_nothing_is_missing(pages: Sequence[Page | Library], programs: Sequence[Program]) -> None:
    """Expect each page to have every row that was taken, once, in the order of its program."""
    for page in pages:
        for program in programs:
            rows = [n for by, n in page.rows if by == program.name]
            assert rows == list(range(1, program.taken + 1))
