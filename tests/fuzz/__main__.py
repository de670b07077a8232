"""Fuzz for as long as is wanted: ``python -m tests.fuzz --seconds 3600 --target frames``.

A failing input is made small and kept in ``tests/fuzz/corpus``, where each test run tries it
first. Ends with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Iterator
from random import Random

from tests.fuzz import parsers, settings, stores
from tests.fuzz.target import Failure, Target, attempt, hushed, keep, smaller

TARGETS = {one.name: one for one in (*parsers.TARGETS, *stores.TARGETS, *settings.TARGETS)}
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


def main() -> int:
    """Take turns with the targets, until the time is over."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    print(f"seed {options.seed}; {', '.join(names)}", flush=True)
    rng, ends = Random(options.seed), time.monotonic() + options.seconds
    tried, known = dict.fromkeys(names, 0), set()
    while (left := ends - time.monotonic()) > 0:
        for name in names:
            turn = min(_SLICE_SECONDS, left / len(names))
            for came in failures(TARGETS[name], rng, turn):
                if isinstance(came, int):
                    tried[name] += came
                elif came.kind not in known:
                    known.add(came.kind)
                    small = smaller(TARGETS[name], came)
                    keep(name, small.data, f"{type(small.error).__name__}: {small.error}"[:200])
                    print(f"FAILED {small}", flush=True)
        told = " ".join(f"{name} {count:,}" for name, count in tried.items())
        print(f"{max(0, ends - time.monotonic()):.0f} s left: {told}", flush=True)
    print(f"{sum(tried.values()):,} inputs, {len(known)} kinds of failure")
    return 1 if known else 0


if __name__ == "__main__":
    sys.exit(main())
