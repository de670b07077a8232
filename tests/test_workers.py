"""Several processes on one port are one daemon to everybody outside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

from syncserver.app import shared_settings
from syncserver.config import Config
from syncserver.siblings import Siblings
from tests.support import valkey
from tests.support.daemon import KEY, SECONDS, DaemonProcess, Peer, call_body, process, until

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")

ITEM = {"dealer": "AllTasks", "query": None}


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split()]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def config(folder: Path, engine: str, door: str = "port = 0") -> str:
    path = folder / "syncserver.toml"
    path.write_text(
        f'engine = "{engine}"\n[frontend]\n{door}\n[backend]\nport = 0\n'
        f'api_keys = ["{KEY}"]\n[limits]\ndrain_seconds = 3\n'
    )
    return str(path)


@asynccontextmanager
async def workers(
    folder: Path, count: int = 2, *settings: str, door: str = "port = 0"
) -> AsyncIterator[DaemonProcess]:
    """Start so many on a Valkey of their own."""
    with valkey.running() as server:
        arguments = (
            "serve",
            "--config",
            config(folder, server.url, door),
            "--workers",
            str(count),
            *settings,
        )
        async with process(*arguments) as daemon:
            await daemon.started()
            await until(lambda: len(children(daemon.child.pid)) == count)
            yield daemon


async def post(daemon: DaemonProcess, command: str, **params: Any) -> Any:
    request = HTTPRequest(
        daemon.line("backend"),
        method="POST",
        headers={"X-Backend-Key": KEY, "Content-Type": "application/json", "Connection": "close"},
        body=call_body("datasync_backend", command, params),
    )
    response = await AsyncHTTPClient().fetch(request)
    return json.loads(response.body)["message"]["data"]


async def page(daemon: DaemonProcess) -> Peer:
    """Connect and go live with a token of its own."""
    token = await post(daemon, "authorizeSubscription", items=[ITEM])
    peer = Peer(await websocket_connect(daemon.line("frontend")))
    answer = await peer.call("datasync", "acquireSubscription", token=token, position=None)
    assert answer["type"] == "response", answer
    return peer


@pytest.mark.seconds(60)
async def test_whichever_process_takes_a_post_all_pages_see_it_in_one_order(
    tmp_path: Path,
) -> None:
    async with workers(tmp_path) as daemon:
        peers = [await page(daemon) for _ in range(12)]
        for number in range(8):
            delta = {"type": "insert", "model": "Task", "data": {"id": number}}
            await post(daemon, "publishDeltas", deltas=[delta])
        for peer in peers:
            seen = [(await peer.notice("delta"))["delta"]["data"]["id"] for _ in range(8)]
            assert seen == list(range(8))
        assert all(os.getpgid(pid) == pid for pid in children(daemon.child.pid))
        daemon.child.send_signal(signal.SIGINT)
        for peer in peers:
            assert (await peer.end())[0] == 4001
        assert await daemon.ended() == 0


@pytest.mark.seconds(60)
async def test_a_worker_that_falls_as_it_starts_ends_all(tmp_path: Path) -> None:
    async with workers(tmp_path) as daemon:
        first = children(daemon.child.pid)
        os.kill(first[0], signal.SIGKILL)
        assert await daemon.ended() == 70
        assert "ended as it started" in daemon.log
        await until(lambda: not any(map(alive, first)))


SUPERVISOR = """
import signal, sys
from syncserver.process.workers import supervise

def serve(number, pulse):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.pause()
    return 0

sys.exit(supervise(2, serve, settled_seconds=0))
"""


SLOW_TO_LISTEN = """
import os, sys, time
from syncserver.process.workers import supervise

def serve(number, pulse):
    os.write(1, b"begun\\n")
    time.sleep(60)
    return 0

sys.exit(supervise(2, serve))
"""


ADOPTING = """
import ctypes, os, signal, sys
from syncserver.process.workers import supervise

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

def serve(number, pulse):
    if os.fork() == 0:
        if os.fork() == 0:
            while os.getppid() != parent:
                pass
            print("adopted", flush=True)
        os._exit(0)
    os.wait()
    os.read(0, 1)
    return 0

