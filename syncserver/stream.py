"""A node's place in one stream: its cursor, and the decoded tail behind it (``tail``).

All that a node delivers passes here, one entry after the other, whoever
published it. Each entry must follow the one before: same epoch, next offset, and
the mark that it names as its previous one. Where it does not, the node catches up from
the log; what the log cannot give is *lost*, and the follower is told why.

Everything but ``open``, ``read``, ``reached`` and ``close`` runs in plain
functions on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from syncserver.engines.base import Engine, Entry
from syncserver.errors import PositionLost, RefetchReason, Unavailable
from syncserver.position import Position
from syncserver.tail import Record, Tail

logger = logging.getLogger("syncserver.stream")

_CATCH_UP_ENTRIES = 256
_RETRY_SECONDS = 0.5
_ENTRY_OVERHEAD_BYTES = 300

T = TypeVar("T")


class Follower(Protocol[T]):
    """Who is told of a stream's entries; every method returns at once."""

    def deliver(self, record: Record[T]) -> None:
        """Take the next entry."""

    def turn_ended(self) -> None:
        """Hear that no more entries come in this turn of the loop."""

    def lost(self, reason: RefetchReason) -> None:
        """Hear that entries are missing after those delivered; the cursor stands at the head."""

    def freshness(self, *, stale: bool) -> None:
        """Hear that the log went out of reach, or came back."""


