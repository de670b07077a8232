"""What is special to the engine in a file: what it refuses, what a full disk does, what it keeps.

That it survives the death of its process is in ``test_sqlite_restarts.py``.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncserver.config import Limits
from syncserver.engines import sqlite_file, sqlite_grants, sqlite_writer
from syncserver.engines.base import Engine, Entry, Grant, GrantMissing
from syncserver.engines.sqlite import SQLiteEngine
from syncserver.engines.sqlite_store import Store
from syncserver.errors import (
    ConfigError,
    PositionLost,
    RefetchReason,
    TooManyGrants,
    Unavailable,
)
from syncserver.position import Position
from tests.conftest import ExpectedLog

LIMITS = Limits()


class Listening:
    """A listener that keeps what it hears, in order."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.words: list[str] = []
        self._changed = asyncio.Event()

    def entries_arrived(self, entries: Sequence[Entry]) -> None:
        self.data += [entry.data for entry in entries]
        self._changed.set()

    def went_stale(self) -> None:
        self.words.append("stale")
        self._changed.set()

    def came_fresh(self) -> None:
        self.words.append("fresh")
        self._changed.set()

    def position_lost(self, reason: RefetchReason) -> None:
        raise AssertionError(reason)

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not done():
                self._changed.clear()
                await self._changed.wait()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(
    path: Path, limits: Limits = LIMITS, *, level: str = "full", clock: Clock | None = None
) -> AsyncIterator[SQLiteEngine]:
    engine = SQLiteEngine(limits, f"sqlite://{path}?synchronous={level}", clock=clock)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def do(engine: SQLiteEngine, work: Callable[[Store], Any]) -> Any:
    """Run something in a transaction of the engine, on its thread."""
    return await engine._writer.submit(work)


async def rows(engine: SQLiteEngine, table: str) -> int:
    """Return how many rows a table has."""
    query = f"SELECT count(*) FROM {table}"
    return int((await do(engine, lambda store: store.db.execute(query).fetchone()))[0])


async def pragma(engine: SQLiteEngine, text: str) -> Any:
    """Run a pragma on the thread of the engine, between transactions."""

    def run() -> Any:
        return engine._store.db.execute(f"PRAGMA {text}").fetchone()

    return await asyncio.get_running_loop().run_in_executor(engine._writer._thread, run)


async def datas(engine: Engine, after: Position) -> list[bytes]:
    return [entry.data for entry in await engine.read("s", after, 100_000)]


@asynccontextmanager
async def held_up(engine: SQLiteEngine) -> AsyncIterator[None]:
    """Keep the thread of the engine in a transaction, as a disk does that does not answer."""
    go, begun = threading.Event(), threading.Event()

    def work(_: Store) -> None:
        begun.set()
        go.wait(10)

    held = engine._writer.submit(work)
    await asyncio.to_thread(begun.wait, 10)
    try:
        yield
    finally:
        go.set()
        await held


# What is refused at the start.


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "names no file"),
        ("sqlite://?synchronous=full", "names no file"),
        ("sqlite://:memory:", '"memory" to keep nothing'),
        ("sqlite:/x.db", "names no file"),
        ("sqlite://x.db?synchronous=off", "'off'; it is one of full, normal"),
        ("sqlite://x.db?synchronous=", "it is one of full, normal"),
        ("sqlite://x.db?sychronous=full", "'sychronous'; known: synchronous"),
        ("sqlite://x.db?synchronous=full&mode=ro", "'mode'; known"),
        ("sqlite://no/such/directory/x.db", "its directory must be there"),
    ],
)
def test_a_wrong_url_is_refused_and_says_what_would_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^engine: ") as refused:
        SQLiteEngine(LIMITS, url)
    assert said in str(refused.value)
    assert not list(tmp_path.glob("*.db"))


@pytest.mark.parametrize("url", ["sqlite://x.db", "sqlite://x.db?synchronous=normal"])
async def test_a_relative_path_starts_here_and_only_the_owner_may_read_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = SQLiteEngine(LIMITS, url)
    await engine.append("s", b"x")
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(["x.db", "x.db-wal", "x.db-shm", "x.db.lock"], 0o600)
    await engine.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.db", "x.db.lock"]


async def make(path: Path, count: int = 2_000) -> None:
    async with opened(path, level="normal") as engine:
        await asyncio.gather(*(engine.append("s", bytes(100)) for _ in range(count)))


def scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(os.urandom(4096 * 10))


