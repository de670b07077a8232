"""What every engine keeps: one order, no hole that is not told of, and one holder of each grant.

A new engine is one ``Store`` and one row in ``ENGINES``.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from syncserver.config import Limits
from syncserver.engines.base import (
    Engine,
    Entry,
    Grant,
    GrantHeld,
    GrantMissing,
    GrantRevoked,
    Taken,
    revoked_notice,
    taken_notice,
)
from syncserver.engines.memory import MemoryEngine
from syncserver.engines.redis import RedisEngine
from syncserver.engines.sqlite import SQLiteEngine
from syncserver.errors import IdempotencyConflict, PositionLost, RefetchReason, TooManyGrants
from syncserver.position import START_MARK, Position
from tests.support import valkey
from tests.support.delayed import Delayed

JUNK = bytes(range(256)) * 2
BIG = bytes(1024) * 1024
LIMITS = Limits()


class Store(ABC):
    """Where the engines of one test keep their data, and the clock by which they forget it.

    :param folder: for the files of those that have any.
    """

    reopens = False
    """Whether an engine that is closed and opened anew has what the old one had."""

    follows_the_append = True
    """Whether followers are told before anything can be trimmed; if not, they hear of a loss."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.now = 1_000.0

    @abstractmethod
    def make(self, limits: Limits) -> Engine:
        """Return an engine on this store."""

    @asynccontextmanager
    async def engine(self, limits: Limits = LIMITS) -> AsyncIterator[Engine]:
        """Give an engine and close it."""
        engine = self.make(limits)
        try:
            yield engine
        finally:
            await engine.close()

    def clock(self) -> float:
        return self.now

    async def pass_time(self, seconds: float) -> None:
        """Let so much time go by for the engines."""
        self.now += seconds


class Memory(Store):
    def make(self, limits: Limits) -> Engine:
        return MemoryEngine(limits, clock=self.clock)


class Redis(Store):
    reopens = True
    follows_the_append = False

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder)
        self.server, self.prefix = valkey.shared(), secrets.token_hex(8)

    def make(self, limits: Limits) -> Engine:
        return RedisEngine(limits, f"{self.server.url}?prefix={self.prefix}")

    async def pass_time(self, seconds: float) -> None:
        await super().pass_time(seconds)
        self.server.pass_time(self.prefix, seconds)


class DelayedRedis(Redis):
    def make(self, limits: Limits) -> Engine:
        return Delayed(super().make(limits), random.Random(1))


class DelayedMemory(Store):
    def make(self, limits: Limits) -> Engine:
        return Delayed(MemoryEngine(limits, clock=self.clock), random.Random(1))


class SQLite(Store):
    reopens = True

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder or Path(tempfile.mkdtemp()))
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self.folder)

    def make(self, limits: Limits) -> Engine:
        url = f"sqlite://{self.folder}/log.db?synchronous=normal"
        return SQLiteEngine(limits, url, clock=self.clock)


class DelayedSQLite(SQLite):
    def make(self, limits: Limits) -> Engine:
        return Delayed(super().make(limits), random.Random(1))


ENGINES: dict[str, Callable[[Path | None], Store]] = {
    "memory": Memory,
    "delayed memory": DelayedMemory,
    "redis": Redis,
    "delayed redis": DelayedRedis,
    "sqlite": SQLite,
    "delayed sqlite": DelayedSQLite,
}


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return ENGINES[request.param](tmp_path)


class Gathered:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.lost: list[RefetchReason] = []
        self._changed = asyncio.Event()

    def entries_arrived(self, entries: Sequence[Entry]) -> None:
        self.entries.extend(entries)
        self._changed.set()

    def went_stale(self) -> None:
        raise AssertionError("nothing is out of reach here")

    def came_fresh(self) -> None:
        raise AssertionError("nothing was out of reach here")

    def position_lost(self, reason: RefetchReason) -> None:
        self.lost.append(reason)
        self._changed.set()

    @property
    def data(self) -> list[bytes]:
        return [entry.data for entry in self.entries]

    async def until(self, done: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    async def until_at(self, position: Position) -> None:
        await self.until(lambda: self.entries and self.entries[-1].position == position)


async def append_all(engine: Engine, datas: Iterable[bytes], stream: str = "s") -> list[Position]:
    return [await engine.append(stream, data) for data in datas]


async def all_entries(engine: Engine, after: Position, stream: str = "s") -> list[Entry]:
    return await engine.read(stream, after, 10_000)


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"entry %d" % number for number in range(start, start + count)]


def check_chain(start: Position, entries: Sequence[Entry]) -> None:
    """Check that entries follow ``start`` and each other without a hole."""
    last = start
    for entry in entries:
        assert entry.position.epoch == last.epoch
        assert entry.position.offset == last.offset + 1
        assert entry.previous == last.mark
        last = entry.position


async def lost_reason(engine: Engine, position: Position, stream: str = "s") -> RefetchReason:
    with pytest.raises(PositionLost) as caught:
        await engine.read(stream, position, 10)
    return caught.value.reason


