"""Subscriptions over real sockets: S19 to S30, and the bugs of SEEDS 1.3 that they are about."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from syncserver.config import Limits
from syncserver.dealers import (
    BroadcastDealer,
    Dealer,
    FilterDealer,
    SimpleDealer,
    SubscriptionItem,
)
from syncserver.delta import Row
from syncserver.engines.base import Engine
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import InvalidQuery
from syncserver.position import Position
from syncserver.services.base import Service
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from syncserver.session import Client
from tests.conftest import ExpectedLog
from tests.support.daemon import Daemon, Message, Peer, serving, until


class AllTasks(BroadcastDealer):
    model = "Task"


class TasksByColor(SimpleDealer):
    model = "Task"

    def get_key_for_model(self, row: Row) -> Any:
        return row["color"]


class FilteredTasks(FilterDealer):
    model = "Task"


class AllNotes(BroadcastDealer):
    model = "Note"


RED = ("TasksByColor", "red")
BLUE = ("TasksByColor", "blue")
ALL = ("AllTasks", None)
RED_FILTER = ("FilteredTasks", ["==", "color", "red"])
NOTES = ("AllNotes", None)


@asynccontextmanager
async def datasync(
    *dealers: Dealer | type[Dealer],
    engine: Engine | None = None,
    services: Iterable[Service] = (),
    **limits: Any,
) -> AsyncIterator[tuple[Daemon, DataSyncService]]:
    service = DataSyncService(
        "datasync",
        [AllTasks, TasksByColor, FilteredTasks, AllNotes, *dealers],
        engine=engine,
        limits=Limits(**limits),
    )
    trusted = DataSyncBackend("datasync_backend", service)
    async with serving(service, *services, backend=[trusted], **limits) as daemon:
        yield daemon, service
    await service.engine.close()


async def subscriber(daemon: Daemon, *items: Any) -> Peer:
    """Connect and acquire in Snorky's way."""
    peer = await daemon.connect()
    await acquire(peer, await daemon.authorize(*items))
    return peer


async def acquire(peer: Peer, token: str) -> None:
    answer = await peer.call("datasync", "acquireSubscription", token=token)
    assert (answer["type"], answer["data"]) == ("response", None), answer


async def resume(peer: Peer, token: str, position: str | None = None) -> str:
    """Acquire with a position and return the one that was reached."""
    answer = await peer.call("datasync", "acquireSubscription", token=token, position=position)
    assert answer["type"] == "response", answer
    assert list(answer["data"]) == ["position"]
    reached: str = answer["data"]["position"]
    return reached


async def refused(peer: Peer, token: Any, **params: Any) -> tuple[str, str]:
    """Acquire in vain and return message or reason, and code."""
    answer = await peer.call("datasync", "acquireSubscription", token=token, **params)
    assert answer["type"] == "error", answer
    return answer.get("reason", answer["message"]), answer["code"]


def row(number: int, color: Any = "red", n: int = 0) -> dict[str, Any]:
    return {"id": number, "color": color, "n": n}


def insert(data: Row, model: str = "Task", **more: Any) -> Message:
    return {"type": "insert", "model": model, "data": data, **more}


def delete(data: Row, model: str = "Task", **more: Any) -> Message:
    return {"type": "delete", "model": model, "data": data, **more}


def update(old: Row, new: Row, model: str = "Task", **more: Any) -> Message:
    return {"type": "update", "model": model, "newData": new, "oldData": old, **more}


def deltas(messages: Iterable[Message]) -> list[Message]:
    """Return the deltas of messages, none of which may be anything but deltas and positions."""
    found = [message for message in messages if message["type"] != "position"]
    assert all(message["type"] == "delta" for message in found), found
    return [message["delta"] for message in found]


def kinds(messages: Iterable[Message]) -> list[str]:
    return [message["type"] for message in messages]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Tokens.


async def test_s19_a_token_is_32_letters_and_digits_and_never_the_same() -> None:
    async with datasync() as (daemon, _):
        tokens = {await daemon.authorize(ALL) for _ in range(10)}
        assert len(tokens) == 10
        assert all(re.fullmatch(r"[a-z0-9]{32}", token) for token in tokens)


@pytest.mark.parametrize(
    ("item", "message", "field"),
    [
        ({"dealer": 3, "query": 1}, "dealer should be a dealer name", "dealer"),
        ({"dealer": None, "query": 1}, "dealer should be a dealer name", "dealer"),
        ({"query": 1}, "Missing field 'dealer'", "dealer"),
        ({"dealer": "AllTasks"}, "Missing field 'query'", "query"),
        ({}, "Missing field 'dealer'", "dealer"),
        ({"dealer": "Nobody", "query": 1}, "No such dealer", "dealer"),
        ({"dealer": "", "query": 1}, "No such dealer", "dealer"),
        ({"dealer": "AllTasks", "query": 1, "tag": 3}, "tag must be string", "tag"),
        ({"dealer": "AllTasks", "query": 1, "tag": ["a"]}, "tag must be string", "tag"),
        ({"dealer": "AllTasks", "query": 1, "extra": 3}, "Unknown field", "extra"),
        ("AllTasks", "item must be object", None),
        (["AllTasks", 1], "item must be object", None),
        (None, "item must be object", None),
    ],
)
async def test_s19_s26_a_bad_item_is_refused_with_its_index_and_field(
    item: Any, message: str, field: str | None
) -> None:
    async with datasync() as (daemon, service):
        items = [{"dealer": "TasksByColor", "query": "red"}, item]
        answer = await daemon.post("datasync_backend", "authorizeSubscription", items=items)
        assert answer["type"] == "error"
        assert answer["message"] == message
        assert (answer["index"], answer.get("field")) == (1, field)
        assert_nothing_is_left(service)


@pytest.mark.parametrize("items", [None, {}, "AllTasks", 3, [], True])
async def test_items_are_a_list_of_at_least_one(items: Any) -> None:
    async with datasync() as (daemon, _):
        answer = await daemon.post("datasync_backend", "authorizeSubscription", items=items)
        assert (answer["type"], answer["code"]) == ("error", "invalid_item")


