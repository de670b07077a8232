"""The wire protocol of rohrpost (docs/reference/rohrpost).

Both directions: ``{"id": ANY, "type": NAME, "data": ANY}``.

An answer has the id and the type of its request. Its clients throw on an error without an id
and on a type that they do not know, so that they are told nothing which they have no
word for: no positions, no freshness, no notifications of other services.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from syncserver import strict_json
from syncserver.delta import GROUP_MODEL, Delta, Kind
from syncserver.errors import InvalidJSON, ProtocolError, RPCError
from syncserver.protocols import base
from syncserver.protocols.base import (
    Acquired,
    Change,
    Command,
    Ended,
    Event,
    Failure,
    Freshness,
    Notification,
    PositionReached,
    RefetchNotice,
    Reply,
)

NAME = "rohrpost"
APPLICATION = "application"
DATASYNC = "datasync"

_KINDS: dict[Kind, str] = {"insert": "create", "update": "update", "delete": "delete"}
_NOBODY = {"unknown_command", "unknown_service"}


class Asked(NamedTuple):
    """What an answer repeats of its request; without an id where none could be read."""

    type: str | None = None
    id: tuple[Any, ...] = ()


class RohrpostProtocol(base.Protocol):
    """Requests become calls of the application, or of ``datasync`` where they have a token."""

    name = NAME

    def receive(self, text: str | bytes) -> Sequence[Command | Event]:
        """Read one request; a ping is answered here."""
        request = _decode(text)
        type_ = request.get("type")
        asked = Asked(type_ if isinstance(type_, str) else None, _present(request, "id"))
        for field in ("type", "id"):
            if field not in request:
                raise ProtocolError(f"Missing required field '{field}'.", call_id=asked)
        if not isinstance(type_, str):
            text = strict_json.encode(type_).decode()
            raise ProtocolError(f"Unknown message type '{text}'.", call_id=asked)
        data = request.get("data")
        if type_ == "ping":
            return [Reply(NAME, asked._replace(type="pong"), _pong(data))]
        if isinstance(data, dict) and "token" in data:
            token = data["token"]
            if type_ == "subscribe":
                params = {"token": token, "position": None}
                return [Command(DATASYNC, "acquireSubscription", params, asked)]
            if type_ == "unsubscribe":
                return [Command(DATASYNC, "cancelSubscription", {"token": token}, asked)]
        return [Command(APPLICATION, type_, {"data": data, "message": request}, asked)]

    def encode(self, event: Event) -> tuple[bytes, ...]:
        """Return the message of ``event``, or nothing."""
        match event:
            case Change(_, delta, tag):
                return (strict_json.encode_trusted(_update(_change(delta, tag))),)
            case Notification(service, message):
                text = strict_json.encode(message, is_frame=True)
                return (text,) if service == NAME else ()
            case Acquired(_, call_id, _, _, views):
                return (_answer(call_id, data=_groups(views)),)
            case RefetchNotice(_, _, reason, views) | Ended(_, _, reason, views):
                kind = "refetch" if isinstance(event, RefetchNotice) else "ended"
                told = [{"type": kind, "group": one, "reason": reason} for one in _names(views)]
                return tuple(strict_json.encode(_update(one)) for one in told)
            case Reply(_, call_id, data):
                return (_answer(call_id, data=data),)
            case Failure(_, call_id, error):
                return (_answer(call_id, error=_text(call_id, error)),)
            case PositionReached() | Freshness():
                return ()


def _decode(text: str | bytes) -> dict[str, Any]:
    if not text:
        raise ProtocolError("Received empty message.", call_id=Asked())
    try:
        request = strict_json.decode(text)
    except InvalidJSON as error:
        told = f"Could not decode JSON message. Error: {error.message}"
        raise ProtocolError(told, call_id=Asked()) from None
    if not isinstance(request, dict):
        raise ProtocolError("Expected a JSON object as message.", call_id=Asked())
    return request


def _present(request: dict[str, Any], field: str) -> tuple[Any, ...]:
    return (request[field],) if field in request else ()


def _pong(data: Any) -> Any:
    return data if data is None or isinstance(data, dict) else {"data": data}


def _update(data: dict[str, Any]) -> dict[str, Any]:
    return {"type": "subscription-update", "data": data}


def _change(delta: Delta, tag: str | None) -> dict[str, Any]:
    row: Any = delta.old if delta.new is None else delta.new
    group = delta.model if tag is None else tag
    if delta.model == GROUP_MODEL:
        group, row = row["group"], row.get("object")
    return {"type": _KINDS[delta.kind], "group": group, "object": row}


def _names(views: Iterable[tuple[str, str | None]]) -> list[str]:
    return list(dict.fromkeys(model if tag is None else tag for model, tag in views))


def _groups(views: Iterable[tuple[str, str | None]]) -> dict[str, Any]:
    names = _names(views)
    return {"group": names[0] if names else None} | ({"groups": names} if len(names) > 1 else {})


def _text(call_id: Any, error: RPCError | ProtocolError) -> str:
    if error.code in _NOBODY and isinstance(call_id, Asked):
        return f"Unknown message type '{call_id.type}'."
    return error.message


def _answer(call_id: Any, *, data: Any = None, error: str | None = None) -> bytes:
    asked = call_id if isinstance(call_id, Asked) else Asked(None, (call_id,))
    return strict_json.encode(_content(asked.type, asked.id, data=data, error=error), is_frame=True)


def _content(
    type_: str | None, message_id: tuple[Any, ...], *, data: Any, error: Any
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if message_id:
        content["id"] = message_id[0]
    if type_ is not None:
        content["type"] = type_
    if error is not None:
        content["error"] = error
    if data is not None:
        content["data"] = data
    return content


# For handlers that say themselves what is sent.


class _Own(enum.Enum):
    OWN = enum.auto()


OWN = _Own.OWN
"""Stands for what the request has."""


class Request(Protocol):
    """What is needed of a request (``services.base.Request``)."""

    call_id: Any
    client: Any
    resolved: bool

    def answer(self, event: Event) -> None:
        """Answer with an event."""


def send_message(
    request: Request,
    *,
    handler: str | _Own | None = OWN,
    message_id: Any = OWN,
    error: Any = None,
    data: Any = None,
) -> None:
    """Send a message to who asked; with the id of the request it is the answer to it.

    ``handler`` is its type; None leaves that or the id out. ValueError on an empty message.
    """
    asked = request.call_id if isinstance(request.call_id, Asked) else Asked()
    type_ = asked.type if handler is OWN else handler
    told: tuple[Any, ...] = () if message_id is None else (message_id,)
    if message_id is OWN:
        told = asked.id
    content = _content(type_ or None, told, data=data, error=error)
    if not content:
        raise ValueError("Cannot send an empty message.")
    event = Notification(NAME, content)
    if told and told == asked.id and not request.resolved:
        request.answer(event)
    else:
        request.client.tell(event)


def send_success(
    request: Request,
    *,
    handler: str | _Own | None = OWN,
    message_id: Any = OWN,
    data: Any = None,
) -> None:
    """Answer a request; ValueError without an id or a handler."""
    if message_id is None or not handler:
        raise ValueError("You have to provide a message ID and handler on success messages.")
    send_message(request, handler=handler, message_id=message_id, data=data)


def send_error(
    request: Request,
    error: Any,
    *,
    handler: str | _Own | None = OWN,
    message_id: Any = OWN,
    data: Any = None,
) -> None:
    """Answer a request with an error."""
    send_message(request, handler=handler, message_id=message_id, error=error, data=data)
