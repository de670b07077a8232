"""The native wire protocol: Snorky's envelope (docs/reference/wire)."""

from __future__ import annotations

import contextlib
from typing import Any

from syncserver import strict_json
from syncserver.errors import InvalidCallParams, InvalidJSON, ProtocolError, RPCError
from syncserver.protocols.base import (
    Acquired,
    Change,
    Command,
    Ended,
    Event,
    Failure,
    Freshness,
    Message,
    Notification,
    PositionReached,
    Protocol,
    RefetchNotice,
    Reply,
)

_ECHOED_NAME_LENGTH = 64


class NativeProtocol(Protocol):
    """One JSON object in each text: ``{"service": NAME, "message": ANY}``."""

    name = "native"

    def receive(self, text: str | bytes) -> list[Message | Command]:
        """Read one envelope."""
        try:
            envelope = strict_json.decode(text)
        except InvalidJSON as error:
            error.service, error.call_id = _whose(text)
            raise
        if not isinstance(envelope, dict):
            raise ProtocolError("Expected an object with service and message")
        service = envelope.get("service")
        if not isinstance(service, str):
            raise ProtocolError("Missing field 'service'")
        if "message" not in envelope:
            raise ProtocolError("Missing field 'message'", service=service)
        return [Message(service, envelope["message"])]

    def encode(self, event: Event) -> tuple[bytes, ...]:
        """Return the envelope of ``event``."""
        service = event.service
        if isinstance(event, Failure) and service is not None:
            service = service if len(service) <= _ECHOED_NAME_LENGTH else None
        return (encoded(event, {"service": service, "message": message_for_json(event)}),)


def _whose(text: str | bytes) -> tuple[str | None, Any]:
    """Return service and call id of an envelope that was refused, as far as they can be read."""
    service = call_id = None
    with contextlib.suppress(InvalidJSON, KeyError):
        envelope = strict_json.split_object(text)
        named = strict_json.decode(envelope["service"])
        service = named if isinstance(named, str) else None
        call_id = strict_json.decode(strict_json.split_object(envelope["message"])["callId"])
    return service, call_id


def encoded(event: Event, wire: Any) -> bytes:
    """Return the JSON of what tells ``event``; what came out of the log was checked before."""
    if isinstance(event, Change):
        return strict_json.encode_trusted(wire)
    return strict_json.encode(wire, is_frame=True)


def message_for_json(event: Event) -> Any:
    """Return the message that tells ``event``, without its envelope."""
    match event:
        case Change(_, delta, tag):
            return {"type": "delta", "delta": delta.for_json(tag)}
        case Notification(_, message):
            return message
        case Acquired(_, call_id, _, position):
            return _response(call_id, None if position is None else {"position": position})
        case PositionReached(_, position):
            return {"type": "position", "position": position}
        case RefetchNotice(_, token, reason, _):
            return {"type": "refetch", "token": token, "reason": reason}
        case Ended(_, token, reason, _):
            return {"type": "ended", "token": token, "reason": reason}
        case Freshness(_, stale):
            return {"type": "stale" if stale else "fresh"}
        case Reply(_, call_id, data):
            return _response(call_id, data)
        case Failure(_, call_id, error):
            return failure_for_json(call_id, error)


def _response(call_id: Any, data: Any) -> dict[str, Any]:
    echoed = {} if call_id is None else {"callId": call_id}
    return {"type": "response", **echoed, "data": data}


def failure_for_json(call_id: Any, error: RPCError | ProtocolError) -> dict[str, Any]:
    """Return the message of an error; only fields that apply are in it."""
    message = {"type": "error", "callId": call_id, "message": error.message, "code": error.code}
    if isinstance(error, RPCError):
        details = {"index": error.index, "field": error.field, "reason": error.reason}
        message.update({name: value for name, value in details.items() if value is not None})
    return message


def read_call(service: str, payload: Any) -> Command:
    """Read the payload of a call; ProtocolError says what it lacks."""
    if not isinstance(payload, dict):
        raise ProtocolError("Expected an object with command and params", service=service)
    call_id = payload.get("callId")
    command = payload.get("command")
    if not isinstance(command, str):
        raise ProtocolError("Missing field 'command'", service=service, call_id=call_id)
    if "params" not in payload:
        raise ProtocolError("Missing field 'params'", service=service, call_id=call_id)
    params = payload["params"]
    if not isinstance(params, dict):
        raise InvalidCallParams("Invalid params", service=service, call_id=call_id)
    return Command(service, command, params, call_id)
