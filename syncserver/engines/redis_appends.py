"""Appends, gathered: what is asked for within one turn of the loop goes to Redis as one.

While one flight is on its way the next gathers. Streams are apart: each has a script
call of its own, several where it is much.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from syncserver.config import Limits
from syncserver.engines.redis_link import Command, Links, invocation, unavailable
from syncserver.engines.redis_scripts import APPEND
from syncserver.errors import IdempotencyConflict, Unavailable
from syncserver.position import Position

_MAX_WAITING_BYTES = 32 * 1024 * 1024
_MAX_FLIGHT_BYTES = 4 * 1024 * 1024
_MAX_CALL_BYTES = 1024 * 1024
_MAX_CALL_ENTRIES = 500
_MAX_FLIGHTS = 2
_ENTRY_OVERHEAD_BYTES = 300
_CALL_MS = 120_000
_LONGEST_MS = 10**12
_CLOSED = "The engine was closed"


class Keys:
    """The names of the keys of one engine, and what scripts that append are told first."""

    def __init__(self, prefix: str, limits: Limits) -> None:
        self._prefix = prefix
        self._retention = (
            limits.retention_entries,
            limits.retention_bytes,
            milliseconds(limits.retention_seconds),
        )
        self.idempotency_ms = milliseconds(limits.idempotency_seconds)

    def retention(self) -> tuple[Any, ...]:
        """Return the first arguments of scripts that may begin a log or append to it."""
        return (self._prefix, Position.start().epoch, *self._retention)

    def key(self, kind: str, *names: str) -> str:
        """Return the name of a key; only the last of ``names`` may have a colon."""
        return f"{self._prefix}{kind}:{':'.join(names)}"


def milliseconds(seconds: float) -> int:
    """Return a time as Redis takes it; 0 stays 0."""
    return min(math.ceil(seconds * 1000), _LONGEST_MS)


def quoted(stream: str) -> str:
    """Return the name of a stream as it stands in keys."""
    return quote(stream, safe="")


def new_mark() -> str:
    """Return the mark of a new entry."""
    return secrets.token_hex(4)


class _Waiting(NamedTuple):
    stream: str
    data: bytes
    key: str | None
    answer: asyncio.Future[Position]

    @property
    def size(self) -> int:
        return len(self.data) + _ENTRY_OVERHEAD_BYTES


class Appends:
    """Sends entries to their logs, and hands the positions back."""

    def __init__(self, links: Links, keys: Keys) -> None:
        self._links = links
        self._keys = keys
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._armed = False
        self._flights: set[asyncio.Task[None]] = set()

    async def append(self, stream: str, data: bytes, key: str | None) -> Position:
        """Append one entry; a caller that is cancelled may still find it in the log."""
        one = _Waiting(stream, data, key, asyncio.get_running_loop().create_future())
        if self._waiting and self._waiting_bytes + one.size > _MAX_WAITING_BYTES:
            raise Unavailable("Too much waits for Redis")
        self._waiting.append(one)
        self._waiting_bytes += one.size
        self._arm()
        return await one.answer

    async def close(self) -> None:
        """Give up what waits and what is on its way."""
        _settle(list(self._waiting), Unavailable(_CLOSED))
        self._waiting.clear()
        flights = tuple(self._flights)
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _arm(self) -> None:
        if self._waiting and not self._armed and len(self._flights) < _MAX_FLIGHTS:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._armed = False
        if not self._waiting:
            return
        flight = asyncio.ensure_future(self._fly(list(self._load())))
        self._flights.add(flight)
        flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        self._arm()

    def _load(self) -> Iterator[list[_Waiting]]:
        """Take as much as may fly at once, in parts that are one script call each."""
        size = 0
        streams: dict[str, list[_Waiting]] = {}
        while self._waiting and (not size or size + self._waiting[0].size <= _MAX_FLIGHT_BYTES):
            one = self._waiting.popleft()
            self._waiting_bytes -= one.size
            size += one.size
            streams.setdefault(one.stream, []).append(one)
        for entries in streams.values():
            yield from _parts(entries)

    async def _fly(self, calls: list[list[_Waiting]]) -> None:
        answers: list[Any] = [Unavailable(_CLOSED)] * len(calls)
        try:
            answers = await self._links.call_all([self._invocation(call) for call in calls])
        except Unavailable as error:
            answers = [error] * len(calls)
        finally:
            for call, answer in zip(calls, answers, strict=True):
                _settle(call, answer)

    def _invocation(self, call: list[_Waiting]) -> Command:
        stream = quoted(call[0].stream)
        keys = [self._keys.key("a", secrets.token_hex(8))]
        arguments = [stream, self._keys.idempotency_ms, _CALL_MS]
        for one in call:
            digest = ""
            if one.key is not None:
                keys.append(self._keys.key("i", stream, one.key))
                digest = hashlib.sha256(one.data).hexdigest()
            arguments += [new_mark(), digest, one.data]
        return invocation(APPEND, keys, *self._keys.retention(), *arguments)


def _parts(entries: list[_Waiting]) -> Iterator[list[_Waiting]]:
    part: list[_Waiting] = []
    size = 0
    for one in entries:
        if part and (size + one.size > _MAX_CALL_BYTES or len(part) == _MAX_CALL_ENTRIES):
            yield part
            part, size = [], 0
        part.append(one)
        size += one.size
    yield part


def _settle(call: list[_Waiting], answer: Any) -> None:
    """Hand the answer of one script call to those who wait for it."""
    places = _places(answer, len(call))
    for one, place in zip(call, places, strict=True):
        if one.answer.done():
            continue  # its caller went away
        if isinstance(place, Position):
            one.answer.set_result(place)
        else:
            one.answer.set_exception(place)


def _places(answer: Any, count: int) -> list[Position | Exception]:
    said = "Redis answers what syncserver does not know"
    match answer:
        case bytes():
            try:
                places = [_place(text) for text in answer.decode("ascii").split(" ")]
            except ValueError:
                places = []
            if len(places) == count:
                return places
        case Exception():
            said = str(answer if isinstance(answer, Unavailable) else unavailable(answer))
    return [Unavailable(said) for _ in range(count)]


def _place(text: str) -> Position | Exception:
    return IdempotencyConflict() if text == "!" else Position.parse(text)
