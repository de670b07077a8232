"""What becomes of a delta that another publisher overtook.

Two workers of an app may commit A then B and post B then A. Deltas that carry
``version`` tell: A, arriving late, is older than what is known of its row. It
is rewritten then to lead from its old state to the latest known one, so that
every view ends where the database is: who was sent the row before A loses or
keeps it as the latest state says, and nobody is sent a state that is over,
not even one who came between B and A.

Rows are remembered for a bounded time and in bounded bytes. Pure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from syncserver import canonical, strict_json
from syncserver.delta import Delta, Row
from syncserver.rowsync.entries import Batch, Value

_ROW_OVERHEAD_BYTES = 300


class _Latest(NamedTuple):
    version: int
    row: Row | None
    size: int
    at: float


class Reorder:
    """Remembers the latest versions of rows and brings late deltas up to them.

    :param key_of: the field that is the key of a model's rows.
    :param seconds: how long a publisher may be late.
    :param max_bytes: how much is remembered at the most.
    :param clock: seconds from a fixed point; tests give their own.
    """

    def __init__(
        self,
        key_of: Callable[[str], str],
        *,
        seconds: float,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key_of = key_of
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._latest: dict[tuple[str, bytes], _Latest] = {}
        self._bytes = 0

    def settle(self, value: Value) -> Value:
        """Return an entry with its late deltas rewritten; call it once for each, in order."""
        if not isinstance(value, Batch) or all(delta.version is None for delta in value.deltas):
            return value
        self._forget()
        settled = tuple(self._settled(value.deltas))
        self._forget()
        return value if settled == value.deltas else Batch(settled)

    def _settled(self, deltas: Sequence[Delta]) -> Iterator[Delta]:
        for delta in deltas:
            row = delta.new if delta.new is not None else delta.old
            field = self._key_of(delta.model)
            if delta.version is None or row is None or field not in row:
                yield delta
                continue
            key = (delta.model, canonical.key(row[field]))
            known = self._latest.get(key)
            if known is None or known.version <= delta.version:
                self._remember(key, delta.version, delta.new)
                yield delta
            elif delta.old is not None or known.row is not None:
                yield Delta(delta.model, delta.old, known.row, known.version)

    def _remember(self, key: tuple[str, bytes], version: int, row: Row | None) -> None:
        size = len(strict_json.encode_trusted(row)) + _ROW_OVERHEAD_BYTES
        self._discard(key)
        self._latest[key] = _Latest(version, row, size, self._clock())
        self._bytes += size

    def _forget(self) -> None:
        oldest = self._clock() - self._seconds
        while self._latest:
            key, known = next(iter(self._latest.items()))
            if known.at >= oldest and self._bytes <= self._max_bytes:
                break
            self._discard(key)

    def _discard(self, key: tuple[str, bytes]) -> None:
        known = self._latest.pop(key, None)
        if known is not None:
            self._bytes -= known.size
