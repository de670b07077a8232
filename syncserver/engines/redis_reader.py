"""Reads one stream for all who follow it on this node, over a connection of its own.

A read blocks for a second at most and is answered together with the head of the log.
What was passed on last has to lie on the way to that head, and what was acknowledged last as
well: a reader that only blocks never sees a log that began again, or went back, below where it
stands. A log that went back is ended, since the positions of those who are away would fit it and
they would never hear of what it lacks; a new epoch tells everybody.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from syncserver.engines.base import Entry, Listener
from syncserver.engines.redis_link import Cut, Late, Link, Links, unavailable
from syncserver.errors import PositionLost, RefetchReason, Unavailable
from syncserver.position import Position

logger = logging.getLogger("syncserver.engine")

_BLOCK_MS = 1_000
_FIRST_ENTRIES = 16
_MAX_ENTRIES = 256
_READ_BYTES = 1024 * 1024
_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 2.0

Read = Callable[[Position], Awaitable[list[Entry]]]
Head = Callable[[str], Awaitable[Position]]


class Follower:
    """A listener, and how far it has been told."""

    def __init__(self, listener: Listener, at: int) -> None:
        self.listener = listener
        self.at = at

    def tell(self, entries: Sequence[Entry]) -> None:
        """Pass on those of ``entries`` that are new to it."""
        first = entries[0].position.offset
        if self.at >= first:
            entries = entries[self.at - first + 1 :]
        if entries:
            self.at = entries[-1].position.offset
            self.listener.entries_arrived(entries)


class Reader:
    """Follows one stream while anybody listens.

    :param read: gives what follows a position, or raises PositionLost.
    :param head: gives the position of the last entry; makes a log where none is, or where one
        is of the epoch that it is given.
    :param entries_key: the key of the entries, ``meta_key`` that of the hash beside it.
    """

    def __init__(
        self, name: str, links: Links, read: Read, head: Head, *, entries_key: str, meta_key: str
    ) -> None:
        self._name = name
        self._links = links
        self._read = read
        self._head = head
        self._entries_key = entries_key
        self._meta_key = meta_key
        self._followers: list[Follower] = []
        self._last = Position.start()
        self._acknowledged = self._last
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._stale = False
        self._count = _FIRST_ENTRIES

    async def follow(self, after: Position, listener: Listener) -> Callable[[], None]:
        """Tell a listener what follows ``after``, until the result is called."""
        follower = Follower(listener, after.offset)
        await self._read(after)
        while self._is_past(after):
            entries = await self._read(after)
            if not entries:
                break  # the log went back, and this reader has yet to see it
            follower.tell(entries)
            after = entries[-1].position
        if self._task is None:
            self._last, self._stale = after, False
            self._task = asyncio.ensure_future(self._run())
        self._followers.append(follower)
        return lambda: self._discard(follower)

    def acknowledged(self, position: Position) -> None:
        """Note an entry that has to come, since its publisher was told that it is in the log."""
        known, last = self._acknowledged, self._last
        if position.epoch == last.epoch and (
            position.offset > known.offset or known.epoch != last.epoch
        ):
            self._acknowledged = position

    async def close(self) -> None:
        """Read no more, whoever listens."""
        self._followers.clear()
        self._stop()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _is_past(self, after: Position) -> bool:
        """Tell whether entries after ``after`` were passed on to others already."""
        last = self._last
        return self._task is not None and last.epoch == after.epoch and last.offset > after.offset

    def _discard(self, follower: Follower) -> None:
        if follower in self._followers:
            self._followers.remove(follower)
            if not self._followers:
                self._stop()

    def _stop(self) -> None:
        if self._task is not None:
            self._ending.add(self._task)
            self._task.add_done_callback(self._ending.discard)
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        link = self._links.make()
        failures = 0
        try:
            while True:
                try:
                    await self._turn(link, block=not failures)
                    failures = 0
                except Unavailable as error:
                    failures += 1
                    # A connection that was only cut is made anew before anybody hears of it.
                    if failures > 1 or not isinstance(error, Cut) or isinstance(error, Late):
                        self._went_stale(error)
                        await _pause(failures)
                except Exception:
                    failures += 1
                    logger.exception("The reader of %s failed; it tries again", self._name)
                    self._went_stale(Unavailable("its reader failed"))
                    await link.end()
                    await _pause(failures)
        finally:
            await link.end()

    async def _turn(self, link: Link, *, block: bool) -> None:
        """Read once, pass on what came, and compare the head with it."""
        wait = ("BLOCK", _BLOCK_MS) if block else ()
        streams = ("STREAMS", self._entries_key, f"{self._last.offset}-0")
        read = ("XREAD", "COUNT", self._count, *wait, *streams)
        head = ("HMGET", self._meta_key, "e", "o", "k")
        seconds = self._links.timeout_seconds + _BLOCK_MS / 1000
        due = self._acknowledged  # what is acknowledged from here on may be missing in the answer
        came, meta = await link.ask([read, head], seconds)
        self._links.reached()
        for answer in (came, meta):
            if isinstance(answer, Exception):
                raise unavailable(answer) from answer
        raw = came[0][1] if came else []
        entries, reason = chained(self._last, raw)
        if contradicts(entries, due):
            entries, reason = [], RefetchReason.FORK
        if entries:
            self._pass_on(entries)
        self._adapt(entries)
        if reason is None:
            reason = await self._misfit(meta, due, silent=not raw)
        if reason is not None:
            await self._begin_anew(reason)
        self._came_fresh()

    async def _misfit(
        self, meta: Sequence[bytes | None], due: Position, *, silent: bool
    ) -> RefetchReason | None:
        """Return what is wrong with the head that Redis has, seen from the last entry."""
        epoch, offset, mark = (text.decode("ascii", "replace") if text else "" for text in meta)
        last = self._last
        if epoch != last.epoch or not offset.isdigit():
            return RefetchReason.EPOCH
        if int(offset) < max(last.offset, due.offset if due.epoch == epoch else 0):
            return RefetchReason.ROLLBACK
        if int(offset) == last.offset:
            return None if mark == last.mark else RefetchReason.FORK
        if silent:  # entries that came just after the read, or entries that are no more
            try:
                await self._read(last)
            except PositionLost as lost:
                return lost.reason
        return None

    async def _begin_anew(self, reason: RefetchReason) -> None:
        went_back = reason in {RefetchReason.ROLLBACK, RefetchReason.FORK}
        head = await self._head(self._last.epoch if went_back else "")
        if went_back:
            logger.warning(
                "The log of %s in Redis is not what it was (%s); a new one begins",
                self._name,
                reason,
            )
        else:
            logger.info("The log of %s broke at %s (%s)", self._name, self._last.offset, reason)
        self._last = head
        for follower in tuple(self._followers):
            follower.at = self._last.offset
        self._tell(lambda listener: listener.position_lost(reason))

    def _pass_on(self, entries: Sequence[Entry]) -> None:
        self._last = entries[-1].position
        for follower in tuple(self._followers):
            if follower in self._followers:  # not stopped by one that was told before it
                follower.tell(entries)

    def _adapt(self, entries: Sequence[Entry]) -> None:
        """Ask for so many entries that an answer is not much over ``_READ_BYTES``."""
        size = sum(len(entry.data) for entry in entries)
        if size > _READ_BYTES:
            self._count = max(1, self._count // 2)
        elif self._count < _MAX_ENTRIES:
            self._count *= 2

    def _went_stale(self, error: Unavailable) -> None:
        if not self._stale:
            self._stale = True
            logger.warning("The log of %s is out of reach: %s", self._name, error)
            self._tell(lambda listener: listener.went_stale())

    def _came_fresh(self) -> None:
        if self._stale:
            self._stale = False
            logger.warning("The log of %s is in reach again", self._name)
            self._tell(lambda listener: listener.came_fresh())

    def _tell(self, word: Callable[[Listener], None]) -> None:
        for follower in tuple(self._followers):
            if follower in self._followers:
                word(follower.listener)


def contradicts(entries: Sequence[Entry], due: Position) -> bool:
    """Tell whether another entry is where one was acknowledged."""
    if not entries or entries[0].position.epoch != due.epoch:
        return False
    index = due.offset - entries[0].position.offset
    return 0 <= index < len(entries) and entries[index].position.mark != due.mark


def chained(last: Position, raw: Sequence[Any]) -> tuple[list[Entry], RefetchReason | None]:
    """Return the entries that follow ``last`` one by one, and why there are no more of them."""
    entries: list[Entry] = []
    for one in raw:
        entry = _entry(one)
        if entry is None:
            return entries, RefetchReason.FORK  # not written by us
        position = entry.position
        if position.epoch != last.epoch:
            return entries, RefetchReason.EPOCH
        if position.offset != last.offset + 1:
            return entries, RefetchReason.TRIMMED
        if entry.previous != last.mark:
            return entries, RefetchReason.FORK
        entries.append(entry)
        last = position
    return entries, None


def _entry(raw: Any) -> Entry | None:
    match raw:
        case [bytes(id_), [b"h", bytes(header), b"d", bytes(data)]]:
            pass
        case _:
            return None
    try:
        epoch, mark, previous = header.decode("ascii").split(" ")
        return Entry(Position(epoch, int(id_.partition(b"-")[0]), mark), previous, data)
    except ValueError:
        return None


async def _pause(failures: int) -> None:
    """Wait longer after each failure, and nodes not all the same."""
    most = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** min(failures, 10))
    await asyncio.sleep(most * random.uniform(0.5, 1))  # noqa: S311  # spreads, guards nothing
