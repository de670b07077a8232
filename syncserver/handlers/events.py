"""Server-sent events: one subscription for a plain ``EventSource``.

``POST`` a token, and a stream is there to be opened once; ``GET`` opens it. What a browser
needs to come again is in the ``id`` of each position, and comes back in ``Last-Event-ID``:
position and token, so that the URL is worth nothing to others (docs/howto/events).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from tornado.web import HTTPError

from syncserver import strict_json
from syncserver.errors import CloseCode, NoSuchTicket, ProtocolError, RPCError
from syncserver.handlers.base import CalmHandler, log_origin, may_ask
from syncserver.handlers.eventstream import EventStream
from syncserver.protocols.events import EventsProtocol
from syncserver.protocols.native import failure_for_json
from syncserver.registry import ServiceRegistry
from syncserver.rowsync.tickets import Reserved
from syncserver.services.datasync import DataSyncService, check_token, parse_position
from syncserver.session import Session
from syncserver.timers import Wheel

logger = logging.getLogger("syncserver.events")

_SERVICE = "datasync"
_FIELDS = {"token", "position", "service"}
_PREFLIGHT_SECONDS = 600
_BODY_BYTES = 4096
_ID = re.compile(r"(?P<position>[a-z0-9.]{0,64})/(?P<token>[A-Za-z0-9_-]{1,128})")


class EventsHandler(CalmHandler):
    """``POST`` a token for the name of a stream, ``GET`` the stream.

    :param allowed_origins: pages that may ask (``handlers.base``); None: those that come
        from this very host. Who names no origin is no browser, or a page of this host.
    """

    @classmethod
    def get_route(
        cls, service_registry: ServiceRegistry, path: str = "/events", **options: Any
    ) -> tuple[str, type[EventsHandler], dict[str, Any]]:
        """Return the route that serves the subscriptions of ``service_registry`` at ``path``."""
        options.setdefault("wheel", Wheel())
        return (path, cls, {"service_registry": service_registry, **options})

    def initialize(
        self,
        service_registry: ServiceRegistry,
        *,
        allowed_origins: Sequence[str] | None = None,
        wheel: Wheel,
    ) -> None:
        """Take the options of the route."""
        self._registry = service_registry
        self._limits = service_registry.limits
        self._allowed_origins = allowed_origins
        self._wheel = wheel
        self._stream: EventStream | None = None
        self._session: Session | None = None
        self._is_gone = False

    def prepare(self) -> None:
        """Refuse pages of other origins, and let the browser show the answer to the others."""
        if not self._say_who_may_read():
            self._registry.traffic.refused.add("origin")
            log_origin(self.request, self.request.headers.get("Origin"))
            self.send_error(403)

    def options(self, *args: str, **kwargs: str) -> None:
        """Answer the question that a browser asks before it posts JSON."""
        self.set_status(204)
        self.set_header("Access-Control-Allow-Methods", "GET, POST")
        self.set_header("Access-Control-Allow-Headers", "Content-Type")
        self.set_header("Access-Control-Max-Age", str(_PREFLIGHT_SECONDS))

    async def post(self, *args: str, **kwargs: str) -> None:
        """Answer ``{"stream": NAME}`` to a token and, if there is one, a position."""
        if self._registry.refusal:
            raise HTTPError(503)
        name, token, position = self._read_body()
        start = parse_position(position)
        ticket = await self._service(name).tickets.issue(token, start)
        self._send_json({"stream": f"{name}.{ticket}"})

    async def get(self, *args: str, **kwargs: str) -> None:
        """Stream a subscription until it, the connection or the daemon ends."""
        name, _, ticket = self.get_query_argument("stream", "").rpartition(".")
        service = self._service(name)
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("X-Accel-Buffering", "no")  # or nginx gathers what should be sent
        if self._registry.refusal or not self._registry.admits(self.request.remote_ip or ""):
            self.finish("retry: 1000\n\n")  # anything but 200 and the browser gives up
            return
        last = self.request.headers.get("Last-Event-ID")
        reserved = await service.tickets.redeem(ticket) if not last else _read_id(last)
        if self._is_gone:
            return
        self._stream = stream = self._open(name, reserved)
        if self._session is not None and self._registry.draining:  # since it was asked above
            self._session.close(CloseCode.DRAIN, '{"retry_after": 1000}')
        await stream.ended

    def on_connection_close(self) -> None:
        """Hear that the peer is gone."""
        self._is_gone = True
        if self._stream is not None:
            self._stream.lost()

    def on_finish(self) -> None:
        """Tell the session that there is nobody to write to."""
        if self._session is not None:
            self._registry.sockets -= 1
            self._session.connection_lost()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send the native message of an error instead of a page."""
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if not isinstance(error, ProtocolError | RPCError):
            reason = self._reason if status_code < 500 else "Internal error"
            error = RPCError(reason, code=_CODES.get(status_code, "internal_error"))
        else:
            self.set_status(error.http_status)
        self._say_who_may_read()  # Tornado has forgotten it
        if self.get_status() in (429, 503):
            self.set_header("Retry-After", "1")
        elif status_code == 405:
            self.set_header("Allow", "GET, POST, OPTIONS")
        self._registry.traffic.errors.add(error.code)
        message = failure_for_json(None, error)
        del message["callId"]
        self._send_json(message)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log what a client did wrong in a line, and what went wrong here in full."""
        if isinstance(value, ProtocolError | HTTPError | RPCError):
            reason = value.status_code if isinstance(value, HTTPError) else value  # not its text
            logger.info("Refused %s of %s: %s", self.request.method, self.request.remote_ip, reason)
        else:
            logger.error("A stream failed", exc_info=value)

    def _log(self) -> None:
        """Log the request without its query, which names a stream and is a secret.

        Tornado calls it; an application of one's own would have the whole address logged.
        """
        request = self.request
        logger.debug("%s %s %s", self.get_status(), request.method, request.path)

    def _say_who_may_read(self) -> bool:
        self.set_header("Vary", "Origin")
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Content-Type-Options", "nosniff")
        if not may_ask(self.request, self._allowed_origins):
            return False
        if origin := self.request.headers.get("Origin"):
            self.set_header("Access-Control-Allow-Origin", origin)
        return True

    def _open(self, name: str, reserved: Reserved) -> EventStream:
        self._registry.sockets += 1
        stream = EventStream(
            self,
            reserved.token,
            self._wheel,
            ping_seconds=self._limits.ping_seconds,
            drained=self._drained,
            stalled=self._stalled,
        )
        address = self.request.remote_ip or ""
        self._session = session = self._registry.connect(
            EventsProtocol(name), stream, remote_address=address, via="events"
        )
        stream.begin(reserved.position or "", self._limits.max_send_buffer_bytes)
        params = {"token": reserved.token, "position": reserved.position}
        call = {"command": "acquireSubscription", "params": params, "callId": reserved.token}
        session.receive(strict_json.encode({"service": name, "message": call}))
        return stream

    def _drained(self) -> None:
        if self._session is not None:
            self._session.drained()

    def _stalled(self) -> None:
        if self._session is not None:
            logger.info("%s takes nothing", self._session)
            self._session.abort(CloseCode.NO_PONG)

    def _service(self, name: str) -> DataSyncService:
        service = self._registry.registered_services.get(name)
        if not isinstance(service, DataSyncService):
            raise NoSuchTicket
        return service

    def _read_body(self) -> tuple[str, str, Any]:
        content_type = self.request.headers.get("Content-Type", "").partition(";")[0]
        if content_type.strip().lower() != "application/json":
            raise HTTPError(415)  # a form could be posted from any page
        if len(self.request.body) > _BODY_BYTES:
            raise HTTPError(413)
        body = strict_json.decode(self.request.body)
        if not isinstance(body, dict) or body.keys() - _FIELDS:
            raise ProtocolError("Expected an object with token, and position and service if any")
        check_token(body.get("token"))
        name = body.get("service", _SERVICE)
        if not isinstance(name, str):
            raise ProtocolError("service must be string")
        return name, body["token"], body.get("position")

    def _send_json(self, value: Any) -> None:
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(strict_json.encode(value))


_CODES = {
    403: "not_authorized",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    503: "unavailable",
}


def _read_id(text: str) -> Reserved:
    """Read what ``Last-Event-ID`` brings back: ``POSITION/TOKEN``, the position empty at first."""
    match = _ID.fullmatch(text)
    if match is None:
        raise NoSuchTicket
    return Reserved(match["token"], match["position"] or None)
