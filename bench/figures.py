"""What was measured, round by round, and what is said of it: medians, spread, ratios.

Rounds are interleaved (A B C A B C ...), so values of one round met the same machine. Ratios
are taken within a round and their median is told; the spread is the lowest and the highest.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """A median between the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Series:
    """One figure of one server under one load: a value for each round."""

    scenario: str
    case: str
    server: str
    metric: str
    values: list[float] = field(default_factory=list)


class Figures:
    """All that one run measured, and what it could not measure."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {}
        self.missing: dict[str, str] = {}
        self.notes: list[str] = []
        self._series: dict[tuple[str, str, str, str], Series] = {}

    def add(self, scenario: str, case: str, server: str, **metrics: float) -> None:
        """Take the values of one round."""
        for metric, value in metrics.items():
            key = (scenario, case, server, metric)
            self._series.setdefault(key, Series(*key)).values.append(value)

    def note(self, text: str) -> None:
        """Take what a reader of the figures has to know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def __iter__(self) -> Iterator[Series]:
        return iter(self._series.values())

    def get(self, scenario: str, case: str, server: str, metric: str) -> Sequence[float]:
        """Return the values of all rounds; none where nothing was measured."""
        found = self._series.get((scenario, case, server, metric))
        return found.values if found else ()

    def ratios(
        self, over: tuple[str, str, str, str], under: tuple[str, str, str, str]
    ) -> Spread | None:
        """Return one figure divided by another, round by round; None without both."""
        pairs = list(zip(self.get(*over), self.get(*under), strict=False))
        values = [above / below for above, below in pairs if below]
        return Spread.of(values) if values else None

    def join(self, other: Figures) -> None:
        """Take the loads that another run measured; its values replace those of the same load."""
        taken = {(one.scenario, one.case) for one in other}
        kept = {key: one for key, one in self._series.items() if key[:2] not in taken}
        self._series = {**kept, **other._series}
        versions = {**self.about.get("versions", {}), **other.about.get("versions", {})}
        self.about = {**other.about, **self.about, "versions": versions}
        self.missing.update(other.missing)
        for text in other.notes:
            self.note(text)

    def write(self, path: Path) -> None:
        """Write all of it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"about": self.about, "missing": self.missing, "notes": self.notes}
        series = ",\n".join(json.dumps(asdict(one)) for one in self)
        path.write_text(f'{json.dumps(head)[:-1]}, "series": [\n{series}\n]}}\n', "utf-8")

    @classmethod
    def read(cls, path: Path) -> Figures:
        """Read what ``write`` wrote."""
        whole = json.loads(path.read_text("utf-8"))
        figures = cls()
        figures.about, figures.missing = whole["about"], whole["missing"]
        figures.notes = whole["notes"]
        for one in whole["series"]:
            series = Series(**one)
            key = (series.scenario, series.case, series.server, series.metric)
            figures._series[key] = series
        return figures


def merged(histograms: Iterable[Iterable[tuple[float, int]]]) -> Mapping[float, int]:
    """Return one histogram of many: how often each value was seen."""
    seen: Counter[float] = Counter()
    for histogram in histograms:
        for value, times in histogram:
            seen[value] += times
    return seen


def quantile(histogram: Mapping[float, int], part: float) -> float:
    """Return the value below or at which ``part`` of a histogram lies; NaN of an empty one."""
    rank = part * sum(histogram.values())
    below = 0
    for value in sorted(histogram):
        below += histogram[value]
        if below >= rank:
            return value
    return float("nan")


def quantiles(histogram: Mapping[float, int]) -> dict[str, float]:
    """Return the latencies that are told, in milliseconds."""
    parts = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    return {name: quantile(histogram, part) / 1000 for name, part in parts.items()}
