"""The grants of a SQLite file, in the transaction of the moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from syncserver.config import Limits
from syncserver.engines.base import (
    GRANT_COST_BYTES,
    Grant,
    GrantHeld,
    GrantMissing,
    GrantRevoked,
    cost_of,
)
from syncserver.errors import TooManyGrants
from syncserver.position import Position

_AT_ONCE = 500
_DROPPED = 5_000
_OVER = "token IN (SELECT token FROM held WHERE deadline <= ? ORDER BY deadline, token LIMIT ?)"
_WAITED = _OVER.replace("WHERE", "WHERE takes = 0 AND")


class Held(NamedTuple):
    """A grant whose time is not over."""

    grant: Grant
    takes: int
    held: bool
    resumable: bool
    revoked: bool


class Waiting(NamedTuple):
    """How many grants nobody has taken, and what they cost."""

    number: int = 0
    cost: int = 0

    def plus(self, number: int, cost: int) -> Waiting:
        """Return it with so many more."""
        return Waiting(self.number + number, self.cost + cost)


class Grants:
    """The table ``held``; ``now`` is the time of the transaction, times are seconds since 1970.

    Those that nobody has taken are counted along; who rolls a transaction back puts ``waiting``
    back too.
    """

    def __init__(self, db: sqlite3.Connection, limits: Limits) -> None:
        self._db = db
        self._limits = limits
        self.waiting = self._counted("TRUE")

    def put(self, token: str, grant: Grant, now: float, seconds: float) -> None:
        """Keep a grant that nobody has taken; TooManyGrants if as many wait as may."""
        if not self._has_room(grant):
            self.forget(now, _DROPPED)
            if not self._has_room(grant):  # those may all have been taken, which makes no room
                self._drop(_WAITED, now, _DROPPED)
            if not self._has_room(grant):
                raise TooManyGrants
        self._drop("token = ?", token)
        self.waiting = self.waiting.plus(1, cost_of(grant))
        self._db.execute(
            "INSERT INTO held VALUES (?, ?, ?, ?, ?, 0, 0, 0, 0, ?, ?, ?)",
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
        if not found.takes:
            self.waiting = self.waiting.plus(-1, -cost_of(found.grant))
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
        self._drop(_OVER, now, most)

    def _has_room(self, grant: Grant) -> bool:
        number, cost = self.waiting.plus(1, cost_of(grant))
        return number <= self._limits.max_grants and cost <= self._limits.max_grants_bytes

    def _drop(self, which: str, *given: object) -> None:
        dropped = self._counted(which, *given)
        self.waiting = self.waiting.plus(-dropped.number, -dropped.cost)
        self._db.execute(f"DELETE FROM held WHERE {which}", given)  # noqa: S608  # of this file

    def _counted(self, which: str, *given: object) -> Waiting:
        """Count those of some that nobody has taken."""
        number, size = self._db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM held"  # noqa: S608
            f" WHERE takes = 0 AND {which}",
            given,
        ).fetchone()
        return Waiting(number, size + number * GRANT_COST_BYTES)