# The log.


async def test_a_stream_that_is_not_there_begins_and_stays_the_same(store: Store) -> None:
    async with store.engine() as engine:
        first, second = await asyncio.gather(engine.head("s"), engine.head("s"))
        assert first == second == await engine.head("s")
        assert (first.offset, first.mark) == (0, START_MARK)
        assert await engine.read("s", first, 10) == []
        assert Position.parse(str(first)) == first


async def test_offsets_are_contiguous_from_one_and_marks_are_a_chain(store: Store) -> None:
    async with store.engine() as engine:
        start = await engine.head("s")
        positions = await append_all(engine, numbered(20))
        entries = await all_entries(engine, start)
        check_chain(start, entries)
        assert [entry.position for entry in entries] == positions
        assert [position.offset for position in positions] == list(range(1, 21))
        assert [entry.data for entry in entries] == numbered(20)
        assert len({position.mark for position in positions}) > 1
        assert all(Position.parse(str(position)) == position for position in positions)


async def test_the_head_is_the_last_entry(store: Store) -> None:
    async with store.engine() as engine:
        for data in numbered(3):
            assert await engine.append("s", data) == await engine.head("s")


@pytest.mark.parametrize("data", [b"", b"{}", JUNK, BIG], ids=["empty", "json", "junk", "1 MiB"])
async def test_bytes_come_back_as_they_were_put(store: Store, data: bytes) -> None:
    async with store.engine() as engine:
        start, heard = await engine.head("s"), Gathered()
        stop = await engine.follow("s", start, heard)
        position = await engine.append("s", data)
        await heard.until_at(position)
        assert await all_entries(engine, start) == heard.entries == [Entry(position, "0", data)]
        stop()


@pytest.mark.parametrize(("after", "limit", "numbers"), [
    (0, 3, [1, 2, 3]), (0, 1, [1]), (4, 3, [5, 6, 7]), (8, 10, [9, 10]), (0, 10, range(1, 11)),
    (9, 1, [10]), (10, 5, []),
])  # fmt: skip
async def test_a_read_gives_the_next_ones_and_no_more_than_asked(
    store: Store, after: int, limit: int, numbers: Iterable[int]
) -> None:
    async with store.engine() as engine:
        places = [await engine.head("s"), *await append_all(engine, numbered(10))]
        entries = await engine.read("s", places[after], limit)
        assert [entry.position.offset for entry in entries] == list(numbers)
        check_chain(places[after], entries)


async def test_a_position_that_the_log_does_not_have_is_lost_and_says_why(store: Store) -> None:
    async with store.engine() as engine:
        start = await engine.head("s")
        _, middle, head = await append_all(engine, numbered(3))
        for place in (start, middle, head):
            assert await lost_reason(engine, place._replace(epoch="other")) == "epoch"
            assert await lost_reason(engine, place._replace(mark="other")) == "fork"
        assert await lost_reason(engine, head._replace(offset=4)) == "rollback"
        assert await lost_reason(engine, head._replace(offset=10**15)) == "rollback"
        elsewhere = head._replace(epoch="other", offset=10**15)
        assert await lost_reason(engine, elsewhere) == "epoch"
        assert len(await all_entries(engine, start)) == 3, "looking changed something"


async def test_nothing_can_be_followed_from_a_position_that_is_lost(store: Store) -> None:
    async with store.engine() as engine:
        head = (await append_all(engine, numbered(2)))[-1]
        for place in (
            head._replace(epoch="other"),
            head._replace(offset=5),
            head._replace(mark="other"),
        ):
            heard = Gathered()
            with pytest.raises(PositionLost):
                await engine.follow("s", place, heard)
            sound = Gathered()
            stop = await engine.follow("s", await engine.head("s"), sound)
            await sound.until_at(await engine.append("s", b"more"))
            assert heard.entries == []
            stop()


async def test_what_came_in_the_last_seconds_follows_the_position_before_them(
    store: Store,
) -> None:
    async with store.engine() as engine:
        assert (await engine.since("s", 50)).offset == 0
        await append_all(engine, numbered(3))
        await store.pass_time(100)
        new = await append_all(engine, numbered(3))
        for seconds, least in ((1_000, 6), (50, 3)):
            place = await engine.since("s", seconds)
            found = [entry.position for entry in await engine.read("s", place, 10)]
            assert found[-3:] == new
            assert len(found) >= least


async def test_a_position_of_some_time_ago_is_never_before_what_is_retained(store: Store) -> None:
    async with store.engine(replace(LIMITS, retention_entries=2)) as engine:
        await append_all(engine, numbered(200))
        place = await engine.since("s", 1_000)
        assert (await engine.read("s", place, 10))[-1].position == await engine.head("s")


