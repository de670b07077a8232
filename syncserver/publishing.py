"""Appends for one service: each is counted, and timed until its frames were handed to sockets.

The *lag* of a publish is from before its append to the moment at which all that was put in
outboxes for it has been handed over, or has found its socket full. It is measured where
the entry was published, as no two hosts have the same clock.
"""

from __future__ import annotations

import functools
import heapq
import time
from typing import Any

from syncserver.counters import Activity
from syncserver.engines.base import Engine
from syncserver.flusher import Flusher
from syncserver.position import Position
from syncserver.stream import Stream

_MOST_AWAITED = 1_000


class Publisher:
    """Appends to the stream of one service.

    :ivar flusher: has the sessions that entries were put for, once there was one.
    """

    def __init__(self, engine: Engine, stream: Stream[Any], activity: Activity) -> None:
        self.flusher: Flusher | None = None
        self._engine = engine
        self._stream = stream
        self._activity = activity
        self._awaited: list[tuple[int, float]] = []
        self._leaving = 0

    async def publish(
        self, data: bytes, *, idempotency_key: str | None = None, deltas: int = 0
    ) -> Position:
        """Append an entry of so many deltas; raises what ``Engine.append`` does."""
        began = time.monotonic()
        activity = self._activity
        position = await self._engine.append(
            self._stream.name, data, idempotency_key=idempotency_key
        )
        activity.publish_seconds.observe(time.monotonic() - began)
        activity.published_deltas += deltas
        cursor = self._stream.cursor
        if position.epoch == cursor.epoch:
            if position.offset <= cursor.offset:
                self._put(began)
            elif len(self._awaited) < _MOST_AWAITED:
                heapq.heappush(self._awaited, (position.offset, began))
        return position

    def arrived(self) -> None:
        """Hear from the stream's follower that all up to the cursor was put in outboxes."""
        awaited = self._awaited
        while awaited and awaited[0][0] <= self._stream.cursor.offset:
            self._put(heapq.heappop(awaited)[1])

    def forget(self) -> None:
        """Hear that entries were lost: what was awaited may never come."""
        self._awaited.clear()

    def _put(self, began: float) -> None:
        if self._leaving == _MOST_AWAITED:
            return
        self._leaving += 1
        if self.flusher is None:
            self._handed_over(began)
        else:
            self.flusher.after(functools.partial(self._handed_over, began))

    def _handed_over(self, began: float) -> None:
        self._leaving -= 1
        self._activity.lag_seconds.observe(time.monotonic() - began)
