"""Signs of life: systemd is told that all workers listen, and one that stands still is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from syncserver.process.notify import ALIVE, READY, STOPPING, watchdog_seconds
from syncserver.process.pulse import Life, Pulse
from tests.support.daemon import process
from tests.test_workers import children

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def heard(pulse: Pulse, *numbers: int) -> None:
    for number in numbers:
        pulse.beat(number)
    pulse.wait()


def test_a_worker_listens_from_its_first_sign_of_life_until_it_has_ended() -> None:
    pulse = Pulse()
    heard(pulse, 0)
    heard(pulse, 0, 255)
    assert pulse.listening() == 2
    pulse.beat(0)  # and then it ended
    pulse.forget(0)
    assert pulse.listening() == 1


def test_a_worker_is_silent_when_nothing_came_for_as_long_as_the_watchdog_waits() -> None:
    clock = Clock()
    pulse = Pulse(6.0, clock)
    heard(pulse, 0, 1)
    for _ in range(3):
        clock.now += 2
        heard(pulse, 1)
        assert pulse.silent() == []
    clock.now += 2
    heard(pulse, 1)
    assert pulse.silent() == [0]


@pytest.mark.parametrize(("watchdog", "starts"), [(6.0, 60), (90.0, 90)])
def test_a_worker_that_starts_has_a_minute_or_as_long_as_the_watchdog_waits(
    watchdog: float, starts: int
) -> None:
    clock = Clock()
    pulse = Pulse(watchdog, clock)
    for number in range(2):
        pulse.expect(number)
    for _ in range(starts):
        clock.now += 1
        heard(pulse, 1)
        assert pulse.silent() == []
    assert pulse.listening() == 1
    clock.now += 1
    assert pulse.silent() == [0]
    pulse.forget(0)
    assert pulse.silent() == []


def test_who_was_stopped_itself_blames_nobody_for_that_time() -> None:
    clock = Clock()
    pulse = Pulse(6.0, clock)
    heard(pulse, 0)
    pulse.expect(1)
    clock.now += 3600
    assert pulse.silent() == []
    for _ in range(3):
        clock.now += 2
        assert pulse.silent() == []
    clock.now += 2
    assert pulse.silent() == [0]


def test_without_a_watchdog_nobody_is_silent() -> None:
    clock = Clock()
    pulse = Pulse(None, clock)
    heard(pulse, 0)
    clock.now += 3600
    assert (pulse.seconds, pulse.silent()) == (None, [])


def test_signs_of_life_that_nobody_reads_do_not_stop_a_worker() -> None:
    pulse = Pulse()
    for _ in range(200_000):
        pulse.beat(7)
    pulse.wait()
    assert pulse.listening() == 1


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getppid())}, None),
    ],
)
def test_systemd_says_whether_and_of_whom_it_wants_signs_of_life(
    environ: Mapping[str, str], seconds: float | None
) -> None:
    assert watchdog_seconds(environ) == seconds


async def test_a_life_without_a_watchdog_is_told_at_its_beginning_and_its_end() -> None:
    told: list[str] = []
    life = Life(told.append, None)
    life.begin()
    life.end()
    assert told == [READY, STOPPING]


# As systemd hears it.


class Systemd:
    """The socket at which it listens."""

    def __init__(self, listening: socket.socket, path: Path) -> None:
        self._listening = listening
        self.environ = {"NOTIFY_SOCKET": str(path)}

    def hear(self) -> str:
        return self._listening.recv(100).decode()

    async def until(self, wanted: str, times: int = 1) -> list[str]:
        """Return what is heard until this has come so many times, and all of it before."""
        found: list[str] = []
        while found.count(wanted) < times:
            found.append(await asyncio.to_thread(self.hear))
        return found


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(15)
        yield Systemd(listening, tmp_path / "notify")


async def test_the_watchdog_hears_that_the_event_loop_turns(
    tmp_path: Path, systemd: Systemd
) -> None:
    environ = {
        **systemd.environ,
        "WATCHDOG_USEC": "300000",
        "SYNCSERVER_STATE_DIR": str(tmp_path / "state"),
        "SYNCSERVER_FRONTEND__PORT": "0",
        "SYNCSERVER_BACKEND__PORT": "0",
    }
    async with process("serve", environ=environ) as daemon:
        assert (await systemd.until(ALIVE, 3))[0] == READY
        daemon.child.send_signal(signal.SIGTERM)
        assert set(await systemd.until(STOPPING)) <= {ALIVE, STOPPING}
        assert await daemon.ended() == 0


SUPERVISOR = """
import os, signal, sys, time
from syncserver.process import pulse as its_time
from syncserver.process.notify import notify
from syncserver.process.workers import supervise

seconds, its_time._START_SECONDS = map(float, sys.argv[1:])

def serve(number, pulse):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if number == 1:
        sys.stdin.read(1)
    notify(f"worker {number}")
    while True:
        pulse.beat(number)
        time.sleep(pulse.seconds)

sys.exit(supervise(2, serve, watchdog_seconds=seconds, settled_seconds=0))
"""


@asynccontextmanager
async def supervised(
    systemd: Systemd, seconds: float, start_seconds: float = 60
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run two workers, of which the second listens when it may read a byte."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SUPERVISOR, str(seconds), str(start_seconds)),
        env={**os.environ, **systemd.environ},
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def test_several_workers_are_ready_when_the_last_of_them_listens(systemd: Systemd) -> None:
    async with supervised(systemd, 1.5) as child:
        assert child.stdin is not None
        told = await systemd.until("worker 0")
        told += await systemd.until(ALIVE, 2)  # by then the parent has heard worker 0
        assert READY not in told
        child.stdin.write(b"x")
        assert READY not in await systemd.until("worker 1")
        assert await systemd.until(READY)
        child.terminate()
        assert READY not in await systemd.until(STOPPING)


async def test_a_worker_that_does_not_come_to_listen_is_replaced(systemd: Systemd) -> None:
    async with supervised(systemd, 1.5, start_seconds=0) as child:
        assert child.stderr is not None
        assert b"Worker 1 gives no sign of life; it is ended" in await child.stderr.readline()
        assert b"Worker 1 ended (-6) and is replaced" in await child.stderr.readline()


async def test_a_worker_that_stands_still_is_replaced(systemd: Systemd) -> None:
    async with supervised(systemd, 1.5) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        child.stdin.write(b"xx")
        await systemd.until(READY)
        first = children(child.pid)
        os.kill(first[0], signal.SIGSTOP)
        assert b"Worker 0 gives no sign of life; it is ended" in await child.stderr.readline()
        assert b"Worker 0 ended (-6) and is replaced" in await child.stderr.readline()
        await systemd.until("worker 0")
        assert first[0] not in children(child.pid)
