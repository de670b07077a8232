"""The subscriptions of one node to one service's stream.

::

    acquire -> JOINING -> LIVE -> GONE
                  |         |
                  |     CONDEMNED (will be told to fetch again) -> GONE
                  +-> GONE (with an error, which answers the acquire)

``joining`` has the way to LIVE, ``ending`` the one to GONE.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from syncserver.config import Limits
from syncserver.counters import Activity
from syncserver.engines.base import Engine, Taken
from syncserver.errors import (
    AlreadyAcquired,
    InvalidQuery,
    NoSuchSubscription,
    Refetch,
    RefetchReason,
    RPCError,
    TakenOver,
)
from syncserver.position import Position
from syncserver.protocols.base import Freshness
from syncserver.publishing import Publisher
from syncserver.rowsync import entries
from syncserver.rowsync.claims import Claim, Claims
from syncserver.rowsync.delivery import Delivery
from syncserver.rowsync.ending import Ending
from syncserver.rowsync.grants import GrantBody
from syncserver.rowsync.joining import Joining
from syncserver.rowsync.peers import Peers, State, Subscription
from syncserver.rowsync.views import View, Views
from syncserver.session import Session
from syncserver.stream import Stream
from syncserver.tail import Record
from syncserver.tasks import Tasks

logger = logging.getLogger("syncserver.subscriptions")


class Subscriptions:
    """Grants become subscriptions here, and entries frames.

    :param settle: sees each entry once, in order, before it is delivered (``Stream``).
    """

    def __init__(
        self,
        service: str,
        views: Views,
        engine: Engine,
        limits: Limits,
        activity: Activity,
        *,
        settle: Callable[[entries.Value], entries.Value] | None = None,
    ) -> None:
        self.stream: Stream[entries.Value] = Stream(
            engine,
            service,
            self,
            decode=entries.decode,
            settle=settle,
            tail_bytes=limits.tail_bytes,
            past_seconds=limits.reorder_seconds,
        )
        self.peers = Peers(service)
        self.publisher = Publisher(engine, self.stream, activity)
        self._delivery = Delivery(service, views, self.peers, self.publisher, activity)
        self._activity = activity
        self._joining = Joining(service, self.stream, views, self.peers, limits)
        self._service = service
        self._views = views
        self._claims = Claims(engine, limits)
        self._limits = limits
        self._ending = Ending(
            service,
            self.stream,
            views,
            self.peers,
            claims=self._claims,
            limits=limits,
            activity=activity,
            turn_ended=self.turn_ended,
        )
        self._tasks = Tasks(service)
        self._is_kept = False

    async def open(self) -> None:
        """Follow the stream; does nothing when it was done before."""
        await self.stream.open()
        if not self._is_kept:
            self._is_kept = True
            self._tasks.spawn(self._claims.keep(self.peers.tokens, self._expired))
            self._tasks.spawn(self.peers.tell_in_rounds(self.stream, self._limits))

    async def close(self) -> None:
        """Stop following; what is under way is given up."""
        self._tasks.close()
        self._ending.close()
        await self.stream.close()

    # Called by the service, for one session at a time.

    async def acquire(
        self, session: Session, token: str, position: Position | None, *, resumable: bool
    ) -> Position:
        """Make a subscription of a grant and return the position at which it went live.

        Raises Refetch, NoSuchSubscription, AlreadyAcquired, TakenOver or Unavailable. There
        is no await between going live and the return.
        """
        await self.open()
        self._check(session, token, position)
        resuming = position is not None
        taken = await self._claims.take(token, resumable=resumable, resuming=resuming)
        subscription = await self._begin(session, token, taken, resumable=resumable)
        try:
            await self._joining.join(subscription, position or taken.grant.position)
        except BaseException as error:
            if subscription.state is not State.GONE:
                self._ending.detach(subscription)
                lost = isinstance(error, Refetch)
                await self._claims.let_go(Claim(token, taken.take, kept=not lost))
            raise
        if not subscription.peer.unsettled:
            asyncio.get_running_loop().call_soon(self.turn_ended)
        return self.stream.cursor

    def check_room(self, session: Session) -> None:
        """Raise RPCError if a session has as many subscriptions as it may."""
        if len(self.peers.get(session).subscriptions) >= self._limits.max_subscriptions:
            raise RPCError("Too many subscriptions", code="subscription_limit")

    async def cancel(self, session: Session, token: str) -> None:
        """End a subscription of this session and drop its grant."""
        subscription = self.peers.get(session).subscriptions.get(token)
        if subscription is None:
            raise NoSuchSubscription
        self._ending.detach(subscription)
        await self._claims.let_go(Claim(token, subscription.take, kept=False))

    def disconnected(self, session: Session) -> None:
        """Let go of the session's subscriptions; those that can be resumed are kept a while."""
        gone = list(self.peers.get(session).subscriptions.values())
        for subscription in gone:
            self._ending.detach(subscription)
            self._ending.let_go(subscription, kept=subscription.resumable)

    def end_views(self, views: Iterable[View], reason: RefetchReason) -> None:
        """End whoever has one of these views."""
        for subscription in self.peers.of_views(set(views)):
            self._ending.end(subscription, Refetch(reason))

    # Called by the stream, as its follower.

    def deliver(self, record: Record[entries.Value]) -> None:
        """Send one entry to whom it concerns."""
        self._activity.entries += 1
        self._delivery.put_kept()
        match record.value:
            case entries.Batch(deltas):
                if failed := self._delivery.deliver(deltas):
                    self.end_views(failed, RefetchReason.FILTER_FAILED)
            case entries.TakenOver(token, take):
                for subscription in self.peers.of_token(token):
                    if subscription.take < take:
                        self._ending.end(subscription, TakenOver())
            case entries.Revoked(token):
                for subscription in self.peers.of_token(token):
                    self._ending.end(subscription, Refetch(RefetchReason.REVOKED))
            case entries.RefetchRequested(model, items):
                for subscription in self.peers.of_views(self._views.concerned(model, items)):
                    self._ending.condemn(subscription)

    def turn_ended(self) -> None:
        """Tell the position to those who were sent something in this turn."""
        self._delivery.turn_ended(self.stream.cursor)
        self.publisher.arrived()

    def lost(self, reason: RefetchReason) -> None:
        """End all subscriptions now and tell them in turn: what they missed cannot be had."""
        self._delivery.put_kept()
        self.publisher.forget()
        for subscription in self.peers.subscriptions():
            self._ending.end_in_turn(subscription, reason)

    def freshness(self, *, stale: bool) -> None:
        """Tell all peers that the log is out of reach, or back."""
        self._delivery.put_kept()
        self.peers.tell_all(Freshness(self._service, stale))

    def _expired(self, token: str) -> None:
        for subscription in self.peers.of_token(token):
            self._ending.end_in_turn(subscription, RefetchReason.EXPIRED)

    # The steps of an acquire.

    def _check(self, session: Session, token: str, position: Position | None) -> None:
        if position is not None and position.epoch != self.stream.cursor.epoch:
            raise Refetch(RefetchReason.EPOCH)
        if token in self.peers.get(session).subscriptions:
            raise AlreadyAcquired
        self.check_room(session)

    async def _begin(
        self, session: Session, token: str, taken: Taken, *, resumable: bool
    ) -> Subscription:
        if not session.open:
            await self._claims.let_go(Claim(token, taken.take, kept=resumable))
            raise NoSuchSubscription
        try:
            body = GrantBody.decode(taken.grant.body)
            views = self._views.open(body.items)
        except Exception as error:
            if not isinstance(error, InvalidQuery):
                logger.exception("A grant is not understood, or a dealer refuses its item now")
            await self._claims.let_go(Claim(token, taken.take, kept=False))
            raise Refetch(RefetchReason.FILTER_CHANGED) from None
        if body.identity is not None:
            session.identity = body.identity
        peer = self.peers.get(session)
        subscription = Subscription(peer, token, taken.take, views, resumable=resumable)
        self.peers.add(subscription)
        return subscription
