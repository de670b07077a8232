"""Cut many clients at once and time their return.

``python -m tests.faults.storm --clients 5000 --engine redis --nodes 2 --backoff-ms 250``: the
clients are connected to the nodes and cut in one moment, while the app goes on publishing. Each
waits a random part of the backoff, as the client library does (0: none waits), and resumes at
any node with its position. None may miss a change, see one twice, or have to fetch again.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tornado.httpclient import HTTPError

from tests.faults.actors import Site
from tests.faults.cluster import Node, cluster
from tests.support.world import ITEMS

SPARE_FILES = 200
SECONDS = 120.0
CONNECT_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 30.0
SETUP_AT_ONCE = 100
BEFORE = 5
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class Page(asyncio.Protocol):
    """One client: token, position, and what it applied. It speaks just enough WebSocket."""

    def __init__(self, ports: Sequence[int], token: str) -> None:
        self.token = token
        self.position: str | None = None
        self.applied: list[int] = []
        self.live_at = 0.0
        self.failures: Counter[str] = Counter()
        self.refused = 0
        self.settled: asyncio.Future[bool] | None = None
        self._ports = ports
        self._gathered: list[int] = []
        self._buffer = b""
        self._upgraded = False
        self._transport: asyncio.Transport | None = None

    async def connect(self) -> bool:
        """Connect and acquire; False if that failed."""
        loop = asyncio.get_running_loop()
        self._buffer, self._upgraded, self._gathered = b"", False, []
        self.settled = loop.create_future()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                port = random.choice(self._ports)
                await loop.create_connection(lambda: self, "127.0.0.1", port)
            async with asyncio.timeout(MAX_BACKOFF_SECONDS):
                return await self.settled
        except (OSError, TimeoutError) as error:
            self.failures[type(error).__name__] += 1
            self.cut()
            return False

    async def come_back(self, backoff_seconds: float) -> None:
        """Connect until it is live, waiting longer each time."""
        attempt = 0
        while True:
            await asyncio.sleep(random.uniform(0, backoff_seconds))
            if await self.connect():
                return
            attempt += 1
            backoff_seconds = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**attempt)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        key = base64.b64encode(random.randbytes(16)).decode()
        transport.write(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._settle(live=False)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._upgraded:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self.failures[head[:12].decode()] += 1
                self.cut()
                return
            self._upgraded, self._buffer = True, rest
            self._acquire()
        while self._read_frame():
            pass

    def _acquire(self) -> None:
        if self._transport is not None:
            params = {"token": self.token, "position": self.position}
            call = {"command": "acquireSubscription", "params": params, "callId": 1}
            self._send(TEXT, json.dumps({"service": "datasync", "message": call}).encode())

    def _acquire_later(self) -> None:
        bound = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**self.refused)
        self.refused += 1
        self._gathered = []
        asyncio.get_running_loop().call_later(random.uniform(0, bound), self._acquire)

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send a frame whose mask is 0, which leaves it as it is."""
        assert self._transport is not None
        size = len(payload)
        length = bytes([128 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        self._transport.write(bytes([128 | opcode]) + length + bytes(4) + payload)

    def _read_frame(self) -> bool:
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        size, start = buffer[1] & 127, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + size:
            return False
        payload, self._buffer = buffer[start : start + size], buffer[start + size :]
        match buffer[0] & 15:
            case 1:
                self._read(json.loads(payload)["message"])
            case 9:
                self._send(PONG, payload)
            case 8:
                self.failures[f"closed {int.from_bytes(payload[:2], 'big')}"] += 1
        return True

    def _read(self, message: dict[str, object]) -> None:
        match message:
            case {"type": "delta", "delta": {"data": {"id": int(number)}}}:
                self._gathered.append(number)
            case {"type": "position", "position": str(position)}:
                self._apply(position)
            case {"type": "response", "data": {"position": str(position)}}:
                self._apply(position)
                self.live_at = time.monotonic()
                self._settle(live=True)
            case {"type": "error", "code": "unavailable"}:
                self.failures["unavailable"] += 1
                self._acquire_later()
            case {"type": "stale" | "fresh" as word}:
                self.failures[word] += 1
            case _:
                self.failures[json.dumps(message)] += 1
                self.cut()

    def _apply(self, position: str) -> None:
        self.position = position
        self.applied += self._gathered
        self._gathered = []

    def _settle(self, *, live: bool) -> None:
        if self.settled is not None and not self.settled.done():
            self.settled.set_result(live)


@dataclass
class Result:
    """What a storm came to; times in seconds from the cut."""

    clients: int
    setup: float
    median: float
    last: float
    longest_publish: float
    published: int
    failures: Counter[str]
    wrong: int


async def storm(
    folder: Path, engine: str, clients: int, backoff_seconds: float, nodes: int = 1
) -> Result:
    """Connect, cut, let all come back, and count what was lost."""
    began = time.monotonic()
    async with cluster(folder, engine, nodes) as some, asyncio.timeout(SECONDS):
        site = Site(some, random.Random(1))
        node = some.nodes[0]
        pages = await _connected(site, some.nodes, clients)
        for number in range(BEFORE):
            await _insert(site, node, number)
        setup = time.monotonic() - began
        waits: list[float] = []
        stop = asyncio.Event()
        publishing = asyncio.ensure_future(_publish_until(stop, site, node, BEFORE, waits))
        await asyncio.sleep(0.3)
        cut = time.monotonic()
        for page in pages:
            page.cut()
            page.failures.clear()
        await asyncio.gather(*(page.come_back(backoff_seconds) for page in pages))
        stop.set()
        last = await publishing
        await _insert(site, node, last)
        await _told(pages, last)
        site.client.close()
        times = sorted(page.live_at - cut for page in pages)
        failures: Counter[str] = sum((page.failures for page in pages), Counter())
        for page in pages:
            page.cut()
        return Result(
            clients,
            setup,
            times[len(times) // 2],
            times[-1],
            max(waits, default=0.0),
            last + 1,
            failures,
            sum(page.applied != list(range(last + 1)) for page in pages),
        )


async def _connected(site: Site, nodes: Sequence[Node], count: int) -> list[Page]:
    ports = [node.ports[0] for node in nodes]
    gate = asyncio.Semaphore(SETUP_AT_ONCE)

    async def one() -> Page:
        async with gate:
            items = [ITEMS["all"][0]]
            node = random.choice(nodes)
            token = await site.post(node, "authorizeSubscription", seconds=SECONDS, items=items)
            page = Page(ports, token)
            assert await page.connect(), page.failures
            return page

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def _insert(site: Site, node: Node, number: int) -> None:
    delta = {"type": "insert", "model": "Row", "data": {"id": number, "group": 0}}
    while True:
        try:
            await site.post(node, "publishDeltas", seconds=SECONDS, key=str(number), deltas=[delta])
        except HTTPError as error:
            if error.code != 503:
                raise
            await asyncio.sleep(random.uniform(0, FIRST_BACKOFF_SECONDS))
        else:
            return


async def _publish_until(
    stop: asyncio.Event, site: Site, node: Node, number: int, waits: list[float]
) -> int:
    """Publish on and on; return the number that comes next."""
    while not stop.is_set():
        began = time.monotonic()
        await _insert(site, node, number)
        number += 1
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.2)
    return number


async def _told(pages: list[Page], last: int) -> None:
    while not all(page.applied and page.applied[-1] == last for page in pages):
        await asyncio.sleep(0.02)


def allow_files(count: int) -> None:
    """Allow so many open files to this process and its children; SystemExit if none may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise SystemExit(f"only {hard} open files are allowed (ulimit -Hn), {count} are needed")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def main() -> None:
    """Run one storm and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--engine", choices=["redis", "sqlite"], default="sqlite")
    parser.add_argument("--nodes", type=int, default=1, help="more than one on Redis only")
    parser.add_argument("--backoff-ms", type=float, default=250)
    options = parser.parse_args()
    allow_files(options.clients + SPARE_FILES)
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        result = asyncio.run(
            storm(
                Path(folder),
                options.engine,
                options.clients,
                options.backoff_ms / 1000,
                options.nodes,
            )
        )
    print(options.engine, f"backoff {options.backoff_ms:g} ms", result)
    if result.wrong:
        raise SystemExit(f"{result.wrong} of {result.clients} did not see each change once")


if __name__ == "__main__":
    main()
