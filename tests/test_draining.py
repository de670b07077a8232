"""The end of a daemon: who is told what, in one process and in several."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tornado.web import RequestHandler

from syncserver.handlers.sockjs_relay import Siblings
from syncserver.services.base import Request, RPCService, rpc_command
from tests.support.daemon import Daemon, call_body, serving, until
from tests.support.events import source
from tests.support.sockjs import OPEN, Site
from tests.test_events import open_name

PREFIX = "/ws/sockjs"


class Office(RPCService):
    """A trusted service that does not come to an end."""

    @rpc_command
    async def slow(self, req: Request) -> None:
        await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def polling(daemon: Daemon) -> AsyncIterator[Site]:
    """Give a client of the daemon's SockJS."""
    [sessions] = daemon.server._sessions
    place = Site(daemon.server.frontend_port, daemon.frontend, sessions)
    try:
        yield place
    finally:
        await place.close()


@asynccontextmanager
async def pair(folder: Path, **limits: float) -> AsyncIterator[list[tuple[Daemon, Site]]]:
    """Give two daemons that are processes of one, but for their ports, with a client of each."""
    async with AsyncExitStack() as stack:
        found = []
        for number in range(2):
            siblings = Siblings(folder, number, 2)
            daemon = await stack.enter_async_context(serving(siblings=siblings, **limits))
            found.append((daemon, await stack.enter_async_context(polling(daemon))))
        yield found
        for daemon, _ in found:  # nobody comes for the end of a session
            daemon.server._sessions[0].close()


def of(number: int) -> str:
    """Return the path of a session that is of this one of the two."""
    siblings = Siblings("/nowhere", number, 2)
    return next(
        f"{PREFIX}/000/{name}" for name in map(str, range(99)) if siblings.owner(name) == number
    )


def code_of(frame: bytes) -> int:
    """Return the code of a close frame."""
    assert frame[:1] == b"c", frame
    code: int = json.loads(frame[1:])[0]
    return code


def cancel_requests() -> None:
    """Cancel all requests under way, as the end of the loop does."""
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "__qualname__", "") == RequestHandler._execute.__qualname__:
            task.cancel()


# What the end breaks off.


async def test_a_call_that_the_end_breaks_off_is_told_to_try_again_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(backend=[Office("office")]) as daemon:
        asking = asyncio.ensure_future(daemon.request(body=call_body("office", "slow", {})))
        await until(lambda: daemon.backend.calls_under_way)
        with caplog.at_level("INFO"):
            cancel_requests()
            answer = await asking
    assert (answer.code, answer.headers["Retry-After"]) == (503, "1")
    assert json.loads(answer.body)["message"]["code"] == "unavailable"
    assert "office.slow was broken off" in caplog.text


@pytest.mark.parametrize("here", [0, 1])
async def test_a_poll_that_the_end_breaks_off_is_refused_as_closing_and_logged(
    tmp_path: Path, here: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair(tmp_path) as both:
        place = both[here][1]
        assert await place.poll(of(0)) == OPEN
        line = await place.line()
        line.send("POST", f"{of(0)}/xhr")
        while b"2010" not in await place.poll(of(0)):
            pass
        with caplog.at_level("INFO"):
            cancel_requests()
            answer = await line.head()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "The end broke off a request from 127.0.0.1" in caplog.text


@pytest.mark.parametrize("here", [0, 1])
async def test_a_stream_that_the_end_breaks_off_breaks(tmp_path: Path, here: int) -> None:
    async with pair(tmp_path) as both:
        stream = await both[here][1].streaming(of(0))
        await stream.take(OPEN)
        cancel_requests()
        with pytest.raises((asyncio.IncompleteReadError, ValueError)):
            await stream.chunk()


async def test_events_that_the_end_breaks_off_break() -> None:
    async with serving() as daemon:
        name = await open_name(daemon, await daemon.authorize(("AllTasks", None)))
        async with source(daemon.server.frontend_port, name) as stream:
            await stream.until("position")
            cancel_requests()
            with pytest.raises(asyncio.IncompleteReadError):
                await stream.event()
        await until(lambda: not daemon.frontend.sessions)


# Several processes.


async def test_a_process_ends_when_what_it_passes_on_is_answered(tmp_path: Path) -> None:
    async with pair(tmp_path) as ((first, here), (second, _)):
        assert await here.poll(of(1)) == OPEN
        line = await here.line()
        line.send("POST", f"{of(1)}/xhr")
        while b"2010" not in await here.poll(of(1)):
            pass
        ending = asyncio.ensure_future(first.server.drain())
        await until(lambda: not first.server._doors["frontend"]._acceptors)
        assert not first.frontend.sockets
        await asyncio.wait([ending], timeout=0.1)
        assert not ending.done(), "the poll would end with it"
        await second.server.drain()
        answer = await line.head()
        assert (answer.status, code_of(await answer.body())) == (200, 4001)
        await ending
