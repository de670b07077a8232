"""What handlers share: who may connect, and how other methods are refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from syncserver.admission.addresses import GUESS_SECONDS

_ANY_PORT = ":*"
_LOOK_SECONDS = 0.25


logger = logging.getLogger("syncserver.http")


class CalmHandler(RequestHandler):
    """What a client does wrong is no warning, whoever finds it."""

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answer what failed, unless it is the process that ends: of that nobody told the log yet.

        Its tasks are cancelled then: 503, or a response that breaks off if it has begun.
        """
        task = asyncio.current_task()
        if status_code != 500 or task is None or not task.cancelling():
            super().send_error(status_code, **kwargs)
            return
        logger.info("The end broke off a request from %s", self.request.remote_ip)
        if not self._headers_written:
            super().send_error(503)
            return
        connection: Any = self.request.connection
        connection.close()
        self.finish()

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log what a client did wrong in a line, and what went wrong here in full."""
        if isinstance(value, HTTPError):
            logger.info("Refused a request from %s: %s", self.request.remote_ip, value.status_code)
        else:
            logger.error("A request failed", exc_info=value)


class PlainHandler(CalmHandler):
    """What is there to be read: a refusal is a line of text."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say in a line what is wrong."""
        if status_code == 405:
            self.set_header("Allow", "GET")
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{self._reason}\n")


class NothingHandler(PlainHandler):
    """Where nothing is."""

    def prepare(self) -> None:
        """Say so, whatever the method."""
        raise HTTPError(404)


def given_key(headers: HTTPHeaders) -> bytes:
    """Return the API key of a request, as a bearer's or in a header of its own; empty: none."""
    scheme, _, bearer = headers.get("Authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else headers.get("X-Backend-Key", "")
    return given.encode("utf-8", "surrogateescape")


async def hold_guess(request: HTTPServerRequest) -> None:
    """Let whoever guesses keys wait for the answer, as long as the connection is there."""
    connection: Any = request.connection
    for _ in range(int(GUESS_SECONDS / _LOOK_SECONDS)):
        if connection.stream is None or connection.stream.closed():
            return
        await asyncio.sleep(_LOOK_SECONDS)


def origin_allowed(origin: str, allowed: Iterable[str]) -> bool:
    """Tell whether a page's origin is in a list of origins.

    Entries are ``scheme://host[:port]``, exact but for case; ``:*`` at the end is
    any port or none, ``*`` alone any origin.
    """
    origin = origin.lower()
    for entry in map(str.lower, allowed):
        if entry in ("*", origin):
            return True
        if entry.endswith(_ANY_PORT) and _without_port(origin) == entry.removesuffix(_ANY_PORT):
            return True
    return False


def may_ask(request: HTTPServerRequest, allowed: Iterable[str] | None) -> bool:
    """Tell whether whoever made a request may: no browser, or a page of an allowed origin.

    Without a list it is pages of the very host that was asked.
    """
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    if allowed is not None:
        return origin_allowed(origin, allowed)
    try:
        return urlsplit(origin.lower()).netloc == request.headers.get("Host", "").lower()
    except ValueError:
        return False


def log_origin(request: HTTPServerRequest, origin: str | None) -> None:
    """Log that a page of this origin, None if it named none, was refused."""
    shown = origin or "(none)"
    logger.info("Refused a page of the origin %.200a from %s", shown, request.remote_ip)


def _without_port(origin: str) -> str:
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return origin
    return origin.removesuffix(f":{port}") if port is not None else origin