@pytest.mark.parametrize(
    "query", [[], ["~", "color", "red"], ["==", "color"], None, "red", {"color": "red"}]
)
async def test_bug_3_and_4_a_bad_filter_is_refused_when_it_is_authorised(query: Any) -> None:
    async with datasync() as (daemon, service):
        items = [{"dealer": "AllTasks", "query": 1}, {"dealer": "FilteredTasks", "query": query}]
        answer = await daemon.post("datasync_backend", "authorizeSubscription", items=items)
        assert (answer["code"], answer["index"]) == ("invalid_query", 1)
        assert answer["message"] not in ("Internal error", "Exception")
        await daemon.publish(insert(row(1)))
        assert_nothing_is_left(service)


def assert_nothing_is_left(service: DataSyncService) -> None:
    """Check that no item, view or subscription is kept (bug 6: they leaked)."""
    assert not service.views._items
    assert not service.views._views
    assert not service.subscriptions.peers.subscriptions()


async def test_bug_6_an_item_that_a_dealer_fails_on_leaves_nothing_behind(
    expected_log: ExpectedLog,
) -> None:
    class Fragile(BroadcastDealer):
        model = "Task"

        def add_subscription_item(self, item: SubscriptionItem) -> None:
            raise RuntimeError("no room")

    async with datasync(Fragile) as (daemon, service):
        items = [{"dealer": "AllTasks", "query": 1}, {"dealer": "Fragile", "query": 1}]
        with expected_log("syncserver.rpc", "Unhandled exception"):
            answer = await daemon.post("datasync_backend", "authorizeSubscription", items=items)
        assert answer["message"] == "Internal error"
        assert_nothing_is_left(service)


async def test_a_subscription_that_was_not_acquired_costs_no_item() -> None:
    async with datasync() as (daemon, service):
        await daemon.authorize(RED, ALL)
        assert_nothing_is_left(service)


async def test_s20_a_token_is_acquired_once_and_a_bogus_one_never() -> None:
    async with datasync() as (daemon, _):
        peer = await daemon.connect()
        await acquire(peer, await daemon.authorize(ALL))
        no_such = ("No such subscription", "no_such_subscription")
        assert await refused(peer, "bogus") == no_such
        assert await refused(peer, "") == no_such
        assert await refused(peer, "bogus", position=None) == no_such


@pytest.mark.parametrize("token", [3, None, True, [], {"token": "x"}])
async def test_s20_a_token_is_a_string(token: Any) -> None:
    async with datasync() as (daemon, _):
        peer = await daemon.connect()
        expected = ("token must be string", "invalid_token")
        assert await refused(peer, token) == expected
        for half, caller in (("datasync", peer.call), ("datasync_backend", daemon.post)):
            command = "revokeSubscription" if caller == daemon.post else "cancelSubscription"
            answer = await caller(half, command, token=token)
            assert (answer["message"], answer["code"]) == expected


@pytest.mark.parametrize("position", ["", "x", 3, [], "a.b.c", "abc.1.d" * 20, "A.1.a", True])
async def test_a_position_that_no_server_sent_is_refused(position: Any) -> None:
    async with datasync() as (daemon, _):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        answer = await peer.call("datasync", "acquireSubscription", token=token, position=position)
        assert (answer["code"], answer["field"]) == ("invalid_position", "position")
        await acquire(peer, token)


async def test_bug_12_a_second_acquire_says_so_and_the_first_owner_goes_on() -> None:
    async with datasync() as (daemon, _):
        owner, other = await daemon.connect(), await daemon.connect()
        token = await daemon.authorize(ALL)
        await acquire(owner, token)
        taken = ("Subscription already acquired", "already_acquired")
        assert await refused(other, token) == taken
        assert await refused(other, token, position=None) == taken
        assert await refused(owner, token) == taken
        await daemon.publish(insert(row(1)))
        assert deltas(await owner.rest()) == [insert(row(1))]
        assert await other.rest() == []


async def test_s23_a_token_that_nobody_acquires_expires() -> None:
    clock = Clock()
    async with datasync(engine=MemoryEngine(clock=clock), grant_seconds=120) as (daemon, _):
        peer = await daemon.connect()
        early, late = await daemon.authorize(ALL), await daemon.authorize(ALL)
        clock.now += 119
        await acquire(peer, early)
        clock.now += 1
        assert (await refused(peer, late))[0] == "No such subscription"


async def test_s23_what_has_expired_is_forgotten() -> None:
    clock = Clock()
    engine = MemoryEngine(clock=clock)
    async with datasync(engine=engine) as (daemon, _):
        for _ in range(5):
            await daemon.authorize(ALL)
        clock.now += 121
        engine.sweep()
        assert not engine._grants
        assert not engine._deadlines


async def test_an_acquired_subscription_does_not_expire() -> None:
    clock = Clock()
    engine = MemoryEngine(clock=clock)
    async with datasync(engine=engine, resume_seconds=0.06) as (daemon, _):
        plain, resumable = await daemon.connect(), await daemon.connect()
        await acquire(plain, await daemon.authorize(ALL))
        await resume(resumable, await daemon.authorize(ALL))
        held = list(engine._grants.values())
        for _ in range(3):
            clock.now += 0.05
            await until(lambda: all(grant.deadline == clock.now + 0.06 for grant in held))
            engine.sweep()
        await daemon.publish(insert(row(1)))
        for peer in (plain, resumable):
            assert deltas(await peer.rest()) == [insert(row(1))]


async def test_s24_a_cancelled_subscription_is_silent_and_its_token_dead() -> None:
    async with datasync() as (daemon, service):
        peer, other = await daemon.connect(), await daemon.connect()
        token = await daemon.authorize(ALL)
        await acquire(peer, token)
        answer = await other.call("datasync", "cancelSubscription", token=token)
        assert (answer["message"], answer["code"]) == (
            "No such subscription",
            "no_such_subscription",
        )
        answer = await peer.call("datasync", "cancelSubscription", token=token)
        assert (answer["type"], answer["data"]) == ("response", None)
        await daemon.publish(insert(row(1)))
        assert await peer.rest() == []
        assert (await refused(peer, token))[0] == "No such subscription"
        answer = await peer.call("datasync", "cancelSubscription", token=token)
        assert answer["message"] == "No such subscription"
        assert_nothing_is_left(service)


