"""WebSocket: who may connect, and the handshake (RFC 6455, 4.2).

What comes after it is no longer Tornado's: ``handlers.connection`` has the socket then, and
this handler is gone. No extension and no subprotocol is agreed to, whatever is offered.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from syncserver.handlers import outlet
from syncserver.handlers.base import CalmHandler, log_origin, may_ask
from syncserver.handlers.connection import Terms
from syncserver.protocols.base import Protocol
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.timers import Wheel

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES = 16
_VERSION = "13"
_NOT_ALLOWED, _UPGRADE_REQUIRED, _TOO_MANY, _UNAVAILABLE = 405, 426, 429, 503
_REFUSALS = {
    400: "This is the address of a WebSocket; its handshake is RFC 6455, 4.1",
    403: "Pages of this origin may not connect",
    _UPGRADE_REQUIRED: "The version of WebSocket spoken here is 13",
    _TOO_MANY: "Too many connections of this address",
    _UNAVAILABLE: "This daemon is closing, or has no room",
}
_REASONS = {
    400: "handshake",
    403: "origin",
    _UPGRADE_REQUIRED: "version",
    _TOO_MANY: "address",
}


class WebSocketHandler(CalmHandler):
    """The handshake of one WebSocket; every wire protocol can be spoken over it.

    :param protocol: makes the wire protocol object of each connection.
    :param allowed_origins: pages that may connect (``handlers.base``); None: those that
        come from this very host. A client that names no origin is no browser and may.
    :param ping_pong_interval: seconds between pings; 0 or None: none. By default what
        the registry's limits say.
    """

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
        self._allowed_origins = allowed_origins
        ping_seconds = ping_pong_interval or 0
        if ping_seconds < 0:
            ping_seconds = service_registry.limits.ping_seconds
        self._terms = Terms(service_registry, protocol, wheel, ping_seconds)

    def get(self, *args: str, **kwargs: str) -> None:
        """Shake hands, and hand the socket over."""
        refusal = self._refusal()
        if refusal is not None:
            self._registry.traffic.refused.add(self._registry.refusal or _REASONS[refusal])
            if refusal == 403:
                log_origin(self.request, self.request.headers.get("Origin"))
            self.send_error(refusal)
        else:
            self._accept(self.request.headers["Sec-WebSocket-Key"])

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say in a line what is wrong, and in the header what would be right."""
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        if status_code == _UPGRADE_REQUIRED:
            self.set_header("Sec-WebSocket-Version", _VERSION)
        elif status_code == _NOT_ALLOWED:
            self.set_header("Allow", "GET")
        elif status_code in (_TOO_MANY, _UNAVAILABLE):
            self.set_header("Retry-After", "1")
        self.finish(_REFUSALS.get(status_code, self._reason) + "\n")

    def _refusal(self) -> int | None:
        headers = self.request.headers
        if self._registry.refusal:  # new clients go elsewhere
            return _UNAVAILABLE
        if not may_ask(self.request, self._allowed_origins):
            return 403
        upgrades = [name.strip() for name in headers.get("Connection", "").lower().split(",")]
        if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in upgrades:
            return 400
        if self.request.version == "HTTP/1.0":
            return 400
        if headers.get("Sec-WebSocket-Version") != _VERSION:
            return _UPGRADE_REQUIRED
        if not _is_key(headers.get("Sec-WebSocket-Key", "")):
            return 400
        return None if self._registry.admits(self.request.remote_ip or "") else _TOO_MANY

    def _accept(self, key: str) -> None:
        digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
        self.clear_header("Content-Type")
        self.set_status(101)
        self.set_header("Upgrade", "websocket")
        self.set_header("Connection", "Upgrade")
        self.set_header("Sec-WebSocket-Accept", base64.b64encode(digest))
        self.finish()
        outlet.connect(self._terms, self.request.remote_ip or "", self.detach())


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False
