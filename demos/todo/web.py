"""The web app: pages, tasks, and tokens for live views of them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from syncserver_client import Backend, BackendError
from tornado.web import Application, HTTPError, RequestHandler, StaticFileHandler

from demos.todo.database import VIEWS, Database, NoSuchTask, Row

T = TypeVar("T")

HERE = Path(__file__).parent
MAX_TITLE = 200
THREADS = 4
FILES = ("page.js", "page.css")

ITEMS: dict[str, dict[str, Any]] = {
    "all": {"dealer": "AllTasks", "query": None, "tag": "all"},
    "open": {"dealer": "FilteredTasks", "query": ["==", "done", False], "tag": "open"},
}
"""What a token for each view allows to see; the tag tells the page whose delta it is."""


class OwnBackend(threading.local):
    """A Backend for each thread that asks: a requests session is not shared by threads."""

    def __init__(self, url: str, key: str) -> None:
        # Each thread runs this at its first look. A page asks again by itself: no retries.
        self.backend = Backend(url, key, retries=0, timeout=3)


class Todo:
    """What the handlers share.

    :param frontend: where pages connect, ``ws://.../ws``.
    :param wake: called after each commit.
    """

    def __init__(
        self, database: Database, own: OwnBackend, frontend: str, wake: Callable[[], None]
    ) -> None:
        self.database = database
        self.frontend = frontend
        self._own = own
        self._wake = wake
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="todo")

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do blocking work in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    async def write(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do a change, in a thread, and have it published."""
        answer = await self.run(work, *arguments)
        self._wake()
        return answer

    def subscribe(self, views: Sequence[str]) -> tuple[str | None, dict[str, list[Row]]]:
        """Return a token and the rows it keeps live; without a daemon, rows and no token.

        The token comes first, always: it stands for all changes from then on, so that one
        made while the rows are read is not missed. Blocks.
        """
        try:
            token = self._own.backend.authorize([ITEMS[view] for view in views])
        except BackendError:
            token = None
        return token, self.database.rows(views)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Handler(RequestHandler):
    """What all have in common: JSON in, JSON out, and errors as ``{"error": TEXT}``."""

    def initialize(self, todo: Todo) -> None:
        self.todo = todo

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    def body(self, allowed: set[str]) -> Row:
        """Return the JSON object of the request, its fields checked, or answer 400 or 415.

        That it must be called JSON keeps forms of other sites out.
        """
        if self.request.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            raise HTTPError(415, reason="send Content-Type: application/json")
        try:
            fields = json.loads(self.request.body)
        except (ValueError, RecursionError):
            raise HTTPError(400, reason="the body is not JSON") from None
        if not isinstance(fields, dict) or not fields or fields.keys() - allowed:
            raise HTTPError(400, reason=f"send an object with {' or '.join(sorted(allowed))}")
        return {name: CHECKS[name](value) for name, value in fields.items()}

    def write_error(self, status_code: int, **_: Any) -> None:
        self.finish({"error": self._reason})


def _title(value: Any) -> str:
    title = " ".join(value.split()) if isinstance(value, str) else ""
    if not 0 < len(title) <= MAX_TITLE:
        raise HTTPError(400, reason=f"title must be a text of 1 to {MAX_TITLE} characters")
    try:
        title.encode()
    except UnicodeEncodeError:
        raise HTTPError(400, reason="title holds half a character") from None
    return title


def _done(value: Any) -> bool:
    if not isinstance(value, bool):
        raise HTTPError(400, reason="done must be true or false")
    return value


CHECKS: dict[str, Callable[[Any], Any]] = {"title": _title, "done": _done}


class PageHandler(Handler):
    """``GET /``: the page, which may load scripts from here and from the daemon, no others."""

    def get(self) -> None:
        frontend = self.todo.frontend
        parts = urlsplit(frontend)
        server = f"{parts.scheme.replace('ws', 'http')}://{parts.netloc}"
        policy = (
            f"default-src 'none'; script-src 'self' {server}; style-src 'self'; img-src data:;"
            f" connect-src 'self' {frontend}; base-uri 'none'; form-action 'self';"
            " frame-ancestors 'none'"
        )
        self.set_header("Content-Security-Policy", policy)
        self.render("page.html", frontend=frontend, library=f"{server}/syncserver.js")


class FileHandler(StaticFileHandler):
    """The script and the style of the page; a browser asks each time whether they changed."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-cache")


class TasksHandler(Handler):
    """``GET /tasks?view=all&view=open`` and ``POST /tasks``."""

    async def get(self) -> None:
        """Answer ``{VIEW: ROWS}``; with ``X-Snorky: Subscribe``, a token in a header too."""
        views = list(dict.fromkeys(self.get_query_arguments("view"))) or ["all"]
        if not set(views) <= VIEWS.keys():
            raise HTTPError(400, reason=f"view is one of {', '.join(VIEWS)}")
        if self.request.headers.get("X-Snorky") == "Subscribe":
            token, rows = await self.todo.run(self.todo.subscribe, views)
            if token is not None:
                self.set_header("X-Subscription-Token", token)
        else:
            rows = await self.todo.run(self.todo.database.rows, views)
        self.finish(rows)

    async def post(self) -> None:
        title = self.body({"title"})["title"]
        self.set_status(201)
        self.finish(await self.todo.write(self.todo.database.add, title))


class TaskHandler(Handler):
    """``PATCH /tasks/ID`` and ``DELETE /tasks/ID``."""

    async def patch(self, key: str) -> None:
        changes = self.body({"title", "done"})
        self.finish(await self._change(self.todo.database.change, int(key), changes))

    async def delete(self, key: str) -> None:
        await self._change(self.todo.database.delete, int(key))
        self.set_status(204)

    async def _change(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await self.todo.write(work, *arguments)
        except NoSuchTask as error:
            raise HTTPError(404, reason=str(error)) from None


def application(todo: Todo) -> Application:
    """Return the routes."""
    shared = {"todo": todo}
    return Application(
        [
            ("/", PageHandler, shared),
            ("/tasks", TasksHandler, shared),
            ("/tasks/([0-9]{1,15})", TaskHandler, shared),
            (f"/({'|'.join(FILES)})", FileHandler, {"path": HERE}),
        ],
        template_path=HERE,
        log_function=lambda _handler: None,
    )
