"""How a subscription ends, and when its peer is told.

Who did not ask for it is told ``refetch`` with a reason, or ``ended``. The grant is let go of:
dropped after a refetch or a cancel, kept for ``resume_seconds`` after a lost connection. Where many
end at once they are told in turn, so that a database is not asked by all of them together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from syncserver.config import Limits
from syncserver.counters import Activity
from syncserver.errors import Refetch, RefetchReason, RPCError
from syncserver.protocols.base import Ended, RefetchNotice
from syncserver.rowsync.claims import Claim, Claims
from syncserver.rowsync.peers import Peers, State, Subscription
from syncserver.rowsync.views import Views
from syncserver.stream import Stream
from syncserver.tasks import Tasks

_REFETCH_TICK_SECONDS = 0.1


class Ending:
    """Ends the subscriptions of one service.

    :param turn_ended: called in a coming turn when others may have waited for one that ended.
    """

    def __init__(
        self,
        service: str,
        stream: Stream[Any],
        views: Views,
        peers: Peers,
        *,
        claims: Claims,
        limits: Limits,
        activity: Activity,
        turn_ended: Callable[[], None],
    ) -> None:
        self._service = service
        self._stream = stream
        self._views = views
        self._peers = peers
        self._claims = claims
        self._refetch_per_second = limits.refetch_per_second
        self._activity = activity
        self._turn_ended = turn_ended
        self._waiting: deque[Subscription] = deque()
        self._tasks = Tasks(service)

    def close(self) -> None:
        """Give up what is under way."""
        self._tasks.close()

    def end(self, subscription: Subscription, error: RPCError) -> None:
        """End a subscription unasked: its joiner raises ``error``, or its peer is told."""
        if subscription.state is State.GONE:
            return
        joining = subscription.state is State.JOINING
        self._drop(subscription, error)
        if not joining:
            self._tell(subscription)

    def end_in_turn(self, subscription: Subscription, reason: RefetchReason) -> None:
        """End a subscription now, and tell its peer when it is its turn to fetch again."""
        if subscription.state is State.JOINING:
            self.end(subscription, Refetch(reason))
        elif subscription.state is not State.GONE:
            self._drop(subscription, Refetch(reason))
            subscription.is_untold = True
            self._wait(subscription)

    def condemn(self, subscription: Subscription) -> None:
        """End a subscription when it is its turn to fetch again; until then it is served."""
        if subscription.state is State.JOINING:
            self.end(subscription, Refetch(RefetchReason.REQUESTED))
        elif subscription.state is State.LIVE:
            self._peers.condemn(subscription)
            self._wait(subscription)

    def detach(self, subscription: Subscription) -> None:
        """Take a subscription out of everything; it is GONE then."""
        if subscription.state is not State.LIVE:  # its siblings may wait for their position
            asyncio.get_running_loop().call_soon(self._turn_ended)
        self._peers.discard(subscription)
        self._views.close(subscription.views)

    def let_go(self, subscription: Subscription, *, kept: bool) -> None:
        """Let go of the grant; nobody waits for it."""
        claim = Claim(subscription.token, subscription.take, kept)
        self._tasks.spawn(self._claims.let_go(claim))

    def _drop(self, subscription: Subscription, error: RPCError) -> None:
        self.detach(subscription)
        subscription.error = error
        if isinstance(error, Refetch):
            self.let_go(subscription, kept=False)

    def _wait(self, subscription: Subscription) -> None:
        self._waiting.append(subscription)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _tell_some(self) -> None:
        """Tell some of those whose turn it is."""
        most = max(1, round(self._refetch_per_second * _REFETCH_TICK_SECONDS))
        for _ in range(min(most, len(self._waiting))):
            subscription = self._waiting.popleft()
            if subscription.state is State.CONDEMNED:
                self.end(subscription, Refetch(RefetchReason.REQUESTED))
            elif subscription.is_untold:
                self._tell(subscription)
        self._peers.tell_due(self._stream.cursor)
        if self._waiting:
            asyncio.get_running_loop().call_later(_REFETCH_TICK_SECONDS, self._tell_some)

    def _tell(self, subscription: Subscription) -> None:
        subscription.is_untold = False
        error = subscription.error
        reason = "" if error is None else str(error.reason)
        notice: type[Ended | RefetchNotice] = Ended
        if isinstance(error, Refetch):
            notice = RefetchNotice
            self._activity.refetches.add(reason)
        told = notice(self._service, subscription.token, reason, subscription.named_views)
        subscription.peer.tell(told)
