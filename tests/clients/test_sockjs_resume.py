"""The browser library over SockJS against a daemon: after a cut it resumes and misses nothing."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.demos.chromium import chromium, find
from tests.support import npm
from tests.support.daemon import Daemon, serving, until

SECONDS = 20


class Listener:
    """A Node.js that keeps a list in step, and what it has told."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def hears(self) -> Any:
        """Return what it tells next."""
        assert self._child.stdout is not None
        async with asyncio.timeout(SECONDS):
            return json.loads(await self._child.stdout.readline())

    async def hears_of(self, wanted: Any) -> list[Any]:
        """Read until it tells this, and return what it told before."""
        before: list[Any] = []
        while (told := await self.hears()) != wanted:
            before.append(told)
        return before


@asynccontextmanager
async def listening(daemon: Daemon, transport: str) -> AsyncIterator[Listener]:
    """Give a listener to all tasks that is live."""
    token = await daemon.authorize(("AllTasks", None))
    url = f"http://127.0.0.1:{daemon.server.frontend_port}/ws/sockjs"
    program = Path(__file__).parent / "resume.mjs"
    child = await asyncio.create_subprocess_exec(
        "node", str(program), str(npm.modules()), url, transport, token, stdout=PIPE
    )
    try:
        listener = Listener(child)
        assert await listener.hears_of("live") == []
        yield listener
    finally:
        child.kill()
        await child.wait()
        await until(lambda: not daemon.frontend.sessions)


def task(number: int) -> dict[str, Any]:
    return {"type": "insert", "model": "Task", "data": {"id": number}}


# In Node.js, sockjs-client itself falls when a response of xhr-streaming is cut: nobody listens to
# the error of the response. A browser does not.
@pytest.mark.seconds(90)
@pytest.mark.parametrize("transport", ["eventsource", "xhr-polling"])
async def test_after_a_cut_the_list_is_whole_without_reading_anew(transport: str) -> None:
    async with serving(disconnect_seconds=2) as daemon:
        [sessions] = daemon.server._sessions
        async with listening(daemon, transport) as listener:
            await daemon.publish(task(1))
            await listener.hears_of({"ids": [1]})
            sessions.close()  # as a process that falls
            await daemon.publish(task(2))
            before = await listener.hears_of({"ids": [1, 2]})
            assert "refetch" not in before
            assert [told for told in before if "code" in told]
            await daemon.publish(task(3))
            await listener.hears_of({"ids": [1, 2, 3]})


@pytest.mark.seconds(90)
async def test_a_drain_under_load_tells_who_polls_where_to_go() -> None:
    async with serving() as daemon, listening(daemon, "xhr-polling") as listener:
        for number in range(20):  # so that the client is between two polls mostly
            await daemon.publish(task(number))
        await daemon.server.drain()
        before = await listener.hears_of({"code": 4001})
        assert all("ids" in told for told in before)


SCRIPT = """(async () => {
    const { ArrayCollection, CollectionDeltaProcessor, DataSync, SyncServer } =
        await import("/syncserver.js");
    class Chosen extends SockJS {
        constructor(url) { super(url, null, { transports: ["xhr-streaming"] }); }
    }
    window.tasks = new ArrayCollection();
    window.events = [];
    const server = new SyncServer("/ws/sockjs", {
        services: { datasync: DataSync }, WebSocket: Chosen, keepUrl: true, minBackoff: 10,
    });
    server.services.datasync.on("refetch", () => window.events.push("refetch"));
    server.on("close", ({ code }) => window.events.push(code));
    const processor = new CollectionDeltaProcessor({ Task: window.tasks });
    await server.services.datasync.acquire(TOKEN, { processor });
})()"""


@pytest.mark.seconds(90)
async def test_after_a_cut_stream_a_page_is_whole_without_reading_anew() -> None:
    find()
    client = npm.modules() / "sockjs-client" / "dist" / "sockjs.min.js"
    async with serving(disconnect_seconds=2) as daemon, chromium() as browser:
        [sessions] = daemon.server._sessions
        token = await daemon.authorize(("AllTasks", None))
        page = await browser.open(f"http://127.0.0.1:{daemon.server.frontend_port}/syncserver.js")
        await page.value(f"{client.read_text('utf-8')}; 0")
        await page.value(SCRIPT.replace("TOKEN", json.dumps(token)))
        for number in (1, 2, 3):
            if number == 2:
                sessions.close()
            await daemon.publish(task(number))
            ids = json.dumps(list(range(1, number + 1)), separators=(",", ":"))
            await page.until(f"JSON.stringify(tasks.array.map(({{ id }}) => id)) === '{ids}'")
        assert await page.value("window.events") == [1006]
        await page.send("Page.navigate", url="about:blank")
        await until(lambda: not daemon.frontend.sessions)
