"""A real browser: headless Chromium, driven over the DevTools protocol.

::

    async with chromium() as browser:
        page = await browser.open("http://127.0.0.1:8000/")
        await page.click("#cut")
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Two windows stand side by side on a screen: neither may be slowed down as if nobody saw it.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--remote-debugging-port=0",
)
START_SECONDS = 30.0
WAIT_SECONDS = 15.0
POLL_SECONDS = 0.02


class PageError(AssertionError):
    """JavaScript threw, or a condition did not come true."""


def find() -> str:
    """Return the browser's path; without one the test is skipped, or fails where CI=true."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    text = "needs Chromium: apt-get install chromium"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


class Browser:
    """One Chromium, and the connection that all its pages are driven by."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def open(self, url: str, *, width: int = 900, height: int = 760) -> Page:
        """Open a window of its own and return its page, loaded."""
        where = {"newWindow": True, "width": width, "height": height}
        target = await self.send("Target.createTarget", url="about:blank", **where)
        attached = await self.send(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Runtime", "Log", "Page"):
            await page.send(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await page.send("Emulation.setDeviceMetricsOverride", **size)
        await page.send("Page.navigate", url=url)
        await page.until("document.readyState === 'complete'")
        return page

    async def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        number = next(self._numbers)
        answer = self._pending[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        await self._connection.write_message(json.dumps(message))
        return await answer

    async def read(self) -> None:
        """Take what Chromium sends, until it closes."""
        while (text := await self._connection.read_message()) is not None:
            message = json.loads(text)
            if "id" in message:
                self._answered(message)
            elif page := self._pages.get(message.get("sessionId", "")):
                page.happened(message["method"], message["params"])
        for answer in self._pending.values():
            answer.set_exception(PageError("Chromium is gone"))

    def _answered(self, message: dict[str, Any]) -> None:
        answer = self._pending.pop(message["id"])
        if answer.cancelled():
            return
        if "error" in message:
            answer.set_exception(PageError(message["error"]["message"]))
        else:
            answer.set_result(message["result"])


class Page:
    """One window. ``errors`` holds what went wrong in it: exceptions, breaches of its policy."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.errors: list[str] = []

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command to this page."""
        return await self._browser.send(method, self._session, **params)

    def happened(self, method: str, params: dict[str, Any]) -> None:
        """Note an event."""
        if method == "Runtime.exceptionThrown":
            self.errors.append(_text_of(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["source"] in {"security", "javascript"}:
            self.errors.append(params["entry"]["text"])

    async def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is waited for."""
        answer = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if details := answer.get("exceptionDetails"):
            raise PageError(f"{expression}: {_text_of(details)}")
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = WAIT_SECONDS) -> Any:
        """Wait until an expression is true and return its value."""
        # In a list, as an element is true for JavaScript and comes as an empty object.
        boxed = f"Promise.resolve({expression}).then((found) => found ? [found] : [])"
        found = []
        try:
            async with asyncio.timeout(seconds):
                while not (found := await self.value(boxed)):
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            text = await self.value("document.body?.innerText")
            raise PageError(f"not within {seconds} s: {expression}\n--\n{text}") from None
        return found[0]

    async def click(self, selector: str, count: int = 1) -> None:
        """Press and release the mouse over the middle of an element, once it is there for good.

        As long as anything on the page is moving, it may move away from under the mouse.
        """
        place = await self.until(
            f"""(() => {{
                const found = document.querySelector({json.dumps(selector)});
                const isMoving = document.getAnimations()
                    .some(({{ effect }}) => effect.getComputedTiming().endTime !== Infinity);
                if (!found || found.disabled || isMoving) return null;
                found.scrollIntoView({{ block: "nearest" }});
                const {{ x, y, width, height }} = found.getBoundingClientRect();
                const at = {{ x: x + width / 2, y: y + height / 2 }};
                const top = document.elementFromPoint(at.x, at.y);
                return found.contains(top) ? at : null;
            }})()"""
        )
        for number in range(1, count + 1):
            for kind in ("mousePressed", "mouseReleased"):
                event = {"type": kind, "button": "left", "clickCount": number} | place
                await self.send("Input.dispatchMouseEvent", **event)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        """Press a key by name and key code: ``("Enter", 13)``."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    async def dark(self) -> None:
        """Show the page as to a person who prefers dark."""
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self, path: Path) -> None:
        """Write what is seen to a PNG file."""
        shot = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


def _text_of(details: dict[str, Any]) -> str:
    thrown = details.get("exception", {})
    return str(thrown.get("description") or thrown.get("value") or details["text"])


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Give a running browser with a profile of its own, and end it."""
    path = find()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            path,
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        try:
            url = await _devtools(Path(profile, "DevToolsActivePort"), process)
            connection = await websocket_connect(url, max_message_size=64 * 1024 * 1024)
            browser = Browser(connection)
            reader = asyncio.create_task(browser.read())
            try:
                yield browser
                await browser.send("Browser.close")
                await reader
            finally:
                reader.cancel()
                connection.close()
                await asyncio.gather(reader, return_exceptions=True)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _devtools(file: Path, process: asyncio.subprocess.Process) -> str:
    """Return the address that Chromium writes down once it listens."""
    try:
        async with asyncio.timeout(START_SECONDS):
            while not (file.exists() and len(lines := file.read_text("ascii").split()) == 2):
                if process.returncode is not None:
                    raise PageError(f"Chromium ended with {process.returncode}")
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise PageError(f"Chromium did not start within {START_SECONDS} s") from None
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
