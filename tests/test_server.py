"""The daemon as a whole: starting, being asked to end, and ending; in a process and in this one."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.websocket import websocket_connect

from syncserver.app import load_registries
from syncserver.config import Config, Limits
from syncserver.dealers import BroadcastDealer
from syncserver.errors import ConfigError
from syncserver.registry import ServiceRegistry
from syncserver.services.base import Request, RPCService, rpc_command
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from tests.conftest import ExpectedLog
from tests.support.calls import MemoryPeer
from tests.support.daemon import (
    KEY,
    DaemonProcess,
    Peer,
    call_body,
    process,
    serving,
    until,
)


class Office(RPCService):
    """A trusted service that takes its time."""

    def __init__(self, name: str = "office") -> None:
        super().__init__(name)
        self.gate = asyncio.Event()

    @rpc_command
    async def slow(self, req: Request) -> str:
        await self.gate.wait()
        return "done"


SLOW = call_body("office", "slow", {})


# Draining, in this process.


async def test_a_drain_finishes_what_is_under_way_and_then_sends_clients_elsewhere() -> None:
    office = Office()
    async with serving(backend=[office]) as daemon:
        peer = await daemon.connect()
        under_way = asyncio.ensure_future(daemon.request(body=SLOW))
        await until(lambda: daemon.backend.calls_under_way)
        drain = asyncio.ensure_future(daemon.server.drain())
        await until(lambda: daemon.backend.draining)
        ready = await daemon.request("/ready", method="GET")
        assert (ready.code, json.loads(ready.body)["reasons"]) == (503, ["draining"])
        assert (await daemon.request("/live", method="GET")).code == 200
        refused = await daemon.request(body=SLOW)
        assert refused.code == 503
        assert refused.headers["Retry-After"]
        with pytest.raises((HTTPClientError, OSError)):
            await websocket_connect(daemon.ws_url)
        assert await peer.rest() == []
        assert not drain.done()
        office.gate.set()
        response = await under_way
        assert (response.code, json.loads(response.body)["message"]["data"]) == (200, "done")
        code, reason = await peer.end()
        assert code == 4001
        assert 0 <= json.loads(reason or "")["retry_after"] < 1000
        await drain
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", daemon.server.backend_port)


class Rows(BroadcastDealer):
    model = "Row"


async def test_what_was_published_last_is_sent_before_the_end() -> None:
    service = DataSyncService("datasync", [Rows])
    async with serving(service, backend=[DataSyncBackend("datasync_backend", service)]) as daemon:
        peer = await daemon.connect()
        token = await daemon.authorize(("Rows", None))
        await peer.call("datasync", "acquireSubscription", token=token, position=None)
        deltas = [{"type": "insert", "model": "Row", "data": {"id": n}} for n in range(100)]
        await daemon.publish(*deltas)
        drain = asyncio.ensure_future(daemon.server.drain())
        assert (await peer.end())[0] == 4001
        await drain
        assert [message["type"] for message in peer.take()] == ["delta"] * 100 + ["position"]


async def test_many_clients_are_told_to_come_again_at_different_times() -> None:
    async with serving(backend=[Office()]) as daemon:
        peers = [MemoryPeer(daemon.frontend) for _ in range(2000)]
        await daemon.server.drain()
        waits = []
        for peer in peers:
            assert peer.closed is not None
            code, reason = peer.closed
            assert code == 4001
            waits.append(json.loads(reason)["retry_after"])
        assert min(waits) < 500
        assert 3500 < max(waits) < 4000
        assert not daemon.frontend.sessions


@pytest.mark.parametrize("stuck", ["call", "socket"])
async def test_a_drain_is_over_in_time_whatever_does_not_end(stuck: str) -> None:
    office = Office()
    async with serving(backend=[office], drain_seconds=0.4) as daemon:
        loop = asyncio.get_running_loop()
        peer = await daemon.connect()
        asking = None
        daemon.frontend.sockets += 1  # one that never closes
        if stuck == "call":
            asking = asyncio.ensure_future(daemon.request(body=SLOW))
            await until(lambda: daemon.backend.calls_under_way)
        begin = loop.time()
        drain = asyncio.ensure_future(daemon.server.drain())
        assert (await peer.end())[0] == 4001
        assert not drain.done(), "the process would be gone before it was told"
        await drain
        assert 0.1 < loop.time() - begin < 2
        office.gate.set()
        daemon.frontend.sockets -= 1
        if asking is not None:
            await asking


async def test_a_drain_without_anybody_is_over_at_once() -> None:
    async with serving(backend=[Office()]) as daemon:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await daemon.server.drain()
        assert loop.time() - begin < 0.2


async def test_a_server_lets_go_of_its_ports() -> None:
    async with serving(backend=[Office()]) as daemon:
        ports = daemon.server.frontend_port, daemon.server.backend_port
    for port in ports:
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


# As a process.

CONFIG = """
[frontend]
port = 0
[backend]
port = 0
api_keys = ["{key}"]
[limits]
drain_seconds = 5
"""

APP = """
import asyncio
import sys

