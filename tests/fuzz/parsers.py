"""The parsers of what comes over a wire: JSON, envelopes, filters, deltas, frames."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from syncserver import canonical, entries, filters, strict_json
from syncserver.delta import Delta, InvalidDelta
from syncserver.errors import InvalidJSON, InvalidQuery, NoSuchTicket, ProtocolError, RPCError
from syncserver.handlers import frames, sockjs_framing
from syncserver.handlers.events import _read_id
from syncserver.position import Position
from syncserver.protocols.base import Change, Command, Failure, Message
from syncserver.protocols.events import EventsProtocol
from syncserver.protocols.native import NativeProtocol, read_call
from syncserver.protocols.rohrpost import RohrpostProtocol
from syncserver.services.datasync import _parse_item, check_token, parse_position
from tests.fuzz.mutation import bytes_like, json_like
from tests.fuzz.target import Target
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


# JSON.


def check_json(data: bytes) -> str:
    """Strict JSON is refused with InvalidJSON, or comes back from its own text."""
    try:
        value = strict_json.decode(data)
    except InvalidJSON as error:
        assert error.message.isprintable()
        return error.code
    text = strict_json.encode(value)
    assert strict_json.decode(text) == value
    assert strict_json.decode(data.decode()) == value
    assert strict_json.decode_trusted(text) == value
    key = canonical.key(value)
    assert canonical.key(strict_json.decode(key)) == key, "a key is no canonical text"
    return repr(value)


# Envelopes.


def read_by_a_client(text: bytes) -> None:
    """A frame is JSON for anybody; it may be a little larger and deeper than what is taken."""
    json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False).encode()


def told(error: ProtocolError | RPCError) -> str:
    """Refusals can be told in every wire protocol."""
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
    for text in NativeProtocol().encode(Failure(message.service, call.call_id, refusal)):
        read_by_a_client(text)
    return repr(call)


def check_rohrpost(data: bytes) -> str:
    """A request is refused with ProtocolError, or answered, or made a call."""
    protocol = RohrpostProtocol()
    try:
        [message] = protocol.receive(data)
    except ProtocolError as error:
        for text in protocol.encode(Failure(None, error.call_id, error)):
            read_by_a_client(text)
        return error.code
    event: Any = message
    if isinstance(message, Command):
        event = Failure(message.service, message.call_id, RPCError("refused"))
    for text in protocol.encode(event):
        read_by_a_client(text)
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
        return told(error)
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


# Frames.

_MAX = 1_000
_CODES = (1002, 1007, 1009)


def client_frame(
    first: int, payload: bytes = b"", mask: bytes = b"\1\2\3\4", form: int = 0
) -> bytes:
    """Return a frame of a client, perhaps with a length that could be shorter."""
    size = len(payload)
    form = form or (size if size < 126 else 126 if size < 65_536 else 127)
    long = {126: struct.pack(">H", size % 65_536), 127: struct.pack(">Q", size)}.get(form, b"")
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes((first, 0x80 | form)) + long + mask + masked


def random_frames(rng: Random) -> bytes:
    """Return a few frames, most of them right."""
    payloads = (
        b"",
        b"x",
        "é€😀".encode(),
        b"\xe2\x82",
        b"\xac",
        b"\x03\xe8",
        b"\x03\xe8ok",
        b"a" * 130,
    )
    data = b""
    for _ in range(rng.randint(1, 6)):
        opcode = rng.choice((0, 0, 1, 1, 2, 8, 9, 10, rng.randrange(16)))
        first = rng.choice((0, 0x80, 0x80, 0x80, 0xC0)) | opcode
        payload = (
            rng.choice(payloads) if rng.random() < 0.9 else rng.randbytes(rng.randrange(1_100))
        )
        mask = rng.choice((b"\0\0\0\0", rng.randbytes(4)))
        data += client_frame(first, payload, mask, rng.choice((0, 0, 0, 0, 126, 127)))
    return data


FRAME_SEEDS = [
    client_frame(0x81, b"text"),
    client_frame(0x81, "é€😀".encode()),
    client_frame(0x82, b"\xff" * 200),
    client_frame(0x01, b"\xe2") + client_frame(0x89, b"p") + client_frame(0x80, b"\x82\xac"),
    client_frame(0x88, b"\x03\xe8bye") + client_frame(0x81, b"after"),
    client_frame(0x8A) + client_frame(0x81, b"x" * 1_000),
    client_frame(0x81, b"x" * 1_001),
    b"".join(client_frame(0x01 if not n else 0x00) for n in range(1_030)),
    b"\x81\xff" + b"\xff" * 8,
    b"GET / HTTP/1.1\r\n\r\n",
]
_changed_frames = bytes_like(FRAME_SEEDS)


def make_frames(rng: Random) -> bytes:
    """Return frames, or bytes that nearly are some."""
    return random_frames(rng) if rng.random() < 0.6 else _changed_frames(rng)


def read_frames(pieces: list[bytes]) -> list[Any]:
    """Return what a reader makes of bytes that come in pieces, and the code it closes with."""
    reader = frames.FrameReader(_MAX)
    got: list[Any] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (one := reader.next()) is not None:
                got.append(one)
                if isinstance(one, frames.Control):
                    assert len(one.payload) <= 125
                    if one.opcode == frames.CLOSE:
                        got.append(frames.close_code(one.payload))
                else:
                    assert len(one.content) <= _MAX
            assert len(reader._buffer or b"") <= _MAX + 14, "more is kept than a frame may have"
            assert reader._message is None or reader._message.size <= _MAX
    except frames.Violation as violation:
        assert violation.code in _CODES
        assert len(frames.close_frame(violation.code, violation.reason)) < 130
        got.append(violation.code)
    return got


def check_frames(data: bytes) -> str:
    """The same messages come out however the bytes are cut; a broken rule is a Violation."""
    whole = read_frames([data])
    rng = Random(data)
    cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(1, 8)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert read_frames(pieces) == whole, cuts
    if len(data) < 300:
        assert read_frames([data[n : n + 1] for n in range(len(data))]) == whole
    messages = [one for one in whole if isinstance(one, frames.Message)]
    assert read_frames([b"".join(map(_framed, messages))]) == messages
    return repr(whole)


def _framed(message: frames.Message) -> bytes:
    content = message.content
    return (
        client_frame(0x81, content.encode())
        if isinstance(content, str)
        else client_frame(0x82, content)
    )


def check_sockjs(data: bytes) -> str:
    """What is no array of strings is a ValueError; messages come back from their frame."""
    found = []
    for single in (False, True):
        try:
            found = sockjs_framing.read(data, single=single)
        except ValueError:
            continue
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
    Target("json", JSON + ENVELOPES, json_like(JSON + ENVELOPES), check_json, 25_000),
    Target("native", ENVELOPES, json_like(ENVELOPES, [b'"callId":']), check_native, 20_000),
    Target("rohrpost", REQUESTS, json_like(REQUESTS, [b'"id":']), check_rohrpost, 20_000),
    Target("filters", FILTERS, json_like(FILTERS), check_filter, 15_000),
    Target("deltas", DELTAS, json_like(DELTAS), check_delta, 15_000),
    Target("items", ITEMS, json_like(ITEMS), check_item, 5_000),
    Target("positions", POSITIONS, bytes_like(POSITIONS), check_position, 20_000),
    Target("frames", FRAME_SEEDS, make_frames, check_frames, 18_000),
    Target("sockjs", SOCKJS, json_like(SOCKJS), check_sockjs, 20_000),
]
