"""Tables of what was measured, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from bench.figures import Figures, Spread
from bench.targets import TARGETS, Target

BASE = "tornado"
COLUMNS = {
    "cpu_us": "CPU us",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "last_p50_ms": "last p50 ms",
    "last_p99_ms": "last p99 ms",
    "delivered": "delivered",
    "seconds": "seconds",
    "rss_bytes": "RSS bytes",
}
# What is divided to compare with naive Tornado; the more, the better.
COMPARED = ("cpu_us", "rss_bytes")


def number(value: float) -> str:
    """Return a number with three digits that count."""
    if math.isnan(value):  # nothing came
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(of: Spread | None, unit: str = "") -> str:
    """Return a median with its lowest and highest."""
    if of is None:
        return "-"
    if of.low == of.high:
        return number(of.median) + unit
    return f"{number(of.median)}{unit} ({number(of.low)}..{number(of.high)})"


def loads(figures: Figures) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Give scenario, case, servers and metrics of every load."""
    found: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for one in figures:
        servers, metrics = found.setdefault((one.scenario, one.case), ([], []))
        if one.server not in servers:
            servers.append(one.server)
        if one.metric not in metrics:
            metrics.append(one.metric)
    for (scenario, case), (servers, metrics) in found.items():
        yield scenario, case, servers, metrics


def compared(figures: Figures, scenario: str, case: str, server: str) -> Spread | None:
    """Return how many times less than naive Tornado a server takes for the same."""
    for metric in COMPARED:
        found = figures.ratios((scenario, case, BASE, metric), (scenario, case, server, metric))
        if found is not None:
            return found
    return None


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows in columns, the first to the left and the others to the right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def load_rows(
    figures: Figures, scenario: str, case: str, servers: Sequence[str], metrics: Sequence[str]
) -> Iterator[list[str]]:
    """Give the head and the rows of one load's table."""
    compares = any(compared(figures, scenario, case, server) for server in servers)
    yield [
        "",
        *([f"vs {BASE}"] if compares else []),
        *(COLUMNS.get(metric, metric) for metric in metrics),
    ]
    for server in servers:
        ratio = [spread(compared(figures, scenario, case, server), "x")] if compares else []
        values = [figures.get(scenario, case, server, metric) for metric in metrics]
        cells = [spread(Spread.of(value)) if value else "-" for value in values]
        yield [server, *ratio, *cells]


def whole(figures: Figures) -> str:
    """Return everything that a run measured."""
    lines = [about(figures), ""]
    for scenario, case, servers, metrics in loads(figures):
        lines += [
            f"{scenario}, {case}",
            table(load_rows(figures, scenario, case, servers, metrics)),
        ]
        lines.append("")
    lines += [f"missing: {name}: {why}" for name, why in figures.missing.items()]
    lines += [f"note: {note}" for note in figures.notes]
    return "\n".join(lines)


def about(figures: Figures) -> str:
    """Return when, where and how a run was made."""
    said = figures.about
    parts = [said.get("date"), said.get("machine"), said.get("python")]
    parts += [f"{said.get('rounds')} rounds", f"generator in {said.get('generator')}"]
    return "; ".join(str(part) for part in parts if part)


def targets(figures: Figures) -> str:
    """Return the table of targets, with what this run reached."""
    rows = [["metric", "target", "moonshot", "reached", "met?"]]
    rows += [target_row(figures, target) for target in TARGETS]
    return table(rows)


def target_row(figures: Figures, target: Target) -> list[str]:
    """Return one line of the table of targets."""
    found = target.reached(figures)
    return [
        target.what,
        target.bound(target.reach),
        target.bound(target.moonshot),
        spread(found, target.unit),
        target.verdict(found),
    ]
