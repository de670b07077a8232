"""How late the event loop is: a timer that looks how long after its time it was called."""

from __future__ import annotations

import asyncio

from syncserver.counters import Histogram

_TICK_SECONDS = 0.25


class LoopLag:
    """Measures the loop that it is started on, some times in a second."""

    def __init__(self, tick_seconds: float = _TICK_SECONDS) -> None:
        self.histogram = Histogram()
        self._tick_seconds = tick_seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin."""
        self._timer = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)

    def stop(self) -> None:
        """End; harmless when it was not begun."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        if self._timer is not None:
            late = asyncio.get_running_loop().time() - self._timer.when()
            self.histogram.observe(max(0.0, late))
        self.start()
