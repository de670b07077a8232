"""Fuzz for as long as is wanted: ``python -m tests.fuzz --seconds 3600 --target websocket``.

A failing input is made small and kept in ``tests/fuzz/corpus``, where each test run tries it
first. Ends with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from random import Random

from tests.fuzz import parsers, settings, stores
from tests.fuzz.doors import BATCH, DOORS, Door, placed
from tests.fuzz.target import Failure, Target, attempt, hushed, keep, smaller

TARGETS = {one.name: one for one in (*parsers.TARGETS, *stores.TARGETS, *settings.TARGETS)}
DOORS_BY_NAME = {one.name: one for one in DOORS}
_SLICE_SECONDS = 10.0


def failures(target: Target, rng: Random, seconds: float) -> Iterator[Failure | int]:
    """Yield each failing input, and at the end how many were tried."""
    ends, tried = time.monotonic() + seconds, 0
    with hushed(target.quiet):
        for data in target.inputs(rng):
            tried += 1
            try:
                attempt(target, data, twice=tried % 8 == 0)
            except Failure as failure:
                yield failure
            if time.monotonic() > ends:
                break
    yield tried


async def failures_at(door: Door, rng: Random, seconds: float) -> AsyncIterator[Failure | int]:
    """Yield each failing input at a door, and at the end how many were tried."""
    ends, tried = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        try:
            async with placed() as place:  # another daemon after each failure
                while time.monotonic() < ends:
                    tried += BATCH
                    await door.attempt(place, [door.make(rng) for _ in range(BATCH)])
        except Failure as failure:
            yield failure
    yield tried


class Session:
    """What was tried and what failed."""

    def __init__(self, names: Sequence[str]) -> None:
        self.tried = dict.fromkeys(names, 0)
        self.known: set[str] = set()

    def hear(self, name: str, came: Failure | int) -> None:
        """Count, or keep what failed in a new way."""
        if isinstance(came, int):
            self.tried[name] += came
        elif came.kind not in self.known:
            self.known.add(came.kind)
            small = smaller(TARGETS[name], came) if name in TARGETS else came
            if small.alone:
                keep(name, small.data, f"{type(small.error).__name__}: {small.error}"[:200])
            print(f"FAILED {small}", flush=True)

    async def turn(self, name: str, rng: Random, seconds: float) -> None:
        """Try one target for a while."""
        if name in TARGETS:
            for came in failures(TARGETS[name], rng, seconds):
                self.hear(name, came)
        else:
            async for one in failures_at(DOORS_BY_NAME[name], rng, seconds):
                self.hear(name, one)


def main() -> int:
    """Take turns with the targets, until the time is over."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--target", action="append", choices=[*TARGETS, *DOORS_BY_NAME])
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # failures are told as such
    names = options.target or [*TARGETS, *DOORS_BY_NAME]
    print(f"seed {options.seed}; {', '.join(names)}", flush=True)
    session, rng = Session(names), Random(options.seed)
    ends = time.monotonic() + options.seconds
    while (left := ends - time.monotonic()) > 0:
        for name in names:
            turn = min(_SLICE_SECONDS, left / len(names))
            asyncio.run(session.turn(name, rng, turn))
        told = " ".join(f"{name} {count:,}" for name, count in session.tried.items())
        print(f"{max(0, ends - time.monotonic()):.0f} s left: {told}", flush=True)
    print(f"{sum(session.tried.values()):,} inputs, {len(session.known)} kinds of failure")
    return 1 if session.known else 0


if __name__ == "__main__":
    sys.exit(main())