async def test_one_filter_too_many_that_nothing_narrows_is_refused_with_its_number() -> None:
    dealer = FilterDealer(name="Narrow", model="Task", max_linear=1)
    linear = [["not", ["in", "color", ["red", color]]] for color in ("blue", "green")]
    async with datasync(dealer) as (daemon, _):
        first, second = [await daemon.authorize(("Narrow", query)) for query in linear]
        peer = await subscriber(daemon, ("Narrow", linear[0]))
        answer = await daemon.post(
            "datasync_backend",
            "authorizeSubscription",
            items=[{"dealer": "Narrow", "query": query} for query in linear],
        )
        assert (answer["code"], answer["index"]) == ("linear_filter_limit", 1)
        assert answer["field"] == "query"
        await acquire(peer, first)
        assert await refused(peer, second) == ("filter_changed", "refetch")


async def test_a_cancelled_resumable_subscription_cannot_be_resumed() -> None:
    async with datasync() as (daemon, _):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        position = await resume(peer, token)
        await peer.call("datasync", "cancelSubscription", token=token)
        assert await refused(peer, token, position=position) == ("expired", "refetch")


async def test_s25_a_lost_connection_takes_a_plain_subscription_with_it() -> None:
    async with datasync() as (daemon, service):
        peer, other = await daemon.connect(), await daemon.connect()
        token = await daemon.authorize(ALL)
        await acquire(peer, token)
        await peer.close()
        await until(lambda: not len(service.subscriptions.peers))
        assert (await refused(other, token))[0] == "No such subscription"
        assert_nothing_is_left(service)


async def test_s26_the_items_of_a_dealer_that_is_not_registered_any_more_are_refused() -> None:
    async with datasync() as (daemon, service):
        service.unregister_dealer(service.views.dealers["TasksByColor"])
        items = [{"dealer": "TasksByColor", "query": "red"}]
        answer = await daemon.post("datasync_backend", "authorizeSubscription", items=items)
        assert (answer["message"], answer["code"]) == ("No such dealer", "no_such_dealer")


async def test_s29_a_dealer_is_called_like_its_class_unless_it_says_otherwise() -> None:
    class Named(BroadcastDealer):
        name = "a name"
        model = "Task"

    class Child(AllTasks):
        pass

    service = DataSyncService("datasync")
    assert service.register_dealer(AllTasks).name == "AllTasks"
    assert service.register_dealer(Named()).name == "a name"
    assert service.register_dealer(Child).name == "Child"
    assert service.register_dealer(AllTasks(name="instance")).name == "instance"
    assert list(service.views.dealers) == ["AllTasks", "a name", "Child", "instance"]


async def test_s30_two_dealers_of_one_name_are_refused() -> None:
    service = DataSyncService("datasync", [AllTasks])
    with pytest.raises(RuntimeError, match=r"^Dealer with name 'AllTasks' already is registered.$"):
        service.register_dealer(AllTasks)
    with pytest.raises(RuntimeError):
        DataSyncService("datasync", [AllTasks, AllTasks()])


async def test_an_identity_that_was_authorised_becomes_that_of_the_session() -> None:
    class Who(Service):
        def process_message_from(self, client: Client, msg: Any) -> None:
            self.send_message_to(client, {"type": "you", "identity": client.identity})

    async with datasync(services=[Who("who")]) as (daemon, _):
        peer = await daemon.connect()
        for items, expected in (
            ((ALL, None), None),
            ((ALL, {"user": 7}), {"user": 7}),
            ((RED, None), {"user": 7}),
        ):
            await acquire(peer, await daemon.authorize(items[0], identity=items[1]))
            peer.send("who", None)
            assert (await peer.notice("you"))["identity"] == expected


# Deltas.


async def test_s21_a_delta_has_its_exact_shape_and_reaches_those_concerned_alone() -> None:
    async with datasync() as (daemon, _):
        red, blue = await subscriber(daemon, RED), await subscriber(daemon, BLUE)
        batch = [insert(row(1)), update(row(1), row(1, n=1)), delete(row(1, n=1))]
        for sent in batch:
            await daemon.publish(sent)
            assert await red.read() == {
                "service": "datasync",
                "message": {"type": "delta", "delta": sent},
            }
        assert await blue.rest() == []
        assert await red.rest() == []


@pytest.mark.parametrize("command", ["publishDeltas", "publish"])
async def test_bug_21_deltas_are_published_under_both_names(command: str) -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, ALL)
        await daemon.post("datasync_backend", command, deltas=[insert(row(1))])
        assert deltas(await peer.rest()) == [insert(row(1))]


@pytest.mark.parametrize("way", [acquire, resume])
async def test_s22_deltas_since_the_token_come_at_the_acquire_before_its_answer(way: Any) -> None:
    async with datasync() as (daemon, _):
        await daemon.publish(insert(row(1)))
        token = await daemon.authorize(ALL)
        await daemon.publish(insert(row(2)), insert(row(3)))
        await daemon.publish(delete(row(2)))
        peer = await daemon.connect()
        await way(peer, token)
        assert deltas(peer.take()) == [insert(row(2)), insert(row(3)), delete(row(2))]
        await daemon.publish(insert(row(4)))
        assert deltas(await peer.rest()) == [insert(row(4))]


@pytest.mark.parametrize("item", [RED, RED_FILTER])
@pytest.mark.parametrize("replayed", [False, True])
async def test_s27_bug_2_a_row_moves_into_within_and_out_of_a_view(
    item: Any, replayed: bool
) -> None:
    red, blue, crimson = row(1), row(1, "blue"), row(1, n=2)
    moves = [
        update(blue, red),
        update(red, crimson),
        update(crimson, blue),
        update(blue, row(1, "green")),
    ]
    async with datasync() as (daemon, _):
        peer, token = await daemon.connect(), await daemon.authorize(item)
        if not replayed:
            await acquire(peer, token)
        for move in moves:
            await daemon.publish(move)
        if replayed:
            await acquire(peer, token)
        assert deltas(await peer.rest()) == [insert(red), update(red, crimson), delete(crimson)]


async def test_s28_a_broadcast_dealer_shows_every_move_as_it_is() -> None:
    moves = [update(row(1, "blue"), row(1)), insert(row(2, "green")), delete(row(2, "green"))]
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, ALL)
        for move in moves:
            await daemon.publish(move)
        assert deltas(await peer.rest()) == moves


async def test_bug_13_a_row_that_several_items_see_comes_once() -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, ALL, RED, RED_FILTER, BLUE)
        await daemon.publish(insert(row(1)), update(row(1), row(1, "blue")))
        assert deltas(await peer.rest()) == [insert(row(1)), update(row(1), row(1, "blue"))]


