"""The chat demo in a real browser that has no WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.demos.chromium import Browser, Page, chromium, find
from tests.support import npm
from tests.support.daemon import ROOT

pytestmark = [pytest.mark.seconds(90)]

NO_WEBSOCKET = "delete window.WebSocket; delete window.MozWebSocket;"


@asynccontextmanager
async def running() -> AsyncIterator[str]:
    """Run the demo and give the address of its page; it ends in order."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "demos.chat_sockjs", "--port", "0", cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(30):
            while not (line := (await child.stdout.readline()).decode()).startswith("page "):
                assert line, (await child.communicate())[1].decode()
        yield line.split()[1]
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            _, errors = await child.communicate()
        assert (child.returncode, errors.decode()) == (0, "")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def window(browser: Browser, url: str) -> Page:
    """Open a window in which there is no WebSocket."""
    page = await browser.open("about:blank", width=560, height=640)
    await page.send("Page.addScriptToEvaluateOnNewDocument", source=NO_WEBSOCKET)
    await page.send("Page.navigate", url=url)
    await page.until("document.body && 'ready' in document.body.dataset")
    assert await page.value("typeof WebSocket") == "undefined"
    return page


async def say(page: Page, name: str, text: str) -> None:
    await page.value(f"document.querySelector('#name').value = {json.dumps(name)}")
    await page.click("#text")
    await page.type(text)
    await page.press("Enter", 13)
    await page.until("document.querySelector('#text').value === ''")


async def shows(page: Page, *texts: str) -> None:
    shown = "[...document.querySelectorAll('#messages span')].map((one) => one.textContent)"
    await page.until(f"JSON.stringify({shown}) === JSON.stringify({json.dumps(texts)})")


async def choose(page: Page, transport: str) -> None:
    chosen = json.dumps(transport)
    await page.value(f"""(() => {{
        const select = document.querySelector("#transport");
        select.value = {chosen};
        select.dispatchEvent(new Event("change"));
    }})()""")
    await page.until(f"document.querySelector('#status').textContent.endsWith({chosen})")


async def test_two_windows_without_websocket_talk_over_each_transport() -> None:
    find()
    npm.modules()
    async with running() as url, chromium() as browser:
        left, right = [await window(browser, url) for _ in range(2)]
        for page in (left, right):
            status = await page.value("document.querySelector('#status').textContent")
            assert status == "Connected over xhr-streaming"
        said = ["Is the WebSocket blocked? \U0001f9c0", "<b>It is</b> \u2028 & gone"]
        await say(left, "Ana", said[0])
        await say(right, "Ben", said[1])
        for page in (left, right):
            await shows(page, *said)
        for transport in ("eventsource", "xhr-polling", "xhr-streaming"):
            await choose(right, transport)
            said += [f"{transport} there", f"{transport} and back"]
            await right.until("document.querySelector('#status').dataset.state === 'live'")
            await say(right, "Ben", said[-2])
            await say(left, "Ana", said[-1])
            for page in (left, right):
                await shows(page, *said)
        assert [left.errors, right.errors] == [[], []]
