"""Group commit: all calls that wait go into one transaction, on a thread of its own.

While one transaction is written the next calls gather. Everything here but the
store itself runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

from syncserver.engines.base import Entry
from syncserver.engines.sqlite_file import reason_of
from syncserver.engines.sqlite_store import Commit, Store, Work
from syncserver.errors import Unavailable

logger = logging.getLogger("syncserver.engine")

STUCK = "the disk does not answer"
STUCK_SECONDS = 5.0

_BATCH_CALLS = 1_000
_BATCH_BYTES = 8 * 1024 * 1024
_MAX_CALLS = 20_000
_MAX_BYTES = 64 * 1024 * 1024
_CLOSE_SECONDS = 10.0


class Hearer(Protocol):
    """Who is told of transactions, in their order; every method returns at once."""

    def committed(self, news: dict[str, list[Entry]]) -> None:
        """Take the entries of a transaction; its calls have their results."""

    def failed(self, reason: str, size: int) -> None:
        """Hear that ``size`` bytes could not be written, and why."""


class _Call(NamedTuple):
    work: Work
    size: int
    alone: bool
    done: asyncio.Future[Any]


class Writer:
    """Hands work to a store.

    :param hearer: hears of each transaction before those who made the calls go on.
    """

    def __init__(self, store: Store, hearer: Hearer) -> None:
        self._store = store
        self._hearer = hearer
        self._thread = ThreadPoolExecutor(1, "sqlite-writer")
        self._calls: deque[_Call] = deque()
        self._bytes = 0
        self._since: float | None = None
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def stuck(self) -> bool:
        """Whether the transaction under way takes so long that more calls make no sense."""
        if self._since is None:
            return False
        return asyncio.get_running_loop().time() - self._since > STUCK_SECONDS

    def submit(self, work: Work, size: int = 0, *, alone: bool = False) -> asyncio.Future[Any]:
        """Return the result of ``work`` once it is committed; Unavailable if it was not.

        :param size: about how many bytes it writes.
        :param alone: gives it a transaction of its own, so that it takes none with it.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        full = len(self._calls) >= _MAX_CALLS or self._bytes + size > _MAX_BYTES
        if self._closed or full or self.stuck:
            done.set_exception(Unavailable())
            return done
        if self._idle.is_set():
            self._idle.clear()
            loop.call_soon(self._begin)  # what else comes in this turn goes along
        self._calls.append(_Call(work, size, alone, done))
        self._bytes += size
        return done

    async def close(self) -> bool:
        """Write what waits and close the store; False if that took too long."""
        self._closed = True
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._idle.wait()
                await loop.run_in_executor(self._thread, self._store.close)
        except TimeoutError:
            logger.warning("The file was not closed: %s", STUCK)
            calls = list(self._calls)
            self._calls.clear()
            self._refuse(calls, None)
            return False
        finally:
            self._thread.shutdown(wait=False)
        return True

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        calls = self._next_calls()
        works = [call.work for call in calls]
        self._since = loop.time()
        committing = loop.run_in_executor(self._thread, self._store.commit, works)
        committing.add_done_callback(partial(self._ended, calls))

    def _next_calls(self) -> list[_Call]:
        calls = [self._calls.popleft()]
        size = calls[0].size
        while (
            self._calls
            and not (calls[0].alone or self._calls[0].alone)
            and len(calls) < _BATCH_CALLS
            and size < _BATCH_BYTES
        ):
            calls.append(self._calls.popleft())
            size += calls[-1].size
        self._bytes -= size
        return calls

    def _ended(self, calls: list[_Call], committing: asyncio.Future[Commit]) -> None:
        self._since = None
        if self._calls:
            self._begin()
        else:
            self._idle.set()
        try:
            commit = committing.result()
        except sqlite3.Error as error:
            self._failed(calls, reason_of(error), error)
        except Exception as error:
            logger.exception("A transaction failed by an error of its own; please report it")
            self._failed(calls, "an internal error", error)
        else:
            self._committed(calls, commit)

    def _committed(self, calls: list[_Call], commit: Commit) -> None:
        for call, outcome in zip(calls, commit.outcomes, strict=True):
            if call.done.done():
                continue  # who asked was cancelled
            if isinstance(outcome, Exception):
                call.done.set_exception(outcome)
            else:
                call.done.set_result(outcome)
        self._hearer.committed(commit.news)

    def _failed(self, calls: list[_Call], reason: str, error: Exception) -> None:
        logger.debug("A transaction failed: %s", error)
        self._refuse(calls, error)
        self._hearer.failed(reason, sum(call.size for call in calls))

    def _refuse(self, calls: list[_Call], error: Exception | None) -> None:
        for call in calls:
            if not call.done.done():
                refusal = Unavailable()
                refusal.__cause__ = error
                call.done.set_exception(refusal)
