"""A daemon on a SQLite file, killed as often as one likes: nobody has to notice.

Real processes, real sockets, ``kill -9`` at seeded random moments in the middle of publishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPRequest, HTTPResponse
from tornado.websocket import websocket_connect

from tests.conftest import ExpectedLog
from tests.support.daemon import KEY, DaemonProcess, Peer, call_body, process

KILLS = 22
PUBLISHERS = 3
GONE = (OSError, EOFError, HTTPError)
ITEMS = [{"dealer": "AllTasks", "query": None}]

Change = tuple[int, int]  # publisher, number


class Site:
    """A web app beside a daemon that is on one file and two ports, whenever it runs.

    ``acknowledged`` is what was answered with 200, in the order of each publisher.
    """

    def __init__(self, path: Path, level: str) -> None:
        self.url = f"sqlite://{path}?synchronous={level}"
        self.ports = ["0", "0"]
        self.up = asyncio.Event()
        self.changed = asyncio.Event()
        self.acknowledged: list[Change] = []
        self.client = AsyncHTTPClient(force_instance=True, max_clients=100)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DaemonProcess]:
        """Run a daemon and kill it at the end."""
        environ = {
            "SYNCSERVER_ENGINE": self.url,
            "SYNCSERVER_BACKEND__API_KEYS": KEY,
            "SYNCSERVER_FRONTEND__PORT": self.ports[0],
            "SYNCSERVER_BACKEND__PORT": self.ports[1],
        }
        async with process("serve", environ=environ) as daemon:
            await daemon.started()
            doors = [daemon.line(name).split("/")[2] for name in ("frontend", "backend")]
            self.ports = [door.partition(":")[2] for door in doors]
            self.up.set()
            try:
                yield daemon
            finally:
                self.up.clear()

    async def kill(self, daemon: DaemonProcess) -> None:
        """Kill a daemon, which has no say in it, and see it dead."""
        self.up.clear()
        os.kill(daemon.child.pid, signal.SIGKILL)
        assert await daemon.ended() == -signal.SIGKILL

    async def fetch(self, path: str, **options: Any) -> HTTPResponse:
        url = f"http://127.0.0.1:{self.ports[1]}{path}"
        return await self.client.fetch(HTTPRequest(url, **options), raise_error=False)

    async def post(self, command: str, key: str | None = None, **params: Any) -> HTTPResponse:
        headers = {"X-Backend-Key": KEY, "Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        body = call_body("datasync_backend", command, params)
        return await self.fetch("/backend", method="POST", headers=headers, body=body)

    async def authorize(self) -> str:
        response = await self.post("authorizeSubscription", items=ITEMS)
        token: str = json.loads(response.body)["message"]["data"]
        return token

    async def publish(self, change: Change) -> int:
        """Publish a change under its own key and return the status."""
        row = {"id": f"{change[0]}.{change[1]}", "by": change[0], "n": change[1]}
        deltas = [{"type": "insert", "model": "Task", "data": row}]
        response = await self.post("publishDeltas", row["id"], deltas=deltas)
        return response.code

    async def publish_until_acknowledged(self, change: Change) -> None:
        """Do as the connector does: try again with the key, as long as it is in doubt."""
        while True:
            await self.up.wait()
            with contextlib.suppress(*GONE):
                status = await self.publish(change)
                if status == 200:
                    break
                assert status == 503
            await asyncio.sleep(0)
        self.acknowledged.append(change)
        self.changed.set()

    async def publish_on_and_on(self, publisher: int) -> None:
        number = 0
        while True:
            number += 1
            await self.publish_until_acknowledged((publisher, number))

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not done():
                self.changed.clear()
                await self.changed.wait()


class Page:
    """A browser that connects again and goes on from its position, as the client library does."""

    def __init__(self, site: Site, token: str) -> None:
        self.site = site
        self.token = token
        self.position: str | None = None
        self.positions: list[str] = []
        self.applied: list[Change] = []
        self.gathered: list[Change] = []
        self.words: list[str] = []
        self.connections = 0

    async def live(self) -> None:
        while True:
            await self.site.up.wait()
            with contextlib.suppress(*GONE):
                await self.one_connection()
            self.gathered = []
            await asyncio.sleep(0)

    async def one_connection(self) -> None:
        url = f"ws://127.0.0.1:{self.site.ports[0]}/ws"
        peer = Peer(await websocket_connect(url))
        self.connections += 1
        peer.begin_call("datasync", "acquireSubscription", token=self.token, position=self.position)
        try:
            while True:
                self.hear((await peer.read())["message"])
        finally:
            await peer.close()

    def hear(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "delta", "delta": {"data": row}}:
                self.gathered.append((row["by"], row["n"]))
            case {"type": "position", "position": position}:
                self.apply(position)
            case {"type": "response", "data": {"position": position}}:
                self.apply(position)
            case {"type": "stale" | "fresh" as word}:
                self.words.append(word)
                self.site.changed.set()
            case _:
                raise AssertionError(message)

    def apply(self, position: str) -> None:
        self.position = position
        self.positions.append(position)
        self.applied += self.gathered
        self.gathered = []
        self.site.changed.set()


@asynccontextmanager
async def tasks(*calls: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run coroutines that never end; what one of them raises comes out at the end."""
    running = [asyncio.ensure_future(call) for call in calls]
    try:
        yield running
    finally:
        for task in running:
            task.cancel()
        ended = await asyncio.gather(*running, return_exceptions=True)
    faults = [one for one in ended if not isinstance(one, asyncio.CancelledError)]
    assert faults == []


