"""Server-sent events: the native messages of one subscription, each with its type beside it.

Texts are events without the empty line that ends them. ``id`` stands at positions alone, so
that a browser that reconnects names a boundary of entries. A place is left in it for what
the handler adds (``ID_PLACE``), as the texts are the same for all sessions.
"""

from __future__ import annotations

import re
from typing import Any

from syncserver.errors import CloseCode, Refetch, TakenOver, Unavailable
from syncserver.protocols.base import (
    Acquired,
    Command,
    Ended,
    Event,
    Failure,
    Message,
    Notification,
    PositionReached,
    Protocol,
    RefetchNotice,
)
from syncserver.protocols.native import NativeProtocol, encoded, message_for_json

ID_PLACE = b"\0"
"""Never stands in JSON text, where it is escaped."""

_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_NO_TYPES = {"error", "open", "message"}


class EventsProtocol(Protocol):
    """What is read is native, what is told are events; the end of the subscription is the end.

    The call id of the acquire is its token.

    :param service: whose notifications are told; None: those of all, which no name tells apart.
    """

    name = "events"

    def __init__(self, service: str | None = None) -> None:
        self._native = NativeProtocol()
        self._service = service

    def receive(self, text: str | bytes) -> list[Message | Command]:
        """Read one native envelope."""
        return self._native.receive(text)

    def encode(self, event: Event) -> tuple[bytes, ...]:
        """Return the lines of one event."""
        match event:
            case Notification(service) if self._service not in (None, service):
                return ()
            case Acquired(service, _, _, str(position)):
                event = PositionReached(service, position)
            case Failure(service, call_id, Refetch(reason=reason)):
                event = RefetchNotice(service or "", str(call_id), reason or "")
            case Failure(service, call_id, TakenOver(reason=reason)):
                event = Ended(service or "", str(call_id), reason or "")
        lines = _lines(event)
        if isinstance(event, RefetchNotice | Ended | Failure):
            self.closing = CloseCode.GOING_AWAY
        return (lines,)


def _lines(event: Event) -> bytes:
    message = message_for_json(event)
    lines = [b"event: %b" % _type_of(message), b"data: %b" % encoded(event, message)]
    match event:
        case PositionReached(_, position):
            lines.insert(0, b"id: %b%b" % (position.encode(), ID_PLACE))
        case Failure(error=Unavailable()):
            pass  # the browser comes again, with the position that it has
        case RefetchNotice() | Ended() | Failure():
            lines.insert(0, b"id")  # who comes again all the same has no position then
    return b"\n".join(lines)


def _type_of(message: Any) -> bytes:
    """Return the name of an event; ``error`` and the like are a browser's own."""
    type_ = message.get("type") if isinstance(message, dict) else None
    if not isinstance(type_, str) or not _TYPE.fullmatch(type_):
        return b"notification"
    if type_ == "error":
        return b"refused"
    return b"notification" if type_ in _NO_TYPES else type_.encode()
