"""Appends: the entries of one flight are one script call for each stream."""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from syncserver.config import Limits
from syncserver.engines.redis_flights import Flights
from syncserver.engines.redis_link import Command, Links, invocation, unavailable
from syncserver.engines.redis_scripts import APPEND
from syncserver.errors import IdempotencyConflict, Unavailable
from syncserver.position import Position

_MAX_FLIGHT_BYTES = 4 * 1024 * 1024
_MAX_CALL_BYTES = 1024 * 1024
_MAX_CALL_ENTRIES = 500
_MAX_FLIGHTS = 2
_ENTRY_OVERHEAD_BYTES = 300
_CALL_MS = 120_000
_LONGEST_MS = 10**12


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


class _Append(NamedTuple):
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
        self._flights = Flights(self._fly, max_flights=_MAX_FLIGHTS, max_bytes=_MAX_FLIGHT_BYTES)

    async def append(self, stream: str, data: bytes, key: str | None) -> Position:
        """Append one entry; a caller that is cancelled may still find it in the log."""
        answer = asyncio.get_running_loop().create_future()
        position: Position = await self._flights.ask(_Append(stream, data, key, answer))
        return position

    async def close(self) -> None:
        """Give up what waits and what is on its way."""
        await self._flights.close()

    async def _fly(self, appends: list[_Append]) -> list[Position | Exception]:
        """Make a script call of each stream's entries, or several where it is much."""
        streams: dict[str, list[int]] = {}
        for number, one in enumerate(appends):
            streams.setdefault(one.stream, []).append(number)
        parts = [part for numbers in streams.values() for part in _parts(appends, numbers)]
        calls = [self._invocation([appends[number] for number in part]) for part in parts]
        places: dict[int, Position | Exception] = {}
        for part, answer in zip(parts, await self._links.call_all(calls), strict=True):
            places.update(zip(part, _places(answer, len(part)), strict=True))
        return [places[number] for number in range(len(appends))]

    def _invocation(self, call: list[_Append]) -> Command:
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


def _parts(appends: Sequence[_Append], numbers: Iterable[int]) -> Iterator[list[int]]:
    part: list[int] = []
    size = 0
    for number in numbers:
        more = appends[number].size
        if part and (size + more > _MAX_CALL_BYTES or len(part) == _MAX_CALL_ENTRIES):
            yield part
            part, size = [], 0
        part.append(number)
        size += more
    yield part


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
