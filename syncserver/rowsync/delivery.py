"""Batches on their way out: narrowed once for each view, and put before all who have it."""

from __future__ import annotations

import logging

from syncserver.counters import Activity
from syncserver.delta import Delta
from syncserver.errors import CloseCode
from syncserver.position import Position
from syncserver.protocols.base import Frame
from syncserver.publishing import Publisher
from syncserver.rowsync.batchframes import BatchFrames
from syncserver.rowsync.peers import Peers
from syncserver.rowsync.views import Seen, View, Views

logger = logging.getLogger("syncserver.subscriptions")


class Delivery:
    """Puts the batches of one service in the outboxes of its peers.

    A batch that concerns one view alone is *kept* until it is known whether the turn ends with
    it: then its position is put with its frames, in one walk over the subscribers.
    """

    def __init__(
        self, service: str, views: Views, peers: Peers, publisher: Publisher, activity: Activity
    ) -> None:
        self._service = service
        self._views = views
        self._peers = peers
        self._publisher = publisher
        self._activity = activity
        self._kept: tuple[BatchFrames, View, Seen] | None = None

    def deliver(self, deltas: tuple[Delta, ...]) -> set[View]:
        """Put a batch in the outboxes of whom it concerns; return the views that failed on it.

        ``put_kept`` is to be called before anything else is told, and ``turn_ended`` at the end.
        """
        narrowed = self._views.narrow(deltas)
        frames = BatchFrames(self._service, deltas)
        self._activity.deltas += len(deltas)
        alone = len(narrowed.seen) == 1 and not narrowed.failed
        for view, changes in narrowed.seen.items():
            if alone:
                self._kept = (frames, view, tuple(changes))
            else:
                self._put(frames, view, tuple(changes), None)
        return narrowed.failed

    def put_kept(self, cursor: Position | None = None) -> None:
        """Put what was kept; with its position, ``cursor``, if the turn ends with it."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self._put(*kept, cursor)

    def turn_ended(self, cursor: Position) -> None:
        """Put what was kept, and tell the position to all who were sent something."""
        self.put_kept(cursor)
        self._peers.tell_due(cursor)

    def _put(self, frames: BatchFrames, view: View, seen: Seen, cursor: Position | None) -> None:
        subscribers = view.subscribers
        if not subscribers:
            return
        self._activity.deliveries += len(subscribers)
        frame_for, known, number = frames.of_view(view.tag, seen), None, frames.number
        for subscription in subscribers:
            peer = subscription.peer
            session = peer.session
            protocol = session.protocol
            try:
                if protocol.__class__ is not known:  # mostly it is that of the one before
                    frame, last = frame_for(protocol), None
                    known = protocol.__class__ if protocol.shared else None
                if cursor is None or peer.unsettled or not subscription.resumable:
                    session.put(frame, number)
                    continue
                if last is None:
                    told = self._peers.position_frame(protocol, cursor)
                    last = Frame(frame.texts + told.texts)
                peer.told = cursor
                session.put(last, number)
            except Exception:  # a protocol with state of its own; the others go on
                logger.exception("A delta cannot be told to %s", session)
                session.abort(CloseCode.INTERNAL)
        if cursor is None:
            self._peers.touch(view)
        self._publisher.flusher = session.flusher
