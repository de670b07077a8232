"""The real sockjs-client over each of its transports: from Node.js, and from Chromium.

What was found is printed at the end as a table.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, StaticFileHandler

from syncserver.admission.gate import Seats
from syncserver.config import Frontend, Limits
from syncserver.doors import Door
from syncserver.handlers.sockjs import SockJSHandler
from syncserver.handlers.sockjs_table import Sessions
from syncserver.registry import ServiceRegistry
from syncserver.services.base import Service
from syncserver.session import Client, Session
from syncserver.siblings import Siblings
from syncserver.timers import Wheel
from tests.demos.chromium import Browser, chromium, find
from tests.support import npm
from tests.support.daemon import until
from tests.support.sockjs import Echo, Plain

HERE = Path(__file__).parent
SECONDS = 30

IN_NODE = ["websocket", "xhr-streaming", "eventsource", "xhr-polling"]
IN_CHROMIUM = [
    "websocket",
    "xhr-streaming",
    "iframe-eventsource",
    "eventsource",
    "iframe-htmlfile",
    "htmlfile",
    "xhr-polling",
    "iframe-xhr-polling",
    "jsonp-polling",
]
OF_THE_SAME_ORIGIN = {"htmlfile"}  # the client offers it to no other page

FOUND: dict[tuple[str, str], str] = {}

PAGE = """<!doctype html><meta charset="utf-8"><title>SockJS</title>
<script src="/files/sockjs.min.js"></script><script src="/exercise.js"></script>"""


class Leaves(Service):
    """Says good-bye to whoever says anything."""

    def process_message_from(self, client: Client, msg: Any) -> None:
        assert isinstance(client, Session)
        client.close(4001, '{"retry_after": 12}')


class PageHandler(RequestHandler):
    def get(self) -> None:
        self.finish(PAGE)


class Node:
    """One of the servers on the port: an echo, a farewell, and the page that tries them."""

    def __init__(self, siblings: Siblings | None = None) -> None:
        self._limits = limits = Limits(max_response_bytes=20_000)  # so that streams end in between
        self._wheel = Wheel(0.05)
        self._siblings = siblings
        self._registries = {
            "/echo": ServiceRegistry([Echo("echo")], limits=limits),
            "/farewell": ServiceRegistry([Leaves("echo")], limits=limits),
        }
        self._tables: list[Sessions] = []
        self._server: HTTPServer | None = None
        self._private: Door | None = None

    def open(self, port: int = 0) -> int:
        """Listen; return the port, which others may share."""
        [listening] = bind_sockets(port, "127.0.0.1", reuse_port=True)
        port = listening.getsockname()[1]
        routes = self._routes(port)
        self._server = HTTPServer(Application(routes, log_function=lambda _: None))
        self._server.add_socket(listening)
        if self._siblings is not None:
            own = self._siblings.path(self._siblings.number)
            door = Frontend(unix_socket=own, trusted_proxies=("unix",))
            self._private = Door(
                door, routes, limits=self._limits, idle_seconds=15, seats=Seats(1000)
            )
            self._private.open()
        return port

    async def close(self) -> None:
        """Close what was opened."""
        for sessions in self._tables:
            sessions.close()
        for one in (self._server, self._private):
            if one is not None:
                one.stop()
                await one.close_all_connections()
        await until(lambda: not any(one.sockets for one in self._registries.values()))
        self._wheel.close()

    def _routes(self, port: int) -> list[Any]:
        dist = npm.modules() / "sockjs-client" / "dist"
        routes: list[Any] = [
            ("/page", PageHandler),
            ("/files/(.*)", StaticFileHandler, {"path": dist}),
            ("/(exercise.js)", StaticFileHandler, {"path": HERE}),
        ]
        for prefix, registry in self._registries.items():
            self._tables.append(Sessions(registry, Plain, self._wheel))
            routes += SockJSHandler.get_routes(
                registry,
                prefix,
                protocol=Plain,
                allowed_origins=["http://localhost:*", "http://127.0.0.1:*"],
                wheel=self._wheel,
                sessions=self._tables[-1],
                client_url=f"http://127.0.0.1:{port}/files/sockjs.min.js",
                siblings=self._siblings,
            )
        return routes


@asynccontextmanager
async def place(folder: Path | None = None, count: int = 1) -> AsyncIterator[int]:
    """Give a port with so many servers on it, which have their sockets in a folder."""
    nodes = [Node(None if folder is None else Siblings(folder, n, count)) for n in range(count)]
    try:
        port = 0
        for node in nodes:
            port = node.open(port)
        yield port
    finally:
        for node in nodes:
            await node.close()


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print at the end which transport worked where."""
    yield
    rows = [["SockJS transport", "Node.js", "Chromium"]]
    places = ("node", "chromium")
    rows += [[one, *(FOUND.get((where, one), "-") for where in places)] for one in IN_CHROMIUM]
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *("".join(f"{word:20}" for word in row).rstrip() for row in rows), sep="\n")


async def tried_in_node(port: int, transport: str) -> str:
    """Return what Node.js finds of a transport."""
    child = await asyncio.create_subprocess_exec(
        "node",
        str(HERE / "node.js"),
        str(npm.modules()),
        f"http://127.0.0.1:{port}",
        transport,
        stdout=subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(child.communicate(), SECONDS)
    return said.decode().strip()


@pytest.mark.seconds(90)
@pytest.mark.parametrize("transport", IN_NODE)
async def test_sockjs_client_in_node_works_over(transport: str) -> None:
    async with place() as port:
        FOUND["node", transport] = await tried_in_node(port, transport)
        assert FOUND["node", transport] == "ok"


@pytest.mark.seconds(90)
@pytest.mark.parametrize("transport", IN_NODE)
async def test_sockjs_client_works_on_several_processes_over(
    transport: str, tmp_path: Path
) -> None:
    async with place(tmp_path, 3) as port:
        assert await tried_in_node(port, transport) == "ok"


async def tried(browser: Browser, port: int, transport: str) -> str:
    """Return what a page of another origin finds of a transport."""
    host = "127.0.0.1" if transport in OF_THE_SAME_ORIGIN else "localhost"
    page = await browser.open(f"http://{host}:{port}/page")
    arguments = json.dumps([f"http://127.0.0.1:{port}", transport])[1:-1]
    told = f"exercise(SockJS, {arguments}).catch((error) => error.message)"
    async with asyncio.timeout(SECONDS):
        return str(await page.value(told))


@pytest.mark.seconds(150)
async def test_sockjs_client_in_chromium_works_over_each_transport() -> None:
    find()
    async with place() as port, chromium() as browser:
        for transport in IN_CHROMIUM:
            FOUND["chromium", transport] = await tried(browser, port, transport)
        wrong = {name: FOUND["chromium", name] for name in IN_CHROMIUM}
        assert wrong == dict.fromkeys(IN_CHROMIUM, "ok")
