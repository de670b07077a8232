"""Start the daemon and the web app, say where the page is, and end both cleanly."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

try:
    from syncserver_client import Backend
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets

    from demos.todo.daemon import ADDRESS, Daemon, DaemonFailed, free_port
    from demos.todo.database import Database
    from demos.todo.publisher import Publisher
    from demos.todo.web import OwnBackend, Todo, application
except ModuleNotFoundError as missing:
    sys.exit(
        f"{missing.name} is not installed here. In the checkout, 'make run' sets up all that is"
        " needed and starts this demo."
    )

APP_PORT, FRONTEND_PORT, BACKEND_PORT = 8000, 5800, 5801
MAX_BODY_BYTES = 16 * 1024
FLUSH_SECONDS = 5.0
RESTART_SECONDS = 0.5
EXAMPLES = ("Open a second window beside this one", "Tick this task", "Cut the connection")


class Refused(Exception):
    """It cannot start; the message says what to do."""


def say(name: str, text: object) -> None:
    """Print one line that people and programs can read."""
    print(name, text, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demos.todo",
        description="A to-do list on SQLite whose pages stay in step through syncserver.",
    )
    parser.add_argument(
        "--port",
        type=int,
        help=f"port of the web app (default {APP_PORT}, or a free one if that is taken); 0: any"
        " free port, for the daemon too",
    )
    parser.add_argument(
        "--database",
        type=Path,
        metavar="FILE",
        help="SQLite file to use, made if missing; default: a new one that is deleted at the end",
    )
    running = parser.add_argument_group(
        "a daemon that runs already",
        "Give both, with its key in SYNCSERVER_API_KEY; else one is started.",
    )
    running.add_argument("--frontend", metavar="URL", help="as in ws://127.0.0.1:5800/ws")
    running.add_argument("--backend", metavar="URL", help="as in http://127.0.0.1:5801/backend")
    options = parser.parse_args(arguments)
    if (options.frontend is None) != (options.backend is None):
        parser.error("give --frontend and --backend together, or neither")
    if options.backend is not None and not os.environ.get("SYNCSERVER_API_KEY"):
        parser.error("set SYNCSERVER_API_KEY to a key of the daemon")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port is 0 to 65535")
    return options


def pick(name: str, wanted: int, *, any_port: bool) -> int:
    """Return a port to listen on: the usual one if it is free."""
    port = 0 if any_port else free_port(wanted)
    if port != wanted and not any_port:
        say("note", f"port {wanted} ({name}) is taken, perhaps by an earlier run; using another")
    return port


@asynccontextmanager
async def daemon_for(options: argparse.Namespace, directory: Path) -> AsyncIterator[Daemon | None]:
    """Give a daemon that runs until the end; None if there is one already."""
    if options.backend is not None:
        yield None
        return
    any_port = options.port == 0
    frontend = pick("daemon, frontend", FRONTEND_PORT, any_port=any_port)
    backend = pick("daemon, backend", BACKEND_PORT, any_port=any_port)
    daemon = Daemon(directory, frontend, backend)
    try:
        await daemon.start()
        say("daemon", daemon.pid)
        yield daemon
        await daemon.stop()
    finally:
        daemon.kill()


async def keep_running(daemon: Daemon) -> None:
    """Start the daemon again whenever it dies; DaemonFailed if it cannot start."""
    while True:
        code = await daemon.wait()
        say("note", f"the daemon ended (exit code {code}); starting it again")
        await asyncio.sleep(RESTART_SECONDS)
        await daemon.start()
        say("daemon", daemon.pid)


def listen(todo: Todo, port: int | None) -> tuple[HTTPServer, int]:
    """Open the web app's door; return it and its port."""
    server = HTTPServer(application(todo), max_body_size=MAX_BODY_BYTES)
    wanted = pick("web app", APP_PORT, any_port=False) if port is None else port
    try:
        sockets = bind_sockets(wanted, ADDRESS)
    except OSError as error:
        raise Refused(
            f"cannot listen on port {wanted}: {error.strerror}; give another: --port N, or"
            " --port 0 for any"
        ) from error
    server.add_sockets(sockets)
    return server, sockets[0].getsockname()[1]


@asynccontextmanager
async def app_for(
    options: argparse.Namespace, database: Database, frontend: str, backend: str, key: str
) -> AsyncIterator[int]:
    """Run web app and publisher; give the web app's port."""
    sender = Backend(backend, key, retries=0, timeout=FLUSH_SECONDS)
    publisher = Publisher(database, sender)
    todo = Todo(database, OwnBackend(backend, key), frontend, publisher.wake)
    server, port = listen(todo, options.port)
    publisher.start()
    try:
        yield port
    finally:
        server.stop()
        await server.close_all_connections()
        await asyncio.to_thread(publisher.stop, FLUSH_SECONDS)
        todo.close()
        sender.close()


async def serve(options: argparse.Namespace, directory: Path) -> None:
    """Run everything until a signal comes, then end it in order."""
    stop = asyncio.Event()
    on_signals(stop)
    path = options.database or directory / "todo.sqlite"
    try:
        database = Database(path)
    except sqlite3.Error as error:
        raise Refused(f"{path}: {error}; give another file: --database FILE") from error
    if options.database is None:
        for title in EXAMPLES:
            database.add(title)
    async with daemon_for(options, directory) as daemon:
        key = daemon.key if daemon else os.environ["SYNCSERVER_API_KEY"]
        frontend = daemon.frontend if daemon else options.frontend
        backend = daemon.backend if daemon else options.backend
        async with app_for(options, database, frontend, backend, key) as port:
            say("frontend", frontend)
            say("backend", backend)
            say("database", path)
            say("page", f"http://{ADDRESS}:{port}/")
            say("note", "open the page in two windows; Ctrl-C ends all")
            await until(stop, daemon)
            say("note", "ending")


def on_signals(stop: asyncio.Event) -> None:
    """Have the first signal end everything in order, and the second end it at once."""
    loop = asyncio.get_running_loop()
    whole = asyncio.current_task()
    assert whole is not None

    def signalled() -> None:
        if stop.is_set():
            whole.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)


async def until(stop: asyncio.Event, daemon: Daemon | None) -> None:
    """Wait for a signal and keep the daemon running meanwhile."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
    if daemon is not None:
        tasks.append(asyncio.create_task(keep_running(daemon)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = parse(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="syncserver-todo-") as directory:
            asyncio.run(serve(options, Path(directory)))
    except (Refused, DaemonFailed) as error:
        print(f"demos.todo: {error}", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
