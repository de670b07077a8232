"""What is counted, by whom, and that labels have a bound."""

from __future__ import annotations

import json

import pytest

from syncserver.counters import OTHER, Histogram, Tally
from syncserver.errors import CloseCode
from syncserver.protocols import base as wire
from syncserver.registry import ServiceRegistry
from tests.support.calls import MemoryPeer
from tests.support.daemon import serving, until
from tests.support.sockets import Echo


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
        assert dict(daemon.frontend.traffic.opened) == {("websocket", "native"): 1}
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
