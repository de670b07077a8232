"""Channels over real sockets: S14 to S18."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from syncserver.config import Limits
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import CloseCode
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.services.pubsub import PubSubBackend, PubSubService
from syncserver.session import Client
from tests.conftest import ExpectedLog
from tests.support.calls import MemoryPeer, backend_call, turns
from tests.support.daemon import Daemon, Peer, serving
from tests.support.toy import FailingProtocol, ToyProtocol

CHANNELS = [
    "news",
    "",
    1,
    0,
    -1.5,
    True,
    False,
    None,
    "1",
    [],
    [1, "a"],
    {},
    {"room": 1},
    {"room": 1, "floor": [2, None]},
    {"room": True},
]


@asynccontextmanager
async def pubsub(**limits: Any) -> AsyncIterator[tuple[Daemon, PubSubService]]:
    service = PubSubService("pubsub", limits=Limits(**limits))
    trusted = PubSubBackend("pubsub_backend", service)
    async with serving(service, backend=[trusted], **limits) as daemon:
        yield daemon, service


async def subscriber(daemon: Daemon, *channels: Any) -> Peer:
    peer = await daemon.connect()
    for channel in channels:
        answer = await peer.call("pubsub", "subscribe", channel=channel)
        assert answer["type"] == "response"
        assert answer["data"] is None
    return peer


def message(channel: Any, content: Any) -> dict[str, Any]:
    return {"type": "message", "channel": channel, "message": content}


async def test_s14_what_one_client_publishes_reaches_another_exactly() -> None:
    async with pubsub() as (daemon, _):
        reader, writer = await subscriber(daemon, "c"), await daemon.connect()
        answer = await writer.call("pubsub", "publish", channel="c", message={"x": [1, None]})
        assert answer["data"] is None
        assert await reader.read() == {
            "service": "pubsub",
            "message": {"type": "message", "channel": "c", "message": {"x": [1, None]}},
        }
        assert await writer.rest() == []


async def test_s15_who_unsubscribed_hears_nothing() -> None:
    async with pubsub() as (daemon, _):
        peer, other = await subscriber(daemon, "c"), await subscriber(daemon, "c")
        assert (await peer.call("pubsub", "unsubscribe", channel="c"))["data"] is None
        await other.call("pubsub", "publish", channel="c", message=1)
        assert await peer.rest() == []
        assert other.take() == [message("c", 1)]
        await subscriber(daemon, "c")
        assert (await peer.call("pubsub", "subscribe", channel="c"))["data"] is None
        await other.call("pubsub", "publish", channel="c", message=2)
        assert await peer.rest() == [message("c", 2)]


async def test_s16_publishing_on_an_empty_channel_is_fine() -> None:
    async with pubsub() as (daemon, _):
        peer = await daemon.connect()
        assert (await peer.call("pubsub", "publish", channel="c", message=1))["data"] is None
        answer = await daemon.post("pubsub_backend", "publish", channel="c", message=1)
        assert answer == {"type": "response", "data": None}


class Restricted(PubSubService):
    """Lets browsers publish on one channel, and hear all but one."""

    def can_publish(self, client: Client, channel: Any) -> bool:
        return channel == "open"

    def can_subscribe(self, client: Client, channel: Any) -> bool:
        return channel != "secret"


async def test_a_channel_that_a_service_keeps_for_itself_cannot_be_heard() -> None:
    service = Restricted("pubsub")
    async with serving(service, backend=[PubSubBackend("trusted", service)]) as daemon:
        peer = await daemon.connect()
        answer = await peer.call("pubsub", "subscribe", channel="secret")
        assert (answer["message"], answer["code"]) == ("Not authorized", "not_authorized")
        await daemon.post("trusted", "publish", channel="secret", message=1)
        assert await peer.rest() == []


async def test_s17_a_restricted_channel_is_for_the_backend_alone() -> None:
    service = Restricted("pubsub")
    async with serving(service, backend=[PubSubBackend("trusted", service)]) as daemon:
        peer = await subscriber(daemon, "open", "closed")
        answer = await peer.call("pubsub", "publish", channel="closed", message=1)
        assert (answer["message"], answer["code"]) == ("Not authorized", "not_authorized")
        assert await peer.rest() == []
        await peer.call("pubsub", "publish", channel="open", message=2)
        assert peer.take() == [message("open", 2)]
        await daemon.post("trusted", "publish", channel="closed", message=3)
        assert await peer.rest() == [message("closed", 3)]


async def test_s17_the_daemon_lets_no_browser_publish_unless_it_was_told_to() -> None:
    async with serving() as daemon:
        peer = await subscriber(daemon, "c")
        answer = await peer.call("pubsub", "publish", channel="c", message=1)
        assert answer["message"] == "Not authorized"


async def test_s18_a_second_subscribe_and_a_second_unsubscribe_are_refused() -> None:
    async with pubsub() as (daemon, _):
        peer = await subscriber(daemon, "c")
        answer = await peer.call("pubsub", "subscribe", channel="c")
        assert (answer["message"], answer["code"]) == ("Already subscribed", "already_subscribed")
        await peer.call("pubsub", "unsubscribe", channel="c")
        answer = await peer.call("pubsub", "unsubscribe", channel="c")
        assert (answer["message"], answer["code"]) == ("Not subscribed", "not_subscribed")


async def test_s18_a_client_that_leaves_is_forgotten() -> None:
    async with pubsub() as (daemon, service):
        leaving, staying = await subscriber(daemon, "a", "b"), await subscriber(daemon, "b")
        await leaving.close()
        await staying.call("pubsub", "publish", channel="b", message=1)
        assert staying.take() == [message("b", 1)]
        assert len(service._channels) == 1
        assert len(service._subscribers) == 1
        await staying.call("pubsub", "unsubscribe", channel="b")
        assert not service._channels
        assert not service._subscribers


@pytest.mark.parametrize(("one", "same"), [(1, 1.0), ({"a": 1, "b": 2}, {"b": 2.0, "a": 1})])
async def test_equal_json_values_are_one_channel(one: Any, same: Any) -> None:
    async with pubsub() as (daemon, _):
        peer = await subscriber(daemon, one)
        answer = await peer.call("pubsub", "subscribe", channel=same)
        assert answer["message"] == "Already subscribed"
        await daemon.post("pubsub_backend", "publish", channel=same, message="x")
        assert await peer.rest() == [message(same, "x")]


async def test_s18_every_json_value_is_a_channel_of_its_own() -> None:
    async with pubsub() as (daemon, _):
        peers = [await subscriber(daemon, channel) for channel in CHANNELS]
        for number, channel in enumerate(CHANNELS):
            await daemon.post("pubsub_backend", "publish", channel=channel, message=number)
        for number, peer in enumerate(peers):
            [heard] = await peer.rest()
            assert repr(heard) == repr(message(CHANNELS[number], number))


async def test_the_own_message_comes_before_the_response() -> None:
    async with pubsub() as (daemon, _):
        peer = await subscriber(daemon, "c")
        answer = await peer.call("pubsub", "publish", channel="c", message=1)
        assert peer.take() == [message("c", 1)]
        assert answer["type"] == "response"


async def test_messages_come_in_the_order_in_which_they_were_published() -> None:
    async with pubsub() as (daemon, _):
        peer, writer = await subscriber(daemon, "a", "b"), await daemon.connect()
        calls = [
            writer.begin_call("pubsub", "publish", channel="ab"[n % 2], message=n)
            for n in range(50)
        ]
        for call in calls:
            await writer.answer(call)
        assert [heard["message"] for heard in await peer.rest()] == list(range(50))


@pytest.mark.parametrize(
    "params",
    [{}, {"channel": 1}, {"message": 1}, {"channel": 1, "message": 1, "more": 1}],
)
async def test_publishing_takes_a_channel_and_a_message(params: Any) -> None:
    async with pubsub() as (daemon, _):
        peer = await daemon.connect()
        assert (await peer.call("pubsub", "publish", **params))["message"] == "Invalid params"
        answer = await daemon.post("pubsub_backend", "publish", **params)
        assert answer["message"] == "Invalid params"


async def test_join_and_leave_are_other_names() -> None:
    async with pubsub() as (daemon, _):
        peer = await daemon.connect()
        assert (await peer.call("pubsub", "join", channel="c"))["data"] is None
        await daemon.post("pubsub_backend", "publish", channel="c", message=1)
        assert await peer.rest() == [message("c", 1)]
        assert (await peer.call("pubsub", "leave", channel="c"))["data"] is None
        assert (await peer.call("pubsub", "leave", channel="c"))["message"] == "Not subscribed"


async def test_one_session_may_not_have_more_channels_than_the_limit() -> None:
    async with pubsub(max_subscriptions=2) as (daemon, _):
        peer, other = await subscriber(daemon, 1, 2), await subscriber(daemon, 1)
        answer = await peer.call("pubsub", "subscribe", channel=3)
        assert answer["code"] == "subscription_limit"
        await peer.call("pubsub", "unsubscribe", channel=1)
        assert (await peer.call("pubsub", "subscribe", channel=3))["type"] == "response"
        await daemon.post("pubsub_backend", "publish", channel=1, message="x")
        assert await other.rest() == [message(1, "x")]


async def test_a_message_published_again_with_its_idempotency_key_is_sent_once() -> None:
    service = PubSubService("pubsub")
    backend = ServiceRegistry([PubSubBackend("trusted", service)])
    peer = MemoryPeer(ServiceRegistry([service]))
    await peer.call("pubsub", "subscribe", channel=1)
    for _ in range(2):
        await backend_call(backend, "trusted", "publish", key="k", channel=1, message="x")
    await turns()
    assert len(peer.take()) == 1
    answer = await backend_call(backend, "trusted", "publish", key="k", channel=1, message="y")
    assert answer["code"] == "idempotency_conflict"
    peer.session.connection_lost()
    await service.close()
    await service.engine.close()


@pytest.mark.parametrize("protocol", [NativeProtocol, ToyProtocol])
async def test_a_message_is_encoded_once_for_all_who_may_share_it(protocol: Any) -> None:
    encoded = []

    class Counting(protocol):
        def encode(self, event: Any) -> Any:
            encoded.append(event)
            return super().encode(event)

    service = PubSubService("pubsub")
    registry = ServiceRegistry([service])
    peers = [MemoryPeer(registry, Counting) for _ in range(5)]
    for peer in peers:
        await peer.call("pubsub", "subscribe", channel=1)
    encoded.clear()
    await service.do_publish(1, "x")
    await turns()
    assert [len(peer.take()) for peer in peers] == [1] * 5
    assert len(encoded) == (1 if Counting.shared else 5)
    await service.close()
    await service.engine.close()


@pytest.mark.parametrize(("depth", "taken"), [(63, True), (64, False)])
async def test_what_is_taken_of_a_program_is_delivered_however_deep_it_is(
    depth: int, taken: bool
) -> None:
    service = PubSubService("pubsub")
    peer = MemoryPeer(ServiceRegistry([service]))
    await peer.call("pubsub", "subscribe", channel=1)
    content: Any = 0
    for _ in range(depth):
        content = [content]
    if taken:
        await service.do_publish(1, content)
    else:
        with pytest.raises(ValueError, match="nested deeper"):
            await service.do_publish(1, content)
    await turns()
    told = [envelope["message"] for envelope in peer.take()]
    assert told == ([message(1, content)] if taken else [])
    await service.close()
    await service.engine.close()


@pytest.mark.parametrize("what", ["message", "staleness"])
async def test_a_protocol_that_fails_on_what_all_are_told_ends_its_own_session_alone(
    what: str, expected_log: ExpectedLog
) -> None:
    service = PubSubService("pubsub")
    registry = ServiceRegistry([service])
    kinds = [ToyProtocol, FailingProtocol, NativeProtocol]
    peers = [MemoryPeer(registry, kind) for kind in kinds]
    for peer in peers:
        await peer.call("pubsub", "subscribe", channel=1)
    with expected_log("syncserver.session", "cannot be told"):
        if what == "message":
            await service.do_publish(1, "x")
        else:
            service.freshness(stale=True)
        await turns()
    assert [len(peer.take()) for peer in peers] == [1, 0, 1]
    assert [peer.closed for peer in peers] == [None, (CloseCode.INTERNAL, ""), None]
    await service.close()
    await service.engine.close()


async def test_two_nodes_on_one_engine_are_one() -> None:
    engine = MemoryEngine()
    nodes = [PubSubService("pubsub", engine=engine) for _ in range(2)]
    peers = [MemoryPeer(ServiceRegistry([node])) for node in nodes]
    for peer in peers:
        await peer.call("pubsub", "subscribe", channel="c")
    await peers[0].call("pubsub", "publish", channel="c", message=1)
    await turns()
    assert [envelope["message"] for envelope in peers[1].take()] == [message("c", 1)]
    for node in nodes:
        await node.close()
    await engine.close()
