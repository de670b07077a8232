"""WebSocket: moves texts between a socket and a session, and keeps it alive.

A pong (or anything else that the peer sends or takes) must follow a ping within
``pong_seconds``, or the session ends with 4012.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import tornado.websocket

from syncserver.errors import CloseCode
from syncserver.handlers.base import origin_allowed
from syncserver.handlers.frames import ExplainingProtocol
from syncserver.handlers.outlet import Outlet
from syncserver.protocols.base import Protocol
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.session import Session
from syncserver.wheel import Alarm, Wheel

logger = logging.getLogger("syncserver.websocket")


class WebSocketHandler(tornado.websocket.WebSocketHandler):
    """One WebSocket of a browser; every wire protocol can be spoken over it.

    :param protocol: makes the wire protocol object of each connection.
    :param allowed_origins: pages that may connect (``handlers.base``); None: those that
        come from this very host. A client that names no origin is no browser and may.
    :param ping_pong_interval: seconds between pings; 0 or None: none. By default what
        the registry's limits say.
    """

    session: Session

    @classmethod
    def get_route(
        cls, service_registry: ServiceRegistry, path: str = "/", **options: Any
    ) -> tuple[str, type[WebSocketHandler], dict[str, Any]]:
        """Return the route that serves ``service_registry`` at ``path``."""
        options.setdefault("wheel", Wheel())
        return (path, cls, {"service_registry": service_registry, **options})

    def initialize(
        self,
        service_registry: ServiceRegistry,
        *,
        protocol: Callable[[], Protocol] = NativeProtocol,
        allowed_origins: Sequence[str] | None = None,
        ping_pong_interval: float | None = -1,
        wheel: Wheel,
    ) -> None:
        """Take the options of the route."""
        self._registry = service_registry
        self._limits = service_registry.limits
        self._protocol = protocol
        self._allowed_origins = allowed_origins
        self._ping_seconds = ping_pong_interval or 0
        if self._ping_seconds < 0:
            self._ping_seconds = self._limits.ping_seconds
        self._wheel = wheel
        self._alarm: Alarm | None = None
        self._alive = True

    def get_websocket_protocol(self) -> tornado.websocket.WebSocketProtocol | None:
        """Return Tornado's side of the connection, made to say why it ends one."""
        protocol = super().get_websocket_protocol()
        if type(protocol) is tornado.websocket.WebSocketProtocol13:
            return ExplainingProtocol(self, mask_outgoing=False, params=protocol.params)
        return protocol

    @property
    def ping_interval(self) -> float | None:
        """Return None: the wheel pings, not a task for each connection."""
        return None

    @property
    def max_message_size(self) -> int:
        """Return how many bytes a message may have; more ends the connection with 1009."""
        return self._limits.max_message_bytes

    def check_origin(self, origin: str) -> bool:
        """Tell whether a page may connect; 403 if not."""
        if self._allowed_origins is None:
            return super().check_origin(origin)
        return origin_allowed(origin, self._allowed_origins)

    def prepare(self) -> Awaitable[None] | None:
        """Send new clients elsewhere while the server is closing; ask the list of origins.

        Tornado asks ``check_origin`` only where Origin and Host differ, but a page whose name
        was made to point here (DNS rebinding) has the same in both.
        """
        origin = self.request.headers.get("Origin")
        if self._registry.draining:
            self.set_header("Retry-After", "1")
            self.send_error(503)
        elif self._allowed_origins is not None and origin and not self.check_origin(origin):
            self.send_error(403)
        return None

    def open(self, *args: str, **kwargs: str) -> None:
        """Open a session for the socket."""
        self._registry.sockets += 1
        outlet = Outlet(self, self._drained, self._limits.max_send_buffer_bytes)
        address = self.request.remote_ip or ""
        self.session = self._registry.connect(self._protocol(), outlet, remote_address=address)
        if self._ping_seconds:
            self._alarm = self._wheel.call_later(self._ping_seconds, self._ping)

    def on_message(self, message: str | bytes) -> None:
        """Hand a text to the session; a binary message is read as the text it holds."""
        self._alive = True
        self.session.receive(message)

    def on_pong(self, data: bytes) -> None:
        """Note that the peer lives."""
        self._alive = True

    def on_close(self) -> None:
        """Tell the session that its socket is gone."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._registry.sockets -= 1
        self.session.connection_lost()

    def _drained(self) -> None:
        self._alive = True
        self.session.drained()

    def _ping(self) -> None:
        self._alive = False
        try:
            self.ping()
        except tornado.websocket.WebSocketClosedError:
            return
        wait = min(self._limits.pong_seconds, self._ping_seconds)
        self._alarm = self._wheel.call_later(wait, functools.partial(self._expect_pong, wait))

    def _expect_pong(self, waited: float) -> None:
        if self._alive:
            self._alarm = self._wheel.call_later(self._ping_seconds - waited, self._ping)
        else:
            logger.info("No pong from %s", self.request.remote_ip)
            self.session.abort(CloseCode.NO_PONG)
