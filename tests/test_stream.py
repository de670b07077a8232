"""A node's cursor goes over every entry once and in order, whatever the engine does to it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from syncserver.config import Limits
from syncserver.engines.base import Engine, Entry, Listener
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import PositionLost, RefetchReason, Unavailable
from syncserver.position import Position
from syncserver.rowsync import entries
from syncserver.stream import Stream
from syncserver.tail import Record
from tests.conftest import ExpectedLog
from tests.support.calls import turns
from tests.support.delayed import Delayed
from tests.support.virtual import on_virtual_time

TAIL = 10_000


class Heard:
    """A follower that notes what it is told; ``failing`` are values that it cannot take."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.records: list[Record[bytes]] = []
        self.failing: set[bytes] = set()
        self.turns = 0

    def deliver(self, record: Record[bytes]) -> None:
        self.records.append(record)
        if record.value in self.failing:
            raise LookupError(record.value)
        self.events.append(record.value)

    def turn_ended(self) -> None:
        self.turns += 1

    def lost(self, reason: RefetchReason) -> None:
        self.events.append(reason)

    def freshness(self, *, stale: bool) -> None:
        self.events.append("stale" if stale else "fresh")

    @property
    def values(self) -> list[bytes]:
        return [event for event in self.events if isinstance(event, bytes)]


