"""How a request gets to the process that has its session (``siblings``).

Whoever gets a request for a session of another passes it on to that one's private socket and the
answer back, piece by piece: a piece is read when the one before it has left.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import RequestHandler

# Of one connection, not of the request (RFC 9110, 7.6.1); and what is said anew.
_NOT_PASSED_ON = (
    "Connection",
    "Keep-Alive",
    "Transfer-Encoding",
    "Upgrade",
    "Content-Length",
    "Expect",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
)
_PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
_OF_THE_ANSWER = ("Connection", "Keep-Alive", "Transfer-Encoding", "Date", "Server")


def open_stream() -> IOStream:
    """Return a stream over a Unix socket that is not connected; OSError: no descriptor is left."""
    return IOStream(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))


class Relay(HTTPMessageDelegate):
    """Passes one request on, and its answer back.

    :param handler: has the request, and takes the answer.

    OSError where there is no descriptor left for it.
    """

    def __init__(self, handler: RequestHandler, body: bytes) -> None:
        self._handler = handler
        self._body = body
        self._stream = open_stream()
        self._passed: asyncio.Future[None] | None = None
        self.is_answered = False
        self._is_aborted = False

    async def run(self, path: str) -> None:
        """Do it; without ``is_answered`` the process at ``path`` could not be reached."""
        try:
            await self._connect(path)
            parameters = HTTP1ConnectionParameters(no_keep_alive=True, max_body_size=sys.maxsize)
            connection = HTTP1Connection(self._stream, True, parameters)
            request = self._handler.request
            start = RequestStartLine(request.method or "", request.uri or "", "")
            await connection.write_headers(start, self._headers(), self._body)
            connection.finish()
            await connection.read_response(self)
        except OSError:  # a closed stream is one; so is a lack of descriptors
            self.abort()
        finally:
            self._stream.close()

    async def _connect(self, path: str) -> None:
        """Reach the process at ``path``, which may just be starting; StreamClosedError if not."""
        for pause in _PAUSES_SECONDS:
            try:
                await self._stream.connect(path)
            except StreamClosedError:
                if self._is_aborted:
                    raise
                await asyncio.sleep(pause)
                self._stream = open_stream()
            else:
                return
        await self._stream.connect(path)

    def abort(self) -> None:
        """Let go, as the client has; the other process will notice."""
        self._is_aborted = True
        self._stream.close()
        self._go_on()

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        """Begin the answer."""
        if not isinstance(start_line, ResponseStartLine) or self._is_over():
            return
        self.is_answered = True
        handler = self._handler
        handler.clear()
        handler.clear_header("Content-Type")
        handler.set_status(start_line.code, start_line.reason)
        for name, value in headers.get_all():
            if name not in _OF_THE_ANSWER:
                handler.add_header(name, value)
        handler.flush()

    def data_received(self, chunk: bytes) -> asyncio.Future[None] | None:
        """Pass a piece on; the next one is read when it has left."""
        if self._is_over():
            return None
        self._handler.write(chunk)
        flushed = self._handler.flush()
        if flushed.done():
            return None
        self._passed = asyncio.get_running_loop().create_future()
        flushed.add_done_callback(lambda _: self._go_on())
        return self._passed

    def finish(self) -> None:
        """End the answer."""
        if not self._is_over():
            self._handler.finish()

    def on_connection_close(self) -> None:
        """Break off the answer, as the other process has."""
        if self.is_answered and not self._is_over():
            self._client().close()

    def _go_on(self) -> None:
        passed, self._passed = self._passed, None
        if passed is not None and not passed.done():
            passed.set_result(None)

    def _headers(self) -> HTTPHeaders:
        request = self._handler.request
        headers = HTTPHeaders()
        for name, value in request.headers.get_all():
            if name not in _NOT_PASSED_ON:
                headers.add(name, value)
        headers["Content-Length"] = str(len(self._body))
        headers["X-Forwarded-For"] = request.remote_ip or ""
        headers["X-Forwarded-Proto"] = request.protocol
        return headers

    def _is_over(self) -> bool:
        return self._handler._finished or self._client().closed()

    def _client(self) -> Any:
        connection: Any = self._handler.request.connection
        return connection.stream