async def test_streams_are_independent(store: Store) -> None:
    async with store.engine() as engine:
        one, other = await engine.head("one"), await engine.head("other")
        heard = Gathered()
        stop = await engine.follow("one", one, heard)
        first = await engine.append("one", b"in one")
        second = await engine.append("other", b"in other")
        last = await engine.append("one", b"in one again")
        await heard.until_at(last)
        assert (first.offset, second.offset, last.offset) == (1, 1, 2)
        assert heard.data == [b"in one", b"in one again"]
        assert [e.data for e in await all_entries(engine, other, "other")] == [b"in other"]
        with pytest.raises(PositionLost):
            await engine.read("other", first, 1)
        stop()


async def test_concurrent_appends_get_distinct_contiguous_positions(store: Store) -> None:
    async with store.engine() as engine:
        start = await engine.head("s")
        datas = numbered(100)
        positions = await asyncio.gather(*(engine.append("s", data) for data in datas))
        entries = await all_entries(engine, start)
        check_chain(start, entries)
        assert {(entry.position, entry.data) for entry in entries} == set(
            zip(positions, datas, strict=True)
        )


# Followers.


async def test_a_follower_hears_what_came_before_it_followed_and_what_comes_after(
    store: Store,
) -> None:
    async with store.engine() as engine:
        start, heard = await engine.head("s"), Gathered()
        await append_all(engine, numbered(5))
        stop = await engine.follow("s", start, heard)
        last = (await append_all(engine, numbered(5, 5)))[-1]
        await heard.until_at(last)
        assert heard.data == numbered(10)
        check_chain(start, heard.entries)
        stop()


async def test_a_follower_from_the_middle_hears_nothing_older(store: Store) -> None:
    async with store.engine() as engine:
        middle = (await append_all(engine, numbered(5)))[2]
        heard = Gathered()
        stop = await engine.follow("s", middle, heard)
        await heard.until_at(await engine.append("s", b"last"))
        assert heard.data == [*numbered(2, 3), b"last"]
        stop()


@pytest.mark.parametrize("seed", range(20))
async def test_followers_that_come_while_others_append_hear_all_in_order_exactly_once(
    store: Store, seed: int
) -> None:
    rng = random.Random(seed)

    async def write(name: int) -> None:
        for number in range(20):
            await engine.append("s", b"%d of %d" % (number, name))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)

    async def follow() -> tuple[Position, Gathered, Callable[[], None]]:
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)
        heard, start = Gathered(), await engine.head("s")
        return start, heard, await engine.follow("s", start, heard)

    async with store.engine() as engine:
        begin = await engine.head("s")
        followers = [asyncio.ensure_future(follow()) for _ in range(6)]
        await asyncio.gather(*(write(name) for name in range(3)), *followers)
        last = await engine.append("s", b"last")
        whole = await all_entries(engine, begin)
        assert len(whole) == 61
        for start, heard, stop in map(asyncio.Future.result, followers):
            await heard.until_at(last)
            assert heard.entries == whole[start.offset :]
            stop()


async def test_a_follower_that_stopped_hears_nothing_more_and_may_stop_twice(store: Store) -> None:
    async with store.engine() as engine:
        for _ in range(10):
            start, gone, heard = await engine.head("s"), Gathered(), Gathered()
            stop = await engine.follow("s", start, gone)
            stop_other = await engine.follow("s", start, heard)
            await engine.append("s", b"on the way")
            stop()
            already = list(gone.entries)
            stop()
            await heard.until_at(await engine.append("s", b"last"))
            assert gone.entries == already
            assert heard.data == [b"on the way", b"last"]
            stop_other()


async def test_a_follower_may_stop_itself_and_others_while_it_is_told(store: Store) -> None:
    class Stopping(Gathered):
        def entries_arrived(self, entries: Sequence[Entry]) -> None:
            super().entries_arrived(entries)
            for stop in stops:
                stop()

    async with store.engine() as engine:
        start, canary = await engine.head("s"), Gathered()
        heard = [Stopping() for _ in range(3)]
        stops = [await engine.follow("s", start, one) for one in heard]
        stop = await engine.follow("s", start, canary)
        await append_all(engine, numbered(3))
        await canary.until_at(await engine.append("s", b"last"))
        assert sum(bool(one.entries) for one in heard) == 1, "one was told after it was stopped"
        assert canary.data == [*numbered(3), b"last"]
        stop()


# Keys.


async def test_the_same_data_with_the_same_key_is_appended_once(store: Store) -> None:
    async with store.engine() as engine:
        start = await engine.head("s")
        first = await engine.append("s", JUNK, idempotency_key="k")
        await engine.append("s", b"between")
        assert await engine.append("s", JUNK, idempotency_key="k") == first
        assert [entry.data for entry in await all_entries(engine, start)] == [JUNK, b"between"]


async def test_other_data_with_the_same_key_is_a_conflict_and_changes_nothing(store: Store) -> None:
    async with store.engine() as engine:
        first = await engine.append("s", b"one", idempotency_key="k")
        with pytest.raises(IdempotencyConflict):
            await engine.append("s", b"other", idempotency_key="k")
        assert await engine.head("s") == first
        assert await engine.append("s", b"one", idempotency_key="k") == first


