"""Whether the daemon is well, for those who watch over it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from syncserver import strict_json
from syncserver.handlers.base import PlainHandler

_SHARED_SECONDS = 1.0


class SharedCheck:
    """One check for all who ask within a second, or while it is under way.

    :param check: returns the reasons why not.
    """

    def __init__(self, check: Callable[[], Coroutine[Any, Any, list[str]]]) -> None:
        self._check = check
        self._task: asyncio.Task[list[str]] | None = None
        self._again_at = 0.0

    async def reasons(self) -> list[str]:
        """Return what the check returned, now or a moment ago."""
        now = asyncio.get_running_loop().time()
        task = self._task
        if task is None or (task.done() and now >= self._again_at):
            task = self._task = asyncio.ensure_future(self._check())
            self._again_at = now + _SHARED_SECONDS
        if not task.done():
            await asyncio.wait({task})
        return ["ending"] if task.cancelled() else list(task.result())

    def close(self) -> None:
        """Check no more."""
        if self._task is not None:
            self._task.cancel()


class HealthHandler(PlainHandler):
    """``GET``: 200 and ``{"ok": true}``, or 503 and the reasons why not.

    :param check: returns the reasons; ``/live`` has none as long as the loop turns.
    """

    def initialize(self, check: Callable[[], Awaitable[list[str]]]) -> None:
        """Take the option of the route."""
        self._check = check

    async def get(self) -> None:
        """Say how the daemon is."""
        reasons = await self._check()
        self.set_status(503 if reasons else 200)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.set_header("Cache-Control", "no-store")
        body: dict[str, Any] = {"ok": not reasons}
        if reasons:
            body["reasons"] = reasons
        self.finish(strict_json.encode(body))