from syncserver import ServiceRegistry
from syncserver.services.base import RPCService, rpc_command


class Office(RPCService):
    @rpc_command
    async def slow(self, req, seconds):
        print("begun", flush=True)
        await asyncio.sleep(seconds)
        return "done"

    @rpc_command
    def echo(self, req, value):
        return value


pair = ServiceRegistry([Office("public")]), ServiceRegistry([Office("office")])


def make():
    return pair


nothing = 3
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "syncserver.toml"
    path.write_text(CONFIG.format(key=KEY))
    (tmp_path / "its_app.py").write_text(APP)
    return str(path)


async def post(daemon: DaemonProcess, body: str, key: str = KEY) -> tuple[int, Any]:
    """Make a call and return status and message."""
    client = AsyncHTTPClient(force_instance=True)
    request = HTTPRequest(
        daemon.line("backend"),
        method="POST",
        body=body,
        headers=HTTPHeaders({"X-Backend-Key": key, "Content-Type": "application/json"}),
    )
    try:
        response = await client.fetch(request, raise_error=False)
    finally:
        client.close()
    return response.code, json.loads(response.body)["message"]


async def test_the_daemon_says_what_it_does_and_does_it(config: str) -> None:
    async with process("serve", "--config", config) as daemon:
        await daemon.started()
        assert re.fullmatch(r"ws://127\.0\.0\.1:\d+/ws", daemon.line("frontend"))
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/backend", daemon.line("backend"))
        assert config in daemon.line("syncserver")
        assert daemon.line("services") == "datasync, pubsub, datasync_backend, pubsub_backend"
        assert daemon.line("origins") == "localhost on any port"
        assert "memory" in daemon.line("engine")
        assert KEY not in "\n".join(daemon.lines)

        peer = Peer(await websocket_connect(daemon.line("frontend")))
        items = [{"dealer": "AllTasks", "query": None}]
        authorize = call_body("datasync_backend", "authorizeSubscription", {"items": items})
        status, message = await post(daemon, authorize)
        assert status == 200
        token = message["data"]
        answer = await peer.call("datasync", "acquireSubscription", token=token, position=None)
        assert answer["data"]["position"]
        delta = {"type": "insert", "model": "Task", "data": {"id": 1}}
        body = call_body("datasync_backend", "publishDeltas", {"deltas": [delta]})
        assert await post(daemon, body) == (200, {"type": "response", "data": None})
        assert await peer.notice("delta") == {"type": "delta", "delta": delta}

        daemon.child.send_signal(signal.SIGTERM)
        code, reason = await peer.end()
        assert code == 4001
        assert json.loads(reason or "")["retry_after"] >= 0
        assert await daemon.ended() == 0
        assert KEY not in daemon.log
        assert "Traceback" not in daemon.log


async def test_ctrl_c_ends_the_daemon_like_sigterm(config: str) -> None:
    async with process("serve", "--config", config) as daemon:
        await daemon.started()
        begin = time.monotonic()
        daemon.child.send_signal(signal.SIGINT)
        assert await daemon.ended() == 0
        assert time.monotonic() - begin < 3


async def test_an_application_in_python_is_served_and_finishes_its_calls(config: str) -> None:
    arguments = ("serve", "--config", config, "--app", "its_app:pair")
    async with process(*arguments, cwd=Path(config).parent) as daemon:
        await daemon.started()
        assert daemon.line("services") == "public, office"
        peer = Peer(await websocket_connect(daemon.line("frontend")))
        assert (await peer.call("public", "echo", value=2))["data"] == 2
        assert (await peer.call("office", "echo", value=2))["code"] == "unknown_service"
        await peer.close()
        body = call_body("office", "slow", {"seconds": 0.3})
        asking = asyncio.ensure_future(post(daemon, body))
        assert daemon.child.stdout is not None
        assert await daemon.child.stdout.readline() == b"begun\n"
        daemon.child.send_signal(signal.SIGTERM)
        assert await asking == (200, {"type": "response", "data": "done"})
        assert await daemon.ended() == 0


