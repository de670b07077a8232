"""What a test run has tried, for the table at its end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

IN_CI = os.environ.get("CI") == "true"
QUICK = 50
"""How many times fewer inputs are tried where nobody waits for CI."""

COUNTS: dict[str, tuple[int, float]] = {}


class Tally:
    """Counts the inputs of one target."""

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def tallied(name: str) -> Iterator[Tally]:
    """Note how many inputs were tried and how long it took."""
    tally, began = Tally(), time.monotonic()
    yield tally
    COUNTS[name] = (tally.count, time.monotonic() - began)


def wanted(count: int) -> int:
    """Return how many inputs to try of those that CI would."""
    return count if IN_CI else count // QUICK
