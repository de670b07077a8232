"""Who goes while an acquire waits for something is not made live, whatever it waits for.

In each case position and cursor are equal when the wait is over, so that nothing but the look
after it stands between the joiner and going live.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

import syncserver.rowsync.joining
from syncserver.config import Limits
from syncserver.dealers import BroadcastDealer
from syncserver.engines.base import Entry, Listener
from syncserver.engines.memory import MemoryEngine
from syncserver.position import Position
from syncserver.protocols.base import Frame
from syncserver.registry import ServiceRegistry
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from tests.support.calls import MemoryPeer, backend_call, turns
from tests.support.daemon import until
from tests.support.mutant import mutated

LIMITS = Limits(tail_bytes=0, max_outbox_bytes=1000)  # who joins asks the engine
LOOK = "_look_again(subscription)\n"


class Ahead(MemoryEngine):
    """An engine that can keep its news from the node, and readers waiting at a gate."""

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = False
        self.holds = False
        self._news: list[Entry] = []
        self._listener: Listener | None = None

    async def read(self, stream: str, after: Position, limit: int) -> list[Entry]:
        self.asked = True
        await self.gate.wait()
        return await super().read(stream, after, limit)

    async def follow(self, stream: str, after: Position, listener: Listener) -> Callable[[], None]:
        self._listener = listener
        return await super().follow(stream, after, self)  # type: ignore[arg-type]

    def entries_arrived(self, entries: Sequence[Entry]) -> None:
        self._news += entries
        if not self.holds:
            self.tell()

    def tell(self) -> None:
        """Let the node hear what was kept from it."""
        assert self._listener is not None
        news, self._news = self._news, []
        self._listener.entries_arrived(news)


class Peer(MemoryPeer):
    """One that does something when it is written to."""

    meanwhile: Callable[[], None] | None = None

    def write(self, frames: Sequence[Frame]) -> bool:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return super().write(frames)


class Case:
    """A service, somebody who is live on it, and somebody who acquires and goes meanwhile."""

    def __init__(self) -> None:
        self.engine = Ahead()
        rows = BroadcastDealer(name="Rows", model="Row")
        self.service = DataSyncService("s", [rows], engine=self.engine, limits=LIMITS)
        self.frontend = ServiceRegistry([self.service], limits=LIMITS)
        self.backend = ServiceRegistry([DataSyncBackend("b", self.service)], limits=LIMITS)
        self.witness, self.joiner = MemoryPeer(self.frontend), Peer(self.frontend)

    async def grant(self) -> str:
        items = [{"dealer": "Rows", "query": None}]
        answer = await backend_call(self.backend, "b", "authorizeSubscription", items=items)
        token: str = answer["data"]
        return token

    async def publish(self) -> str:
        """Publish a row and return the position that the log has then."""
        delta = {"type": "insert", "model": "Row", "data": {"id": 1}}
        await backend_call(self.backend, "b", "publishDeltas", deltas=[delta])
        await turns()
        return str(await self.engine.head("s"))

    def begin(self, token: str, position: str | None) -> None:
        self.joiner.begin_call("s", "acquireSubscription", token=token, position=position)

    def go(self) -> None:
        self.joiner.session.connection_lost()

    def catch_up_and_go(self) -> None:
        self.engine.tell()
        self.go()


async def read(case: Case, token: str) -> None:
    """The node catches up with a position of another node while the log is read."""
    case.engine.holds = True
    ahead = await case.publish()
    case.engine.gate.clear()
    case.engine.asked = False
    case.begin(token, ahead)
    await until(lambda: case.engine.asked)
    case.catch_up_and_go()
    case.engine.gate.set()


async def cursor(case: Case, token: str) -> None:
    """The node catches up with a position of another node, which is waited for."""
    case.engine.holds = True
    case.begin(token, await case.publish())
    stream = case.service.subscriptions.stream
    await until(lambda: 1 in {offset for offset, *_ in stream._waiting})
    case.catch_up_and_go()


async def room(case: Case, token: str) -> None:
    """The last entry of a replay waits for room in the outbox of a peer that does not read."""
    await case.publish()
    case.joiner.stalled = True
    case.joiner.session.put(Frame((b"x" * 400,)))
    case.begin(token, None)
    await until(lambda: case.joiner.session._writable)
    case.go()


async def turn(case: Case, token: str) -> None:
    """A replay is ahead of the node, which catches up as the first of it is written."""
    await case.publish()
    case.engine.holds = True
    await case.publish()
    case.joiner.meanwhile = case.catch_up_and_go
    case.begin(token, None)
    await until(lambda: case.joiner.meanwhile is None)


# In the order in which they stand in ``join``.
WAITS: tuple[Callable[[Case, str], Awaitable[None]], ...] = (read, cursor, room, turn)


async def go_during(wait: Callable[[Case, str], Awaitable[None]]) -> None:
    """Have one go during a wait; check that nothing is left but who was live before."""
    case = Case()
    try:
        await case.witness.call("s", "acquireSubscription", token=await case.grant(), position=None)
        peers = case.service.subscriptions.peers
        held = peers.subscriptions()
        token = await case.grant()
        await wait(case, token)
        await turns(40)
        assert peers.subscriptions() == held
        [view] = held[0].views
        assert list(view.subscribers) == held, "who is gone is sent deltas"
        assert not case.engine._grants[token].held
    finally:
        await case.service.close()
        await case.engine.close()


@pytest.mark.parametrize("wait", WAITS)
async def test_who_goes_during_a_wait_of_an_acquire_is_not_made_live(wait: Any) -> None:
    await go_during(wait)


@pytest.mark.parametrize("number", range(len(WAITS)), ids=[wait.__name__ for wait in WAITS])
async def test_without_the_look_after_it_a_wait_makes_live_who_is_gone(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = mutated(syncserver.rowsync.joining, LOOK, "pass\n", number=number, of=len(WAITS))
    monkeypatch.setattr("syncserver.rowsync.subscriptions.Joining", mutant.Joining)
    with pytest.raises(AssertionError):
        await go_during(WAITS[number])


def test_every_await_of_a_join_has_its_look_and_its_case() -> None:
    lines = inspect.getsource(syncserver.rowsync.joining.Joining.join).splitlines(keepends=True)
    awaits = re.compile(r"(.* = )?await ")
    following = [after.strip() for line, after in pairwise(lines) if awaits.match(line.strip())]
    assert following == [LOOK.strip()] * len(WAITS)