async def test_keys_are_of_one_stream_and_told_apart(store: Store) -> None:
    async with store.engine() as engine:
        await engine.append("s", b"one", idempotency_key="k")
        await engine.append("t", b"other", idempotency_key="k")
        await engine.append("s", b"other", idempotency_key="K")
        await engine.append("s", b"other", idempotency_key="k:" + "x" * 126)
        assert (await engine.head("s")).offset == 3
        assert (await engine.head("t")).offset == 1


async def test_a_key_that_races_with_itself_counts_once(store: Store) -> None:
    async with store.engine() as engine:
        tries = [engine.append("s", b"x", idempotency_key="k") for _ in range(10)]
        assert len(set(await asyncio.gather(*tries))) == 1
        assert (await engine.head("s")).offset == 1


async def test_a_key_is_remembered_for_its_time_though_its_entry_is_trimmed(store: Store) -> None:
    async with store.engine(Limits(idempotency_seconds=10, retention_entries=2)) as engine:
        first = await engine.append("s", b"one", idempotency_key="k")
        await append_all(engine, numbered(20))
        await store.pass_time(9)
        assert await engine.append("s", b"one", idempotency_key="k") == first
        await store.pass_time(2)
        again = await engine.append("s", b"two", idempotency_key="k")
        assert again.offset == 22
        assert await engine.append("s", b"two", idempotency_key="k") == again


# Retention: an engine may keep up to twice of what was asked for, and never less.

BY_ENTRIES = replace(LIMITS, retention_entries=10)
BY_BYTES = replace(LIMITS, retention_bytes=10 * 1_000)


@pytest.mark.parametrize("limits", [BY_ENTRIES, BY_BYTES], ids=["entries", "bytes"])
async def test_what_is_beyond_the_retention_is_trimmed_and_the_rest_is_not(
    store: Store, limits: Limits
) -> None:
    async with store.engine(limits) as engine:
        start = await engine.head("s")
        positions = await append_all(engine, [bytes(700)] * 60)
        assert await lost_reason(engine, start) == "trimmed"
        assert await lost_reason(engine, positions[-30]) == "trimmed"
        assert await lost_reason(engine, positions[-30]._replace(epoch="other")) == "epoch"
        entries = await all_entries(engine, positions[-9])
        check_chain(positions[-9], entries)
        assert len(entries) == 8
        assert await engine.read("s", positions[-1], 5) == []
        with pytest.raises(PositionLost):
            await engine.follow("s", start, Gathered())


async def test_what_is_too_old_is_trimmed_and_the_rest_is_not(store: Store) -> None:
    async with store.engine(Limits(retention_seconds=10)) as engine:
        start = await engine.head("s")
        old = await engine.append("s", b"old")
        await store.pass_time(8)
        await engine.append("s", b"young")
        assert len(await all_entries(engine, start)) == 2
        await store.pass_time(4)
        head = await engine.append("s", b"new")
        assert await lost_reason(engine, start) == "trimmed"
        assert [entry.data for entry in await all_entries(engine, old)] == [b"young", b"new"]
        await store.pass_time(100)
        after = await engine.append("s", b"after")
        assert await engine.head("s") == after
        assert after.offset == head.offset + 1
        assert [entry.previous for entry in await all_entries(engine, head)] == [head.mark]


async def test_an_entry_larger_than_the_retention_is_appended_and_told(store: Store) -> None:
    async with store.engine(Limits(retention_bytes=100)) as engine:
        heard = Gathered()
        stop = await engine.follow("s", await engine.head("s"), heard)
        position = await engine.append("s", bytes(10_000))
        assert await engine.head("s") == position
        assert await engine.read("s", position, 1) == []
        await heard.until(lambda: heard.entries or heard.lost)
        assert heard.data == [bytes(10_000)] or not store.follows_the_append
        stop()


async def test_a_follower_loses_no_entry_to_trimming(store: Store) -> None:
    async with store.engine(Limits(retention_entries=2)) as engine:
        start, heard = await engine.head("s"), Gathered()
        stop = await engine.follow("s", start, heard)
        await asyncio.gather(*(engine.append("s", data) for data in numbered(50)))
        last = await engine.append("s", b"last")
        await heard.until(
            lambda: heard.lost or (heard.entries and heard.entries[-1].position == last)
        )
        if store.follows_the_append:
            assert len(heard.entries) == 51
        if not heard.lost:
            check_chain(start, heard.entries)
        stop()


# Closing and opening anew.


