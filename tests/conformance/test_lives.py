"""A page's life on real connections and sessions, in any order of events, beside a model of it.

``test_handover`` has everything happen at once; here one thing happens at a time, so that it is
known to the letter what a page must have been sent: also by one that did not read, that was cut
off, or that the daemon sent elsewhere.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from syncserver import session
from syncserver.errors import CloseCode
from syncserver.rowsync import subscriptions
from tests.fuzz.client_frames import client_frame
from tests.support.life import Life, Page, Subscription
from tests.support.memory_socket import MemoryConnection
from tests.support.mutant import mutated
from tests.support.virtual import VirtualLoop
from tests.support.world import ITEMS

numbers = st.integers(0, 1)
items = st.sampled_from(list(ITEMS))
sizes = st.sampled_from([0, 0, -1, 900, 1_500, 5_000])
batches = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), sizes), min_size=1, max_size=3)
STEPS = 30
_NORMAL = 1000


class Lives(RuleBasedStateMachine):
    """Pages, and all that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.life = Life(self.runner.get_loop())
        self.run(self.life.service.open())

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def teardown(self) -> None:
        try:
            self.run(self.life.close())
        finally:
            self.runner.close()

    def connected(self, number: int) -> tuple[Page, MemoryConnection] | None:
        """Return a page that has a connection; one that has none comes back instead."""
        page = self.life.pages[number]
        if page.connection is not None:
            return page, page.connection
        self.run(self.do(page.connect))
        for one in list(page.subscriptions.values()):
            self.run(self.do(page.acquire, one))
        return None

    def subscribed(
        self, number: int, which: int, *, live: bool = True
    ) -> tuple[Page, Subscription] | None:
        """Return a connected page and a subscription of it for which no call is under way."""
        if (found := self.connected(number)) is None:
            return None
        page, busy = found[0], [one for _, one in found[0].calls.values()]
        free = [one for one in page.subscriptions.values() if one.live is live and one not in busy]
        return (page, free[which % len(free)]) if free else None

    @initialize(names=st.tuples(items, items))
    def begin(self, names: tuple[str, str]) -> None:
        for page, name in zip(self.life.pages, names, strict=True):
            self.run(self.life.authorize(page, name, resumable=True))
            self.connected(self.life.pages.index(page))

    @invariant()
    def all_is_at_rest(self) -> None:
        self.run(self.life.rest())

    @rule(number=numbers, name=items, resumable=st.booleans())
    def authorize(self, number: int, name: str, resumable: bool) -> None:
        self.run(self.life.authorize(self.life.pages[number], name, resumable=resumable))

    @rule(number=numbers, which=st.integers(0, 3))
    def acquire(self, number: int, which: int) -> None:
        if found := self.subscribed(number, which, live=False):
            self.run(self.do(found[0].acquire, found[1]))

    @rule(number=numbers, which=st.integers(0, 3))
    def cancel(self, number: int, which: int) -> None:
        if found := self.subscribed(number, which):
            found[1].endings.add("cancelled")
            self.run(self.do(found[0].call, "cancelSubscription", found[1]))

    @rule(batches=st.lists(batches, min_size=1, max_size=4))
    def publish(self, batches: list[Any]) -> None:
        self.run(self.life.publish(*batches))

    @rule(count=st.integers(2, 30))
    def publish_many(self, count: int) -> None:
        for number in range(count):
            self.run(self.life.publish([(number % 4, number % 3, 100)]))

    @rule(number=numbers, which=st.integers(0, 3))
    def revoke(self, number: int, which: int) -> None:
        if found := self.subscribed(number, which):
            found[1].endings.add("revoked")
            self.run(self.life.ask("revokeSubscription", token=found[1].token))

    @rule(name=items)
    def request_refetch(self, name: str) -> None:
        for page in self.life.pages:
            for one in page.subscriptions.values():
                if one.name == name:
                    one.endings.add("requested")
        self.run(self.life.ask("requestRefetch", items=[ITEMS[name][0]]))

    @rule(number=numbers, batches=st.lists(batches, max_size=3))
    def stall(self, number: int, batches: list[Any]) -> None:
        if found := self.connected(number):
            self.life.stall(found[0])
        for batch in batches:  # one after the other
            self.run(self.life.publish(batch))

    @rule(number=numbers)
    def read_on(self, number: int) -> None:
        if found := self.connected(number):
            page, connection = found
            self.run(self.do(connection.resume))
            self.run(self.life.rest())
            page.may_close -= {CloseCode.SLOW, CloseCode.NO_PONG}

    @rule(number=numbers)
    def cut(self, number: int) -> None:
        if found := self.connected(number):
            self.run(self.do(found[1].cut))
            found[0].disconnected()

    @rule(number=numbers)
    def vanish(self, number: int) -> None:
        """Lose the connection without the daemon's knowledge."""
        if found := self.connected(number):
            found[1].stalled = True
            self.life.ghosts.append(found[1])
            found[0].disconnected()

    @rule(number=numbers)
    def close(self, number: int) -> None:
        if found := self.connected(number):
            found[0].may_close.add(_NORMAL)
            self.run(self.do(found[1].resume))  # who closes reads what comes until the end
            self.run(self.do(found[1].feed, client_frame(0x88, _NORMAL.to_bytes(2, "big"))))

    @rule()
    def drain(self) -> None:
        self.run(self.do(self.life.drain))

    @rule(seconds=st.sampled_from([5, 30, 60, 130]))
    def wait(self, seconds: int) -> None:
        self.run(self.life.wait(seconds))

    async def do(self, function: Any, *arguments: Any) -> None:
        """Call a plain function while the loop runs."""
        function(*arguments)


