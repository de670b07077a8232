"""One timer for many deadlines: pings of 50,000 sessions cost one wake-up a tick."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

logger = logging.getLogger("syncserver.timers")


class Alarm:
    """A callback that the wheel will call once, unless it is cancelled."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the callback; harmless when it was called already."""
        self._callback = None

    def ring(self) -> None:
        """Call the callback, if it is still wanted."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Wheel:
    """Calls callbacks after so many seconds, exact to a tick.

    The timer runs only while there are alarms.
    """

    def __init__(self, tick_seconds: float = 1.0) -> None:
        self._tick_seconds = tick_seconds
        self._now = 0
        self._slots: dict[int, list[Alarm]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Alarm:
        """Call ``callback`` after at least ``seconds`` and at most one tick more."""
        alarm = Alarm(callback)
        after_next_tick = seconds - self._until_next_tick()
        ticks = 1 + max(0, math.ceil(after_next_tick / self._tick_seconds))
        self._slots.setdefault(self._now + ticks, []).append(alarm)
        return alarm

    def close(self) -> None:
        """Forget all alarms."""
        self._slots.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _until_next_tick(self) -> float:
        if self._timer is None:
            self._arm()
            return self._tick_seconds
        return self._timer.when() - asyncio.get_running_loop().time()

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._tick_seconds, self._turn)

    def _turn(self) -> None:
        self._timer = None
        self._now += 1
        for alarm in self._slots.pop(self._now, ()):
            try:
                alarm.ring()
            except Exception:
                logger.exception("An alarm failed")
        if self._slots and self._timer is None:  # an alarm that set another has armed it
            self._arm()