async def test_a_second_signal_ends_the_daemon_at_once(config: str) -> None:
    arguments = ("serve", "--config", config, "--app", "its_app:make")
    async with process(*arguments, cwd=Path(config).parent) as daemon:
        await daemon.started()
        asking = asyncio.ensure_future(post(daemon, call_body("office", "slow", {"seconds": 60})))
        assert daemon.child.stdout is not None
        assert await daemon.child.stdout.readline() == b"begun\n"
        begin = time.monotonic()
        daemon.child.send_signal(signal.SIGTERM)
        assert daemon.child.stderr is not None
        while b"Draining" not in await daemon.child.stderr.readline():
            pass
        daemon.child.send_signal(signal.SIGTERM)
        assert await daemon.ended() == 1
        assert time.monotonic() - begin < 3
        await asyncio.wait([asking])
        if asking.exception() is None:  # or there was no time for an answer
            status, message = asking.result()
            assert (status, message["code"]) == (503, "unavailable")


async def test_an_address_in_use_ends_the_start_with_69_and_a_mend(config: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environ = {"SYNCSERVER_BACKEND__PORT": port}
        async with process("serve", "--config", config, environ=environ) as daemon:
            assert await daemon.ended() == 69
            assert f"port {port}" in daemon.log
            assert "in use" in daemon.log
            assert "Traceback" not in daemon.log


async def test_an_application_that_is_none_is_refused_with_78(config: str) -> None:
    arguments = ("serve", "--config", config, "--app", "its_app:nothing")
    async with process(*arguments, cwd=Path(config).parent) as daemon:
        assert await daemon.ended() == 78
        assert "--app its_app:nothing" in daemon.log
        assert "Traceback" not in daemon.log


def test_an_application_is_a_pair_of_registries_or_a_function_that_makes_one() -> None:
    pair = load_registries(f"{__name__}:PAIR", Config())
    assert pair == load_registries(f"{__name__}:make_pair", Config()) == PAIR
    own = __name__
    for reference in ("", ":", own, f"{own}:", f"{own}:absent", "absent:pair", f"{own}:KEY"):
        with pytest.raises(ConfigError, match="--app"):
            load_registries(reference, Config())
    for reference in (f"{own}:make_one", "tests"):
        with pytest.raises(ConfigError, match="--app"):
            load_registries(reference, Config())


def test_a_function_of_an_application_may_take_the_settings() -> None:
    config = Config(limits=Limits(max_items=3), given=("limits", "models"))
    frontend, backend = load_registries(f"{__name__}:make_with_settings", config)
    assert frontend.limits.max_items == backend.limits.max_items == 3


def test_settings_that_an_application_does_not_use_are_named(expected_log: ExpectedLog) -> None:
    config = Config(limits=Limits(max_items=3), given=("frontend", "limits", "models"))
    with expected_log("syncserver.app", "not used of the settings: limits, models "):
        frontend, backend = load_registries(f"{__name__}:fresh_pair", config)
    assert frontend.limits == config.limits  # those of connections
    assert backend.limits.max_items == 7  # its own


def fresh_pair() -> tuple[ServiceRegistry, ServiceRegistry]:
    return ServiceRegistry(), ServiceRegistry(limits=Limits(max_items=7))


def make_with_settings(config: Config) -> tuple[ServiceRegistry, ServiceRegistry]:
    return ServiceRegistry(limits=config.limits), ServiceRegistry(limits=config.limits)


PAIR = (ServiceRegistry(), ServiceRegistry())


def make_pair() -> tuple[ServiceRegistry, ServiceRegistry]:
    return PAIR


def make_one() -> ServiceRegistry:
    return PAIR[0]


async def test_the_key_that_the_daemon_made_survives_a_restart(tmp_path: Path) -> None:
    environ = {
        "SYNCSERVER_STATE_DIR": str(tmp_path / "state"),
        "SYNCSERVER_FRONTEND__PORT": "0",
        "SYNCSERVER_BACKEND__PORT": "0",
    }
    body = call_body("pubsub_backend", "publish", {"channel": 1, "message": 1})
    keys = []
    for _ in range(2):
        async with process("serve", environ=environ) as daemon:
            await daemon.started()
            path = Path(daemon.line("api key").removeprefix("in "))
            assert path.parent == tmp_path / "state"
            assert path.stat().st_mode & 0o077 == 0
            keys.append(path.read_text().strip())
            assert (await post(daemon, body, keys[-1]))[0] == 200
            assert (await post(daemon, body, "wrong"))[0] == 401
            assert keys[-1] not in "\n".join(daemon.lines)
            daemon.child.send_signal(signal.SIGTERM)
            assert await daemon.ended() == 0
            assert keys[-1] not in daemon.log
    assert keys[0] == keys[1]
