"""What happens when the process has more memory than it may."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tornado.httpclient import HTTPClientError

from syncserver.config import Limits
from syncserver.process.memory import allowed_bytes, give_back, resident_bytes
from syncserver.process.pressure import Pressure
from syncserver.services.base import Request, RPCService, rpc_command
from tests.conftest import ExpectedLog
from tests.support.daemon import Daemon, Peer, call_body, serving, until
from tests.support.sockets import RawPeer

MIB = 1024 * 1024
MOST = 1 << 40


class Group:
    """The files in which Linux says what a control group may have."""

    def __init__(self, folder: Path) -> None:
        self.groups, self.root = folder / "cgroup", folder / "fs"

    def of(self, *lines: str) -> None:
        self.groups.write_text("\n".join(lines) + "\n", "ascii")

    def bound(self, place: str, text: str) -> None:
        file = self.root / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", "ascii")

    @property
    def allowed(self) -> int | None:
        return allowed_bytes(self.groups, self.root)


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path)


def test_what_systemd_or_a_container_allows_is_read_the_tightest_first(group: Group) -> None:
    group.of("0::/system.slice/syncserver.service")
    assert group.allowed is None
    group.bound("system.slice/syncserver.service/memory.max", "max")
    assert group.allowed is None
    group.bound("system.slice/memory.max", "3000000")
    assert group.allowed == 3_000_000
    group.bound("system.slice/syncserver.service/memory.max", "2000000")
    assert group.allowed == 2_000_000
    group.bound("memory.max", "1000000")
    assert group.allowed == 1_000_000


def test_the_older_groups_are_read_too(group: Group) -> None:
    group.of("5:cpu,cpuacct:/", "4:memory:/docker/abc", "1:name=systemd:/docker/abc", "0::/")
    group.bound("memory/memory.limit_in_bytes", "9223372036854771712")
    assert group.allowed is None
    group.bound("memory/memory.limit_in_bytes", "5000000")  # as a container sees its own
    assert group.allowed == 5_000_000
    group.bound("memory/docker/abc/memory.limit_in_bytes", "4000000")
    assert group.allowed == 4_000_000


def test_without_groups_everything_is_allowed(group: Group) -> None:
    assert group.allowed is None
    assert allowed_bytes() is None or allowed_bytes() > MIB


def test_the_processes_share_what_is_allowed_and_a_setting_goes_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("syncserver.process.pressure.allowed_bytes", lambda: 1_000)
    assert Pressure.of(Limits(), 1).most == 800
    assert Pressure.of(Limits(), 4).most == 200
    assert Pressure.of(Limits(max_process_bytes=500), 4).most == 500
    monkeypatch.setattr("syncserver.process.pressure.allowed_bytes", lambda: None)
    assert Pressure.of(Limits(), 1).most is None


def test_the_memory_of_this_process_is_known_and_can_be_given_back() -> None:
    give_back()
    assert (resident_bytes() or 0) > MIB


def test_it_is_high_until_there_is_a_tenth_less(expected_log: ExpectedLog) -> None:
    used: list[int | None] = [0]
    pressure = Pressure(100 * MIB, lambda: used[0])

    def is_high_with(mebibytes: int) -> bool:
        used[0] = mebibytes * MIB
        pressure.look([])
        return pressure.is_high

    assert not is_high_with(99)
    with expected_log("syncserver.session", "101 MiB are used, limits.max_process_bytes is 100"):
        assert is_high_with(101)
    assert is_high_with(99)
    assert is_high_with(91)
    assert not is_high_with(89)
    assert not is_high_with(99)


def test_without_a_bound_or_a_figure_it_is_never_high() -> None:
    for pressure in (Pressure(None, lambda: 1 << 50), Pressure(1, lambda: None)):
        pressure.look([])
        assert not pressure.is_high


class Maker(RPCService):
    @rpc_command
    def many(self, req: Request, count: int) -> None:
        for _ in range(count):
            self.send_message_to(req.client, {"type": "text", "text": "x" * 1_000})


@contextlib.asynccontextmanager
async def scarce(daemon: Daemon, expected_log: ExpectedLog) -> AsyncIterator[None]:
    """Let a daemon have little memory for a while."""
    pressure = daemon.server.pressure
    pressure._resident = lambda: MOST + 1
    with expected_log("syncserver.session", "Memory is scarce"):
        daemon.server._relieve()
    yield
    pressure._resident = lambda: 0
    daemon.server._relieve()


async def asked(daemon: Daemon, request: str) -> bytes:
    """Make a request of a browser and return all of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.server.frontend_port)
    writer.write(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode())
    writer.write(b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


async def test_while_memory_is_scarce_nobody_new_is_let_in_and_the_others_are_served(
    expected_log: ExpectedLog,
) -> None:
    async with serving(max_process_bytes=MOST, disconnect_seconds=0.1) as daemon:
        canary = await daemon.connect()
        token, late = [await daemon.authorize(("AllTasks", None)) for _ in range(2)]
        await canary.call("datasync", "acquireSubscription", token=token)
        row = {"type": "insert", "model": "Task", "data": {"id": 1}}
        items = [{"dealer": "AllTasks", "query": None}]
        authorize = call_body("datasync_backend", "authorizeSubscription", {"items": items})
        async with scarce(daemon, expected_log):
            with pytest.raises(HTTPClientError) as refused:
                await daemon.connect()
            assert refused.value.code == 503
            assert refused.value.response is not None
            assert refused.value.response.headers["Retry-After"] == "1"
            assert (await asked(daemon, "POST /ws/sockjs/0/a/xhr")).startswith(b"HTTP/1.1 503")
            assert (await asked(daemon, "POST /events")).startswith(b"HTTP/1.1 503")
            assert b"retry: 1000" in await asked(daemon, "GET /events?stream=datasync.x")
            answer = await daemon.request(body=authorize)
            assert (answer.code, answer.headers["Retry-After"]) == (503, "1")
            assert json.loads(answer.body)["message"]["code"] == "unavailable"
            ready = await daemon.request("/ready", method="GET")
            assert ready.code == 503
            assert json.loads(ready.body)["reasons"] == [
                "memory: more is used than limits.max_process_bytes"
            ]
            assert (await daemon.request("/live", method="GET")).code == 200
            await daemon.publish(row)
            assert (await canary.notice("delta"))["delta"]["data"] == {"id": 1}
            await canary.call("datasync", "acquireSubscription", token=late)
            assert daemon.frontend.traffic.refused["memory"] == 2
        assert (await daemon.request("/ready", method="GET")).code == 200
        assert (await daemon.request(body=authorize)).code == 200
        again = await daemon.connect()
        assert await again.rest() == []


async def test_the_slowest_are_closed_with_4008_until_it_would_be_enough(
    expected_log: ExpectedLog,
) -> None:
    limits = {"max_process_bytes": MOST, "max_send_buffer_bytes": 4096}
    async with serving(Maker("maker"), **limits) as daemon, contextlib.AsyncExitStack() as stack:
        canary: Peer = await daemon.connect()
        port = daemon.server.frontend_port
        for count in (300, 400, 500, 600):
            peer = await stack.enter_async_context(RawPeer.connected(port, buffer=4096))
            peer.send_json("maker", {"command": "many", "params": {"count": count}})
        sessions = daemon.frontend.sessions
        await until(lambda: sum(one.pending > 60_000 for one in sessions) == 4)
        largest = sorted(sessions, key=lambda one: one.pending)[-2:]
        excess = largest[1].pending + 1
        daemon.server.pressure._resident = lambda: 5 * excess
        daemon.server.pressure.most = round(4 * excess / 0.9)
        with (
            expected_log("syncserver.session", "Memory is scarce"),
            expected_log("syncserver.session", "Closed 2 slow sessions: memory is scarce"),
        ):
            daemon.server._relieve()
        assert [one.open for one in largest] == [False, False]
        assert daemon.frontend.traffic.closed["4008"] == 2
        daemon.server.pressure.most = excess
        with expected_log("syncserver.session", "Closed 2 slow sessions: memory is scarce"):
            await until(lambda: len(sessions) == 3)
            daemon.server._relieve()
        assert await canary.rest() == [], "who reads is not slow"
        daemon.server.pressure._resident = lambda: 0
