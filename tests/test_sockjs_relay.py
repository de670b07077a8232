"""Several processes on one port: a request reaches the session wherever it came in."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from syncserver.admission.gate import Seats
from syncserver.siblings import Siblings
from tests.conftest import ExpectedLog
from tests.support.daemon import until
from tests.support.sockjs import BUSY, FORM, OPEN, Site, site
from tests.test_sockjs import beheaded, put

INTERRUPTED = b'c[1002,"Connection interrupted"]\n'
GIVEN: dict[str, Any] = {"origins": ["https://good.example"]}


@asynccontextmanager
async def pair(folder: Path, **options: Any) -> AsyncIterator[tuple[Site, Site]]:
    """Give two servers that share their sessions; each has a port of its own here."""
    async with AsyncExitStack() as stack:
        both = [
            await stack.enter_async_context(site(siblings=Siblings(folder, number, 2), **options))
            for number in range(2)
        ]
        yield both[0], both[1]


def of(number: int, folder: Path) -> str:
    """Return the path of a session that is of this one of the two."""
    ids = (f"/echo/000/id-{tries}" for tries in range(1000))
    return next(p for p in ids if Siblings(folder, 0, 2).owner(p.rpartition("/")[2]) == number)


@pytest.mark.parametrize("owner", [0, 1])
async def test_every_request_finds_the_session_wherever_it_comes_in(
    tmp_path: Path, owner: int
) -> None:
    path = of(owner, tmp_path)
    async with pair(tmp_path) as (first, second):
        for here, there in ((first, second), (second, first)):
            found = await here.poll(path)
            assert found == OPEN
            await there.say(path, "\U0001f9c0", "b")
            texts: list[str] = []
            while len(texts) < 2:
                texts += json.loads((await there.poll(path))[1:])
            assert texts == ["\U0001f9c0", "b"]
            stream = await here.streaming(path)
            await there.say(path, "x")
            await stream.take(b'a["x"]\n')
            assert await there.poll(path) == BUSY
            stream.abort()
            await until(lambda: not first.registry.sessions and not second.registry.sessions)
            assert await there.poll(path) == INTERRUPTED
            (first, second)[owner].sessions.close()
        assert [len(one.sessions) for one in (first, second)] == [0, 0]


@pytest.mark.parametrize("here", [0, 1])
async def test_an_answer_is_the_same_wherever_it_comes_in(tmp_path: Path, here: int) -> None:
    path = of(0, tmp_path)
    headers = {"Origin": "https://good.example"}
    async with pair(tmp_path, max_inbox_bytes=1000, **GIVEN) as both:
        place = both[here]
        line = await place.line()  # one connection for all of them
        for method, name, body, status, kind in (
            ("POST", "xhr_send", '["x"]', 404, "text/plain"),
            ("POST", "xhr", "", 200, "application/javascript"),
            ("POST", "xhr_send", '["x"]', 204, "text/plain"),
            ("POST", "xhr_send", '["x', 500, "text/plain"),
            ("POST", "xhr_send", "", 500, "text/plain"),
            ("POST", "jsonp_send", "d=%5B%5D", 200, "text/plain"),
            ("GET", "jsonp?c=name", "", 200, "application/javascript"),
            ("OPTIONS", "xhr", "", 204, ""),
        ):
            given = headers | (FORM if name == "jsonp_send" else {})
            answer = await line.request(method, f"{path}/{name}", body, given)
            assert answer.status == status, name
            assert answer.headers.get("Content-Type", "").startswith(kind), name
            assert answer.headers.get_list("Access-Control-Allow-Origin") == [headers["Origin"]]
            assert len(answer.headers.get_list("Cache-Control")) == 1
            if "Content-Length" in answer.headers:
                await answer.body()
        assert (await place.post(f"{path}/xhr_send", "x" * 2000, **headers)).status == 413


async def test_a_session_knows_the_address_of_its_client(tmp_path: Path) -> None:
    async with pair(tmp_path) as (first, second):
        answer = await second.post(f"{of(0, tmp_path)}/xhr", X_Forwarded_For="6.6.6.6")
        assert await answer.body() == OPEN
        assert [one.remote_address for one in first.registry.sessions] == ["127.0.0.1"]


@pytest.mark.parametrize("name", ["xhr_streaming", "eventsource"])
async def test_a_client_that_does_not_read_is_slow_through_another_process_too(
    tmp_path: Path, name: str
) -> None:
    method = "POST" if name == "xhr_streaming" else "GET"
    limits = {"disconnect_seconds": 0.5, "max_response_bytes": 2**40, "max_outbox_bytes": 2**24}
    async with pair(tmp_path, **limits) as (first, second):
        _, answer = await beheaded(second, f"{of(0, tmp_path)}/{name}", method)
        await until(lambda: first.registry.sessions)
        while first.registry.sessions:
            put(first, b"x" * 500_000)
            await asyncio.sleep(0)
        await until(lambda: not len(first.sessions))
        with pytest.raises((asyncio.IncompleteReadError, ValueError)):
            await answer.body()  # it was cut here too


async def test_a_session_whose_process_is_away_is_out_of_reach(tmp_path: Path) -> None:
    async with site(siblings=Siblings(tmp_path, 0, 2)) as place:
        for name in ("xhr", "xhr_streaming", "xhr_send"):
            answer = await place.post(f"{of(1, tmp_path)}/{name}", '["x"]')
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert await place.poll(of(0, tmp_path)) == OPEN


async def test_a_process_that_is_just_starting_is_waited_for(tmp_path: Path) -> None:
    async with site(siblings=Siblings(tmp_path, 0, 2)) as first:
        early = asyncio.ensure_future(first.poll(of(1, tmp_path)))
        await asyncio.sleep(0.1)
        assert not early.done()
        async with site(siblings=Siblings(tmp_path, 1, 2)):
            assert await early == OPEN


async def test_what_is_passed_on_has_a_seat_like_a_connection(tmp_path: Path) -> None:
    other = Siblings(tmp_path, 1, 2)
    seats = other.seats = Seats(2)
    async with site(siblings=Siblings(tmp_path, 0, 2)) as first, site(siblings=other) as second:
        stream = await second.streaming(of(0, tmp_path))
        await stream.take(OPEN)
        assert seats.taken == 1
        seats.taken += 1
        answer = await second.post(f"{of(0, tmp_path)}/xhr_send", '["x"]')
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        stream.abort()
        await until(lambda: seats.taken == 1)
        await until(lambda: not first.registry.sessions)


async def test_without_a_descriptor_a_request_is_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with site(siblings=Siblings(tmp_path, 0, 2)) as place:
        with expected_log("syncserver.sockjs", "Too many open files"), monkeypatch.context() as m:
            m.setattr("syncserver.handlers.sockjs_relay.open_stream", exhausted)
            answer = await place.post(f"{of(1, tmp_path)}/xhr")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_a_process_that_goes_breaks_what_it_answers(tmp_path: Path) -> None:
    async with site(siblings=Siblings(tmp_path, 0, 2)) as first:
        async with site(siblings=Siblings(tmp_path, 1, 2)):
            stream = await first.streaming(of(1, tmp_path))
            await stream.take(OPEN)
        with pytest.raises((asyncio.IncompleteReadError, ValueError)):
            await stream.chunk()