async def test_bug_13_a_move_between_two_items_of_one_subscription_is_an_update() -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, RED, BLUE)
        await daemon.publish(update(row(1), row(1, "blue")))
        assert deltas(await peer.rest()) == [update(row(1), row(1, "blue"))]


async def test_bug_13_a_row_comes_once_for_each_tag_that_it_is_seen_under() -> None:
    def tagged(delta: Message, tag: str) -> Message:
        return {**delta, "tag": tag}

    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, (*RED, "red"), (*BLUE, "cold"), (*RED_FILTER, "red"), ALL)
        red, blue = row(1), row(1, "blue")
        await daemon.publish(insert(red))
        assert by_tag(await peer.rest()) == {"red": [insert(red)], None: [insert(red)]}
        await daemon.publish(update(red, blue))
        assert by_tag(await peer.rest()) == {
            "red": [delete(red)],
            "cold": [insert(blue)],
            None: [update(red, blue)],
        }


def by_tag(messages: Iterable[Message]) -> dict[str | None, list[Message]]:
    """Return deltas by their tag, which is taken out."""
    found: dict[str | None, list[Message]] = {}
    for delta in deltas(messages):
        assert delta.get("tag", "") is not None, "a delta without a tag has no such field"
        found.setdefault(delta.pop("tag", None), []).append(delta)
    return found


async def test_two_subscriptions_of_one_session_get_a_row_each() -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, ALL)
        await acquire(peer, await daemon.authorize((*RED, "red")))
        await daemon.publish(insert(row(1)))
        assert by_tag(await peer.rest()) == {None: [insert(row(1))], "red": [insert(row(1))]}


@pytest.mark.parametrize(
    ("one", "same", "others"),
    [
        (1, 1.0, [True, "1", [1], None]),
        (True, True, [1, "true"]),
        ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1}, [{"a": True, "b": [2]}]),
        ([], [], [{}, None, False, 0, ""]),
    ],
)
async def test_bug_7_and_19_a_key_is_any_json_value_and_equal_only_to_itself(
    one: Any, same: Any, others: list[Any]
) -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, ("TasksByColor", one))
        strangers = await subscriber(daemon, *(("TasksByColor", other) for other in others))
        await daemon.publish(insert(row(1, same)))
        assert deltas(await peer.rest()) == [insert(row(1, same))]
        assert await strangers.rest() == []


BAD_DELTAS: list[tuple[Any, str, str | None]] = [
    (None, "invalid_delta", None),
    ([], "invalid_delta", None),
    ({}, "invalid_delta", "model"),
    ({"type": "insert", "model": 3, "data": {}}, "invalid_delta", "model"),
    ({"type": "insert", "data": row(1)}, "invalid_delta", "model"),
    ({"type": "upsert", "model": "Task", "data": row(1)}, "invalid_delta", "type"),
    ({"type": ["insert"], "model": "Task", "data": row(1)}, "invalid_delta", "type"),
    ({"model": "Task", "data": row(1)}, "invalid_delta", "type"),
    (insert(row(1), "Nothing"), "unknown_model", "model"),
    ({"type": "insert", "model": "Task"}, "invalid_delta", "data"),
    ({"type": "insert", "model": "Task", "data": [1]}, "invalid_delta", "data"),
    ({"type": "insert", "model": "Task", "data": None}, "invalid_delta", "data"),
    ({"type": "delete", "model": "Task", "newData": row(1)}, "invalid_delta", "data"),
    ({"type": "update", "model": "Task", "newData": row(1)}, "invalid_delta", "oldData"),
    ({"type": "update", "model": "Task", "oldData": row(1)}, "invalid_delta", "newData"),
    (insert({"id": 1}), "invalid_delta", "data.color"),
    (update({"id": 1}, row(1)), "invalid_delta", "oldData.color"),
    (update(row(1), {"id": 1}), "invalid_delta", "newData.color"),
    (update(row(1), row(1) | {"m": 2}), "invalid_delta", "oldData.m"),
    (insert(row(1), version=-1), "invalid_delta", "version"),
    (insert(row(1), version=1.5), "invalid_delta", "version"),
    (insert(row(1), version=True), "invalid_delta", "version"),
    (insert(row(1), version="1"), "invalid_delta", "version"),
    (insert(row(1), tag="x"), "invalid_delta", "tag"),
    ({**insert(row(1)), "oldData": row(1)}, "invalid_delta", "oldData"),
]


async def test_bug_10_and_11_one_bad_delta_applies_nothing_and_is_named() -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, ALL)
        for bad, code, field in BAD_DELTAS:
            batch = [insert(row(7)), insert(row(8)), bad, insert(row(9))]
            answer = await daemon.post("datasync_backend", "publishDeltas", deltas=batch)
            assert answer["type"] == "error", bad
            assert (answer["code"], answer.get("field")) == (code, field), bad
            assert answer["index"] == 2
            assert answer["message"] not in ("Internal error", "Missing field", "Exception")
        assert await peer.rest() == []
        await daemon.publish(insert(row(1)))
        assert deltas(await peer.rest()) == [insert(row(1))]


async def test_bug_11_a_missing_field_is_named_in_the_message() -> None:
    async with datasync() as (daemon, _):
        batch = [{"type": "insert", "model": "Task"}]
        answer = await daemon.post("datasync_backend", "publishDeltas", deltas=batch)
        assert answer["message"] == "Missing field 'data'"


@pytest.mark.parametrize("given", [None, {}, "x", 3, {"type": "insert"}])
async def test_deltas_are_a_list(given: Any) -> None:
    async with datasync() as (daemon, _):
        answer = await daemon.post("datasync_backend", "publishDeltas", deltas=given)
        assert (answer["type"], answer["code"]) == ("error", "invalid_delta")


async def test_an_empty_batch_is_fine_and_tells_nobody_anything() -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, ALL)
        await daemon.publish()
        assert await peer.rest() == []


async def test_a_batch_keeps_its_order_and_its_models_apart() -> None:
    async with datasync() as (daemon, _):
        tasks, notes = await subscriber(daemon, ALL), await subscriber(daemon, NOTES)
        both = await subscriber(daemon, ALL, NOTES)
        batch = [insert(row(n), "Task" if n % 2 else "Note") for n in range(20)]
        await daemon.publish(*batch)
        assert deltas(await tasks.rest()) == batch[1::2]
        assert deltas(await notes.rest()) == batch[0::2]
        assert sorted(map(repr, deltas(await both.rest()))) == sorted(map(repr, batch))


