"""A loop whose clock jumps: what waits for an hour takes no time, and what hangs fails at once."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

MOST_SECONDS = 100_000.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sleeps by setting its clock forward, as long as nothing is ready."""

    def __init__(self) -> None:
        self._virtual = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._virtual

    def jump(self, seconds: float) -> None:
        self._virtual += seconds


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout:
            self._loop.jump(timeout)
        return ready


def on_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on such a loop; ``asyncio.sleep`` is exact there and costs nothing."""

    async def bounded(call: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(MOST_SECONDS):
            await call
        await asyncio.sleep(1)  # what is just ending may end
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(bounded(test(*args, **kwargs)))

    return run
