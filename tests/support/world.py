"""A web app, its database and its browsers around one service, at random.

The writer commits and then publishes, in order. A browser takes a token, reads the
database, acquires, and applies what comes as the client library does. It is cut at any
moment, resumes, is taken over, cancels, is revoked. At the end every browser has to hold
what the database holds, and to have been sent exactly what the log says, each change once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from syncserver.config import Limits
from syncserver.dealers import BroadcastDealer, Dealer, FilterDealer, KeyedDealer
from syncserver.delta import Delta, Kind
from syncserver.engines.base import Engine
from syncserver.protocols.base import Protocol
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from tests.support.calls import MemoryPeer, backend_call, turns
from tests.support.delayed import dither

Row = dict[str, Any]
Change = tuple[str, int, int | None, int | None]  # kind, id, n before, n after

ITEMS: dict[str, tuple[dict[str, Any], Callable[[Row], bool]]] = {
    "all": ({"dealer": "All", "query": None}, lambda row: True),
    "group": ({"dealer": "ByGroup", "query": 1}, lambda row: row["group"] == 1),
    "filter": ({"dealer": "Some", "query": [">=", "group", 1]}, lambda row: row["group"] >= 1),
}


def dealers() -> list[Dealer]:
    """Return one dealer of each kind."""
    return [
        BroadcastDealer(name="All", model="Row"),
        KeyedDealer(name="ByGroup", model="Row", key="group"),
        FilterDealer(name="Some", model="Row"),
    ]


class World:
    """Everything of one run.

    :param engine: made by the caller; closed by ``run``.
    """

    def __init__(
        self,
        rng: random.Random,
        engine: Engine,
        limits: Limits,
        protocol: type[Protocol] = NativeProtocol,
    ) -> None:
        self.rng = rng
        self.engine = engine
        self.protocol = protocol
        self.service = DataSyncService("datasync", dealers(), engine=engine, limits=limits)
        self.frontend = ServiceRegistry([self.service], limits=limits)
        self.backend = ServiceRegistry([DataSyncBackend("backend", self.service)], limits=limits)
        self.rows: dict[int, Row] = {}
        self.published: list[Delta] = []
        self.refetches: list[str] = []
        self._n = 0

    async def run(self, *, writes: int, browsers: int, steps: int) -> None:
        """Let everything happen at once, come to rest, and check."""
        await self.service.open()
        peers = [Browser(self, name) for name in self.rng.choices(list(ITEMS), k=browsers)]
        try:
            await asyncio.gather(self.write(writes), *(browser.live(steps) for browser in peers))
            async with asyncio.timeout(10):
                while not all([await browser.rests() for browser in peers]):
                    pass
            self.check_subscribers()
            for browser in peers:
                browser.check(self.published)
            for browser in peers:
                browser.cut()
            await turns(40)
            self.check_nothing_left()
        finally:
            await self.service.close()
            await self.engine.close()

    async def write(self, count: int) -> None:
        """Commit and publish, in order, at random moments."""
        for _ in range(count):
            deltas = [self.commit() for _ in range(self.rng.randint(1, 3))]
            await dither(self.rng)
            answer = await backend_call(self.backend, "backend", "publishDeltas", deltas=deltas)
            assert answer["type"] == "response", answer
            self.published.extend(map(Delta.parse, deltas))
            await dither(self.rng, 8)

    def commit(self) -> dict[str, Any]:
        """Change one row and return the delta."""
        self._n += 1
        key = self.rng.randrange(6)
        old = self.rows.get(key)
        if old is not None and self.rng.random() < 0.3:
            del self.rows[key]
            return {"type": "delete", "model": "Row", "data": old}
        new = {"id": key, "group": self.rng.randrange(3), "n": self._n}
        self.rows[key] = new
        if old is None:
            return {"type": "insert", "model": "Row", "data": new}
        return {"type": "update", "model": "Row", "oldData": old, "newData": new}

    async def rest(self) -> None:
        """Wait until this node has delivered the whole log and all has been flushed."""
        stream = self.service.subscriptions.stream
        head = await self.engine.head("datasync")
        async with asyncio.timeout(5):
            while stream.cursor.epoch == head.epoch and stream.cursor.offset < head.offset:
                await asyncio.sleep(0)
        await turns(40)

    def check_subscribers(self) -> None:
        """Check that those who are sent deltas are those who have subscriptions."""
        held = set(self.service.subscriptions.peers.subscriptions())
        for view in self.service.views._view_uses:
            assert held.issuperset(view.subscribers), "a subscription that is gone is sent deltas"

    def check_nothing_left(self) -> None:
        """Check that nobody is remembered after all are gone."""
        subscriptions = self.service.subscriptions
        assert not len(subscriptions.peers)
        assert not subscriptions.peers.subscriptions()
        views = self.service.views
        assert not views._views
        assert not views._items
        assert not views._view_uses
        assert not self.frontend.sessions


def change_of(delta: dict[str, Any]) -> Change:
    """Return what tells a delta from all others."""
    match delta["type"]:
        case "insert":
            return ("insert", delta["data"]["id"], None, delta["data"]["n"])
        case "delete":
            return ("delete", delta["data"]["id"], delta["data"]["n"], None)
        case _:
            old, new = delta["oldData"], delta["newData"]
            return ("update", new["id"], old["n"], new["n"])


class Browser:
    """One page: a subscription, its rows, and the connection of the moment."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.item, self.sees = ITEMS[name]
        self.peer: MemoryPeer | None = None
        self.token: str | None = None
        self.position: str | None = None
        self.calls: dict[int, str] = {}
        self.live_now = False
        self.rows: dict[int, Row] = {}
        self.gathered: list[dict[str, Any]] = []
        self.applied: list[Change] = []

    async def live(self, steps: int) -> None:
        """Do random things, some while an acquire is under way."""
        rng = self.world.rng
        for _ in range(steps):
            if rng.random() < 0.3:
                await self.ensure()
                await dither(rng, 3)
            act = rng.choice(
                [self.ensure, self.ensure, self.ensure, self.lose, self.revoke, self.cancel,
                 self.take_over, self.cancel_at_once, self.revoke_at_once]
            )  # fmt: skip
            await act()
            await dither(rng, 8)
            self.read_some()

    async def rests(self) -> bool:
        """Get live, and tell whether nothing is under way any more."""
        await self.ensure()
        await self.world.rest()
        self.read_all()
        return self.live_now and not self.calls

    async def ensure(self) -> None:
        """Connect, fetch and acquire, as far as that is not done."""
        if self.peer is None or not self.peer.session.open:
            self.lose_now()
            self.peer = MemoryPeer(self.world.frontend, self.world.protocol)
        if self.live_now or self.calls:
            return
        if self.token is None:
            await self.fetch()
        if self.peer is not None and self.token is not None:
            self.acquire()

    async def fetch(self) -> None:
        """Take a token first and read the database after it."""
        rng = self.world.rng
        items = [self.item]
        answer = await backend_call(
            self.world.backend, "backend", "authorizeSubscription", items=items
        )
        await dither(rng, 8)
        self.rows = {key: row for key, row in self.world.rows.items() if self.sees(row)}
        self.applied = []
        self.gathered = []
        await dither(rng, 8)
        self.token, self.position = answer["data"], None

    def acquire(self) -> None:
        assert self.peer is not None
        call = self.peer.begin_call(
            "datasync", "acquireSubscription", token=self.token, position=self.position
        )
        self.calls[call] = "acquire"

    async def lose(self) -> None:
        self.lose_now()

    def lose_now(self) -> None:
        """Lose the connection, with all that was sent and not read, and what was gathered."""
        self.cut()
        self.gathered = []
        self.calls = {}
        self.live_now = False

    def cut(self) -> None:
        if self.peer is not None:
            self.peer.texts.clear()
            self.peer.session.connection_lost()
            self.peer = None

    async def revoke(self) -> None:
        if self.token is not None and self.world.rng.random() < 0.3:
            await backend_call(
                self.world.backend, "backend", "revokeSubscription", token=self.token
            )

    async def revoke_at_once(self) -> None:
        """Revoke on the heels of an acquire."""
        if "acquire" in self.calls.values():
            await backend_call(
                self.world.backend, "backend", "revokeSubscription", token=self.token
            )

    async def cancel(self) -> None:
        if self.peer is not None and self.live_now and self.world.rng.random() < 0.3:
            self.calls[self.peer.begin_call("datasync", "cancelSubscription", token=self.token)] = (
                "cancel"
            )

    async def cancel_at_once(self) -> None:
        """Send a cancel on the heels of an acquire."""
        if self.peer is not None and "acquire" in self.calls.values():
            self.calls[self.peer.begin_call("datasync", "cancelSubscription", token=self.token)] = (
                "cancel"
            )

    async def take_over(self) -> None:
        """Acquire on another connection; the old one has to be told, and is dropped later."""
        if self.peer is None or self.token is None or not (self.live_now or self.calls):
            return
        old = self.peer
        self.peer = MemoryPeer(self.world.frontend, self.world.protocol)
        old.texts.clear()
        self.gathered = []
        self.calls = {}
        self.live_now = False
        self.acquire()
        await dither(self.world.rng, 12)
        old.session.connection_lost()

    def read_some(self) -> None:
        """Read a random part of what has come."""
        if self.peer is not None:
            for _ in range(self.world.rng.randint(0, len(self.peer.texts))):
                if self.peer is None or not self.peer.texts:
                    return
                self.read(self.peer.read_one()["message"])

    def read_all(self) -> None:
        while self.peer is not None and self.peer.texts:
            self.read(self.peer.read_one()["message"])

    def read(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "delta", "delta": delta}:
                expecting = self.live_now or "acquire" in self.calls.values()
                assert expecting, f"a delta without a subscription: {delta}"
                self.gathered.append(delta)
            case {"type": "position", "position": position}:
                expecting = self.live_now or "acquire" in self.calls.values()
                assert expecting, "a position without a subscription"
                self.apply(position)
            case {"type": "response", "callId": call, "data": data}:
                if self.calls.pop(call) == "acquire":
                    self.live_now = True
                    self.apply(data["position"])
                else:
                    self.forget()
            case {"type": "error", "callId": call, "code": code}:
                self.calls.pop(call)
                if code != "no_such_subscription" or not self.live_now:
                    self.over(message.get("reason", code))
            case {"type": "refetch" | "ended", "reason": reason, "token": token}:
                assert token == self.token
                self.over(reason)
            case _:
                raise AssertionError(message)

    def over(self, reason: str) -> None:
        self.world.refetches.append(reason)
        self.forget()

    def forget(self) -> None:
        self.token = self.position = None
        self.live_now = False
        self.gathered = []

    def apply(self, position: str) -> None:
        self.position = position
        for delta in self.gathered:
            self.applied.append(change_of(delta))
            if delta["type"] == "delete":
                self.rows.pop(delta["data"]["id"], None)
            else:
                row = delta.get("newData", delta.get("data"))
                self.rows[row["id"]] = row
        self.gathered = []

    def check(self, log: list[Delta]) -> None:
        """Compare with the database, and what was applied with the log."""
        assert not self.gathered, "no position came after these"
        expected = {key: row for key, row in self.world.rows.items() if self.sees(row)}
        assert self.rows == expected, f"{self.item} after {self.applied}"
        kept = [change for delta in log if (change := self.narrow(delta)) is not None]
        tail = kept[len(kept) - len(self.applied) :]
        assert self.applied == tail, f"not each change once and in order: {self.applied}"

    def narrow(self, delta: Delta) -> Change | None:
        """Return what this page should see of a delta, by the plainest rule there is."""
        before = delta.old is not None and self.sees(dict(delta.old))
        after = delta.new is not None and self.sees(dict(delta.new))
        if not before and not after:
            return None
        kind: Kind = "update" if before and after else "insert" if after else "delete"
        return change_of(delta.narrowed(kind).for_json())