# Positions, and what comes back after a cut.


async def test_only_who_acquired_with_a_position_is_told_positions() -> None:
    async with datasync() as (daemon, _):
        plain, resumable = await subscriber(daemon, ALL), await daemon.connect()
        await resume(resumable, await daemon.authorize(ALL))
        await daemon.publish(insert(row(1)))
        assert kinds(await plain.rest()) == ["delta"]
        assert kinds(await resumable.rest()) == ["delta", "position"]


async def test_a_position_is_told_once_for_a_session_and_never_inside_a_batch() -> None:
    async with datasync() as (daemon, _):
        peer, other = await daemon.connect(), await daemon.connect()
        await resume(peer, await daemon.authorize(ALL))
        await resume(peer, await daemon.authorize((*RED, "red")))
        await resume(other, await daemon.authorize(RED))
        await daemon.publish(*(insert(row(n)) for n in range(3)))
        messages = await peer.rest()
        assert kinds(messages) == ["delta"] * 6 + ["position"]
        assert (await other.rest())[-1] == messages[-1]
        assert 0 < len(messages[-1]["position"]) <= 64


async def test_a_delta_that_concerns_nobody_tells_no_position() -> None:
    async with datasync() as (daemon, _):
        peer = await daemon.connect()
        await resume(peer, await daemon.authorize(RED))
        await daemon.publish(insert(row(1, "blue")))
        assert await peer.rest() == []


async def test_a_quiet_session_is_told_positions_every_so_often() -> None:
    async with datasync(position_seconds=0.05) as (daemon, _):
        peer = await daemon.connect()
        first = await resume(peer, await daemon.authorize(RED))
        await daemon.publish(insert(row(1, "blue")))
        told = (await peer.notice("position"))["position"]
        assert told != first
        assert peer.take() == []
        await daemon.publish(insert(row(2, "blue")))
        assert (await peer.notice("position"))["position"] != told


async def test_a_quiet_session_is_told_the_position_before_it_could_not_be_resumed() -> None:
    async with datasync(resume_max_entries=20) as (daemon, _):
        peer = await daemon.connect()
        token = await daemon.authorize(RED)
        position = await resume(peer, token)
        for n in range(60):
            await daemon.publish(insert(row(n, "blue")))
        position = (await peer.rest())[-1]["position"]
        await peer.close()
        again = await daemon.connect()
        await resume(again, token, position)


async def test_what_was_missed_in_a_cut_comes_at_the_resume_and_nothing_twice() -> None:
    async with datasync() as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        await resume(peer, token)
        await daemon.publish(insert(row(1)))
        position = (await peer.notice("position"))["position"]
        assert deltas(peer.take()) == [insert(row(1))]
        await peer.close()
        await until(lambda: not len(service.subscriptions.peers))
        await daemon.publish(insert(row(2)), insert(row(3)))
        await daemon.publish(delete(row(2)))
        again = await daemon.connect()
        reached = await resume(again, token, position)
        assert deltas(again.take()) == [insert(row(2)), insert(row(3)), delete(row(2))]
        assert reached != position
        await daemon.publish(insert(row(4)))
        messages = await again.rest()
        assert deltas(messages) == [insert(row(4))]
        assert messages[-1]["position"] not in (position, reached)


async def test_a_resume_after_a_cut_without_changes_reaches_the_same_position() -> None:
    async with datasync() as (daemon, _):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        position = await resume(peer, token)
        await peer.close()
        assert await resume(await daemon.connect(), token, position) == position


async def test_a_resumable_subscription_is_kept_for_so_long_after_a_cut() -> None:
    clock = Clock()
    engine = MemoryEngine(clock=clock)
    async with datasync(engine=engine, resume_seconds=100) as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        position = await resume(peer, token)
        await peer.close()
        await until(lambda: not len(service.subscriptions.peers))
        await until(lambda: not engine._grants[token].held)
        clock.now += 99
        again = await daemon.connect()
        assert await resume(again, token, position) == position
        await again.close()
        await until(lambda: not len(service.subscriptions.peers))
        await until(lambda: not engine._grants[token].held)
        clock.now += 100
        late = await daemon.connect()
        assert await refused(late, token, position=position) == ("expired", "refetch")
        assert_nothing_is_left(service)


async def test_a_take_over_is_told_to_the_loser_who_gets_no_more() -> None:
    async with datasync() as (daemon, _):
        old, new = await daemon.connect(), await daemon.connect()
        token, other = await daemon.authorize(ALL), await daemon.authorize((*RED, "red"))
        position = await resume(old, token)
        await resume(old, other)
        await daemon.publish(insert(row(1)))
        await resume(new, token, position)
        assert deltas(new.take()) == [insert(row(1))]
        old.take()
        ended = await old.notice("ended")
        assert ended == {"type": "ended", "token": token, "reason": "taken_over"}
        await old.rest()
        await daemon.publish(insert(row(2)))
        assert by_tag(await old.rest()) == {"red": [insert(row(2))]}
        assert by_tag(await new.rest()) == {None: [insert(row(2))]}


async def test_a_subscription_that_was_taken_over_goes_on_when_the_loser_leaves() -> None:
    async with datasync() as (daemon, service):
        old, new = await daemon.connect(), await daemon.connect()
        token = await daemon.authorize(ALL)
        position = await resume(old, token)
        await resume(new, token, position)
        await old.close()
        await until(lambda: len(daemon.frontend.sessions) == 1)
        await daemon.publish(insert(row(1)))
        assert deltas(await new.rest()) == [insert(row(1))]
        answer = await new.call("datasync", "cancelSubscription", token=token)
        assert answer["type"] == "response"
        assert_nothing_is_left(service)


async def test_a_log_out_of_reach_is_told_as_stale_and_its_return_as_fresh() -> None:
    async with datasync() as (daemon, service):
        plain, resumable = await subscriber(daemon, ALL), await daemon.connect()
        stranger = await daemon.connect()
        await resume(resumable, await daemon.authorize(ALL))
        stream = service.subscriptions.stream
        for _ in range(2):
            stream.went_stale()
        for peer in (plain, resumable):
            assert await peer.rest() == [{"type": "stale"}]
        for _ in range(2):
            stream.came_fresh()
        for peer in (plain, resumable):
            assert await peer.rest() == [{"type": "fresh"}]
        assert await stranger.rest() == []
        await daemon.publish(insert(row(1)))
        assert deltas(await plain.rest()) == [insert(row(1))]


