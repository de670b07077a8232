"""A WebSocket without a socket: the real connection and session, whose bytes are in memory."""

from __future__ import annotations

from syncserver.handlers.connection import Connection, Terms


class MemoryConnection(Connection):
    """Keeps what it sends: what the peer has, and what waits while it is ``stalled``.

    :ivar sent: what the peer has been sent.
    :ivar gone: whether the socket is closed.
    """

    __slots__ = ("gone", "queue", "sent", "stalled")

    def __init__(self, terms: Terms) -> None:
        self.sent = bytearray()
        self.queue = bytearray()
        self.stalled = self.gone = False
        super().__init__(terms, "peer")

    def feed(self, data: bytes) -> None:
        """Let the peer send bytes."""
        if not self.gone:
            self._received(data)

    def cut(self) -> None:
        """Let the socket be lost, with what waits."""
        self._lost()

    def resume(self) -> None:
        """Let the peer read again."""
        self.stalled = False
        waited = bool(self.queue)
        self.sent += self.queue
        self.queue.clear()
        if waited and not self.gone:
            self._left()

    @property
    def _waits(self) -> bool:
        return bool(self.queue)

    def _send(self, data: bytes) -> bool:
        if self.gone:
            return True
        if self.stalled or self.queue:
            self.queue += data
            return False
        self.sent += data
        return True

    def _drop(self) -> None:
        self.gone = True
