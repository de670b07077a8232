"""The parsers of what comes over a wire: JSON, envelopes, filters, deltas, frames."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from syncserver import canonical, filters, strict_json
from syncserver.delta import Delta, InvalidDelta
from syncserver.errors import InvalidJSON, InvalidQuery, NoSuchTicket, ProtocolError, RPCError
from syncserver.handlers import sockjs_framing
from syncserver.handlers.events import _read_id
from syncserver.position import Position
from syncserver.protocols.base import Change, Command, Failure, Message, Reply
from syncserver.protocols.events import EventsProtocol
from syncserver.protocols.native import NativeProtocol, read_call
from syncserver.protocols.rohrpost import RohrpostProtocol
from syncserver.rowsync import entries
from syncserver.services.datasync import _parse_item, check_token, parse_position
from tests.fuzz import grammar_wire as grammar
from tests.fuzz import oracles
from tests.fuzz.mutation import bytes_like, json_like
from tests.fuzz.target import Source, Target
from tests.support.expressions import evaluate

VECTORS = Path(__file__).parents[1] / "vectors"


def texts(value: Any) -> list[bytes]:
    """Return JSON values as seeds."""
    return [json.dumps(one, ensure_ascii=False).encode() for one in value]


def steps(name: str, *words: str) -> list[Any]:
    """Return what is sent in the cases of a vector file."""
    cases = json.loads((VECTORS / name).read_text("utf-8"))["cases"]
    every = [step for case in cases for step in case["steps"]]
    return [step[word] for step in every for word in words if word in step]


_CONTROL = re.compile("[\0-\x1f]")

# JSON.


def check_json(data: bytes) -> str:
    """Strict JSON is refused with InvalidJSON as Python's parser would, or comes back as it was."""
    plainly = oracles.strict(data)
    try:
        value = strict_json.decode(data)
    except InvalidJSON as error:
        assert plainly is oracles.REFUSED, plainly
        return told(error)
    assert repr((value,)) == repr(plainly)
    text = strict_json.encode(value)
    assert strict_json.decode(text) == value
    assert strict_json.decode(data.decode()) == value
    assert strict_json.decode_trusted(text) == value
    key = canonical.key(value)
    assert canonical.key(strict_json.decode(key)) == key, "a key is no canonical text"
    return repr(value)


# Envelopes.


def read_by_a_client(text: bytes) -> Any:
    """A frame is JSON for anybody; it may be a little larger and deeper than what is taken."""
    value = json.loads(text)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def told(error: ProtocolError | RPCError) -> str:
    """A refusal has a documented code and a line of text, and can be told in every protocol."""
    assert error.code in oracles.ERROR_CODES, error.code
    assert error.message
    assert not _CONTROL.search(error.message), error.message
    service, call_id = getattr(error, "service", None), getattr(error, "call_id", None)
    for protocol in (NativeProtocol(), EventsProtocol(), RohrpostProtocol()):
        if not isinstance(protocol, EventsProtocol):
            for text in protocol.encode(Failure(service, call_id, error)):
                read_by_a_client(text)
        else:
            protocol.encode(Failure(service, None, error))
    return error.code


def check_native(data: bytes) -> str:
    """An envelope is refused with ProtocolError, or its answer can have its call id."""
    try:
        [message] = NativeProtocol().receive(data)
    except ProtocolError as error:
        return told(error)
    assert isinstance(message, Message)
    try:
        call = read_call(message.service, message.payload)
    except ProtocolError as error:
        return told(error)
    refusal = RPCError("refused", index=1, field="x")
    for event in (Failure(call.service, call.call_id, refusal), _reply(call.service, call.call_id)):
        [text] = NativeProtocol().encode(event)
        answer = read_by_a_client(text)["message"]
        assert answer.get("callId") == call.call_id
    return repr(call)


def _reply(service: str, call_id: Any) -> Reply:
    return Reply(service, call_id, {"position": "a.1.b"})