class Stream(Generic[T]):
    """Follows one stream of an engine for one follower.

    :param decode: reads the bytes of an entry; pure, never raises.
    :param settle: sees each value once, in order, before it is delivered and kept.
    :param tail_bytes: how much of the past is kept decoded, and as much of what was settled.
    :param past_seconds: how far back to begin, so that a node that has just started has settled
        what those have that run longer.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        follower: Follower[T],
        *,
        decode: Callable[[bytes], T],
        settle: Callable[[T], T] | None = None,
        tail_bytes: int,
        past_seconds: float = 0,
    ) -> None:
        self.name = name
        self.cursor = Position.start()
        self.stale = False
        self.passed_bytes = 0
        self.tail: Tail[T] = Tail(tail_bytes)
        self._engine = engine
        self._follower = follower
        self._decode = decode
        self._settle = settle
        self._past_seconds = past_seconds
        self._stop: Callable[[], None] | None = None
        self._opening: asyncio.Future[None] | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._again = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tickets = itertools.count()

    async def open(self) -> None:
        """Begin to follow; does nothing when it was done before."""
        if self._stop is not None:
            return
        if self._opening is None or self._opening.done():
            self._opening = asyncio.ensure_future(self._open())
        await asyncio.shield(self._opening)

    async def close(self) -> None:
        """Follow no longer."""
        if self._stop is not None:
            self._stop()
        for task in (self._opening, self._catching_up):
            if task is not None:
                task.cancel()

    async def read(self, after: Position, limit: int) -> list[Record[T]]:
        """Return up to ``limit`` entries that follow ``after``; PositionLost if there is a hole.

        What the tail holds comes without suspending. What does not come from
        there may be ahead of the cursor.
        """
        held = self.tail.read(after, self.cursor, limit)
        if held is not None:
            return held
        entries = await self._engine.read(self.name, after, limit)
        return [self._record(entry) for entry in entries]

    async def reached(self, position: Position, seconds: float) -> bool:
        """Wait until the cursor is not before ``position``; False when it took too long."""
        if self.cursor.epoch != position.epoch or self.cursor.offset >= position.offset:
            return True
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (position.offset, next(self._tickets), future))
        try:
            await asyncio.wait_for(future, seconds)
        except TimeoutError:
            return False
        finally:
            if future.cancelled():
                self._waiting = [one for one in self._waiting if one[2] is not future]
                heapq.heapify(self._waiting)
        return True

    def entries_arrived(self, entries: Sequence[Entry]) -> None:
        """Deliver what follows the cursor; anything else makes the node catch up."""
        for entry in entries:
            if self._catching_up is not None or not self._accept(entry):
                self.position_lost(RefetchReason.FORK)
                break
        self._turn_ended()

    def went_stale(self) -> None:
        """Pass on that the log is out of reach."""
        if not self.stale:
            self.stale = True
            self._follower.freshness(stale=True)

    def came_fresh(self) -> None:
        """Pass on that the log is back."""
        if self.stale:
            self.stale = False
            self._follower.freshness(stale=False)

    def position_lost(self, reason: RefetchReason) -> None:
        """Catch up from the log, which knows best what can be given (``reason`` is a guess)."""
        self._again = True
        if self._catching_up is None:
            logger.info("Catching up %s from %s (%s)", self.name, self.cursor.offset, reason)
            self._catching_up = asyncio.ensure_future(self._catch_up())

    async def _open(self) -> None:
        engine, name, past = self._engine, self.name, self._past_seconds
        self._stand_at(await (engine.since(name, past) if past else engine.head(name)))
        with contextlib.suppress(PositionLost):
            if past:
                await self._read_to_head()
        while self._stop is None:
            try:
                self._stop = await engine.follow(name, self.cursor, self)
            except PositionLost:  # trimmed meanwhile, or begun anew
                self._stand_at(await engine.head(name))

    def _stand_at(self, position: Position) -> None:
        self.cursor = position
        self.tail.begin(position)

    def _accept(self, entry: Entry) -> bool:
        cursor, position = self.cursor, entry.position
        if position.epoch != cursor.epoch:
            return False
        if position.offset <= cursor.offset:
            return position.offset < cursor.offset or position == cursor
        if position.offset != cursor.offset + 1 or entry.previous != cursor.mark:
            return False
        self._deliver(self._record(entry))
        return True

    def _deliver(self, record: Record[T]) -> None:
        if self._settle is not None:
            settled = self._settle(record.value)
            if settled is not record.value:
                record = Record(record.position, record.previous, settled, record.size)
                self.tail.remember(record)
        self.cursor = record.position
        self.passed_bytes += record.size
        self.tail.add(record)
        try:
            self._follower.deliver(record)
        except Exception:
            logger.exception("An entry of %s was not delivered", self.name)
            self._follower.lost(RefetchReason.FILTER_FAILED)

    def _record(self, entry: Entry) -> Record[T]:
        settled = self.tail.settled(entry.position)
        if settled is not None:
            return settled
        size = len(entry.data) + _ENTRY_OVERHEAD_BYTES
        return Record(entry.position, entry.previous, self._decode(entry.data), size)

    def _turn_ended(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.cursor.offset:
            self._release_first()
        self._follower.turn_ended()

    def _release_first(self) -> None:
        future = heapq.heappop(self._waiting)[2]
        if not future.done():
            future.set_result(None)

    async def _catch_up(self) -> None:
        try:
            while self._again:
                self._again = False
                if not await self._caught_up():
                    self._again = True
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._catching_up = None

    async def _caught_up(self) -> bool:
        try:
            try:
                return await self._read_to_head()
            except PositionLost as lost:
                await self._begin_anew(lost.reason)
                return True
        except Unavailable:
            return False
        except Exception:
            logger.exception("Cannot catch up %s", self.name)
            return False

    async def _read_to_head(self) -> bool:
        """Deliver what follows the cursor; False if the log does not follow itself."""
        while entries := await self._engine.read(self.name, self.cursor, _CATCH_UP_ENTRIES):
            whole = all(map(self._accept, entries))
            self._turn_ended()
            if not whole:
                return False
            await asyncio.sleep(0)
        return True

    async def _begin_anew(self, reason: RefetchReason) -> None:
        self._stand_at(await self._engine.head(self.name))
        while self._waiting:
            self._release_first()
        logger.warning("%s was lost (%s); its subscribers fetch again", self.name, reason)
        self._follower.lost(reason)
