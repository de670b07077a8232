"""The end of a daemon in order: calls are finished, and all clients hear where to go.

1. Who is new is refused (``ServiceRegistry.draining``); calls under way have half of the time.
2. All sessions are closed with 4001 and a time to come again.
3. It is over when all sockets are closed and nothing is passed on to other processes, or when
   the time is up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from syncserver.doors import Door
from syncserver.errors import CloseCode
from syncserver.handlers.sockjs_relay import Siblings
from syncserver.registry import ServiceRegistry

_CLOSED_PER_SLICE = 200
_RECONNECTS_PER_SECOND = 500
_LOOK_SECONDS = 0.02


class Drain:
    """The end of one process.

    :param door: of the frontend.
    :param siblings: the processes that share the addresses, if there are others.
    """

    def __init__(
        self,
        frontend: ServiceRegistry,
        backend: ServiceRegistry,
        door: Door,
        siblings: Siblings | None,
    ) -> None:
        self._frontend = frontend
        self._backend = backend
        self._door = door
        self._siblings = siblings

    async def run(self, seconds: float) -> None:
        """Do it within so many seconds.

        Half of them are the clients': a call that takes all it may does not keep them
        from hearing where to go.
        """
        begin = asyncio.get_running_loop().time()
        self._frontend.draining = self._backend.draining = True
        self._door.stop()
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

    def _is_left(self) -> bool:
        """Tell whether nobody is connected any more, here or to what is passed on."""
        relays = 0 if self._siblings is None else self._siblings.relays
        return not self._frontend.sockets and not relays

    async def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while not condition() and loop.time() < deadline:  # noqa: ASYNC110  # once in a life
            await asyncio.sleep(_LOOK_SECONDS)
