"""SockJS over WebSocket: the session is the connection's, framed or raw."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, ClassVar

from syncserver.config import Limits
from syncserver.errors import CloseCode
from syncserver.handlers import frames
from syncserver.handlers import sockjs_framing as framing
from syncserver.handlers.connection import Messages
from syncserver.handlers.sockjs_session import receive
from syncserver.handlers.websocket import WebSocketHandler
from syncserver.session import Session

_DRAFTS = ("7", "8")  # of hybi, with the same frames
_NOT_ALLOWED = 405


class FramedMessages(Messages):
    """Messages of a socket that hold frames of SockJS."""

    via: ClassVar[str] = "sockjs_websocket"
    opening: ClassVar[bytes] = frames.text_frames((framing.OPEN,))
    heartbeat: ClassVar[bytes] = frames.text_frames((framing.HEARTBEAT,))

    def max_bytes(self, limits: Limits) -> int:
        """Return how long a frame may be, which escapes every other character."""
        return limits.max_inbox_bytes

    @staticmethod
    def framed(texts: tuple[bytes, ...]) -> bytes:
        """Return the message that has the texts."""
        return frames.text_frames((framing.array(framing.listed(texts)),))

    def closing(self, code: int, reason: str) -> bytes:
        """Return the frame that says why; who breaks the protocol is told nothing in it."""
        if code == CloseCode.PROTOCOL_ERROR:
            return b""
        return frames.text_frames((framing.closing(code, reason),))

    def receive(self, content: str | bytes, session: Session, limits: Limits) -> None:
        """Hand the texts of a message to the session; Violation if it has none."""
        if not content:
            return
        try:
            texts = framing.read(content, single=True)
        except ValueError:
            raise frames.Violation(CloseCode.PROTOCOL_ERROR, "broken JSON encoding") from None
        receive(session, texts, limits)


_FRAMED = FramedMessages()


class RawWebSocketHandler(WebSocketHandler):
    """``/websocket``: a WebSocket without any frames of SockJS."""

    def prepare(self) -> Awaitable[None] | None:
        """Take the drafts that SockJS asks for."""
        headers = self.request.headers
        if headers.get("Sec-WebSocket-Version") in _DRAFTS:
            headers["Sec-WebSocket-Version"] = "13"
            if "Origin" not in headers and "Sec-WebSocket-Origin" in headers:
                headers["Origin"] = headers["Sec-WebSocket-Origin"]
        return super().prepare()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say what is wrong in the words that SockJS has for it."""
        if status_code == _NOT_ALLOWED:
            self.clear_header("Content-Type")
            self.set_header("Allow", "GET")
            self.finish()
        elif status_code != 400:
            super().write_error(status_code, **kwargs)
        elif self.request.headers.get("Upgrade", "").lower() != "websocket":
            self.finish('Can "Upgrade" only to "WebSocket".')
        elif "upgrade" not in self.request.headers.get("Connection", "").lower():
            self.finish('"Connection" must be "Upgrade".')
        else:
            super().write_error(status_code, **kwargs)


class FramedWebSocketHandler(RawWebSocketHandler):
    """``/SERVER/SESSION/websocket``; both parts of the path are for balancers alone."""

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Return a part of the path, which nobody reads, as text of whatever it is."""
        return value.decode("utf-8", "replace")

    def initialize(self, *args: Any, **options: Any) -> None:
        """Take the options of the route."""
        super().initialize(*args, **options)
        self._terms = replace(self._terms, messages=_FRAMED)
