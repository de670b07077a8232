"""A node's claims on grants: taken by an acquire, renewed while held, let go at the end.

What a node holds when it dies expires ``resume_seconds`` later: nobody else has
to notice its death.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from syncserver.config import Limits
from syncserver.engines.base import Engine, GrantHeld, GrantMissing, GrantRevoked, Taken
from syncserver.errors import (
    AlreadyAcquired,
    NoSuchSubscription,
    Refetch,
    RefetchReason,
    Unavailable,
)

logger = logging.getLogger("syncserver.subscriptions")

_RETRY_SECONDS = 1.0


class Claim(NamedTuple):
    """One take of a grant; ``kept`` if another may take it for a while once it is let go."""

    token: str
    take: int
    kept: bool


class Claims:
    """Takes and lets go of grants, in the words of those who acquire."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._seconds = limits.resume_seconds

    async def take(self, token: str, *, resumable: bool, resuming: bool) -> Taken:
        """Take a grant; what cannot be resumed any more is to be fetched again.

        Raises NoSuchSubscription, AlreadyAcquired, Refetch or Unavailable.
        """
        try:
            return await self._engine.take_grant(token, self._seconds, resumable=resumable)
        except GrantMissing:
            raise Refetch(RefetchReason.EXPIRED) if resuming else NoSuchSubscription from None
        except GrantRevoked:
            raise Refetch(RefetchReason.REVOKED) if resumable else NoSuchSubscription from None
        except GrantHeld:
            raise AlreadyAcquired from None

    async def let_go(self, claim: Claim) -> None:
        """Give a grant back; where the store is out of reach it expires by itself."""
        try:
            seconds = self._seconds if claim.kept else 0
            await self._engine.release_grant(claim.token, claim.take, seconds)
        except Unavailable:
            logger.info("A grant was not released; it expires by itself")

    async def keep(self, held: Callable[[], Iterable[str]], expired: Callable[[str], None]) -> None:
        """Renew what is held, for ever; tell which tokens are no more."""
        pause = self._seconds / 3
        while True:
            await asyncio.sleep(pause)
            try:
                gone = await self._engine.renew_grants(set(held()), self._seconds)
            except Unavailable:
                pause = min(pause, _RETRY_SECONDS)
                continue
            pause = self._seconds / 3
            for token in gone:
                expired(token)
