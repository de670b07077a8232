"""Tickets: one-time names of a token and a position, for doors that a client reaches by a URL.

A URL stands in logs, so a token must not stand in one. A ticket may: it is worth
nothing once it was redeemed, and no longer than ``grant_seconds`` before. It is kept
by the engine, as a grant is, so that any node can redeem it.

A token has at most one ticket, the latest: who asks often fills nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

from syncserver import strict_json
from syncserver.config import Limits
from syncserver.engines.base import Engine, Grant, GrantHeld, GrantMissing, GrantRevoked
from syncserver.errors import NoSuchTicket
from syncserver.position import Position
from syncserver.rowsync.claims import Claim, Claims
from syncserver.rowsync.grants import new_token

_NAME_LENGTH = 16


class Reserved(NamedTuple):
    """What a ticket stands for."""

    token: str
    position: str | None


class Tickets:
    """The tickets of one service."""

    def __init__(self, service: str, engine: Engine, limits: Limits) -> None:
        self._service = service
        self._engine = engine
        self._claims = Claims(engine, limits)
        self._seconds = min(limits.grant_seconds, limits.resume_seconds)

    async def issue(self, token: str, position: Position | None) -> str:
        """Return a ticket for a token.

        The token is taken and let go of, so that who cannot have it hears so here:
        NoSuchSubscription, AlreadyAcquired, Refetch or Unavailable.
        """
        taken = await self._claims.take(token, resumable=True, resuming=position is not None)
        await self._claims.let_go(Claim(token, taken.take, kept=True))
        name, secret = hashlib.sha256(token.encode()).hexdigest()[:_NAME_LENGTH], new_token()
        told = None if position is None else str(position)
        body = strict_json.encode_trusted({"secret": secret, "token": token, "position": told})
        grant = Grant(self._service, taken.grant.position, body)
        await self._engine.put_grant(_key(name), grant, self._seconds)
        return name + secret

    async def redeem(self, ticket: str) -> Reserved:
        """Return what a ticket stands for, once; NoSuchTicket or Unavailable."""
        name, secret = ticket[:_NAME_LENGTH], ticket[_NAME_LENGTH:]
        try:
            taken = await self._engine.take_grant(_key(name), self._seconds, resumable=False)
        except (GrantMissing, GrantRevoked, GrantHeld):
            raise NoSuchTicket from None
        await self._claims.let_go(Claim(_key(name), taken.take, kept=False))
        body = strict_json.decode_trusted(taken.grant.body)
        if not hmac.compare_digest(body["secret"].encode(), secret.encode()):
            raise NoSuchTicket
        return Reserved(body["token"], body["position"])


def _key(name: str) -> str:
    return f"ticket:{name}"