async def test_an_engine_opened_anew_has_the_log_or_says_that_it_is_another(store: Store) -> None:
    async with store.engine() as engine:
        start = await engine.head("s")
        head = await engine.append("s", JUNK, idempotency_key="k")
        await put(engine, "t", seconds=100)
        taken = await engine.take_grant("t", 100, resumable=True)
    async with store.engine() as engine:
        if not store.reopens:
            assert await lost_reason(engine, head) == "epoch"
            with pytest.raises(GrantMissing):
                await engine.take_grant("t", 1, resumable=True)
            return
        assert await engine.head("s") == head
        assert [entry.data for entry in await all_entries(engine, start)] == [JUNK]
        assert await engine.append("s", JUNK, idempotency_key="k") == head
        again = await engine.take_grant("t", 100, resumable=True)
        assert again == (taken.grant, taken.take + 1)
        assert [entry.data for entry in await all_entries(engine, head)] == [taken_notice("t", 2)]


# Grants.


async def put(
    engine: Engine, token: str = "t", *, seconds: float = 100, body: bytes = b"body"
) -> Grant:
    grant = Grant("s", await engine.head("s"), body)
    await engine.put_grant(token, grant, seconds)
    return grant


async def missing(engine: Engine, token: str = "t") -> bool:
    """Tell whether nothing has this token, without a trace if so."""
    try:
        await engine.take_grant(token, 1, resumable=True)
    except GrantMissing:
        return True
    return False


async def notices(engine: Engine, grant: Grant) -> list[bytes]:
    return [entry.data for entry in await all_entries(engine, grant.position)]


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("body", [b"", JUNK, bytes(100_000)], ids=["empty", "junk", "100 kB"])
async def test_a_grant_comes_back_as_it_was_put(store: Store, resumable: bool, body: bytes) -> None:
    async with store.engine() as engine:
        await engine.append("s", b"before")
        grant = await put(engine, body=body)
        await engine.append("s", b"after")
        assert await engine.take_grant("t", 100, resumable=resumable) == Taken(grant, 1)
        assert await notices(engine, grant) == [b"after"], "a first take is no take-over"


async def test_an_unknown_token_has_no_grant(store: Store) -> None:
    async with store.engine() as engine:
        grant = await put(engine, "other")
        assert await missing(engine)
        await engine.release_grant("t", 1, 10)
        assert await engine.renew_grants(["t"], 10) == ["t"]
        assert await engine.revoke_grant("t", 10) is False
        assert await missing(engine)
        assert await notices(engine, grant) == []


async def test_a_held_grant_is_taken_over_and_the_log_says_so(store: Store) -> None:
    async with store.engine() as engine:
        grant = await put(engine)
        for take in (1, 2, 3):
            taken = await engine.take_grant("t", 100, resumable=True)
            assert taken == Taken(grant, take)
        assert await notices(engine, grant) == [taken_notice("t", 2), taken_notice("t", 3)]


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (False, False)])
async def test_a_held_grant_is_kept_unless_both_takes_are_resumable(
    store: Store, first: bool, second: bool
) -> None:
    async with store.engine() as engine:
        grant = await put(engine)
        await engine.take_grant("t", 100, resumable=first)
        with pytest.raises(GrantHeld):
            await engine.take_grant("t", 1, resumable=second)
        assert await notices(engine, grant) == []
        await store.pass_time(50)
        assert await engine.renew_grants(["t"], 100) == [], "the refused take changed the expiry"
        await engine.release_grant("t", 1, 100)
        assert await engine.take_grant("t", 100, resumable=second) == Taken(grant, 2)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
async def test_a_released_grant_is_taken_again_and_that_is_no_take_over(
    store: Store, first: bool, second: bool
) -> None:
    async with store.engine() as engine:
        grant = await put(engine)
        await engine.take_grant("t", 100, resumable=first)
        await engine.release_grant("t", 1, 100)
        assert await engine.take_grant("t", 100, resumable=second) == Taken(grant, 2)
        assert await notices(engine, grant) == []


async def test_a_grant_released_for_no_time_is_dropped(store: Store) -> None:
    async with store.engine() as engine:
        await put(engine)
        await engine.take_grant("t", 100, resumable=True)
        await engine.release_grant("t", 1, 0)
        assert await missing(engine)
        assert await engine.renew_grants(["t"], 10) == ["t"]


@pytest.mark.parametrize("seconds", [0, 1, 1000])
async def test_the_release_of_a_take_that_was_taken_over_does_nothing(
    store: Store, seconds: float
) -> None:
    async with store.engine() as engine:
        grant = await put(engine)
        await engine.take_grant("t", 100, resumable=True)
        await engine.take_grant("t", 100, resumable=True)
        await engine.release_grant("t", 1, seconds)
        with pytest.raises(GrantHeld):
            await engine.take_grant("t", 100, resumable=False)
        await store.pass_time(50)
        assert await engine.take_grant("t", 100, resumable=True) == Taken(grant, 3)
        await store.pass_time(101)
        assert await missing(engine)


