"""The tasks and the outbox: what changes a task writes the delta too, in one transaction.

Each change of a task raises its ``version``, and its deletion counts as one. A batch of the
outbox is drawn up once and keeps its content until it is forgotten: who posts it again after
a crash posts the same bytes under the same idempotency key.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

MODEL = "Task"
BATCH_DELTAS = 100
"""How many deltas are posted at once; the largest title a hundred times stays under 1 MiB."""
LOCK_SECONDS = 5.0

# AUTOINCREMENT: an id that was used once never comes again, neither here nor in the outbox.
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS tasks (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    title   TEXT NOT NULL,
    done    INTEGER NOT NULL DEFAULT 0 CHECK (done IN (0, 1)),
    version INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS outbox (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    delta TEXT NOT NULL,
    batch INTEGER
);
CREATE TABLE IF NOT EXISTS about (name TEXT NOT NULL);
"""

VIEWS = {
    "all": "SELECT * FROM tasks ORDER BY id",
    "open": "SELECT * FROM tasks WHERE NOT done ORDER BY id",
}


class NoSuchTask(LookupError):
    """There is no task of this id."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Deltas that are posted together; ``key`` is the same whenever they are posted."""

    number: int
    key: str
    deltas: Sequence[dict[str, Any]]


class Database:
    """One SQLite file. Every call opens it anew, so any thread may call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as db:
            db.executescript(SCHEMA)
        with self._transaction() as db:
            name = uuid.uuid4().hex
            db.execute("INSERT INTO about SELECT ? WHERE NOT EXISTS (SELECT * FROM about)", [name])
            self._name = str(db.execute("SELECT name FROM about").fetchone()["name"])

    def rows(self, views: Sequence[str]) -> dict[str, list[Row]]:
        """Return the rows of each view, all as of one moment."""
        with self._transaction("DEFERRED") as db:
            return {view: [_row(found) for found in db.execute(VIEWS[view])] for view in views}

    def add(self, title: str) -> Row:
        """Add a task and return it."""
        with self._transaction() as db:
            created = db.execute("INSERT INTO tasks (title) VALUES (?)", [title])
            new = _find(db, created.lastrowid)
            _note(db, {"type": "insert", "data": new, "version": new["version"]})
        return new

    def change(self, key: int, changes: Row) -> Row:
        """Set fields of a task and return it; a change to what is there already is none."""
        with self._transaction() as db:
            old = _find(db, key)
            new = old | changes
            if new != old:
                new["version"] = old["version"] + 1
                db.execute(
                    "UPDATE tasks SET title = :title, done = :done, version = :version"
                    " WHERE id = :id",
                    new,
                )
                delta = {"type": "update", "newData": new, "oldData": old}
                _note(db, delta | {"version": new["version"]})
        return new

    def delete(self, key: int) -> None:
        """Delete a task."""
        with self._transaction() as db:
            old = _find(db, key)
            db.execute("DELETE FROM tasks WHERE id = ?", [key])
            _note(db, {"type": "delete", "data": old, "version": old["version"] + 1})

    def next_batch(self) -> Batch | None:
        """Return the oldest batch of the outbox, drawn up now if it was not yet."""
        with self._transaction() as db:
            first = db.execute("SELECT id, batch FROM outbox ORDER BY id LIMIT 1").fetchone()
            if first is None:
                return None
            if first["batch"] is None:
                db.execute(
                    "UPDATE outbox SET batch = ? WHERE id IN"
                    " (SELECT id FROM outbox ORDER BY id LIMIT ?)",
                    [first["id"], BATCH_DELTAS],
                )
            number = first["batch"] or first["id"]
            found = db.execute("SELECT delta FROM outbox WHERE batch = ? ORDER BY id", [number])
            deltas = [json.loads(line["delta"]) for line in found]
        return Batch(number, f"todo-{self._name}-{number}", deltas)

    def forget(self, batch: Batch) -> None:
        """Take a batch out of the outbox: the daemon has it."""
        with self._transaction() as db:
            db.execute("DELETE FROM outbox WHERE batch = ?", [batch.number])

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        with self._opened() as db:
            db.execute(f"BEGIN {kind}")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None)
        db.row_factory = sqlite3.Row
        try:
            yield db
        finally:
            db.close()


def _find(db: sqlite3.Connection, key: int | None) -> Row:
    found = db.execute("SELECT * FROM tasks WHERE id = ?", [key]).fetchone()
    if found is None:
        raise NoSuchTask(f"there is no task {key}")
    return _row(found)


def _row(found: sqlite3.Row) -> Row:
    return dict(found) | {"done": bool(found["done"])}


def _note(db: sqlite3.Connection, delta: dict[str, Any]) -> None:
    db.execute("INSERT INTO outbox (delta) VALUES (?)", [json.dumps(delta | {"model": MODEL})])