class TestLives(Lives.TestCase):  # type: ignore[misc]  # made by hypothesis
    # The same lives each time; ``make fuzz`` lives others.
    settings = settings(
        stateful_step_count=STEPS, max_examples=settings().max_examples // 2, derandomize=True
    )


MUTANTS = {
    "a slow page is passed over": (
        session,
        "self.abort(CloseCode.SLOW)\n                return",
        "return",
    ),
    "who reads is slow": (session, "if not self._in_flight:  #", "if False:  #"),
    "nothing more after a stall": (
        session,
        "if self._outbox is not None and not self._scheduled:\n            self._schedule()",
        "pass",
    ),
    "nothing is kept for who is cut off": (
        subscriptions,
        "kept=subscription.resumable)",
        "kept=False)",
    ),
}


def a_day() -> None:
    """Live through a little of all."""
    state = Lives()
    small, half, huge = (1, 1, 100), (2, 1, 1_500), (3, 1, 5_000)
    try:
        state.begin(names=("all", "all"))
        state.all_is_at_rest()
        state.publish(batches=[[half], [half], [half]])
        state.all_is_at_rest()
        state.stall(number=0, batches=[[small], [small]])
        state.read_on(number=0)
        state.all_is_at_rest()
        state.stall(number=0, batches=[[small], [huge]])
        state.read_on(number=0)
        state.publish(batches=[[small]])
        state.all_is_at_rest()
        state.cut(number=1)
        state.connected(1)
        state.all_is_at_rest()
    finally:
        state.teardown()


def test_a_daemon_without_a_fault_comes_through_a_day() -> None:
    a_day()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_daemon_with_a_fault_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, old, new = MUTANTS[name]
    mutant = mutated(module, old, new)
    if module is session:
        for user in ("registry", "services.base", "services.datasync"):
            monkeypatch.setattr(f"syncserver.{user}.Session", mutant.Session)
    else:
        monkeypatch.setattr("syncserver.services.datasync.Subscriptions", mutant.Subscriptions)
    with pytest.raises(AssertionError):
        a_day()
