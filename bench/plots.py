"""Bars as SVG: a bar for each server, with the lowest and the highest round as a whisker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

from bench import crowds, fanout
from bench.figures import Figures, Spread
from bench.product import NAME
from bench.report import BASE, COMPARED, compared, loads, number

WIDTH, BAR, GAP, TOP, LABELS, VALUES = 640, 16, 8, 44, 130, 90
OWN, OTHER, INK = "#b3541e", "#7f8fa6", "#333"
Bars = Sequence[tuple[str, Spread]]


def svg(title: str, bars: Bars, unit: str) -> str:
    """Return a picture of some bars, the longest as wide as there is room."""
    longest = max((spread.high for _, spread in bars), default=0) or 1
    room = WIDTH - LABELS - VALUES
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
        name = slug(f"{scenario} {case}")
        bars = [
            (server, ratio)
            for server in servers
            if (ratio := compared(figures, scenario, case, server)) is not None
        ]
        if len(bars) > 1:
            title = f"{scenario}, {case}: how many times less {_what(metrics)} than {BASE}"
            yield name, title, svg(title, _longest_first(bars), "x")
        if scenario == fanout.SCENARIO and case.endswith(fanout.PACED):
            late = [
                (server, Spread.of(values))
                for server in servers
                if (values := figures.get(scenario, case, server, "p99_ms"))
            ]
            title = f"{scenario}, {case}: p99 latency in milliseconds"
            yield f"{name}-p99", title, svg(title, _longest_first(late)[::-1], " ms")


def slug(text: str) -> str:
    """Return a file's name for a load."""
    return text.replace(" ", "-").replace("=", "").lower()


def _what(metrics: Sequence[str]) -> str:
    return {"cpu_us": "CPU", "rss_bytes": "memory"}[next(m for m in COMPARED if m in metrics)]


def _longest_first(bars: Bars) -> Bars:
    return sorted(bars, key=lambda bar: -bar[1].median)


def write(figures: Figures, folder: Path) -> list[Path]:
    """Write the pictures; return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, _, picture in pictures(figures):
        paths.append(folder / f"{name}.svg")
        paths[-1].write_text(picture, "utf-8")
    return paths


# The pictures that the documentation shows.
SHOWN = (
    f"{fanout.SCENARIO} {fanout.case(1000, fanout.ALONE)}",
    f"{fanout.SCENARIO} {fanout.case(5000, fanout.ALONE)}",
    f"{fanout.SCENARIO} {fanout.case(1000, fanout.SIXTEEN)}",
    f"{fanout.SCENARIO} {fanout.case(1000, fanout.PACED)} p99",
    f"{crowds.IDLE} 10000 clients",
)
