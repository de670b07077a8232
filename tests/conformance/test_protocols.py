"""What every wire protocol keeps: it reads or refuses any text, and tells every event.

A new protocol is one row in ``PROTOCOLS``, with the way to read what it writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver.config import Limits
from syncserver.dealers import FilterDealer, KeyedDealer
from syncserver.delta import Delta
from syncserver.errors import ProtocolError, RPCError, UnknownService
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
from syncserver.protocols.events import EventsProtocol
from syncserver.protocols.native import NativeProtocol
from syncserver.protocols.rohrpost import RohrpostProtocol
from syncserver.registry import ServiceRegistry
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from tests.support.calls import MemoryPeer, backend_call, turns
from tests.support.toy import ToyProtocol

Seen = tuple[str, str | None, Any]
"""A change as a client reads it: its native kind, the tag, the row."""


@dataclass(frozen=True)
class Row:
    """A protocol, and how the JSON in what it writes is found.

    :param acquire: what a client sends to acquire a token.
    :param seen: the change that a text tells, if it tells one.
    :param is_native: whether it carries whole native envelopes.
    :param untold: the events that its clients have no word for.
    """

    make: Callable[[], Protocol]
    acquire: Callable[[str], str]
    seen: Callable[[Any], Seen | None]
    read: Callable[[bytes], Any] = json.loads
    is_native: bool = False
    untold: frozenset[str] = frozenset()


def native_acquire(token: str) -> str:
    call = {"command": "acquireSubscription", "params": {"token": token, "position": None}}
    return json.dumps({"service": "datasync", "message": {**call, "callId": token}})


def native_change(message: Any) -> Seen | None:
    if message["type"] != "delta":
        return None
    delta = message["delta"]
    row = delta["newData"] if delta["type"] == "update" else delta["data"]
    return delta["type"], delta.get("tag"), row


def rohrpost_acquire(token: str) -> str:
    return json.dumps({"type": "subscribe", "id": 1, "data": {"token": token}})


def rohrpost_change(message: Any) -> Seen | None:
    if message["type"] != "subscription-update":
        return None
    kinds = {"create": "insert", "update": "update", "delete": "delete"}
    data = message["data"]
    tag = None if data["group"] == "Row" else data["group"]
    return kinds[data["type"]], tag, data["object"]


def event_data(text: bytes) -> Any:
    [data] = [line for line in text.split(b"\n") if line.startswith(b"data: ")]
    return json.loads(data[6:])


PROTOCOLS = {
    "native": Row(
        NativeProtocol,
        native_acquire,
        lambda envelope: native_change(envelope["message"]),
        is_native=True,
    ),
    "toy": Row(
        ToyProtocol,
        native_acquire,
        lambda envelope: native_change(envelope["message"]),
        lambda text: json.loads(text.partition(b"|")[2]),
        is_native=True,
    ),
    "rohrpost": Row(
        RohrpostProtocol,
        rohrpost_acquire,
        rohrpost_change,
        untold=frozenset({"notification", "position", "stale", "fresh"}),
    ),
    "events": Row(EventsProtocol, native_acquire, native_change, event_data),
}

every_protocol = pytest.mark.parametrize("name", PROTOCOLS)

ROW = {"id": 1, "text": "é\u2028\0"}
EVENTS: dict[str, Event] = {
    "insert": Change("s", Delta("M", None, ROW, 3)),
    "update": Change("s", Delta("M", ROW, {}), "tag"),
    "delete": Change("s", Delta("M", ROW, None), ""),
    "notification": Notification("s", {"any": [1, None, "x"]}),
    "position": PositionReached("s", "e.1.m"),
    "acquired": Acquired("s", 1, "t", None, (("M", "tag"), ("M", None))),
    "acquired from": Acquired("s", 0, "t", "e.1.m", ()),
    "refetch": RefetchNotice("s", "t", "epoch", (("M", "tag"), ("M", None))),
    "ended": Ended("s", "t", "taken_over", (("M", None),)),
    "stale": Freshness("s", stale=True),
    "fresh": Freshness("s", stale=False),
    "reply": Reply("s", {"any": "id"}, [1]),
    "reply without id": Reply("s", None, None),
    "refusal": Failure("s", 5, RPCError("no", code="c", index=1, field="f", reason="r")),
    "malformed": Failure(None, None, ProtocolError("no text of ours")),
    "long name": Failure("x" * 10_000, [1], UnknownService("no such service")),
}
NO_JSON = {
    "NaN": math.nan,
    "infinity": [math.inf],
    "huge": {"n": 2**53},
    "object": object(),
    "bytes": b"x",
    "set": {1},
    "key": {1: 2},
    "surrogate": "\ud800",
    "deep": json.loads("[" * 70 + "]" * 70),
}
cycle: list[Any] = []
cycle.append(cycle)
NO_JSON["cycle"] = cycle

GARBAGE: list[str | bytes] = [
    "", " ", "null", "5", '"x"', "[]", "{}", "{", "[" * 100_000, '{"a":' * 50_000, "\0", "\ud800",
    "NaN", '{"service":1,"message":1}', '{"service":"s"}', '{"message":1}', '{"a":1,"a":2}',
    '{"service":"s","message":1e999}', '{"service":"s","message":99999999999999999}',
    '{"service":"s","message":"\\ud800"}', '{"service":"s","message":1}x', "\ufeff{}",
    b"", b"\xff", b"\x80abc", b'{"service":"\xff","message":1}', bytes(1000), '"' * 999, "\\" * 999,
]  # fmt: skip


@pytest.mark.core
@every_protocol
@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: repr(text[:30]))
def test_what_cannot_be_read_is_refused_by_a_protocol_error(name: str, text: str | bytes) -> None:
    protocol = PROTOCOLS[name].make()
    with pytest.raises(ProtocolError) as caught:
        protocol.receive(text)
    assert caught.value.message
    answer = protocol.encode(Failure(caught.value.service, caught.value.call_id, caught.value))
    assert answer, "a refusal can be told"


fragments = st.sampled_from(
    ['{"service":"s","message":', "{", "}", "[", "]", '"', "\\", ":", ",", "1e9", "null", "x", "\n"]
)


@pytest.mark.core
@every_protocol
@given(st.binary() | st.text(st.characters()) | st.lists(fragments).map("".join))
def test_any_text_gives_messages_or_a_protocol_error(name: str, text: str | bytes) -> None:
    protocol = PROTOCOLS[name].make()
    try:
        received = protocol.receive(text)
    except ProtocolError:
        return
    assert all(isinstance(message, Message | Command) for message in received)


@pytest.mark.core
@every_protocol
@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_is_told_in_text(name: str, kind: str) -> None:
    row = PROTOCOLS[name]
    texts = row.make().encode(EVENTS[kind])
    assert isinstance(texts, tuple)
    for text in texts:
        assert isinstance(text, bytes)
        text.decode()
        row.read(text)
    assert bool(texts) == (kind not in row.untold)


@pytest.mark.core
@every_protocol
@pytest.mark.parametrize("kind", NO_JSON)
def test_what_json_cannot_carry_is_a_value_error_and_changes_nothing(name: str, kind: str) -> None:
    protocol, fresh = PROTOCOLS[name].make(), PROTOCOLS[name].make()
    for event in (Reply("s", 1, NO_JSON[kind]), Notification("s", NO_JSON[kind])):
        with pytest.raises(ValueError):  # noqa: PT011  # its text is nobody's contract
            protocol.encode(event)
    assert protocol.encode(EVENTS["insert"]) == fresh.encode(EVENTS["insert"])


@pytest.mark.core
@every_protocol
def test_what_is_shared_is_the_same_for_every_session_and_at_any_time(name: str) -> None:
    one, other = PROTOCOLS[name].make(), PROTOCOLS[name].make()
    if not one.shared:
        return
    for event in EVENTS.values():
        first = one.encode(event)
        assert one.encode(event) == first == other.encode(event)


@pytest.mark.core
@every_protocol
def test_what_is_not_shared_begins_the_same_for_every_session(name: str) -> None:
    one, other = PROTOCOLS[name].make(), PROTOCOLS[name].make()
    for event in EVENTS.values():
        assert one.encode(event) == other.encode(event)


# One session, the same over each.


def change(old: int | None, new: int | None) -> dict[str, Any]:
    rows = [None if n is None else {"id": 1, "list": 1, "n": n} for n in (old, new)]
    if old is None:
        return {"type": "insert", "model": "Row", "data": rows[1]}
    if new is None:
        return {"type": "delete", "model": "Row", "data": rows[0]}
    return {"type": "update", "model": "Row", "oldData": rows[0], "newData": rows[1]}


async def play(protocol: Callable[[], Protocol]) -> list[dict[str, Any]]:
    """Play a session and return the messages that the peer was sent, tokens and marks aside."""
    dealers = [KeyedDealer(name="ByList", model="Row", key="list")]
    service = DataSyncService(
        "datasync", [*dealers, FilterDealer(name="Some", model="Row")], limits=Limits()
    )
    frontend = ServiceRegistry([service])
    backend = ServiceRegistry([DataSyncBackend("backend", service)])
    sent, tokens = list[dict[str, Any]](), list[str]()

    async def call(command: str, **params: Any) -> Any:
        answer = await backend_call(backend, "backend", command, **params)
        assert answer["type"] == "response", answer
        return answer["data"]

    async def publish(*deltas: dict[str, Any]) -> None:
        await call("publishDeltas", deltas=list(deltas))
        await turns()
        collect(peer)

    def collect(peer: MemoryPeer) -> None:
        sent.extend(envelope["message"] for envelope in peer.take())

    for query in ([">", "n", 5], ["<", "n", 5]):
        items = [
            {"dealer": "ByList", "query": 1, "tag": "list"},
            {"dealer": "Some", "query": query, "tag": "some"},
        ]
        tokens.append(await call("authorizeSubscription", items=items))
    peer = MemoryPeer(frontend, protocol)
    sent += await peer.call("datasync", "acquireSubscription", token=tokens[0], position=None)
    await publish(change(None, 3), change(3, 8))
    sent += await peer.call("datasync", "acquireSubscription", token=tokens[1])
    sent += await peer.call("datasync", "acquireSubscription", token=tokens[1])
    await publish(change(8, 2))
    peer.send("nobody", 1)
    peer.session.receive("{")
    sent += await peer.call("datasync", "noSuchCommand")
    await call("revokeSubscription", token=tokens[1])
    await publish(change(2, 7))
    last = [message["position"] for message in sent if message["type"] == "position"][-1]
    peer.session.connection_lost()
    await publish(change(7, 6))
    peer = MemoryPeer(frontend, protocol)
    sent += await peer.call("datasync", "acquireSubscription", token=tokens[0], position=last)
    await call("requestRefetch", model="Row")
    await turns()
    collect(peer)
    peer.session.connection_lost()
    await turns()
    await service.close()
    await service.engine.close()
    return [anonymous(message, tokens) for message in sent]


def anonymous(message: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    """Return a message without what is random in it."""
    text = json.dumps(message)
    for number, token in enumerate(tokens):
        text = text.replace(token, f"token {number}")
    copy: dict[str, Any] = json.loads(text)
    for place in (copy, copy.get("data")):
        if isinstance(place, dict) and "position" in place:
            place["position"] = place["position"].split(".")[1]
    return copy


@pytest.mark.parametrize("name", [name for name, row in PROTOCOLS.items() if row.is_native])
async def test_a_session_is_told_the_same_over_every_native_protocol(name: str) -> None:
    told = await play(PROTOCOLS[name].make)
    assert told == await play(NativeProtocol)
    kinds = [message["type"] for message in told]
    assert {"response", "error", "delta", "position", "refetch"} == set(kinds)
    assert [m["reason"] for m in told if m["type"] == "refetch"] == ["revoked", "requested"]
    assert [m.get("code") for m in told if m["type"] == "error"] == [
        "already_acquired", "unknown_service", "invalid_json", "unknown_command",
    ]  # fmt: skip
    deltas = [(m["delta"]["tag"], m["delta"]["type"]) for m in told if m["type"] == "delta"]
    assert deltas[:3] == [("list", "insert"), ("list", "update"), ("some", "insert")]


async def changes(row: Row) -> list[Seen]:
    """Return what a client sees of a row that comes, moves between two tags, and goes."""
    dealers = [KeyedDealer(name="ByList", model="Row", key="list")]
    service = DataSyncService("datasync", [*dealers, FilterDealer(name="Some", model="Row")])
    frontend = ServiceRegistry([service])
    backend = ServiceRegistry([DataSyncBackend("backend", service)])
    items = [
        {"dealer": "ByList", "query": 1, "tag": "list"},
        {"dealer": "Some", "query": [">", "n", 5], "tag": "some"},
        {"dealer": "Some", "query": ["<", "n", 2]},
    ]
    token = (await backend_call(backend, "backend", "authorizeSubscription", items=items))["data"]
    batches = [[change(None, 3), change(3, 8)], [change(8, 1)], [change(1, 7), change(7, None)]]
    peer = MemoryPeer(frontend, row.make)
    for batch in batches:
        await backend_call(backend, "backend", "publishDeltas", deltas=batch)
        if batch is batches[0]:
            peer.session.receive(row.acquire(token))
        await turns()
    seen = [row.seen(row.read(text)) for text in peer.texts]
    peer.session.connection_lost()
    await turns()
    await service.close()
    await service.engine.close()
    return [one for one in seen if one is not None]


@every_protocol
async def test_a_client_sees_the_same_changes_over_every_protocol(name: str) -> None:
    seen: dict[str | None, list[tuple[str, int]]] = {}
    for kind, tag, row in await changes(PROTOCOLS[name]):
        seen.setdefault(tag, []).append((kind, row["n"]))
    assert seen == {  # in an entry order is kept for each view
        "list": [("insert", 3), ("update", 8), ("update", 1), ("update", 7), ("delete", 7)],
        "some": [("insert", 8), ("delete", 8), ("insert", 7), ("delete", 7)],
        None: [("insert", 1), ("delete", 1)],
    }