@pytest.mark.parametrize("stage", ["put", "taken", "renewed", "released"])
async def test_a_grant_lives_for_the_time_that_was_said_last(store: Store, stage: str) -> None:
    async with store.engine() as engine:
        await put(engine, seconds=10 if stage == "put" else 50)
        if stage != "put":
            await engine.take_grant("t", 10 if stage == "taken" else 50, resumable=True)
        if stage == "renewed":
            assert await engine.renew_grants(["t"], 10) == []
        if stage == "released":
            await engine.release_grant("t", 1, 10)
        await store.pass_time(9)
        await engine.take_grant("t", 20, resumable=True)
        await store.pass_time(19)
        assert await engine.renew_grants(["t"], 10) == []
        await store.pass_time(11)
        assert await missing(engine)


async def test_a_grant_whose_time_is_over_is_brought_back_by_nothing(store: Store) -> None:
    async with store.engine() as engine:
        grants = [await put(engine, token, seconds=10) for token in "abcd"]
        for token in "bcd":
            await engine.take_grant(token, 10, resumable=True)
        await store.pass_time(11)
        assert await engine.renew_grants(["c"], 100) == ["c"]
        await engine.release_grant("d", 1, 100)
        assert await engine.revoke_grant("a", 100) is False
        assert await engine.revoke_grant("b", 100) is False
        for token in "abcd":
            assert await missing(engine, token)
        assert await notices(engine, grants[0]) == []


async def test_renewing_names_those_that_are_no_more(store: Store) -> None:
    async with store.engine() as engine:
        for token in ("held", "revoked", "dropped", "expired"):
            await put(engine, token, seconds=100)
            await engine.take_grant(token, 1 if token == "expired" else 100, resumable=True)
        await engine.revoke_grant("revoked", 100)
        await engine.release_grant("dropped", 1, 0)
        await store.pass_time(2)
        tokens = ["held", "revoked", "dropped", "expired", "never was"]
        assert sorted(await engine.renew_grants(iter(tokens), 100)) == sorted(tokens[1:])
        assert await engine.renew_grants([], 100) == []


@pytest.mark.parametrize("held", [True, False])
async def test_a_revoked_grant_is_told_of_once_and_answers_so_for_a_while(
    store: Store, held: bool
) -> None:
    async with store.engine() as engine:
        grant = await put(engine)
        if held:
            await engine.take_grant("t", 1000, resumable=True)
        assert await engine.revoke_grant("t", 10) is True
        assert await engine.revoke_grant("t", 1000) is False
        assert await notices(engine, grant) == [revoked_notice("t")]
        await engine.release_grant("t", 1, 0)
        await engine.release_grant("t", 1, 1000)
        assert await engine.renew_grants(["t"], 1000) == ["t"]
        await store.pass_time(9)
        for resumable in (True, False):
            with pytest.raises(GrantRevoked):
                await engine.take_grant("t", 1000, resumable=resumable)
        await store.pass_time(2)
        assert await missing(engine)
        assert await notices(engine, grant) == [revoked_notice("t")]


async def refused(engine: Engine, token: str = "refused", body: bytes = b"body") -> bool:
    """Tell whether no more grants may wait."""
    try:
        await put(engine, token, body=body, seconds=10)
    except TooManyGrants:
        assert await missing(engine, token)
        return True
    return False


async def test_no_more_grants_wait_than_may_until_some_are_taken_or_over(store: Store) -> None:
    most = 5
    async with store.engine(replace(LIMITS, max_grants=most)) as engine:
        puts = [refused(engine, f"t{number}") for number in range(4 * most)]
        outcomes = await asyncio.gather(*puts)
        assert outcomes.count(False) == most
        one, other, *_ = [f"t{number}" for number, out in enumerate(outcomes) if not out]
        await engine.take_grant(one, 100, resumable=True)
        assert not await refused(engine, "new")
        assert await refused(engine)
        await engine.take_grant(one, 100, resumable=True)
        await engine.release_grant(one, 2, 0)
        assert await engine.revoke_grant(other, 5)
        assert await refused(engine), "only the first take makes room, and no revocation"
        await store.pass_time(11)
        outcomes = await asyncio.gather(*(refused(engine, f"u{n}") for n in range(4 * most)))
        assert outcomes.count(False) == most


async def test_no_more_bytes_of_grants_wait_than_may(store: Store) -> None:
    large, room = bytes(4_000), 10_000
    async with store.engine(replace(LIMITS, max_grants_bytes=room)) as engine:
        assert not await refused(engine, "a", large)
        assert not await refused(engine, "b", large)
        assert await refused(engine, body=large)
        await engine.take_grant("a", 100, resumable=False)
        assert not await refused(engine, "c", large)
        assert await refused(engine, body=large)
        await store.pass_time(11)
        assert await refused(engine, body=bytes(room))
        assert not await refused(engine, "d", bytes(room - 1_000))


async def test_an_engine_opened_anew_knows_how_many_grants_wait(store: Store) -> None:
    limits = replace(LIMITS, max_grants=2)
    async with store.engine(limits) as engine:
        for token in "ab":
            assert not await refused(engine, token)
    async with store.engine(limits) as engine:
        assert await refused(engine, "c") is store.reopens
        if store.reopens:
            await engine.take_grant("a", 100, resumable=False)
            assert not await refused(engine, "c")
            assert await refused(engine)


