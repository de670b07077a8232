"""Server-sent events to what is not ours: curl, nginx, Chromium; and over two nodes."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from tests.demos.chromium import chromium
from tests.support import valkey
from tests.support.daemon import Daemon, serving, settings, until
from tests.support.events import source
from tests.support.fronts import needs, nginx_with
from tests.test_events import ALL, ids_of, insert, open_name, opened

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "events.rst"
TEXTS = 5


def code(language: str) -> str:
    """Return the first block of the page in a language."""
    block = PAGE.read_text("utf-8").partition(f".. code-block:: {language}\n\n")[2]
    lines = re.match(r"(?:   .*\n|\n)+", block)
    assert lines
    return re.sub(r"^   ", "", lines[0], flags=re.MULTILINE)


# Two nodes on one Redis.


async def test_a_stream_opens_and_resumes_on_other_nodes_than_its_post() -> None:
    shared = valkey.shared()
    config = replace(settings(), engine=shared.url)
    async with serving(config=config) as one, serving(config=config) as other:
        token = await one.authorize(ALL)
        name = await open_name(one, token)
        async with opened(other, name) as stream:
            await stream.until("position")
            await one.publish(insert(1))
            assert await ids_of(stream, 1) == [1]
            await stream.until("position")
            async with opened(one, name) as refused:
                assert refused.status == 404, "one node has opened it, so no other does"
        await other.publish(insert(2))
        async with opened(one, name, stream.last_id) as again:
            assert await ids_of(again, 1) == [2]


# curl.


async def test_curl_streams_as_the_page_says() -> None:
    needs("curl")
    first, _, second = code("bash").partition("\ncurl -N")
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        await daemon.publish(insert(1))

        async def run(command: str, **environ: str) -> asyncio.subprocess.Process:
            command = command.replace("5800", str(daemon.server.frontend_port))
            environ["PATH"] = os.environ["PATH"]
            return await asyncio.create_subprocess_exec(
                "sh", "-c", f"exec {command}", env=environ, stdout=asyncio.subprocess.PIPE
            )

        posted = await run(first, TOKEN=token)
        name = json.loads((await posted.communicate())[0])["stream"]
        streaming = await run("curl -N" + second, STREAM=name)
        assert streaming.stdout is not None
        try:
            async with asyncio.timeout(10):
                lines = [await streaming.stdout.readline() for _ in range(6)]
        finally:
            streaming.kill()
            await streaming.communicate()
    text = b"".join(lines).decode()
    assert text.startswith("retry: ")
    assert f"\nid: /{token}\n\nevent: delta\ndata: {{" in text


# nginx.


@asynccontextmanager
async def nginx(folder: Path, upstream: int, extra: Iterable[str]) -> AsyncIterator[str]:
    """Run nginx in front of a port; give the path of the Unix socket it listens on."""
    listening = folder / "s"
    server = code("nginx").replace("5800", str(upstream))
    text = f"{' '.join(extra)}\nserver {{ listen unix:{listening};\n{server} }}"
    async with nginx_with(folder, text, listening.exists):
        yield str(listening)


@pytest.mark.parametrize("extra", [["gzip on;"], ["proxy_http_version 1.1;"]], ids=["1.0", "1.1"])
async def test_nginx_passes_each_event_on_as_it_comes(tmp_path: Path, extra: list[str]) -> None:
    async with (
        serving() as daemon,
        nginx(tmp_path, port := daemon.server.frontend_port, extra) as path,
    ):
        token = await daemon.authorize(ALL)
        name = await open_name(daemon, token)
        async with source(port, name, path=path) as stream:
            assert stream.status == 200
            await stream.until("position")
            for number in range(TEXTS):
                await daemon.publish(insert(number))
                assert await ids_of(stream, 1) == [number]
                await stream.until("position")
        await until(lambda: not daemon.frontend.sockets)
        await daemon.publish(insert(TEXTS))
        async with source(port, name, stream.last_id, path=path) as again:
            assert await ids_of(again, 1) == [TEXTS]


# Chromium, with the function of the how-to page.


class Page(RequestHandler):
    def initialize(self, text: str) -> None:
        self._text = text

    def get(self) -> None:
        self.write(self._text)


@asynccontextmanager
async def page_for(daemon: Daemon) -> AsyncIterator[str]:
    """Serve a page with the function; its port is not the daemon's, so its origin is another."""
    script = code("javascript").replace("5800", str(daemon.server.frontend_port))
    text = f"<!doctype html><title>events</title><script>{script}</script>"
    server = HTTPServer(Application([("/.*", Page, {"text": text})]))
    server.listen(0, "127.0.0.1")
    [sock] = server._sockets.values()
    try:
        yield f"http://localhost:{sock.getsockname()[1]}/"
    finally:
        server.stop()
        await server.close_all_connections()


