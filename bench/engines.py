"""What the engines cost: the same load through memory, SQLite and Redis, in turn.

    python -m bench.engines [--seconds 3] [--rounds 3]

Real daemons on loopback, one for each engine and two for Redis. Posts go to all nodes of an
engine over kept connections; one subscriber on each node counts what reaches it. A round
measures every engine once, so that what else the machine does meets all alike; medians of
the rounds are compared. The generator is lean Python in this process and shares the cores
with the daemons, so the absolute figures are of this machine and this load only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.support import valkey

KEY = "benchmark-key-0123456789-0123456789"
ROW = {"id": 0, "title": "x" * 120, "done": False, "owner": 7}
BATCH = 100
POSTERS = 4
CONFIG = """
engine = "{engine}"
[frontend]
port = 0
[backend]
port = 0
api_keys = ["{key}"]
[limits]
max_outbox_bytes = 67108864
"""


@dataclass
class Node:
    """One daemon, and how many deltas its subscriber has been sent."""

    process: asyncio.subprocess.Process
    frontend: str
    backend: str
    counted: int = 0

    def count(self, text: str | bytes | None) -> None:
        """Count one message of the subscriber."""
        if isinstance(text, str) and '"type":"delta"' in text[:80]:
            self.counted += 1


@dataclass
class Measured:
    """Deltas a second of each round, posted one by one and by the hundred."""

    single: list[float] = field(default_factory=list)
    batched: list[float] = field(default_factory=list)


@contextlib.asynccontextmanager
async def node(engine: str) -> AsyncIterator[Node]:
    """Run a daemon with one subscriber to all tasks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "syncserver.toml")
        path.write_text(CONFIG.format(engine=engine, key=KEY), "utf-8")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "syncserver", "serve"),
            *("--config", str(path), "--log-level", "error"),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            running = await _started(process)
            socket = await _subscribe(running)
            yield running
            socket.close()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()


async def _started(process: asyncio.subprocess.Process) -> Node:
    assert process.stdout is not None
    lines = {}
    while "engine" not in lines:
        name, _, text = (await process.stdout.readline()).decode().rstrip().partition(" ")
        if not name:
            raise SystemExit("the daemon did not start")
        lines[name] = text
    return Node(process, lines["frontend"], lines["backend"])


async def _subscribe(to: Node) -> WebSocketClientConnection:
    async with poster(to.backend) as post:
        items = [{"dealer": "AllTasks", "query": None}]
        token = (await post.call("authorizeSubscription", items=items))["data"]
    socket = await websocket_connect(to.frontend, on_message_callback=to.count)
    params = {"token": token, "position": None}
    call = {"command": "acquireSubscription", "params": params, "callId": 1}
    await socket.write_message(json.dumps({"service": "datasync", "message": call}))
    return socket


class Poster:
    """Posts over one kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def post(self, body: bytes) -> bytes:
        """Send one body and return that of the answer."""
        head = (
            f"POST /backend HTTP/1.1\r\nHost: bench\r\nX-Backend-Key: {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer.partition(b"\r\n")[0]:
            raise SystemExit(answer.decode())
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await self._reader.readexactly(length)

    async def call(self, command: str, **params: object) -> Mapping[str, str]:
        """Make one call and return its message."""
        message: Mapping[str, str] = json.loads(await self.post(_body(command, params)))["message"]
        return message


@contextlib.asynccontextmanager
async def poster(url: str) -> AsyncIterator[Poster]:
    """Connect to the backend of a daemon."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Poster(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def _body(command: str, params: Mapping[str, object]) -> bytes:
    message = {"command": command, "params": params}
    return json.dumps({"service": "datasync_backend", "message": message}).encode()


async def rate(nodes: Sequence[Node], deltas: int, seconds: float) -> float:
    """Post ``deltas`` at a time for so long; return deltas a second until all nodes sent all."""
    delta = {"type": "insert", "model": "Task", "data": ROW}
    body = _body("publishDeltas", {"deltas": [delta] * deltas})
    before = [each.counted for each in nodes]
    started = time.perf_counter()

    async def work(number: int) -> int:
        posted = 0
        async with poster(nodes[number % len(nodes)].backend) as connection:
            while time.perf_counter() - started < seconds:
                await connection.post(body)
                posted += deltas
        return posted

    posted = sum(await asyncio.gather(*(work(number) for number in range(POSTERS))))
    async with asyncio.timeout(60):
        while any(each.counted - was < posted for each, was in zip(nodes, before, strict=True)):
            await asyncio.sleep(0.01)
    return posted / (time.perf_counter() - started)


async def measure(seconds: float, rounds: int) -> Mapping[str, Measured]:
    """Measure all engines in turn."""
    results: dict[str, Measured] = {}
    with engines() as urls:
        for number in range(rounds):
            for name, (url, count) in urls.items():
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
                async with contextlib.AsyncExitStack() as held:
                    nodes = [await held.enter_async_context(node(url)) for _ in range(count)]
                    measured = results.setdefault(name, Measured())
                    measured.single.append(await rate(nodes, 1, seconds))
                    measured.batched.append(await rate(nodes, BATCH, seconds))
    return results


@contextlib.contextmanager
def engines() -> Iterator[Mapping[str, tuple[str, int]]]:
    """Give the engines by name: URL, and how many nodes."""
    with tempfile.TemporaryDirectory() as folder, valkey.running() as server:
        yield {
            "memory": ("memory", 1),
            "SQLite, synchronous=full": (f"sqlite://{folder}/full.db", 1),
            "SQLite, synchronous=normal": (f"sqlite://{folder}/normal.db?synchronous=normal", 1),
            "Redis, 1 node": (server.url, 1),
            "Redis, 2 nodes": (server.url, 2),
        }


def report(results: Mapping[str, Measured]) -> str:
    """Return a table of medians and of their ratios to the first engine."""
    first = next(iter(results.values()))
    lines = [f"{'deltas a second':28} {'single POST':>18} {f'{BATCH} in a POST':>18}"]
    for name, measured in results.items():
        cells = []
        for own, base in ((measured.single, first.single), (measured.batched, first.batched)):
            ratio = statistics.median(own) / statistics.median(base)
            cells.append(f"{statistics.median(own):10,.0f} ({ratio:4.2f}x)")
        lines.append(f"{name:28} {cells[0]:>18} {cells[1]:>18}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(report(asyncio.run(measure(options.seconds, options.rounds))))


if __name__ == "__main__":
    main()
