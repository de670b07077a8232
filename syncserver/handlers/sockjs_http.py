"""What the HTTP requests of SockJS have in common: where it is mounted, origins, headers.

Whoever names an origin, in ``Origin`` or ``Referer``, must be of an allowed one, and
only then gets headers that let a page read the answer. Transports that only
browsers have (JSONP, htmlfile) must name one: a page can hide where it is from.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tornado.web import stream_request_body

from syncserver.handlers.base import CalmHandler, log_origin, origin_allowed
from syncserver.handlers.sockjs_relay import Relay
from syncserver.handlers.sockjs_table import Sessions
from syncserver.registry import ServiceRegistry
from syncserver.siblings import Siblings

logger = logging.getLogger("syncserver.sockjs")

_COOKIE = "JSESSIONID"
_COOKIE_VALUE = re.compile(r"[\w.!~:-]{1,128}", re.ASCII)
_YEAR_SECONDS = 31_536_000
_LONGEST_ID = 128
_OUT_OF_REACH = "This session is out of reach."


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One place where SockJS is spoken; ``SockJSHandler.get_routes`` says what its options mean."""

    registry: ServiceRegistry
    sessions: Sessions
    allowed_origins: Sequence[str] | None
    websocket: bool
    cookie_needed: bool
    client_url: str
    siblings: Siblings | None

    def allows(self, origin: str, host: str) -> bool:
        """Tell whether a page of this origin may talk to us at ``host``."""
        if self.allowed_origins is None:
            return origin.partition("://")[2] == host.lower()
        return origin_allowed(origin, self.allowed_origins)


@stream_request_body
class SockJSRequest(CalmHandler):
    """One request. What may come in a body is bounded, and read here alone."""

    methods: ClassVar[tuple[str, ...]] = ("GET",)
    checked: ClassVar[bool] = True
    """Whether who asks must be of an allowed origin."""
    must_name_origin: ClassVar[bool] = False
    most_bytes: int = 0

    def initialize(self, mount: Mount) -> None:
        """Take the option of the route."""
        self.mount = mount
        self.body = bytearray()
        self.is_too_large = False
        self.origin = self._named_origin()
        if self.checked:
            self.set_header("Vary", "Origin")
            if self._is_allowed():
                self._allow_reading()

    def prepare(self) -> Awaitable[None] | None:
        """Refuse other methods, and pages of origins that are not allowed."""
        if self.request.method not in self.methods:
            self.clear_header("Content-Type")
            self.set_header("Allow", ", ".join(self.methods))
            self.set_status(405)
            self.finish()
        elif self.checked and not self._is_allowed():
            self.mount.registry.traffic.refused.add("origin")
            log_origin(self.request, self.origin)
            self.refuse(403, "This origin is not allowed.")
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep a piece of the body, as far as it may go."""
        self.is_too_large = self.is_too_large or len(self.body) + len(chunk) > self.most_bytes
        if not self.is_too_large:
            self.body += chunk
        return None

    def options(self, *args: str) -> None:
        """Answer a browser that asks before it sends."""
        self.set_header("Access-Control-Allow-Methods", ", ".join(self.methods))
        self.set_header("Access-Control-Max-Age", str(_YEAR_SECONDS))
        self.cache()
        self.set_status(204)
        self.finish()

    def refuse(self, status: int, text: str) -> None:
        """Answer with a status and a line of text."""
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.do_not_cache()
        if status in (429, 503):
            self.set_header("Retry-After", "1")
        self.finish(text + "\n")

    def refuse_broken(self, text: str) -> None:
        """Answer what cannot be read with 500, as SockJS has it, and log that it was the client."""
        logger.info("Refused a request from %s with 500: %s", self.request.remote_ip, text)
        self.refuse(500, text)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer what Tornado refuses."""
        self.refuse(status_code, self._reason)

    def cache(self) -> None:
        """Let the answer be kept for a year."""
        expires = datetime.now(UTC) + timedelta(seconds=_YEAR_SECONDS)
        self.set_header("Cache-Control", f"public, max-age={_YEAR_SECONDS}")
        self.set_header("Expires", expires)

    def do_not_cache(self) -> None:
        """Keep the answer out of every cache."""
        self.set_header("Cache-Control", "no-store, no-cache, must-revalidate, max-age=0")

    def keep_cookie(self) -> None:
        """Give balancers that go by the cookie of Java servers what they go by."""
        if self.mount.cookie_needed:
            value = self.get_cookie(_COOKIE) or ""
            self.set_cookie(_COOKIE, value if _COOKIE_VALUE.fullmatch(value) else "dummy")

    def _named_origin(self) -> str | None:
        headers = self.request.headers
        if named := headers.get("Origin"):
            return named.lower()
        try:
            referer = urlsplit(headers.get("Referer", ""))
        except ValueError:
            return "null"
        return f"{referer.scheme}://{referer.netloc}".lower() if referer.netloc else None

    def _is_allowed(self) -> bool:
        if self.origin is None:
            return not self.must_name_origin or self._is_open_to_all()
        return self._is_open_to_all() or self.mount.allows(self.origin, self.request.host)

    def _is_open_to_all(self) -> bool:
        return "*" in (self.mount.allowed_origins or ())

    def _allow_reading(self) -> None:
        origin = self.request.headers.get("Origin")
        if origin is None and not self._is_open_to_all():
            return
        if origin is None or origin == "null":
            origin = "*"
        self.set_header("Access-Control-Allow-Origin", origin)
        self.set_header("Access-Control-Allow-Credentials", "true")
        if asked := self.request.headers.get("Access-Control-Request-Headers"):
            self.set_header("Access-Control-Allow-Headers", asked)


class SessionRequest(SockJSRequest):
    """A request at ``/SERVER/SESSION/...``; the server's part is for balancers alone."""

    methods: ClassVar[tuple[str, ...]] = ("OPTIONS", "POST")
    _relay: Relay | None = None

    async def get(self, server: str, session_id: str) -> None:
        """Answer a request for a session."""
        for part in (server, session_id):
            if not 0 < len(part) <= _LONGEST_ID or "." in part or not part.isprintable():
                return self.refuse(404, "No such session.")
        siblings = self.mount.siblings
        if siblings is not None and siblings.owner(session_id) != siblings.number:
            return await self._pass_on(siblings, siblings.path(siblings.owner(session_id)))
        self.keep_cookie()
        self.do_not_cache()
        self.set_header("X-Content-Type-Options", "nosniff")
        return await self.serve(session_id)

    post = get

    def on_connection_close(self) -> None:
        """Let go of what was passed on for the client."""
        super().on_connection_close()
        if self._relay is not None:
            self._relay.abort()

    async def _pass_on(self, siblings: Siblings, path: str) -> None:
        seats = siblings.seats
        if self.is_too_large and self.most_bytes:
            self.refuse(413, "Too large.")
            return
        if seats.are_taken:
            self.mount.registry.traffic.refused.add("connections")
            self.refuse(503, _OUT_OF_REACH)
            return
        try:
            self._relay = relay = Relay(self, bytes(self.body))
        except OSError as error:
            logger.warning("Cannot pass a request on: %s", error.strerror)
            self.refuse(503, _OUT_OF_REACH)
            return
        seats.taken += 1
        siblings.relays += 1
        try:
            await relay.run(path)
        finally:
            siblings.relays -= 1
            seats.taken -= 1
        if not relay.is_answered:
            self.refuse(503, _OUT_OF_REACH)

    async def serve(self, session_id: str) -> None:
        """Do what this kind of request is for."""
        raise NotImplementedError
