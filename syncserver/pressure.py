"""What waits to be sent to all sessions together, looked at each second.

Bytes that several sessions wait for are there once: they are looked at closely only when the sum
of what each of them waits for is over the bound.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from syncserver.config import Limits
from syncserver.errors import CloseCode
from syncserver.session import Session

logger = logging.getLogger("syncserver.session")


def relieve(sessions: Iterable[Session], limits: Limits) -> int:
    """Close those who have the most waiting with 4008, if all have too much; return how many."""
    waiting = [session for session in sessions if session.pending]
    most = limits.max_outboxes_bytes
    if sum(session.pending for session in waiting) <= most:
        return 0
    held: dict[int, int] = {}
    for session in waiting:
        held.update(session.held())
    excess = sum(held.values()) - most
    closed = 0
    for session in sorted(waiting, key=lambda one: one.pending, reverse=True):
        if excess <= 0:
            break
        excess -= session.pending
        closed += 1
        session.abort(CloseCode.SLOW)
    if closed:
        logger.warning("Closed %s sessions: limits.max_outboxes_bytes waited in all", closed)
    return closed