def execute(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(sql)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b"no database " * 1_000), "no database.*move it away"),
        (scribble, "damaged.*move it away"),
        (lambda path: os.truncate(path, 50_000), "damaged.*move it away"),
        (lambda path: execute(path, "PRAGMA user_version = 7"), "another release.*schema 7, not 1"),
        (lambda path: execute(path, "PRAGMA application_id = 7"), "belongs to another program"),
        (lambda path: path.chmod(0o640), "open to other users; chmod 600"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be opened"),
    ],
    ids=["text", "scribble", "cut", "schema", "program", "mode", "directory"],
)
async def test_a_file_that_is_not_as_it_must_be_is_refused_and_left_alone(
    path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    await make(path)
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    for _ in range(2):  # the refusal lets go of the lock
        with pytest.raises(ConfigError, match=said) as refused:
            SQLiteEngine(LIMITS, f"sqlite://{path}")
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert before == (path.read_bytes() if path.is_file() else b"")


async def test_the_database_of_another_program_is_refused(path: Path) -> None:
    execute(path, "CREATE TABLE mine (x)")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="belongs to another program"):
        SQLiteEngine(LIMITS, f"sqlite://{path}")


async def test_one_engine_has_a_file_whatever_the_file_is_called(path: Path) -> None:
    other = path.with_name("other name.db")
    other.symlink_to(path)
    async with opened(path):
        for name in (path, other):
            with pytest.raises(ConfigError, match=f"in use by process {os.getpid()};"):
                SQLiteEngine(LIMITS, f"sqlite://{name}")
    async with opened(other):
        pass


# Group commit.


async def test_calls_that_wait_go_into_one_transaction(path: Path) -> None:
    async with opened(path) as engine:
        start = await engine.head("s")
        commits: list[str] = []
        engine._store.db.set_trace_callback(
            lambda sql: commits.append(sql) if sql == "COMMIT" else None
        )
        grants = [Grant("s", start, b"") for _ in range(50)]
        await asyncio.gather(
            *(engine.append("s", b"%d" % n, idempotency_key=f"k{n}") for n in range(200)),
            *(engine.put_grant(f"t{n}", grant, 10) for n, grant in enumerate(grants)),
        )
        assert len(commits) == 1
        held = [engine.append("s", b"x") for _ in range(100)]
        async with held_up(engine):
            later = [asyncio.ensure_future(call) for call in held]
            await asyncio.sleep(0)
        await asyncio.gather(*later)
        assert len(commits) == 3, "what came during a transaction is in the next one"
        assert len(await datas(engine, start)) == 300


async def test_nobody_hears_of_what_is_not_committed(path: Path) -> None:
    """At the moment a follower is told or a call returns, another connection sees the entry."""
    seen: list[int] = []

    class Looking(Listening):
        def entries_arrived(self, entries: Sequence[Entry]) -> None:
            super().entries_arrived(entries)
            seen.append(count() - len(self.data))

    def count() -> int:
        found: int = db.execute("SELECT count(*) FROM entry").fetchone()[0]
        return found

    async with opened(path) as engine:
        with closing(sqlite3.connect(path)) as db:
            heard = Looking()
            stop = await engine.follow("s", await engine.head("s"), heard)
            for n in range(30):
                position = await engine.append("s", b"x")
                assert count() >= position.offset
                assert len(heard.data) == n + 1, "told before the call returned"
            stop()
    assert min(seen) == 0


