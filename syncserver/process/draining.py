"""The end of a daemon in order: calls are finished, and all clients hear where to go.

1. Who is new is refused (``ServiceRegistry.draining``); calls under way have half of the time.
2. All sessions are closed with 4001 and a time to come again.
3. Connections are taken all the while for those who poll, who may need one to ask what there is;
   when all of them were told, here and in the other processes that end, nobody gets in any more.
4. It is over when all sockets are closed and nothing is passed on to other processes, or when
   the time is up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from syncserver.doors import Door
from syncserver.errors import CloseCode
from syncserver.handlers.sockjs_table import Sessions
from syncserver.registry import ServiceRegistry
from syncserver.siblings import Siblings

_CLOSED_PER_SLICE = 200
_RECONNECTS_PER_SECOND = 500
_LOOK_SECONDS = 0.02


class Drain:
    """The end of one process.

    :param door: of the frontend.
    :param tables: the sessions of those who poll.
    :param siblings: the processes that share the addresses, if there are others.
    """

    def __init__(
        self,
        frontend: ServiceRegistry,
        backend: ServiceRegistry,
        door: Door,
        tables: Sequence[Sessions],
        siblings: Siblings | None,
    ) -> None:
        self._frontend = frontend
        self._backend = backend
        self._door = door
        self._tables = tables
        self._siblings = siblings
        self._is_shut = False

    async def run(self, seconds: float) -> None:
        """Do it within so many seconds.

        Half of them are the clients': a call that takes all it may does not keep them
        from hearing where to go.
        """
        begin = asyncio.get_running_loop().time()
        self._frontend.draining = self._backend.draining = True
        if self._siblings is not None:
            self._siblings.begin_telling()
        await self._until(lambda: not self._backend.calls_under_way, begin + seconds / 2)
        await self._send_away()
        await self._until(self._is_left, begin + seconds)

    async def _send_away(self) -> None:
        """Close all sessions, and spread their return."""
        sessions = list(self._frontend.sessions)
        spread_ms = 1000 * max(1, len(sessions) // _RECONNECTS_PER_SECOND)
        for number, session in enumerate(sessions):
            wait = random.randrange(spread_ms)  # noqa: S311  # spreads load, guards nothing
            session.close(CloseCode.DRAIN, f'{{"retry_after": {wait}}}')
            if number % _CLOSED_PER_SLICE == _CLOSED_PER_SLICE - 1:
                await asyncio.sleep(0)

    def _shut_when_told(self) -> None:
        """Take no more connections when nobody needs one to hear of the end."""
        if self._is_shut or any(table.untold for table in self._tables):
            return
        if self._siblings is not None:
            self._siblings.told()
            if not self._siblings.all_told():
                return
        self._door.stop()
        self._is_shut = True

    def _is_left(self) -> bool:
        """Tell whether nobody is connected any more, here or to what is passed on."""
        relays = 0 if self._siblings is None else self._siblings.relays
        return self._is_shut and not self._frontend.sockets and not relays

    async def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        self._shut_when_told()
        while not condition() and loop.time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
            self._shut_when_told()
