"""What is special to the engine on Redis: a real one is filled, stopped, killed, and goes back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from syncserver.config import Config, Limits, default_services
from syncserver.engines.base import Entry, Grant, GrantHeld, GrantMissing, Taken, taken_notice
from syncserver.engines.redis import RedisEngine
from syncserver.engines.redis_link import ALL as SCRIPTS
from syncserver.engines.redis_link import Link, Links
from syncserver.engines.redis_reader import contradicts
from syncserver.errors import ConfigError, PositionLost, RefetchReason, TooManyGrants, Unavailable
from syncserver.position import Position
from syncserver.stream import Stream
from syncserver.tail import Record
from tests.conftest import ExpectedLog, LogGuard
from tests.support import daemon as daemons
from tests.support import valkey
from tests.support.proxy import proxied
from tests.support.valkey import Valkey

LIMITS = Limits()
KEYS = {kind: f"{{syncserver}}:{kind}:s" for kind in "mls"}


@pytest.fixture(autouse=True)
def short_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers look at the head more often than once a second, to save time."""
    if "real_time" not in request.fixturenames:
        monkeypatch.setattr("syncserver.engines.redis_reader._BLOCK_MS", 150)


@pytest.fixture
def real_time() -> None:
    """Let readers block as long as they do."""


@pytest.fixture
def server() -> Iterator[Valkey]:
    with valkey.running() as server:
        yield server


class Heard:
    """A listener that notes what it hears, in order."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.words: list[str] = []

    def entries_arrived(self, entries: Sequence[Entry]) -> None:
        self.entries.extend(entries)

    def went_stale(self) -> None:
        self.words.append("stale")

    def came_fresh(self) -> None:
        self.words.append("fresh")

    def position_lost(self, reason: RefetchReason) -> None:
        self.words.append(reason)

    @property
    def data(self) -> list[bytes]:
        return [entry.data for entry in self.entries]


async def until(condition: Callable[[], object], seconds: float = 25.0) -> None:
    """Look again and again, leaving the processor to the server."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def engine_on(
    server: Valkey, limits: Limits = LIMITS, *, options: str = "timeout_seconds=0.3"
) -> AsyncIterator[RedisEngine]:
    engine = RedisEngine(limits, f"{server.url}?{options}")
    try:
        yield engine
    finally:
        await engine.close()


async def fails(call: Any) -> str:
    """Return what is said by a call that must find Redis unavailable."""
    with pytest.raises(Unavailable) as caught:
        await call
    assert caught.value.http_status == 503
    return str(caught.value)


async def log_of(engine: RedisEngine, stream: str = "s") -> list[bytes]:
    """Return the whole log, from whatever is the first entry of an epoch."""
    head = await engine.head(stream)
    start = Position(head.epoch, 0, "0")
    return [entry.data for entry in await engine.read(stream, start, 100_000)]


def admin(server: Valkey, *command: Any) -> Any:
    with contextlib.closing(server.client) as client:
        return client.execute_command(*command)


# Errors, each of them from a real server where one can be brought to it.


async def refused_and_not_applied(engine: RedisEngine, word: str) -> None:
    """Check that writes fail with a word, and that no part of them is told."""
    secret = b"a payload that nobody may read in a message"
    grant = Grant("s", await engine.head("s"), secret) if word == "OOM" else None
    said = [await fails(engine.append("s", secret, idempotency_key="k"))]
    if grant is not None:
        said.append(await fails(engine.put_grant("new", grant, 10)))
    said.append(await fails(engine.take_grant("t", 10, resumable=True)))
    for text in said:
        assert f"answers {word}: " in text
        assert "payload" not in text


async def prepared(engine: RedisEngine) -> None:
    """Append an entry, and let a grant be held, so that taking it over appends a notice."""
    await engine.append("s", b"before")
    await engine.put_grant("t", Grant("s", await engine.head("s"), b"body"), 100)
    await engine.take_grant("t", 100, resumable=True)


async def goes_on(engine: RedisEngine) -> None:
    """Check that what failed left nothing behind, and that it works again."""
    assert await log_of(engine) == [b"before"]
    taken = await engine.take_grant("t", 100, resumable=True)
    assert taken.take == 2
    assert (await engine.append("s", b"after", idempotency_key="k")).offset == 3
    assert await log_of(engine) == [b"before", taken_notice("t", 2), b"after"]


async def test_a_full_memory_refuses_writes_whole_and_reads_go_on(server: Valkey) -> None:
    async with engine_on(server) as engine:
        await prepared(engine)
        admin(server, "CONFIG", "SET", "maxmemory", 1)
        await refused_and_not_applied(engine, "OOM")
        assert await log_of(engine) == [b"before"]
        admin(server, "CONFIG", "SET", "maxmemory", 0)
        await goes_on(engine)


async def test_a_replica_refuses_writes_and_is_written_to_when_it_is_promoted(
    server: Valkey,
) -> None:
    async with engine_on(server) as engine:
        await prepared(engine)
        admin(server, "REPLICAOF", "127.0.0.1", 1)
        await refused_and_not_applied(engine, "READONLY")
        assert await log_of(engine) == [b"before"]
        admin(server, "CONFIG", "SET", "replica-serve-stale-data", "no")
        assert "MASTERDOWN" in await fails(engine.head("s"))
        admin(server, "REPLICAOF", "NO", "ONE")
        await goes_on(engine)


async def test_a_server_that_cannot_save_refuses_writes(tmp_path: Path) -> None:
    protected = ("--enable-protected-configs", "yes")
    with valkey.running(*protected) as server:
        async with engine_on(server) as engine:
            await prepared(engine)
            gone = tmp_path / "gone"
            gone.mkdir()
            admin(server, "CONFIG", "SET", "dir", str(gone))
            admin(server, "CONFIG", "SET", "save", "3600 1")
            gone.rmdir()
            admin(server, "BGSAVE")
            await until(
                lambda: admin(server, "INFO", "persistence")["rdb_last_bgsave_status"] == "err"
            )
            await refused_and_not_applied(engine, "MISCONF")
            assert "MISCONF" in await fails(engine.check())
            admin(server, "CONFIG", "SET", "save", "")
            await goes_on(engine)


async def test_a_script_of_others_that_blocks_the_server_is_told(server: Valkey) -> None:
    async with engine_on(server) as engine:
        await prepared(engine)
        admin(server, "CONFIG", "SET", "busy-reply-threshold", 5)
        endless = asyncio.create_task(asyncio.to_thread(run_endlessly, server))
        await until(lambda: busy(server))
        await refused_and_not_applied(engine, "BUSY")
        admin(server, "SCRIPT", "KILL")
        await endless
        await goes_on(engine)