def check_each_once_in_order(applied: list[Change]) -> None:
    for publisher in range(PUBLISHERS):
        numbers = [number for by, number in applied if by == publisher]
        assert numbers == list(range(1, len(numbers) + 1))


async def run_for_a_while(site: Site, rng: random.Random) -> None:
    """Run a daemon and kill it in the midst of what it does."""
    async with site.running() as daemon:
        if site.acknowledged:  # what was acknowledged before the kill counts no second time
            assert await site.publish(site.acknowledged[-1]) == 200
        enough = len(site.acknowledged) + rng.randint(1, 25)
        await site.until(lambda: len(site.acknowledged) >= enough)
        for _ in range(rng.randint(0, 40)):
            await asyncio.sleep(0)
        await site.kill(daemon)


@pytest.fixture
def given_up(expected_log: ExpectedLog) -> Iterator[None]:
    """Who is cancelled while a connection is refused: the library says so, if only at the end."""
    with expected_log("tornado.application", "Future was cancelled", certain=False):
        yield


@pytest.mark.usefixtures("given_up")
@pytest.mark.seconds(90)
async def test_however_often_it_is_killed_every_change_arrives_once_and_no_client_fetches_again(
    tmp_path: Path,
) -> None:
    rng = random.Random(20)
    site = Site(tmp_path / "log.db", "full")
    async with site.running() as daemon:
        page, late = [Page(site, await site.authorize()) for _ in range(2)]
        await site.kill(daemon)
    async with tasks(page.live(), *map(site.publish_on_and_on, range(PUBLISHERS))):
        for _ in range(KILLS):
            await run_for_a_while(site, rng)
        async with site.running(), tasks(late.live()):
            everything = set(site.acknowledged)
            await site.until(lambda: everything <= {*page.applied} & {*late.applied})
    assert len(everything) > 2 * KILLS
    assert page.connections > KILLS / 2, "it was hardly ever connected"
    for one in (page, late):
        check_each_once_in_order(one.applied)
        assert len({position.partition(".")[0] for position in one.positions}) == 1
    both = min(len(page.applied), len(late.applied))
    assert page.applied[:both] == late.applied[:both]


async def test_on_a_full_disk_nothing_acknowledged_is_lost_and_it_recovers_by_itself(
    tmp_path: Path,
) -> None:
    """A limit on the size of files stands for the disk: writes fail in the midst of a commit."""
    site = Site(tmp_path / "log.db", "normal")
    async with site.running() as daemon:
        page = Page(site, await site.authorize())
        async with tasks(page.live()):
            await site.publish_until_acknowledged((0, 1))
            await site.until(lambda: page.applied)
            pid, (_, hard) = daemon.child.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (16 * 1024, hard))
            assert await site.publish((0, 2)) == 503
            await site.until(lambda: page.words == ["stale"])
            ready = await site.fetch("/ready")
            assert ready.code == 503
            assert b"engine: the disk " in ready.body
            refused = await site.post("publishDeltas", "k", deltas=[])
            assert (refused.code, refused.headers["Retry-After"]) == (503, "1")
            assert page.connections == 1
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
            await site.until(lambda: page.words == ["stale", "fresh"])
            while (await site.fetch("/ready")).code != 200:  # what it found is told for a second
                pass
            await site.publish_until_acknowledged((0, 2))
            await site.until(lambda: len(page.applied) == 2)
            await site.kill(daemon)
    late = Page(site, page.token)
    async with site.running(), tasks(late.live()):
        await site.until(lambda: late.applied)
    assert late.applied == page.applied == [(0, 1), (0, 2)]


async def test_a_second_daemon_on_the_file_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    site = Site(tmp_path / "log.db", "full")
    async with site.running() as daemon:
        environ = {"SYNCSERVER_ENGINE": site.url, "SYNCSERVER_BACKEND__API_KEYS": KEY}
        async with process("serve", environ=environ) as second:
            assert await second.ended() == 78
        assert f"in use by process {daemon.child.pid};" in second.log
        assert second.log.count("\n") == 1
        assert await site.publish((0, 1)) == 200


async def test_a_restart_as_one_does_it_keeps_everything_too(tmp_path: Path) -> None:
    site = Site(tmp_path / "log.db", "normal")
    async with site.running() as daemon:
        page = Page(site, await site.authorize())
        await site.publish_until_acknowledged((0, 1))
        daemon.child.terminate()
        assert await daemon.ended() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.db", "log.db.lock"]
    async with site.running(), tasks(page.live()):
        await site.until(lambda: page.applied == [(0, 1)])
