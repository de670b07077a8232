"""What handlers share: who may connect, and how other methods are refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

_ANY_PORT = ":*"


class PlainHandler(RequestHandler):
    """What is there to be read: a refusal is a line of text."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say in a line what is wrong."""
        if status_code == 405:
            self.set_header("Allow", "GET")
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{self._reason}\n")


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


def _without_port(origin: str) -> str:
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return origin
    return origin.removesuffix(f":{port}") if port is not None else origin
