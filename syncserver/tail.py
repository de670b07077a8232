"""The past of a stream that a node still holds, decoded and bounded in bytes.

It is held twice over: what was delivered last, without a gap; and what was delivered otherwise
than it stands in the log, for replays that begin before that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from syncserver.errors import PositionLost, RefetchReason
from syncserver.position import Position

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record(Generic[T]):
    """A decoded entry; ``size`` is what it counts for in the tail."""

    position: Position
    previous: str
    value: T
    size: int


class Tail(Generic[T]):
    """The last records of one stream, up to its cursor.

    :param max_bytes: how much is kept, and as much of what was settled.
    """

    def __init__(self, max_bytes: int) -> None:
        self.size = 0
        self._max_bytes = max_bytes
        self._records: dict[int, Record[T]] = {}
        self._first = 1
        self._settled: dict[Position, Record[T]] = {}
        self._settled_size = 0

    def __iter__(self) -> Iterator[Record[T]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def begin(self, cursor: Position) -> None:
        """Forget the records; the next one follows ``cursor``."""
        self._records.clear()
        self._first = cursor.offset + 1
        self.size = 0

    def add(self, record: Record[T]) -> None:
        """Keep the record that follows the last one."""
        self._records[record.position.offset] = record
        self.size += record.size
        while self.size > self._max_bytes:
            self.size -= self._records.pop(self._first).size
            self._first += 1

    def read(self, after: Position, cursor: Position, limit: int) -> list[Record[T]] | None:
        """Return up to ``limit`` records that follow ``after``; None if it is not from here.

        PositionLost if something else stands at its place.
        """
        if not self._reaches(after, cursor):
            return None
        last = min(cursor.offset, after.offset + limit)
        return [self._records[offset] for offset in range(after.offset + 1, last + 1)]

    def remember(self, record: Record[T]) -> None:
        """Keep what was settled otherwise than it stands in the log."""
        self._settled[record.position] = record
        self._settled_size += record.size
        while self._settled_size > self._max_bytes:
            self._settled_size -= self._settled.pop(next(iter(self._settled))).size

    def settled(self, position: Position) -> Record[T] | None:
        """Return what is remembered of a position."""
        return self._settled.get(position)

    def _reaches(self, after: Position, cursor: Position) -> bool:
        if after.epoch != cursor.epoch or not self._records:
            return False
        if not self._first - 1 <= after.offset <= cursor.offset:
            return False
        following = self._records.get(after.offset + 1)
        if after.mark != (following.previous if following else cursor.mark):
            raise PositionLost(RefetchReason.FORK)
        return True
