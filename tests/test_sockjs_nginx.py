"""SockJS behind nginx, with the rule of deploy/: a session stays with its machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.daemon import ROOT, serving, until
from tests.support.fronts import free_port, is_open, nginx_with
from tests.support.sockjs import OPEN, Site, read, site
from tests.test_draining import PREFIX, code_of, polling

RULE = ROOT / "deploy" / "nginx-nodes.conf"
SERVER = """
server {
    listen 127.0.0.1:PORT;
    location / {
        proxy_pass http://syncserver;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $http_connection;
        proxy_next_upstream error timeout http_503;
    }
}
"""


def rule() -> str:
    """Return what says where a session is, and the machines for clients."""
    text = RULE.read_text("utf-8").partition("upstream syncserver_backend")[0]
    assert "map $uri" in text
    return text


@asynccontextmanager
async def balanced(
    folder: Path, *places: Site, prefix: str = "/echo", keepalive: int = 0
) -> AsyncIterator[Site]:
    """Give a client of several machines that goes by way of nginx.

    :param keepalive: how many connections to the machines nginx keeps for later requests.
    """
    port = free_port()
    text = rule().replace("/ws/sockjs", prefix)
    if keepalive:
        text = text.replace(" consistent;", f" consistent;\n    keepalive {keepalive};")
    for number, place in enumerate(places, 1):
        address = f"10.0.0.{number}:5800"
        assert address in text
        text = text.replace(address, f"127.0.0.1:{place.port}")
    client = Site(port, places[0].registry, places[0].sessions)
    server = SERVER.replace("PORT", str(port))
    async with nginx_with(folder, f"{text}{server}", lambda: is_open(port)):
        try:
            yield client
        finally:
            await client.close()


async def test_all_requests_of_a_session_reach_its_machine_through_nginx(tmp_path: Path) -> None:
    async with site() as one, site() as other, balanced(tmp_path, one, other) as client:
        paths = [client.session() for _ in range(16)]
        for path in paths:
            assert await client.poll(path) == OPEN
        assert len(one.sessions)
        assert len(other.sessions)
        assert len(one.sessions) + len(other.sessions) == len(paths)
        for path in paths:
            await client.say(path, "a", "b")
            found: list[str] = []
            while len(found) < 2:
                found += json.loads((await client.poll(path))[1:])
            assert found == ["a", "b"]


async def test_who_polls_over_connections_that_nginx_keeps_is_told_of_a_drain(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        daemons = [await stack.enter_async_context(serving()) for _ in range(2)]
        places = [await stack.enter_async_context(polling(daemon)) for daemon in daemons]
        options: Any = {"prefix": PREFIX, "keepalive": 4}
        client = await stack.enter_async_context(balanced(tmp_path, *places, **options))
        paths = [client.session(PREFIX) for _ in range(16)]
        for path in paths:
            assert await client.poll(path) == OPEN
        door = daemons[0].server._doors["frontend"]
        assert door.accepted < len(paths) / 2, "nginx does not keep connections"
        ending = asyncio.ensure_future(daemons[0].server.drain())
        await until(lambda: not daemons[0].frontend.sessions)
        told = [path for path in paths if places[0].sessions.is_taken(path.rpartition("/")[2])]
        assert 0 < len(told) < len(paths)
        for _ in range(8):  # some of them are refused here, and go to the next machine
            (await client.websocket("/ws")).close()
        for path in told:
            assert code_of(await client.poll(path)) == 4001
        await ending
        places[1].sessions.close()


async def test_nginx_passes_each_frame_on_as_it_comes(tmp_path: Path) -> None:
    async with site() as one, site() as other, balanced(tmp_path, one, other) as client:
        path = client.session()
        stream = await client.streaming(path)
        await stream.take(OPEN)
        for number in range(5):
            await client.say(path, f"number {number}")
            await stream.take(f'a["number {number}"]\n'.encode())
        stream.abort()
        await until(lambda: not one.registry.sessions and not other.registry.sessions)
        wire = await client.websocket(f"{path}/websocket")
        assert await read(wire) == "o"
