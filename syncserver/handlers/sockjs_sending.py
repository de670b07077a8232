"""SockJS without WebSocket: the requests that carry messages from the client."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import parse_qsl

from syncserver.handlers import sockjs_framing as framing
from syncserver.handlers.sockjs_http import Mount, SessionRequest
from syncserver.handlers.sockjs_session import receive

_FORM_FIELDS = 16


class XhrSendHandler(SessionRequest):
    """``xhr_send``: messages in the body."""

    def initialize(self, mount: Mount) -> None:
        """Take the option of the route."""
        super().initialize(mount)
        self.most_bytes = self.mount.registry.limits.max_inbox_bytes

    async def serve(self, session_id: str) -> None:
        """Hand the messages to the session."""
        session = self.mount.sessions.find(session_id, self.origin)
        if session is None:
            return self.refuse(404, "No such session.")
        if self.is_too_large:
            return self.refuse(413, "Too large.")
        try:
            payload = self.payload()
            if not payload:
                return self.refuse_broken("Payload expected.")
            texts = framing.read(payload)
        except ValueError:
            return self.refuse_broken("Broken JSON encoding.")
        receive(session.session, texts, self.mount.registry.limits)
        return self.accept()

    def payload(self) -> bytes:
        """Return the array of messages; ValueError if it cannot be read."""
        return bytes(self.body)

    def accept(self) -> None:
        """Answer that the messages were taken."""
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.set_status(204)
        self.flush()  # before the end, where Tornado takes the type off
        self.finish()


class JsonpSendHandler(XhrSendHandler):
    """``jsonp_send``: messages in a form, or in the body."""

    methods: ClassVar[tuple[str, ...]] = ("POST",)
    must_name_origin: ClassVar[bool] = True

    def payload(self) -> bytes:
        """Return the array of messages; ValueError if it cannot be read."""
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            return bytes(self.body)
        fields = dict(parse_qsl(self.body.decode(), max_num_fields=_FORM_FIELDS))
        return fields.get("d", "").encode()

    def accept(self) -> None:
        """Answer that the messages were taken; some browsers want a body."""
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish("ok")


ROUTES = {"xhr_send": XhrSendHandler, "jsonp_send": JsonpSendHandler}
