"""What is to be reached, and how it is read from the figures of one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench import crowds, fanout, ingest, matches
from bench.figures import Figures, Spread
from bench.product import NAME

Reached = Callable[[Figures], Spread | None]


@dataclass(frozen=True)
class Target:
    """A figure with what it has to reach, and what would be splendid."""

    what: str
    reach: float
    stretch: float
    reached: Reached
    unit: str = "x"
    at_most: bool = False

    def bound(self, value: float) -> str:
        """Return a bound as it is written."""
        return f"{'<=' if self.at_most else '>='} {value:,g}{self.unit}"

    def verdict(self, found: Spread | None) -> str:
        """Return which of the bounds the median keeps: ``both``, the first (``yes``) or ``no``."""
        if found is None:
            return "not measured"

        def keeps(bound: float) -> bool:
            return found.median <= bound if self.at_most else found.median >= bound

        return "both" if keeps(self.stretch) else "yes" if keeps(self.reach) else "no"


def _times_less(other: str, clients: int, mode: str) -> Reached:
    """Return how many times less processor time a frame takes than with another server."""
    load = fanout.case(clients, mode)
    return _ratio((fanout.SCENARIO, load, other, "cpu_us"), (fanout.SCENARIO, load, NAME, "cpu_us"))


def _ratio(over: tuple[str, str, str, str], under: tuple[str, str, str, str]) -> Reached:
    return lambda figures: figures.ratios(over, under)


def _value(scenario: str, case: str, metric: str) -> Reached:
    def reached(figures: Figures) -> Spread | None:
        values = figures.get(scenario, case, NAME, metric)
        return Spread.of(values) if values else None

    return reached


def _matching(name: str, size: int, metric: str = "us_per_delta") -> tuple[str, str, str, str]:
    return (matches.MATCHING, matches.matching_case(name, size), NAME, metric)


def _paced(server: str) -> tuple[str, str, str, str]:
    return (fanout.SCENARIO, fanout.case(1000, fanout.PACED), server, "p99_ms")


def _ingest(case: str) -> tuple[str, str, str, str]:
    return (ingest.SCENARIO, case, NAME, "cpu_us")


_ALONE, _SIXTEEN = fanout.ALONE, fanout.SIXTEEN
_PER_CPU = "deliveries per CPU-second"

TARGETS = (
    Target(f"{_PER_CPU} / tornado, N=1000", 3.5, 5, _times_less("tornado", 1000, _ALONE)),
    Target(f"{_PER_CPU} / tornado, N=5000", 4.5, 6, _times_less("tornado", 5000, _ALONE)),
    Target("the same, 16 deltas a tick, N=1000", 25, 45, _times_less("tornado", 1000, _SIXTEEN)),
    Target("the same, 16 deltas a tick, N=5000", 25, 45, _times_less("tornado", 5000, _SIXTEEN)),
    Target(f"{_PER_CPU} / websockets, N=1000", 1.3, 1.6, _times_less("websockets", 1000, _ALONE)),
    Target(f"{_PER_CPU} / node ws, N=1000", 1.3, 1.5, _times_less("ws", 1000, _ALONE)),
    Target(f"{_PER_CPU} / bare C epoll, N=1000", 0.75, 0.9, _times_less("epoll", 1000, _ALONE)),
    Target(
        "p99 / tornado, 20 a second x 1000",
        0.5,
        0.3,
        _ratio(_paced(NAME), _paced("tornado")),
        at_most=True,
    ),
    Target(
        "matching, 1M filters / 1k filters, equalities",
        5,
        3,
        _ratio(_matching("equality", 1_000_000), _matching("equality", 1_000)),
        at_most=True,
    ),
    Target(
        "matching, 1M filters / 1k filters, mixed",
        5,
        3,
        _ratio(_matching("mixed", 1_000_000), _matching("mixed", 1_000)),
        at_most=True,
    ),
    Target(
        "matching, 100k mixed filters, evaluating each / index",
        1_000,
        5_000,
        _ratio(_matching("mixed", 100_000, "each_us"), _matching("mixed", 100_000)),
    ),
    Target(
        "matching, 100k two-sided ranges, evaluating each / index",
        100,
        500,
        _ratio(_matching("interval", 100_000, "each_us"), _matching("interval", 100_000)),
    ),
    Target(
        "index bytes of a distinct subscription, 100k",
        500,
        300,
        _value(matches.MATCHING, "memory, 100000 filters", "distinct_bytes"),
        unit=" B",
        at_most=True,
    ),
    Target(
        "index bytes of a repeated subscription, 100k",
        100,
        50,
        _value(matches.MATCHING, "memory, 100000 filters", "repeated_bytes"),
        unit=" B",
        at_most=True,
    ),
    Target(
        "RSS of an idle subscribed connection",
        16_384,
        2_560,
        _value(crowds.IDLE, "10000 clients", "rss_bytes"),
        unit=" B",
        at_most=True,
    ),
    Target(
        "CPU per delta, 100 in a POST / 1 in a POST",
        0.03,
        0.015,
        _ratio(_ingest(ingest.BATCHED), _ingest(ingest.SINGLE)),
        at_most=True,
    ),
)