async def test_a_token_that_is_given_again_counts_once(store: Store) -> None:
    async with store.engine(replace(LIMITS, max_grants=2)) as engine:
        await put(engine, "a", seconds=1)
        await store.pass_time(2)
        for token in "ab":
            assert not await refused(engine, token)
        assert await refused(engine)


async def test_of_two_plain_takes_that_race_exactly_one_wins(store: Store) -> None:
    async with store.engine() as engine:
        for number in range(20):
            token = f"t{number}"
            await put(engine, token)
            takes = [engine.take_grant(token, 100, resumable=False) for _ in range(2)]
            results = await asyncio.gather(*takes, return_exceptions=True)
            assert sorted(type(result).__name__ for result in results) == ["GrantHeld", "Taken"]


async def test_resumable_takes_that_race_all_win_in_turn(store: Store) -> None:
    async with store.engine() as engine:
        grant = await put(engine)
        takes = [engine.take_grant("t", 100, resumable=True) for _ in range(5)]
        results = await asyncio.gather(*takes)
        assert sorted(taken.take for taken in results) == [1, 2, 3, 4, 5]
        assert await notices(engine, grant) == [taken_notice("t", take) for take in (2, 3, 4, 5)]


async def test_a_revocation_that_races_with_a_take_over_leaves_one_story(store: Store) -> None:
    async with store.engine() as engine:
        for number in range(20):
            token = f"t{number}"
            grant = await put(engine, token)
            await engine.take_grant(token, 100, resumable=True)
            _, taken = await asyncio.gather(
                engine.revoke_grant(token, 100),
                engine.take_grant(token, 100, resumable=True),
                return_exceptions=True,
            )
            told = await notices(engine, grant)
            if isinstance(taken, GrantRevoked):
                assert told == [revoked_notice(token)]
            else:
                assert told == [taken_notice(token, 2), revoked_notice(token)]


async def test_followers_hear_of_take_overs_and_revocations_in_the_one_order(store: Store) -> None:
    async with store.engine() as engine:
        grant, heard = await put(engine), Gathered()
        stop = await engine.follow("s", grant.position, heard)
        await engine.take_grant("t", 100, resumable=True)
        await engine.append("s", b"first")
        await engine.take_grant("t", 100, resumable=True)
        await engine.append("s", b"second")
        await engine.revoke_grant("t", 100)
        await heard.until_at(await engine.append("s", b"last"))
        told = [b"first", taken_notice("t", 2), b"second", revoked_notice("t"), b"last"]
        assert heard.data == told
        check_chain(grant.position, heard.entries)
        stop()


async def test_a_store_that_is_in_reach_passes_its_check(store: Store) -> None:
    async with store.engine() as engine:
        await engine.check()


# Against a plain model, in any order.


@dataclass
class ModelGrant:
    grant: Grant
    deadline: float
    takes: int = 0
    held: bool = False
    resumable: bool = False
    revoked: bool = False


STREAMS = ("s", "t")
TOKENS = tuple("abc")
streams = st.sampled_from(STREAMS)
tokens = st.sampled_from(TOKENS)
spans = st.sampled_from((3, 10, 30))


