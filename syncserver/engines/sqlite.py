"""The engine of one machine: logs and grants in a SQLite file, which outlive the process.

A call is answered, and followers are told, when its transaction is committed. A transaction
that fails leaves nothing behind: its calls hear Unavailable, and followers
that the log is stale, until there is room for as much again.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from syncserver.config import Limits
from syncserver.engines.base import Engine, Entry, Grant, Listener, Taken
from syncserver.engines.sqlite_file import Lock, parse_url, reason_of
from syncserver.engines.sqlite_reader import Reader
from syncserver.engines.sqlite_store import Store
from syncserver.engines.sqlite_writer import STUCK, STUCK_SECONDS, Writer
from syncserver.errors import Unavailable
from syncserver.position import Position

logger = logging.getLogger("syncserver.engine")

_MAX_READS = 1_000
_FOLLOW_ENTRIES = 256
_SWEEP_SECONDS = 1.0
_PROBE_SECONDS = 0.5
_PROBE_BYTES = 64 * 1024

T = TypeVar("T")


class SQLiteEngine(Engine):
    """Keep everything in one file; ConfigError if the file cannot be had.

    :param url: ``sqlite://PATH``, with ``?synchronous=full`` or ``normal`` at its end.
    :param clock: seconds since 1970, never going back; tests give their own.
    """

    def __init__(
        self, limits: Limits | None, url: str, *, clock: Callable[[], float] | None = None
    ) -> None:
        source = parse_url(url)
        self._lock = Lock(source.path)
        try:
            self._store = Store(source, limits or Limits(), clock or _steady_clock())
            self._reader = Reader(source.path)
        except BaseException:
            self._lock.release()
            raise
        self._writer = Writer(self._store, self)
        self._reading = ThreadPoolExecutor(1, "sqlite-reader")
        self._reads = 0
        self._heads: dict[str, Position] = {}
        self._followers: dict[str, list[_Follower]] = {}
        self._trouble: str | None = None
        self._probe_bytes = _PROBE_BYTES
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def waiting_grants(self) -> int:
        return self._store.waiting_grants

    async def append(
        self, stream: str, data: bytes, *, idempotency_key: str | None = None
    ) -> Position:
        return await self._write(
            lambda store: store.append(stream, data, idempotency_key), len(data)
        )

    async def head(self, stream: str) -> Position:
        if stream not in self._heads:
            head = await self._write(lambda store: store.head(stream))
            self._heads.setdefault(stream, head)
        return self._heads[stream]

    async def since(self, stream: str, seconds: float) -> Position:
        return await self._write(lambda store: store.since(stream, seconds))

    async def read(self, stream: str, after: Position, limit: int) -> list[Entry]:
        if self._closed or self._reads >= _MAX_READS:
            raise Unavailable
        loop = asyncio.get_running_loop()
        self._reads += 1
        try:
            return await loop.run_in_executor(
                self._reading, self._reader.read, stream, after, limit
            )
        except sqlite3.Error as error:
            logger.warning("Cannot read the log: %s", reason_of(error))
            raise Unavailable from error
        finally:
            self._reads -= 1

    async def follow(self, stream: str, after: Position, listener: Listener) -> Callable[[], None]:
        await self.head(stream)
        while True:
            entries = await self.read(stream, after, _FOLLOW_ENTRIES)
            if entries:
                listener.entries_arrived(entries)
                after = entries[-1].position
            if after.offset >= self._heads[stream].offset:  # the rest is told from here on
                return self._attach(stream, _Follower(listener, after.offset))

    async def put_grant(self, token: str, grant: Grant, seconds: float) -> None:
        await self._write(lambda store: store.put_grant(token, grant, seconds), len(grant.body))

    async def take_grant(self, token: str, seconds: float, *, resumable: bool) -> Taken:
        return await self._write(
            lambda store: store.take_grant(token, seconds, resumable=resumable)
        )

    async def renew_grants(self, tokens: Iterable[str], seconds: float) -> list[str]:
        wanted = list(tokens)
        return await self._write(lambda store: store.renew_grants(wanted, seconds))

    async def release_grant(self, token: str, take: int, seconds: float) -> None:
        await self._write(lambda store: store.release_grant(token, take, seconds))

    async def revoke_grant(self, token: str, seconds: float) -> bool:
        return await self._write(lambda store: store.revoke_grant(token, seconds))

    async def check(self) -> None:
        if self._trouble is not None:
            raise Unavailable(self._trouble)
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                await self._write(lambda store: store.claim(1))
        except TimeoutError:
            self._stale(STUCK)
            raise Unavailable(STUCK) from None
        except Unavailable as error:
            raise self._unavailable("too much waits to be written") from error

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._followers.clear()
        for timer in self._timers.values():
            timer.cancel()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._reading, self._reader.close)
        self._reading.shutdown(wait=False)
        if await self._writer.close():
            self._lock.release()

    def committed(self, news: dict[str, list[Entry]]) -> None:
        """Tell followers of entries that are committed."""
        for stream, entries in news.items():
            self._heads[stream] = entries[-1].position
            for follower in tuple(self._followers.get(stream, ())):
                follower.tell(entries)

    def failed(self, reason: str, size: int) -> None:
        """Tell followers that nothing can be written, and try whether it can again."""
        self._probe_bytes = max(self._probe_bytes, size)
        self._stale(reason)

    async def _write(self, work: Callable[[Store], T], size: int = 0) -> T:
        if self._writer.stuck:
            self._stale(STUCK)
        self._arm("sweep", _SWEEP_SECONDS, self._sweep)
        result: T = await self._writer.submit(work, size)
        return result

    def _attach(self, stream: str, follower: _Follower) -> Callable[[], None]:
        self._followers.setdefault(stream, []).append(follower)
        if self._trouble is not None:
            follower.listener.went_stale()

        def stop() -> None:
            follower.stopped = True
            followers = self._followers.get(stream, [])
            if follower in followers:
                followers.remove(follower)

        return stop

    def _stale(self, reason: str) -> None:
        if self._closed:
            return
        if self._trouble is None:
            logger.warning("Cannot write the log: %s; trying again until it can be", reason)
            self._trouble = reason
            for follower in self._all_followers():
                follower.listener.went_stale()
        self._trouble = reason
        self._arm("probe", _PROBE_SECONDS, self._probe)

    def _unavailable(self, otherwise: str) -> Unavailable:
        return Unavailable(self._trouble or otherwise)

    def _fresh(self) -> None:
        logger.info("The log can be written again")
        self._trouble = None
        self._probe_bytes = _PROBE_BYTES
        for follower in self._all_followers():
            follower.listener.came_fresh()

    def _all_followers(self) -> Iterator[_Follower]:
        for followers in tuple(self._followers.values()):
            for follower in tuple(followers):
                if not follower.stopped:
                    yield follower

    def _arm(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        def due() -> None:
            del self._timers[name]
            call()

        if name not in self._timers and not self._closed:
            self._timers[name] = asyncio.get_running_loop().call_later(seconds, due)

    def _sweep(self) -> None:
        self._writer.submit(Store.sweep).add_done_callback(self._swept)

    def _swept(self, sweep: asyncio.Future[bool]) -> None:
        if sweep.exception() is not None or sweep.result():
            self._arm("sweep", _SWEEP_SECONDS, self._sweep)

    def _probe(self) -> None:
        """Write as much as could not be written, and take it out again."""
        size = self._probe_bytes
        probe = self._writer.submit(lambda store: store.claim(size), size, alone=True)
        probe.add_done_callback(self._probed)

    def _probed(self, probe: asyncio.Future[None]) -> None:
        if probe.exception() is not None:
            self._arm("probe", _PROBE_SECONDS, self._probe)
        elif self._trouble is not None:
            self._fresh()
            self._writer.submit(lambda store: store.claim(0)).add_done_callback(_heard)


@dataclass(slots=True, eq=False)
class _Follower:
    """Who follows a stream, and how far it has been told."""

    listener: Listener
    offset: int
    stopped: bool = False

    def tell(self, entries: Sequence[Entry]) -> None:
        if self.stopped:  # by one that was told before it
            return
        news = [entry for entry in entries if entry.position.offset > self.offset]
        if news:
            self.offset = news[-1].position.offset
            self.listener.entries_arrived(news)


def _heard(call: asyncio.Future[None]) -> None:
    """Take note of how a call ended that nobody waits for; a failure is told elsewhere."""
    call.exception()


def _steady_clock() -> Callable[[], float]:
    """Return the time of day, which from now on is not set forth or back with the machine's."""
    ahead = time.time() - time.monotonic()
    return lambda: ahead + time.monotonic()
