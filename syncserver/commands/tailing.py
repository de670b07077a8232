"""What a browser with a dealer and a query would be sent, live (``syncserver tail``).

This is a client like any other: it has a token authorised, acquires it over a WebSocket
with a position, comes back after a lost connection, and starts anew when it is told to
fetch again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
from typing import Any

from tornado.httpclient import HTTPClientError
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClientConnection, websocket_connect

from syncserver.commands import base

_FIRST_WAIT_SECONDS = 0.1
_MAX_WAIT_SECONDS = 10.0
_ANSWER_SECONDS = 10.0
_DO_NOT_RECONNECT = range(4500, 5000)

Message = dict[str, Any]


def run(options: argparse.Namespace) -> int:
    """Print until there is nothing more to print, or Ctrl-C."""
    try:
        query = json.loads(options.query)
    except ValueError:
        query = options.query
    item = {"dealer": options.dealer, "query": query}
    return asyncio.run(_Tail(base.find_daemon(options), options, item).follow())


class _Over(Exception):
    """The subscription cannot go on; a new token is needed."""


class _Tail:
    def __init__(self, daemon: base.Daemon, options: argparse.Namespace, item: Message) -> None:
        self._daemon = daemon
        self._options = options
        self._item = item
        self._left = options.count or -1
        self._token: str | None = None
        self._position: str | None = None
        self._call_ids = itertools.count(1)
        self._gathered: list[Any] = []
        self._failures = 0
        self._was_live = False
        self._url = options.ws_url or f"{base.base_url(daemon.config.frontend, 'ws')}/ws"

    async def follow(self) -> int:
        """Connect, again and again."""
        while self._left:
            try:
                connection = await self._connect()
            except base.Failed as failed:
                if failed.code != base.UNAVAILABLE or not self._was_live:
                    raise
                await self._wait(str(failed))
                continue
            try:
                await self._read(connection)
            except _Over as over:
                base.say(f"starting anew, changes before that are not shown: {over}")
                self._gathered.clear()
                self._token = self._position = None
                await self._wait(None)
            finally:
                connection.close()
        return 0

    async def _connect(self) -> WebSocketClientConnection:
        if self._token is None:
            self._token = await asyncio.to_thread(self._authorize)
        try:
            return await websocket_connect(self._url)
        except (OSError, HTTPClientError, StreamClosedError) as error:
            raise base.Failed(base.UNAVAILABLE, f"{self._url}: {error}") from error

    def _authorize(self) -> str:
        try:
            import syncserver_client as client
        except ModuleNotFoundError:
            raise base.Failed(base.REFUSED, "the package syncserver-client is missing") from None
        key = self._daemon.key.reveal().decode()
        service = f"{self._options.service}_backend"
        with client.Backend(self._daemon.url, key) as backend:
            try:
                return str(backend.authorize([self._item], service=service))
            except (client.Unauthorized, client.Forbidden) as error:
                raise base.Failed(base.NOT_ALLOWED, str(error)) from error
            except client.TransportError as error:
                text = f"no daemon answers at {self._daemon.url}"
                raise base.Failed(base.UNAVAILABLE, text) from error
            except client.Unavailable as error:
                raise base.Failed(base.UNAVAILABLE, str(error)) from error
            except client.BackendError as error:
                raise base.Failed(base.BAD_DATA, str(error)) from error

    async def _read(self, connection: WebSocketClientConnection) -> None:
        """Acquire, and print what comes until the connection is lost."""
        call_id = next(self._call_ids)
        params = {"token": self._token, "position": self._position}
        call = {"command": "acquireSubscription", "params": params, "callId": call_id}
        text = json.dumps({"service": self._options.service, "message": call})
        await connection.write_message(text)
        while self._left:
            text_or_none = await connection.read_message()
            if text_or_none is None:
                await self._lost(connection)
                return
            self._hear(json.loads(text_or_none)["message"], call_id)

    def _hear(self, message: Message, call_id: int) -> None:
        match message:
            case {"type": "delta", "delta": delta}:
                self._gathered.append(delta)
            case {"type": "position", "position": str(position)}:
                self._reach(position)
            case {"type": "response", "callId": given, "data": {"position": str(position)}} if (
                given == call_id
            ):
                base.say("live" if self._position is None else "live again")
                self._failures, self._was_live = 0, True
                self._reach(position)
            case {"type": "error", "callId": given} if given == call_id:
                raise _Over(message.get("reason") or message["message"])
            case {"type": "refetch" | "ended", "reason": reason, "token": self._token}:
                raise _Over(reason)
            case {"type": "stale" | "fresh" as kind}:
                base.say(kind)

    def _reach(self, position: str) -> None:
        """Print what came up to a position; from there it goes on after a lost connection."""
        for delta in self._gathered:
            if self._left:
                print(json.dumps(delta, ensure_ascii=False), flush=True)
                self._left -= 1
        self._gathered.clear()
        self._position = position

    async def _lost(self, connection: WebSocketClientConnection) -> None:
        self._gathered.clear()
        code = connection.close_code
        reason = connection.close_reason or ""
        if code in _DO_NOT_RECONNECT:
            raise base.Failed(base.UNAVAILABLE, f"closed with {code} {reason}")
        await self._wait(f"closed with {code} {reason}" if code else "connection lost")

    async def _wait(self, reason: str | None) -> None:
        """Wait longer after each failure, and not as long as another client would."""
        bound = min(_MAX_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**self._failures)
        self._failures += 1
        if reason is not None:
            base.say(f"{reason}; connecting again")
        await asyncio.sleep(random.uniform(0, bound))  # noqa: S311  # spreads load, guards nothing
