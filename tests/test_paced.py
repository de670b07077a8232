"""How many HTTP requests a browser may make, and who else is held up by that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from syncserver.apikeys import ApiKey, KeyRing
from syncserver.config import Limits
from syncserver.counters import Tally
from syncserver.handlers import paced
from syncserver.handlers.paced import Pace
from tests.support.daemon import KEY, SECONDS, Daemon, call_body, serving, settings, until

PER_SECOND = 4
AT_ONCE = 5 * PER_SECOND  # twice as many after a rest
GET = "GET /ws/sockjs HTTP/1.1\r\nHost: x\r\n{lines}\r\n"
POLL = "POST /ws/sockjs/000/{session}/xhr HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: 0\r\n\r\n"


class Context:
    """What Tornado knows of a connection."""

    def __init__(self, own: str, remote: str = "") -> None:
        self.address: Any = (own, 1) if own else ""
        self.remote_ip = remote or own or "0.0.0.0"


HEADERS = HTTPHeaders({"Host": "x"})


def taken(
    pace: Pace,
    *contexts: Any,
    path: str = "/",
    headers: HTTPHeaders = HEADERS,
    proxy: bool = False,
    count: int = 100,
) -> int:
    """Return how many of so many requests in turn may come."""
    waits = [
        pace.wait_seconds(contexts[number % len(contexts)], path, headers, proxy=proxy)
        for number in range(count)
    ]
    assert all(wait <= 1 / PER_SECOND for wait in waits)
    return waits.count(0.0)


@pytest.fixture
def pace() -> Pace:
    keys = KeyRing([ApiKey.of(KEY)])
    return Pace(Limits(requests_per_second=PER_SECOND), Tally(), ("/backend",), keys)


once = range(AT_ONCE, 2 * AT_ONCE + 2)
twice = range(2 * AT_ONCE, 4 * AT_ONCE + 4)


def test_an_address_of_the_internet_counts_for_all_its_connections(pace: Pace) -> None:
    assert taken(pace, Context("8.8.8.8"), Context("8.8.8.8")) in once
    assert taken(pace, Context("2a00:1:2:3::1"), Context("2a00:1:2:3::2")) in once
    assert taken(pace, Context("9.9.9.9"), count=10) == 10


def test_whom_a_trusted_proxy_names_counts_alone_whichever_address_it_is(pace: Pace) -> None:
    one, other = Context("10.0.0.1", "10.1.1.1"), Context("10.0.0.1", "10.1.1.2")
    assert taken(pace, one, Context("", "10.1.1.1"), proxy=True) in once
    assert taken(pace, other, proxy=True, count=10) == 10


@pytest.mark.parametrize(
    ("address", "proxy"), [("127.0.0.1", False), ("10.0.0.1", False), ("", True), ("8.8.8.8", True)]
)
def test_of_any_other_each_connection_counts_for_itself(
    pace: Pace, address: str, proxy: bool
) -> None:
    connections = Context(address), Context(address)
    assert taken(pace, *connections, proxy=proxy, count=200) in twice
    assert taken(pace, Context(address), proxy=proxy, count=10) == 10
    del connections
    assert len(pace._connections) <= 1, "those that are closed are remembered"


@pytest.mark.parametrize("name", ["X-Backend-Key: ", "Authorization: Bearer "])
def test_whoever_has_a_key_is_not_counted_where_browsers_are(pace: Pace, name: str) -> None:
    right, wrong = HTTPHeaders.parse(name + KEY), HTTPHeaders.parse(name + "wrong")
    context = Context("8.8.8.8")
    assert taken(pace, context, path="/backend?x", headers=right) == 100
    assert taken(pace, context, path="/", headers=right) in once
    assert taken(pace, Context("9.9.9.9"), path="/backend", headers=wrong) in once
    assert taken(pace, Context("1.1.1.1"), path="/backend") in once


def test_whoever_has_a_key_that_is_over_is_counted() -> None:
    over = replace(ApiKey.of(KEY), expires=datetime.now(UTC))
    pace = Pace(Limits(requests_per_second=PER_SECOND), Tally(), ("/ready",), KeyRing([over]))
    headers = HTTPHeaders({"X-Backend-Key": KEY})
    assert taken(pace, Context("8.8.8.8"), path="/ready", headers=headers) in once


def test_a_head_of_many_lines_counts_as_several() -> None:
    pace = Pace(Limits(requests_per_second=PER_SECOND), Tally())
    headers = HTTPHeaders()
    for _ in range(32 * AT_ONCE):
        headers.add("X", "y")
    context = Context("8.8.8.8")
    assert pace.wait_seconds(context, "/", headers, proxy=False)
    assert taken(pace, context) in once


class Wire:
    """A connection that makes requests and reads their statuses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: str, count: int = 1) -> list[tuple[int, bytes]]:
        """Make a request so often at once; return statuses and heads."""
        self.writer.write(request.encode() * count)
        answers = []
        async with asyncio.timeout(SECONDS):
            for _ in range(count):
                head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].split(b"\r\n")[0]
                await self.reader.readexactly(int(length or 0))
                answers.append((int(head.split()[1]), head))
        return answers


