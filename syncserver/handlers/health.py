"""Whether the daemon is well, for those who watch over it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from syncserver import strict_json
from syncserver.handlers.base import PlainHandler


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
