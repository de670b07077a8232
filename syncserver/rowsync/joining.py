"""How a subscription comes from a position to the node's cursor without a hole.

One loop: read what follows the position in chunks, deliver it, and go live in the
very callback in which position and cursor are equal. Nothing is buffered for a
joiner, and nobody filters by position once live. Where the engine is ahead of the
node, so may the joiner be: it waits for the cursor then, since going live ahead
of it would repeat entries. After each await the joiner looks again whether it is
still wanted.
"""

from __future__ import annotations

import asyncio
import logging

from syncserver.config import Limits
from syncserver.delta import Delta
from syncserver.errors import (
    NoSuchSubscription,
    PositionLost,
    Refetch,
    RefetchReason,
    TakenOver,
    Unavailable,
)
from syncserver.position import Position
from syncserver.protocols.base import Frame
from syncserver.rowsync import entries
from syncserver.rowsync.batchframes import BatchFrames
from syncserver.rowsync.peers import Peers, State, Subscription
from syncserver.rowsync.views import Views
from syncserver.stream import Stream
from syncserver.tail import Record

logger = logging.getLogger("syncserver.subscriptions")

_CHUNK_ENTRIES = 64
_AHEAD_SECONDS = 10.0


class Joining:
    """Brings subscriptions of one service up to the cursor of its stream."""

    def __init__(
        self,
        service: str,
        stream: Stream[entries.Value],
        views: Views,
        peers: Peers,
        limits: Limits,
    ) -> None:
        self._service = service
        self._stream = stream
        self._views = views
        self._peers = peers
        self._limits = limits

    async def join(self, subscription: Subscription, position: Position) -> None:
        """Replay what follows ``position`` and go live.

        The peer is told how far it has come, so that a cut in a long replay costs no more than
        a chunk of it.
        Raises Refetch, TakenOver or Unavailable, or what ended the subscription meanwhile. There
        is no await between going live and the return.
        """
        replayed = 0
        while position != self._stream.cursor:
            chunk = await self._read(position)
            _look_again(subscription)
            if position.offset > self._stream.cursor.offset:
                await self._wait_for_cursor(position)
                _look_again(subscription)
                continue
            for record in chunk:
                await subscription.peer.session.writable(record.size)
                _look_again(subscription)
                self._replay(subscription, record)
                position = record.position
                replayed += 1
            if replayed > self._limits.resume_max_entries:
                raise Refetch(RefetchReason.TOO_FAR)
            if position != self._stream.cursor:
                self._peers.tell_progress(subscription, position)
                await asyncio.sleep(0)
                _look_again(subscription)
        self._peers.settle(subscription, self._stream.cursor)

    async def _read(self, position: Position) -> list[Record[entries.Value]]:
        try:
            return await self._stream.read(position, _CHUNK_ENTRIES)
        except PositionLost as lost:
            raise Refetch(lost.reason) from None

    async def _wait_for_cursor(self, position: Position) -> None:
        """Wait for a node that is behind: the engine has confirmed the position."""
        if not await self._stream.reached(position, _AHEAD_SECONDS):
            raise Unavailable

    def _replay(self, subscription: Subscription, record: Record[entries.Value]) -> None:
        match record.value:
            case entries.Batch(deltas):
                self._replay_batch(subscription, deltas)
            case entries.TakenOver(token, take):
                if token == subscription.token and take > subscription.take:
                    raise TakenOver
            case entries.Revoked(token):
                if token == subscription.token:
                    raise Refetch(RefetchReason.REVOKED)
            case entries.RefetchRequested(model, items):
                if self._views.concerned(model, items).intersection(subscription.views):
                    raise Refetch(RefetchReason.REQUESTED)

    def _replay_batch(self, subscription: Subscription, deltas: tuple[Delta, ...]) -> None:
        frames = BatchFrames(self._service, deltas)
        session = subscription.peer.session
        texts: list[bytes] = []
        for view in subscription.views:
            try:
                seen = self._views.replay(view, deltas)
            except Exception:
                logger.exception("A dealer of %s failed in a replay", view.model)
                raise Refetch(RefetchReason.FILTER_FAILED) from None
            if seen:
                texts += frames.frame(session.protocol, view.tag, seen).texts
        session.put(Frame(tuple(texts)))  # in one: an empty outbox takes it, whatever its size


def _look_again(subscription: Subscription) -> None:
    if subscription.state is State.GONE or not subscription.peer.session.open:
        raise subscription.error or NoSuchSubscription