async def test_a_caller_that_gives_up_leaves_the_others_alone(path: Path) -> None:
    async with opened(path) as engine:
        start = await engine.head("s")
        calls = [asyncio.ensure_future(engine.append("s", b"%d" % n)) for n in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        await asyncio.wait(calls)
        assert (calls[0].result().offset, calls[2].result().offset) == (1, 3)
        assert await datas(engine, start) == [b"0", b"1", b"2"]


async def test_what_waits_at_the_close_is_written_and_answered(path: Path) -> None:
    async with opened(path) as engine:
        start = await engine.head("s")
        calls = [asyncio.ensure_future(engine.append("s", b"%d" % n)) for n in range(2_500)]
        await asyncio.sleep(0)
    assert [call.result().offset for call in calls] == list(range(1, 2_501))
    with pytest.raises(Unavailable):
        await engine.append("s", b"late")
    with pytest.raises(Unavailable):
        await engine.read("s", start, 1)
    async with opened(path) as engine:
        assert len(await datas(engine, start)) == 2_500


async def test_a_fault_of_our_own_ends_one_transaction_and_is_in_the_log(
    path: Path, expected_log: ExpectedLog
) -> None:
    def faulty(store: Store) -> None:
        store.append("s", b"not this")
        raise ZeroDivisionError

    async with opened(path) as engine:
        start = await engine.head("s")
        with (
            expected_log("syncserver.engine", "error of its own"),
            expected_log("syncserver.engine", "Cannot write the log: an internal error"),
        ):
            calls = [engine.append("s", b"nor this"), do(engine, faulty)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
        assert (await engine.append("s", b"this")).offset == 1
        assert await datas(engine, start) == [b"this"]


# When the file cannot be written.


async def no_room(engine: SQLiteEngine) -> Callable[[], Any]:
    (pages,) = await pragma(engine, "page_count")
    await pragma(engine, f"max_page_count = {pages}")
    return lambda: pragma(engine, "max_page_count = 1000000")


async def read_only(engine: SQLiteEngine) -> Callable[[], Any]:
    await pragma(engine, "query_only = 1")
    return lambda: pragma(engine, "query_only = 0")


async def locked(engine: SQLiteEngine) -> Callable[[], Any]:
    (_, _, path) = await pragma(engine, "database_list")
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")

    async def let_go() -> None:
        db.close()

    return let_go


TROUBLES = {
    "the disk is full": no_room,
    "the file cannot be written": read_only,
    "another program keeps the file locked": locked,
}


@pytest.mark.parametrize("why", TROUBLES)
async def test_what_cannot_be_written_is_unavailable_until_it_can_be(
    path: Path, why: str, expected_log: ExpectedLog
) -> None:
    big = bytes(300_000)
    async with opened(path) as engine:
        start, heard = await engine.head("s"), Listening()
        stop = await engine.follow("s", start, heard)
        await engine.put_grant("t", Grant("s", start, b"body"), 100)
        await engine.append("s", b"before", idempotency_key="before")
        await engine.check()
        end_trouble = await TROUBLES[why](engine)
        announced = expected_log("syncserver.engine", f"Cannot write the log: {why}")
        with announced, pytest.raises(Unavailable) as refused:
            await asyncio.gather(
                engine.put_grant("u", Grant("s", start, b"body"), 100),
                engine.take_grant("t", 100, resumable=True),
                engine.append("s", big, idempotency_key="big"),
            )
        assert engine.waiting_grants() == 1
        assert str(refused.value) == "Try again later", "no internals for callers"
        with pytest.raises(Unavailable) as unready:
            await engine.check()
        assert str(unready.value) == why
        assert heard.words == ["stale"]
        late = Listening()
        stop_late = await engine.follow("s", await engine.head("s"), late)
        assert late.words == ["stale"], "who comes meanwhile hears it too"
        assert await datas(engine, start) == [b"before"], "reading goes on"
        await end_trouble()
        await heard.until(lambda: heard.words == ["stale", "fresh"])
        await engine.check()
        position = await engine.append("s", big, idempotency_key="big")
        assert position.offset == 2, "what failed left nothing behind"
        assert (await engine.append("s", b"before", idempotency_key="before")).offset == 1
        assert (await engine.take_grant("t", 10, resumable=True)).take == 1
        await late.until(lambda: late.data)
        assert (heard.data, late.data) == ([b"before", big], [big])
        stop()
        stop_late()


async def test_there_is_room_again_when_there_is_room_for_what_failed(
    path: Path, expected_log: ExpectedLog
) -> None:
    """Else every large publish on an almost full disk would tell all clients stale and fresh."""
    async with opened(path) as engine:
        heard = Listening()
        stop = await engine.follow("s", await engine.head("s"), heard)
        (pages,) = await pragma(engine, "page_count")
        await pragma(engine, f"max_page_count = {pages + 100}")
        with expected_log("syncserver.engine", "the disk is full"), pytest.raises(Unavailable):
            await engine.append("s", bytes(1_000_000))
        probes = [heard.words.copy()]
        for _ in range(3):  # small ones still fit, and change nothing
            await engine.append("s", b"small")
            engine._probe()
            probes.append(heard.words.copy())
        await engine._write(lambda store: None)
        assert heard.words == ["stale"], probes
        await pragma(engine, "max_page_count = 1000000")
        await heard.until(lambda: heard.words == ["stale", "fresh"])
        assert len(heard.data) == 3
        stop()


async def test_a_disk_that_does_not_answer_is_told_of_and_nothing_piles_up(
    path: Path, monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    async with opened(path) as engine:
        heard = Listening()
        stop = await engine.follow("s", await engine.head("s"), heard)
        async with held_up(engine):
            monkeypatch.setattr(sqlite_writer, "STUCK_SECONDS", -1)
            announced = expected_log("syncserver.engine", "the disk does not answer")
            with announced, pytest.raises(Unavailable):
                await engine.append("s", b"x")
            with pytest.raises(Unavailable, match="the disk does not answer"):
                await engine.check()
            assert heard.words == ["stale"]
            monkeypatch.undo()
        await heard.until(lambda: heard.words == ["stale", "fresh"])
        stop()


async def test_a_close_does_not_wait_for_ever_and_then_keeps_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    monkeypatch.setattr(sqlite_writer, "_CLOSE_SECONDS", 0.01)
    engine = SQLiteEngine(LIMITS, f"sqlite://{path}")
    await engine.head("s")
    async with held_up(engine):
        waiting = asyncio.ensure_future(engine.append("s", b"x"))
        await asyncio.sleep(0)
        with expected_log("syncserver.engine", "The file was not closed: the disk does not"):
            await engine.close()
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(ConfigError, match="in use"):
            SQLiteEngine(LIMITS, f"sqlite://{path}")
    await asyncio.to_thread(engine._store.close)
    engine._lock.release()


async def test_what_cannot_be_read_is_unavailable(path: Path, expected_log: ExpectedLog) -> None:
    async with opened(path) as engine:
        start = await engine.head("s")
        await engine.append("s", b"x")
        engine._reader._db.set_progress_handler(lambda: 1, 1)
        announced = expected_log(
            "syncserver.engine", "Cannot read the log: the file cannot be used"
        )
        with announced, pytest.raises(Unavailable):
            await engine.read("s", start, 1)
        engine._reader._db.set_progress_handler(None, 1)
        assert await datas(engine, start) == [b"x"]


@pytest.mark.parametrize("bound", ["_MAX_CALLS", "_MAX_BYTES"])
async def test_more_calls_than_may_wait_are_refused_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(sqlite_writer, bound, 5)
    async with opened(path) as engine:
        await engine.head("s")
        async with held_up(engine):
            calls = [asyncio.ensure_future(engine.append("s", b"x")) for _ in range(8)]
            await asyncio.wait(calls[5:])
            assert all(isinstance(call.exception(), Unavailable) for call in calls[5:])
            assert not any(call.done() for call in calls[:5])
        await asyncio.gather(*calls[:5])
        await engine.append("s", b"x")


# Retention and the size of the file.


async def test_a_smaller_retention_takes_effect_in_steps_and_the_file_shrinks(path: Path) -> None:
    clock = Clock()
    async with opened(path, clock=clock) as engine:
        start = await engine.head("s")
        for _ in range(20):
            await asyncio.gather(*(engine.append("s", bytes(700)) for _ in range(500)))
        large = path.stat().st_size + path.with_name("log.db-wal").stat().st_size
    async with opened(path, replace(LIMITS, retention_entries=10), clock=clock) as engine:
        first = await engine.append("s", b"x")
        assert first.offset == 10_001
        assert 9_000 < await rows(engine, "entry") < 10_001, "no transaction does the whole of it"
        for _ in range(20):
            await do(engine, Store.sweep)
        assert await rows(engine, "entry") == 10
        with pytest.raises(PositionLost) as lost:
            await engine.read("s", start, 1)
        assert lost.value.reason == "trimmed"
        await pragma(engine, "wal_checkpoint(truncate)")
        assert path.stat().st_size < large / 2


async def test_the_file_keeps_its_size_while_the_log_moves_on(path: Path) -> None:
    clock, limits = Clock(), replace(LIMITS, retention_bytes=500_000, idempotency_seconds=20)

    async def use(engine: SQLiteEngine, round_: int) -> int:
        for n in range(20):
            key = f"{round_}.{n}"
            await asyncio.gather(
                *(
                    engine.append("s", os.urandom(500), idempotency_key=f"{key}.{i}")
                    for i in range(50)
                ),
                engine.put_grant(key, Grant("s", await engine.head("s"), bytes(100)), 10),
            )
            clock.now += 1
        await do(engine, Store.sweep)
        (pages,) = await pragma(engine, "page_count")
        return int(pages)

    async with opened(path, limits, level="normal", clock=clock) as engine:
        sizes = [await use(engine, round_) for round_ in range(8)]
        wal = path.with_name("log.db-wal").stat().st_size
    assert max(sizes[4:]) < 1.2 * max(sizes[1:3])
    assert wal < 6_000_000


async def test_what_is_old_goes_without_a_call_and_then_nothing_wakes_the_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncserver.engines.sqlite._SWEEP_SECONDS", 0.01)
    clock = Clock()
    async with opened(path, clock=clock) as engine:
        await engine.append("s", b"x", idempotency_key="k")
        await engine.put_grant("t", Grant("s", await engine.head("s"), b""), 10)
        await engine.head("s")
        clock.now += 10_000
        async with asyncio.timeout(5):
            while engine._timers or not engine._writer._idle.is_set():
                await asyncio.sleep(0)
        assert await do(engine, Store.sweep) is False
        for table in ("entry", "key", "held"):
            assert await rows(engine, table) == 0


# The clock and the power.


def as_after_a_crash(path: Path, folder: str) -> Path:
    """Copy the files of an open engine to where nobody has closed them."""
    copy = path.parent / folder / path.name
    copy.parent.mkdir(mode=0o700)
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{copy}{end}")
    return copy


@pytest.mark.parametrize("level", ["full", "normal"])
async def test_a_process_that_is_killed_loses_nothing_at_any_level(path: Path, level: str) -> None:
    async with opened(path, level=level) as engine:
        start = await engine.head("s")
        await engine.append("s", b"one", idempotency_key="k")
        await engine.put_grant("t", Grant("s", start, b"body"), 100)
        head = await engine.append("s", b"two")
        copy = as_after_a_crash(path, "killed")
    async with opened(copy, level=level) as engine:
        assert await engine.head("s") == head
        assert await datas(engine, start) == [b"one", b"two"]
        assert (await engine.append("s", b"one", idempotency_key="k")).offset == 1
        assert (await engine.take_grant("t", 10, resumable=True)).grant.body == b"body"


async def test_after_the_power_failed_a_log_written_less_surely_is_another_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    copies = {}
    for level in ("full", "normal"):
        async with opened(path, level=level) as engine:
            head = await engine.append("s", b"x")
            await engine.put_grant("t", Grant("s", head, b"body"), 100)
            copies[level] = as_after_a_crash(path, level)
    boot = path.with_name("boot_id")
    boot.write_text("another boot of the machine")
    monkeypatch.setattr(sqlite_file, "_BOOT_ID", boot)
    async with opened(copies["full"], level="normal") as engine:
        assert (await engine.head("s")).epoch == head.epoch, "nothing can be missing"
    async with opened(path) as engine:
        assert await engine.head("s") == head, "it was closed before the machine went down"
    with expected_log("syncserver.engine", "went down while the log was open"):
        engine = SQLiteEngine(LIMITS, f"sqlite://{copies['normal']}")
    assert (await engine.head("s")).epoch != head.epoch
    with pytest.raises(GrantMissing):
        await engine.take_grant("t", 1, resumable=True)
    await engine.close()
    async with opened(copies["normal"]) as engine:
        assert await engine.head("s"), "it begins anew once"


async def test_grants_that_were_taken_keep_no_room_from_one_that_is_new(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_grants, "_DROPPED", 3)
    clock = Clock()
    async with opened(path, replace(LIMITS, max_grants=2), clock=clock) as engine:
        grant = Grant("s", await engine.head("s"), b"body")
        for token in map(str, range(5)):
            await engine.put_grant(token, grant, 10)
            await engine.take_grant(token, 1, resumable=True)
        for token in "ab":
            await engine.put_grant(token, grant, 2)
        clock.now += 3
        await engine.put_grant("new", grant, 10)
        await engine.put_grant("newer", grant, 10)
        with pytest.raises(TooManyGrants):
            await engine.put_grant("too many", grant, 10)


async def test_a_clock_that_was_set_back_gives_a_grant_its_time_once_more_and_no_longer(
    path: Path,
) -> None:
    clock = Clock()
    async with opened(path, clock=clock) as engine:
        start = await engine.head("s")
        await engine.append("s", b"x", idempotency_key="k")
        await engine.put_grant("t", Grant("s", start, b"body"), 100)
        await engine.take_grant("t", 50, resumable=True)
    clock.now -= 100_000
    async with opened(path, clock=clock) as engine:
        clock.now += 49
        assert await engine.renew_grants(["t"], 50) == []
        assert await datas(engine, start) == [b"x"]
    clock.now -= 100_000
    async with opened(path, clock=clock) as engine:
        clock.now += 51
        assert await engine.renew_grants(["t"], 50) == ["t"]
        clock.now += 1_000
        await engine.append("s", b"y", idempotency_key="k")
        with pytest.raises(PositionLost):
            await engine.read("s", start, 1)


async def test_a_clock_that_is_set_while_the_process_runs_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as engine:
        await engine.put_grant("t", Grant("s", await engine.head("s"), b""), 100)
        monkeypatch.setattr("time.time", lambda: 10.0**10)
        assert (await engine.take_grant("t", 10, resumable=True)).take == 1
