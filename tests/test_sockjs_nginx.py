"""SockJS behind nginx, with the rule of the how-to: a session stays with its machine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.daemon import ROOT, until
from tests.support.fronts import free_port, is_open, nginx_with
from tests.support.sockjs import OPEN, Site, read, site

PAGE = ROOT / "docs" / "howto" / "sockjs.rst"
SERVER = """
server {
    listen 127.0.0.1:PORT;
    location / {
        proxy_pass http://syncserver;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $http_connection;
    }
}
"""


def rule() -> str:
    """Return what the how-to says for nginx."""
    text = PAGE.read_text("utf-8").partition(".. code-block:: nginx\n\n")[2]
    lines = []
    for line in text.splitlines():
        if line and not line.startswith("   "):
            break
        lines.append(line.removeprefix("   "))
    return "\n".join(lines)


@asynccontextmanager
async def balanced(folder: Path, *places: Site) -> AsyncIterator[Site]:
    """Give a client of several machines that goes by way of nginx."""
    port = free_port()
    text = rule().replace("/ws/sockjs", "/echo")
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
