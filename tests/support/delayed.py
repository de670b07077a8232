"""An engine that suspends in every method and tells its listeners late.

On an engine that never suspends even a wrong hand-over passes.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from syncserver.engines.base import Engine, Entry, Grant, Listener, Taken
from syncserver.errors import RefetchReason
from syncserver.position import Position


async def dither(rng: random.Random, most: int = 4) -> None:
    """Let others run a random number of times."""
    for _ in range(rng.randrange(most + 1)):
        await asyncio.sleep(0)


class Delayed(Engine):
    """Wraps an engine; what a method did may be known to others long before it returns."""

    def __init__(self, engine: Engine, rng: random.Random, most: int = 6) -> None:
        self._engine = engine
        self._rng = rng
        self._most = most

    async def _delayed(self, call: Any) -> Any:
        await dither(self._rng, self._most)
        try:
            return await call
        finally:
            await dither(self._rng, self._most)

    async def append(
        self, stream: str, data: bytes, *, idempotency_key: str | None = None
    ) -> Position:
        call = self._engine.append(stream, data, idempotency_key=idempotency_key)
        return await self._delayed(call)

    async def head(self, stream: str) -> Position:
        return await self._delayed(self._engine.head(stream))

    async def since(self, stream: str, seconds: float) -> Position:
        return await self._delayed(self._engine.since(stream, seconds))

    async def read(self, stream: str, after: Position, limit: int) -> list[Entry]:
        return await self._delayed(self._engine.read(stream, after, limit))

    async def follow(self, stream: str, after: Position, listener: Listener) -> Callable[[], None]:
        late = LateListener(listener, self._rng, self._most)
        stop = await self._delayed(self._engine.follow(stream, after, late))

        def stop_both() -> None:
            stop()
            late.stop()

        return stop_both

    async def put_grant(self, token: str, grant: Grant, seconds: float) -> None:
        await self._delayed(self._engine.put_grant(token, grant, seconds))

    async def take_grant(self, token: str, seconds: float, *, resumable: bool) -> Taken:
        return await self._delayed(self._engine.take_grant(token, seconds, resumable=resumable))

    async def renew_grants(self, tokens: Iterable[str], seconds: float) -> list[str]:
        return await self._delayed(self._engine.renew_grants(tokens, seconds))

    async def release_grant(self, token: str, take: int, seconds: float) -> None:
        await self._delayed(self._engine.release_grant(token, take, seconds))

    async def revoke_grant(self, token: str, seconds: float) -> bool:
        return await self._delayed(self._engine.revoke_grant(token, seconds))

    async def close(self) -> None:
        await self._engine.close()


class LateListener:
    """Passes entries on some turns later, in order, some of them together."""

    def __init__(self, listener: Listener, rng: random.Random, most: int) -> None:
        self._listener = listener
        self._rng = rng
        self._most = most
        self._late: deque[Entry] = deque()
        self._armed = False
        self._stopped = False

    def entries_arrived(self, entries: Sequence[Entry]) -> None:
        self._late.extend(entries)
        if not self._armed:
            self._armed = True
            self._wait(self._rng.randrange(self._most + 1))

    def stop(self) -> None:
        """Tell nothing more, not even what is late."""
        self._stopped = True

    def _wait(self, turns: int) -> None:
        loop = asyncio.get_running_loop()
        if self._stopped:
            return
        if turns:
            loop.call_soon(self._wait, turns - 1)
            return
        some = [self._late.popleft() for _ in range(self._rng.randint(1, len(self._late)))]
        self._listener.entries_arrived(some)
        self._armed = bool(self._late)
        if self._late:
            loop.call_soon(self._wait, self._rng.randrange(self._most + 1))

    def went_stale(self) -> None:
        self._listener.went_stale()

    def came_fresh(self) -> None:
        self._listener.came_fresh()

    def position_lost(self, reason: RefetchReason) -> None:
        self._listener.position_lost(reason)