class Machine(RuleBasedStateMachine):
    """An engine beside a list for each stream and a dict of grants."""

    kind = ""
    limits = replace(LIMITS, idempotency_seconds=20)

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = ENGINES[self.kind](None)
        self.engine = self.run(self.make())
        self.places = {stream: [self.run(self.engine.head(stream))] for stream in STREAMS}
        self.log: dict[str, list[bytes]] = {stream: [] for stream in STREAMS}
        self.keys: dict[tuple[str, str], tuple[bytes, Position, float]] = {}
        self.grants: dict[str, ModelGrant] = {}
        self.following: list[tuple[str, int, Gathered, Callable[[], None]]] = []

    async def make(self) -> Engine:
        return self.store.make(self.limits)

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.engine.close())
        self.runner.close()

    def alive(self, token: str) -> ModelGrant | None:
        grant = self.grants.get(token)
        return grant if grant is not None and grant.deadline > self.store.now else None

    def appended(self, stream: str, data: bytes) -> None:
        """Note in the model what the engine appended, and compare the two."""
        (entry,) = self.run(self.engine.read(stream, self.places[stream][-1], 10))
        check_chain(self.places[stream][-1], [entry])
        assert entry.data == data
        self.places[stream].append(entry.position)
        self.log[stream].append(data)

    @rule(stream=streams, data=st.binary(max_size=3))
    def append(self, stream: str, data: bytes) -> None:
        position = self.run(self.engine.append(stream, data))
        self.appended(stream, data)
        assert position == self.places[stream][-1]

    @rule(stream=streams, data=st.sampled_from((b"x", b"y")), key=st.sampled_from("kl"))
    def append_with_key(self, stream: str, data: bytes, key: str) -> None:
        known = self.keys.get((stream, key))
        call = self.engine.append(stream, data, idempotency_key=key)
        if known is None or self.store.now - known[2] >= self.limits.idempotency_seconds:
            position = self.run(call)
            self.appended(stream, data)
            assert position == self.places[stream][-1]
            self.keys[stream, key] = (data, position, self.store.now)
        elif known[0] == data:
            assert self.run(call) == known[1]
        else:
            with pytest.raises(IdempotencyConflict):
                self.run(call)

    @rule(stream=streams, data=st.data(), limit=st.integers(1, 5))
    def read(self, stream: str, data: st.DataObject, limit: int) -> None:
        after = data.draw(st.integers(0, len(self.log[stream])))
        entries = self.run(self.engine.read(stream, self.places[stream][after], limit))
        assert [entry.data for entry in entries] == self.log[stream][after : after + limit]
        assert self.run(self.engine.head(stream)) == self.places[stream][-1]

    @rule(stream=streams, data=st.data())
    def follow(self, stream: str, data: st.DataObject) -> None:
        after, heard = data.draw(st.integers(0, len(self.log[stream]))), Gathered()
        stop = self.run(self.engine.follow(stream, self.places[stream][after], heard))
        self.following.append((stream, after, heard, stop))

    @precondition(lambda self: self.following)
    @rule()
    def stop_one(self) -> None:
        stream, after, heard, stop = self.following.pop(0)
        if len(self.log[stream]) > after:
            self.run(heard.until_at(self.places[stream][-1]))
        stop()
        assert heard.data == self.log[stream][after:]

    @rule(token=tokens, stream=streams, body=st.binary(max_size=3), seconds=spans)
    def put(self, token: str, stream: str, body: bytes, seconds: int) -> None:
        if self.alive(token) is None:  # a token is never given twice while it stands for something
            grant = Grant(stream, self.places[stream][-1], body)
            self.run(self.engine.put_grant(token, grant, seconds))
            self.grants[token] = ModelGrant(grant, self.store.now + seconds)

    @rule(token=tokens, seconds=spans, resumable=st.booleans())
    def take(self, token: str, seconds: int, resumable: bool) -> None:
        model = self.alive(token)
        call = self.engine.take_grant(token, seconds, resumable=resumable)
        refusal: type[Exception] | None = None
        if model is None:
            refusal = GrantMissing
        elif model.revoked:
            refusal = GrantRevoked
        elif model.held and not (model.resumable and resumable):
            refusal = GrantHeld
        if refusal is not None or model is None:
            with pytest.raises(refusal or GrantMissing):
                self.run(call)
            return
        model.takes += 1
        assert self.run(call) == Taken(model.grant, model.takes)
        if model.held:
            self.appended(model.grant.stream, taken_notice(token, model.takes))
        model.held, model.resumable = True, resumable
        model.deadline = self.store.now + seconds

    @rule(token=tokens, back=st.integers(0, 1), seconds=st.sampled_from((0, 3, 10)))
    def release(self, token: str, back: int, seconds: int) -> None:
        model = self.alive(token)
        take = (model.takes if model else 1) - back
        if model is not None and not model.takes:
            return  # nobody releases what was never taken
        self.run(self.engine.release_grant(token, take, seconds))
        if model is not None and not back and not model.revoked:
            model.held = False
            model.deadline = self.store.now + seconds

    @rule(wanted=st.sets(tokens), seconds=spans)
    def renew(self, wanted: set[str], seconds: int) -> None:
        models = {token: self.alive(token) for token in wanted}
        # What becomes of one that is there and not held is nobody's business.
        asked = {token: model for token, model in models.items() if model is None or model.held}
        gone = self.run(self.engine.renew_grants(asked, seconds))
        assert sorted(gone) == sorted(
            token for token, model in asked.items() if model is None or model.revoked
        )
        for model in asked.values():
            if model is not None and not model.revoked:
                model.deadline = self.store.now + seconds

    @rule(token=tokens, seconds=spans)
    def revoke(self, token: str, seconds: int) -> None:
        model = self.alive(token)
        revoked = self.run(self.engine.revoke_grant(token, seconds))
        assert revoked is (model is not None and not model.revoked)
        if model is not None and revoked:
            model.revoked = True
            model.deadline = self.store.now + seconds
            self.appended(model.grant.stream, revoked_notice(token))

    @precondition(lambda self: self.store.reopens)
    @rule()
    def reopen(self) -> None:
        self.following.clear()
        self.run(self.engine.close())
        self.engine = self.run(self.make())

    @rule(seconds=st.sampled_from((1, 5, 15)))
    def pass_time(self, seconds: int) -> None:
        self.run(self.store.pass_time(seconds))


@pytest.mark.parametrize("kind", ENGINES)
def test_any_calls_in_any_order_do_what_the_model_says(kind: str) -> None:
    machine = type("MachineOf", (Machine,), {"kind": kind})
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
    machine.TestCase("runTest").runTest()
