"""The grants of a SQLite file, in the transaction of the moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from syncserver.engines.base import Grant, GrantHeld, GrantMissing, GrantRevoked
from syncserver.position import Position

_AT_ONCE = 500


class Held(NamedTuple):
    """A grant whose time is not over."""

    grant: Grant
    takes: int
    held: bool
    resumable: bool
    revoked: bool


class Grants:
    """The table ``held``; ``now`` is the time of the transaction, times are seconds since 1970."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def put(self, token: str, grant: Grant, now: float, seconds: float) -> None:
        """Keep a grant that nobody has taken."""
        self._db.execute(
            "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?, 0, 0, 0, 0, ?, ?, ?)",
            (token, grant.stream, *grant.position, now, now + seconds, grant.body),
        )

    def find(self, token: str, now: float) -> Held | None:
        """Return what a token stands for."""
        row = self._db.execute(
            'SELECT stream, epoch, "offset", mark, body, takes, held, resumable, revoked'
            " FROM held WHERE token = ? AND deadline > ?",
            (token, now),
        ).fetchone()
        if row is None:
            return None
        stream, epoch, offset, mark, body, takes, *flags = row
        grant = Grant(stream, Position(epoch, offset, mark), body)
        return Held(grant, takes, *map(bool, flags))

    def take(
        self, token: str, now: float, seconds: float, *, resumable: bool
    ) -> tuple[Grant, int, bool]:
        """Take a grant; return it, how many times it was taken, and whether from another."""
        found = self.find(token, now)
        if found is None:
            raise GrantMissing
        if found.revoked:
            raise GrantRevoked
        if found.held and not (resumable and found.resumable):
            raise GrantHeld
        take = found.takes + 1
        self._db.execute(
            "UPDATE held SET takes = ?, held = 1, resumable = ?, since = ?, deadline = ?"
            " WHERE token = ?",
            (take, resumable, now, now + seconds, token),
        )
        return found.grant, take, found.held

    def renew(self, tokens: Iterable[str], now: float, seconds: float) -> list[str]:
        """Keep those that are there and not revoked; return the others."""
        gone: list[str] = []
        rest = iter(tokens)
        while some := list(islice(rest, _AT_ONCE)):
            which = f"token IN ({', '.join('?' * len(some))}) AND deadline > ? AND NOT revoked"
            found = self._db.execute(
                f"SELECT token FROM held WHERE {which}",  # noqa: S608  # only question marks
                (*some, now),
            )
            there = {token for (token,) in found}
            gone += [token for token in some if token not in there]
            self._db.execute(
                f"UPDATE held SET since = ?, deadline = ? WHERE {which}",  # noqa: S608
                (now, now + seconds, *some, now),
            )
        return gone

    def release(self, token: str, take: int, now: float, seconds: float) -> None:
        """Let go of a take, unless the grant was taken again or revoked."""
        if seconds:
            self._db.execute(
                "UPDATE held SET held = 0, since = ?, deadline = ?"
                " WHERE token = ? AND deadline > ? AND takes = ? AND NOT revoked",
                (now, now + seconds, token, now, take),
            )
        else:
            self._db.execute(
                "DELETE FROM held WHERE token = ? AND deadline > ? AND takes = ? AND NOT revoked",
                (token, now, take),
            )

    def revoke(self, token: str, now: float, seconds: float) -> str | None:
        """Revoke a grant; return the stream that has to be told, None if there is no grant."""
        found = self.find(token, now)
        if found is None or found.revoked:
            return None
        self._db.execute(
            "UPDATE held SET revoked = 1, since = ?, deadline = ? WHERE token = ?",
            (now, now + seconds, token),
        )
        return found.grant.stream

    def forget(self, now: float, most: int) -> None:
        """Drop up to so many whose time is over."""
        self._db.execute(
            "DELETE FROM held WHERE token IN (SELECT token FROM held WHERE deadline <= ? LIMIT ?)",
            (now, most),
        )
