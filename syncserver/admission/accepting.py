"""How connections are taken from a listening socket: some in each turn of the loop.

When thousands of clients come back at once, the kernel keeps them in its backlog, and those who
are connected are served between them. Where there is no descriptor left for another, or whatever
else keeps all from being taken, the socket is left alone for a while; a loop that asks again at
once would do nothing else. What is wrong with one connection is no reason to leave the others.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from syncserver.admission.bucket import Bucket

logger = logging.getLogger("syncserver.server")

BACKLOG = 4096
_PER_TURN = 16
_REST_SECONDS = 0.5
# What Linux says of the connection that would have been taken, not of the socket.
_GONE = {
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EPROTO,
    errno.ETIMEDOUT,
}


class Acceptor:
    """Takes the connections of one socket, until it is closed.

    :param take: is given each connection and the address of its peer.
    :param pace: how fast; what comes faster waits in the backlog.
    :ivar failures: how often there was an error in place of a connection.
    """

    def __init__(
        self,
        listening: socket.socket,
        take: Callable[[socket.socket, Any], None],
        pace: Bucket | None = None,
    ) -> None:
        self._listening = listening
        self._take = take
        self._pace = pace
        self.failures = 0
        self._in_a_row = 0
        self._trouble: int | None = None
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        self._loop.add_reader(listening, self._ready)

    def close(self) -> None:
        """Take no more."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()

    def _ready(self) -> None:
        for _ in range(_PER_TURN):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if self._must_rest(error):
                    self._rest_for(_REST_SECONDS)
                    return
                continue
            self._in_a_row, self._trouble = 0, None
            connection.setblocking(False)
            self._take(connection, address)
            if self._pace is not None and not self._pace.take():
                self._rest_for(self._pace.wait_seconds)
                return

    def _must_rest(self, error: OSError) -> bool:
        """Count an error, and tell whether the next connection is to be left for a while."""
        self.failures += 1
        self._in_a_row += 1
        if error.errno in _GONE and self._in_a_row < _PER_TURN:
            logger.info("A connection was gone before it was taken: %s", error.strerror)
            return False
        if error.errno != self._trouble:
            self._trouble = error.errno
            logger.warning("Cannot take connections for a moment: %s", error.strerror)
        return True

    def _rest_for(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._rest = self._loop.call_later(
            seconds, self._loop.add_reader, self._listening, self._ready
        )