def check_rohrpost(data: bytes) -> str:
    """A request is refused with ProtocolError, or answered, or made a call."""
    protocol = RohrpostProtocol()
    try:
        [message] = protocol.receive(data)
    except ProtocolError as error:
        assert error.code in oracles.ERROR_CODES
        [text] = protocol.encode(Failure(None, error.call_id, error))
        assert read_by_a_client(text)["error"]
        return error.code
    event: Any = message
    if isinstance(message, Command):
        event = Failure(message.service, message.call_id, RPCError("refused"))
    [text] = protocol.encode(event)
    asked, answer = strict_json.decode(data), read_by_a_client(text)
    assert answer["id"] == asked["id"]
    assert answer["type"] == ("pong" if asked["type"] == "ping" else asked["type"])
    return repr(message)


# Filters.

_ROWS: list[Any] = [
    {},
    {"a": 1, "b": "x", "id": 7, "color": "blue", "owner": {"id": 3}},
    {"a": None, "b": {"a": {"b": 1.0}}, "tags": ["x", 1, True, None, {"a": 1}], "color": 5},
    {"a": True, "b": [1, 2, [3]], "size": 10.5, "color": ["blue"], "owner": None},
    {"a": "ab", "b": -0.0, "size": 2**53 - 1, "color": "", "owner": {"id": "3", "name": "é"}},
]


def check_filter(data: bytes) -> str:
    """A filter is refused with InvalidQuery, or does what one that is only read does."""
    try:
        expression = strict_json.decode(data)
        parsed = filters.parse(expression)
    except InvalidJSON as error:
        return error.code
    except InvalidQuery as error:
        assert not oracles.is_filter(expression)
        inner = expression
        for index in (error.field or "").split(".") if error.field else ():
            inner = inner[int(index)]
        return told(error)
    assert oracles.is_filter(expression)
    found = []
    for row in _ROWS:
        verdict = parsed.matches(row)
        assert verdict is evaluate(expression, row), row
        found.append(verdict)
    again = filters.parse(strict_json.decode(strict_json.encode(expression)))
    assert again == parsed
    return f"{parsed.explain()} {found}"


# Deltas, items, positions, tokens.


def check_delta(data: bytes) -> str:
    """A delta is refused with InvalidDelta, or comes back from the wire and from the log."""
    try:
        wire = strict_json.decode(data)
        delta = Delta.parse(wire)
    except (InvalidJSON, InvalidDelta) as error:
        return told(error)
    assert Delta.parse(strict_json.decode(strict_json.encode(delta.for_json()))) == delta
    assert entries.decode(entries.encode_batch([delta])) == entries.Batch((delta,))
    for protocol in (NativeProtocol(), RohrpostProtocol()):
        if delta.model != "$group":
            [text] = protocol.encode(Change("datasync", delta, None))
            strict_json.decode_trusted(text)
    return repr(delta)


def check_item(data: bytes) -> str:
    """An item is refused with RPCError."""
    try:
        return repr(_parse_item(strict_json.decode(data), 3))
    except (InvalidJSON, RPCError) as error:
        return told(error)