# Why a subscription has to fetch again.


async def test_a_position_of_another_log_is_answered_with_epoch() -> None:
    async with datasync() as (daemon, _):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        answer = await peer.call(
            "datasync", "acquireSubscription", token=token, position="abcdef.3.0123"
        )
        del answer["callId"], answer["message"]
        assert answer == {"type": "error", "code": "refetch", "reason": "epoch"}
        assert await refused(peer, "bogus", position="abcdef.3.0123") == ("epoch", "refetch")


async def moved(daemon: Daemon, peer: Peer, token: str) -> Position:
    """Resume, let the log move by two entries, and return the position."""
    await resume(peer, token)
    await daemon.publish(insert(row(1)))
    await daemon.publish(insert(row(2)))
    position = Position.parse((await peer.rest())[-1]["position"])
    assert position.offset == 2
    return position


async def test_a_position_that_the_log_no_longer_has_is_answered_with_rollback() -> None:
    async with datasync() as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        position = await moved(daemon, peer, token)
        await peer.close()
        again = await daemon.connect()
        ahead = str(position._replace(offset=7))
        assert await refused(again, token, position=ahead) == ("rollback", "refetch")
        assert await refused(again, token, position=str(position)) == ("expired", "refetch")
        assert_nothing_is_left(service)


@pytest.mark.parametrize("offset", [0, 1, 2])
async def test_a_position_of_a_log_that_was_written_anew_is_answered_with_fork(
    offset: int,
) -> None:
    async with datasync() as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        position = await moved(daemon, peer, token)
        await peer.close()
        again = await daemon.connect()
        other = str(position._replace(offset=offset, mark="ffffffffff"))
        assert await refused(again, token, position=other) == ("fork", "refetch")
        assert_nothing_is_left(service)


async def test_a_position_older_than_the_log_is_answered_with_trimmed() -> None:
    async with datasync(retention_entries=3, tail_bytes=700) as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(RED)
        position = await resume(peer, token)
        await peer.close()
        unacquired = await daemon.authorize(RED)
        for n in range(4):
            await daemon.publish(insert(row(n, "blue")))
        again = await daemon.connect()
        assert await refused(again, token, position=position) == ("trimmed", "refetch")
        assert await refused(again, unacquired) == ("trimmed", "refetch")
        assert_nothing_is_left(service)


async def test_what_the_tail_has_forgotten_is_read_from_the_log() -> None:
    async with datasync(tail_bytes=700) as (daemon, _):
        token = await daemon.authorize(ALL)
        batch = [insert(row(n)) for n in range(100)]
        for delta in batch:
            await daemon.publish(delta)
        peer = await daemon.connect()
        await resume(peer, token)
        assert deltas(peer.take()) == batch


async def test_a_position_too_many_entries_ago_is_answered_with_too_far() -> None:
    async with datasync(resume_max_entries=5) as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(RED)
        for n in range(6):
            await daemon.publish(insert(row(n, "blue")))
        assert await refused(peer, token, position=None) == ("too_far", "refetch")
        assert await refused(peer, token) == ("No such subscription", "no_such_subscription")
        assert_nothing_is_left(service)


async def test_as_many_entries_as_may_be_resumed_are_resumed() -> None:
    async with datasync(resume_max_entries=5) as (daemon, _):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        for n in range(5):
            await daemon.publish(insert(row(n)))
        await resume(peer, token)
        assert len(deltas(peer.take())) == 5


@pytest.mark.parametrize("way", [acquire, resume])
async def test_a_revoked_subscription_is_told_so_at_once(way: Any) -> None:
    async with datasync() as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        kept = await daemon.authorize(NOTES)
        await way(peer, token)
        await way(peer, kept)
        answer = await daemon.post("datasync_backend", "revokeSubscription", token=token)
        assert answer["data"] is True
        assert await peer.rest() == [{"type": "refetch", "token": token, "reason": "revoked"}]
        await daemon.publish(insert(row(1)), insert(row(1), "Note"))
        assert deltas(await peer.rest()) == [insert(row(1), "Note")]
        again = await daemon.post("datasync_backend", "revokeSubscription", token=token)
        assert again["data"] is False
        assert len(service.views._views) == 1


async def test_a_subscription_revoked_before_it_was_acquired_is_dead() -> None:
    async with datasync() as (daemon, _):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        answer = await daemon.post("datasync_backend", "revokeSubscription", token=token)
        assert answer["data"] is True
        assert (await refused(peer, token))[0] == "No such subscription"
        assert await refused(peer, token, position=None) == ("revoked", "refetch")


async def test_a_subscription_revoked_while_its_page_was_away_is_not_resumed() -> None:
    async with datasync() as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        position = await resume(peer, token)
        await peer.close()
        await until(lambda: not len(service.subscriptions.peers))
        await daemon.post("datasync_backend", "revokeSubscription", token=token)
        again = await daemon.connect()
        assert await refused(again, token, position=position) == ("revoked", "refetch")


async def test_revoking_what_is_not_there_is_no_error() -> None:
    async with datasync() as (daemon, _):
        answer = await daemon.post("datasync_backend", "revokeSubscription", token="bogus")
        assert answer == {"type": "response", "data": False}


async def test_a_subscription_whose_grant_is_gone_is_told_expired() -> None:
    engine = MemoryEngine()
    async with datasync(engine=engine, resume_seconds=0.06) as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        await resume(peer, token)
        del engine._grants[token]
        told = await peer.notice("refetch")
        assert told == {"type": "refetch", "token": token, "reason": "expired"}
        assert_nothing_is_left(service)


async def test_who_has_items_of_a_dealer_that_goes_is_told_filter_changed() -> None:
    async with datasync() as (daemon, service):
        peer, other = await daemon.connect(), await subscriber(daemon, ALL)
        token = await daemon.authorize(RED, ALL)
        waiting = await daemon.authorize(RED)
        await resume(peer, token)
        service.unregister_dealer(service.views.dealers["TasksByColor"])
        assert await peer.rest() == [
            {"type": "refetch", "token": token, "reason": "filter_changed"}
        ]
        assert await refused(peer, waiting) == ("filter_changed", "refetch")
        await daemon.publish(insert({"id": 1}))
        assert deltas(await other.rest()) == [insert({"id": 1})]
        assert await peer.rest() == []


