"""The hand-over has no hole: at any moment, on any engine, with any cuts.

Taking out the replay, the cursor check or the look after an await makes these fail;
tests/test_joining.py has the look after each of the awaits.
"""

from __future__ import annotations

import itertools
import random
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import syncserver.rowsync.joining
from syncserver.config import Limits
from syncserver.engines.base import Engine
from syncserver.engines.memory import MemoryEngine
from syncserver.engines.redis import RedisEngine
from syncserver.engines.sqlite import SQLiteEngine
from syncserver.protocols.native import NativeProtocol
from tests.conftest import ExpectedLog
from tests.support import valkey
from tests.support.delayed import Delayed
from tests.support.mutant import mutated
from tests.support.toy import ToyProtocol
from tests.support.world import World

RUNS = 500
FEWER_RUNS = 100

LIMITS = Limits(tail_bytes=2_000)
TIGHT = replace(LIMITS, retention_entries=6, tail_bytes=700)


def memory(rng: random.Random, limits: Limits) -> Engine:
    return MemoryEngine(limits)


def delayed(rng: random.Random, limits: Limits) -> Engine:
    return Delayed(MemoryEngine(limits), rng)


ENGINES = [memory, delayed]

Make = Callable[[random.Random, Limits], Engine]


def in_files(folder: Path) -> Make:
    """Return a maker of SQLite engines, each on a file of its own."""
    numbers = itertools.count()

    def make(rng: random.Random, limits: Limits) -> Engine:
        return SQLiteEngine(limits, f"sqlite://{folder}/{next(numbers)}.db?synchronous=normal")

    return make


async def explore(engine: Make, runs: int) -> Counter[str]:
    """Run worlds with seeds 0, 1, ...; return why subscriptions ended."""
    reasons: Counter[str] = Counter()
    for seed in range(runs):
        rng = random.Random(seed)
        limits = TIGHT if seed % 4 == 3 else LIMITS
        protocol = ToyProtocol if seed % 2 else NativeProtocol
        world = World(rng, engine(rng, limits), limits, protocol)
        try:
            await world.run(writes=rng.randint(5, 25), browsers=3, steps=rng.randint(3, 15))
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        reasons.update(world.refetches)
    return reasons


@pytest.mark.seconds(300)
@pytest.mark.parametrize("engine", ENGINES)
async def test_every_page_ends_equal_to_the_database_and_sees_each_change_once(
    engine: Make,
) -> None:
    reasons = await explore(engine, RUNS)
    assert reasons["revoked"] > RUNS / 10
    assert reasons["trimmed"]


@pytest.mark.seconds(300)
@pytest.mark.parametrize("late", [False, True], ids=["sqlite", "delayed sqlite"])
async def test_so_it_does_on_a_log_in_a_file(tmp_path: Path, late: bool) -> None:
    make = in_files(tmp_path)
    reasons = await explore(
        lambda rng, limits: Delayed(make(rng, limits), rng) if late else make(rng, limits),
        FEWER_RUNS,
    )
    assert reasons["revoked"] > FEWER_RUNS / 10
    assert reasons["trimmed"]


@pytest.mark.seconds(300)
@pytest.mark.parametrize("late", [False, True], ids=["redis", "delayed redis"])
async def test_so_it_does_on_a_log_in_redis(late: bool, expected_log: ExpectedLog) -> None:
    def make(rng: random.Random, limits: Limits) -> Engine:
        url = f"{valkey.shared().url}?prefix={secrets.token_hex(8)}"
        engine = RedisEngine(limits, url)
        return Delayed(engine, rng) if late else engine

    # A log of six entries goes on while a slow machine does not read it.
    with expected_log("syncserver.stream", r"was lost \(trimmed\)", certain=False):
        reasons = await explore(make, FEWER_RUNS)
    assert reasons["revoked"] > FEWER_RUNS / 10


MUTANTS = {
    "no replay": ("self._replay(subscription, record)", "pass"),
    "no cursor check": (
        "while position != self._stream.cursor:",
        "while position.offset < self._stream.cursor.offset:",
    ),
    "live after one chunk": ("while position != self._stream.cursor:", "for _ in range(1):"),
    "no look after an await": (
        "    if subscription.state is State.GONE or not subscription.peer.session.open:",
        "    if False:",
    ),
}


@pytest.mark.seconds(300)
@pytest.mark.parametrize("name", MUTANTS)
async def test_a_joiner_with_a_fault_is_found_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = mutated(syncserver.rowsync.joining, *MUTANTS[name])
    monkeypatch.setattr("syncserver.rowsync.subscriptions.Joining", mutant.Joining)
    with pytest.raises((AssertionError, TimeoutError, KeyError)):
        await explore(delayed, RUNS)
