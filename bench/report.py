"""Tables of what was measured, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from bench.figures import Figures, Spread
from bench.product import NAME
from bench.targets import TARGETS, Target

BASE = "tornado"
COLUMNS = {
    "cpu_us": "CPU us",
    "clients_us": "clients' us",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "last_p50_ms": "last p50 ms",
    "last_p99_ms": "last p99 ms",
    "delivered": "delivered",
    "seconds": "seconds",
    "rss_bytes": "RSS bytes",
    "us_per_delta": "us a row",
    "each_us": "us, each evaluated",
    "insert_us": "us to add",
    "remove_us": "us to remove",
    "candidates": "looked at",
    "distinct_bytes": "bytes, distinct",
    "repeated_bytes": "bytes, repeated",
    "single": "single POST",
    "batched": "100 in a POST",
}
HIDDEN = ("took_s",)
LONG = ("clients_us", "p999_ms")
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
        if one.metric not in metrics and one.metric not in HIDDEN:
            metrics.append(one.metric)
    for (scenario, case), (servers, metrics) in found.items():
        if metrics:
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


def tables(figures: Figures, *, brief: bool = False) -> Iterator[tuple[str, list[list[str]]]]:
    """Give the title and the rows of every table, a head first.

    A load has a table with a row for each server; a scenario that syncserver alone
    is measured in has one table, with a row for each load.

    :param brief: fewer columns, and a spread only for what is compared.
    """
    together: dict[str, list[tuple[str, str]]] = {}
    found = list(loads(figures))
    others = {scenario for scenario, _, servers, _ in found if servers != [NAME]}
    for scenario, case, servers, metrics in found:
        if scenario in others:
            labels = [(server, case, server) for server in servers]
            title = f"{scenario}, {case}"
            yield title, list(_rows(figures, scenario, labels, metrics, brief=brief))
        else:
            together.setdefault(scenario, []).append((case, NAME))
    for scenario, cases in together.items():
        labels = [(case, case, server) for case, server in cases]
        metrics = [m for one, _, _, has in found if one == scenario for m in has]
        yield scenario, list(_rows(figures, scenario, labels, dict.fromkeys(metrics), brief=brief))


def _rows(
    figures: Figures,
    scenario: str,
    labels: Sequence[tuple[str, str, str]],
    metrics: Iterable[str],
    *,
    brief: bool,
) -> Iterator[list[str]]:
    ratios = [compared(figures, scenario, case, server) for _, case, server in labels]
    heads = [f"vs {BASE}"] if any(ratios) else []
    metrics = [metric for metric in metrics if not (brief and metric in LONG)]
    yield ["", *heads, *(COLUMNS.get(metric, metric) for metric in metrics)]
    for (label, case, server), ratio in zip(labels, ratios, strict=True):
        cells = [spread(ratio, "x")] if heads else []
        for metric in metrics:
            values = figures.get(scenario, case, server, metric)
            of = Spread.of(values) if values else None
            shortened = brief and of is not None and metric not in COMPARED
            cells.append(number(of.median) if of is not None and shortened else spread(of))
        yield [label, *cells]


def whole(figures: Figures) -> str:
    """Return everything that a run measured."""
    lines = [about(figures), ""]
    for title, rows in tables(figures):
        lines += [title, table(rows), ""]
    lines += [f"missing: {name}: {why}" for name, why in figures.missing.items()]
    lines += [f"note: {note}" for note in figures.notes]
    return "\n".join(lines)


def about(figures: Figures) -> str:
    """Return when, where and how a run was made."""
    said = figures.about
    parts = [said.get("date"), said.get("commit"), said.get("machine"), said.get("python")]
    parts += [f"{said.get('rounds')} rounds", f"generator in {said.get('generator')}"]
    return "; ".join(str(part) for part in parts if part)


def targets(figures: Figures) -> str:
    """Return the table of targets, with what this run reached."""
    rows = [["metric", "target", "stretch target", "reached", "met?"]]
    rows += [target_row(figures, target) for target in TARGETS]
    return table(rows)


def target_row(figures: Figures, target: Target) -> list[str]:
    """Return one line of the table of targets."""
    found = target.reached(figures)
    return [
        target.what,
        target.bound(target.reach),
        target.bound(target.stretch),
        spread(found, target.unit),
        target.verdict(found),
    ]
