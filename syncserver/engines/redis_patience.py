"""A time limit for those who wait on a loop that may be busy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

_SLICES = 8


@contextlib.asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError after so long, not counting most of what this process was held up.

    The time is cut into slices that begin one after the other: a loop that comes late to the end
    of one has time in the next to see what arrived meanwhile.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as scope:

        def begin(left: int) -> None:
            nonlocal timer
            if left:
                timer = loop.call_later(seconds / _SLICES, begin, left - 1)
            else:
                scope.reschedule(loop.time())

        begin(_SLICES)
        try:
            yield
        finally:
            timer.cancel()
