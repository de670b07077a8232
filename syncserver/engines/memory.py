"""The engine of one process: logs and grants in memory, gone with it.

Retention is by entries, bytes and age, whichever comes first; a ``sweep``
once a second, while there is something to sweep, drops what is old.
"""

from __future__ import annotations

import asyncio
import bisect
import hashlib
import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from syncserver.config import Limits
from syncserver.engines.base import (
    Engine,
    Entry,
    Grant,
    GrantHeld,
    GrantMissing,
    GrantRevoked,
    Listener,
    Taken,
    revoked_notice,
    taken_notice,
)
from syncserver.engines.memory_grants import HeldGrant, Waiting
from syncserver.errors import IdempotencyConflict, PositionLost, RefetchReason
from syncserver.position import START_MARK, Position

_SWEEP_SECONDS = 1.0
_MAX_KEYS = 100_000
_ENTRY_OVERHEAD_BYTES = 300


class MemoryEngine(Engine):
    """Keep everything in this process.

    :param clock: seconds from a fixed point; tests give their own.
    """

    def __init__(
        self, limits: Limits | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits or Limits()
        self._clock = clock
        self._logs: dict[str, _Log] = {}
        self._grants: dict[str, HeldGrant] = {}
        self._waiting = Waiting(self._limits)
        self._deadlines: list[tuple[float, str]] = []
        self._sweeper: asyncio.TimerHandle | None = None

    def waiting_grants(self) -> int:
        return len(self._waiting)

    async def append(
        self, stream: str, data: bytes, *, idempotency_key: str | None = None
    ) -> Position:
        return self._append(stream, data, idempotency_key)

    async def head(self, stream: str) -> Position:
        return self._log(stream).head

    async def since(self, stream: str, seconds: float) -> Position:
        return self._log(stream).since(self._clock() - seconds)

    async def read(self, stream: str, after: Position, limit: int) -> list[Entry]:
        return self._log(stream).read(after, limit)

    async def follow(self, stream: str, after: Position, listener: Listener) -> Callable[[], None]:
        return self._log(stream).follow(after, listener)

    async def put_grant(self, token: str, grant: Grant, seconds: float) -> None:
        self._forget_grants(self._clock())
        self._waiting.add(token, grant)
        self._grants[token] = HeldGrant(grant)
        self._expire(token, seconds)

    async def take_grant(self, token: str, seconds: float, *, resumable: bool) -> Taken:
        held = self._grant(token)
        if held.held and not (resumable and held.resumable):
            raise GrantHeld
        held.takes += 1
        self._waiting.discard(token)
        if held.held:
            self._append(held.grant.stream, taken_notice(token, held.takes))
        held.held = True
        held.resumable = resumable
        self._expire(token, seconds)
        return Taken(held.grant, held.takes)

    async def renew_grants(self, tokens: Iterable[str], seconds: float) -> list[str]:
        gone = []
        for token in tokens:
            held = self._alive(token)
            if held is None or held.revoked:
                gone.append(token)
            else:
                self._expire(token, seconds)
        return gone

    async def release_grant(self, token: str, take: int, seconds: float) -> None:
        held = self._alive(token)
        if held is None or held.takes != take or held.revoked:
            return
        held.held = False
        if seconds:
            self._expire(token, seconds)
        else:
            del self._grants[token]

    async def revoke_grant(self, token: str, seconds: float) -> bool:
        held = self._alive(token)
        if held is None or held.revoked:
            return False
        held.revoked = True
        self._append(held.grant.stream, revoked_notice(token))
        self._expire(token, seconds)
        return True

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for log in self._logs.values():
            log.followers.clear()

    def sweep(self) -> None:
        """Drop the entries, keys and grants whose time is over."""
        now = self._clock()
        for log in self._logs.values():
            log.forget(now)
        self._forget_grants(now)

    def _forget_grants(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            token = heapq.heappop(self._deadlines)[1]
            held = self._grants.get(token)
            if held is not None and held.deadline <= now:
                del self._grants[token]
                self._waiting.discard(token)
            elif held is not None:
                heapq.heappush(self._deadlines, (held.deadline, token))

    def _append(self, stream: str, data: bytes, key: str | None = None) -> Position:
        position = self._log(stream).append(data, key, self._clock())
        self._arm()
        return position

    def _log(self, stream: str) -> _Log:
        log = self._logs.get(stream)
        if log is None:
            log = self._logs[stream] = _Log(self._limits)
        return log

    def _alive(self, token: str) -> HeldGrant | None:
        held = self._grants.get(token)
        return held if held is not None and held.deadline > self._clock() else None

    def _grant(self, token: str) -> HeldGrant:
        held = self._alive(token)
        if held is None:
            raise GrantMissing
        if held.revoked:
            raise GrantRevoked
        return held

    def _expire(self, token: str, seconds: float) -> None:
        held = self._grants[token]
        first = not held.deadline
        held.deadline = self._clock() + seconds
        if first:
            heapq.heappush(self._deadlines, (held.deadline, token))
        self._arm()

    def _arm(self) -> None:
        if self._sweeper is None:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(_SWEEP_SECONDS, self._swept)

    def _swept(self) -> None:
        self._sweeper = None
        self.sweep()
        if self._grants or any(log.occupied for log in self._logs.values()):
            self._arm()


@dataclass(slots=True)
class _Remembered:
    digest: bytes
    position: Position
    at: float


@dataclass(slots=True)
class _Log:
    limits: Limits
    head: Position = field(default_factory=Position.start)
    first: int = 1
    size: int = 0
    entries: dict[int, Entry] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    keys: dict[str, _Remembered] = field(default_factory=dict)
    followers: list[Listener] = field(default_factory=list)
    news: list[Entry] = field(default_factory=list)

    @property
    def occupied(self) -> bool:
        return bool(self.entries or self.keys)

    def append(self, data: bytes, key: str | None, now: float) -> Position:
        if key is not None:
            digest = hashlib.sha256(data).digest()
            known = self.keys.get(key)
            if known is not None and now - known.at < self.limits.idempotency_seconds:
                if known.digest != digest:
                    raise IdempotencyConflict
                return known.position
        position = self.head.next()
        if key is not None:
            self.keys.pop(key, None)  # so that it is set anew, as the youngest
            self.keys[key] = _Remembered(digest, position, now)
        entry = Entry(position, self.head.mark, data)
        self.head = position
        self.entries[position.offset] = entry
        self.times[position.offset] = now
        self.size += len(data) + _ENTRY_OVERHEAD_BYTES
        self.forget(now)
        if self.followers:
            if not self.news:
                asyncio.get_running_loop().call_soon(self._tell)
            self.news.append(entry)
        return position

    def since(self, oldest: float) -> Position:
        offsets = range(self.first, self.head.offset + 1)
        older = bisect.bisect_left(offsets, oldest, key=self.times.__getitem__)
        offset = self.first - 1 + older
        return Position(self.head.epoch, offset, self._mark(offset))

    def read(self, after: Position, limit: int) -> list[Entry]:
        if after.epoch != self.head.epoch:
            raise PositionLost(RefetchReason.EPOCH)
        if after.offset > self.head.offset:
            raise PositionLost(RefetchReason.ROLLBACK)
        if after.offset < self.first - 1:
            raise PositionLost(RefetchReason.TRIMMED)
        if after.mark != self._mark(after.offset):
            raise PositionLost(RefetchReason.FORK)
        last = min(self.head.offset, after.offset + limit)
        return [self.entries[offset] for offset in range(after.offset + 1, last + 1)]

    def follow(self, after: Position, listener: Listener) -> Callable[[], None]:
        missed = self.read(after, self.head.offset)
        self._tell()
        self.followers.append(listener)
        if missed:
            listener.entries_arrived(missed)

        def stop() -> None:
            if listener in self.followers:
                self.followers.remove(listener)

        return stop

    def forget(self, now: float) -> None:
        oldest = now - self.limits.retention_seconds
        while self.entries and (
            len(self.entries) > self.limits.retention_entries
            or self.size > self.limits.retention_bytes
            or self.times[self.first] < oldest
        ):
            self.size -= len(self.entries.pop(self.first).data) + _ENTRY_OVERHEAD_BYTES
            del self.times[self.first]
            self.first += 1
        while self.keys:
            key, known = next(iter(self.keys.items()))
            is_young = now - known.at < self.limits.idempotency_seconds
            if is_young and len(self.keys) <= _MAX_KEYS:
                break
            del self.keys[key]

    def _mark(self, offset: int) -> str:
        if offset == self.head.offset:
            return self.head.mark
        if offset == 0:
            return START_MARK
        return self.entries[offset + 1].previous

    def _tell(self) -> None:
        news, self.news = self.news, []
        if news:
            for listener in tuple(self.followers):
                if listener in self.followers:  # not stopped by one that was told before it
                    listener.entries_arrived(news)
