"""Writing out what sessions have waiting, a slice of them in each turn of the loop.

A slice ends after so many sessions or bytes; who waits longest comes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from syncserver.counters import Traffic
from syncserver.errors import CloseCode
from syncserver.protocols import base as wire

logger = logging.getLogger("syncserver.session")

_FLUSHED_PER_TURN = 256
_BYTES_PER_TURN = 8 * 1024 * 1024


class Flushed(Protocol):
    """What the flusher needs of a session."""

    remote_address: str
    pending: int

    def flush(self) -> wire.Run | None:
        """Hand what waits to the transport; return it."""

    def abort(self, code: int, reason: str = "") -> None:
        """End the session."""


class Flusher:
    """Writes out the sessions that have something waiting, some in each turn of the loop.

    It remembers what the runs of this round were last ``extended`` to, so that sessions which
    are put the same frames share one run. What it hands over is counted,
    at once for neighbours that are handed the same.

    :param traffic: the counts of the registry that the sessions are of.
    """

    def __init__(self, traffic: Traffic | None = None) -> None:
        self.traffic = traffic or Traffic()
        self._due: deque[Flushed] = deque()
        self._passed = 0
        self._after: deque[tuple[int, Callable[[], None]]] = deque()
        self.extended: dict[wire.Run | None, wire.Run] = {}

    def add(self, session: Flushed) -> None:
        """Flush ``session`` in a coming turn; the session sees to it that it is added once."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._turn)
        self._due.append(session)

    def after(self, callback: Callable[[], None]) -> None:
        """Call back when all that is due now was handed over; at once if nothing is."""
        if self._due:
            self._after.append((self._passed + len(self._due), callback))
        else:
            callback()

    def flush(self, session: Flushed) -> None:
        """Write out one session before its turn."""
        try:
            self._count(session.flush(), 1)
        except Exception:
            logger.exception("Cannot write to %s", session)
            session.abort(CloseCode.INTERNAL)

    def _turn(self) -> None:
        due, left = self._due, _BYTES_PER_TURN
        passed = same = 0
        last: wire.Run | None = None
        for passed in range(1, min(len(due), _FLUSHED_PER_TURN) + 1):  # noqa: B007  # used below
            session = due.popleft()
            left -= session.pending
            try:
                run = session.flush()
                if run is not last:
                    self._count(last, same)
                    last, same = run, 0
                same += 1
            except Exception:
                logger.exception("Cannot write to %s", session)
                session.abort(CloseCode.INTERNAL)
            if left < 0:
                break
        self._count(last, same)
        self._passed += passed
        while self._after and self._after[0][0] <= self._passed:
            self._after.popleft()[1]()
        if due:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self.extended.clear()

    def _count(self, run: wire.Run | None, times: int) -> None:
        """Count neighbours that were handed the same."""
        if run is None:
            return
        traffic, frames = self.traffic, times * run.text_count
        traffic.writes += times
        traffic.frames += frames
        traffic.sent_bytes += times * run.size - frames * wire.TEXT_OVERHEAD_BYTES
