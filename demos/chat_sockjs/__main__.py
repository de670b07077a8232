"""Serve a chat for browsers whose network lets no WebSocket through, the daemon included."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, StaticFileHandler

from syncserver import app
from syncserver.apikeys import ApiKey
from syncserver.config import Backend, Config, Frontend, ServiceConfig
from syncserver.server import Server

HERE = Path(__file__).parent
PACKAGE = HERE / "node_modules" / "sockjs-client" / "dist"
ADDRESS = "127.0.0.1"
PORT = 8010


class Refused(Exception):
    """It cannot start; the message says what to do."""


class PageHandler(RequestHandler):
    """``GET /``: the page, which may load scripts from here and from the daemon, no others."""

    def initialize(self, daemon: str) -> None:
        self._daemon = daemon

    def get(self) -> None:
        policy = (
            f"default-src 'none'; script-src 'self' {self._daemon}; style-src 'self';"
            f" img-src data:; connect-src {self._daemon} {self._daemon.replace('http', 'ws', 1)};"
            " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.set_header("Content-Security-Policy", policy)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.render("page.html", daemon=self._daemon)


def fetch_client() -> None:
    """Get sockjs-client with npm, once."""
    if (PACKAGE / "sockjs.min.js").exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise Refused("it needs sockjs-client, which npm gets: install Node.js, https://nodejs.org")
    print("note getting sockjs-client with npm (once) ...", flush=True)
    if subprocess.run([npm, "ci"], cwd=HERE, check=False, stdout=subprocess.DEVNULL).returncode:
        raise Refused(f"npm could not get sockjs-client; try 'npm ci' in {HERE}")


def daemon() -> Server:
    """Return a daemon on free ports in which whoever connects may say something to all."""
    config = Config(
        frontend=Frontend(address=ADDRESS, port=0),
        backend=Backend(address=ADDRESS, port=0, api_keys=(ApiKey.of(secrets.token_urlsafe(32)),)),
        services={"pubsub": ServiceConfig(type="pubsub", client_publish=True)},
    )
    registries, engine = app.build(config)
    return app.make_server(config, registries, engine)


async def serve(port: int) -> None:
    """Run until a signal comes."""
    server = daemon()
    await server.start()
    address = f"http://{ADDRESS}:{server.frontend_port}"
    routes: list[Any] = [
        ("/", PageHandler, {"daemon": address}),
        (r"/(sockjs\.min\.js)", StaticFileHandler, {"path": PACKAGE}),
        (r"/(page\.(?:js|css))", StaticFileHandler, {"path": HERE}),
    ]
    door = HTTPServer(Application(routes, template_path=str(HERE), log_function=lambda _: None))
    try:
        sockets = bind_sockets(port, ADDRESS)
    except OSError as error:
        raise Refused(f"cannot listen on port {port}: {error.strerror}; give --port N") from error
    door.add_sockets(sockets)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"frontend {address}/ws/sockjs")
    print(f"page http://{ADDRESS}:{sockets[0].getsockname()[1]}/")
    print("note open the page in two windows; Ctrl-C ends it", flush=True)
    await stop.wait()
    door.stop()
    await door.close_all_connections()
    await server.drain()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m demos.chat_sockjs",
        description="A chat over SockJS, for browsers whose network lets no WebSocket through.",
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"of the page (default {PORT})")
    options = parser.parse_args(arguments)
    try:
        fetch_client()
        asyncio.run(serve(options.port))
    except Refused as error:
        print(f"demos.chat_sockjs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
