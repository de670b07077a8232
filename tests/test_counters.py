"""What is counted, by whom, and that labels have a bound."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from syncserver.counters import OTHER, Activity, Histogram, Tally
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import CloseCode, RefetchReason
from syncserver.protocols import base as wire
from syncserver.registry import ServiceRegistry
from syncserver.services.pubsub import PubSubService
from tests.support.calls import MemoryPeer
from tests.support.daemon import Daemon, call_body, serving, until
from tests.support.delayed import Delayed
from tests.support.sockets import Echo


def activity_of(daemon: Daemon, service: str) -> Activity:
    activity = daemon.frontend.registered_services[service].activity
    assert activity is not None
    return activity


@pytest.mark.core
def test_what_would_be_one_label_too_many_is_counted_as_other() -> None:
    tally = Tally(most=2)
    for label in ("a", "b", "c", "d", "a"):
        tally.add(label)
    assert dict(tally.items()) == {"a": 2, "b": 1, OTHER: 2}
    assert tally["never"] == 0
    assert dict(tally.items()) == {"a": 2, "b": 1, OTHER: 2}, "asking adds nothing"


@pytest.mark.core
def test_a_histogram_has_a_duration_in_the_bucket_whose_bound_it_equals() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 1.0, 7.0):
        histogram.observe(seconds)
    assert histogram.cumulative() == [2, 4, 5]
    assert histogram.seconds == pytest.approx(8.65)


async def test_messages_in_and_out_are_counted_with_their_bytes() -> None:
    registry = ServiceRegistry([Echo("echo")])
    peer = MemoryPeer(registry)
    text = json.dumps({"service": "echo", "message": "grüße"}, ensure_ascii=False)
    peer.session.receive(text.encode())
    peer.session.receive(text.encode())
    await until(lambda: bool(registry.traffic.writes))
    traffic = registry.traffic
    assert (traffic.received, traffic.received_bytes) == (2, 2 * len(text.encode()))
    assert (traffic.writes, traffic.frames) == (1, 2), "what one turn gathered is one write"
    assert traffic.sent_bytes == sum(len(text) for text in peer.texts)


@pytest.mark.core
def test_a_run_knows_how_many_texts_are_in_it() -> None:
    one = wire.Run(None, wire.Frame((b"a", b"b")))
    assert (one.text_count, wire.Run(one, wire.Frame((b"c",))).text_count) == (2, 3)


async def test_ends_are_counted_by_code_and_those_of_peers_apart() -> None:
    registry = ServiceRegistry([Echo("echo")])
    ours, theirs, both = (MemoryPeer(registry) for _ in range(3))
    ours.session.close(CloseCode.DRAIN)
    theirs.session.connection_lost()
    both.session.abort(CloseCode.SLOW)
    both.session.connection_lost()
    await until(lambda: not registry.sessions)
    assert dict(registry.traffic.closed.items()) == {"4001": 1, "peer": 1, "4008": 1}


async def test_sessions_are_known_by_what_they_came_through_and_what_they_speak() -> None:
    async with serving() as daemon:
        peer = await daemon.connect()
        await peer.rest()
        assert +daemon.frontend.traffic.opened == {("websocket", "native"): 1}
        assert list(daemon.frontend.sessions.values()) == [("websocket", "native")]


async def test_errors_are_counted_by_code_wherever_they_are_answered() -> None:
    async with serving() as daemon:
        peer = await daemon.connect()
        await peer.rest()  # asks for a service that is not there
        await peer.call("datasync", "acquireSubscription", token="none")
        await daemon.post("datasync_backend", "publishDeltas", deltas=[{"model": "no"}])
        await daemon.request(body="[]")
        await daemon.request(body="{}", headers={"X-Backend-Key": "wrong"})
        assert dict(daemon.frontend.traffic.errors.items()) == {
            "unknown_service": 1,
            "no_such_subscription": 1,
        }
        assert dict(daemon.backend.traffic.errors.items()) == {
            "invalid_delta": 1,
            "malformed": 1,
            "unauthorized": 1,
        }


async def test_handshakes_that_are_refused_are_counted_by_reason() -> None:
    async with serving() as daemon:
        port = daemon.server.frontend_port
        for headers in ({"Origin": "http://elsewhere.example"}, {}):
            url = f"http://127.0.0.1:{port}/ws"
            await daemon._client.fetch(url, headers=headers, raise_error=False)
        assert dict(daemon.frontend.traffic.refused.items()) == {"origin": 1, "handshake": 1}


# What services do.


def insert(number: int) -> dict[str, Any]:
    return {"type": "insert", "model": "Task", "data": {"id": number}}


async def test_publishes_are_counted_by_result_with_their_deltas() -> None:
    async with serving() as daemon:
        await daemon.publish(insert(1), insert(2))
        await daemon.post("datasync_backend", "publishDeltas", deltas=[{"type": "insert"}])
        key = {"Idempotency-Key": "k"}
        for number in (3, 4):
            body = call_body("datasync_backend", "publishDeltas", {"deltas": [insert(number)]})
            await daemon.request(body=body, headers=key)
        activity = activity_of(daemon, "datasync")
        assert dict(activity.publishes.items()) == {
            "ok": 2,
            "invalid_delta": 1,
            "idempotency_conflict": 1,
        }
        assert activity.published_deltas == 3
        assert activity.publish_seconds.cumulative()[-1] == 2
        await until(lambda: activity.deltas == 3)
        assert activity.entries == 2


async def test_deliveries_are_counted_for_each_session_that_gets_them() -> None:
    async with serving() as daemon:
        for _ in range(3):
            peer = await daemon.connect()
            token = await daemon.authorize(("AllTasks", None))
            await peer.call("datasync", "acquireSubscription", token=token, position=None)
        await daemon.publish(insert(1), insert(2))
        await peer.notice("delta")
        activity = activity_of(daemon, "datasync")
        assert (activity.deliveries, activity.grants) == (3, 3)
        standing = daemon.frontend.registered_services["datasync"].standing()
        assert standing is not None
        held = (standing.clients, standing.subscriptions, standing.views, standing.items)
        assert held == (3, 3, 1, 1)
        assert not standing.stale


@pytest.mark.parametrize("subscribed", [True, False])
async def test_the_lag_of_a_publish_ends_when_its_frames_were_handed_over(
    subscribed: bool,
) -> None:
    async with serving() as daemon:
        peer = await daemon.connect()
        if subscribed:
            token = await daemon.authorize(("AllTasks", None))
            await peer.call("datasync", "acquireSubscription", token=token, position=None)
        for number in range(5):
            await daemon.publish(insert(number))
        lag = activity_of(daemon, "datasync").lag_seconds
        await until(lambda: lag.cumulative()[-1] == 5)
        assert 0 < lag.seconds < 10


async def test_lag_is_measured_whichever_comes_first_the_entry_or_the_answer() -> None:
    for seed in range(10):
        engine = Delayed(MemoryEngine(), random.Random(seed))
        service = PubSubService("pubsub", engine=engine)
        registry = ServiceRegistry([service])
        peer = MemoryPeer(registry)
        await peer.call("pubsub", "subscribe", channel="c")
        for number in range(4):
            await service.do_publish("c", number)
        await until(lambda lag=service.activity.lag_seconds: lag.cumulative()[-1] == 4)
        assert service.activity.deliveries == 4
        await service.close()
        await engine.close()


async def test_what_is_lost_is_no_longer_awaited() -> None:
    service = PubSubService("pubsub")
    await service.open()
    await service.close()  # follows no more: nothing arrives
    publisher = service._publisher
    await publisher.publish(b'{"channel":1,"message":2}')
    assert len(publisher._awaited) == 1
    service.lost(RefetchReason.EPOCH)
    assert not publisher._awaited
    assert service.activity.lag_seconds.cumulative()[-1] == 0
    await service.engine.close()


async def test_acquires_resumes_and_refetches_are_counted_by_what_came_of_them() -> None:
    async with serving() as daemon:
        peer = await daemon.connect()
        tokens = [await daemon.authorize(("AllTasks", None)) for _ in range(2)]
        answer = await peer.call("datasync", "acquireSubscription", token=tokens[0], position=None)
        position = answer["data"]["position"]
        await peer.call("datasync", "acquireSubscription", token="none", position=None)
        await peer.close()
        activity = activity_of(daemon, "datasync")
        await until(lambda: not daemon.frontend.sessions)
        peer = await daemon.connect()
        await peer.call("datasync", "acquireSubscription", token=tokens[0], position=position)
        elsewhere = position.replace(position.partition(".")[0], "0" * 8)
        await peer.call("datasync", "acquireSubscription", token=tokens[1], position=elsewhere)
        await daemon.post("datasync_backend", "revokeSubscription", token=tokens[0])
        await peer.notice("refetch")
        assert dict(activity.acquires.items()) == {"ok": 1, "no_such_subscription": 1}
        assert dict(activity.resumes.items()) == {"ok": 1, "refetch": 1}
        assert dict(activity.refetches.items()) == {"epoch": 1, "revoked": 1}


async def test_what_fails_without_a_code_is_counted_as_other() -> None:
    tally = Tally()
    with pytest.raises(KeyError), tally.outcome():
        raise KeyError
    assert dict(tally.items()) == {"other": 1}


async def test_the_flusher_calls_back_when_all_that_was_due_has_been_handed_over() -> None:
    registry = ServiceRegistry([Echo("echo")])
    peers = [MemoryPeer(registry) for _ in range(600)]  # of which 256 go in a turn
    called: list[str] = []
    flusher = peers[0].session.flusher
    flusher.after(lambda: called.append("nothing was due"))
    assert called == ["nothing was due"]
    for peer in peers[:300]:
        peer.send("echo", 1)
    flusher.after(lambda: called.append("after 300"))
    for peer in peers[300:]:
        peer.send("echo", 1)
    await until(lambda: len(called) == 2)
    assert all(peer.texts for peer in peers[:300])
    assert not peers[-1].texts
    await until(lambda: bool(peers[-1].texts))