def run_endlessly(server: Valkey) -> None:
    with pytest.raises(valkey.redis.exceptions.ResponseError, match="killed"):
        admin(server, "EVAL", "while 1 do end", 0)


def busy(server: Valkey) -> bool:
    try:
        admin(server, "PING")
    except valkey.redis.exceptions.ResponseError:
        return True
    return False


async def test_a_server_that_is_still_loading_is_told_and_waited_for(server: Valkey) -> None:
    async with engine_on(server) as engine:
        await prepared(engine)
        with contextlib.closing(server.client) as client:
            client.mset({f"other {number}": random.randbytes(2_000) for number in range(200)})
            client.save()
        server.kill()
        slowly = ("--key-load-delay", "4000", "--loading-process-events-interval-bytes", "1024")
        server.start(*slowly, wait=False)
        said: set[str] = set()
        async with asyncio.timeout(8):
            while not any("LOADING" in text for text in said):
                with contextlib.suppress(Unavailable):
                    await engine.check()
                    raise AssertionError(f"it was never loading: {said}")
                said.add(await fails(engine.append("s", b"lost")))
                await asyncio.sleep(0.005)
        admin(server, "CONFIG", "SET", "key-load-delay", 0)
        server.wait()
        await goes_on(engine)


@pytest.mark.parametrize("kind", KEYS)
async def test_a_key_of_ours_that_holds_something_else_refuses_writes_whole(
    server: Valkey, kind: str
) -> None:
    async with engine_on(server) as engine:
        await prepared(engine)
        kept = admin(server, "DUMP", KEYS[kind])
        admin(server, "SET", KEYS[kind], "payload")
        await fails(engine.append("s", b"lost"))
        said = await fails(engine.take_grant("t", 10, resumable=True))
        assert "WRONGTYPE" in said
        assert "payload" not in said
        admin(server, "DEL", KEYS[kind])
        if kept:
            admin(server, "RESTORE", KEYS[kind], 0, kept)
        await goes_on(engine)


@pytest.mark.parametrize("name", ["deadlines", "bytes"])
async def test_what_counts_waiting_grants_may_hold_something_else_or_be_gone(
    server: Valkey, name: str
) -> None:
    async with engine_on(server) as engine:
        key = f"{{syncserver}}:w:{name}"
        grant = Grant("s", await engine.head("s"), b"body")
        await engine.put_grant("t", grant, 10)
        admin(server, "DEL", key)
        admin(server, "HSET", key, "payload", "payload")
        for call in (engine.put_grant("u", grant, 10), engine.take_grant("t", 10, resumable=True)):
            assert "WRONGTYPE" in await fails(call)
        admin(server, "DEL", key)
        with pytest.raises(GrantMissing):
            await engine.take_grant("u", 10, resumable=True)
        assert (await engine.take_grant("t", 10, resumable=True)).take == 1
        await engine.put_grant("u", grant, 10)
        await engine.take_grant("u", 10, resumable=True)
        assert int(admin(server, "GET", "{syncserver}:w:bytes")) in range(600)


async def test_a_grant_that_is_put_or_taken_twice_counts_once(server: Valkey) -> None:
    """As happens when an answer of Redis is lost."""
    async with engine_on(server, Limits(max_grants=2)) as engine:
        grant = Grant("s", await engine.head("s"), b"body")
        for token in "aaab":
            await engine.put_grant(token, grant, 10)
        assert int(admin(server, "GET", "{syncserver}:w:bytes")) == 2 * (500 + 4)
        for _ in range(2):
            await engine.take_grant("a", 10, resumable=True)
        assert int(admin(server, "GET", "{syncserver}:w:bytes")) == 500 + 4
        await engine.put_grant("c", grant, 10)
        with pytest.raises(TooManyGrants):
            await engine.put_grant("d", grant, 10)


async def test_a_hash_that_was_meddled_with_is_no_crash(server: Valkey) -> None:
    async with engine_on(server) as engine:
        await prepared(engine)
        admin(server, "HSET", KEYS["m"], "o", "payload")
        assert "payload" not in await fails(engine.append("s", b"lost"))
        admin(server, "SET", "{syncserver}:g:t", "payload")
        assert "WRONGTYPE" in await fails(engine.take_grant("t", 10, resumable=True))
        admin(server, "DEL", "{syncserver}:g:t")
        admin(server, "HSET", "{syncserver}:g:t", "s", "s", "p", "payload", "b", "b", "n", "0")
        assert "payload" not in await fails(engine.take_grant("t", 10, resumable=True))


async def test_scripts_that_redis_forgot_are_loaded_again(server: Valkey) -> None:
    async with engine_on(server) as engine:
        await prepared(engine)
        admin(server, "SCRIPT", "FLUSH")
        appends = [engine.append(f"s{number}", b"x") for number in range(5)]
        assert [place.offset for place in await asyncio.gather(*appends)] == [1] * 5
        admin(server, "SCRIPT", "FLUSH")
        await goes_on(engine)


@pytest.mark.parametrize(
    ("user", "word"), [("", "NOAUTH"), (":wrong@", "WRONGPASS"), ("few:few@", "NOPERM")]
)
async def test_who_may_not_use_the_server_is_told_so_at_start(user: str, word: str) -> None:
    with valkey.running("--requirepass", "right") as server:
        url = server.url.replace("unix://", f"unix://{user}")
        async with contextlib.aclosing(
            _Closing(RedisEngine(LIMITS, f"unix://:right@{server.socket}"))
        ) as own:
            await own.engine.open()
            await own.engine.head("s")
        with contextlib.closing(
            valkey.redis.Redis(unix_socket_path=str(server.socket), password="right")
        ) as client:
            client.execute_command("ACL", "SETUSER", "few", "on", ">few", "~*", "+@all", "-evalsha")
        engine = RedisEngine(LIMITS, url)
        call = engine.head("s") if word == "NOPERM" else engine.open()
        said = await fails(call)
        assert f"answers {word}: " in said
        assert "wrong" not in said or word == "WRONGPASS"
        await engine.close()


class _Closing:
    """An engine with the name that ``aclosing`` wants."""

    def __init__(self, engine: RedisEngine) -> None:
        self.engine = engine

    async def aclose(self) -> None:
        await self.engine.close()