parent = os.getpid()
sys.exit(supervise(1, serve, settled_seconds=0))
"""


async def test_process_1_of_a_container_outlives_the_children_that_it_is_given() -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ADOPTING),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(15):
            assert await child.stdout.readline() == b"adopted\n"
        await until(lambda: len(children(child.pid)) == 1)  # the worker: the other is gone
    finally:
        child.terminate()
        _, log = await child.communicate(b"x")
    assert (child.returncode, log) == (0, b"")


async def test_a_signal_that_comes_before_the_workers_listen_ends_them_in_order() -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SLOW_TO_LISTEN, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    async with asyncio.timeout(15):
        for _ in range(2):
            assert await child.stdout.readline() == b"begun\n"
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0


TALKATIVE = """
import logging, sys
from syncserver.logs import LogHandler
from syncserver.process.workers import supervise

logging.getLogger().addHandler(LogHandler())

def serve(number, pulse):
    for _ in range(50):
        logging.getLogger("a").error("again")
    return 3

sys.exit(supervise(1, serve))
"""


async def test_a_worker_tells_at_its_end_how_many_lines_it_has_only_counted() -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TALKATIVE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(15):
        _, log = await child.communicate()
    assert child.returncode == 3
    assert log.count(b"again") == 21
    assert b"30" in log, "so many more"


async def test_a_worker_that_fell_is_replaced_and_the_others_go_on() -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISOR, stderr=asyncio.subprocess.PIPE
    )
    try:
        await until(lambda: len(children(child.pid)) == 2)
        first = children(child.pid)
        os.kill(first[0], signal.SIGKILL)
        await until(lambda: set(children(child.pid)) - set(first))
        assert first[1] in children(child.pid)
    finally:
        child.kill()
        _, log = await child.communicate()
    assert b"ended (-9) and is replaced" in log


@pytest.mark.seconds(60)
async def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    async with workers(tmp_path) as daemon:
        orphans = children(daemon.child.pid)
        daemon.child.kill()
        await until(lambda: not any(map(alive, orphans)), seconds=15)


COMPARED = """
from pathlib import Path
from syncserver import ServiceRegistry
from syncserver.engines.memory import MemoryEngine
from syncserver.services.datasync import DataSyncService

class Told(MemoryEngine):
    shared = True

    async def open(self):
        note("open")

    def compare(self, settings):
        note(settings)

def note(line):
    with Path("noted").open("a") as file:
        file.write(line + "\\n")

def make(config):
    service = DataSyncService("datasync", [], engine=Told())
    return ServiceRegistry([service]), ServiceRegistry()
"""


@pytest.mark.seconds(60)
async def test_one_worker_alone_compares_the_settings_and_none_that_an_application_has_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "its_app.py").write_text(COMPARED)
    path = Path(config(tmp_path, "memory"))
    path.write_text(path.read_text() + '[models.Task]\nkey = "pk"\n')
    flags = ("serve", "--config", str(path), "--app", "its_app:make", "--workers", "2")
    noted = tmp_path / "noted"
    async with process(*flags, cwd=tmp_path) as daemon:
        await daemon.started()
        await until(lambda: noted.read_text().count("open") == 2)
        daemon.child.send_signal(signal.SIGTERM)
        assert await daemon.ended() == 0
    told = [line for line in noted.read_text().split() if line != "open"]
    assert told == [shared_settings(Config(services={}))]


@pytest.mark.parametrize("engine", ["memory", "sqlite://log.db"])
async def test_an_engine_for_one_process_is_refused(tmp_path: Path, engine: str) -> None:
    arguments = ("serve", "--config", config(tmp_path, engine), "--workers", "2")
    async with process(*arguments, cwd=tmp_path) as daemon:
        assert await daemon.ended() == 78
        assert "serves one process" in daemon.log
        assert "Traceback" not in daemon.log
        assert [path.name for path in tmp_path.iterdir()] == ["syncserver.toml"]


@pytest.mark.parametrize("count", ["0", "-1", "two", "1000"])
async def test_a_number_of_workers_that_makes_no_sense_is_refused(count: str) -> None:
    async with process("serve", "--workers", count) as daemon:
        assert await daemon.ended() == 2


@pytest.mark.seconds(60)
async def test_a_client_that_polls_reaches_its_session_in_whichever_process_it_is(
    tmp_path: Path,
) -> None:
    patience = ("--set", "limits.disconnect_seconds=50")
    async with workers(tmp_path, 3, *patience) as daemon, AsyncHTTP(daemon) as http:
        paths = [f"/ws/sockjs/000/polling-{number}" for number in range(12)]
        opened = [await http.post(f"{path}/xhr") for path in paths]
        assert opened == [(200, "o\n")] * len(paths)
        for path in paths:
            token = await post(daemon, "authorizeSubscription", items=[ITEM])
            params = {"token": token, "position": None}
            message = {"command": "acquireSubscription", "params": params, "callId": 1}
            text = json.dumps({"service": "datasync", "message": message})
            assert await http.post(f"{path}/xhr_send", json.dumps([text])) == (204, "")
            _, frame = await http.post(f"{path}/xhr")
            assert json.loads(json.loads(frame[1:])[0])["message"]["type"] == "response"
        delta = {"type": "insert", "model": "Task", "data": {"id": 1}}
        await post(daemon, "publishDeltas", deltas=[delta])
        for path in paths:
            _, frame = await http.post(f"{path}/xhr")
            assert json.loads(json.loads(frame[1:])[0])["message"]["delta"] == delta
        daemon.child.send_signal(signal.SIGTERM)
        await draining(daemon, 3)
        for path in paths:  # each between two polls
            frame = "a"
            while frame[0] != "c":
                _, frame = await http.post(f"{path}/xhr")
            assert json.loads(frame[1:])[0] == 4001
        assert await daemon.ended() == 0
    assert "Traceback" not in daemon.log


@pytest.fixture
def place() -> Iterator[Path]:
    """Return where a Unix socket may be; the path of ``tmp_path`` is too long for one."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "frontend.sock"


