"""A web app that publishes as it should, and pages that follow it as the client library does.

All that happens to them is recorded; ``checkers`` has the words of the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable
from typing import Any

import requests
from syncserver_client import Backend, BackendError, CallError
from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPRequest
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    websocket_connect,
)

from tests.faults.checkers import Event
from tests.faults.cluster import Cluster, Node, change_of
from tests.support.daemon import KEY, call_body
from tests.support.world import ITEMS

Row = dict[str, Any]

GONE = (OSError, EOFError, HTTPError, TimeoutError, WebSocketClosedError)
TIMEOUT_SECONDS = 3.0
ROWS = 5


class Site:
    """The database of the web app, the cluster beside it, and what happened.

    A publisher has rows of its own. ``v`` of a row is the number of its last change.
    """

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster = cluster
        self.rng = rng
        self.history: list[Event] = []
        self.rows: dict[str, Row] = {}
        self.committed: dict[int, int] = {}
        self.publishing = True
        self.closing = False
        self.client = AsyncHTTPClient(force_instance=True, max_clients=200)

    def record(self, type_: str, **fields: Any) -> None:
        """Write down what happens now."""
        self.history.append({"at": time.monotonic(), "type": type_, **fields})

    def commit(self, publisher: int) -> list[Row]:
        """Change one to three rows of a publisher and return the deltas."""
        keys = self.rng.sample(range(ROWS), self.rng.randint(1, 3))
        return [self._change(publisher, f"{publisher}.{key}") for key in keys]

    def _change(self, publisher: int, key: str) -> Row:
        n = self.committed[publisher] = self.committed.get(publisher, 0) + 1
        old = self.rows.get(key)
        if old is not None and self.rng.random() < 0.3:
            del self.rows[key]
            return {"type": "delete", "model": "Row", "data": old, "version": n}
        new = self.rows[key] = {"id": key, "group": self.rng.randrange(3), "v": n}
        if old is None:
            return {"type": "insert", "model": "Row", "data": new, "version": n}
        return {"type": "update", "model": "Row", "oldData": old, "newData": new, "version": n}

    def seen(self, item: str) -> dict[str, Row]:
        """Return the rows that an item sees."""
        sees = ITEMS[item][1]
        return {key: row for key, row in self.rows.items() if sees(row)}

    async def post(
        self,
        node: Node,
        command: str,
        *,
        seconds: float = TIMEOUT_SECONDS,
        key: str | None = None,
        **params: Any,
    ) -> Any:
        """Make a call of the backend; OSError unless it is answered."""
        keyed = {} if key is None else {"Idempotency-Key": key}
        request = HTTPRequest(
            node.http_url,
            method="POST",
            headers={"X-Backend-Key": KEY, "Content-Type": "application/json", **keyed},
            body=call_body("datasync_backend", command, params),
            connect_timeout=seconds,
            request_timeout=seconds,
        )
        response = await self.client.fetch(request)
        message = json.loads(response.body)["message"]
        assert message["type"] == "response", message
        return message["data"]


class Publisher:
    """Commits and publishes, each batch until it is acknowledged, always with its own key."""

    def __init__(self, site: Site, number: int, pause_seconds: float) -> None:
        self.site = site
        self.number = number
        self._pause_seconds = pause_seconds
        self._session = requests.Session()

    async def run(self) -> None:
        """Publish until the site has it otherwise."""
        site = self.site
        while site.publishing:
            deltas = site.commit(self.number)
            changes = [[delta["version"], _items(delta)] for delta in deltas]
            site.record("publish", publisher=self.number, changes=changes)
            await self._publish(deltas)
            await asyncio.sleep(site.rng.uniform(0.5, 1.5) * self._pause_seconds)
        self._session.close()

    async def _publish(self, deltas: list[Row]) -> None:
        n = deltas[-1]["version"]
        while not self.site.closing:
            node = self.site.rng.choice(self.site.cluster.running())
            error = await asyncio.to_thread(self._attempt, node.http_url, deltas)
            if error is None:
                self.site.record("ok", publisher=self.number, n=n)
                return
            self.site.record("unknown", publisher=self.number, n=n, error=error)
            await asyncio.sleep(self.site.rng.uniform(0, 0.1))

    def _attempt(self, url: str, deltas: list[Row]) -> str | None:
        """Publish through the client of web apps; return why it is unknown what became of it."""
        backend = Backend(url, KEY, session=self._session, timeout=TIMEOUT_SECONDS, retries=0)
        key = f"{self.number}-{deltas[-1]['version']}"
        try:
            backend.publish(deltas, idempotency_key=key)
        except CallError:
            raise  # refused: the daemon is wrong
        except BackendError as error:
            return type(error).__name__
        return None


def _items(delta: Row) -> list[str]:
    """Return the items that see a change, by the plainest rule there is."""
    rows = [delta[name] for name in ("data", "oldData", "newData") if name in delta]
    return [name for name, (_, sees) in ITEMS.items() if any(map(sees, rows))]


class Subscriber:
    """One page: a token, a position, its rows, and the connection of the moment."""

    def __init__(self, site: Site, name: str, item: str) -> None:
        self.site = site
        self.name = name
        self.item = item
        self.token: str | None = None
        self.position: str | None = None
        self.rows: dict[str, Row] = {}
        self.deleted: dict[str, int] = {}
        self.gathered: list[Row] = []
        self.live_now = False
        self.node: Node | None = None
        self.rng = random.Random(f"{name} {site.rng.random()}")
        self._socket: WebSocketClientConnection | None = None
        self._was_cut = False
        self._acquiring = False

    def record(self, type_: str, **fields: Any) -> None:
        self.site.record(type_, subscriber=self.name, **fields)

    def cut(self) -> None:
        """Lose the connection as by a network that is gone: unread and unsaid things are lost."""
        if self._socket is not None and self._socket.protocol is not None:
            self._was_cut = True
            self._socket.protocol.stream.close()

    def leave(self) -> None:
        """Cancel the subscription, if it is live, and begin anew when that is answered."""
        if self.live_now:
            self._call("cancelSubscription", "left", token=self.token)

    async def run(self) -> None:
        """Be connected until the site closes."""
        while not self.site.closing:
            node = self.rng.choice(self.site.cluster.running())
            killed = node.killed
            connected = False
            try:
                await self._connect(node)
                connected = True
                await self._converse()
            except GONE as error:
                if connected:
                    self._lost(node, killed, error)
            finally:
                self._end()
            await asyncio.sleep(self.rng.uniform(0, 0.2))

    async def _connect(self, node: Node) -> None:
        self._was_cut = False
        async with asyncio.timeout(TIMEOUT_SECONDS):
            self._socket = await websocket_connect(node.ws_url)
        self.node = node
        self.record("connected", node=node.name)

    def _lost(self, node: Node, killed: int, error: BaseException) -> None:
        if self.site.closing:
            return
        cause = "cut" if self._was_cut else "killed" if node.killed > killed else repr(error)
        self.record("lost", node=node.name, cause=cause)

    def _end(self) -> None:
        self.live_now = self._acquiring = False
        self.gathered = []
        self.node = None
        if self._socket is not None:
            self._socket.close()
            if self._socket.protocol is not None:
                self._socket.protocol.stream.close()
            self._socket = None

    async def _converse(self) -> None:
        while True:
            while self.token is None:
                await self._fetch()
            if not self.live_now and not self._acquiring:
                self._acquire()
            await self._hear()

    async def _hear(self) -> None:
        assert self._socket is not None
        text = await self._socket.read_message()
        if text is None:
            raise EOFError(self._socket.close_code)
        wait = self._read(json.loads(text)["message"])
        if wait:
            await asyncio.sleep(self.rng.uniform(0.05, 0.3))

    async def _fetch(self) -> None:
        """Take a token first and read the database after it."""
        site = self.site
        try:
            node = self.rng.choice(site.cluster.running())
            token = await site.post(node, "authorizeSubscription", items=[ITEMS[self.item][0]])
        except GONE:
            await asyncio.sleep(self.rng.uniform(0.05, 0.3))
            if self._socket is None or self._socket.protocol is None:
                raise EOFError from None
            return
        await asyncio.sleep(self.rng.uniform(0, 0.02))
        self.rows, self.deleted = site.seen(self.item), {}
        self.token, self.position = token, None
        self.record("life", token=token, item=self.item, known=dict(site.committed))

    def _acquire(self) -> None:
        assert self.token is not None
        self._call("acquireSubscription", self.token, token=self.token, position=self.position)
        self._acquiring = True

    def _call(self, command: str, call_id: str, **params: Any) -> None:
        assert self._socket is not None
        message = {"command": command, "params": params, "callId": call_id}
        with contextlib.suppress(WebSocketClosedError):  # the reader hears of it
            written = self._socket.write_message(
                json.dumps({"service": "datasync", "message": message})
            )
            written.add_done_callback(lambda future: future.exception())

    def _read(self, message: Row) -> bool:
        """Take in a message; True if it says to come again later."""
        match message:
            case {"type": "delta", "delta": delta}:
                self.gathered.append(delta)
            case {"type": "position", "position": position}:
                self._apply(position)
            case {"type": "response", "callId": token, "data": {"position": position}}:
                assert token == self.token
                self._acquiring, self.live_now = False, True
                self._apply(position)
            case {"type": "response", "callId": "left"}:
                self._over("left")
            case {"type": "error", "callId": "left", "code": code}:
                assert code in {"unavailable", "timeout", "no_such_subscription"}, message
            case {"type": "error", "callId": _, "code": "unavailable" | "timeout"}:
                self._acquiring = False
                self.gathered = []
                return True
            case {"type": "error", "callId": token, "code": code}:
                assert code in {"refetch", "no_such_subscription"}, message
                self._over(message.get("reason", code))
            case {"type": "refetch" | "ended", "token": token, "reason": reason}:
                if token == self.token:
                    self._over(reason)
            case {"type": "stale" | "fresh" as word}:
                self.record(word)
            case _:
                raise AssertionError(message)
        return False

    def _over(self, reason: str) -> None:
        self.record("told", reason=reason)
        self.token = self.position = None
        self.live_now = self._acquiring = False
        self.gathered = []

    def _apply(self, position: str) -> None:
        gathered, self.gathered = self.gathered, []
        self.position = position
        changes = [change_of(delta) for delta in gathered]
        self.record("applied", position=position, changes=changes)
        for delta in gathered:
            self._apply_one(delta)

    def _apply_one(self, delta: Row) -> None:
        """Change a row as a collection does: what is older than what it has is ignored."""
        row, version = delta.get("newData") or delta["data"], delta["version"]
        key = row["id"]
        have = self.rows.get(key)
        if version < max(have["v"] if have else 0, self.deleted.get(key, 0)):
            return
        if delta["type"] == "delete":
            self.rows.pop(key, None)
            self.deleted[key] = version
        else:
            self.rows[key] = row

    def has_all(self) -> bool:
        """Tell whether it is live and has the rows of the database."""
        return self.live_now and not self.gathered and self.rows == self.site.seen(self.item)


async def until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until a condition holds; False when it took too long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
            return True
    return False
