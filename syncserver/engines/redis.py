"""The engine of many nodes: logs and grants in one Redis or Valkey that all of them share.

Whatever changes a log or a grant is one Lua script (``redis_scripts``, ``redis_grants``), so
that it is done whole or not at all, and in one order for all nodes. Scripts may be called
twice: what failed on its way is tried once more, and after that it is in doubt and
Unavailable is raised.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from redis.exceptions import NoPermissionError

from syncserver.config import Limits
from syncserver.engines.base import (
    GRANT_COST_BYTES,
    Engine,
    Entry,
    Grant,
    GrantHeld,
    GrantMissing,
    GrantRevoked,
    Listener,
    Taken,
    cost_of,
    revoked_notice,
    taken_notice,
)
from syncserver.engines.redis_appends import Appends, Keys, milliseconds, new_mark, quoted
from syncserver.engines.redis_flights import Calls
from syncserver.engines.redis_grants import DROPPED_AT_ONCE, PUT, RELEASE, RENEW, REVOKE, TAKE
from syncserver.engines.redis_link import Links, unavailable
from syncserver.engines.redis_nodes import Nodes
from syncserver.engines.redis_reader import Reader, chained
from syncserver.engines.redis_scripts import HEAD, READ, SINCE
from syncserver.errors import PositionLost, RefetchReason, TooManyGrants, Unavailable
from syncserver.position import Position

logger = logging.getLogger("syncserver.engine")

_READ_BYTES = 1024 * 1024
_FOLLOW_ENTRIES = 256
_RENEW_TOKENS = 500
_START_SECONDS = 5.0
_OLDEST = (6, 2)
_LOST = (b"epoch", b"rollback", b"trimmed", b"fork")
_STRANGE = "Redis answers what syncserver does not know"


class RedisEngine(Engine):
    """Keep everything in Redis, under keys that begin with ``{prefix}:``.

    :param url: ``redis://``, ``rediss://`` or ``unix://``, with the options ``prefix``,
        ``timeout_seconds``, ``db`` and ``ssl_...``; ConfigError if it is none.
    """

    shared = True

    def __init__(self, limits: Limits | None, url: str) -> None:
        self._links = Links(url)
        self._limits = limits or Limits()
        self._keys = Keys(self._links.prefix, self._limits)
        self._calls = Calls(self._links)
        self._appends = Appends(self._links, self._keys)
        self._nodes = Nodes(self._calls, self._keys.key("n", "settings"))
        self._readers: dict[str, Reader] = {}

    async def open(self) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                (info,) = await self._links.ask([("INFO",)])
        except TimeoutError:
            raise Unavailable("Redis does not answer in time") from None
        if isinstance(info, NoPermissionError):
            return  # whoever gave the user so few rights knows that server
        if isinstance(info, Exception):
            raise unavailable(info)
        if not isinstance(info, bytes):
            raise Unavailable(_STRANGE)
        _look_at(dict(re.findall(r"(?m)^([a-z_]+):(.*?)\r?$", info.decode("utf-8", "replace"))))

    async def append(
        self, stream: str, data: bytes, *, idempotency_key: str | None = None
    ) -> Position:
        position = await self._appends.append(stream, data, idempotency_key)
        if stream in self._readers:
            self._readers[stream].acknowledged(position)
        return position

    async def head(self, stream: str) -> Position:
        return await self._head(stream)

    async def since(self, stream: str, seconds: float) -> Position:
        keys = [self._keys.key(kind, quoted(stream)) for kind in "mls"]
        found = await self._calls.call(SINCE, keys, milliseconds(seconds))
        return await self.head(stream) if found is None else _position(found)

    async def read(self, stream: str, after: Position, limit: int) -> list[Entry]:
        keys = [self._keys.key(kind, quoted(stream)) for kind in "ml"]
        raw = await self._calls.call(READ, keys, *after, limit, _READ_BYTES)
        if raw in _LOST:
            raise PositionLost(RefetchReason(raw.decode()))
        if not isinstance(raw, list):
            raise Unavailable(_STRANGE)
        entries, reason = chained(after, raw)
        if reason is not None and not entries:
            raise PositionLost(reason)
        return entries

    async def follow(self, stream: str, after: Position, listener: Listener) -> Callable[[], None]:
        reader = self._readers.get(stream)
        if reader is None:
            reader = self._readers[stream] = self._reader(stream)
        return await reader.follow(after, listener)

    async def put_grant(self, token: str, grant: Grant, seconds: float) -> None:
        limits = self._limits
        answer = await self._calls.call(
            PUT,
            self._grant_and_waiting(token),
            quoted(grant.stream),
            str(grant.position),
            grant.body,
            milliseconds(seconds),
            cost_of(grant),
            token,
            limits.max_grants,
            limits.max_grants_bytes,
            DROPPED_AT_ONCE,
        )
        if answer == 0:
            raise TooManyGrants

    async def take_grant(self, token: str, seconds: float, *, resumable: bool) -> Taken:
        before, after = taken_notice(token, 0).rsplit(b"0", 1)
        answer = await self._calls.call(
            TAKE,
            self._grant_and_waiting(token),
            *self._keys.retention(),
            secrets.token_hex(8),
            int(resumable),
            milliseconds(seconds),
            new_mark(),
            before,
            after,
            GRANT_COST_BYTES,
            token,
        )
        return _taken(answer)

    async def renew_grants(self, tokens: Iterable[str], seconds: float) -> list[str]:
        asked = list(tokens)
        parts = [asked[n : n + _RENEW_TOKENS] for n in range(0, len(asked), _RENEW_TOKENS)]
        gone: list[str] = []
        for part in parts:
            keys = [self._grant(token) for token in part]
            answer = await self._calls.call(RENEW, keys, milliseconds(seconds))
            gone += _gone(answer, part)
        return gone

    async def release_grant(self, token: str, take: int, seconds: float) -> None:
        await self._calls.call(RELEASE, [self._grant(token)], take, milliseconds(seconds))

    async def revoke_grant(self, token: str, seconds: float) -> bool:
        answer = await self._calls.call(
            REVOKE,
            [self._grant(token)],
            *self._keys.retention(),
            secrets.token_hex(8),
            milliseconds(seconds),
            new_mark(),
            revoked_notice(token),
        )
        return bool(answer)

    async def check(self) -> None:
        (answer,) = await self._links.ask([("PING",)])
        if isinstance(answer, Exception):
            raise unavailable(answer)

    async def clock(self) -> float:
        (answer,) = await self._links.ask([("TIME",)])
        match answer:
            case [bytes(seconds), bytes(microseconds)]:
                return int(seconds) + int(microseconds) / 1_000_000
            case Exception():
                raise unavailable(answer)
        raise Unavailable(_STRANGE)

    def compare(self, settings: str) -> None:
        self._nodes.start(settings)

    async def close(self) -> None:
        await self._nodes.close()
        for reader in self._readers.values():
            await reader.close()
        await self._appends.close()
        await self._calls.close()
        await self._links.close()

    async def _head(self, stream: str, ended: str = "") -> Position:
        """Return the head; a log whose epoch is ``ended`` begins anew."""
        meta = self._keys.key("m", quoted(stream))
        retention = self._keys.retention()
        return _position(await self._calls.call(HEAD, [meta], *retention, quoted(stream), ended))

    def _grant(self, token: str) -> str:
        return self._keys.key("g", token)

    def _grant_and_waiting(self, token: str) -> list[str]:
        return [self._grant(token), self._keys.key("w", "deadlines"), self._keys.key("w", "bytes")]

    def _reader(self, stream: str) -> Reader:
        return Reader(
            stream,
            self._links,
            lambda after: self.read(stream, after, _FOLLOW_ENTRIES),
            lambda ended: self._head(stream, ended),
            entries_key=self._keys.key("l", quoted(stream)),
            meta_key=self._keys.key("m", quoted(stream)),
        )


def _look_at(facts: Mapping[str, str]) -> None:
    """Refuse a server that is too old, and warn of one that may throw things away."""
    version = tuple(map(int, re.findall(r"\d+", facts.get("redis_version", ""))))
    if version and version < _OLDEST:
        raise Unavailable(f"Redis is too old ({facts['redis_version']}); 6.2 is needed")
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        logger.warning(
            "Redis may evict what syncserver keeps (maxmemory-policy is %s), and clients then"
            " fetch all again; set it to noeviction",
            policy,
        )


def _position(text: Any) -> Position:
    try:
        return Position.parse(text.decode("ascii"))
    except (AttributeError, ValueError):
        raise Unavailable(_STRANGE) from None


def _gone(answer: Any, tokens: Sequence[str]) -> list[str]:
    """Return the tokens whose numbers Redis answers."""
    match answer:
        case [*numbers] if all(type(one) is int and 0 <= one < len(tokens) for one in numbers):
            return [tokens[one] for one in numbers]
    raise Unavailable(_STRANGE)


def _taken(answer: Any) -> Taken:
    match answer:
        case b"missing":
            raise GrantMissing
        case b"revoked":
            raise GrantRevoked
        case b"held":
            raise GrantHeld
        case [bytes(stream), position, bytes(body), int(take)]:
            name = unquote(stream.decode("utf-8", "replace"))
            return Taken(Grant(name, _position(position), body), take)
    raise Unavailable(_STRANGE)
