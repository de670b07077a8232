"""Batches on their way out: narrowed once for each view, and put before all who have it."""

from __future__ import annotations

import logging

from syncserver.counters import Activity
from syncserver.delta import Delta
from syncserver.errors import CloseCode
from syncserver.peers import Peers
from syncserver.publishing import Publisher
from syncserver.views import FrameCache, View, Views

logger = logging.getLogger("syncserver.subscriptions")


class Delivery:
    """Puts the batches of one service in the outboxes of its peers."""

    def __init__(
        self, service: str, views: Views, peers: Peers, publisher: Publisher, activity: Activity
    ) -> None:
        self._service = service
        self._views = views
        self._peers = peers
        self._publisher = publisher
        self._activity = activity

    def deliver(self, deltas: tuple[Delta, ...]) -> set[View]:
        """Put a batch in the outboxes of whom it concerns; return the views that failed on it."""
        narrowed = self._views.narrow(deltas)
        frames = FrameCache(self._service, deltas)
        session = None
        deliveries = 0
        for view, changes in narrowed.seen.items():
            if not view.subscribers:
                continue
            deliveries += len(view.subscribers)
            frame_for, known = frames.of_view(view.tag, tuple(changes)), None
            for subscription in view.subscribers:
                session = subscription.peer.session
                protocol = session.protocol
                try:
                    if protocol.__class__ is not known:  # mostly it is that of the one before
                        frame = frame_for(protocol)
                        known = protocol.__class__ if protocol.shared else None
                    session.put(frame, frames.number)
                except Exception:  # a protocol with state of its own; the others go on
                    logger.exception("A delta cannot be told to %s", session)
                    session.abort(CloseCode.INTERNAL)
            self._peers.touch(view)
        self._activity.deltas += len(deltas)
        self._activity.deliveries += deliveries
        if session is not None:
            self._publisher.flusher = session.flusher
        return narrowed.failed
