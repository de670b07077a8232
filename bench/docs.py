"""Puts the figures of a run in the documentation: ``docs/explanation/performance``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import plots
from bench.build import ROOT, say
from bench.figures import Figures
from bench.plots import SHOWN
from bench.report import tables, target_row
from bench.targets import TARGETS

FOLDER = ROOT / "docs" / "explanation" / "performance"
PAGE = "measured.txt"


def write(figures: Figures, folder: Path = FOLDER) -> None:
    """Write the text that the page includes, its pictures and the figures themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    pictures = []
    for name, title, picture in plots.pictures(figures):
        if name in {plots.slug(shown) for shown in SHOWN}:
            (folder / f"{name}.svg").write_text(picture, "utf-8")
            pictures.append((name, title))
    (folder / PAGE).write_text("\n".join(_page(figures, pictures)), "utf-8")
    figures.write(folder / "results.json")
    say(f"written: {folder}")


def _page(figures: Figures, pictures: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield ".. Written by `make bench ARGS=--docs`; what is changed here is lost with the next run."
    yield ""
    yield from _conditions(figures)
    head = ["metric", "target", "stretch target", "reached", "met?"]
    yield from _table([head, *(target_row(figures, target) for target in TARGETS)])
    for name, title in pictures:
        yield from (f".. figure:: performance/{name}.svg", f"   :alt: {title}", "")
    for title, rows in tables(figures, brief=True):
        yield from (f"*{title}*", "")
        yield from _table(rows)
    for note in figures.notes:
        yield from (f"* {note}", "")


def _conditions(figures: Figures) -> Iterator[str]:
    said = figures.about
    where = f"{said['date']}, commit {said.get('commit')}, {said['machine']}, {said['python']}"
    yield f"* {where}; generator in {said['generator']}."
    yield f"* {said['rounds']} interleaved rounds; median (lowest..highest)."
    versions = [f"{name}: {version}" for name, version in said.get("versions", {}).items()]
    yield f"* Measured: {'; '.join(versions)}."
    for name, why in figures.missing.items():
        yield f"* Missing: {name}: {why}."
    yield ""


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (".. list-table::", "   :header-rows: 1", "")
    for row in rows:
        for place, cell in enumerate(row):
            shown = r"\-" if cell == "-" else cell  # a dash alone would begin a list
            yield f"   {'  -' if place else '* -'} {shown}".rstrip()
    yield ""
