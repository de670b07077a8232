"""Node processes and the store behind them, which can be killed, stopped and set back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.daemon import KEY, ROOT
from tests.support.proxy import Proxy
from tests.support.valkey import Valkey

START_SECONDS = 20.0
STOP_SECONDS = 20.0

SERVICES = """
[services.datasync]
type = "datasync"
[services.datasync.dealers.All]
type = "broadcast"
model = "Row"
[services.datasync.dealers.ByGroup]
type = "keyed"
model = "Row"
key = "group"
[services.datasync.dealers.Some]
type = "filter"
model = "Row"
"""


class Node:
    """One process, on the same ports whenever it runs; ``killed`` counts its deaths."""

    def __init__(
        self, name: str, engine: str, folder: Path, *, module: str = "syncserver", limits: str = ""
    ) -> None:
        self.name = name
        self.killed = 0
        self.ports = [0, 0]
        self.log = folder / f"{name}.log"
        self.child: asyncio.subprocess.Process | None = None
        self.busy = asyncio.Lock()
        self._engine = engine
        self._folder = folder
        self._module = module
        self._limits = limits

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.ports[0]}/ws"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}/backend"

    @property
    def up(self) -> bool:
        return self.child is not None

    async def start(self) -> None:
        """Start it and wait until it serves; TimeoutError or OSError if it does not."""
        child = await self._spawn()
        try:
            async with asyncio.timeout(START_SECONDS):
                ports = await _ports(child)
        except BaseException:
            _send(child, signal.SIGKILL)
            await child.wait()
            raise
        self.ports, self.child = ports, child

    async def kill(self) -> None:
        """Kill it and see it dead."""
        child, self.child = self.child, None
        if child is not None:
            self.killed += 1
            _send(child, signal.SIGKILL)
            async with asyncio.timeout(STOP_SECONDS):
                await child.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.child is not None:
            _send(self.child, number)

    async def _spawn(self) -> asyncio.subprocess.Process:
        path = self._folder / f"{self.name}.toml"
        doors = f"[frontend]\nport = {self.ports[0]}\n[backend]\nport = {self.ports[1]}\n"
        path.write_text(
            f'engine = "{self._engine}"\n{doors}api_keys = ["{KEY}"]\n{self._limits}{SERVICES}'
        )
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", self._module, "serve", "--config", str(path), "--log-level", "warning"),
                cwd=ROOT,
                env={"PYTHONPATH": str(ROOT), "PATH": os.environ.get("PATH", "")},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )


def _send(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a child; its own ``send_signal`` would reap it before asyncio does."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)


async def _ports(child: asyncio.subprocess.Process) -> list[int]:
    assert child.stdout is not None
    ports: list[int] = []
    while line := await child.stdout.readline():
        name, _, rest = line.decode().partition(" ")
        if name in {"frontend", "backend"}:
            ports.append(int(rest.split("/")[2].rpartition(":")[2]))
        if name == "engine":
            return ports
    raise OSError("it ended as it started")


class RedisStore:
    """A Valkey that writes all down, a proxy to it for each node, and copies of its past."""

    def __init__(self, folder: Path) -> None:
        self.busy = asyncio.Lock()
        self.proxies: list[Proxy] = []
        self.server = Valkey("--appendonly", "yes")
        self._folder = folder
        self._copy = self.server.folder / "copy"
        self._copied_at = 0.0
        self._paths: list[Path] = []

    async def start(self, count: int) -> list[str]:
        """Start so many proxies; return the URLs of the engines behind them."""
        for number in range(count):
            proxy = Proxy(self.server.socket)
            path = self.server.folder / f"p{number}"
            await proxy.start(path)
            self.proxies.append(proxy)
            self._paths.append(path)
        return [f"unix://{path}" for path in self._paths]

    async def close(self) -> None:
        for proxy in self.proxies:
            await proxy.close()
        self.server.close()

    async def restart(self, away_seconds: float, *, lose: bool = False, back: bool = False) -> None:
        """Kill it and start it later, on what it had, on nothing, or on its last copy."""
        data = self.server.folder / "appendonlydir"
        self.server.kill()
        await asyncio.sleep(away_seconds)
        if lose or back:
            shutil.rmtree(data)
        if back:
            shutil.copytree(self._copy, data)
        self.server.start(wait=False)
        await asyncio.to_thread(self.server.wait)

    def copy(self) -> float:
        """Keep what it has now for ``restart(back=True)``; return the time before that."""
        before = time.monotonic()
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self.server.folder / "appendonlydir", self._copy)
        return before

    def command(self, *words: Any) -> Any:
        """Run one command on a connection past the proxies."""
        with contextlib.closing(self.server.client) as client:
            return client.execute_command(*words)

    def entries(self) -> list[bytes]:
        """Return what is in the log."""
        found = self.command("XRANGE", "{syncserver}:l:datasync", "-", "+")
        return [fields[b"d"] for _, fields in found]


class SQLiteStore:
    """A file; one node at a time."""

    def __init__(self, folder: Path) -> None:
        self.busy = asyncio.Lock()
        self.proxies: list[Proxy] = []
        self._path = folder / "log.db"

    async def start(self, count: int) -> list[str]:
        assert count == 1
        return [f"sqlite://{self._path}"]

    async def close(self) -> None:
        return

    def entries(self) -> list[bytes]:
        """Return what is in the log."""
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as file:
            return [row[0] for row in file.execute("SELECT data FROM entry ORDER BY place")]


Store = RedisStore | SQLiteStore


class Cluster:
    """Nodes and their store."""

    def __init__(self, store: Store, nodes: Sequence[Node]) -> None:
        self.store = store
        self.nodes = nodes

    def running(self) -> list[Node]:
        """Return the nodes that are up; all when none is."""
        return [node for node in self.nodes if node.up] or list(self.nodes)

    def logged(self) -> list[str]:
        """Return what the nodes have written that no fault explains."""
        lines = []
        for node in self.nodes:
            text = node.log.read_text("utf-8") if node.log.exists() else ""
            lines += [
                f"{node.name}: {line}"
                for line in text.splitlines()
                if " ERROR " in line or "Traceback" in line or "Error: " in line
            ]
        return lines

    def changes_in_log(self) -> list[tuple[int, int]]:
        """Return the changes (publisher and number) that stand in the log."""
        deltas = [
            delta for data in self.store.entries() for delta in json.loads(data).get("deltas", ())
        ]
        return [change_of(delta) for delta in deltas]


def change_of(delta: dict[str, Any]) -> tuple[int, int]:
    """Return publisher and number of a delta: its row's name has one, its version is the other."""
    row = delta.get("newData") or delta["data"]
    return int(row["id"].partition(".")[0]), delta["version"]


@asynccontextmanager
async def cluster(
    folder: Path, kind: str, count: int, *, module: str = "syncserver", limits: str = ""
) -> AsyncIterator[Cluster]:
    """Run so many nodes over a store of a kind, ``redis`` or ``sqlite``."""
    store: Store = RedisStore(folder) if kind == "redis" else SQLiteStore(folder)
    nodes: list[Node] = []
    try:
        for number, url in enumerate(await store.start(count)):
            nodes.append(Node(f"node{number}", url, folder, module=module, limits=limits))
        await asyncio.gather(*(node.start() for node in nodes))
        yield Cluster(store, nodes)
    finally:
        for node in nodes:
            node.signal(signal.SIGCONT)
            await node.kill()
        await store.close()