def cut(daemon: Daemon) -> None:
    """Cut all streams, as a network does."""
    for session in daemon.frontend.sessions:
        transport: Any = session._transport
        transport._stream().close()


@pytest.mark.seconds(90)
async def test_chromium_streams_comes_again_and_is_told_to_fetch_again() -> None:
    async with serving() as daemon, page_for(daemon) as url, chromium() as browser:
        page = await browser.open(url)
        token = await daemon.authorize(ALL)
        await daemon.publish(insert(1), insert(2))
        await page.value(
            f"""(window.seen = [], window.over = null, live("{token}", {{
                apply: (deltas) => seen.push(deltas.map((delta) => delta.data.id)),
                refetch: (reason) => {{ over = reason; }},
            }}))"""
        )
        await page.until("seen.flat().length === 2")
        assert (await page.value("seen"))[0] == [1, 2], "a batch is applied whole"
        await daemon.publish(insert(3))
        await page.until("seen.flat().includes(3)")
        await page.until("performance.getEntriesByType('resource').length > 0")
        cut(daemon)
        await until(lambda: not daemon.frontend.sockets)
        await daemon.publish(insert(4))
        await page.until("seen.flat().includes(4)")
        assert await page.value("seen.flat()") == [1, 2, 3, 4]
        await daemon.post("datasync_backend", "revokeSubscription", token=token)
        await page.until("over === 'revoked'")
        await until(lambda: not daemon.frontend.sockets)
        assert page.errors == []


@pytest.mark.seconds(90)
async def test_chromium_comes_again_over_a_restart_and_a_port_where_nobody_answers(
    tmp_path: Path,
) -> None:
    config = replace(settings(), engine=f"sqlite://{tmp_path}/log.db")
    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(chromium())
        async with serving(config=config) as daemon:
            url = await stack.enter_async_context(page_for(daemon))
            page = await browser.open(url)
            token = await daemon.authorize(ALL)
            await page.value(
                f"""(window.seen = [], window.over = null, live("{token}", {{
                    apply: (deltas) => seen.push(...deltas.map((delta) => delta.data.id)),
                    refetch: (reason) => {{ over = reason; }},
                }}))"""
            )
            await daemon.publish(insert(1))
            await page.until("seen.length === 1")
            await daemon.publish(insert(2))
            await daemon.server.drain()
            port = daemon.server.frontend_port
        tried = asyncio.Event()

        def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()
            tried.set()

        async with await asyncio.start_server(hang_up, "127.0.0.1", port):
            async with asyncio.timeout(15):
                await tried.wait()
        config = replace(config, frontend=replace(config.frontend, port=port))
        async with serving(config=config) as daemon:
            await daemon.publish(insert(3))
            await page.until("seen.length === 3")
            assert await page.value("[seen, over]") == [[1, 2, 3], None]
            await daemon.post("datasync_backend", "revokeSubscription", token=token)
            await until(lambda: not daemon.frontend.sockets)
