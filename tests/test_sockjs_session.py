"""A polling session under any order of what can happen to it: nothing lost, doubled or moved."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from syncserver.config import Limits
from syncserver.handlers.sockjs_session import PollingSession
from syncserver.handlers.sockjs_table import Sessions
from syncserver.protocols.base import Frame
from syncserver.registry import ServiceRegistry
from syncserver.timers import Wheel
from tests.support.sockjs import Plain

ASKS = 20  # more than it takes to be sent all
INTERRUPTED = [1002, "Connection interrupted"]


class Response:
    """A response whose bytes leave at once, or when the test says so; what left was received."""

    def __init__(self, client: Client, *, streams: bool, is_fast: bool) -> None:
        self.full = False
        self.waiting: list[bytes] = []
        self.has_ended = False
        self._client = client
        self._streams = streams
        self._is_fast = is_fast

    def send(self, frame: bytes) -> bool:
        assert not self.has_ended
        assert not self.waiting, "a second frame while the first is on its way"
        self.full = not self._streams
        if self._is_fast:
            self._client.received.append(frame)
        else:
            self.waiting.append(frame)
        return self._is_fast

    def end(self) -> None:
        self.has_ended = True

    def abort(self) -> None:
        self.has_ended = True

    def leave(self) -> None:
        """Let the bytes arrive."""
        self._client.received += self.waiting
        self.waiting.clear()


class Client:
    """Who asks for frames, over one response at a time."""

    def __init__(self, polling: PollingSession) -> None:
        self.polling = polling
        self.received: list[bytes] = []
        self.response: Response | None = None

    def ask(self, *, streams: bool, is_fast: bool) -> None:
        """Ask anew, unless a response is under way."""
        if self.response is None or self.response.has_ended:
            self.response = Response(self, streams=streams, is_fast=is_fast)
            self.polling.attach(self.response)

    def let_leave(self) -> None:
        """Let what is on its way arrive."""
        response = self.response
        if response is not None and response.waiting:
            response.leave()
            self.polling.left(response)

    def break_off(self) -> None:
        """Lose the connection of the response, and what is on its way in it."""
        response = self.response
        if response is not None and not response.has_ended:
            response.waiting.clear()
            response.has_ended = True
            self.polling.lost(response)

    @property
    def texts(self) -> list[str]:
        """What came in ``a`` frames."""
        frames = [frame for frame in self.received if frame.startswith(b"a")]
        return [text for frame in frames for text in json.loads(frame[1:])]

    @property
    def end(self) -> Any:
        """What the last close frame said."""
        return json.loads(self.received[-1][1:]) if self.received[-1:][0][:1] == b"c" else None


STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 3)),
    st.tuples(st.just("ask"), st.booleans(), st.booleans()),
    st.sampled_from([("leave",), ("turn",), ("turn",)]),
)


async def opened(sessions: Sessions) -> Client:
    client = Client(sessions.open("one", None, ""))
    client.ask(streams=False, is_fast=True)
    assert client.received == [b"o"]
    return client


class Talk:
    """Takes steps, and knows what a client must have seen up to each of them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.said: list[str] = []

    async def step(self, kind: str, *options: Any) -> None:
        """Take one step."""
        match kind:
            case "put":
                self.put(options[0])
            case "ask":
                self.client.ask(streams=options[0], is_fast=options[1])
            case "leave":
                self.client.let_leave()
            case "turn":
                await asyncio.sleep(0)
        texts, session = self.client.texts, self.client.polling.session
        assert texts == self.said[: len(texts)]
        if session.open:  # what has not arrived counts, so that it is bounded
            assert session.pending >= sum(map(len, self.said[len(texts) :]))

    def put(self, count: int) -> None:
        """Put so many texts, as long as the session is open."""
        session = self.client.polling.session
        for _ in range(count if session.open else 0):
            self.said.append(f"text {len(self.said)}")
            session.put(Frame((self.said[-1].encode(),)))


@given(st.lists(STEPS, max_size=30), st.booleans(), st.lists(STEPS, max_size=10))
async def test_what_is_put_arrives_once_and_in_order_whatever_happens(
    steps: list[Any], breaks: bool, later: list[Any]
) -> None:
    registry, wheel = ServiceRegistry(limits=Limits()), Wheel()
    sessions = Sessions(registry, Plain, wheel)
    talk = Talk(await opened(sessions))
    client = talk.client
    for one in steps:
        await talk.step(*one)
    if breaks:
        client.ask(streams=True, is_fast=False)
        client.break_off()
    for one in later:
        await talk.step(*one)
    for _ in range(ASKS):
        client.let_leave()
        client.ask(streams=False, is_fast=True)
        await asyncio.sleep(0)
    assert client.texts == talk.said
    assert client.end == (INTERRUPTED if breaks else None)
    assert breaks or not client.polling.session.pending
    sessions.close()
    assert not registry.sockets
    assert not registry.sessions
    wheel.close()


async def test_a_response_that_comes_as_the_session_is_forgotten_is_told_so() -> None:
    registry, wheel = ServiceRegistry(limits=Limits()), Wheel()
    sessions = Sessions(registry, Plain, wheel)
    client = await opened(sessions)
    client.polling.forget()
    client.ask(streams=True, is_fast=True)
    assert client.end == INTERRUPTED
    assert client.response is not None
    assert client.response.has_ended
    assert not registry.sessions
    wheel.close()


async def test_a_session_that_waits_costs_a_few_kilobytes() -> None:
    count = 500
    registry, wheel = ServiceRegistry(limits=Limits()), Wheel()
    sessions = Sessions(registry, Plain, wheel)
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            sessions.open(f"session-{number}", None, "127.0.0.1")
        gc.collect()
        cost = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    sessions.close()
    wheel.close()
    assert cost < 4096
