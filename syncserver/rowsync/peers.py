"""Sessions as one service knows them: their subscriptions, and the positions they are told.

A position holds for all resumable subscriptions of a session, so it waits while
one of them is *unsettled* (joining, or condemned to fetch again).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from syncserver.announcing import announce
from syncserver.config import Limits
from syncserver.errors import RPCError
from syncserver.position import Position
from syncserver.protocols.base import Event, Frame, PositionReached, Protocol
from syncserver.rowsync.views import View
from syncserver.session import Session
from syncserver.stream import Stream

_TOLD_PER_TURN = 500
_LOOK_SECONDS = 1.0


class State(enum.Enum):
    """Where a subscription stands; ``syncserver.rowsync.subscriptions`` has the machine."""

    JOINING = enum.auto()
    LIVE = enum.auto()
    CONDEMNED = enum.auto()
    GONE = enum.auto()


class Subscription:
    """A grant that a session has acquired; ``take`` tells it from other takes of its token."""

    __slots__ = ("error", "is_untold", "peer", "resumable", "state", "take", "token", "views")

    def __init__(
        self, peer: Peer, token: str, take: int, views: list[View], *, resumable: bool
    ) -> None:
        self.peer = peer
        self.token = token
        self.take = take
        self.views = views
        self.resumable = resumable
        self.state = State.JOINING
        self.error: RPCError | None = None
        self.is_untold = False

    @property
    def named_views(self) -> tuple[tuple[str, str | None], ...]:
        """Return model and tag of each view, which is what a client knows of them."""
        return tuple((view.model, view.tag) for view in self.views)


class Peer:
    """One session's subscriptions to one service."""

    __slots__ = ("resumable", "session", "subscriptions", "told", "unsettled")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.subscriptions: dict[str, Subscription] = {}
        self.resumable = 0
        self.unsettled = 0
        self.told: Position | None = None

    def tell(self, event: Event) -> None:
        """Tell what others are told too; never raises."""
        announce(self.session, event)


