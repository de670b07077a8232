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
from syncserver.flusher import Flusher
from syncserver.process.memory import Bound, allowed_bytes, bound_of, give_back, resident_bytes
from syncserver.process.pressure import Pressure
from syncserver.protocols import base as wire
from syncserver.protocols.native import NativeProtocol
from syncserver.services.base import Request, RPCService, rpc_command
from syncserver.session import Session
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


def allow(monkeypatch: pytest.MonkeyPatch, mebibytes: int | None) -> None:
    """Let the control group allow so much."""
    allowed = None if mebibytes is None else mebibytes * MIB
    monkeypatch.setattr("syncserver.process.memory.allowed_bytes", lambda: allowed)


def test_the_processes_share_what_is_allowed_and_a_setting_goes_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has = 40 * MIB
    allow(monkeypatch, 1_000)
    assert bound_of(Limits(), 1, has) == Bound(800 * MIB)
    assert bound_of(Limits(), 4, None) == Bound(200 * MIB)
    mine = Limits(max_process_bytes=50 * MIB)
    assert bound_of(mine, 4, has) == Bound(50 * MIB, is_set=True)
    allow(monkeypatch, None)
    assert bound_of(Limits(), 1, has) == Bound(None)
    assert Pressure.of(mine, 1, tells=False).most == 50 * MIB


@pytest.mark.parametrize(
    ("allowed", "processes", "has", "said"),
    [
        (256, 8, 40, "256 MiB are 25 MiB for each process, and it takes 128 MiB"),
        (128, 1, 40, "128 MiB are 102 MiB for each process, and it takes 128 MiB"),
        (500, 2, 150, "500 MiB are 200 MiB for each process, and it takes 300 MiB"),
    ],
)
def test_a_share_that_a_daemon_has_without_any_fault_is_no_bound(
    monkeypatch: pytest.MonkeyPatch, allowed: int, processes: int, has: int, said: str
) -> None:
    allow(monkeypatch, allowed)
    bound = bound_of(Limits(), processes, has * MIB)
    assert bound == Bound(None, note=f"not bounded, as four fifths of {said}")


def test_one_process_tells_that_memory_is_not_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "syncserver.session")
    allow(monkeypatch, 256)
    assert Pressure.of(Limits(), 8, tells=False).most is None
    assert not caplog.messages
    assert Pressure.of(Limits(), 8).most is None
    (said,) = caplog.messages
    assert said.startswith("Memory: not bounded, as four fifths of 256 MiB are 25 MiB")


def test_a_setting_below_what_the_process_has_stays_and_is_warned_of(
    expected_log: ExpectedLog,
) -> None:
    with expected_log("syncserver.session", "limits.max_process_bytes is 1 MiB, but .* raise it"):
        assert Pressure.of(Limits(max_process_bytes=MIB), 1).most == MIB


def test_the_memory_of_this_process_is_known_and_can_be_given_back() -> None:
    give_back()
    assert (resident_bytes() or 0) > MIB


class Gauge:
    """What a process has, looked at as often as one likes; a bound of 100 MiB."""

    def __init__(self) -> None:
        self.mebibytes = 0.0
        self.pressure = Pressure(100 * MIB, lambda: int(self.mebibytes * MIB))

    def is_high_with(self, mebibytes: float, looks: int = 1) -> bool:
        self.mebibytes = mebibytes
        for _ in range(looks):
            self.pressure.look([])
        return self.pressure.is_high


def test_it_is_high_until_there_is_a_twentieth_less(expected_log: ExpectedLog) -> None:
    gauge = Gauge()
    assert not gauge.is_high_with(99)
    with expected_log("syncserver.session", "101 MiB are used, limits.max_process_bytes is 100"):
        assert gauge.is_high_with(101)
    assert gauge.is_high_with(99)
    assert gauge.is_high_with(96)
    assert not gauge.is_high_with(94)
    assert not gauge.is_high_with(99)


def test_it_is_high_no_longer_once_there_is_no_more_for_a_minute(
    expected_log: ExpectedLog,
) -> None:
    gauge = Gauge()
    with expected_log("syncserver.session", "Memory is scarce"):
        assert gauge.is_high_with(120)
    assert gauge.is_high_with(97, looks=59)
    assert gauge.is_high_with(98.5), "it has grown"
    assert gauge.is_high_with(98.5, looks=59)
    assert not gauge.is_high_with(98.5)


