"""nginx and Caddy with TLS in front of the daemon, each with the how-to's file.

``python -m tests.idle`` has what takes over a minute.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from syncserver.config import Config
from tests.support import valkey
from tests.support.daemon import KEY, Daemon, Peer, call_body, serving, settings, until
from tests.support.fronts import DEPLOY, PROXIES, Front, Proxy, caddyfile, needs, nginx_of_nodes
from tests.support.operating import free_ports
from tests.test_events import ALL, insert

TEXTS = 5


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=sorted(PROXIES))
def proxy(request: pytest.FixtureRequest) -> Proxy:
    return PROXIES[request.param]


def behind_proxy(unix_socket: Path | None = None) -> Config:
    config = settings()
    trusted = ("127.0.0.1/32", "unix")
    path = None if unix_socket is None else str(unix_socket)
    frontend = replace(config.frontend, trusted_proxies=trusted, unix_socket=path)
    return replace(config, frontend=frontend)


@asynccontextmanager
async def fronted(
    proxy: Proxy, folder: Path, authority: trustme.CA, config: Config | None = None
) -> AsyncIterator[tuple[Daemon, Front]]:
    config = config or behind_proxy()
    async with serving(config=config) as daemon:
        path = config.frontend.unix_socket
        upstream = f"unix:{path}" if path else f"127.0.0.1:{daemon.server.frontend_port}"
        async with proxy(folder, authority, upstream) as front:
            yield daemon, front


async def test_a_websocket_gets_what_is_published_and_its_address_is_in_the_log(
    proxy: Proxy, tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "syncserver")
    async with fronted(proxy, tmp_path, authority) as (daemon, front):
        peer = await front.connect()
        await subscribed(daemon, peer)
        await daemon.publish(insert(1))
        assert (await peer.notice("delta"))["delta"]["data"]["id"] == 1
        (session,) = daemon.frontend.sessions
        assert session.remote_address == "127.0.0.2"
        peer.send_text("no JSON")
        await peer.read()
        await peer.close()
        await until(lambda: not daemon.frontend.sessions)
    assert re.search(r"from 127\.0\.0\.2\b", caplog.text), "the client's address is in the log"


async def subscribed(daemon: Daemon, peer: Peer, **params: Any) -> Any:
    """Acquire a subscription to all tasks, of a new token unless one is given."""
    given = {"token": await daemon.authorize(ALL), "position": None} | params
    answer = await peer.call("datasync", "acquireSubscription", **given)
    assert answer["type"] == "response"
    return answer["data"]["position"]


async def test_what_a_client_writes_of_its_address_is_not_believed(
    proxy: Proxy, tmp_path: Path, authority: trustme.CA
) -> None:
    async with fronted(proxy, tmp_path, authority) as (daemon, front):
        peer = await front.connect(**{"X-Forwarded-For": "203.0.113.7"})
        (session,) = daemon.frontend.sessions
        assert session.remote_address == "127.0.0.2"
        await peer.close()


async def test_the_daemon_is_reached_by_a_unix_socket(
    proxy: Proxy, tmp_path: Path, authority: trustme.CA
) -> None:
    config = behind_proxy(tmp_path / "front.sock")
    async with fronted(proxy, tmp_path, authority, config) as (daemon, front):
        peer = await front.connect()
        assert (await peer.call("pubsub", "subscribe", channel=1))["type"] == "response"
        (session,) = daemon.frontend.sessions
        assert session.remote_address == "127.0.0.2"
        await peer.close()


async def test_the_web_app_s_paths_are_not_passed_on(
    proxy: Proxy, tmp_path: Path, authority: trustme.CA
) -> None:
    config = behind_proxy()
    config = replace(config, backend=replace(config.backend, on_frontend=True))
    async with fronted(proxy, tmp_path, authority, config) as (_, front):
        for path in ("/syncserver.js", "/ws/sockjs/info"):
            assert (await front.request(path)).code == 200
        plain = ("/backend", "/ready", "/live", "/metrics", "/", "/ws/backend")
        hidden = ("/events/../backend", "/events/%2e%2e/backend", "/ws/sockjs/../../backend")
        for path in (*plain, "//backend", *hidden):
            assert (await front.request(path)).code == 204, "the web app's, not the daemon's"


async def test_each_event_is_passed_on_as_it_comes_and_a_lost_client_is_noticed(
    proxy: Proxy, tmp_path: Path, authority: trustme.CA
) -> None:
    async with fronted(proxy, tmp_path, authority) as (daemon, front):
        token = json.dumps({"token": await daemon.authorize(ALL)})
        opened = await front.request("/events", token, Content_Type="application/json")
        path = f"/events?stream={json.loads(opened.body)['stream']}"
        async with front.stream(path) as stream:
            await stream.until("event: position")
            for number in range(TEXTS):
                await daemon.publish(insert(number))
                await stream.until(f'"id":{number}')
        await until(lambda: not daemon.frontend.sessions)


async def test_sockjs_streams_as_it_comes_and_a_lost_client_is_noticed(
    proxy: Proxy, tmp_path: Path, authority: trustme.CA
) -> None:
    async with fronted(proxy, tmp_path, authority) as (daemon, front):
        place = "/ws/sockjs/000/one-session"
        params = {"token": await daemon.authorize(ALL), "position": None}
        call = {"command": "acquireSubscription", "params": params, "callId": 1}
        text = json.dumps([json.dumps({"service": "datasync", "message": call})])
        async with front.stream(f"{place}/xhr_streaming", "--request", "POST") as stream:
            await stream.until("o\n")
            assert (await front.request(f"{place}/xhr_send", text)).code == 204
            await stream.until("response")
            for number in range(TEXTS):
                await daemon.publish(insert(number))
                await stream.until(f'\\"id\\":{number}')
        await until(lambda: not daemon.frontend.sessions)


def test_pings_come_more_often_than_nginx_gives_up() -> None:
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", (DEPLOY / "nginx.conf").read_text())
    assert int(seconds) > 2 * Config().limits.ping_seconds


async def test_after_a_reload_of_caddy_a_client_goes_on_where_it_was(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async with fronted(PROXIES["caddy"], tmp_path, authority) as (daemon, front):
        token = await daemon.authorize(ALL)
        peer = await front.connect()
        position = await subscribed(daemon, peer, token=token)
        (tmp_path / "Caddyfile").write_text(caddyfile(tmp_path, front.port, "127.0.0.1:1"))
        await reloaded(tmp_path)
        await peer.end()  # with 1001 of Caddy, or our 1002 for its unmasked farewell
        await daemon.publish(insert(1))
        port = daemon.server.frontend_port
        (tmp_path / "Caddyfile").write_text(caddyfile(tmp_path, front.port, f"127.0.0.1:{port}"))
        await reloaded(tmp_path)
        again = await front.connect()
        await subscribed(daemon, again, token=token, position=position)
        assert [notice["delta"]["data"]["id"] for notice in again.take()] == [1]
        await again.close()


async def reloaded(folder: Path) -> None:
    """Have Caddy read its file again."""
    child = await asyncio.create_subprocess_exec(
        needs("caddy"),
        *("reload", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")),
        *("--address", f"unix/{folder}/admin"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await child.communicate()
    assert child.returncode == 0, said.decode()


# Two nodes.


@asynccontextmanager
async def nodes(
    folder: Path, authority: trustme.CA
) -> AsyncIterator[tuple[Sequence[Daemon], Front, str]]:
    """Run two daemons on one store, and nginx before them; the last is the web app's door."""
    config = replace(behind_proxy(), engine=valkey.shared().url)
    config = replace(config, limits=replace(config.limits, disconnect_seconds=0.1))
    numbers = free_ports(4)
    ports = list(zip(numbers[::2], numbers[1::2], strict=True))
    one, other = [
        replace(
            config,
            frontend=replace(config.frontend, port=frontend),
            backend=replace(config.backend, port=backend),
        )
        for frontend, backend in ports
    ]
    async with (
        serving(config=one) as first,
        serving(config=other) as second,
        nginx_of_nodes(folder, authority, ports) as (front, door),
    ):
        yield (first, second), front, door


