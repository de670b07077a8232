"""Signs of life: of a daemon for systemd, and of workers for the process that started them.

The first is given when it listens. Where a watchdog asks for them there are more, from the
event loop, so that a process that is stopped, or stuck in a loop, gives none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Callable

from syncserver.process.notify import ALIVE, READY, STOPPING

_BEATS_IN_TIME = 3
_PIECE_BYTES = 4096
_START_SECONDS = 60.0


class Life:
    """What a process that serves tells of itself.

    :param tell: is given one of the states of ``notify``.
    :param watchdog_seconds: how long a watchdog waits for a sign of life, if there is one.
    """

    def __init__(self, tell: Callable[[str], None], watchdog_seconds: float | None) -> None:
        self._tell = tell
        self._watchdog_seconds = watchdog_seconds

    def begin(self) -> None:
        """Tell that it listens, and from now on that its event loop turns."""
        self._tell(READY)
        self._go_on()

    def end(self) -> None:
        """Tell that it is about to end."""
        self._tell(STOPPING)

    def _go_on(self) -> None:
        if self._watchdog_seconds is not None:
            self._tell(ALIVE)
            seconds = self._watchdog_seconds / _BEATS_IN_TIME
            asyncio.get_running_loop().call_later(seconds, self._go_on)


class Pulse:
    """The pipe from workers to the process that started them, and what came through it.

    :param watchdog_seconds: how long a watchdog waits for a sign of life, if there is one.
    """

    def __init__(
        self,
        watchdog_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watchdog_seconds = watchdog_seconds
        self._clock = clock
        self._reading, self._writing = _pipe()
        self._woken, self._waking = _pipe()
        self._expected: dict[int, float] = {}
        self._heard: dict[int, float] = {}
        self._looked = clock()

    @property
    def seconds(self) -> float | None:
        """How long to wait between two signs of life; None: one is enough."""
        return None if self._watchdog_seconds is None else self._watchdog_seconds / _BEATS_IN_TIME

    def beat(self, number: int) -> None:
        """Give a sign of life of the worker with this number, from 0 to 255."""
        with contextlib.suppress(BlockingIOError):  # thousands are there that nobody has read
            os.write(self._writing, bytes([number]))

    def attend(self) -> None:
        """Have signals end the waiting from now on."""
        signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)

    def wait(self) -> None:
        """Wait for signs of life or a signal, but no longer than to the next look at them."""
        select.select([self._reading, self._woken], [], [], self.seconds)
        _read(self._woken)
        self._take()

    def expect(self, number: int) -> None:
        """Expect the first sign of life of a worker, which starts now."""
        self._expected[number] = self._clock()

    def forget(self, number: int) -> None:
        """Forget a worker that has ended, and what it still sent."""
        self._take()
        self._expected.pop(number, None)
        self._heard.pop(number, None)

    def listening(self) -> int:
        """Return how many workers have given a sign of life."""
        return len(self._heard)

    def silent(self) -> list[int]:
        """Return the workers that have been silent for too long while this process looked.

        Who starts may be silent for a minute, or as long as the watchdog waits if that is more.
        """
        now, before = self._clock(), self._looked
        self._looked = now
        if self._watchdog_seconds is None:
            return []
        if now - before > self._watchdog_seconds / 2:  # it was stopped itself: they get their time
            self._expected = dict.fromkeys(self._expected, now)
            self._heard = dict.fromkeys(self._heard, now)
        start_seconds = max(_START_SECONDS, self._watchdog_seconds)
        found = [number for number, at in self._expected.items() if now - at > start_seconds]
        found += [n for n, at in self._heard.items() if now - at > self._watchdog_seconds]
        return found

    def _take(self) -> None:
        now = self._clock()
        for number in _read(self._reading):
            self._expected.pop(number, None)
            self._heard[number] = now


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def _read(end: int) -> bytes:
    """Return what stands in a pipe."""
    found = bytearray()
    with contextlib.suppress(BlockingIOError):  # it is empty
        while piece := os.read(end, _PIECE_BYTES):
            found += piece
    return bytes(found)