def test_it_stays_high_while_there_is_more_than_there_may_be(expected_log: ExpectedLog) -> None:
    gauge = Gauge()
    with expected_log("syncserver.session", "Memory is scarce"):
        assert all(gauge.is_high_with(101) for _ in range(200))


def test_without_a_bound_or_a_figure_it_is_never_high() -> None:
    for pressure in (Pressure(None, lambda: 1 << 50), Pressure(1, lambda: None)):
        pressure.look([])
        assert not pressure.is_high


class Stalled:
    """A transport whose peer reads nothing."""

    def __init__(self) -> None:
        self._runs: list[wire.Run] = []

    def write(self, run: wire.Run) -> bool:
        self._runs.append(run)
        return False

    def close(self, code: int, reason: str) -> None:
        self._runs.clear()

    def held(self) -> dict[int, int]:
        return {id(run): run.size for run in self._runs}


class Crowd:
    """Sessions whose peers read nothing, in a process that has more than its 100 MiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sessions: list[Session] = []
        self.flusher = Flusher()
        self.resident = 0
        self.trims = 0
        self.pressure = Pressure(100 * MIB, lambda: self.resident)
        monkeypatch.setattr("syncserver.process.pressure.give_back", self._trim)

    def _trim(self) -> None:
        self.trims += 1

    async def wait_for(self, size: int, sessions: int = 1) -> list[Session]:
        """Let so many sessions more wait for one and the same."""
        frame = wire.Frame((b"x" * size,))
        waiting = [
            Session(
                NativeProtocol(), Stalled(), self.flusher,
                dispatch=lambda *_: None, on_end=lambda _: None, limits=Limits(),
            )
            for _ in range(sessions)
        ]  # fmt: skip
        for session in waiting:
            session.put(frame)
        await until(lambda: all(session.held() for session in waiting))
        self.sessions += waiting
        return waiting

    def look(self, mebibytes: float) -> int:
        """Have so much; return how many were closed for it."""
        before = sum(session.open for session in self.sessions)
        self.resident = int(mebibytes * MIB)
        self.pressure.look(self.sessions)
        return before - sum(session.open for session in self.sessions)


async def test_nobody_is_closed_for_what_many_wait_for(
    monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    crowd = Crowd(monkeypatch)
    await crowd.wait_for(100_000, sessions=1_000)
    with expected_log("syncserver.session", "Memory is scarce"):
        assert crowd.look(106) == 0
    assert [crowd.look(mebibytes) for mebibytes in (106, 101, 97)] == [0, 0, 0]


async def test_nobody_is_closed_where_all_of_it_is_little_beside_what_is_too_much(
    monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    crowd = Crowd(monkeypatch)
    for _ in range(3):
        await crowd.wait_for(MIB // 2)
    with expected_log("syncserver.session", "Memory is scarce"):
        assert crowd.look(106) == 0, "1.5 MiB are less than a tenth of 16"
    with expected_log("syncserver.session", "Closed 3 slow sessions"):
        assert crowd.look(101) == 3
    assert crowd.look(101) == 0


async def test_those_with_the_most_of_their_own_go_first_and_those_who_share_together(
    monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    crowd = Crowd(monkeypatch)
    pairs = [await crowd.wait_for(6 * MIB, sessions=2) for _ in range(2)]
    crowd.sessions = [session for both in zip(*pairs, strict=True) for session in both]
    (own,) = await crowd.wait_for(8 * MIB)
    with (
        expected_log("syncserver.session", "Memory is scarce"),
        expected_log("syncserver.session", "Closed 3 slow sessions"),
    ):
        assert crowd.look(101) == 3, "of 11 MiB that are too much 8 and 6 come back"
    assert not own.open
    assert sorted([one.open for one in pair] for pair in pairs) == [[False] * 2, [True] * 2]
    assert crowd.look(99) == 0, "it has no more than it may"


async def test_memory_is_given_back_at_the_start_and_after_somebody_was_closed(
    monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    crowd = Crowd(monkeypatch)
    assert (crowd.look(99), crowd.trims) == (0, 0)
    with expected_log("syncserver.session", "Memory is scarce"):
        crowd.look(101)
    for _ in range(9):
        crowd.look(101)
    assert crowd.trims == 1
    await crowd.wait_for(12 * MIB)
    with expected_log("syncserver.session", "Closed 1 slow sessions"):
        assert crowd.look(101) == 1
    for _ in range(9):
        crowd.look(99)
    assert crowd.trims == 1 + 6


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
