"""The log as it is committed, read on a connection of its own while others write."""

from __future__ import annotations

from pathlib import Path

from syncserver.engines.base import Entry
from syncserver.engines.sqlite_file import connect, place_of
from syncserver.errors import PositionLost, RefetchReason
from syncserver.position import Position


class Reader:
    """Reads what is committed, on a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._db = connect(path)

    def read(self, stream: str, after: Position, limit: int) -> list[Entry]:
        """Return up to ``limit`` entries that follow ``after``; PositionLost if there is a hole."""
        self._db.execute("BEGIN")
        try:
            return self._read(stream, after, limit)
        finally:
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _read(self, stream: str, after: Position, limit: int) -> list[Entry]:
        row = self._db.execute(
            'SELECT id, epoch, "offset", mark, first FROM stream WHERE name = ?', (stream,)
        ).fetchone()
        if row is None or after.epoch != row[1]:
            raise PositionLost(RefetchReason.EPOCH)
        number, epoch, offset, mark, first = row
        if after.offset > offset:
            raise PositionLost(RefetchReason.ROLLBACK)
        if after.offset < first - 1:
            raise PositionLost(RefetchReason.TRIMMED)
        rows = self._rows(number, after.offset, max(limit, 1))
        before = rows[0][1] if rows else mark
        if after.mark != before:
            raise PositionLost(RefetchReason.FORK)
        return [
            Entry(Position(epoch, after.offset + further, own), previous, data)
            for further, (own, previous, data) in enumerate(rows[:limit], 1)
        ]

    def _rows(self, stream: int, offset: int, limit: int) -> list[tuple[str, str, bytes]]:
        return self._db.execute(
            "SELECT mark, previous, data FROM entry WHERE place > ? AND place < ?"
            " ORDER BY place LIMIT ?",
            (place_of(stream, offset), place_of(stream + 1, 0), limit),
        ).fetchall()
