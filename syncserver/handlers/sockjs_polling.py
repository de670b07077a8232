"""SockJS without WebSocket: the responses that carry frames to the client.

=================  ==========================================
``xhr``            one frame for each POST
``xhr_streaming``  frames in the response to a POST
``eventsource``    frames in a stream of events
``htmlfile``       frames as scripts of a page that does not end
``jsonp``          one frame for each script
=================  ==========================================

A response that streams ends after ``max_response_bytes``, as browsers keep all of it;
the client asks anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import Any, ClassVar

from syncserver.handlers import sockjs_framing as framing
from syncserver.handlers.sockjs_http import Mount, SessionRequest
from syncserver.handlers.sockjs_session import PollingSession

_SCRIPT = "application/javascript; charset=UTF-8"
_CALLBACK = re.compile(r"[A-Za-z0-9_.]{1,64}")

_PAGE = """<!doctype html>
<html><head><meta charset="UTF-8"><title>SockJS</title></head><body><script>
var c = parent.%s;
c.start();
function p(frame) { c.message(frame); }
window.onload = function () { c.stop(); };
</script>
"""
_PAGE_BYTES = 1024  # Browsers show nothing of a page before so much of it is there.


class Receiving(SessionRequest):
    """A response that takes frames (``sockjs_session.Receiver``)."""

    content_type: ClassVar[str] = _SCRIPT
    streams: ClassVar[bool] = True
    full = False
    _session: PollingSession | None = None

    def initialize(self, mount: Mount) -> None:
        """Take the option of the route."""
        super().initialize(mount)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sent_bytes = 0

    def encode(self, frame: bytes) -> bytes:
        """Return a frame as this transport has it."""
        return frame + b"\n"

    def prelude(self) -> bytes:
        """Return what stands before all frames of a stream."""
        return b""

    async def serve(self, session_id: str) -> None:
        """Have the session's frames sent here, until it is enough."""
        sessions = self.mount.sessions
        session = sessions.find(session_id, self.origin)
        if session is None:
            session = self._opened(session_id)
        if session is None:
            return
        self._session = session
        self.set_header("Content-Type", self.content_type)
        if self.streams:
            self._notice_the_vanished()
            self.set_header("X-Accel-Buffering", "no")
            self.write(self.prelude())
            await asyncio.wait((self.flush(), self._ended), return_when=asyncio.FIRST_COMPLETED)
        if not self._ended.done():
            session.attach(self)
            await self._ended
        self._end_response()

    def _opened(self, session_id: str) -> PollingSession | None:
        """Return a new session; None: it was refused."""
        sessions, address = self.mount.sessions, self.request.remote_ip or ""
        if sessions.is_taken(session_id):
            self.refuse(404, "No such session.")
            return None
        reason = sessions.refusal(address)
        if reason is None:
            return sessions.open(session_id, self.origin, address)
        self.mount.registry.traffic.refused.add(reason)
        self.refuse(429 if reason == "address" else 503, "No more sessions now.")
        return None

    def send(self, frame: bytes) -> bool:
        """Send a frame; False if it is still to leave."""
        data = self.encode(frame)
        self._sent_bytes += len(data)
        self.full = (
            not self.streams or self._sent_bytes >= self.mount.registry.limits.max_response_bytes
        )
        if not self.streams:
            self.set_header("Content-Length", len(data))
        self.write(data)
        flushed = self.flush()
        if not flushed.done():
            flushed.add_done_callback(self._flushed)
            return False
        if flushed.exception() is not None:  # the connection had broken before
            asyncio.get_running_loop().call_soon(self.on_connection_close)
            return False
        return True

    def end(self) -> None:
        """End the response after what it was sent."""
        if not self._ended.done():
            self._ended.set_result(None)

    def abort(self) -> None:
        """Cut the connection."""
        self._stream().close()
        self.on_connection_close()

    def on_connection_close(self) -> None:
        """Give back what the client will not get."""
        super().on_connection_close()
        if not self._ended.done():
            self._ended.set_result(None)
            if self._session is not None:
                self._session.lost(self)

    def _flushed(self, flushed: asyncio.Future[None]) -> None:
        if self._session is not None and not flushed.cancelled() and not flushed.exception():
            self._session.left(self)

    def _end_response(self) -> None:
        stream = self._stream()
        if stream.closed():
            return
        finished = self.finish()
        if self.streams and self.request.version == "HTTP/1.0":
            # Such a response has no other end than that of the connection.
            finished.add_done_callback(lambda _: stream.close())

    def _stream(self) -> Any:
        connection: Any = self.request.connection
        return connection.stream

    def _notice_the_vanished(self) -> None:
        """Have the kernel give up a client that does not acknowledge a heartbeat."""
        plain, limits = self._stream().socket, self.mount.registry.limits
        milliseconds = int(1000 * (limits.ping_seconds + limits.pong_seconds))
        with contextlib.suppress(OSError, AttributeError):  # no TCP, or a system without it
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class XhrHandler(Receiving):
    """``xhr``: one frame for each POST."""

    streams: ClassVar[bool] = False


class XhrStreamingHandler(Receiving):
    """``xhr_streaming``: a response that goes on."""

    def prelude(self) -> bytes:
        """Return what makes browsers begin to read."""
        return framing.HEARTBEAT * 2048 + b"\n"


class EventSourceHandler(Receiving):
    """``eventsource``: frames as server-sent events."""

    methods: ClassVar[tuple[str, ...]] = ("GET",)
    content_type: ClassVar[str] = "text/event-stream; charset=UTF-8"

    def prelude(self) -> bytes:
        """Return the empty line that a browser of old waits for."""
        return b"\r\n"

    def encode(self, frame: bytes) -> bytes:
        """Return a frame as an event; it has no line breaks."""
        return b"data: " + frame + b"\r\n\r\n"


class CallbackRequest(Receiving):
    """A receiver that calls a function of the page, named in ``c``."""

    methods: ClassVar[tuple[str, ...]] = ("GET",)
    must_name_origin: ClassVar[bool] = True
    callback = ""

    async def serve(self, session_id: str) -> None:
        """Check the name, which will stand in a script."""
        self.callback = self.get_query_argument("c", "")
        if not self.callback:
            return self.refuse_broken('"callback" parameter required')
        if not _CALLBACK.fullmatch(self.callback):
            return self.refuse_broken('"callback" parameter must be a plain name')
        return await super().serve(session_id)


class HtmlFileHandler(CallbackRequest):
    """``htmlfile``: frames as scripts in a page."""

    content_type: ClassVar[str] = "text/html; charset=UTF-8"

    def prelude(self) -> bytes:
        """Return the head of the page."""
        return (_PAGE % self.callback).encode().ljust(_PAGE_BYTES) + b"\r\n\r\n"

    def encode(self, frame: bytes) -> bytes:
        """Return a frame as a script."""
        return b"<script>\np(" + framing.in_script(frame) + b");\n</script>\r\n"


class JsonpHandler(CallbackRequest):
    """``jsonp``: one frame for each script."""

    streams: ClassVar[bool] = False

    def encode(self, frame: bytes) -> bytes:
        """Return a frame as a call."""
        return self.callback.encode() + b"(" + framing.in_script(frame) + b");\r\n"


ROUTES = {
    "xhr": XhrHandler,
    "xhr_streaming": XhrStreamingHandler,
    "eventsource": EventSourceHandler,
    "htmlfile": HtmlFileHandler,
    "jsonp": JsonpHandler,
}