@contextlib.asynccontextmanager
async def wire(daemon: Daemon) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.server.frontend_port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def busy(*proxies: str, **backend: Any) -> AsyncIterator[Daemon]:
    config = settings(requests_per_second=PER_SECOND, disconnect_seconds=0.1)
    door = replace(config.frontend, trusted_proxies=proxies)
    config = replace(config, frontend=door, backend=replace(config.backend, **backend))
    async with serving(config=config) as daemon:
        yield daemon


async def test_too_many_requests_are_429_and_the_connection_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paced, "HOLD_SECONDS", 0.0)
    async with busy() as daemon, wire(daemon) as one, wire(daemon) as other:
        canary = await daemon.connect()
        answers = await one.ask(GET.format(lines=""), 3 * AT_ONCE)
        refused = [head for status, head in answers if status == 429]
        assert len(answers) - len(refused) in once
        assert {status for status, _ in answers} == {200, 429}
        assert all(b"\r\nretry-after: 1\r\n" in head for head in refused)
        assert daemon.frontend.traffic.refused["requests"] == len(refused)
        assert (await other.ask(GET.format(lines="")))[0][0] == 200
        assert await canary.rest() == []
        body = "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345"
        assert {status for status, _ in await one.ask(body, AT_ONCE)} <= {404, 429}


async def test_a_request_too_many_waits_and_holds_up_no_other_connection() -> None:
    async with busy() as daemon, wire(daemon) as one, wire(daemon) as other:
        one.writer.write(GET.format(lines="").encode() * (3 * AT_ONCE))
        async with asyncio.timeout(SECONDS):
            while not daemon.frontend.traffic.refused["requests"]:
                await asyncio.sleep(0)
        refused = asyncio.ensure_future(one.reader.readuntil(b"HTTP/1.1 429"))
        for _ in range(10):
            assert (await other.ask(GET.format(lines="")))[0][0] == 200
        assert not refused.done()
        async with asyncio.timeout(SECONDS):
            await refused


async def test_behind_a_proxy_clients_are_told_apart_if_it_is_trusted_and_not_held_up_if_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paced, "HOLD_SECONDS", 0.0)
    flood, calm = ("X-Forwarded-For: 8.8.8.8\r\n", "X-Forwarded-For: 9.9.9.9\r\n")
    async with busy("127.0.0.1") as daemon, wire(daemon) as one, wire(daemon) as other:
        statuses = [status for status, _ in await one.ask(GET.format(lines=flood), 3 * AT_ONCE)]
        assert 429 in statuses
        statuses = [status for status, _ in await other.ask(GET.format(lines=flood), AT_ONCE)]
        assert 429 in statuses
        opened = POLL.format(session="calm", lines=calm)
        assert (await one.ask(opened))[0][0] == 200
    async with busy() as daemon, wire(daemon) as one, wire(daemon) as other:
        await one.ask(GET.format(lines=flood), 3 * AT_ONCE)
        assert (await other.ask(POLL.format(session="calm", lines=calm)))[0][0] == 200


async def test_who_goes_while_a_request_is_held_is_forgotten() -> None:
    async with busy() as daemon:
        async with wire(daemon) as one:
            one.writer.write(GET.format(lines="").encode() * (3 * AT_ONCE))
            async with asyncio.timeout(SECONDS):
                while not daemon.frontend.traffic.refused["requests"]:
                    await asyncio.sleep(0)
            one.writer.transport.abort()
        async with asyncio.timeout(SECONDS):
            while daemon.server._doors["frontend"].gate.open:
                await asyncio.sleep(0)


async def test_requests_that_are_held_do_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paced, "HOLD_SECONDS", 3600.0)
    async with busy() as daemon, contextlib.AsyncExitStack() as wires:
        for _ in range(12):
            one = await wires.enter_async_context(wire(daemon))
            one.writer.write(GET.format(lines="").encode() * (10 * AT_ONCE))
        refused = daemon.frontend.traffic.refused
        await until(lambda: refused["requests"] == 12)
        async with asyncio.timeout(SECONDS):
            await daemon.server.stop()
            while daemon.server._doors["frontend"].gate.open:
                await asyncio.sleep(0)
        assert refused["requests"] == 12, "what was sent before is gone on with"


@pytest.mark.parametrize("path", ["/live", "/ready", "/metrics", "/backend"])
async def test_whoever_has_no_key_is_held_up_at_the_paths_of_the_web_app_too(path: str) -> None:
    async with busy(on_frontend=True) as daemon, wire(daemon) as one:
        one.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * (3 * AT_ONCE))
        await until(lambda: daemon.frontend.traffic.refused["requests"])


async def test_the_web_app_at_the_browsers_door_is_not_held_up() -> None:
    async with busy(on_frontend=True) as daemon:
        call = call_body("datasync_backend", "publishDeltas", {"deltas": []})
        answers = [await daemon.request(body=call) for _ in range(2 * AT_ONCE + 5)]
        assert {answer.code for answer in answers} == {200}
