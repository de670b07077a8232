"""How often requests may come to the browsers' door.

An address of the Internet, or one that a trusted proxy names, counts for all its connections; any
other is more often a proxy's than a client's, so that each of its connections counts for itself.
A request over the bound waits, and holds up the next of its connection alone; then it is 429.
The web app is not counted, if it is at this door: it has a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import weakref
from collections.abc import Awaitable, Container
from typing import Any

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from syncserver.admission.addresses import Rates, counted_as, is_public
from syncserver.admission.bucket import Bucket
from syncserver.apikeys import KeyRing
from syncserver.config import Limits
from syncserver.counters import Tally
from syncserver.handlers.base import given_key

logger = logging.getLogger("syncserver.http")

HOLD_SECONDS = 1.0

_BURST_SECONDS = 5
_LINES = 32
_NOBODY = "0.0.0.0"  # noqa: S104  # what Tornado calls whoever comes by a Unix socket


class Pace:
    """The bound of one door.

    :param refused: counts what is turned away, as ``requests``.
    :param free: paths that are not counted for whoever has one of the ``keys``.
    """

    def __init__(
        self,
        limits: Limits,
        refused: Tally,
        free: Container[str] = (),
        keys: KeyRing | None = None,
    ) -> None:
        self._rate = limits.requests_per_second
        self._burst = _BURST_SECONDS * self._rate
        self._refused = refused
        self._free = free
        self._keys = keys
        self._is_over = asyncio.Event()
        self._addresses = Rates(self._rate, self._burst)
        self._connections: weakref.WeakKeyDictionary[Any, Bucket] = weakref.WeakKeyDictionary()

    def wait_seconds(self, context: Any, path: str, headers: HTTPHeaders, *, proxy: bool) -> float:
        """Count a request, a head of many lines as several; 0, or when it may come.

        :param context: what Tornado knows of the connection.
        :param proxy: whether its peer is a trusted proxy.
        """
        if path.partition("?")[0] in self._free and self._has_key(headers):
            return 0.0
        count = 1 + sum(1 for _ in headers.get_all()) // _LINES
        own = context.address[0] if isinstance(context.address, tuple) else _NOBODY
        key = _key(context.remote_ip, is_own=context.remote_ip == own, is_proxy=proxy)
        if key:
            seconds = self._addresses.wait_seconds(key, count)
        else:
            bucket = self._connections.get(context)
            if bucket is None:
                bucket = self._connections[context] = Bucket(self._rate, self._burst)
            seconds = bucket.wait_for(count)
        if seconds:
            self._refused.add("requests")
            logger.info("Refused a request from %s: there are too many", context.remote_ip)
        return seconds

    async def hold(self) -> None:
        """Let a request wait that is one too many, but not for longer than the door is there."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOLD_SECONDS):
                await self._is_over.wait()

    def release(self) -> None:
        """Let nobody wait any more: the connections are closed."""
        self._is_over.set()

    def _has_key(self, headers: HTTPHeaders) -> bool:
        key = self._keys.find(given_key(headers)) if self._keys is not None else None
        return key is not None and not key.expired()


@functools.lru_cache(maxsize=1024)
def _key(address: str, *, is_own: bool, is_proxy: bool) -> str:
    """Return what counts for all connections of a peer; empty: each counts for itself."""
    if is_own and (is_proxy or not is_public(address)):
        return ""
    return counted_as(address)


class Paced(HTTPMessageDelegate):
    """Takes one request, or answers 429 in its place."""

    def __init__(
        self, delegate: HTTPMessageDelegate, connection: HTTPConnection, pace: Pace, *, proxy: bool
    ) -> None:
        self._delegate = delegate
        self._connection = connection
        self._pace = pace
        self._proxy = proxy
        self._wait_seconds = 0.0

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Count the request, and let it wait if it is one too many."""
        path = getattr(start_line, "path", "")
        context = getattr(self._connection, "context", None)
        self._wait_seconds = self._pace.wait_seconds(context, path, headers, proxy=self._proxy)
        if self._wait_seconds:
            return None if self._is_gone() else self._pace.hold()
        return self._delegate.headers_received(start_line, headers)

    def _is_gone(self) -> bool:
        """Tell whether the client has gone; Tornado goes on with what it sent before."""
        stream = getattr(self._connection, "stream", None)
        return stream is None or stream.closed()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Pass a piece of the body on, or drop it."""
        return None if self._wait_seconds else self._delegate.data_received(chunk)

    def finish(self) -> None:
        """Let the request be answered, or refuse it."""
        if not self._wait_seconds:
            self._delegate.finish()
            return
        headers = {"Retry-After": str(math.ceil(self._wait_seconds)), "Content-Length": "0"}
        start_line = ResponseStartLine("HTTP/1.1", 429, "Too Many Requests")
        self._connection.write_headers(start_line, HTTPHeaders(headers))
        self._connection.finish()

    def on_connection_close(self) -> None:
        """Tell who has the request that its client is gone."""
        if not self._wait_seconds:
            self._delegate.on_connection_close()
