"""Plain counts of what happens, kept by those it happens to and read when somebody asks.

Counting costs an increment, on an object that is at hand: ``Traffic`` is of a registry and
what goes through its sessions, ``Activity`` of one service. What a count means stands in
docs/reference/metrics, under the name that it is given there (``syncserver.metrics.measures``).
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections import Counter
from collections.abc import ItemsView, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from syncserver.errors import SyncError

OK = "ok"
OTHER = "other"

_MOST_LABELS = 100
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Tally:
    """Counts by label; what would be one label too many is counted as ``other``."""

    __slots__ = ("_counts", "_most")

    def __init__(self, most: int = _MOST_LABELS) -> None:
        self._counts: dict[str, int] = {}
        self._most = most

    def add(self, label: str, amount: int = 1) -> None:
        """Count something under a label."""
        counts = self._counts
        if label not in counts and len(counts) >= self._most:
            label = OTHER
        counts[label] = counts.get(label, 0) + amount

    @contextlib.contextmanager
    def outcome(self) -> Iterator[None]:
        """Count how a body ends: ``ok``, or the code of the error that it raises."""
        label = OTHER
        try:
            yield
            label = OK
        except SyncError as error:
            label = error.code
            raise
        finally:
            self.add(label)

    def __getitem__(self, label: str) -> int:
        return self._counts.get(label, 0)

    def items(self) -> ItemsView[str, int]:
        """Return the labels that were counted, with their counts."""
        return self._counts.items()


class Histogram:
    """Durations: how many took how long at most, and all of them together."""

    __slots__ = ("_counts", "bounds", "seconds")

    def __init__(self, bounds: tuple[float, ...] = _SECONDS) -> None:
        self.bounds = bounds
        self.seconds = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def cumulative(self) -> list[int]:
        """Return how many took at most each of ``bounds``, and how many there were."""
        return list(accumulate(self._counts))


@dataclass(slots=True)
class Traffic:
    """What came and went through the sessions and calls of one registry.

    ``opened`` are sessions by transport and protocol, ``closed`` their ends by close code, or
    ``peer``; ``refused`` what was turned away before it had a session, by reason; ``errors``
    what was answered, by code.
    """

    opened: Counter[tuple[str, str]] = field(default_factory=Counter)
    closed: Tally = field(default_factory=Tally)
    refused: Tally = field(default_factory=Tally)
    errors: Tally = field(default_factory=Tally)
    received: int = 0
    received_bytes: int = 0
    writes: int = 0
    frames: int = 0
    sent_bytes: int = 0


@dataclass(slots=True)
class Activity:
    """What one service did; results are ``ok`` or the code of an error.

    ``published`` are batches or messages that this process was given, ``deltas`` those that came
    from the log, whoever published them; ``deliveries`` are frames put in outboxes. Only with
    ``has_grants`` are there tokens, to be made, acquired and resumed.
    """

    has_grants: bool = False
    publishes: Tally = field(default_factory=Tally)
    published_deltas: int = 0
    publish_seconds: Histogram = field(default_factory=Histogram)
    lag_seconds: Histogram = field(default_factory=Histogram)
    entries: int = 0
    deltas: int = 0
    deliveries: int = 0
    grants: int = 0
    acquires: Tally = field(default_factory=Tally)
    resumes: Tally = field(default_factory=Tally)
    refetches: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a service stands now; ``clients`` are sessions that are subscribed to something."""

    clients: int
    subscriptions: int
    views: int
    items: int
    offset: int
    tail_bytes: int
    stale: bool
    waiting_grants: int | None = None
