"""Fuzz for as long as is wanted: ``python -m tests.fuzz --seconds 3600 --target websocket``.

Each target gets the same inputs in the same order for the same ``--seed``, as many as there is
time for. A failing input is made small and kept in ``tests/fuzz/corpus``, where each test run
tries it first. The target ``lives`` has no inputs but steps, which are printed. Ends with 1 if
anything failed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from random import Random

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conformance.test_lives import Lives
from tests.fuzz.doors import BATCH, DOORS, Door, placed
from tests.fuzz.table import SOURCES, TARGETS
from tests.fuzz.target import Failure, Target, attempt, hushed, keep, smaller

_SLICE_SECONDS = 10.0
_BATCHES = 10
LIVES = "lives"
_LIVED = settings(
    max_examples=20,
    stateful_step_count=50,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


def failures(target: Target, inputs: Iterator[bytes], seconds: float) -> Iterator[Failure | int]:
    """Yield each failing input, and at the end how many were tried."""
    ends, tried = time.monotonic() + seconds, 0
    with hushed(target.quiet):
        for data in inputs:
            tried += 1
            try:
                attempt(target, data, twice=tried % 8 == 0)
            except Failure as failure:
                yield failure
            if time.monotonic() > ends:
                break
    yield tried


async def failures_at(
    door: Door, inputs: Iterator[bytes], seconds: float
) -> AsyncIterator[Failure | int]:
    """Yield each failing input at a door, and at the end how many were tried."""
    ends, tried = time.monotonic() + seconds, 0
    made: list[bytes] = []
    while made or time.monotonic() < ends:
        made = made or list(islice(inputs, _BATCHES * BATCH))
        try:
            async with placed(**door.limits) as place:  # another daemon after each failure
                while made:
                    batch, made = made[:BATCH], made[BATCH:]
                    tried += len(batch)
                    await door.attempt(place, batch)
        except Failure as failure:
            yield failure
    yield tried


def failing_lives(rng: Random, seconds: float) -> Iterator[Failure | int]:
    """Yield what fails in lives of pages, step by step, and at the end how many there were."""
    ends, lived = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        machine = seed(rng.getrandbits(64))(type("AnyLives", (Lives,), {}))
        lived += _LIVED.max_examples
        try:
            run_state_machine_as_test(machine, settings=_LIVED)
        except Exception as error:  # noqa: BLE001  # told by who called, with its trace
            story = "\n".join(getattr(error, "__notes__", ()))
            yield Failure(LIVES, story.encode(), error, alone=False)
    yield lived


class Session:
    """What was tried and what failed."""

    def __init__(self, names: Sequence[str], number: int) -> None:
        self.tried = dict.fromkeys(names, 0)
        self.known: set[str] = set()
        self._rngs = {name: Random(f"{number} {name}") for name in names}
        self._inputs = {
            name: SOURCES[name].inputs(rng) for name, rng in self._rngs.items() if name in SOURCES
        }

    def hear(self, name: str, came: Failure | int) -> None:
        """Count, or keep what failed in a new way."""
        if isinstance(came, int):
            self.tried[name] += came
        elif came.kind not in self.known:
            self.known.add(came.kind)
            small = smaller(TARGETS[name], came) if name in TARGETS else came
            if small.alone:
                keep(name, small.data, f"{type(small.error).__name__}: {small.error}")
            print(f"FAILED {small}", flush=True)

    def turn(self, name: str, seconds: float) -> None:
        """Try one target for a while."""
        if name in DOORS:
            asyncio.run(self._turn_at(DOORS[name], seconds))
            return
        if name == LIVES:
            tried = failing_lives(self._rngs[name], seconds)
        else:
            tried = failures(TARGETS[name], self._inputs[name], seconds)
        for came in tried:
            self.hear(name, came)

    async def _turn_at(self, door: Door, seconds: float) -> None:
        async for came in failures_at(door, self._inputs[door.name], seconds):
            self.hear(door.name, came)


def main() -> int:
    """Take turns with the targets, until the time is over."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--target", action="append", choices=[*SOURCES, LIVES])
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # failures are told as such
    names = options.target or [*SOURCES, LIVES]
    print(f"seed {options.seed}; {', '.join(names)}", flush=True)
    session = Session(names, options.seed)
    ends = time.monotonic() + options.seconds
    while (left := ends - time.monotonic()) > 0:
        for name in names:
            turn = min(_SLICE_SECONDS, left / len(names))
            session.turn(name, turn)
        told = " ".join(f"{name} {count:,}" for name, count in session.tried.items())
        print(f"{max(0, ends - time.monotonic()):.0f} s left: {told}", flush=True)
    print(f"{sum(session.tried.values()):,} inputs, {len(session.known)} kinds of failure")
    return 1 if session.known else 0


if __name__ == "__main__":
    sys.exit(main())
