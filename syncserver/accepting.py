"""How connections are taken from a listening socket: some in each turn of the loop.

When thousands of clients come back at once, the kernel keeps them in its backlog, and those who
are connected are served between them. Where there is no descriptor left for another, the socket
is left alone for a while; a loop that asks again at once would do nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from syncserver.bucket import Bucket

logger = logging.getLogger("syncserver.server")

BACKLOG = 4096
_PER_TURN = 16
_REST_SECONDS = 0.5
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Acceptor:
    """Takes the connections of one socket, until it is closed.

    :param take: is given each connection and the address of its peer.
    :param pace: how fast; what comes faster waits in the backlog.
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
            except ConnectionAbortedError:
                continue  # it came and went
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                logger.warning("Cannot take connections for a moment: %s", error.strerror)
                self._rest_for(_REST_SECONDS)
                return
            connection.setblocking(False)
            self._take(connection, address)
            if self._pace is not None and not self._pace.take():
                self._rest_for(self._pace.wait_seconds)
                return

    def _rest_for(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._rest = self._loop.call_later(
            seconds, self._loop.add_reader, self._listening, self._ready
        )
