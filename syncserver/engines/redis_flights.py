"""What is asked of Redis within one turn of the loop goes there as one flight.

While some flights are on their way the next gathers, so that many callers cost few
round trips, and a caller waits in a queue that is bounded in bytes, not for a connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from syncserver.engines.redis_link import Command, Links, invocation, unavailable
from syncserver.engines.redis_scripts import Script
from syncserver.errors import Unavailable

_MAX_WAITING_BYTES = 32 * 1024 * 1024
_CALL_BYTES = 1024
_MAX_CALLS = 256
_MAX_CALL_FLIGHTS = 4


class Waiting(Protocol):
    """What somebody asks for: how much it is, and where the answer goes."""

    @property
    def size(self) -> int:
        """Return the bytes that it counts for."""

    @property
    def answer(self) -> asyncio.Future[Any]:
        """Return what the asker waits for."""


T = TypeVar("T", bound=Waiting)


class Flights(Generic[T]):
    """Gathers and sends.

    :param fly: sends some and returns an answer, or an error, for each.
    :param max_flights: how many may be on their way at once, ``max_bytes`` how much each holds.
    """

    def __init__(
        self,
        fly: Callable[[list[T]], Awaitable[Sequence[Any]]],
        *,
        max_flights: int,
        max_bytes: int,
    ) -> None:
        self._fly = fly
        self._max_flights = max_flights
        self._max_bytes = max_bytes
        self._waiting: deque[T] = deque()
        self._waiting_bytes = 0
        self._armed = False
        self._flights: set[asyncio.Task[None]] = set()

    async def ask(self, one: T) -> Any:
        """Return the answer; an asker that is cancelled may still have been heard."""
        if self._waiting and self._waiting_bytes + one.size > _MAX_WAITING_BYTES:
            raise Unavailable("Too much waits for Redis")
        self._waiting.append(one)
        self._waiting_bytes += one.size
        self._arm()
        return await one.answer

    async def close(self) -> None:
        """Give up what waits and what is on its way."""
        self._give_up(Unavailable("The engine was closed"))
        flights = tuple(self._flights)
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _give_up(self, error: Unavailable) -> None:
        """Refuse what waits: Redis is out of reach, and each flight would find it out anew."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        settle(waiting, [error] * len(waiting))

    def _arm(self) -> None:
        if self._waiting and not self._armed and len(self._flights) < self._max_flights:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._armed = False
        some = self._load()
        if some:  # what is left over goes when this or another flight has landed
            flight = asyncio.ensure_future(self._settled(some))
            self._flights.add(flight)
            flight.add_done_callback(self._landed)

    def _load(self) -> list[T]:
        """Take as much as may fly at once."""
        some: list[T] = []
        size = 0
        while self._waiting and (not some or size + self._waiting[0].size <= self._max_bytes):
            one = self._waiting.popleft()
            size += one.size
            if not one.answer.done():  # its asker is still there
                some.append(one)
        self._waiting_bytes -= size
        return some

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        self._arm()

    async def _settled(self, some: list[T]) -> None:
        answers: Sequence[Any] = [Unavailable("The engine was closed")] * len(some)
        try:
            answers = await self._fly(some)
        except Unavailable as error:
            answers = [error] * len(some)
            self._give_up(error)
        finally:
            settle(some, answers)


def settle(some: Collection[Waiting], answers: Sequence[Any]) -> None:
    """Hand out answers; an exception is raised where it is waited for."""
    for one, answer in zip(some, answers, strict=True):
        if one.answer.done():
            continue  # its asker went away
        if isinstance(answer, Unavailable):  # one for each, or their tracebacks grow together
            one.answer.set_exception(Unavailable(str(answer)))
        elif isinstance(answer, Exception):
            one.answer.set_exception(answer)
        else:
            one.answer.set_result(answer)


class _Call(NamedTuple):
    command: Command
    answer: asyncio.Future[Any]
    size: int


class Calls:
    """Calls scripts, those of one turn together."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._flights = Flights(
            self._fly, max_flights=_MAX_CALL_FLIGHTS, max_bytes=_MAX_CALLS * _CALL_BYTES
        )

    async def call(self, script: Script, keys: Sequence[str], *arguments: Any) -> Any:
        """Return what a script returns; Unavailable if it failed."""
        command = invocation(script, keys, *arguments)
        size = _CALL_BYTES + sum(len(one) for one in arguments if isinstance(one, bytes))
        answer = asyncio.get_running_loop().create_future()
        return await self._flights.ask(_Call(command, answer, size))

    async def close(self) -> None:
        """Give up what waits and what is on its way."""
        await self._flights.close()

    async def _fly(self, calls: list[_Call]) -> list[Any]:
        answers = await self._links.call_all([call.command for call in calls])
        return [
            unavailable(answer) if isinstance(answer, Exception) else answer for answer in answers
        ]