async def test_a_query_that_its_dealer_refuses_by_now_is_answered_filter_changed() -> None:
    class Choosy(BroadcastDealer):
        model = "Task"
        refuses = False

        def parse_query(self, query: Any) -> Any:
            if self.refuses:
                raise InvalidQuery("not any more")
            return query

    async with datasync(Choosy) as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(("Choosy", 1))
        Choosy.refuses = True
        assert await refused(peer, token, position=None) == ("filter_changed", "refetch")
        assert_nothing_is_left(service)
        Choosy.refuses = False
        answer = await peer.call("datasync", "acquireSubscription", token=token, position=None)
        assert answer["code"] == "no_such_subscription", "the token is dead after a refetch"


class Allergic(Dealer):
    """Shows every row to everybody, but cannot stand those of one color."""

    model = "Task"

    def __init__(self) -> None:
        self._items: dict[SubscriptionItem, None] = {}

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        self._items[item] = None

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        del self._items[item]

    def get_subscription_items_for_model(self, row: Row) -> list[SubscriptionItem]:
        return [item for item in self._items if self._sees(item, row)]

    def covers(self, item: SubscriptionItem, row: Row) -> bool:
        return self._sees(item, row)

    def _sees(self, item: SubscriptionItem, row: Row) -> bool:
        if row["color"] == item.query:
            raise ZeroDivisionError("this color!")
        return True


async def test_only_the_subscriptions_that_fail_on_a_row_are_told_filter_failed(
    expected_log: ExpectedLog,
) -> None:
    async with datasync(Allergic) as (daemon, _):
        faulty, fine, other = [await daemon.connect() for _ in range(3)]
        token = await daemon.authorize(("Allergic", "red"))
        await resume(faulty, token)
        await resume(fine, await daemon.authorize(("Allergic", "blue")))
        await resume(other, await daemon.authorize(ALL))
        with expected_log("syncserver.views", "Dealer Allergic failed on a row of Task"):
            await daemon.publish(insert(row(1, "green")), insert(row(2, "red")))
            messages = await faulty.rest()
        assert {"type": "refetch", "token": token, "reason": "filter_failed"} in messages
        for peer in (fine, other):
            assert deltas(await peer.rest()) == [insert(row(1, "green")), insert(row(2, "red"))]
        await daemon.publish(insert(row(3, "green")))
        assert await faulty.rest() == []


async def test_a_subscription_that_fails_on_a_row_in_its_replay_is_answered_filter_failed(
    expected_log: ExpectedLog,
) -> None:
    async with datasync(Allergic) as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(("Allergic", "red"))
        await daemon.publish(insert(row(1)))
        with expected_log("syncserver.subscriptions", "A dealer of Task failed in a replay"):
            assert await refused(peer, token, position=None) == ("filter_failed", "refetch")
        assert_nothing_is_left(service)


async def request_refetch(daemon: Daemon, **params: Any) -> None:
    answer = await daemon.post("datasync_backend", "requestRefetch", **params)
    assert answer == {"type": "response", "data": None}


@pytest.mark.parametrize(
    ("params", "concerned"),
    [
        ({"items": [{"dealer": "TasksByColor", "query": "red"}]}, {"red", "red and notes"}),
        ({"items": [{"dealer": "TasksByColor", "query": "green"}]}, set()),
        ({"items": [{"dealer": "AllNotes", "query": None}]}, {"notes", "red and notes"}),
        ({"items": [{"dealer": "AllTasks", "query": None}]}, {"all"}),
        (
            {
                "items": [
                    {"dealer": "TasksByColor", "query": "blue"},
                    {"dealer": "AllTasks", "query": None},
                ]
            },
            {"all", "blue"},
        ),
        ({"model": "Note"}, {"notes", "red and notes"}),
        ({"model": "Task"}, {"red", "blue", "all", "red and notes"}),
    ],
)
async def test_a_requested_refetch_is_told_to_exactly_those_concerned(
    params: Any, concerned: set[str]
) -> None:
    subscriptions = {
        "red": [RED],
        "blue": [BLUE],
        "all": [ALL],
        "notes": [NOTES],
        "red and notes": [(*RED, "red"), NOTES],
    }
    async with datasync() as (daemon, _):
        tokens, peers = {}, {}
        for name, items in subscriptions.items():
            peers[name], tokens[name] = await daemon.connect(), await daemon.authorize(*items)
            await resume(peers[name], tokens[name])
        await request_refetch(daemon, **params)
        for name in concerned:
            assert await peers[name].notice("refetch") == {
                "type": "refetch",
                "token": tokens[name],
                "reason": "requested",
            }
        for name in peers.keys() - concerned:
            assert await peers[name].rest() == [], name


async def test_a_requested_refetch_also_reaches_who_acquires_only_later() -> None:
    async with datasync() as (daemon, _):
        peer = await daemon.connect()
        before, other = await daemon.authorize(RED), await daemon.authorize(BLUE)
        await request_refetch(daemon, items=[{"dealer": "TasksByColor", "query": "red"}])
        after = await daemon.authorize(RED)
        assert await refused(peer, before) == ("requested", "refetch")
        await resume(peer, other)
        await resume(peer, after)


async def test_requested_refetches_are_spread_over_time() -> None:
    async with datasync(refetch_per_second=10) as (daemon, _):
        peers = [await subscriber(daemon, ALL) for _ in range(4)]
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await request_refetch(daemon, model="Task")
        times = []
        for peer in peers:
            assert (await peer.notice("refetch"))["reason"] == "requested"
            times.append(loop.time() - begin)
        assert 0.25 < max(times) < 2


async def test_who_waits_for_a_requested_refetch_is_told_no_position() -> None:
    async with datasync(refetch_per_second=10) as (daemon, _):
        first = await subscriber(daemon, ALL)
        peer, token = await daemon.connect(), await daemon.authorize(ALL)
        await resume(peer, token)
        await request_refetch(daemon, model="Task")
        await daemon.publish(insert(row(1)))
        await first.notice("refetch")
        await peer.notice("refetch")
        assert "position" not in kinds(peer.take())


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, "invalid_params"),
        ({"items": None, "model": None}, "invalid_params"),
        ({"items": [{"dealer": "AllTasks", "query": 1}], "model": "Task"}, "invalid_params"),
        ({"model": "Nothing"}, "unknown_model"),
        ({"model": 3}, "unknown_model"),
        ({"items": []}, "invalid_item"),
        ({"items": [{"dealer": "Nobody", "query": 1}]}, "no_such_dealer"),
    ],
)
async def test_a_refetch_is_requested_by_items_or_by_model(params: Any, code: str) -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, ALL)
        answer = await daemon.post("datasync_backend", "requestRefetch", **params)
        assert (answer["type"], answer["code"]) == ("error", code)
        assert await peer.rest() == []


