"""Several processes on one port: who owns a polling session, and who is still ending.

The owner of a session is a function of its id, so that nobody has to be asked. Each process
listens on a private Unix socket, where the others reach it (``handlers.sockjs_relay``).

A client comes in at any of them. So a process that ends lets clients in until the others that
end have nobody left to tell either. What says so is a lock on a file: it goes with whoever
holds it, also when that process falls.
"""

from __future__ import annotations

import fcntl
import os
import sys
import zlib
from pathlib import Path

from syncserver.admission.gate import Seats


class Siblings:
    """The processes that share a port.

    :param folder: a directory that nobody else may enter, where their sockets are.
    :param number: of this process, from 0.
    """

    def __init__(self, folder: str | Path, number: int, count: int) -> None:
        self.number = number
        self.count = count
        self.seats = Seats(sys.maxsize)  # until a server has some
        self.relays = 0  # under way
        self._folder = Path(folder)
        self._lock = -1

    def owner(self, session_id: str) -> int:
        """Return the number of the process that has a session, or would have it."""
        return zlib.crc32(session_id.encode("utf-8", "surrogatepass")) % self.count

    def path(self, number: int) -> str:
        """Return the path of the private socket of a process."""
        return str(self._folder / f"{number}.sock")

    def open(self) -> None:
        """Get ready to end one day; OSError: no descriptor is left."""
        self._lock = os.open(self._folder / "telling", os.O_RDWR | os.O_CREAT, 0o600)

    def begin_telling(self) -> None:
        """Have clients to tell that this process ends, until ``told``."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # which nobody holds alone for longer than a moment

    def told(self) -> None:
        """Have nobody left to tell."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def all_told(self) -> bool:
        """Tell whether none of the processes that end has anybody left to tell, once ``told``."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        """Let go of what was opened."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
