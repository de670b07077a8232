"""The native wire protocol: Snorky's envelope (docs/reference/wire)."""

from __future__ import annotations

from typing import Any

from syncserver import strict_json
from syncserver.errors import InvalidCallParams, ProtocolError, RPCError
from syncserver.protocols.base import (
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

    def receive(self, text: str | bytes) -> list[Message | Command]:
        """Read one envelope."""
        envelope = strict_json.decode(text)
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
        match event:
            case Change(service, delta, tag):
                message: Any = {"type": "delta", "delta": delta.for_json(tag)}
                return (strict_json.encode_trusted({"service": service, "message": message}),)
            case Notification(service, message):
                pass
            case PositionReached(service, position):
                message = {"type": "position", "position": position}
            case RefetchNotice(service, token, reason):
                message = {"type": "refetch", "token": token, "reason": reason}
            case Ended(service, token, reason):
                message = {"type": "ended", "token": token, "reason": reason}
            case Freshness(service, stale):
                message = {"type": "stale" if stale else "fresh"}
            case Reply(service, call_id, data):
                echoed = {} if call_id is None else {"callId": call_id}
                message = {"type": "response", **echoed, "data": data}
            case Failure(service, call_id, error):
                message = failure_for_json(call_id, error)
                if service is not None and len(service) > _ECHOED_NAME_LENGTH:
                    service = None
                return (strict_json.encode({"service": service, "message": message}),)
        return (strict_json.encode({"service": service, "message": message}),)


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