WORDS = (
    "ASK 1 127.0.0.1:1",
    "BUSY Redis is busy running a script.",
    "CLUSTERDOWN The cluster is down",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "MASTERDOWN Link with MASTER is down",
    "MOVED 1 127.0.0.1:1",
    "NOREPLICAS Not enough good replicas to write.",
    "NOSCRIPT No matching script. Please use EVAL.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "UNKILLABLE Sorry the script already executed write commands",
    "LOADING Redis is loading the dataset in memory",
    "ERR Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command not",
    "ERR unknown command 'payload'",
    "WEIRD payload",
)


@pytest.mark.parametrize("line", WORDS)
async def test_any_error_of_a_server_is_unavailable_and_no_text_of_it_is_passed_on(
    tmp_path: Path, line: str
) -> None:
    async with answering(f"-{line}\r\n".encode()) as url:
        engine = RedisEngine(LIMITS, f"{url}?timeout_seconds=1")
        for call in (engine.append("s", b"payload"), engine.head("s"), engine.check()):
            said = await fails(call)
            assert "payload" not in said
            word = "OOM" if "OOM" in line else line.partition(" ")[0]
            assert f"answers {word}:" in said or word in {"ERR", "WEIRD"}
        await engine.close()


@pytest.mark.parametrize(
    "answer", [b"payload\r\n", b"$-9\r\n", b"*1\r\n$3\r\nabc\r\n", b":7\r\n", b"$1\r\n\xff\r\n"]
)
async def test_an_answer_that_is_none_is_unavailable(answer: bytes) -> None:
    async with answering(answer) as url:
        engine = RedisEngine(LIMITS, f"{url}?timeout_seconds=0.2")
        for call in (engine.append("s", b"payload"), engine.head("s")):
            assert "payload" not in await fails(call)
        await engine.close()


