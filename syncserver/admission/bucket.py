"""How much of something may come in a while: so much at once, and so much each second after it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """Full at first; what is taken comes back with time.

    The clock is looked at only when the bucket is empty, so that taking costs little. After a
    rest it may give twice its ``burst``: what was left, and what came back meanwhile.

    :param per_second: how much comes back each second.
    :param burst: how much it holds.
    """

    __slots__ = ("_at", "_burst", "_clock", "_left", "_per_second")

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._left: float = burst
        self._at = clock()

    def take(self, count: int = 1) -> bool:
        """Take so much; False, and nothing is taken, if it is not there."""
        left = self._left - count
        if left < 0:
            self._fill()
            left = self._left - count
            if left < 0:
                return False
        self._left = left
        return True

    def wait_for(self, count: int = 1) -> float:
        """Take so much and return 0; or take nothing, and return when it would be there."""
        return 0.0 if self.take(count) else (count - self._left) / self._per_second

    @property
    def wait_seconds(self) -> float:
        """Return when one can be taken."""
        return max(0.0, (1 - self._left) / self._per_second)

    @property
    def is_full(self) -> bool:
        """Tell whether all that was taken has come back."""
        self._fill()
        return self._left >= self._burst

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
