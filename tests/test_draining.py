"""The end of a daemon: who is told what, in one process and in several."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.web import RequestHandler
from tornado.websocket import websocket_connect

from syncserver.services.base import Request, RPCService, rpc_command
from syncserver.siblings import Siblings
from tests.support.daemon import Daemon, call_body, process, serving, until
from tests.support.events import source
from tests.support.sockjs import OPEN, Site, polling
from tests.test_events import open_name

PREFIX = "/ws/sockjs"


class Office(RPCService):
    """A trusted service that does not come to an end."""

    @rpc_command
    async def slow(self, req: Request) -> None:
        await asyncio.get_running_loop().create_future()


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


HALVES = (
    "POST /ws/sockjs/000/x/xhr_send HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n[",
    "POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
    "GET /ws HTTP/1.1\r\nHost:",
    "",
)


@pytest.mark.seconds(60)
async def test_requests_that_have_half_arrived_at_the_end_are_no_error(tmp_path: Path) -> None:
    environ = {"SYNCSERVER_STATE_DIR": str(tmp_path)}
    environ |= {f"SYNCSERVER_{door}__PORT": "0" for door in ("FRONTEND", "BACKEND")}
    async with process("serve", environ=environ) as daemon:
        await daemon.started()
        urls = daemon.line("frontend"), daemon.line("backend")
        ports = [int(re.findall(r":(\d+)", url)[0]) for url in urls]
        lines = []
        for port in ports:
            for half in (*HALVES, call_half("backend")):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(half.encode())
                lines.append((reader, writer))
            # Whoever is answered now has come after all these.
            answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/", raise_error=False)
            assert answer.code == 404
        daemon.child.send_signal(signal.SIGTERM)
        for reader, writer in lines:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        assert await daemon.ended() == 0
    assert [line for line in daemon.log.splitlines() if " INFO " not in line] == []


def call_half(path: str) -> str:
    """Return the head of a call, whose body is to come."""
    kind = "Content-Type: application/json\r\nContent-Length: 9"
    return f"POST /{path} HTTP/1.1\r\nHost: x\r\nX-Backend-Key: none\r\n{kind}\r\n\r\n"


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


async def test_a_process_lets_clients_in_until_the_others_that_end_have_told_theirs(
    tmp_path: Path,
) -> None:
    async with pair(tmp_path) as ((first, here), (second, there)):
        assert await there.poll(of(1)) == OPEN
        endings = [asyncio.ensure_future(one.server.drain()) for one in (second, first)]
        await until(lambda: not second.frontend.sessions)
        await asyncio.wait(endings, timeout=0.1)
        assert not any(ending.done() for ending in endings)
        assert code_of(await here.poll(of(1))) == 4001
        await asyncio.gather(*endings)


async def test_a_process_that_ends_alone_waits_for_no_other(tmp_path: Path) -> None:
    async with pair(tmp_path) as ((first, _), (second, there)):
        assert await there.poll(of(1)) == OPEN
        await first.server.drain()
        assert len(second.frontend.sessions) == 1


# Who polls, and is between two polls when the end begins.


async def test_who_is_between_two_polls_is_told_and_who_is_new_is_refused() -> None:
    async with serving() as daemon, polling(daemon) as place:
        paths = [place.session(PREFIX) for _ in range(2)]
        assert [await place.poll(path) for path in paths] == [OPEN, OPEN]
        ending = asyncio.ensure_future(daemon.server.drain())
        await until(lambda: not daemon.frontend.sessions)
        answer = await place.post(f"{paths[0]}/xhr")
        frame = await answer.body()
        assert code_of(frame) == 4001
        assert 0 <= json.loads(json.loads(frame[1:])[1])["retry_after"] < 1000
        new = await place.post(f"{place.session(PREFIX)}/xhr")
        assert (new.status, new.headers["Retry-After"]) == (503, "1")
        with pytest.raises(HTTPClientError, match="503"):
            await websocket_connect(daemon.ws_url)
        assert not ending.done()
        assert code_of(await place.poll(paths[1])) == 4001
        await ending
        with pytest.raises(ConnectionRefusedError):
            await place.line()


async def test_while_calls_are_finished_who_polls_is_served_as_before() -> None:
    async with serving(backend=[Office("office")], drain_seconds=1) as daemon:
        asking = asyncio.ensure_future(daemon.request(body=call_body("office", "slow", {})))
        await until(lambda: daemon.backend.calls_under_way)
        async with polling(daemon) as place:
            path = place.session(PREFIX)
            assert await place.poll(path) == OPEN
            ending = asyncio.ensure_future(daemon.server.drain())
            await until(lambda: daemon.frontend.draining)
            await place.say(path, json.dumps({"service": "nothing", "message": {"callId": 1}}))
            [text] = json.loads((await place.poll(path))[1:])
            assert json.loads(text)["message"]["callId"] == 1
            await until(lambda: not daemon.frontend.sessions)
            assert code_of(await place.poll(path)) == 4001
            await ending
        cancel_requests()
        assert (await asking).code == 503


async def test_where_nobody_polls_nobody_gets_in_from_the_first_signal_on() -> None:
    async with serving() as daemon, polling(daemon) as place:
        path = place.session(PREFIX)
        stream = await place.streaming(path)
        await stream.take(OPEN)
        stream.abort()
        await until(lambda: not daemon.frontend.sockets)
        daemon.frontend.sockets += 1  # one that takes its time
        ending = asyncio.ensure_future(daemon.server.drain())
        await until(lambda: daemon.frontend.draining)
        with pytest.raises(ConnectionRefusedError):
            await place.line()
        daemon.frontend.sockets -= 1
        await ending


async def test_who_does_not_poll_again_is_waited_for_no_longer_than_the_drain_may_take() -> None:
    async with serving(disconnect_seconds=60, drain_seconds=0.2) as daemon:
        async with polling(daemon) as place:
            assert await place.poll(place.session(PREFIX)) == OPEN
        async with asyncio.timeout(10):
            await daemon.server.drain()
        assert not daemon.frontend.sockets
