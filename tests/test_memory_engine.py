"""What is special to the engine of one process: its sweep, and the memory that comes back."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest

from syncserver.config import Limits
from syncserver.engines.base import Grant, GrantMissing
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import PositionLost
from tests.support.virtual import on_virtual_time

LIMITS = Limits(
    retention_seconds=10, idempotency_seconds=20, retention_entries=5, retention_bytes=5_000
)


def engine() -> MemoryEngine:
    """Return an engine on the clock of a virtual loop, where a sweep comes by itself."""
    return MemoryEngine(LIMITS, clock=asyncio.get_running_loop().time)


def timers() -> int:
    handles = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return sum(not handle.cancelled() for handle in handles)


def held(memory: MemoryEngine) -> int:
    """Return how many things the engine keeps."""
    logs = memory._logs.values()
    kept = [each for log in logs for each in (log.entries, log.times, log.keys, log.news)]
    return sum(map(len, [*kept, memory._grants, memory._deadlines]))


async def put(memory: MemoryEngine, token: str, seconds: float) -> None:
    await memory.put_grant(token, Grant("s", await memory.head("s"), b"body"), seconds)


@on_virtual_time
async def test_retention_is_exact_by_entries() -> None:
    memory = engine()
    for _ in range(20):
        await memory.append("s", b"")
    assert sorted(memory._logs["s"].entries) == [16, 17, 18, 19, 20]
    await memory.close()


@on_virtual_time
async def test_retention_by_bytes_counts_what_an_entry_costs_beside_its_data() -> None:
    memory = engine()
    for _ in range(20):
        await memory.append("s", bytes(1_000))
    log = memory._logs["s"]
    assert len(log.entries) == 3
    assert log.size == sum(len(entry.data) + 300 for entry in log.entries.values()) <= 5_000
    await memory.append("s", bytes(10_000))
    assert (log.entries, log.size) == ({}, 0)
    await memory.close()


@on_virtual_time
async def test_what_is_old_goes_without_a_call() -> None:
    memory = engine()
    start = await memory.head("s")
    await memory.append("s", b"x", idempotency_key="k")
    await put(memory, "t", 5)
    await asyncio.sleep(9)
    assert memory._logs["s"].entries
    assert not memory._grants
    await asyncio.sleep(3)
    assert not memory._logs["s"].entries
    assert memory._logs["s"].keys, "a key lives longer than its entry"
    with pytest.raises(PositionLost):
        await memory.read("s", start, 1)
    await asyncio.sleep(10)
    assert held(memory) == 0


@on_virtual_time
async def test_a_sweep_keeps_what_was_kept_longer_meanwhile() -> None:
    memory = engine()
    for token in ("renewed", "taken", "released", "left"):
        await put(memory, token, 3)
    await memory.take_grant("renewed", 3, resumable=True)
    await memory.renew_grants(["renewed"], 9)
    await memory.take_grant("taken", 9, resumable=True)
    await memory.take_grant("released", 9, resumable=True)
    await memory.release_grant("released", 1, 9)
    await asyncio.sleep(6)
    assert sorted(memory._grants) == ["released", "renewed", "taken"]
    for token in ("renewed", "taken", "released"):
        assert (await memory.take_grant(token, 9, resumable=True)).take
    await asyncio.sleep(12)
    with pytest.raises(GrantMissing):
        await memory.take_grant("taken", 1, resumable=True)
    assert not memory._deadlines


@on_virtual_time
async def test_the_timer_runs_only_while_there_is_something_to_sweep() -> None:
    memory = engine()
    before = timers()
    await memory.head("s")
    assert timers() == before
    for _ in range(3):
        await memory.append("s", b"x")
        await put(memory, "t", 20)
        await memory.take_grant("t", 3, resumable=True)
        assert timers() == before + 1
        await asyncio.sleep(30)
        assert timers() == before
        await memory.append("s", b"x", idempotency_key="k")
        assert timers() == before + 1
        await asyncio.sleep(30)
        assert timers() == before


@on_virtual_time
async def test_a_closed_engine_has_no_timer_and_tells_nobody() -> None:
    class Deaf:
        def entries_arrived(self, entries: object) -> None:
            raise AssertionError("told after the close")

        went_stale = came_fresh = position_lost = entries_arrived

    memory = engine()
    before = timers()
    await memory.follow("s", await memory.head("s"), Deaf())  # type: ignore[arg-type]
    await memory.append("s", b"x")
    await put(memory, "t", 100)
    await memory.close()
    await asyncio.sleep(5)
    assert timers() == before


@on_virtual_time
async def test_followers_are_told_once_a_turn_and_never_inside_an_append() -> None:
    class Batches:
        def __init__(self) -> None:
            self.told: list[int] = []

        def entries_arrived(self, entries: list[object]) -> None:
            self.told.append(len(entries))

    memory, batches = engine(), Batches()
    await memory.follow("s", await memory.head("s"), batches)  # type: ignore[arg-type]
    for _ in range(50):
        await memory.append("s", b"x")
        assert batches.told == []
    await asyncio.sleep(0)
    assert batches.told == [50]
    await memory.close()


@on_virtual_time
async def test_the_memory_of_what_is_over_comes_back() -> None:
    memory = engine()

    async def use(count: int) -> None:
        for number in range(count):
            await memory.append("s", bytes(100), idempotency_key=f"key {number}")
            await put(memory, f"token {number}", 100)
            if number % 2:
                await memory.take_grant(f"token {number}", 5, resumable=True)
                await memory.release_grant(f"token {number}", 1, 0)
        await asyncio.sleep(200)

    await use(10)
    gc.collect()
    tracemalloc.start()
    try:
        await use(10)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await use(5_000)
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held(memory) == 0
    assert after - before < (peak - before) / 10  # dicts keep their tables