@contextlib.asynccontextmanager
async def answering(line: bytes) -> AsyncIterator[str]:
    """Serve a peer that gives this answer to every command."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while header := await reader.readline():
                for _ in range(int(header[1:])):
                    size = int((await reader.readline())[1:])
                    await reader.readexactly(size + 2)
                writer.write(line)
        finally:
            writer.close()

    path = f"/tmp/answering-{secrets.token_hex(8)}"
    door = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix://{path}"
    finally:
        door.close()
        Path(path).unlink(missing_ok=True)


# Away, late, and in doubt.


async def test_a_server_that_is_gone_is_told_at_once_and_missed_no_longer_than_it_is_gone(
    server: Valkey, expected_log: ExpectedLog
) -> None:
    async with engine_on(server, options="timeout_seconds=5") as engine:
        heard = Heard()
        last = await engine.append("s", b"before")
        await engine.follow("s", last, heard)
        admin(server, "SAVE")
        with expected_log("syncserver.engine", "is out of reach: Redis cannot be reached"):
            server.kill()
            began = time.monotonic()
            for call in (engine.append("s", b"x"), engine.head("s"), engine.check()):
                assert "cannot be reached" in await fails(call)
            assert time.monotonic() - began < 5, "none waits for its timeout"
            await until(lambda: heard.words == ["stale"])
        with expected_log("syncserver.engine", "is in reach again"):
            server.start()
            await until(lambda: heard.words == ["stale", "fresh"])
        await engine.check()
        assert await engine.append("s", b"after") == await engine.head("s")
        await until(lambda: heard.data == [b"after"])
        assert heard.words == ["stale", "fresh"]


async def test_a_connection_that_is_cut_is_made_anew_and_nobody_hears_of_it(
    server: Valkey,
) -> None:
    async with engine_on(server) as engine:
        heard = Heard()
        await engine.follow("s", await engine.head("s"), heard)
        for number in range(20):
            admin(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await engine.append("s", b"%d" % number)
        await until(lambda: len(heard.data) == 20)
        assert heard.data == [b"%d" % number for number in range(20)]
        assert heard.words == []


async def test_a_server_that_stands_still_costs_each_call_its_timeout_and_not_more(
    server: Valkey, expected_log: ExpectedLog
) -> None:
    async with engine_on(server, options="timeout_seconds=0.1") as engine:
        heard = Heard()
        await engine.follow("s", await engine.append("s", b"before"), heard)
        with expected_log("syncserver.engine", "is out of reach: Redis does not answer in time"):
            server.signal(signal.SIGSTOP)
            began = time.monotonic()
            appends = [engine.append("s", b"%d" % number) for number in range(50)]
            assert {
                type(error) for error in await asyncio.gather(*appends, return_exceptions=True)
            } == {Unavailable}
            assert time.monotonic() - began < 2.5, "they wait together"
            began = time.monotonic()
            heads = [engine.head("s") for _ in range(1_000)]
            await asyncio.gather(*heads, return_exceptions=True)
            assert time.monotonic() - began < 5, "while it is away one call tries"
            await until(lambda: heard.words == ["stale"])
        with expected_log("syncserver.engine", "is in reach again"):
            server.signal(signal.SIGCONT)
            await until(lambda: heard.words == ["stale", "fresh"])
        await engine.append("s", b"after")
        await until(lambda: heard.data[-1:] == [b"after"])
        log = await log_of(engine)
        assert len(log) == len(set(log)), "what was in doubt is there once or not at all"
        assert [b"before", *heard.data] == log
        assert heard.words == ["stale", "fresh"]


async def second_try(server: Valkey, call: Any) -> Any:
    """Let the first try of a call time out, and both tries arrive together."""
    server.signal(signal.SIGSTOP)
    task = asyncio.ensure_future(call)
    await asyncio.wait([task], timeout=0.45)  # the first of the two has 0.3 seconds
    assert not task.done()
    server.signal(signal.SIGCONT)
    return await task


async def test_a_call_that_is_made_twice_is_done_once(server: Valkey) -> None:
    async with engine_on(server, options="timeout_seconds=0.3") as engine:
        start = await engine.head("s")
        before = admin(server, "INFO", "commandstats")["cmdstat_evalsha"]["calls"]
        position = await second_try(server, engine.append("s", b"once"))
        assert admin(server, "INFO", "commandstats")["cmdstat_evalsha"]["calls"] == before + 2
        assert position == await engine.head("s")
        assert await log_of(engine) == [b"once"]

        grant = Grant("s", start, b"body")
        await second_try(server, engine.put_grant("t", grant, 100))
        assert await second_try(server, engine.take_grant("t", 100, resumable=False)) == Taken(
            grant, 1
        )
        with pytest.raises(GrantHeld):
            await second_try(server, engine.take_grant("t", 100, resumable=False))
        await second_try(server, engine.release_grant("t", 1, 100))
        await engine.take_grant("t", 100, resumable=True)
        assert await second_try(server, engine.take_grant("t", 100, resumable=True)) == Taken(
            grant, 3
        )
        assert await log_of(engine) == [b"once", taken_notice("t", 3)]
        assert await second_try(server, engine.revoke_grant("t", 100)) is True
        assert await engine.revoke_grant("t", 100) is False
        assert len(await log_of(engine)) == 3


@pytest.mark.parametrize("fault", [False, True], ids=["", "a link that is not ended"])
async def test_a_late_answer_is_never_taken_for_anothers(
    server: Valkey, monkeypatch: pytest.MonkeyPatch, fault: bool
) -> None:
    async with engine_on(server, options="timeout_seconds=0.05") as engine:
        heads = {name: await engine.append(name, b"x") for name in "abcdef"}
        if fault:

            async def nothing(_: Link | Links) -> None:
                return

            monkeypatch.setattr(Link, "end", nothing)
            monkeypatch.setattr(Links, "_end_idle", nothing)
        wrong = 0
        for early, late in ("ab", "cd", "ef"):
            server.signal(signal.SIGSTOP)
            await answer_of(engine.head(early))
            server.signal(signal.SIGCONT)
            while isinstance(answer := await answer_of(engine.head(late)), Unavailable):
                pass
            wrong += answer != heads[late]
        assert (wrong > 0) is fault
        monkeypatch.undo()


async def answer_of(call: Awaitable[Any]) -> Any:
    return (await asyncio.gather(call, return_exceptions=True))[0]


async def test_a_call_that_is_cancelled_leaves_no_answer_for_another(server: Valkey) -> None:
    rng = random.Random(7)
    async with engine_on(server) as engine:
        streams = [f"s{number}" for number in range(10)]
        heads = {stream: await engine.append(stream, b"x") for stream in streams}
        for _ in range(60):
            calls = {asyncio.ensure_future(engine.head(s)): s for s in rng.choices(streams, k=12)}
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            for call in rng.sample(list(calls), 6):
                call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for stream, answer in zip(calls.values(), answers, strict=True):
                assert isinstance(answer, asyncio.CancelledError) or answer == heads[stream]


async def test_who_waits_when_the_engine_is_closed_is_told(server: Valkey) -> None:
    server.signal(signal.SIGSTOP)
    engine = RedisEngine(LIMITS, server.url)
    calls = []
    for _ in range(4):  # two flights, and two appends that wait for one
        calls.append(asyncio.ensure_future(engine.append("s", b"x")))
        await asyncio.sleep(0.01)
    await engine.close()
    async with asyncio.timeout(1):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(result) for result in results} == {"The engine was closed"}


async def test_an_append_whose_caller_goes_away_disturbs_no_other(server: Valkey) -> None:
    async with engine_on(server) as engine:
        calls = [asyncio.ensure_future(engine.append("s", b"%d" % number)) for number in range(20)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        done = await asyncio.gather(*calls, return_exceptions=True)
        log = await log_of(engine)
        for number, position in list(enumerate(done))[1::2]:
            assert isinstance(position, Position)
            assert log[position.offset - 1] == b"%d" % number


# Appends together, and nodes together.


async def test_appends_that_are_under_way_together_are_few_calls(server: Valkey) -> None:
    async with engine_on(server) as engine:
        await engine.head("s")
        before = admin(server, "INFO", "commandstats")["cmdstat_evalsha"]["calls"]
        datas = [b"%d" % number for number in range(300)]
        positions = await asyncio.gather(*(engine.append("s", data) for data in datas))
        calls = admin(server, "INFO", "commandstats")["cmdstat_evalsha"]["calls"] - before
        assert calls == 1
        assert [position.offset for position in positions] == list(range(1, 301))
        assert await log_of(engine) == datas


async def test_what_is_much_goes_in_parts_and_too_much_is_refused(server: Valkey) -> None:
    async with engine_on(server, options="timeout_seconds=2") as engine:
        big = bytes(600_000)
        results = await asyncio.gather(
            *(engine.append("s", big) for _ in range(80)), return_exceptions=True
        )
        refused = [str(result) for result in results if isinstance(result, Unavailable)]
        kept = [result for result in results if isinstance(result, Position)]
        assert set(refused) == {"Too much waits for Redis"}
        assert len(kept) == (await engine.head("s")).offset > 40
        heard = Heard()
        await engine.follow("s", kept[0], heard)
        await until(lambda: len(heard.entries) == len(kept) - kept[0].offset)
        assert heard.words == []


async def test_two_nodes_see_one_order(server: Valkey) -> None:
    async with engine_on(server) as one, engine_on(server) as other:
        start = await one.head("s")
        assert await other.head("s") == start
        heard = [Heard(), Heard()]
        for engine, ear in zip((one, other), heard, strict=True):
            await engine.follow("s", start, ear)
        await asyncio.gather(
            *(engine.append("s", b"%d" % n) for n in range(200) for engine in (one, other))
        )
        await until(lambda: all(len(ear.entries) == 400 for ear in heard))
        assert heard[0].entries == heard[1].entries
        await one.put_grant("t", Grant("s", start, b"body"), 100)
        takes = [engine.take_grant("t", 100, resumable=False) for engine in (one, other) * 3]
        results = await asyncio.gather(*takes, return_exceptions=True)
        assert sorted(type(result) is Taken for result in results) == [False] * 5 + [True]


async def test_prefixes_are_apart_and_all_keys_have_one_hash_tag(server: Valkey) -> None:
    async with engine_on(server) as one, engine_on(server, options="prefix=other") as other:
        for engine in (one, other):
            await engine.append("a:b{c}*", b"x", idempotency_key="k:{y}")
            grant = Grant("a:b{c}*", await engine.head("a:b{c}*"), b"")
            await engine.put_grant("t", grant, 100)
            assert (await engine.take_grant("t", 10, resumable=True)).grant == grant
            assert grant.position.offset == 1
        with contextlib.closing(server.client) as client:
            keys = [key.decode() for key in client.keys("*")]
            assert {key.partition(":")[0] for key in keys} == {"{syncserver}", "{other}"}
            kinds = {key.split(":")[1]: client.pttl(key) for key in keys}
        assert {kind for kind, left in kinds.items() if left < 0} == {"m", "l"}


async def test_what_redis_keeps_is_bounded(server: Valkey) -> None:
    limits = Limits(retention_entries=100, retention_bytes=20_000, retention_seconds=0.05)
    async with engine_on(server, limits) as engine:
        for _ in range(100):
            await asyncio.gather(*(engine.append("s", bytes(100)) for _ in range(20)))
        assert admin(server, "XLEN", KEYS["l"]) <= 100
        assert admin(server, "LLEN", KEYS["s"]) <= 20
        assert admin(server, "HLEN", KEYS["m"]) == 8


async def test_a_closed_engine_leaves_no_connection(server: Valkey) -> None:
    async with engine_on(server) as engine:
        for stream in "abc":
            await engine.follow(stream, await engine.head(stream), Heard())
        await asyncio.gather(*(engine.head("s") for _ in range(100)))
        assert 4 < admin(server, "INFO", "clients")["connected_clients"] <= 20
    await until(lambda: admin(server, "INFO", "clients")["connected_clients"] == 1)


# A store that lost something.


@pytest.mark.parametrize("loss", ["FLUSHALL", "m", "l", "ahead"])
async def test_a_log_that_was_lost_begins_anew_and_everybody_hears_so(
    server: Valkey, loss: str
) -> None:
    async with engine_on(server) as engine, engine_on(server) as other:
        ears = [Heard(), Heard(), Heard()]
        old = [await engine.append("s", b"%d" % number) for number in range(5)]
        for where, ear in zip((engine, engine, other), ears, strict=True):
            await where.follow("s", old[-1], ear)
        match loss:
            case "FLUSHALL":
                admin(server, loss)
            case "ahead":
                script = "redis.call('HINCRBY', KEYS[1], 'o', 1) redis.call('DEL', KEYS[2])"
                admin(server, "EVAL", script, 2, KEYS["m"], KEYS["l"])
            case _:
                admin(server, "DEL", KEYS[loss])
        if loss == "l":  # who stands at the head has lost nothing before the next entry
            await engine.append("s", b"mend")
        for place in old[:-1]:
            with pytest.raises(PositionLost) as lost:
                await engine.read("s", place, 10)
            assert lost.value.reason == "epoch"
        await until(lambda: all(ear.words for ear in ears))
        head = await engine.append("s", b"new")
        assert head.epoch != old[-1].epoch
        await until(lambda: all(ear.data[-1:] == [b"new"] for ear in ears))
        for ear in ears:
            assert set(ear.words) == {"epoch"}
            assert [entry.position.epoch for entry in ear.entries[-1:]] == [head.epoch]


async def test_a_log_that_others_wrote_into_begins_anew(
    server: Valkey, expected_log: ExpectedLog
) -> None:
    async with engine_on(server) as engine:
        heard = Heard()
        old = await engine.append("s", b"old")
        await engine.follow("s", old, heard)
        with expected_log("syncserver.engine", "a new one begins"):
            admin(server, "XADD", KEYS["l"], "900-0", "foreign", "payload")
            await until(lambda: heard.words == ["fork"])
        new = await engine.append("s", b"new")
        await until(lambda: [entry.position for entry in heard.entries] == [new])
        assert await lost(engine, old) == "epoch"


async def test_a_log_that_began_anew_is_noticed_within_two_seconds(
    server: Valkey, real_time: None
) -> None:
    async with engine_on(server) as engine:
        heard = Heard()
        await engine.follow("s", await engine.append("s", b"x"), heard)
        admin(server, "FLUSHALL")
        await until(lambda: heard.words == ["epoch"], seconds=2)


async def test_the_steps_may_be_lost_without_harm(server: Valkey) -> None:
    limits = Limits(retention_bytes=10_000)
    async with engine_on(server, limits) as engine:
        for _ in range(3):
            places = [await engine.append("s", bytes(700)) for _ in range(40)]
            assert admin(server, "XLEN", KEYS["l"]) <= 40
            admin(server, "DEL", KEYS["s"])
        assert len(await engine.read("s", places[-9], 100)) == 8


async def test_a_log_that_went_back_is_noticed_by_reader_and_read(
    server: Valkey, expected_log: ExpectedLog
) -> None:
    async with engine_on(server) as engine:
        kept = [await engine.append("s", b"kept %d" % number) for number in range(3)]
        admin(server, "SAVE")
        gone = [await engine.append("s", b"gone %d" % number) for number in range(3)]
        heard = Heard()
        await engine.follow("s", gone[-1], heard)
        with (
            expected_log("syncserver.engine", "is out of reach"),
            expected_log("syncserver.engine", "is in reach again"),
        ):
            server.kill()
            await until(lambda: heard.words == ["stale"])
            server.start()
            with expected_log("syncserver.engine", "a new one begins"):
                await until(lambda: len(heard.words) == 3)
        assert heard.words == ["stale", "rollback", "fresh"]
        assert [await lost(engine, place) for place in kept + gone] == ["epoch"] * 6
        new = [await engine.append("s", b"new %d" % number) for number in range(5)]
        await until(lambda: len(heard.entries) == 5)
        assert [entry.position for entry in heard.entries] == new
        assert len(await engine.read("s", new[0], 9)) == 4
        assert heard.words == ["stale", "rollback", "fresh"]


async def test_a_read_knows_a_position_that_is_not_in_this_log(server: Valkey) -> None:
    """Nobody follows, so nobody ends the log that went back."""
    async with engine_on(server) as engine:
        kept = await engine.append("s", b"kept")
        copies = copied(server)
        gone = [await engine.append("s", b"gone %d" % number) for number in range(3)]
        restore(server, copies)
        assert await lost(engine, gone[0]) == "rollback"
        for number in range(5):
            await engine.append("s", b"new %d" % number)
        assert [await lost(engine, place) for place in gone] == ["fork"] * 3
        assert len(await engine.read("s", kept, 9)) == 5


async def test_a_log_that_went_back_begins_anew_once_however_many_notice(
    server: Valkey, expected_log: ExpectedLog
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(engine_on(server)) for _ in range(3)]
        await nodes[0].append("s", b"kept")
        copies = copied(server)
        ears = [Heard() for _ in nodes]
        head = await nodes[0].append("s", b"gone")
        for node, heard in zip(nodes, ears, strict=True):
            await node.follow("s", head, heard)
        with expected_log("syncserver.engine", "a new one begins"):
            restore(server, copies)
            await until(lambda: all(heard.words for heard in ears))
        new = [await node.append("s", b"new") for node in nodes]
        await until(lambda: all(len(heard.entries) == 3 for heard in ears))
        assert {place.epoch for place in new} & {head.epoch} == set()
        assert [place.offset for place in new] == [1, 2, 3]
        assert all(len(heard.words) == 1 for heard in ears)


async def test_an_acknowledged_entry_that_never_comes_ends_the_log(
    server: Valkey, expected_log: ExpectedLog
) -> None:
    """A log may lose what no node has read yet; its publisher was told that it is there."""
    async with engine_on(server) as engine:
        first = await engine.append("s", b"kept")
        copies = copied(server)
        await engine.append("s", b"gone", idempotency_key="key")
        restore(server, copies)  # but for the key, which answers as if nothing had happened
        heard = Heard()
        await engine.follow("s", first, heard)
        with expected_log("syncserver.engine", "a new one begins"):
            assert (await engine.append("s", b"gone", idempotency_key="key")).offset == 2
            await until(lambda: heard.words == ["rollback"])
        assert await lost(engine, first) == "epoch"


def test_an_entry_in_the_place_of_an_acknowledged_one_is_another() -> None:
    start = Position.start()
    places = [start._replace(offset=number, mark=f"m{number}") for number in range(5)]
    entries = [Entry(after, before.mark, b"") for before, after in itertools.pairwise(places[1:])]
    assert not any(contradicts(entries, place) for place in places)
    assert contradicts(entries, places[3]._replace(mark="other"))
    assert not contradicts(entries, places[3]._replace(mark="other", epoch="other"))
    assert not contradicts(entries, places[4]._replace(offset=5))
    assert not contradicts([], places[3])


def copied(server: Valkey) -> dict[str, bytes]:
    return {key: admin(server, "DUMP", key) for key in (KEYS["m"], KEYS["l"])}


def restore(server: Valkey, copies: dict[str, bytes]) -> None:
    script = "for i = 1, #KEYS do redis.call('RESTORE', KEYS[i], 0, ARGV[i], 'REPLACE') end"
    admin(server, "EVAL", script, 2, *copies, *copies.values())


async def lost(engine: RedisEngine, place: Position) -> str:
    with pytest.raises(PositionLost) as caught:
        await engine.read("s", place, 9)
    return caught.value.reason


@pytest.mark.parametrize("more", [1, 5], ids=["as far as the reader", "past it"])
async def test_a_log_that_went_back_and_grew_again_is_noticed(
    server: Valkey, expected_log: ExpectedLog, more: int
) -> None:
    async with engine_on(server) as engine, engine_on(server) as other:
        await engine.append("s", b"kept")
        copies = copied(server)
        heard = Heard()
        await engine.follow("s", await engine.append("s", b"gone"), heard)
        with expected_log("syncserver.engine", "a new one begins"):
            restore(server, copies)
            await asyncio.gather(*(other.append("s", b"%d" % n) for n in range(more)))
            await until(lambda: heard.words)
        assert heard.words[0] in {"fork", "rollback"}
        last = await other.append("s", b"last")
        await until(lambda: heard.entries and heard.entries[-1].position == last)


# Everything at once, seen through the cursors of three nodes.


class Delivered:
    """What one node delivered since it last lost something."""

    def __init__(self) -> None:
        self.records: list[Record[bytes]] = []
        self.losses = 0

    def deliver(self, record: Record[bytes]) -> None:
        self.records.append(record)

    def turn_ended(self) -> None:
        return

    def lost(self, reason: RefetchReason) -> None:
        self.records.clear()
        self.losses += 1

    def freshness(self, *, stale: bool) -> None:
        return


async def cut(server: Valkey, rng: random.Random) -> None:
    admin(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def forget_scripts(server: Valkey, rng: random.Random) -> None:
    admin(server, "SCRIPT", "FLUSH")


async def stop_for_a_while(server: Valkey, rng: random.Random) -> None:
    server.signal(signal.SIGSTOP)
    await asyncio.sleep(rng.choice([0.02, 0.1, 0.3]))
    server.signal(signal.SIGCONT)


async def kill(server: Valkey, rng: random.Random) -> None:
    server.kill()
    await asyncio.sleep(rng.random() * 0.1)
    await asyncio.to_thread(server.start)


async def flush(server: Valkey, rng: random.Random) -> None:
    admin(server, "FLUSHALL")


async def evict(server: Valkey, rng: random.Random) -> None:
    admin(server, "DEL", rng.choice(list(KEYS.values())))


async def go_back(server: Valkey, rng: random.Random) -> None:
    copies = {key: admin(server, "DUMP", key) for key in KEYS.values()}
    await asyncio.sleep(rng.random() * 0.05)
    there = {key: copy for key, copy in copies.items() if copy is not None}
    script = "for i = 1, #KEYS do redis.call('RESTORE', KEYS[i], 0, ARGV[i], 'REPLACE') end"
    admin(server, "EVAL", script, len(there), *there, *there.values())


LOSING = (flush, evict, go_back)
SPARING = (cut, forget_scripts, stop_for_a_while, kill)


async def write(engine: RedisEngine, name: int, acknowledged: dict[bytes, Position]) -> None:
    """Append for ever, each entry until it is acknowledged."""
    for number in itertools.count():
        data = b"%d of %d" % (number, name)
        while data not in acknowledged:
            with contextlib.suppress(Unavailable):
                position = await engine.append("s", data, idempotency_key=data.decode())
                acknowledged[data] = position
            await asyncio.sleep(0.003)


@pytest.mark.parametrize("faults", [SPARING, SPARING + LOSING], ids=["sparing", "losing"])
async def test_under_any_faults_no_node_has_a_gap_or_another_history(
    faults: Sequence[Any], log_guard: LogGuard
) -> None:
    rng = random.Random(5)
    acknowledged: dict[bytes, Position] = {}
    with valkey.running("--appendonly", "yes", "--appendfsync", "always") as server:
        async with engine_on(server) as a, engine_on(server) as b, engine_on(server) as c:
            nodes = [Delivered() for _ in range(3)]
            streams = [
                Stream(engine, "s", node, decode=bytes, tail_bytes=10**7)
                for engine, node in zip((a, b, c), nodes, strict=True)
            ]
            for stream in streams:
                await stream.open()
            begin = streams[0].cursor
            writers = [
                asyncio.ensure_future(write(engine, number, acknowledged))
                for number, engine in enumerate((a, b, c, a, b, c))
            ]
            for number in range(24):
                await asyncio.sleep(rng.random() * 0.04)
                await faults[number % len(faults)](server, rng)
            await asyncio.sleep(0.1)
            for writer in writers:
                writer.cancel()
            await asyncio.wait(writers)
            await until(lambda: not a._links._away, 5)
            head = await a.append("s", b"last")
            await until(lambda: all(stream.cursor == head for stream in streams), 20)
            log = await a.read("s", Position(head.epoch, 0, "0"), 100_000)
            for node in nodes:
                known = [(record.position, record.value) for record in node.records]
                assert known == [
                    (entry.position, entry.data) for entry in log[len(log) - len(known) :]
                ]
            if faults is SPARING:
                assert not any(node.losses for node in nodes)
                assert log[0].previous == begin.mark
                assert len(known) == len(log) == len({entry.data for entry in log})
                told = {entry.data: entry.position for entry in log}
                assert all(told[data] == place for data, place in acknowledged.items())
            else:
                assert all(node.losses for node in nodes)
            for stream in streams:
                await stream.close()
    log_guard.unannounced.clear()  # they say that the log is away, back, or lost


# Whole daemons.


def config_on(url: str) -> Config:
    settings = daemons.settings(resume_seconds=30)
    return Config(
        engine=f"{url}?timeout_seconds=0.3",
        frontend=settings.frontend,
        backend=settings.backend,
        limits=settings.limits,
        services={"datasync": default_services()["datasync"]},
    )


def insert(key: int) -> dict[str, Any]:
    return {"type": "insert", "model": "Task", "data": {"id": key}}


async def acquire(peer: daemons.Peer, token: str, position: str | None = None) -> Any:
    return await peer.call("datasync", "acquireSubscription", token=token, position=position)


async def test_clients_stay_connected_while_redis_is_away_and_miss_nothing(
    server: Valkey, expected_log: ExpectedLog
) -> None:
    async with (
        daemons.serving(config=config_on(server.url)) as one,
        daemons.serving(config=config_on(server.url)) as other,
    ):
        peers = [await one.connect(), await other.connect()]
        for peer in peers:
            token = await one.authorize(("AllTasks", None))
            assert (await acquire(peer, token))["type"] == "response"
        await other.publish(insert(1))
        for peer in peers:
            assert (await peer.notice("delta"))["delta"]["data"] == {"id": 1}
        admin(server, "SAVE")
        with expected_log("syncserver.engine", "is out of reach"):
            server.kill()
            for peer in peers:
                assert await peer.notice("stale")
        began = time.monotonic()
        body = daemons.call_body("datasync_backend", "publishDeltas", {"deltas": [insert(2)]})
        answer = await one.request(body=body)
        assert (answer.code, answer.headers["Retry-After"]) == (503, "1")
        ready = await one.request("/ready", method="GET")
        assert ready.code == 503
        assert b"Redis cannot be reached" in ready.body
        assert time.monotonic() - began < 5
        with expected_log("syncserver.engine", "is in reach again"):
            server.start()
            for peer in peers:
                assert await peer.notice("fresh")
        await one.publish(insert(3))
        for peer in peers:
            assert (await peer.notice("delta"))["delta"]["data"] == {"id": 3}
            assert not any(notice["type"] == "refetch" for notice in peer.take())


@pytest.mark.parametrize("more", [0, 4], ids=["rollback", "fork"])
async def test_an_older_snapshot_costs_everybody_a_refetch_who_was_away_too(
    server: Valkey, expected_log: ExpectedLog, more: int
) -> None:
    async with daemons.serving(config=config_on(server.url)) as daemon:
        early, late = await daemon.connect(), await daemon.connect()
        tokens = [await daemon.authorize(("AllTasks", None)) for _ in range(2)]
        before = (await acquire(early, tokens[0]))["data"]["position"]
        await early.close()
        await acquire(late, tokens[1])
        admin(server, "SAVE")
        await daemon.publish(insert(1), insert(2))
        await late.notice("position")
        with (
            expected_log("syncserver.engine", "is out of reach"),
            expected_log("syncserver.engine", "is in reach again"),
            expected_log("syncserver.engine", "a new one begins"),
            expected_log("syncserver.stream", "was lost"),
        ):
            server.kill()
            await late.notice("stale")
            server.start()
            if more:
                async with engine_on(server) as other:
                    for _ in range(more):
                        await other.append("datasync", b'{"deltas": []}')
            refetch = await late.notice("refetch")
            if not any(notice["type"] == "fresh" for notice in late.take()):
                await late.notice("fresh")
        assert refetch["reason"] == "epoch"
        again = await daemon.connect()
        answer = await acquire(again, tokens[0], before)
        assert (answer["code"], answer["reason"]) == ("refetch", "epoch")
        token = await daemon.authorize(("AllTasks", None))
        assert (await acquire(late, token))["type"] == "response", "the connection lives on"


@pytest.mark.seconds(90)
async def test_a_failover_that_lost_the_tail_is_a_new_log(
    server: Valkey, tmp_path: Path, expected_log: ExpectedLog
) -> None:
    """The replica is cut off and promoted before the last entry is acknowledged."""
    admin(server, "CONFIG", "SET", "port", str(port := free_port()))
    with valkey.running("--replicaof", "127.0.0.1", str(port)) as replica:
        path = tmp_path / "redis"
        async with (
            proxied(server.socket, path) as proxy,
            daemons.serving(config=config_on(f"unix://{path}")) as daemon,
        ):
            away, present = await daemon.connect(), await daemon.connect()
            tokens = [await daemon.authorize(("AllTasks", None)) for _ in range(2)]
            positions = [
                (await acquire(peer, token))["data"]["position"]
                for peer, token in zip((away, present), tokens, strict=True)
            ]
            await away.close()
            await until(lambda: has_all(server))
            admin(replica, "REPLICAOF", "NO", "ONE")
            await daemon.publish(insert(1))
            assert await present.notice("delta")
            with (
                expected_log("syncserver.engine", "a new one begins"),
                expected_log("syncserver.stream", "was lost"),
            ):
                server.kill()
                proxy.lead_to(replica.socket)
                assert (await present.notice("refetch"))["reason"] == "epoch"
            back = await daemon.connect()
            answer = await acquire(back, tokens[0], positions[0])
            assert (answer["code"], answer["reason"]) == ("refetch", "epoch")


def has_all(server: Valkey) -> bool:
    """Tell whether the replica has said that it has all that its master wrote."""
    _, written, replicas = admin(server, "ROLE")
    return [int(acknowledged) for _, _, acknowledged in replicas] == [written]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


async def test_one_key_that_is_evicted_costs_a_refetch_and_no_connection(
    server: Valkey, expected_log: ExpectedLog
) -> None:
    async with daemons.serving(config=config_on(server.url)) as daemon:
        peer = await daemon.connect()
        with expected_log("syncserver.stream", "was lost"):
            for kind in "ml":
                token = await daemon.authorize(("AllTasks", None))
                await acquire(peer, token)
                await daemon.publish(insert(1))
                admin(server, "DEL", f"{{syncserver}}:{kind}:datasync")
                await daemon.publish(insert(2))
                assert (await peer.notice("refetch"))["reason"] == "epoch"


async def test_nodes_with_other_settings_are_warned_of_once_and_others_are_not(
    server: Valkey,
    monkeypatch: pytest.MonkeyPatch,
    expected_log: ExpectedLog,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("syncserver.engines.redis_nodes._LOOK_SECONDS", 0.05)

    def looks() -> int:
        stats = admin(server, "INFO", "commandstats")
        return int(stats.get("cmdstat_zcount", {"calls": 0})["calls"])

    async with engine_on(server) as one, engine_on(server) as same:
        one.compare("a")
        await until(lambda: looks() > 2)
        same.compare("a")
        seen = looks()
        await until(lambda: looks() > seen + 8)
        assert "other settings" not in caplog.text
        with expected_log("syncserver.engine", "other settings"):
            async with engine_on(server) as other:
                other.compare("b")
                await until(lambda: caplog.text.count("other settings") == 3)
                seen = looks()
                await until(lambda: looks() > seen + 12)
        assert caplog.text.count("other settings") == 3, "once by each"
    async with engine_on(server) as again:
        again.compare("c")
        seen = looks()
        await until(lambda: looks() > seen + 5)
    assert caplog.text.count("other settings") == 3, "those are gone"


# The start.


async def test_a_server_that_cannot_be_had_is_told_within_five_seconds(server: Valkey) -> None:
    nobody = RedisEngine(LIMITS, "unix:///nowhere/redis.sock")
    assert await fails(nobody.open()) == "Redis cannot be reached: No such file or directory"
    refusing = RedisEngine(LIMITS, "redis://127.0.0.1:1")
    assert await fails(refusing.open()) == "Redis cannot be reached: Connection refused"
    server.signal(signal.SIGSTOP)
    async with engine_on(server) as silent:
        began = time.monotonic()
        assert await fails(silent.open()) == "Redis does not answer in time"
        assert time.monotonic() - began < 5
    for engine in (nobody, refusing):
        await engine.close()


async def test_a_server_that_may_evict_is_warned_of(
    server: Valkey, expected_log: ExpectedLog
) -> None:
    async with engine_on(server) as engine:
        await engine.open()
        admin(server, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with expected_log("syncserver.engine", "maxmemory-policy is allkeys-lru"):
            await engine.open()


def rule() -> list[str]:
    """Return what the how-to allows a user of our own, in words for ACL SETUSER."""
    page = (daemons.ROOT / "docs/howto/redis.rst").read_text("utf-8")
    text = page.partition("ACL SETUSER")[2].partition("\n\n")[0]
    return text.replace("\\\n", "").replace("PASSWORD", "pw").split()


def test_the_how_to_allows_what_the_scripts_call_and_what_is_sent_and_no_more() -> None:
    called = {
        name
        for script in SCRIPTS
        for name in re.findall(r"call\('([A-Z]+)'", script.source.decode())
    }
    sent = {"INFO", "TIME", "EVALSHA", "SCRIPT|LOAD", "XREAD", "HMGET"}
    allowed = {word[1:].upper() for word in rule() if word.startswith("+")}
    assert called | sent == allowed - {"@CONNECTION"}


async def test_a_user_who_may_do_no_more_than_needed_is_enough(server: Valkey) -> None:
    admin(server, "ACL", "SETUSER", *rule())
    engine = RedisEngine(LIMITS, f"unix://syncserver:pw@{server.socket}")
    await engine.open()
    await engine.clock()
    await prepared(engine)
    engine.compare("settings")
    heard = Heard()
    await engine.follow("s", await engine.head("s"), heard)
    await goes_on(engine)
    assert (await engine.since("s", 10)).offset == 0
    assert await engine.renew_grants(["t"], 10) == []
    await engine.release_grant("t", 2, 10)
    assert await engine.revoke_grant("t", 10)
    await engine.release_grant("t", 2, 0)
    admin(server, "DEL", KEYS["m"])
    await engine.append("s", b"anew")
    await engine.check()
    await until(lambda: heard.words == ["epoch"])
    await until(lambda: admin(server, "EXISTS", "{syncserver}:n:settings"))
    await engine.close()
    assert admin(server, "ACL", "LOG") == [], "what was refused, whoever kept silent about it"


async def test_a_command_that_a_script_may_not_use_is_told_as_one_that_is_not_allowed(
    server: Valkey,
) -> None:
    admin(server, "ACL", "SETUSER", *rule(), "-lrange")
    engine = RedisEngine(LIMITS, f"unix://syncserver:pw@{server.socket}")
    await engine.append("s", b"before")
    said = await fails(engine.since("s", 10))
    assert said == "Redis answers NOPERM: its user may not do this"
    await engine.close()


async def test_a_server_that_is_too_old_is_refused() -> None:
    text = b"redis_version:6.0.16\r\nmaxmemory_policy:noeviction\r\n"
    async with answering(b"$%d\r\n%b\r\n" % (len(text), text)) as url:
        engine = RedisEngine(LIMITS, url)
        assert await fails(engine.open()) == "Redis is too old (6.0.16); 6.2 is needed"
        await engine.close()


def test_the_daemon_ends_with_69_and_one_line_and_no_password(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "syncserver"],
        env={
            "PYTHONPATH": str(daemons.ROOT),
            "SYNCSERVER_ENGINE": "redis://user:secret@127.0.0.1:1/0",
            "SYNCSERVER_STATE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 69
    assert done.stderr == (
        "syncserver: engine redis://127.0.0.1:1/0: Redis cannot be reached: Connection refused;"
        " mend or start it, or change engine\n"
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:port",
        "redis://h:99999",
        "redis://[h",
        "redis://h?decode_responses=1",
        "redis://h?timeout_seconds=0",
        "redis://h?timeout_seconds=x",
        "redis://h?timeout_seconds=61",
        "redis://h?prefix=a{b}",
        "redis://h?prefix=",
        "redis://h?ssl_nonsense=1",
        "redis://h/x",
        "redis://h?db=x",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisEngine(LIMITS, url)
    assert str(caught.value).startswith("engine: ")


def test_tls_checks_whom_it_talks_to() -> None:
    engine = RedisEngine(LIMITS, "rediss://h")
    connection = engine._links.make()._connection
    assert connection.check_hostname
    assert connection.cert_reqs in {"required", ssl.CERT_REQUIRED}
