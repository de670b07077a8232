"""The log in SQL, one transaction for many calls.

Nothing here knows of an event loop; one thread at a time uses a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from syncserver.config import Limits
from syncserver.engines.base import (
    Entry,
    Grant,
    GrantHeld,
    GrantMissing,
    GrantRevoked,
    Taken,
    revoked_notice,
    taken_notice,
)
from syncserver.engines.sqlite_file import Source, close_database, open_database, place_of
from syncserver.engines.sqlite_grants import Grants
from syncserver.errors import IdempotencyConflict, TooManyGrants
from syncserver.position import Position

_ENTRY_OVERHEAD_BYTES = 300
_TRIM_STEP = 64
_SWEEP_STEP = 5_000
_VACUUM_PAGES = 1_024
_REFUSALS = (GrantMissing, GrantRevoked, GrantHeld, IdempotencyConflict, TooManyGrants)

Work = Callable[["Store"], Any]


class Commit(NamedTuple):
    """What each piece of work returned, or its refusal, and the entries that were written."""

    outcomes: list[Any]
    news: dict[str, list[Entry]]


@dataclass(slots=True)
class _Log:
    """The end of one stream; ``first`` is the oldest offset kept, ``total`` all sizes ever."""

    id: int
    position: Position
    first: int
    total: int
    written: int = 0


class Store:
    """Writes the file.

    :param clock: seconds since 1970.
    """

    def __init__(self, source: Source, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._now = clock()
        self.db = open_database(source, self._now)
        self._grants = Grants(self.db, limits)
        self._logs: dict[str, _Log] | None = None
        self._entries: list[tuple[int, str, str, float, int, bytes]] = []
        self._keys: dict[tuple[int, str], tuple[bytes, Position]] = {}
        self._news: dict[str, list[Entry]] = {}

    def commit(self, works: Iterable[Work]) -> Commit:
        """Do all of ``works`` in one transaction; one that refuses has changed nothing.

        After ``sqlite3.Error``, as after any other, nothing of the transaction is left.
        """
        waited = self._grants.waiting
        try:
            self._now = max(self._now, self._clock())
            self.db.execute("BEGIN IMMEDIATE")
            outcomes = [self._outcome(work) for work in works]
            self._write_out()
            self.db.execute("COMMIT")
        except BaseException:
            self._abandon()
            self._grants.waiting = waited
            raise
        news, self._news = self._news, {}
        return Commit(outcomes, news)

    def append(self, stream: str, data: bytes, key: str | None = None) -> Position:
        """Put an entry at the end, unless ``key`` says that it was put before."""
        if key is None:
            return self._put(stream, data)
        log = self._log(stream)
        digest = hashlib.sha256(data).digest()
        known = self._keys.get((log.id, key)) or self._remembered(log, key)
        if known is None:
            known = self._keys[log.id, key] = (digest, self._put(stream, data))
        elif known[0] != digest:
            raise IdempotencyConflict
        return known[1]

    def head(self, stream: str) -> Position:
        """Return the position of the last entry; a stream that is not there begins."""
        return self._log(stream).position

    def since(self, stream: str, seconds: float) -> Position:
        """Return the position before the first entry that is no older."""
        log = self._log(stream)
        row = self.db.execute(
            "SELECT place, previous FROM entry"
            " WHERE place >= ? AND place <= ? AND at >= ? ORDER BY place LIMIT 1",
            (
                place_of(log.id, log.first),
                place_of(log.id, log.position.offset),
                self._now - seconds,
            ),
        ).fetchone()
        if row is None:
            return log.position
        return Position(log.position.epoch, row[0] - place_of(log.id, 0) - 1, row[1])

    @property
    def waiting_grants(self) -> int:
        """Return how many grants nobody has taken."""
        return self._grants.waiting.number

    def put_grant(self, token: str, grant: Grant, seconds: float) -> None:
        """Keep a grant that nobody has taken."""
        self._grants.put(token, grant, self._now, seconds)

    def take_grant(self, token: str, seconds: float, *, resumable: bool) -> Taken:
        """Take a grant, and say so in its stream if it was another's."""
        grant, take, over = self._grants.take(token, self._now, seconds, resumable=resumable)
        if over:
            self._put(grant.stream, taken_notice(token, take))
        return Taken(grant, take)

    def renew_grants(self, tokens: Iterable[str], seconds: float) -> list[str]:
        """Keep held grants; return the tokens that are no more."""
        return self._grants.renew(tokens, self._now, seconds)

    def release_grant(self, token: str, take: int, seconds: float) -> None:
        """Let go of a take."""
        self._grants.release(token, take, self._now, seconds)

    def revoke_grant(self, token: str, seconds: float) -> bool:
        """Revoke a grant and say so in its stream; False if there is none."""
        stream = self._grants.revoke(token, self._now, seconds)
        if stream is not None:
            self._put(stream, revoked_notice(token))
        return stream is not None

    def sweep(self) -> bool:
        """Drop some of what is old and give back room; False when nothing is left to do so with."""
        logs = self._all_logs().values()
        for log in logs:
            self._trim(log, _SWEEP_STEP)
        self._forget_keys(_SWEEP_STEP)
        self._grants.forget(self._now, _SWEEP_STEP)
        shrunk = self._shrink()
        (others,) = self.db.execute(
            "SELECT EXISTS (SELECT 1 FROM key) OR EXISTS (SELECT 1 FROM held)"
        ).fetchone()
        return shrunk or bool(others) or any(log.first <= log.position.offset for log in logs)

    def claim(self, size: int) -> None:
        """Write so many bytes in place of what was claimed before; shows that there is room."""
        self.db.execute("DELETE FROM room")
        self.db.execute("INSERT INTO room VALUES (zeroblob(?))", (size,))

    def close(self) -> None:
        """Let go of the file."""
        close_database(self.db)

    def _outcome(self, work: Work) -> Any:
        try:
            return work(self)
        except _REFUSALS as refusal:
            return refusal

    def _put(self, stream: str, data: bytes) -> Position:
        log = self._log(stream)
        before, log.position = log.position, log.position.next()
        place = place_of(log.id, log.position.offset)
        row = (place, log.position.mark, before.mark, self._now, log.total, data)
        self._entries.append(row)
        log.total += len(data) + _ENTRY_OVERHEAD_BYTES
        log.written += 1
        self._news.setdefault(stream, []).append(Entry(log.position, before.mark, data))
        return log.position

    def _write_out(self) -> None:
        """Write what has gathered, and drop about as much as came."""
        if self._entries:
            self.db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)", self._entries)
        self._entries.clear()
        for log in self._all_logs().values():
            if log.written:
                self._trim(log, 2 * log.written + _TRIM_STEP)
        if self._keys:
            self._write_keys()

    def _write_keys(self) -> None:
        rows = [
            (stream, key, digest, position.offset, position.mark, self._now)
            for (stream, key), (digest, position) in self._keys.items()
        ]
        self.db.executemany(
            'INSERT OR REPLACE INTO key (stream, key, digest, "offset", mark, at)'
            " VALUES (?, ?, ?, ?, ?, ?)",
            rows,
        )
        self._keys.clear()
        self._forget_keys(2 * len(rows) + _TRIM_STEP)

    def _trim(self, log: _Log, most: int) -> None:
        """Drop up to so many entries beyond the retention, and note where the log stands.

        Places, sums and times all grow along a log, so that what goes is a prefix.
        """
        limits, position = self._limits, log.position
        dropped = self.db.execute(
            "DELETE FROM entry WHERE place >= ? AND place < ?"
            " AND (place <= ? OR start < ? OR at < ?)",
            (
                place_of(log.id, log.first),
                place_of(log.id, min(log.first + most, position.offset + 1)),
                place_of(log.id, max(position.offset - limits.retention_entries, 0)),
                log.total - limits.retention_bytes,
                self._now - limits.retention_seconds,
            ),
        ).rowcount
        log.first += dropped
        if dropped or log.written:
            self.db.execute(
                'UPDATE stream SET "offset" = ?, mark = ?, first = ?, total = ? WHERE id = ?',
                (position.offset, position.mark, log.first, log.total, log.id),
            )
        log.written = 0

    def _forget_keys(self, most: int) -> None:
        self.db.execute(
            "DELETE FROM key WHERE id < (SELECT min(id) FROM key) + ? AND at <= ?",
            (most, self._now - self._limits.idempotency_seconds),
        )

    def _shrink(self) -> bool:
        """Give pages back to the file system while more than half of them are free."""
        (free,) = self.db.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self.db.execute("PRAGMA page_count").fetchone()
        if free <= _VACUUM_PAGES or free * 2 <= pages:
            return False
        for _ in range(_VACUUM_PAGES):  # one step is one page, whatever number it is given
            self.db.execute("PRAGMA incremental_vacuum(1)")
        return True

    def _remembered(self, log: _Log, key: str) -> tuple[bytes, Position] | None:
        row = self.db.execute(
            'SELECT digest, "offset", mark FROM key WHERE stream = ? AND key = ? AND at > ?',
            (log.id, key, self._now - self._limits.idempotency_seconds),
        ).fetchone()
        return row and (row[0], Position(log.position.epoch, row[1], row[2]))

    def _log(self, stream: str) -> _Log:
        logs = self._all_logs()
        if stream not in logs:
            start = Position.start()
            made = self.db.execute(
                "INSERT INTO stream VALUES (NULL, ?, ?, ?, ?, 1, 0)", (stream, *start)
            ).lastrowid
            logs[stream] = _Log(made or 0, start, 1, 0)
        return logs[stream]

    def _all_logs(self) -> dict[str, _Log]:
        if self._logs is None:
            rows = self.db.execute(
                'SELECT name, id, epoch, "offset", mark, first, total FROM stream'
            )
            self._logs = {
                name: _Log(id_, Position(epoch, offset, mark), first, total)
                for name, id_, epoch, offset, mark, first, total in rows
            }
        return self._logs

    def _abandon(self) -> None:
        """Forget the transaction, and read again what the file has."""
        self._entries.clear()
        self._keys.clear()
        self._news = {}
        self._logs = None
        with contextlib.suppress(sqlite3.Error):
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