class Scripted(MemoryEngine):
    """An engine that tells its follower what the test says, whatever its log has."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()
        self.listener: Listener | None = None
        self.stopped = False
        self.failures: list[Exception] = []
        self.answers: list[list[Entry]] = []
        self.before_read: Callable[[], None] = lambda: None
        self.before_follow: Callable[[], None] = lambda: None
        self.reads = 0

    def begin(self) -> None:
        """Begin a log anew, under another epoch."""
        self.start = Position.start()
        self.log: list[Entry] = []
        self.first = 1

    def cut(self, length: int) -> None:
        """Go back in time."""
        del self.log[length:]

    def trim(self, count: int) -> None:
        self.first = count + 1

    def add(self, *datas: bytes) -> list[Entry]:
        """Put entries into the log without a word to anybody."""
        for data in datas:
            last = self.last()
            self.log.append(Entry(last.next(), last.mark, data))
        return self.log[-len(datas) :]

    def last(self) -> Position:
        return self.log[-1].position if self.log else self.start

    def tell(self, *told: Entry) -> None:
        assert self.listener is not None
        self.listener.entries_arrived(told)

    async def head(self, stream: str) -> Position:
        await asyncio.sleep(0)
        self.fail()
        return self.last()

    async def since(self, stream: str, seconds: float) -> Position:
        return self.log[self.first - 2].position if self.first > 1 else self.start

    async def read(self, stream: str, after: Position, limit: int) -> list[Entry]:
        self.reads += 1
        await asyncio.sleep(0)
        self.fail()
        self.before_read()
        if self.answers:
            return self.answers.pop(0)
        self.check_place(after)
        return self.log[after.offset : after.offset + limit]

    def check_place(self, after: Position) -> None:
        places = [self.start, *(entry.position for entry in self.log)]
        if after.epoch != self.start.epoch:
            raise PositionLost(RefetchReason.EPOCH)
        if after.offset >= len(places):
            raise PositionLost(RefetchReason.ROLLBACK)
        if after.offset < self.first - 1:
            raise PositionLost(RefetchReason.TRIMMED)
        if after != places[after.offset]:
            raise PositionLost(RefetchReason.FORK)

    def fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def follow(self, stream: str, after: Position, listener: Listener) -> Callable[[], None]:
        await asyncio.sleep(0)
        self.fail()
        self.before_follow()
        self.check_place(after)
        self.listener = listener
        return self.stop

    def stop(self) -> None:
        self.stopped = True


def stream_of(
    engine: Engine, heard: Heard, tail_bytes: int = TAIL, **options: Any
) -> Stream[bytes]:
    return Stream(engine, "s", heard, decode=bytes, tail_bytes=tail_bytes, **options)


async def opened(
    log: Sequence[bytes] = (), **options: Any
) -> tuple[Scripted, Heard, Stream[bytes]]:
    engine, heard = Scripted(), Heard()
    if log:
        engine.add(*log)
    stream = stream_of(engine, heard, **options)
    await stream.open()
    return engine, heard, stream


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


# In the ordinary course.


async def test_a_stream_begins_at_the_head_and_delivers_what_comes_after() -> None:
    engine, heard = MemoryEngine(), Heard()
    await engine.append("s", b"before")
    stream = stream_of(engine, heard)
    await stream.open()
    await stream.open()
    assert stream.cursor == await engine.head("s")
    positions = [await engine.append("s", data) for data in numbered(3)]
    await turns()
    assert heard.events == numbered(3)
    assert [record.position for record in heard.records] == positions
    assert stream.cursor == positions[-1]
    assert heard.turns == 1
    await stream.close()
    await engine.append("s", b"too late")
    await turns()
    assert heard.events == numbered(3)
    await engine.close()


async def test_opening_at_once_follows_once() -> None:
    engine, heard = MemoryEngine(), Heard()
    stream = stream_of(Delayed(engine, random.Random(3)), heard)
    await asyncio.gather(*(stream.open() for _ in range(5)))
    await engine.append("s", b"once")
    await turns()
    assert heard.events == [b"once"]
    await stream.close()
    await engine.close()


async def test_an_opening_that_failed_can_be_tried_again() -> None:
    engine, heard = Scripted(), Heard()
    engine.failures = [Unavailable()]
    stream = stream_of(engine, heard)
    with pytest.raises(Unavailable):
        await stream.open()
    await stream.open()
    engine.tell(*engine.add(b"x"))
    assert heard.events == [b"x"]
    await stream.close()


async def test_an_opening_begins_anew_when_its_head_is_trimmed_before_it_follows() -> None:
    engine, heard = Scripted(), Heard()
    stream = stream_of(engine, heard)

    def overtake() -> None:
        engine.before_follow = lambda: None
        engine.add(b"one", b"two")
        engine.trim(2)

    engine.before_follow = overtake
    await stream.open()
    assert stream.cursor == engine.last()
    engine.tell(*engine.add(b"x"))
    assert heard.events == [b"x"]
    await stream.close()


async def test_an_opening_reads_the_past_back_before_it_is_done() -> None:
    engine, heard = Scripted(), Heard()
    engine.add(*(b"%d" % number for number in range(1_000)))
    stream = stream_of(engine, heard, past_seconds=60)
    await stream.open()
    assert stream.cursor == engine.last()
    assert heard.values == [b"%d" % number for number in range(1_000)]
    await stream.close()


async def test_what_is_trimmed_while_it_is_read_back_is_lost_to_nobody() -> None:
    engine, heard = Scripted(), Heard()
    engine.add(*(b"%d" % number for number in range(1_000)))
    stream = stream_of(engine, heard, past_seconds=60)

    def trim() -> None:
        if engine.reads == 2:
            engine.trim(900)

    engine.before_read = trim
    await stream.open()
    assert stream.cursor == engine.last()
    engine.tell(*engine.add(b"x"))
    assert heard.events[-1] == b"x"
    assert not [event for event in heard.events if isinstance(event, RefetchReason)]
    await stream.close()


async def test_a_value_is_settled_once_and_kept_so() -> None:
    seen = list[bytes]()

    def settle(value: bytes) -> bytes:
        seen.append(value)
        return b"settled " + value

    engine, heard, stream = await opened(settle=settle)
    start = stream.cursor
    engine.tell(*engine.add(b"a", b"b"))
    assert heard.events == [b"settled a", b"settled b"]
    assert [record.value for record in await stream.read(start, 5)] == heard.events
    assert seen == [b"a", b"b"]
    await stream.close()


async def test_what_was_settled_is_replayed_so_when_the_tail_is_past_it() -> None:
    engine, _, stream = await opened(
        settle=lambda value: b"settled" if value == b"late" else value, tail_bytes=1_000
    )
    start = stream.cursor
    engine.tell(*engine.add(b"early", b"late", *numbered(20)))
    reads = engine.reads
    values = [record.value for record in await stream.read(start, 30)]
    assert engine.reads > reads
    assert values == [b"early", b"settled", *numbered(20)]
    await stream.close()


# What the engine gets wrong.


async def test_entries_that_were_left_out_are_fetched() -> None:
    engine, heard, stream = await opened()
    told = engine.add(*numbered(5))
    engine.tell(told[0])
    engine.tell(told[3])
    await turns()
    assert heard.events == numbered(5)
    engine.tell(*engine.add(b"next"))
    assert heard.events == [*numbered(5), b"next"]
    await stream.close()


async def test_entries_that_come_twice_or_late_are_passed_over() -> None:
    engine, heard, stream = await opened()
    told = engine.add(*numbered(4))
    engine.tell(*told[:2], *told[:2], *told)
    engine.tell(*told)
    engine.tell(told[0])
    engine.tell(*reversed(told))
    await turns()
    assert heard.events == numbered(4)
    assert engine.reads == 0
    await stream.close()


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_is_left_out_repeated_or_mixed_up_all_arrive_once_and_in_order(
    seed: int,
) -> None:
    rng = random.Random(seed)
    engine, heard, stream = await opened(numbered(3))
    for number in range(60):
        engine.add(b"new %d" % number)
        if rng.random() < 0.6:
            first = rng.randrange(len(engine.log))
            told = engine.log[first : first + rng.randint(1, 8)]
            rng.shuffle(told)
            engine.tell(*told)
        await turns(rng.randrange(4))
    engine.tell(*engine.add(b"last"))
    await turns(40)
    assert heard.events == [*(b"new %d" % number for number in range(60)), b"last"]
    assert stream.cursor == engine.last()
    await stream.close()


async def test_entries_that_come_while_it_catches_up_are_not_lost() -> None:
    engine, heard, stream = await opened()
    pending = [b"during 0", b"during 1", b"during 2"]

    def more() -> None:
        if pending:
            engine.tell(*engine.add(pending.pop(0)))

    engine.before_read = more
    engine.add(b"left out")
    engine.tell(*engine.add(b"told"))
    await turns(40)
    assert heard.events == [b"left out", b"told", b"during 0", b"during 1", b"during 2"]
    assert stream.cursor == engine.last()
    await stream.close()


async def test_catching_up_far_goes_in_chunks_and_lets_others_run() -> None:
    engine, heard, stream = await opened()
    engine.tell(engine.add(*numbered(2_000))[-1])
    await turns(3)
    assert 0 < len(heard.events) < 2_000
    await turns(100)
    assert heard.events == numbered(2_000)
    await stream.close()


@on_virtual_time
async def test_a_log_that_does_not_follow_itself_is_read_again() -> None:
    engine, heard, stream = await opened()
    whole = engine.add(*numbered(4))
    engine.answers = [[whole[0], whole[2]], [whole[3]]]
    engine.tell(whole[3])
    await asyncio.sleep(10)
    assert heard.events == numbered(4)
    await stream.close()


# Another history.


def fork(engine: Scripted) -> None:
    engine.cut(2)
    engine.add(*numbered(8, 50))


def outrun(engine: Scripted) -> None:
    engine.add(*numbered(8, 50))
    engine.trim(9)


CHANGES: dict[str, Callable[[Scripted], None]] = {
    "epoch": Scripted.begin,
    "rollback": lambda engine: engine.cut(2),
    "fork": fork,
    "trimmed": outrun,
}


@pytest.mark.parametrize("reason", CHANGES)
async def test_another_history_is_lost_once_and_the_cursor_stands_at_its_head(
    reason: str, expected_log: ExpectedLog
) -> None:
    engine, heard, stream = await opened()
    engine.tell(*engine.add(*numbered(5)))
    CHANGES[reason](engine)
    if reason != "rollback":
        engine.add(*numbered(2, 90))
    with expected_log("syncserver.stream", rf"s was lost \({reason}\)"):
        assert engine.listener is not None
        if engine.log and reason != "rollback":
            engine.tell(engine.log[-1])
        engine.listener.position_lost(RefetchReason.FORK)
        await turns(40)
    assert heard.events == [*numbered(5), reason]
    assert stream.cursor == engine.last()
    with pytest.raises(PositionLost):
        await stream.read(heard.records[-1].position, 5)
    assert await stream.read(stream.cursor, 5) == []
    engine.tell(*engine.add(b"next"))
    assert heard.events == [*numbered(5), reason, b"next"]
    await stream.close()


async def test_a_fork_at_the_cursor_itself_is_noticed(expected_log: ExpectedLog) -> None:
    engine, heard, stream = await opened()
    engine.tell(*engine.add(*numbered(3)))
    engine.cut(2)
    with expected_log("syncserver.stream", "fork"):
        engine.tell(*engine.add(b"in its place"))
        await turns()
    assert heard.events == [*numbered(3), "fork"]
    assert stream.cursor == engine.last()
    await stream.close()


async def test_an_entry_that_follows_another_than_the_last_one_is_not_delivered(
    expected_log: ExpectedLog,
) -> None:
    engine, heard, stream = await opened()
    engine.tell(*engine.add(*numbered(3)))
    engine.cut(2)
    engine.add(b"in its place")
    with expected_log("syncserver.stream", "fork"):
        engine.tell(*engine.add(b"after that"))  # next by its offset, not by its mark
        await turns()
    assert heard.events == [*numbered(3), "fork"]
    assert stream.cursor == engine.last()
    await stream.close()


async def test_a_guess_of_the_engine_that_is_wrong_loses_nothing() -> None:
    engine, heard, stream = await opened()
    engine.add(*numbered(3))
    assert engine.listener is not None
    for _ in range(3):
        engine.listener.position_lost(RefetchReason.TRIMMED)
    await turns()
    assert heard.events == numbered(3)
    await stream.close()


async def test_what_comes_while_the_head_is_looked_for_is_delivered(
    expected_log: ExpectedLog,
) -> None:
    engine, heard, stream = await opened(numbered(2))
    engine.begin()
    with expected_log("syncserver.stream", "epoch"):
        for number in range(20):
            engine.tell(*engine.add(b"%d" % number))
            await asyncio.sleep(0)
        await turns(40)
    reason, *values = heard.events
    assert reason == "epoch"
    assert values == numbered(20)[20 - len(values) :]
    assert values[-1:] == [b"19"]
    assert stream.cursor == engine.last()
    await stream.close()


# Out of reach.


@on_virtual_time
async def test_catching_up_goes_on_when_the_log_is_back() -> None:
    engine, heard, stream = await opened()
    engine.failures = [Unavailable() for _ in range(5)]
    engine.tell(engine.add(*numbered(3))[-1])
    await turns()
    assert heard.events == []
    await asyncio.sleep(10)
    assert heard.events == numbered(3)
    await stream.close()


@on_virtual_time
async def test_a_history_that_was_lost_is_told_though_the_log_goes_out_of_reach_meanwhile(
    expected_log: ExpectedLog,
) -> None:
    engine, heard, stream = await opened(numbered(3))
    engine.begin()
    engine.add(b"new")

    def then_fail() -> None:
        engine.before_read = lambda: None
        engine.failures = [Unavailable() for _ in range(3)]  # met by the look for the head

    engine.before_read = then_fail
    with expected_log("syncserver.stream", "s was lost"):
        engine.tell(engine.log[-1])
        await asyncio.sleep(10)
    assert heard.events == ["epoch"]
    assert stream.cursor == engine.last()
    await stream.close()


@on_virtual_time
async def test_a_fault_of_the_engine_is_logged_and_catching_up_goes_on(
    expected_log: ExpectedLog,
) -> None:
    engine, heard, stream = await opened()
    engine.failures = [RuntimeError("a bug")]
    with expected_log("syncserver.stream", "Cannot catch up s"):
        engine.tell(engine.add(*numbered(3))[-1])
        await asyncio.sleep(10)
    assert heard.events == numbered(3)
    await stream.close()


async def test_stale_and_fresh_are_passed_on_once() -> None:
    engine, heard, stream = await opened()
    listener = engine.listener
    assert listener is not None
    for tell in (listener.came_fresh, listener.went_stale, listener.went_stale):
        tell()
    assert stream.stale
    listener.came_fresh()
    listener.came_fresh()
    assert not stream.stale
    assert heard.events == ["stale", "fresh"]
    await stream.close()


@on_virtual_time
async def test_a_closed_stream_no_longer_tries() -> None:
    engine, heard, stream = await opened()
    engine.failures = [Unavailable() for _ in range(1_000)]
    engine.tell(engine.add(*numbered(3))[-1])
    await turns()
    await stream.close()
    await asyncio.sleep(100)
    assert engine.stopped
    assert heard.events == []
    assert len(engine.failures) > 990


# A follower that fails.


async def test_an_entry_that_cannot_be_delivered_is_lost_and_the_next_ones_are_not(
    expected_log: ExpectedLog,
) -> None:
    engine, heard, stream = await opened()
    heard.failing = {b"1"}
    with expected_log("syncserver.stream", "An entry of s was not delivered"):
        engine.tell(*engine.add(*numbered(4)))
    assert heard.events == [b"0", "filter_failed", b"2", b"3"]
    assert stream.cursor == engine.last()
    assert engine.reads == 0
    await stream.close()


async def test_bytes_that_are_not_ours_are_passed_over(expected_log: ExpectedLog) -> None:
    heard, engine = Heard(), MemoryEngine()
    stream: Stream[Any] = Stream(engine, "s", heard, decode=entries.decode, tail_bytes=TAIL)
    await stream.open()
    with expected_log("syncserver.entries"):
        await engine.append("s", b"\xff[[[")
        await engine.append("s", entries.encode_batch([]))
        await turns()
    assert heard.events == [entries.Unreadable(), entries.Batch(())]
    await stream.close()
    await engine.close()


# The tail.


async def test_what_the_tail_holds_is_read_without_suspending_and_without_the_engine() -> None:
    engine, heard, stream = await opened(numbered(3))
    start = stream.cursor
    engine.tell(*engine.add(*numbered(10)))
    reading = stream.read(start, 4)
    with pytest.raises(StopIteration) as done:
        reading.send(None)
    assert done.value.value == heard.records[:4]
    middle = await stream.read(heard.records[5].position, 100)
    assert middle == heard.records[6:]
    assert engine.reads == 0
    await stream.close()


async def test_what_is_older_than_the_tail_is_read_from_the_engine() -> None:
    engine, heard, stream = await opened(numbered(3), tail_bytes=1_000)
    engine.tell(*engine.add(*numbered(10, 3)))
    assert 1 <= len(stream.tail) <= 3
    everything = await stream.read(engine.start, 100)
    assert [record.value for record in everything] == numbered(13)
    assert everything[3:] == heard.records
    assert engine.reads == 1
    await stream.close()


@pytest.mark.parametrize("tail_bytes", [0, 500, 2_000, 5_000])
async def test_the_tail_is_bounded_in_bytes_and_any_place_can_be_read_from(tail_bytes: int) -> None:
    rng = random.Random(tail_bytes)
    engine, heard, stream = await opened(tail_bytes=tail_bytes)
    for size in (*range(0, 600, 20), 10_000, 0, 0):
        engine.tell(*engine.add(bytes(size)))
        kept = list(stream.tail)
        assert stream.tail.size == sum(record.size for record in kept) <= tail_bytes
        assert all(record.size >= len(record.value) for record in kept)
        after = rng.randrange(len(engine.log) + 1)
        place = engine.log[after - 1].position if after else engine.start
        assert await stream.read(place, 1_000) == heard.records[after:]
    await stream.close()


async def test_a_place_in_the_tail_with_another_mark_is_a_fork() -> None:
    engine, heard, stream = await opened(numbered(1))
    start = stream.cursor
    engine.tell(*engine.add(*numbered(3)))
    for place in (start, heard.records[0].position, stream.cursor):
        with pytest.raises(PositionLost) as caught:
            await stream.read(place._replace(mark="other"), 5)
        assert caught.value.reason == "fork"
    assert engine.reads == 0
    await stream.close()


async def test_a_place_ahead_of_the_cursor_is_asked_of_the_engine() -> None:
    engine, heard, stream = await opened()
    first, second = engine.add(b"1", b"2")
    assert [record.value for record in await stream.read(first.position, 5)] == [b"2"]
    assert await stream.read(second.position, 5) == []
    with pytest.raises(PositionLost) as caught:
        await stream.read(second.position._replace(offset=3), 5)
    assert caught.value.reason == "rollback"
    assert heard.events == []
    await stream.close()


# Waiting for the cursor.


@on_virtual_time
async def test_who_waits_for_a_position_is_woken_by_it_or_by_a_later_one() -> None:
    engine, _, stream = await opened()
    told = engine.add(*numbered(5))
    waiting = [
        asyncio.ensure_future(stream.reached(entry.position, 10)) for entry in reversed(told)
    ]
    await turns()
    for arrived in range(1, 6):
        engine.tell(told[arrived - 1])
        await turns()
        assert [future.done() for future in reversed(waiting)] == [
            number < arrived for number in range(5)
        ]
    assert await asyncio.gather(*waiting) == [True] * 5
    assert await stream.reached(told[0].position, 10)
    assert asyncio.get_running_loop().time() == 0
    await stream.close()


@on_virtual_time
async def test_who_waits_too_long_is_told_so_and_forgotten() -> None:
    _, _, stream = await opened()
    ahead = stream.cursor._replace(offset=100)
    for _ in range(20):
        assert await stream.reached(ahead, 3) is False
    cancelled = asyncio.ensure_future(stream.reached(ahead, 3))
    await turns()
    cancelled.cancel()
    await turns()
    assert asyncio.get_running_loop().time() == pytest.approx(60)
    assert stream._waiting == []
    await stream.close()


@on_virtual_time
async def test_nobody_waits_for_a_place_in_a_history_that_is_over(
    expected_log: ExpectedLog,
) -> None:
    engine, _, stream = await opened(numbered(2))
    waiting = asyncio.ensure_future(stream.reached(stream.cursor._replace(offset=100), 1_000))
    await turns()
    old = stream.cursor
    engine.begin()
    with expected_log("syncserver.stream", "epoch"):
        engine.tell(*engine.add(b"x"))
        await asyncio.sleep(1)
    assert await waiting
    assert await stream.reached(old._replace(offset=1_000), 1_000)
    assert asyncio.get_running_loop().time() < 10
    await stream.close()


# With a real engine that trims.


@pytest.mark.parametrize("seed", range(10))
async def test_a_node_that_is_told_late_loses_nothing_though_the_log_is_trimmed(seed: int) -> None:
    limits = Limits(retention_entries=3)
    engine, heard = Delayed(MemoryEngine(limits), random.Random(seed)), Heard()
    stream = stream_of(engine, heard, tail_bytes=1_000)
    await stream.open()
    await asyncio.gather(*(engine.append("s", data) for data in numbered(100)))
    last = await engine.append("s", b"last")
    assert await stream.reached(last, 5)
    assert sorted(heard.values) == sorted([*numbered(100), b"last"])
    await stream.close()
    await engine.close()
