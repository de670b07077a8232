"""Whom services answer, and what the log calls it."""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from typing import Any

from syncserver.protocols import base as wire

numbers = itertools.count(1)
"""Of the connections of this process."""


class Client(ABC):
    """Whom services answer: a connected session, or the one call of a backend."""

    identity: Any = None
    """Who the client is, as a grant or a service of the application says (any JSON)."""
    idempotency_key: str | None = None
    """The key that the call of a backend came with."""
    remote_address: str = ""
    number: int = 0
    open: bool = True
    """False as soon as nothing that is told can reach the peer any more."""

    @property
    def connection_id(self) -> str:
        """What the log calls the connection: the process, and a number that it counts."""
        return f"{os.getpid():x}-{self.number:x}" if self.number else ""

    def __str__(self) -> str:
        return f"{self.remote_address} (connection {self.connection_id})"

    def may(self, operation: str | None) -> bool:
        """Tell whether the client may call what is for an operation; None: for nothing named."""
        return True

    @abstractmethod
    def tell(self, event: wire.Event) -> None:
        """Send one event; ValueError if JSON cannot carry it."""

    def send(self, message: dict[str, Any]) -> None:
        """Send an envelope ``{"service": ..., "message": ...}``."""
        self.tell(wire.Notification(message["service"], message["message"]))