@pytest.mark.seconds(60)
async def test_workers_that_are_told_twice_to_end_still_drain_and_let_nobody_new_in(
    tmp_path: Path, place: Path
) -> None:
    patience = ("--set", "limits.disconnect_seconds=50")
    async with workers(tmp_path, 2, *patience, door=f'unix_socket = "{place}"') as daemon:
        names = await holding(place)
        for pid in children(daemon.child.pid):  # as systemd may do
            os.kill(pid, signal.SIGTERM)
        await draining(daemon, 2)
        daemon.child.send_signal(signal.SIGTERM)
        assert (await poll(place, "new")).startswith(b"HTTP/1.1 503 ")
        for name in names:
            while b"c[4001," not in (answer := await poll(place, name)):
                assert b"a[" in answer
        assert await daemon.ended() == 0
        assert not place.exists()


@pytest.mark.seconds(60)
async def test_a_second_signal_for_the_parent_ends_all_workers_at_once(
    tmp_path: Path, place: Path
) -> None:
    patience = ("--set", "limits.disconnect_seconds=50", "--set", "limits.drain_seconds=40")
    async with workers(tmp_path, 2, *patience, door=f'unix_socket = "{place}"') as daemon:
        await holding(place)
        daemon.child.send_signal(signal.SIGTERM)
        await draining(daemon, 2)
        daemon.child.send_signal(signal.SIGTERM)
        assert await daemon.ended() == 1


async def draining(daemon: DaemonProcess, count: int) -> None:
    """Wait until so many processes drain."""
    assert daemon.child.stderr is not None
    for _ in range(count):
        while b"Draining" not in (line := await daemon.child.stderr.readline()):
            assert line, "it ended"


async def holding(place: Path) -> Iterable[str]:
    """Open a session in each of two processes, for which a drain waits; return their names."""
    ids = {Siblings(place, 0, 2).owner(name): name for name in map(str, range(9))}
    assert len(ids) == 2
    for name in ids.values():
        while not (await poll(place, name)).endswith(b"o\n"):  # until its process listens too
            pass
    return ids.values()


async def poll(place: Path, name: str) -> bytes:
    """Return the whole answer to one poll of a session."""
    reader, writer = await asyncio.open_unix_connection(str(place))
    head = f"POST /ws/sockjs/000/{name}/xhr HTTP/1.1\r\nHost: a\r\nConnection: close"
    writer.write(f"{head}\r\nContent-Length: 0\r\n\r\n".encode())
    async with asyncio.timeout(SECONDS):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


class AsyncHTTP:
    """POSTs to the frontend, each over a connection of its own."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._url = daemon.line("frontend").split(",")[0].replace("ws", "http", 1)
        self._client = AsyncHTTPClient(force_instance=True)

    async def post(self, path: str, body: str = "") -> tuple[int, str]:
        url = self._url.removesuffix("/ws") + path
        headers = {"Connection": "close"}
        answer = await self._client.fetch(url, method="POST", body=body, headers=headers)
        return answer.code, answer.body.decode()

    async def __aenter__(self) -> AsyncHTTP:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.close()