class Peers:
    """The peers of one service, found by session and by token."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._peers: dict[Session, Peer] = {}
        self._tokens: dict[str, tuple[Subscription, ...]] = {}
        self._due: dict[Peer, None] = {}
        self._due_views: dict[View, None] = {}
        self._position_frames: dict[type[Protocol], Frame] = {}
        self._position_frames_for: Position | None = None

    def __iter__(self) -> Iterator[Peer]:
        return iter(tuple(self._peers.values()))

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, session: Session) -> Peer:
        """Return the peer of a session; an empty one if it has no subscriptions."""
        return self._peers.get(session) or Peer(session)

    def subscriptions(self) -> list[Subscription]:
        """Return all subscriptions."""
        return [held for some in self._tokens.values() for held in some]

    def tokens(self) -> Collection[str]:
        """Return the tokens that are held here."""
        return self._tokens

    def of_token(self, token: str) -> Iterable[Subscription]:
        """Return who has acquired ``token`` here: two for a moment, as it is taken over."""
        return self._tokens.get(token, ())

    def of_views(self, views: set[View]) -> list[Subscription]:
        """Return who has one of these views."""
        return [held for held in self.subscriptions() if views.intersection(held.views)]

    def add(self, subscription: Subscription) -> None:
        """Add a subscription that begins to join."""
        peer = subscription.peer
        self._peers[peer.session] = peer
        peer.subscriptions[subscription.token] = subscription
        self._tokens[subscription.token] = (*self.of_token(subscription.token), subscription)
        peer.resumable += subscription.resumable
        peer.unsettled += subscription.resumable

    def settle(self, subscription: Subscription, cursor: Position) -> None:
        """Make a joining subscription live, now that it has all up to ``cursor``."""
        peer = subscription.peer
        subscription.state = State.LIVE
        for view in subscription.views:
            view.subscribers[subscription] = None
        peer.unsettled -= subscription.resumable
        if subscription.resumable and peer.resumable == 1:
            peer.told = cursor
        else:
            self._due[peer] = None

    def condemn(self, subscription: Subscription) -> None:
        """Hold back positions from a live subscription that will have to fetch again."""
        subscription.state = State.CONDEMNED
        subscription.peer.unsettled += subscription.resumable

    def discard(self, subscription: Subscription) -> None:
        """Take a subscription out of everything but its views' use counts."""
        peer, token = subscription.peer, subscription.token
        if subscription.state is not State.LIVE:
            peer.unsettled -= subscription.resumable
            self._due[peer] = None
        elif not self._due_views.keys().isdisjoint(subscription.views):
            self._due[peer] = None  # it was sent something in this very turn
        subscription.state = State.GONE
        for view in subscription.views:
            view.subscribers.pop(subscription, None)
        peer.resumable -= subscription.resumable
        del peer.subscriptions[token]
        if not peer.subscriptions:
            self._peers.pop(peer.session, None)
            self._due.pop(peer, None)
        others = tuple(held for held in self._tokens[token] if held is not subscription)
        if others:
            self._tokens[token] = others
        else:
            del self._tokens[token]

    def touch(self, view: View) -> None:
        """Note that a view's subscribers were sent something; they are told the position."""
        self._due_views[view] = None

    def tell_due(self, cursor: Position) -> None:
        """Tell ``cursor`` to all who were touched; those that are unsettled go on waiting."""
        views, self._due_views = self._due_views, {}
        for view in views:
            for subscription in view.subscribers:
                if subscription.resumable:
                    self.tell_position(subscription.peer, cursor)
        due, self._due = self._due, {}
        for peer in due:
            self.tell_position(peer, cursor)

    async def tell_in_rounds(self, stream: Stream[Any], limits: Limits) -> None:
        """Tell positions to those whom nothing concerned, so that they are not left behind.

        Every ``position_seconds``, or as soon as the log moved by a quarter of what may be
        resumed or is retained.
        """
        while True:
            await _round_due(stream, limits)
            for number, peer in enumerate(self):
                self.tell_position(peer, stream.cursor)
                if number % _TOLD_PER_TURN == _TOLD_PER_TURN - 1:
                    await asyncio.sleep(0)

    def tell_position(self, peer: Peer, cursor: Position) -> None:
        """Tell one peer that it has all up to ``cursor``, unless it knows or must not yet."""
        if peer.told is cursor or peer.unsettled or not peer.resumable:
            return
        peer.told = cursor
        protocol = peer.session.protocol
        if protocol.shared:
            peer.session.put(self.position_frame(protocol, cursor))
        else:
            peer.tell(PositionReached(self._service, str(cursor)))

    def tell_progress(self, subscription: Subscription, position: Position) -> None:
        """Tell the peer of a joining subscription how far it has come, if it has no other.

        The positions of others would go back to this one.
        """
        peer = subscription.peer
        if subscription.resumable and peer.resumable == 1:
            event = PositionReached(self._service, str(position))
            peer.session.put(Frame(peer.session.protocol.encode(event)))

    def tell_all(self, event: Event) -> None:
        """Tell one event to every peer."""
        for peer in self:
            peer.tell(event)

    def position_frame(self, protocol: Protocol, cursor: Position) -> Frame:
        """Return the frame that tells ``cursor``; shared unless the protocol is not."""
        if self._position_frames_for is not cursor:
            self._position_frames_for = cursor
            self._position_frames = {}
        frame = self._position_frames.get(type(protocol))
        if frame is None:
            frame = Frame(protocol.encode(PositionReached(self._service, str(cursor))))
            if protocol.shared:
                self._position_frames[type(protocol)] = frame
        return frame


async def _round_due(stream: Stream[Any], limits: Limits) -> None:
    """Return when the next round of positions is due."""
    ahead = stream.cursor.offset + max(1, limits.resume_max_entries // 4)
    target = stream.cursor._replace(offset=ahead)
    most_bytes = stream.passed_bytes + limits.retention_bytes // 4
    left = limits.position_seconds
    while left > 0 and stream.passed_bytes < most_bytes:
        if await stream.reached(target, min(left, _LOOK_SECONDS)):
            return
        left -= _LOOK_SECONDS
