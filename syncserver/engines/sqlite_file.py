"""The file of a SQLite engine: found, locked, checked and opened, or refused with what to do.

One process has the file, by a lock on ``PATH.lock``; only the owner may read it.

What ``synchronous`` decides is lost with the power, never with the process. With
``full`` nothing that was acknowledged is. With ``normal`` the last commits may be, and
nobody could see that from the file: so it says under which boot of the machine it
was written, and a file that was not closed before the machine went down begins anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from syncserver.errors import ConfigError

logger = logging.getLogger("syncserver.engine")

LEVELS = ("full", "normal")
SCHEME = "sqlite://"

_APPLICATION_ID = 0x53594E43
_SCHEMA_VERSION = 1
_LOCKED_SECONDS = 0.5
_WAL_BYTES = 8 * 1024 * 1024
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# ``start`` is the sum of the sizes of all entries before it in the stream, so that bounds by
# offset, bytes and age all cut off a prefix.
# Of keys, the rowid is in the order of ``at``. ``boot`` is empty after a clean close.
_SCHEMA = """
CREATE TABLE state (boot TEXT NOT NULL, synchronous TEXT NOT NULL);
CREATE TABLE room (data BLOB);
CREATE TABLE stream (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL,
    "offset" INTEGER NOT NULL, mark TEXT NOT NULL, first INTEGER NOT NULL, total INTEGER NOT NULL
);
CREATE TABLE entry (
    place INTEGER PRIMARY KEY, mark TEXT NOT NULL, previous TEXT NOT NULL,
    at REAL NOT NULL, start INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE key (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, key TEXT NOT NULL, digest BLOB NOT NULL,
    "offset" INTEGER NOT NULL, mark TEXT NOT NULL, at REAL NOT NULL, UNIQUE (stream, key)
);
CREATE TABLE held (
    token TEXT PRIMARY KEY, stream TEXT NOT NULL, epoch TEXT NOT NULL, "offset" INTEGER NOT NULL,
    mark TEXT NOT NULL, takes INTEGER NOT NULL, held INTEGER NOT NULL, resumable INTEGER NOT NULL,
    revoked INTEGER NOT NULL, since REAL NOT NULL, deadline REAL NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX held_deadline ON held (deadline);
INSERT INTO state VALUES ('', 'full');
"""
_ALL = ("entry", "stream", "key", "held")

_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk fails",
    sqlite3.SQLITE_READONLY: "the file cannot be written",
    sqlite3.SQLITE_BUSY: "another program keeps the file locked",
    sqlite3.SQLITE_LOCKED: "another program keeps the file locked",
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is no database",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
}


class Source(NamedTuple):
    """Where the file is and how surely it is written."""

    path: Path
    synchronous: str


def reason_of(error: sqlite3.Error) -> str:
    """Return in a few words, without paths, why SQLite fails."""
    code = getattr(error, "sqlite_errorcode", 0)
    return _REASONS.get(code & 0xFF, "the file cannot be used")


def parse_url(url: str) -> Source:
    """Read ``sqlite://PATH?synchronous=LEVEL``; ConfigError on anything else."""
    text, _, query = url.removeprefix(SCHEME).partition("?")
    if not url.startswith(SCHEME) or text in {"", ":memory:"}:
        raise ConfigError(
            f'engine: {url!a} names no file; write "sqlite:///var/lib/syncserver/log.db",'
            ' or "memory" to keep nothing'
        )
    options = {"synchronous": LEVELS[0]}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            raise ConfigError(f"engine: unknown parameter {name!a}; known: synchronous")
        if value not in LEVELS:
            raise ConfigError(f"engine: {name} is {value!a}; it is one of {', '.join(LEVELS)}")
        options[name] = value
    return Source(Path(text).resolve(), **options)


class InUse(ConfigError):
    """Another process has the file."""


class Lock:
    """The right to a file, held while this object is open; InUse if another has it."""

    def __init__(self, path: Path) -> None:
        name = f"{path}.lock"
        with _refusing(path):
            self._descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            self.release()
            raise InUse(
                f"engine: {path} is in use by process {holder or '(unknown)'}; one daemon has one"
                " file: stop the other one, or name another file"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let go; the file of the lock stays, as removing it would let two in."""
        os.close(self._descriptor)


def place_of(stream: int, offset: int) -> int:
    """Return where an entry lies: by streams, and in each by offset."""
    return stream << 48 | offset


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection that any one thread at a time may use, and that begins nothing itself."""
    return sqlite3.connect(
        path, timeout=_LOCKED_SECONDS, isolation_level=None, check_same_thread=False
    )


def open_database(source: Source, now: float) -> sqlite3.Connection:
    """Open or make the file and get it ready; ConfigError if it is not as it must be.

    :param now: what stands in the file as later than that is taken for just written.
    """
    path = source.path
    with _refusing(path):
        _make_private(path)
        db = connect(path)
    try:
        with _refusing(path):
            _check_kind(db, path)
            _check_sound(db, path)
            _begin(db, source.synchronous, now)
    except BaseException:
        db.close()
        raise
    return db


def close_database(db: sqlite3.Connection) -> None:
    """Close the file; it says so itself, surely written, where it still can be written."""
    with contextlib.suppress(sqlite3.Error):
        db.execute("PRAGMA synchronous = full")
        db.execute("UPDATE state SET boot = ''")
    db.close()


def _make_private(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    if mode & 0o077:
        raise ConfigError(f"engine: {path} is open to other users; chmod 600 it")


def _check_kind(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        _create(db)
    elif application != _APPLICATION_ID:
        raise ConfigError(f"engine: {path} belongs to another program; name another file")
    elif version != _SCHEMA_VERSION:
        raise ConfigError(
            f"engine: {path} was written by another release (schema {version}, not"
            f" {_SCHEMA_VERSION}); use that release, or {_MEND}"
        )


def _create(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA auto_vacuum = incremental")
    db.execute("PRAGMA journal_mode = wal")
    db.executescript(
        f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID};"
        f" PRAGMA user_version = {_SCHEMA_VERSION}; {_SCHEMA} COMMIT"
    )


def _check_sound(db: sqlite3.Connection, path: Path) -> None:
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        what = " ".join(found.split())
        raise ConfigError(f"engine: {path}: the file is damaged ({what}); {_MEND}")


def _begin(db: sqlite3.Connection, synchronous: str, now: float) -> None:
    """Note who writes and how, surely, before anything is written less surely."""
    (mode,) = db.execute("PRAGMA journal_mode = wal").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError("no write-ahead log here; use a local file system")
    db.execute("PRAGMA synchronous = full")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    db.execute("BEGIN IMMEDIATE")
    if _power_failed(*db.execute("SELECT boot, synchronous FROM state").fetchone()):
        logger.warning("The machine went down while the log was open; clients fetch again")
        for table in _ALL:
            db.execute(f"DELETE FROM {table}")  # noqa: S608  # names of our own
    db.execute("UPDATE state SET boot = ?, synchronous = ?", (_boot_id(), synchronous))
    _set_back(db, now)
    db.execute("COMMIT")
    db.execute(f"PRAGMA synchronous = {synchronous}")


def _power_failed(boot: str, synchronous: str) -> bool:
    """Say whether commits may be missing from a file that was last opened so."""
    return bool(boot) and synchronous == "normal" and boot != _boot_id()


def _set_back(db: sqlite3.Connection, now: float) -> None:
    """Bring times of the future back to now: a clock that was set back gives nobody a day more."""
    db.execute(
        "UPDATE held SET deadline = deadline - since + :now, since = :now WHERE since > :now",
        {"now": now},
    )
    db.execute("UPDATE entry SET at = :now WHERE at > :now", {"now": now})
    db.execute("UPDATE key SET at = :now WHERE at > :now", {"now": now})


def _boot_id() -> str:
    """Return what names this boot of the machine; where nothing does, no boot is like another."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return secrets.token_hex(8)


_MEND = "move it away: a new log begins, and clients fetch again"


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what the system or SQLite says of a file into a refusal with what to do."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"engine: {path} cannot be opened: {error.strerror}; its directory must be there, and"
            " both must be writable"
        ) from error
    except sqlite3.Error as error:
        mend = _MEND if reason_of(error) in _DAMAGED else "mend that and start again"
        raise ConfigError(f"engine: {path}: {reason_of(error)} ({error}); {mend}") from error


_DAMAGED = {_REASONS[sqlite3.SQLITE_CORRUPT], _REASONS[sqlite3.SQLITE_NOTADB]}
