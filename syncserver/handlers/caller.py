"""Who makes a call over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from syncserver.apikeys import ApiKey
from syncserver.client import Client
from syncserver.errors import Unavailable
from syncserver.protocols.base import Event
from syncserver.protocols.native import NativeProtocol

logger = logging.getLogger("syncserver.backend")


class BackendClient(Client):
    """The caller of one call; the first thing that it is told is its answer."""

    def __init__(
        self,
        remote_address: str,
        idempotency_key: str | None,
        key: ApiKey | None = None,
        on_answer: Callable[[Event, bytes], None] | None = None,
        *,
        scarce: bool = False,
    ) -> None:
        self.remote_address = remote_address
        self.idempotency_key = idempotency_key
        self._key = key
        self._on_answer = on_answer
        self._scarce = scarce
        self.answer: asyncio.Future[tuple[Event, bytes]] = (
            asyncio.get_running_loop().create_future()
        )

    def __str__(self) -> str:
        return self.remote_address

    def may(self, operation: str | None) -> bool:
        """Tell whether the caller's key is for an operation.

        Unavailable while memory is scarce, and it would make something to be kept.
        """
        if self._scarce and operation == "authorize":
            raise Unavailable("Memory is scarce; try again later")
        if self._key is None or self._key.allows(operation):
            return True
        logger.info("Refused %s: its key %s is not for this", self, self._key.id)
        return False

    def tell(self, event: Event) -> None:
        """Answer the call; what comes after the answer is dropped."""
        body = NativeProtocol().encode(event)[0]
        if self.answer.done():
            return
        self.open = False
        self.answer.set_result((event, body))
        if self._on_answer is not None:
            self._on_answer(event, body)
