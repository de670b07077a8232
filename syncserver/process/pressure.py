"""What waits to be sent to all sessions together, and what memory the process has, each second.

Bytes that several sessions wait for are there once: they are looked at closely only when the sum
of what each of them waits for is over the bound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from syncserver.config import Limits
from syncserver.errors import CloseCode
from syncserver.process.memory import allowed_bytes, give_back, resident_bytes
from syncserver.session import Session

logger = logging.getLogger("syncserver.session")

_SHARE = 0.8
_LOW = 0.9
_SLOW_BYTES = 64 * 1024
_MIB = 1024 * 1024


def relieve(sessions: Iterable[Session], limits: Limits) -> int:
    """Close those who have the most waiting with 4008, if all have too much; return how many."""
    waiting = [session for session in sessions if session.pending]
    most = limits.max_outboxes_bytes
    if sum(session.pending for session in waiting) <= most:
        return 0
    held: dict[int, int] = {}
    for session in waiting:
        held.update(session.held())
    closed = _close_slowest(waiting, sum(held.values()) - most)
    if closed:
        logger.warning("Closed %s sessions: limits.max_outboxes_bytes waited in all", closed)
    return closed


def _close_slowest(sessions: Iterable[Session], excess: int) -> int:
    closed = 0
    for session in sorted(sessions, key=lambda one: one.pending, reverse=True):
        if excess <= 0:
            break
        excess -= session.pending
        closed += 1
        session.abort(CloseCode.SLOW)
    return closed


class Pressure:
    """Whether the process has more memory than it may, and less of it.

    Once it has, nobody new is to be let in (``is_high``) until it has a tenth less than it may.

    :param most: how much; None: as much as there is.
    :param resident: says how much it has.
    """

    def __init__(
        self, most: int | None, resident: Callable[[], int | None] = resident_bytes
    ) -> None:
        self.most = most
        self.is_high = False
        self._resident = resident

    @classmethod
    def of(cls, limits: Limits, processes: int) -> Pressure:
        """Return that of one of so many processes, which share what is allowed to all."""
        allowed = None if limits.max_process_bytes else allowed_bytes()
        share = None if allowed is None else int(allowed * _SHARE / processes)
        return cls(limits.max_process_bytes or share)

    def look(self, sessions: Iterable[Session]) -> None:
        """Look at it; while it is high, close those who have the most waiting, the slow ones."""
        resident = self._resident()
        if self.most is None or resident is None:
            return
        low = int(self.most * _LOW)
        if resident < low:
            if self.is_high:
                logger.info("There is memory again: %s MiB are used", resident // _MIB)
            self.is_high = False
        elif resident > self.most and not self.is_high:
            self.is_high = True
            text = "Memory is scarce: %s MiB are used, limits.max_process_bytes is %s MiB"
            logger.warning(text, resident // _MIB, self.most // _MIB)
        if self.is_high:
            slow = [session for session in sessions if session.pending >= _SLOW_BYTES]
            if closed := _close_slowest(slow, resident - low):
                logger.warning("Closed %s slow sessions: memory is scarce", closed)
            give_back()
