"""Tornado's side of a WebSocket, which says why before it ends a connection (RFC 6455, 7.4.1).

Tornado drops the connection of a peer that breaks the protocol without a close frame.
"""

from __future__ import annotations

import asyncio

from tornado.websocket import WebSocketProtocol13

from syncserver.errors import CloseCode

_TEXT = 0x1


class ExplainingProtocol(WebSocketProtocol13):
    """Closes with 1002 for a broken frame, and with 1007 for text that is no UTF-8."""

    def _abort(self) -> None:
        if not self.server_terminated and not self.stream.closed():
            self.close(CloseCode.PROTOCOL_ERROR)
        super()._abort()

    def _handle_message(self, opcode: int, data: bytes) -> asyncio.Future[None] | None:
        if opcode == _TEXT and not self._frame_compressed and not _is_utf8(data):
            self.close(CloseCode.INVALID_TEXT)
            self._abort()
            return None
        return super()._handle_message(opcode, data)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