async def status_of(door: str, **headers: str) -> int:
    """Make a call by way of the web app's door."""
    body = call_body("datasync_backend", "publishDeltas", {"deltas": [insert(1)]})
    head = {"X-Backend-Key": KEY, "Content-Type": "application/json", **headers}
    request = HTTPRequest(door, method="POST", body=body, headers=head)
    return (await AsyncHTTPClient().fetch(request, raise_error=False)).code


async def test_a_node_that_drains_is_passed_over(tmp_path: Path, authority: trustme.CA) -> None:
    async with nodes(tmp_path, authority) as ((one, other), front, door):
        one.frontend.draining = one.backend.draining = True
        for number in range(TEXTS):
            await (await front.connect()).close()
            token = json.dumps({"token": await other.authorize(ALL)})
            opened = await front.request("/events", token, Content_Type="application/json")
            assert opened.code == 200
            polled = await front.request(f"/ws/sockjs/000/{number}/xhr", "")
            assert (polled.code, polled.body) == (200, b"o\n")
            assert await status_of(door, **{"Idempotency-Key": f"{tmp_path}-{number}"}) == 200
        plain = [await status_of(door) for _ in range(TEXTS)]
        assert set(plain) == {200, 503}, "without a key the caller is to decide"


async def test_a_node_that_is_not_there_is_passed_over_and_met_when_it_is_back(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async with nodes(tmp_path, authority) as ((one, other), front, door):
        for gone in (one, other):  # without a moment between them
            for place in gone.server._doors.values():
                place.stop()
            for _ in range(TEXTS):
                await (await front.connect()).close()
                assert await status_of(door) == 200
            for place in gone.server._doors.values():
                place.open()
        assert await status_of(door) == 200
