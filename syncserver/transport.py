"""What a session needs of the socket behind it."""

from __future__ import annotations

from typing import Protocol

from syncserver.protocols import base as wire


class Transport(Protocol):
    """Moves the frames of one session."""

    def write(self, run: wire.Run) -> bool:
        """Send frames; False if some are still to go, ``Session.drained`` is called then."""

    def close(self, code: int, reason: str) -> None:
        """Close the socket after what was written; abort it if the peer does not read."""

    def held(self) -> dict[int, int] | None:
        """Return the sizes of what has not left, by what it is; None: all is its own."""
