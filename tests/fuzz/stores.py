"""The parsers of what comes out of a store that others may write to: entries, grants, Redis."""

from __future__ import annotations

import json
from typing import Any

from syncserver import filters, strict_json
from syncserver.dealers.broadcast import BroadcastDealer
from syncserver.dealers.filter import FilterDealer
from syncserver.dealers.group import GroupDealer
from syncserver.dealers.keyed import KeyedDealer
from syncserver.delta import Delta
from syncserver.engines import redis as redis_engine
from syncserver.engines.base import (
    Entry,
    GrantHeld,
    GrantMissing,
    GrantRevoked,
    Taken,
    revoked_notice,
    taken_notice,
)
from syncserver.engines.redis_appends import _places
from syncserver.engines.redis_reader import chained
from syncserver.errors import IdempotencyConflict, RefetchReason, Unavailable
from syncserver.position import Position
from syncserver.protocols.base import Change
from syncserver.protocols.native import NativeProtocol
from syncserver.rowsync import entries
from syncserver.rowsync.grants import GrantBody, ItemSpec
from syncserver.rowsync.reorder import Reorder
from syncserver.rowsync.views import Views
from syncserver.services.pubsub import _decode
from tests.fuzz.grammar import near
from tests.fuzz.mutation import json_like
from tests.fuzz.parsers import texts
from tests.fuzz.target import Source, Target

_FILTER = filters.parse(["or", ["==", "a", [1]], ["in", "b.a", [1, "x", None]], [">", "id", 3]])


def _views() -> tuple[Views, Any]:
    views = Views()
    views.add_dealer(BroadcastDealer(name="T", model="Task"))
    views.add_dealer(KeyedDealer(name="K", model="Task", key="a"))
    views.add_dealer(FilterDealer(name="F", model="Task"))
    views.add_dealer(GroupDealer(name="G"))
    items = [ItemSpec("T", None), ItemSpec("K", [1]), ItemSpec("F", _FILTER.expression)]
    return views, views.open([*items, ItemSpec("G", "g")])


_VIEWS, _VIEW = _views()


def check_entry(data: bytes) -> str:
    """Any bytes are an entry or Unreadable; what is a batch can be matched and told."""
    value = entries.decode(data)
    if isinstance(value, entries.Batch):
        assert entries.decode(entries.encode_batch(value.deltas)) == value
        settled = Reorder(lambda model: "id", seconds=60, max_bytes=1 << 20).settle(value)
        assert isinstance(settled, entries.Batch)
        narrowed = _VIEWS.narrow(value.deltas)
        for view in _VIEW:
            if view not in narrowed.failed:
                seen = list(narrowed.seen.get(view, ()))
                assert list(_VIEWS.replay(view, value.deltas)) == seen, view
        for delta in value.deltas:
            NativeProtocol().encode(Change("datasync", delta, "tag"))
            for row in (delta.old, delta.new):
                _FILTER.matches(row)
    published = _decode(data)
    if published is not None:
        strict_json.encode_trusted(published)
    return repr(value)


def check_grant(data: bytes) -> str:
    """Any bytes are a grant that can be kept, or a ValueError."""
    try:
        body = GrantBody.decode(data)
    except ValueError:
        return "refused"
    for item in body.items:
        assert isinstance(item, ItemSpec)
        assert isinstance(item.dealer, str)
        assert item.tag is None or isinstance(item.tag, str)
    assert GrantBody.decode(body.encode()) == body
    return repr(body)


# What Redis answers, written as JSON: a text stands for bytes.


def _answer(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "surrogatepass")
        case list():
            return [_answer(one) for one in value]
        case dict():
            return [part for pair in value.items() for part in _answer(list(pair))]
        case _:
            return value


def check_redis(data: bytes) -> str:
    """Whatever Redis answers is understood, or refused as an engine refuses."""
    try:
        answer = _answer(json.loads(data))
    except (ValueError, RecursionError):
        answer = data
    came: list[Any] = []
    if isinstance(answer, list):  # else it is refused before
        came += _check_chain(Position("abc", 4, "m4"), answer)
    try:
        taken = redis_engine._taken(answer)
        assert isinstance(taken, Taken)
        assert isinstance(taken.grant.body, bytes)
        assert isinstance(taken.take, int)
        came.append(taken)
    except (GrantMissing, GrantRevoked, GrantHeld, Unavailable) as error:
        came.append(type(error))
    try:
        came += redis_engine._gone(answer, ["a", "b", "c"])
    except Unavailable as error:
        came.append(type(error))
    for count in (0, 1, 2):
        places = _places(answer, count)
        assert len(places) == count
        assert all(isinstance(one, Position | IdempotencyConflict | Unavailable) for one in places)
    try:
        came.append(redis_engine._position(answer))
    except Unavailable as error:
        came.append(type(error))
    return repr(came)


def _check_chain(last: Position, answer: list[Any]) -> tuple[list[Entry], RefetchReason | None]:
    found, reason = chained(last, answer)
    assert reason is not None or len(found) == len(answer)
    for entry in found:
        assert entry.position.offset == last.offset + 1
        assert (entry.position.epoch, entry.previous) == (last.epoch, last.mark)
        assert isinstance(entry.data, bytes)
        last = entry.position
    return found, reason


_DELTAS = [
    Delta("Task", None, {"id": 1, "a": [1], "b": {"a": "x"}}, 7),
    Delta("Task", {"id": 1}, {"id": 1, "b": None}),
    Delta("$group", {"group": "g", "object": {}}, None),
]
ENTRIES = [
    entries.encode_batch(_DELTAS),
    entries.encode_batch([]),
    entries.encode_refetch_request(model="Task"),
    entries.encode_refetch_request(items=[("Dealer", {"a": [1]}), ("Other", None)]),
    taken_notice("token", 3),
    revoked_notice("token"),
    strict_json.encode({"channel": {"c": [1]}, "message": [None]}),
]
GRANTS = [
    GrantBody([ItemSpec("D", {"q": [1]}, "t"), ItemSpec("E", None)], {"user": 1}).encode(),
    GrantBody([], None).encode(),
]
_WORDS = ("missing", "revoked", "held", "abc.5.m5", "abc.5.m5 !", None, [0, 2])
_ENTRIES = [["5-0", ["h", "abc m5 m4", "d", "x"]], ["6-0", ["h", "abc m6 m5", "d", ""]]]
REDIS = texts(
    [
        _ENTRIES,
        ["datasync", "abc.4.m4", "body", 2],
        ["data%20sync", "abc.4.m4", "body", 1],
        *_WORDS,
    ]
)
_TELLING = ("syncserver.entries", "syncserver.pubsub")

TARGETS = [
    Target(Source("entries", ENTRIES, near(ENTRIES), json_like()), check_entry, 14_000, _TELLING),
    Target(Source("grants", GRANTS, near(GRANTS), json_like()), check_grant, 14_000),
    Target(Source("redis", REDIS, near(REDIS), json_like(b'"5-0"', b"abc")), check_redis, 13_000),
]
