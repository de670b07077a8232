"""Where the polling sessions of SockJS are kept."""

from __future__ import annotations

from collections.abc import Callable

from syncserver.handlers.sockjs_session import PollingSession
from syncserver.protocols.base import Protocol
from syncserver.registry import ServiceRegistry
from syncserver.timers import Wheel


class Sessions:
    """The polling sessions of one place, found by the id that their clients chose.

    :ivar untold: how many clients are to be told something yet, if only the end.
    """

    def __init__(
        self, registry: ServiceRegistry, protocol: Callable[[], Protocol], wheel: Wheel
    ) -> None:
        self._registry = registry
        self._protocol = protocol
        self._wheel = wheel
        self._sessions: dict[str, PollingSession] = {}
        self.untold = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, session_id: str, origin: str | None) -> PollingSession | None:
        """Return a session; one that was opened by a page of another origin is not there."""
        found = self._sessions.get(session_id)
        if found is None or (origin and found.origin and origin != found.origin):
            return None
        return found

    def is_taken(self, session_id: str) -> bool:
        """Tell whether an id stands for a session of whatever origin."""
        return session_id in self._sessions

    def refusal(self, address: str) -> str | None:
        """Return why no session may be opened for an address now, in a word; None: it may."""
        if self._registry.refusal:
            return self._registry.refusal
        if len(self._sessions) >= self._registry.limits.max_polling_sessions:
            return "connections"
        return None if self._registry.admits(address) else "address"

    def open(self, session_id: str, origin: str | None, address: str) -> PollingSession:
        """Open a session, to which nothing is against."""
        limits = self._registry.limits

        def told() -> None:
            self._registry.sockets -= 1
            self.untold -= 1

        def gone() -> None:
            del self._sessions[session_id]

        self._registry.sockets += 1
        self.untold += 1
        polling = PollingSession(limits, self._wheel, origin, told=told, gone=gone)
        self._sessions[session_id] = polling
        polling.session = self._registry.connect(
            self._protocol(), polling, remote_address=address, via="sockjs_http"
        )
        return polling

    def close(self) -> None:
        """Forget all sessions."""
        for polling in tuple(self._sessions.values()):
            polling.forget()
