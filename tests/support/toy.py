"""A wire protocol with state for each session, as DDP's merge box will be.

Every text that a session is sent begins with its number, so that a core which
shares what is not to be shared, or leaves out a session, is found out.
"""

from __future__ import annotations

from typing import Any

from syncserver.protocols.base import (
    Acquired,
    Change,
    Command,
    Event,
    Message,
    Protocol,
    Reply,
)
from syncserver.protocols.native import NativeProtocol


class ToyProtocol(Protocol):
    """``NUMBER|ENVELOPE``."""

    shared = False

    def __init__(self) -> None:
        self._native = NativeProtocol()
        self._sent = 0

    def receive(self, text: str | bytes) -> list[Message | Command]:
        return self._native.receive(text)

    def encode(self, event: Event) -> tuple[bytes, ...]:
        texts = []
        for text in self._native.encode(event):
            self._sent += 1
            texts.append(b"%d|%b" % (self._sent, text))
        return tuple(texts)


class FailingProtocol(ToyProtocol):
    """The same, with a state in which it can tell nothing that others are told too."""

    able: tuple[type[Any], ...] = (Acquired, Reply)

    def encode(self, event: Event) -> tuple[bytes, ...]:
        if not isinstance(event, self.able):
            raise RuntimeError("a state of its own that is wrong")
        return super().encode(event)


class FailingBesides(FailingProtocol):
    """One that can tell changes as well."""

    able = (*FailingProtocol.able, Change)