def check_position(data: bytes) -> str:
    """A position is refused with ValueError, or is its own text; so in calls and streams."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        position = Position.parse(text)
    except ValueError:
        position = None
    if position is not None:
        assert str(position) == text
        assert position.offset >= 0
    try:
        assert parse_position(text) == position
    except RPCError as error:
        assert position is None
        told(error)
    try:
        check_token(text)
    except RPCError as error:
        told(error)
    try:
        reserved = _read_id(text)
    except NoSuchTicket:
        return repr(position)
    assert f"{reserved.position or ''}/{reserved.token}" == text
    return repr((position, reserved))


# Bodies of SockJS.

_LOOKED_AT = 3


def check_sockjs(data: bytes) -> str:
    """What is no array of strings is a ValueError; messages come back from their frame."""
    found = []
    for single in (False, True):
        try:
            found = sockjs_framing.read(data, single=single)
        except ValueError:
            continue
        for text in found[:_LOOKED_AT]:  # as it comes to the protocol inside
            check_native(text)
            check_rohrpost(text)
        frame = sockjs_framing.array(sockjs_framing.listed(tuple(found)))
        assert sockjs_framing.read(frame[1:]) == [_paired(text) for text in found]
        script = sockjs_framing.in_script(frame)
        assert script.isascii()
        assert b"<" not in script
        assert json.loads(script) == frame.decode()
    reason = data.decode("utf-8", "replace")
    [_, again] = json.loads(sockjs_framing.closing(4001, reason)[1:])
    assert again == reason
    return repr(found)


def _paired(text: bytes) -> bytes:
    """Return a text as JSON has it, where two halves of a pair that meet are one character."""
    return (
        text.decode("utf-8", "surrogatepass")
        .encode("utf-16", "surrogatepass")
        .decode("utf-16", "surrogatepass")
        .encode("utf-8", "surrogatepass")
    )


ENVELOPES = texts(steps("native.json", "send", "post")) + [
    one.encode() for one in steps("native.json", "text") if isinstance(one, str)
]
REQUESTS = texts(steps("rohrpost.json", "send")) + texts(
    [
        {"id": 1, "type": "ping", "data": {"x": [1]}},
        {"id": [], "type": "ping", "data": "x"},
        {"id": "s", "type": "subscribe", "data": {"token": "t"}},
        {"id": None, "type": "unsubscribe", "data": {"token": "t"}},
        {"id": {"a": 1}, "type": 5},
    ]
)
JSON = texts(
    [None, 1.5, 'text \\ "quoted" \u2028', [1, [2, {"a": [3]}]], {"a": {"b": [None, True, 1e300]}}]
)
_VECTORS = json.loads((VECTORS / "filters.json").read_text("utf-8"))
FILTERS = texts([case["filter"] for case in (*_VECTORS["valid"], *_VECTORS["invalid"])]) + texts(
    [
        ["and", ["==", "color", "blue"], ["not", ["in", "a", [1, "ab", None, [1], {"a": 1}]]]],
        ["or", [">", "size", 3], ["between", "owner.id", 1, 9], ["prefix", "b", "x"]],
        ["contains", "tags", {"a": 1}],
        ["exists", "owner.name"],
        ["!=", "b", [1, 2, [3]]],
    ]
)
DELTAS = texts(
    [
        {"type": "insert", "model": "Task", "data": {"id": 1, "title": "é"}, "version": 3},
        {"type": "update", "model": "T", "oldData": {"id": 1}, "newData": {"id": 1, "a": [1]}},
        {"type": "delete", "model": "T", "data": {}},
    ]
)
ITEMS = texts([{"dealer": "AllTasks", "query": None}, {"dealer": "D", "query": [1], "tag": "t"}])
POSITIONS = [b"abc123.0.0", b"a.9007199254740991.ff00ff00", b"abc.12.0/Token_-1", b"/t", b"t:x"]
SOCKJS = [
    b"[]",
    b'["a"]',
    b'["a","\\ud83d\\ude00","\\ud800"]',
    b'"single"',
    '["\u2028\x7f\ufff0é"]'.encode(),
    b'["' + b'\\"' * 50 + b'"]',
]

TARGETS = [
    Target(Source("json", [*JSON, *ENVELOPES], grammar.JSON, json_like()), check_json, 16_000),
    Target(
        Source("native", ENVELOPES, grammar.CALLS, json_like(b'"callId":')), check_native, 14_000
    ),
    Target(
        Source("rohrpost", REQUESTS, grammar.REQUESTS, json_like(b'"id":')), check_rohrpost, 14_000
    ),
    Target(Source("filters", FILTERS, grammar.FILTERS, json_like()), check_filter, 15_000),
    Target(Source("deltas", DELTAS, grammar.DELTAS, json_like()), check_delta, 13_000),
    Target(Source("items", ITEMS, grammar.ITEMS, json_like()), check_item, 8_000),
    Target(Source("positions", POSITIONS, grammar.POSITIONS, bytes_like()), check_position, 20_000),
    Target(Source("sockjs", SOCKJS, grammar.BODIES, json_like()), check_sockjs, 11_000),
]
