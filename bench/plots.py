"""Bars as SVG: a bar for each server, with the lowest and the highest round as a whisker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from bench import crowds, fanout, matches
from bench.figures import Figures, Spread
from bench.product import NAME
from bench.report import BASE, compared, loads, number
from bench.stage import FULL

WIDTH, BAR, GAP, TOP, LABELS, NUMBERS = 640, 16, 8, 44, 130, 90
OWN, OTHER, INK = "#b3541e", "#7f8fa6", "#333"
Bars = Sequence[tuple[str, Spread]]
# Metrics that are shown as they are: of which loads, what they are called, in which unit.
VALUES: Mapping[str, tuple[Callable[[str], bool], str, str]] = {
    "p99_ms": (lambda case: case.endswith(fanout.PACED), "p99 latency in milliseconds", " ms"),
    "rss_bytes": (lambda _: True, "bytes of memory for a connection", " B"),
}
# The pictures that the documentation shows.
SHOWN = (
    f"{fanout.SCENARIO} {fanout.case(1000, fanout.ALONE)}",
    f"{fanout.SCENARIO} {fanout.case(5000, fanout.ALONE)}",
    f"{fanout.SCENARIO} {fanout.case(1000, fanout.SIXTEEN)}",
    f"{fanout.SCENARIO} {fanout.case(1000, fanout.PACED)} p99_ms",
    f"{crowds.IDLE} 10000 clients rss_bytes",
    f"{matches.MATCHING} equality",
    f"{matches.MATCHING} mixed",
)


def svg(title: str, bars: Bars, unit: str) -> str:
    """Return a picture of some bars, the longest as wide as there is room."""
    longest = max((spread.high for _, spread in bars), default=0) or 1
    room = WIDTH - LABELS - NUMBERS
    height = TOP + len(bars) * (BAR + GAP) + GAP

    def at(value: float) -> float:
        return round(LABELS + room * value / longest, 1)

    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<text x="{GAP}" y="20" font-size="14" fill="{INK}">{escape(title)}</text>',
    ]
    for place, (name, spread) in enumerate(bars):
        lines += _bar(TOP + place * (BAR + GAP), name, spread, unit, at)
    return "\n".join([*lines, "</svg>", ""])


def _bar(
    top: int, name: str, spread: Spread, unit: str, at: Callable[[float], float]
) -> Iterator[str]:
    middle, colour = top + BAR / 2, OWN if name == NAME else OTHER
    text = f'y="{top + BAR - 4}" fill="{INK}"'
    yield f'<text x="{LABELS - GAP}" text-anchor="end" {text}>{escape(name)}</text>'
    yield (
        f'<rect x="{LABELS}" y="{top}" width="{round(at(spread.median) - LABELS, 1)}" '
        f'height="{BAR}" fill="{colour}"/>'
    )
    yield (
        f'<path d="M{at(spread.low)} {middle}H{at(spread.high)}" stroke="{INK}" '
        'stroke-width="1.5" fill="none"/>'
    )
    yield f'<text x="{at(spread.high) + GAP}" {text}>{number(spread.median)}{unit}</text>'


def pictures(figures: Figures) -> Iterator[tuple[str, str, str]]:
    """Give name, title and SVG of each picture there are figures for."""
    for scenario, case, servers, metrics in loads(figures):
        load = f"{scenario}, {case}"
        if "cpu_us" in metrics:
            found = [(server, compared(figures, scenario, case, server)) for server in servers]
            bars = sorted(_given(found), key=lambda bar: -bar[1].median)
            title = f"{load}: how many times less CPU than {BASE}; more is better"
            yield from _picture(f"{scenario} {case}", title, bars, "x")
        for metric, (is_shown, what, unit) in VALUES.items():
            if metric in metrics and is_shown(case):
                found = [
                    (server, _spread(figures.get(scenario, case, server, metric)))
                    for server in servers
                ]
                bars = sorted(_given(found), key=lambda bar: bar[1].median)
                title = f"{load}: {what}; less is better"
                yield from _picture(f"{scenario} {case} {metric}", title, bars, unit)
    for name in matches.MATCHING_LARGE:
        costs = [
            (f"{size:,}", _spread(figures.get(matches.MATCHING, load, NAME, "us_per_delta")))
            for size in FULL.matching
            for load in [matches.matching_case(name, size)]
        ]
        title = f"matching, {name}: microseconds a row, by the number of filters"
        yield from _picture(f"{matches.MATCHING} {name}", title, _given(costs), " us")


def _picture(name: str, title: str, bars: Bars, unit: str) -> Iterator[tuple[str, str, str]]:
    if len(bars) > 1:
        yield slug(name), title, svg(title, bars, unit)


def _given(found: Iterable[tuple[str, Spread | None]]) -> list[tuple[str, Spread]]:
    return [(name, spread) for name, spread in found if spread is not None]


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None


def slug(text: str) -> str:
    """Return a file's name for a load."""
    return text.replace(" ", "-").replace("=", "").replace("_", "-").lower()


def write(figures: Figures, folder: Path) -> list[Path]:
    """Write the pictures; return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, _, picture in pictures(figures):
        paths.append(folder / f"{name}.svg")
        paths[-1].write_text(picture, "utf-8")
    return paths
