"""Measure syncserver beside other servers, in interleaved rounds, and print ratios.

    python -m bench [--quick] [--only SCENARIO] [--peers A,B] [--targets] ...

docs/howto/benchmark says how to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from bench import crowds, docs, engines, fanout, ingest, load, matches, plots, report
from bench.build import BUILD, ROOT, say
from bench.figures import Figures
from bench.peers import KINDS, added
from bench.product import NAME
from bench.stage import FULL, QUICK, Stage

logger = logging.getLogger("bench")


def _engines(stage: Stage) -> None:
    """Measure the engines against each other (``bench.engines``)."""
    plan = stage.plan
    measured = asyncio.run(engines.measure(plan.engine_seconds, min(plan.rounds, 3)))
    for name, one in measured.items():
        for single, batched in zip(one.single, one.batched, strict=True):
            stage.figures.add("engines", "deltas a second", name, single=single, batched=batched)


SCENARIOS: Mapping[str, Callable[[Stage], None]] = {
    "fan-out": fanout.run,
    "ingest": ingest.run,
    "connect": crowds.connect,
    "resume": crowds.resume,
    "idle": crowds.idle,
    "views": matches.views,
    "end-to-end": matches.end_to_end,
    "matching": matches.matching,
    "engines": _engines,
}
# What a quick run measures beside syncserver; --peers names others.
FAST = ("tornado", "websockets", "ws", "epoll")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; under a minute")
    parser.add_argument("--only", metavar="SCENARIO", help=f"some of {', '.join(SCENARIOS)}")
    parser.add_argument("--peers", metavar="A,B", help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--add", metavar="NAME=COMMAND", action="append", default=[], type=added)
    parser.add_argument("--rounds", metavar="N", type=int)
    parser.add_argument("--json", metavar="FILE", type=Path, default=BUILD / "results.json")
    parser.add_argument("--plots", metavar="FOLDER", type=Path, help="write SVG files")
    parser.add_argument("--targets", action="store_true", help="print what is to be reached")
    parser.add_argument("--docs", action="store_true", help="put the figures in the documentation")
    parser.add_argument(
        "--from",
        dest="read",
        metavar="FILE",
        type=Path,
        action="append",
        help="show a result, or several in one; measure nothing",
    )
    return parser.parse_args()


def _commit() -> str:
    """Return what is measured, with a plus where the working tree has more than that."""
    if shutil.which("git") is None:
        return ""
    told = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip()


def _measured(options: argparse.Namespace) -> Figures:
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = dataclasses.replace(plan, rounds=options.rounds)
    kinds = {**KINDS, **dict(options.add)}
    wanted = FAST if options.quick else tuple(KINDS)
    wanted = tuple(options.peers.split(",")) if options.peers else wanted
    command, generator = load.command()
    added_names = [name for name, _ in options.add if name not in wanted]
    stage = Stage(plan, command, [NAME, *wanted, *added_names], kinds)
    stage.figures.about |= {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": f"Python {platform.python_version()}",
        "rounds": plan.rounds,
        "generator": generator,
    }
    chosen = options.only.split(",") if options.only else list(SCENARIOS)
    if unknown := set(chosen) - set(SCENARIOS):
        raise SystemExit(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    for name in chosen:
        began = time.monotonic()
        try:
            SCENARIOS[name](stage)
        except Exception:  # what was measured before it is worth having
            logger.exception("%s failed", name)
            stage.figures.note(f"{name}: failed, see the log.")
        stage.figures.write(options.json)
        say(f"{name}: {time.monotonic() - began:.0f} s")
    return stage.figures


def main() -> None:
    """Measure, or read what was measured, and tell it."""
    options = _options()
    if options.read:
        figures = Figures.read(options.read[0])
        for other in options.read[1:]:
            figures.join(Figures.read(other))
    else:
        figures = _measured(options)
    print(report.whole(figures))
    if options.targets:
        print(f"\n{report.targets(figures)}")
    if options.plots:
        plots.write(figures, options.plots)
    if options.docs:
        docs.write(figures)


if __name__ == "__main__":
    main()
