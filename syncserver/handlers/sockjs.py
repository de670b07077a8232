"""SockJS 0.3.3: the API of WebSocket in browsers and networks that have none.

It is a transport: any wire protocol is spoken over it. The paths below a prefix are
the client's; ``sockjs_polling`` and ``sockjs_websocket`` have those of sessions, here
are the others.
"""

from __future__ import annotations

import base64
import hashlib
import html
import secrets
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from syncserver import strict_json
from syncserver.handlers import sockjs_polling, sockjs_sending
from syncserver.handlers.sockjs_http import Mount, SockJSRequest
from syncserver.handlers.sockjs_table import Sessions
from syncserver.handlers.sockjs_websocket import FramedWebSocketHandler, RawWebSocketHandler
from syncserver.protocols.base import Protocol
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.siblings import Siblings
from syncserver.timers import Wheel

Route = tuple[str, type, dict[str, Any]]

_SESSION = "/([^/.]+)/([^/.]+)"
_SOCKETS = {
    "/websocket": RawWebSocketHandler,
    f"{_SESSION}/websocket": FramedWebSocketHandler,
}
_BOOTSTRAP = "_sockjs_onload = function () { SockJS.bootstrap_iframe(); };"
_IFRAME = """<!DOCTYPE html>
<html>
<head>
<meta charset="UTF-8">
<title>SockJS</title>
<script>{bootstrap}</script>
<script src="{url}"></script>
</head>
<body></body>
</html>
"""


class SockJSHandler(SockJSRequest):
    """The greeting, at the prefix itself; ``get_routes`` gives all that is below it."""

    checked: ClassVar[bool] = False

    @classmethod
    def get_routes(
        cls,
        service_registry: ServiceRegistry,
        prefix: str = "",
        *,
        protocol: Callable[[], Protocol] = NativeProtocol,
        allowed_origins: Sequence[str] | None = None,
        wheel: Wheel | None = None,
        sessions: Sessions | None = None,
        websocket: bool = True,
        cookie_needed: bool = False,
        client_url: str = "",
        siblings: Siblings | None = None,
    ) -> list[Route]:
        """Return the routes that serve ``service_registry`` below ``prefix``.

        :param protocol: makes the wire protocol object of each session.
        :param allowed_origins: as for ``WebSocketHandler``.
        :param sessions: the table of sessions, if its owner is to close it.
        :param websocket: whether clients are told to try WebSocket.
        :param cookie_needed: whether to set JSESSIONID, which some balancers go by.
        :param client_url: where the pages for iframes get sockjs-client; empty: no such pages.
        :param siblings: the processes that have this place too, if there are others.
        """
        wheel = wheel or Wheel()
        mount = Mount(
            registry=service_registry,
            sessions=_or_new(sessions, service_registry, protocol, wheel),
            allowed_origins=allowed_origins,
            websocket=websocket,
            cookie_needed=cookie_needed,
            client_url=client_url,
            siblings=siblings,
        )
        handlers: dict[str, type] = {"/?": cls, "/info": InfoHandler}
        if client_url:
            handlers["/iframe(?:-[^/]{0,64})?[.]html"] = IframeHandler
        for name, one in {**sockjs_polling.ROUTES, **sockjs_sending.ROUTES}.items():
            handlers[f"{_SESSION}/{name}"] = one
        routes: list[Route] = [
            (prefix + path, one, {"mount": mount}) for path, one in handlers.items()
        ]
        if websocket:
            options = {"protocol": protocol, "allowed_origins": allowed_origins, "wheel": wheel}
            routes += [
                socket.get_route(service_registry, prefix + path, **options)
                for path, socket in _SOCKETS.items()
            ]
        return routes

    def get(self) -> None:
        """Say that this is the place."""
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish("Welcome to SockJS!\n")


def _or_new(
    sessions: Sessions | None,
    registry: ServiceRegistry,
    protocol: Callable[[], Protocol],
    wheel: Wheel,
) -> Sessions:
    return Sessions(registry, protocol, wheel) if sessions is None else sessions


class InfoHandler(SockJSRequest):
    """``/info``: what a client may try, and chance for those that have little of their own."""

    methods: ClassVar[tuple[str, ...]] = ("OPTIONS", "GET")

    def get(self) -> None:
        """Send it."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.do_not_cache()
        info = {
            "websocket": self.mount.websocket,
            "cookie_needed": self.mount.cookie_needed,
            "origins": ["*:*"],  # what all servers say; who may connect is checked at each request
            "entropy": secrets.randbits(32),
        }
        self.finish(strict_json.encode(info))


class IframeHandler(SockJSRequest):
    """``/iframe*.html``: the page through which a page of another site talks to this one.

    It may stand in pages of allowed origins alone, and runs no script but its own and the client.
    """

    checked: ClassVar[bool] = False

    def get(self) -> None:
        """Send it, or 304 to who has it."""
        page = _IFRAME.format(bootstrap=_BOOTSTRAP, url=html.escape(self.mount.client_url))
        policy = self._policy()
        digest = hashlib.sha256(f"{policy}\n{page}".encode()).hexdigest()
        self.cache()
        self.set_header("Etag", f'"{digest[:32]}"')
        if self.check_etag_header():
            self.set_status(304)
            self.finish()
            return
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        self.set_header("Content-Security-Policy", policy)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(page)

    def _policy(self) -> str:
        inline = base64.b64encode(hashlib.sha256(_BOOTSTRAP.encode()).digest()).decode()
        origins = self.mount.allowed_origins
        ancestors = "'self'" if origins is None else " ".join(origins) or "'none'"
        return f"script-src 'sha256-{inline}' {self.mount.client_url}; frame-ancestors {ancestors}"