# Publishers that overtake each other.


async def test_a_version_is_kept_whatever_a_delta_becomes() -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, RED)
        red, blue = row(1), row(1, "blue")
        await daemon.publish(update(blue, red, version=2))
        await daemon.publish(update(red, red, version=3))
        await daemon.publish(update(red, blue, version=4))
        assert deltas(await peer.rest()) == [
            insert(red, version=2),
            update(red, red, version=3),
            delete(red, version=4),
        ]


async def test_a_delta_that_was_overtaken_leads_to_the_latest_state() -> None:
    async with datasync() as (daemon, _):
        everybody, red = await subscriber(daemon, ALL), await subscriber(daemon, RED)
        first, second, third = row(1, "red", n=1), row(1, "red", n=2), row(1, "blue", n=3)
        await daemon.publish(update(second, third, version=3))
        await daemon.publish(update(first, second, version=2))
        assert deltas(await everybody.rest()) == [
            update(second, third, version=3),
            update(first, third, version=3),
        ]
        assert deltas(await red.rest()) == [delete(second, version=3), delete(first, version=3)]


async def test_a_row_that_was_deleted_before_its_insert_was_posted_stays_away() -> None:
    async with datasync() as (daemon, _):
        peer, filtered = await subscriber(daemon, ALL), await subscriber(daemon, RED_FILTER)
        token = await daemon.authorize(ALL)
        await daemon.publish(delete(row(1), version=2))
        await daemon.publish(insert(row(1), version=1))
        late = await daemon.connect()
        await acquire(late, token)
        for seen in (await peer.rest(), await filtered.rest(), late.take()):
            assert deltas(seen) == [delete(row(1), version=2)]


@pytest.mark.parametrize("tail_bytes", [100_000, 700])
async def test_a_delta_that_was_overtaken_leads_there_in_a_replay_too(tail_bytes: int) -> None:
    async with datasync(tail_bytes=tail_bytes) as (daemon, _):
        await daemon.publish(update(row(1, "red"), row(1, "blue"), version=2))
        token = await daemon.authorize(RED)  # the page reads a blue row then, and shows none
        await daemon.publish(update(row(1, "green"), row(1, "red"), version=1))
        for n in range(10):
            await daemon.publish(insert(row(n, "grey")))
        peer = await daemon.connect()
        await acquire(peer, token)
        assert deltas(peer.take()) == []


async def test_deltas_in_order_or_without_version_are_left_alone() -> None:
    async with datasync() as (daemon, _):
        peer = await subscriber(daemon, ALL)
        batch = [
            insert(row(1), version=5),
            update(row(1), row(1, n=1), version=6),
            update(row(1, n=1), row(1, n=2), version=6),
            delete(row(1, n=2)),
            insert(row(2), version=1),
        ]
        await daemon.publish(*batch)
        assert deltas(await peer.rest()) == batch


async def test_the_key_of_a_model_tells_its_rows_apart() -> None:
    service = DataSyncService("datasync", [AllTasks], key_of=lambda model: "color")
    trusted = DataSyncBackend("datasync_backend", service)
    async with serving(service, backend=[trusted]) as daemon:
        peer = await subscriber(daemon, ALL)
        await daemon.publish(insert(row(1, "red"), version=2), insert(row(1, "blue"), version=1))
        assert len(deltas(await peer.rest())) == 2
        await daemon.publish(insert(row(2, "red"), version=1))
        assert deltas(await peer.rest()) == [insert(row(1, "red"), version=2)]


# Limits.


async def test_a_subscription_may_not_have_more_items_than_the_limit() -> None:
    async with datasync(max_items=3) as (daemon, _):
        items = [{"dealer": "TasksByColor", "query": n} for n in range(4)]
        answer = await daemon.post("datasync_backend", "authorizeSubscription", items=items)
        assert (answer["code"], answer["index"]) == ("too_many", 3)
        answer = await daemon.post("datasync_backend", "authorizeSubscription", items=items[:3])
        assert answer["type"] == "response"


async def test_a_batch_may_not_have_more_deltas_than_the_limit() -> None:
    async with datasync(max_deltas=3) as (daemon, _):
        peer = await subscriber(daemon, ALL)
        batch = [insert(row(n)) for n in range(4)]
        answer = await daemon.post("datasync_backend", "publishDeltas", deltas=batch)
        assert (answer["code"], answer["index"]) == ("too_many", 3)
        assert await peer.rest() == []
        await daemon.publish(*batch[:3])
        assert deltas(await peer.rest()) == batch[:3]


async def test_a_session_may_not_have_more_subscriptions_than_the_limit() -> None:
    async with datasync(max_subscriptions=2) as (daemon, _):
        peer = await daemon.connect()
        tokens = [await daemon.authorize(ALL) for _ in range(3)]
        await acquire(peer, tokens[0])
        await resume(peer, tokens[1])
        assert (await refused(peer, tokens[2]))[1] == "subscription_limit"
        await peer.call("datasync", "cancelSubscription", token=tokens[0])
        await acquire(peer, tokens[2])


# Who may do what.


@pytest.mark.parametrize("command", ["acquireSubscription", "cancelSubscription"])
async def test_a_call_without_a_connection_can_acquire_nothing(command: str) -> None:
    service = DataSyncService("datasync", [AllTasks])
    async with serving(backend=[service, DataSyncBackend("datasync_backend", service)]) as daemon:
        token = await daemon.authorize(ALL)
        answer = await daemon.post("datasync", command, token=token)
        assert (answer["type"], answer["code"]) == ("error", "not_connected")
    await service.engine.close()


@pytest.mark.parametrize(
    "command", ["authorizeSubscription", "publishDeltas", "publish", "revokeSubscription"]
)
async def test_a_trusted_command_is_out_of_reach_for_browsers(command: str) -> None:
    async with datasync() as (daemon, _):
        peer = await daemon.connect()
        assert (await peer.call("datasync", command))["code"] == "unknown_command"
        assert (await peer.call("datasync_backend", command))["code"] == "unknown_service"
