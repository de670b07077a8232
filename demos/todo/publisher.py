"""Posts what is in the outbox, in order, for as long as it takes."""

from __future__ import annotations

import logging
import sqlite3
import threading

from syncserver_client import (
    Backend,
    BackendError,
    BadRequest,
    CallError,
    EncodingError,
    IdempotencyConflict,
    TooLarge,
)

from demos.todo.database import MODEL, Batch, Database

log = logging.getLogger("demos.todo.publisher")

LOOK_SECONDS = 1.0
"""How often the outbox is looked at unasked: another process may have written to it."""
RETRY_SECONDS = 0.25
MAX_RETRY_SECONDS = 2.0

REFUSALS = (BadRequest, CallError, EncodingError, IdempotencyConflict, TooLarge)
"""Answers that would come again: the batch itself is at fault."""


class Publisher(threading.Thread):
    """A thread that empties the outbox into the daemon.

    A batch is forgotten when the daemon has answered, not before. If this process dies in
    between, the batch is posted again by the next one under the same idempotency key, and
    counts once.
    """

    def __init__(self, database: Database, backend: Backend) -> None:
        super().__init__(name="publisher", daemon=True)
        self._database = database
        self._backend = backend
        self._something = threading.Event()
        self._stopping = threading.Event()
        self._failures = 0

    def wake(self) -> None:
        """Say that there is something in the outbox."""
        self._something.set()

    def stop(self, seconds: float) -> None:
        """Post what is left, if the daemon takes it, and end; wait no longer than that."""
        self._stopping.set()
        self._something.set()
        self.join(seconds)

    def run(self) -> None:
        """Post batch after batch until told to stop."""
        while True:
            try:
                batch = self._database.next_batch()
                if batch is not None:
                    self._post(batch)
                    self._database.forget(batch)
            except (BackendError, sqlite3.OperationalError) as error:
                if self._failed(error):
                    return
                continue
            self._worked()
            if batch is None:
                if self._stopping.is_set():
                    return
                self._something.wait(LOOK_SECONDS)
                self._something.clear()

    def _post(self, batch: Batch) -> None:
        try:
            self._backend.publish(batch.deltas, idempotency_key=batch.key)
        except REFUSALS:
            # Never the case while database.py is right. Pages must not stay wrong even so.
            log.exception("The daemon refuses batch %s; pages fetch again", batch.number)
            self._backend.request_refetch(model=MODEL)

    def _failed(self, error: Exception) -> bool:
        """Wait before the next try; true when there is to be none."""
        if not self._failures:
            log.warning("Nothing can be published, changes wait in the outbox: %s", error)
        wait = min(RETRY_SECONDS * 2**self._failures, MAX_RETRY_SECONDS)
        self._failures += 1
        return self._stopping.wait(wait)

    def _worked(self) -> None:
        if self._failures:
            log.warning("Publishing again")
        self._failures = 0
