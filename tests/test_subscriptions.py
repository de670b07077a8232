"""Positions are told when all before them was sent; grants live as long as they are held."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from syncserver.config import Limits
from syncserver.dealers import BroadcastDealer, KeyedDealer
from syncserver.engines.base import Entry, Listener, Taken
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import CloseCode, RefetchReason, Unavailable
from syncserver.position import Position
from syncserver.protocols.base import Frame, Protocol
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from tests.conftest import ExpectedLog
from tests.support.calls import MemoryPeer, backend_call, turns
from tests.support.delayed import dither
from tests.support.toy import FailingBesides, FailingProtocol, ToyProtocol
from tests.support.virtual import on_virtual_time

LIMITS = Limits(retention_seconds=10_000, tail_bytes=0)  # so that who joins asks the engine


class Gated(MemoryEngine):
    """An engine whose reads wait for a gate, and whose renewals may fail."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, clock=asyncio.get_running_loop().time)
        self.gate = asyncio.Event()
        self.gate.set()
        self.unavailable = False

    async def read(self, stream: str, after: Position, limit: int) -> Any:
        await self.gate.wait()
        return await super().read(stream, after, limit)

    async def renew_grants(self, tokens: Iterable[str], seconds: float) -> list[str]:
        if self.unavailable:
            raise Unavailable
        return await super().renew_grants(tokens, seconds)


class Lagging(Gated):
    """What one node of several hears comes late, while what it asks is answered at once."""

    def __init__(self, log: Gated, limits: Limits) -> None:
        super().__init__(limits)
        self.log = log
        self.reads = 0
        self.late = False
        self.unheard: list[Entry] = []

    async def head(self, stream: str) -> Position:
        return await self.log.head(stream)

    async def since(self, stream: str, seconds: float) -> Position:
        return await self.log.since(stream, seconds)

    async def read(self, stream: str, after: Position, limit: int) -> Any:
        self.reads += 1
        return await self.log.read(stream, after, limit)

    async def take_grant(self, token: str, seconds: float, *, resumable: bool) -> Taken:
        return await self.log.take_grant(token, seconds, resumable=resumable)

    async def append(
        self, stream: str, data: bytes, *, idempotency_key: str | None = None
    ) -> Position:
        return await self.log.append(stream, data, idempotency_key=idempotency_key)

    async def follow(self, stream: str, after: Position, listener: Listener) -> Any:
        self.listener = listener
        return await self.log.follow(stream, after, self)

    def entries_arrived(self, entries: Sequence[Entry]) -> None:
        self.unheard += entries
        if not self.late:
            self.hear()

    def hear(self) -> None:
        unheard, self.unheard = self.unheard, []
        self.listener.entries_arrived(unheard)


class Node:
    """A service with both its halves, and its peers."""

    def __init__(self, limits: Limits, engine: Gated | None = None) -> None:
        self.engine = engine or Gated(limits)
        dealers = [KeyedDealer(name="Row", model="Row", key="list")]
        self.service = DataSyncService(
            "s", [*dealers, BroadcastDealer(name="Other", model="Other")],
            engine=self.engine, limits=limits,
        )  # fmt: skip
        self.stream = self.service.subscriptions.stream
        self.frontend = ServiceRegistry([self.service], limits=limits)
        self.backend = ServiceRegistry([DataSyncBackend("b", self.service)], limits=limits)
        self.peers: list[Peer] = []

    async def call(self, command: str, **params: Any) -> Any:
        answer = await backend_call(self.backend, "b", command, **params)
        assert answer["type"] == "response", answer
        return answer["data"]

    async def grant(self, *queries: Any, dealer: str = "Row") -> str:
        items = [{"dealer": dealer, "query": query} for query in queries]
        token: str = await self.call("authorizeSubscription", items=items)
        return token

    async def publish(self, *lists: int, model: str = "Row") -> None:
        """Publish a batch with one row for each list, and let it be delivered."""
        offset = (await self.engine.head("s")).offset + 1
        rows = [{"id": number, "list": number, "n": offset} for number in lists]
        deltas = [{"type": "insert", "model": model, "data": row} for row in rows]
        await self.call("publishDeltas", deltas=deltas)
        await turns()

    def peer(self, protocol: type[Protocol] = NativeProtocol) -> Peer:
        peer = Peer(self, protocol)
        self.peers.append(peer)
        return peer


class Peer(MemoryPeer):
    """A peer of a node; what it was told is short to write down."""

    def __init__(self, node: Node, protocol: type[Protocol]) -> None:
        super().__init__(node.frontend, protocol)
        self.node = node

    async def acquire(self, token: str, position: str | None = None) -> list[str]:
        answer = await self.call("s", "acquireSubscription", token=token, position=position)
        return [brief(message) for message in answer]

    async def acquire_plainly(self, token: str) -> list[str]:
        return [
            brief(message) for message in await self.call("s", "acquireSubscription", token=token)
        ]

    def begin(self, token: str, position: str | None = None) -> None:
        self.begin_call("s", "acquireSubscription", token=token, position=position)

    def told(self) -> list[str]:
        return [brief(envelope["message"]) for envelope in self.take()]


def brief(message: dict[str, Any]) -> str:
    match message:
        case {"type": "delta", "delta": {"data": {"n": n}}}:
            return f"delta {n}"
        case {"type": "position", "position": position}:
            return f"position {Position.parse(position).offset}"
        case {"type": "response", "data": {"position": position}}:
            return f"response {Position.parse(position).offset}"
        case {"type": "error", "code": "refetch", "reason": reason}:
            return f"error refetch {reason}"
        case {"type": "error", "code": code}:
            return f"error {code}"
        case {"type": "refetch" | "ended" as kind, "reason": reason}:
            return f"{kind} {reason}"
        case {"type": kind}:
            return str(kind)
    raise AssertionError(message)


@asynccontextmanager
async def running(limits: Limits = LIMITS) -> AsyncIterator[Node]:
    node = Node(limits)
    await node.service.open()
    try:
        yield node
    finally:
        for peer in node.peers:
            peer.session.connection_lost()
        await turns(40)
        assert not len(node.service.subscriptions.peers)
        await node.service.close()
        await node.engine.close()


# Joining ahead of the node.


@asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[Node, Node, Lagging]]:
    """Two nodes on one log; what the second hears can be held back."""
    async with running() as node:
        engine = Lagging(node.engine, LIMITS)
        second = Node(LIMITS, engine)
        await second.service.open()
        try:
            yield node, second, engine
        finally:
            for peer in second.peers:
                peer.session.connection_lost()
            await turns(40)
            await second.service.close()


@on_virtual_time
async def test_who_comes_to_a_node_that_is_behind_waits_for_it_and_hears_nothing_twice() -> None:
    async with two_nodes() as (node, second, engine):
        engine.late = True
        token = await node.grant(1)
        await node.peer().acquire(token)
        await node.publish(1)
        peer, engine.reads = second.peer(), 0
        peer.begin(token, str(node.stream.cursor))
        await turns(40)
        assert peer.told() == []
        assert engine.reads == 1, "the log is asked once, not in each turn"
        await node.publish(1)
        engine.hear()
        await turns(40)
        assert peer.told() == ["delta 3", "response 3"]


@on_virtual_time
async def test_who_comes_to_a_node_that_stays_behind_is_told_to_come_again() -> None:
    async with two_nodes() as (node, second, engine):
        engine.late = True
        token = await node.grant(1)
        await node.peer().acquire(token)
        await node.publish(1)
        peer = second.peer()
        peer.begin(token, str(node.stream.cursor))
        await asyncio.sleep(11)
        assert peer.told() == ["error unavailable"]


# Positions.


@on_virtual_time
async def test_a_position_comes_with_the_last_frames_of_a_turn() -> None:
    async with running() as node:
        peer = node.peer()
        assert await peer.acquire(await node.grant(1, 2)) == ["response 0"]
        await node.publish(1)
        assert peer.told() == ["delta 1", "position 1"]
        await asyncio.gather(node.publish(1, 2), node.publish(1), node.publish(7))
        deltas, position = (told := peer.told())[:-1], told[-1]
        assert [one.split()[0] for one in deltas] == ["delta"] * 3
        assert position == "position 4", "one for all, and for what did not concern the peer too"
        await node.publish(7)
        assert peer.told() == []


@on_virtual_time
async def test_a_position_is_the_same_bytes_for_all_sessions_of_a_protocol() -> None:
    async with running() as node:
        peers = [node.peer() for _ in range(4)]
        for number, peer in enumerate(peers):
            await peer.acquire(await node.grant(number % 2))
        await node.publish(0, 1)
        positions = {id(peer.texts[-1]) for peer in peers}
        deltas = {id(peer.texts[0]) for peer in peers}
        assert len(positions) == 1
        assert len(deltas) == 2
        assert b'"position"' in peers[0].texts[-1]


@on_virtual_time
async def test_a_protocol_that_is_not_shared_is_told_positions_of_its_own() -> None:
    async with running() as node:
        peers = [node.peer(ToyProtocol) for _ in range(2)]
        for peer in peers:
            await peer.acquire(await node.grant(1))
        await node.publish(1)
        assert [peer.told() for peer in peers] == [["delta 1", "position 1"]] * 2


@on_virtual_time
async def test_frames_and_position_of_a_batch_for_one_view_are_put_in_one_walk() -> None:
    async with running() as node:
        peers = [node.peer() for _ in range(3)]
        for peer in peers:
            await peer.acquire(await node.grant(1))
        puts: Counter[int] = Counter()

        def counted(run: Sequence[Frame]) -> bool:
            puts[id(run)] += len(run)
            return True

        for peer in peers:
            peer.write = counted  # type: ignore[method-assign]
        await node.publish(1)
        assert list(puts.values()) == [3], "one run of one frame, the same for all three"


@pytest.mark.parametrize("protocol", [NativeProtocol, ToyProtocol])
@pytest.mark.parametrize(
    ("command", "params", "told"),
    [
        ("revokeSubscription", {}, ["delta 1", "refetch revoked"]),
        ("requestRefetch", {"model": "Row"}, ["delta 1", "refetch requested"]),
        ("requestRefetch", {"model": "Other"}, ["delta 1", "position 2"]),
    ],
)
@on_virtual_time
async def test_what_follows_a_batch_within_a_turn_is_told_after_it(
    protocol: type[Protocol], command: str, params: dict[str, Any], told: list[str]
) -> None:
    async with running() as node:
        peer = node.peer(protocol)
        token = await node.grant(1)
        await peer.acquire(token)
        await asyncio.gather(node.publish(1), node.call(command, **(params or {"token": token})))
        await turns()
        assert peer.told() == told


@on_virtual_time
async def test_a_batch_is_told_before_the_loss_or_the_staleness_that_follows_it() -> None:
    async with running() as node:
        peer, subscriptions = node.peer(), node.service.subscriptions
        await peer.acquire(await node.grant(1))
        start = node.stream.cursor
        await node.publish(1)
        record = (await node.stream.read(start, 1))[0]
        peer.take()
        subscriptions.deliver(record)
        subscriptions.freshness(stale=True)
        subscriptions.deliver(record)
        subscriptions.lost(RefetchReason.TRIMMED)
        subscriptions.turn_ended()
        await turns()
        assert peer.told() == ["delta 1", "stale", "delta 1", "refetch trimmed"]


@on_virtual_time
async def test_a_protocol_that_is_not_shared_makes_no_position_that_has_to_wait() -> None:
    async with running() as node:
        peer = node.peer(ToyProtocol)
        await peer.acquire(await node.grant(1))
        token = await behind(node, [2])
        node.engine.gate.clear()
        peer.begin(token)
        await turns()
        await node.publish(1)
        assert peer.told() == ["delta 2"]
        node.engine.gate.set()
        await turns(40)
        assert peer.told() == ["response 2", "position 2"], "numbered without a gap"


@pytest.mark.parametrize(
    ("what", "kind", "told"),
    [
        ("delta", FailingProtocol, ["delta 1", "position 1"]),
        ("position", FailingBesides, ["delta 1", "delta 1", "position 1"]),
        ("staleness", FailingProtocol, ["stale"]),
        ("refetch", FailingProtocol, ["refetch requested"]),
    ],
)
async def test_a_protocol_that_fails_on_what_all_are_told_ends_its_own_session_alone(
    what: str, kind: type[Protocol], told: list[str], expected_log: ExpectedLog
) -> None:
    async with running() as node:
        peers = [node.peer(protocol) for protocol in (ToyProtocol, kind, NativeProtocol)]
        lists = [1, 2] if what == "position" else [1]  # with two views it is told by itself
        for peer in peers:
            for one in lists:
                await peer.acquire(await node.grant(one))
            peer.told()
        who = "subscriptions" if what == "delta" else "session"
        with expected_log(f"syncserver.{who}", "cannot be told"):
            if what == "staleness":
                node.stream.went_stale()
            elif what == "refetch":
                await node.call("requestRefetch", model="Row")
            else:
                await node.publish(*lists)
            await turns()
        assert [peer.told() for peer in peers[::2]] == [told, told]
        assert [peer.closed for peer in peers] == [None, (CloseCode.INTERNAL, ""), None]


@on_virtual_time
async def test_plain_subscriptions_are_told_no_position() -> None:
    async with running() as node:
        peer = node.peer()
        assert await peer.acquire_plainly(await node.grant(1)) == ["response"]
        await node.publish(1)
        await asyncio.sleep(1_000)
        assert peer.told() == ["delta 1"]


@on_virtual_time
async def test_a_session_with_both_kinds_is_told_positions_for_the_resumable_one() -> None:
    async with running() as node:
        peer = node.peer()
        await peer.acquire_plainly(await node.grant(1))
        token = await node.grant(2)
        await peer.acquire(token)
        await node.publish(2)
        assert peer.told() == ["delta 1", "position 1"]
        await node.publish(1)
        assert peer.told()[0] == "delta 2"
        await node.publish(1, 2)
        assert peer.told() == ["delta 3", "delta 3", "position 3"]
        await peer.call("s", "cancelSubscription", token=token)
        await node.publish(1, 2)
        await asyncio.sleep(100)
        assert peer.told() == ["delta 4"]


async def behind(node: Node, lists: Sequence[int]) -> str:
    """Return a token that has something to replay."""
    token = await node.grant(*lists)
    await node.publish(9)
    return token


@on_virtual_time
async def test_positions_wait_while_a_sibling_joins_and_are_told_after_its_answer() -> None:
    async with running() as node:
        peer, other = node.peer(), node.peer()
        for each in (peer, other):
            await each.acquire(await node.grant(1))
        token = await behind(node, [2])
        node.engine.gate.clear()
        peer.begin(token)
        await turns()
        for _ in range(3):
            await node.publish(1)
        assert peer.told() == ["delta 2", "delta 3", "delta 4"]
        assert other.told()[-1] == "position 4"
        node.engine.gate.set()
        await turns(40)
        assert peer.told() == ["response 4", "position 4"]


@pytest.mark.parametrize("how", ["revoked", "requested", "too far", "cut short"])
@on_virtual_time
async def test_positions_are_told_soon_after_a_sibling_failed_to_join(how: str) -> None:
    limits = replace(LIMITS, resume_max_entries=8)
    async with running(limits) as node:
        peer = node.peer()
        await peer.acquire(await node.grant(1))
        token = await behind(node, [2])
        node.engine.gate.clear()
        peer.begin(token)
        await turns()
        for _ in range(10 if how == "too far" else 1):
            await node.publish(1)
        assert {one.split()[0] for one in peer.told()} == {"delta"}
        if how == "revoked":
            await node.call("revokeSubscription", token=token)
        elif how == "requested":
            await node.call("requestRefetch", items=[{"dealer": "Row", "query": 2}])
        elif how == "cut short":
            await node.engine.close()
            node.engine._logs["s"].head = Position.start()
        node.engine.gate.set()
        await turns(60)
        told = sorted(peer.told())
        assert [one.rpartition(" ")[0] for one in told] == ["error refetch", "position"]
        assert asyncio.get_running_loop().time() < 1


async def test_who_lost_in_one_turn_what_it_was_sent_something_by_is_told_the_position() -> None:
    async with running() as node:
        peer = node.peer()
        token = await node.grant(1)
        await peer.acquire(token)
        await peer.acquire(await node.grant(2))
        await turns()
        peer.told()
        delta = {"type": "insert", "model": "Row", "data": {"id": 1, "list": 1, "n": 1}}
        await asyncio.gather(
            node.call("publishDeltas", deltas=[delta]),
            node.call("revokeSubscription", token=token),
        )
        await turns()
        assert peer.told() == ["delta 1", "refetch revoked", "position 2"]


@on_virtual_time
async def test_positions_are_told_soon_after_a_dealer_took_a_joining_sibling_along() -> None:
    async with running() as node:
        peer = node.peer()
        await peer.acquire(await node.grant(None, dealer="Other"))
        token = await behind(node, [2])
        node.engine.gate.clear()
        peer.begin(token)
        await turns()
        await node.publish(1, model="Other")
        assert peer.told() == ["delta 2"]
        node.service.unregister_dealer(node.service.views.dealers["Row"])
        await turns()
        assert "position 2" in peer.told()
        node.engine.gate.set()
        await turns(40)
        assert peer.told() == ["error refetch filter_changed"]


@on_virtual_time
async def test_positions_wait_while_a_sibling_is_condemned_and_are_told_with_its_end() -> None:
    limits = replace(LIMITS, refetch_per_second=10)
    async with running(limits) as node:
        crowd = [node.peer() for _ in range(20)]
        for each in crowd:
            await each.acquire(await node.grant(1))
        peer = node.peer()
        await peer.acquire(await node.grant(1))
        await peer.acquire(await node.grant(None, dealer="Other"))
        await turns()
        peer.take()
        await node.call("requestRefetch", model="Row")
        await turns()
        await node.publish(5, model="Other")
        await node.publish(1)
        assert peer.told() == ["delta 2", "delta 3"], "who is condemned is served to the end"
        await asyncio.sleep(1)
        assert peer.told() == []
        await asyncio.sleep(2)
        assert peer.told() == ["refetch requested", "position 3"]
        assert [each.told()[-1] for each in crowd] == ["refetch requested"] * 20
        await node.publish(1)
        await node.publish(1, model="Other")
        assert peer.told() == ["delta 5", "position 5"]


@on_virtual_time
async def test_refetches_are_spread_over_time() -> None:
    limits = replace(LIMITS, refetch_per_second=10)
    async with running(limits) as node:
        crowd = [node.peer() for _ in range(30)]
        for each in crowd:
            await each.acquire(await node.grant(1))
        await node.call("requestRefetch", model="Row")
        await turns()
        told = 0
        for _ in range(3):
            await asyncio.sleep(0.95)
            now = sum("refetch requested" in each.told() for each in crowd)
            assert 8 <= now <= 12
            told += now
        await asyncio.sleep(1)
        assert told + sum("refetch requested" in each.told() for each in crowd) == 30


@on_virtual_time
async def test_positions_are_told_soon_after_a_condemned_sibling_is_cancelled() -> None:
    limits = replace(LIMITS, refetch_per_second=1)
    async with running(limits) as node:
        first, peer = node.peer(), node.peer()
        for _ in range(30):
            await first.acquire(await node.grant(1))
        token = await node.grant(1)
        await peer.acquire(token)
        await peer.acquire(await node.grant(None, dealer="Other"))
        await turns()
        peer.take()
        await node.call("requestRefetch", model="Row")
        await node.publish(5, model="Other")
        assert peer.told() == ["delta 2"]
        await peer.call("s", "cancelSubscription", token=token)
        await turns()
        assert peer.told() == ["position 2"]
        assert asyncio.get_running_loop().time() < 1


@on_virtual_time
async def test_who_comes_back_while_condemned_is_told_to_fetch_again() -> None:
    limits = replace(LIMITS, refetch_per_second=1)
    async with running(limits) as node:
        crowd, peer = node.peer(), node.peer()
        for _ in range(20):
            await crowd.acquire(await node.grant(1))
        token = await node.grant(1)
        await peer.acquire(token)
        await node.publish(1)
        position = peer.take()[-1]["message"]["position"]
        await node.call("requestRefetch", model="Row")
        await node.publish(1)
        assert peer.told() == ["delta 3"]
        peer.session.connection_lost()
        await turns()
        again = node.peer()
        assert (await again.acquire(token, position))[-1] == "error refetch requested"
        assert await again.acquire(token, position) == ["error refetch expired"]
        await asyncio.sleep(100)
        assert again.told() == []


@dataclass
class Held:
    """What a peer of the random test has: the lists of each token, and where its grant begins."""

    lists: list[int]
    start: int

    def counts(self, log: dict[int, list[int]]) -> Counter[int]:
        """Return how many deltas of each entry it is to be sent."""
        return Counter(
            {n: len({*self.lists} & {*lists}) for n, lists in log.items() if n > self.start}
        )


@pytest.mark.parametrize("seed", range(30))
@on_virtual_time
async def test_a_position_is_told_when_all_before_it_was_sent_and_nothing_after_it(
    seed: int,
) -> None:
    rng = random.Random(seed)
    limits = replace(LIMITS, position_seconds=0.01, tail_bytes=rng.choice([0, 3_000]))
    log = dict[int, list[int]]()
    async with running(limits) as node:
        peers = [node.peer(rng.choice([NativeProtocol, ToyProtocol])) for _ in range(4)]
        held: dict[Peer, list[Held]] = {peer: [] for peer in peers}

        async def subscribe() -> None:
            for _ in range(8):
                lists = rng.sample(range(4), rng.randint(1, 3))
                token = await node.grant(*lists)
                start = node.engine._grants[token].grant.position.offset
                await dither(rng, 10)
                peer = rng.choice(peers)
                peer.begin(token)
                held[peer].append(Held(lists, start))
                await asyncio.sleep(rng.choice([0, 0.005, 0.02]))

        async def publish() -> None:
            for number in range(1, 41):
                log[number] = rng.sample(range(4), rng.randint(1, 4))
                if rng.random() < 0.2:
                    node.engine.gate.clear()
                await node.publish(*log[number])
                await asyncio.sleep(rng.choice([0, 0, 0.004, 0.011]))
                node.engine.gate.set()

        await asyncio.gather(subscribe(), publish())
        await asyncio.sleep(1)
        for peer in peers:
            positions = check_positions(peer.told(), held[peer], log)
            assert positions or not held[peer]


def check_positions(
    told: Sequence[str], held: Sequence[Held], log: dict[int, list[int]]
) -> Sequence[int]:
    """Check what a peer was told; return the positions, of which the last must be the head."""
    positions, sent, answered = list[int](), Counter[int](), list[Held]()
    for one in told:
        kind, number = one.split()
        match kind:
            case "delta":
                sent[int(number)] += 1
            case "response":
                answered.append(held[len(answered)])
                positions.append(int(number))
            case "position":  # of those that are live, or of the replay of the first
                due = sum((each.counts(log) for each in answered or held[:1]), Counter[int]())
                assert int(number) >= max(positions, default=0)
                assert sent == +Counter({n: due[n] for n in due if n <= int(number)})
                positions.append(int(number))
    assert len(answered) == len(held)
    assert not held or positions[-1] == len(log)
    assert sent == sum((each.counts(log) for each in held), Counter[int]())
    return positions


# Rounds.


@on_virtual_time
async def test_a_quiet_session_is_told_the_position_in_rounds_while_the_stream_moves() -> None:
    async with running() as node:
        peer = node.peer()
        await peer.acquire(await node.grant(1))
        await node.publish(7)
        await asyncio.sleep(LIMITS.position_seconds * 1.5)
        assert peer.told() == ["position 1"]
        await node.publish(7)
        await node.publish(7)
        assert peer.told() == []
        await asyncio.sleep(LIMITS.position_seconds)
        assert peer.told() == ["position 3"]


@on_virtual_time
async def test_a_quiet_stream_is_not_talked_about() -> None:
    async with running() as node:
        peer = node.peer()
        await peer.acquire(await node.grant(1))
        await node.publish(1)
        assert peer.told() == ["delta 1", "position 1"]
        await asyncio.sleep(LIMITS.position_seconds * 40)
        assert peer.told() == []
        assert len(node.stream._waiting) <= 1


@pytest.mark.parametrize("most", [40, 4, 3, 1])
@on_virtual_time
async def test_a_quiet_session_is_told_early_when_the_stream_moves_fast(most: int) -> None:
    limits = replace(LIMITS, resume_max_entries=most)
    async with running(limits) as node:
        peer, token = node.peer(), await node.grant(1)
        await peer.acquire(token)
        await turns()
        quarter = max(1, most // 4)
        for _ in range(quarter - 1):
            await node.publish(7)
        assert peer.told() == []
        await node.publish(7)
        assert peer.told() == [f"position {quarter}"]
        assert asyncio.get_running_loop().time() == 0


@on_virtual_time
async def test_a_quiet_session_is_told_soon_when_the_stream_moves_by_many_bytes() -> None:
    limits = replace(LIMITS, position_seconds=1_000, retention_bytes=4_000)
    async with running(limits) as node:
        peer = node.peer()
        await peer.acquire(await node.grant(1))
        while node.stream.passed_bytes <= 1_000:
            await node.publish(7)
        await asyncio.sleep(3)
        assert len(peer.told()) == 1


@on_virtual_time
async def test_a_quiet_session_can_always_resume() -> None:
    limits = replace(LIMITS, resume_max_entries=100, retention_entries=100)
    async with running(limits) as node:
        peer, token = node.peer(), await node.grant(1)
        position = (await peer.call("s", "acquireSubscription", token=token, position=None))[-1][
            "data"
        ]["position"]
        for number in range(1_000):
            await node.publish(7)
            for envelope in peer.take():
                position = envelope["message"]["position"]
            if number % 90 == 89:
                peer.session.connection_lost()
                await turns()
                peer = node.peer()
                answer = await peer.call("s", "acquireSubscription", token=token, position=position)
                position = answer[-1]["data"]["position"]


@on_virtual_time
async def test_many_quiet_sessions_are_told_some_in_each_turn() -> None:
    async with running() as node:
        peers = [node.peer() for _ in range(700)]
        for peer in peers:
            await peer.acquire(await node.grant(2))
        await turns()
        for peer in peers:
            peer.take()
        await node.publish(7)
        await asyncio.sleep(LIMITS.position_seconds * 1.5)
        assert {tuple(peer.told()) for peer in peers} == {("position 1",)}


# Grants.


@on_virtual_time
async def test_a_held_grant_is_renewed_and_one_let_go_of_is_kept_for_a_while() -> None:
    async with running() as node:
        peer, token = node.peer(), await node.grant(1)
        position = (await peer.call("s", "acquireSubscription", token=token, position=None))[-1][
            "data"
        ]["position"]
        await asyncio.sleep(LIMITS.resume_seconds * 10)
        peer.session.connection_lost()
        await asyncio.sleep(LIMITS.resume_seconds - 1)
        again = node.peer()
        assert await again.acquire(token, position) == ["response 0"]
        await asyncio.sleep(LIMITS.resume_seconds * 10)
        assert again.told() == []
        again.session.connection_lost()
        await asyncio.sleep(LIMITS.resume_seconds + 1)
        assert await node.peer().acquire(token, position) == ["error refetch expired"]
        assert await node.peer().acquire(token) == ["error no_such_subscription"]


@on_virtual_time
async def test_the_grant_of_a_plain_subscription_goes_with_its_connection() -> None:
    async with running() as node:
        peer, token = node.peer(), await node.grant(1)
        await peer.acquire_plainly(token)
        await asyncio.sleep(LIMITS.resume_seconds * 10)
        assert await node.peer().acquire_plainly(token) == ["error already_acquired"]
        assert await node.peer().acquire(token) == ["error already_acquired"]
        peer.session.connection_lost()
        await turns()
        assert await node.peer().acquire_plainly(token) == ["error no_such_subscription"]
        assert not node.engine._grants


@on_virtual_time
async def test_a_token_that_nobody_acquires_is_worth_nothing_in_time() -> None:
    async with running() as node:
        token = await node.grant(1)
        await asyncio.sleep(LIMITS.grant_seconds + 1)
        assert await node.peer().acquire(token) == ["error no_such_subscription"]


@on_virtual_time
async def test_a_held_grant_that_is_gone_ends_its_subscription_and_no_other() -> None:
    async with running() as node:
        peer, token = node.peer(), await node.grant(1)
        await peer.acquire(token)
        await peer.acquire(await node.grant(2))
        await peer.acquire_plainly(await node.grant(3))
        await node.engine.release_grant(token, 1, 0)  # as a store that lost a key
        await asyncio.sleep(LIMITS.resume_seconds)
        assert peer.told() == ["refetch expired"]
        await node.publish(1, 2, 3)
        assert peer.told() == ["delta 1", "delta 1", "position 1"]


@on_virtual_time
async def test_a_long_replay_that_is_cut_goes_on_where_it_was() -> None:
    async with running() as node:
        token = await node.grant(1)
        for _ in range(200):
            await node.publish(1)
        told = await node.peer().acquire(token)
        places = [place for place, word in enumerate(told) if word.startswith("position")]
        assert len(places) > 2
        for place in places:
            assert told[place].split()[1] == told[place - 1].split()[1], "all up to it was sent"
        assert [word for word in told if word.startswith("delta")] == [
            f"delta {number + 1}" for number in range(200)
        ]


@on_virtual_time
async def test_a_replay_beside_a_live_subscription_tells_no_position_of_its_own() -> None:
    async with running() as node:
        peer, late = node.peer(), await node.grant(1)
        await peer.acquire(await node.grant(2))
        for _ in range(200):
            await node.publish(1)
        peer.told()
        told = await peer.acquire(late)
        assert {word.split()[0] for word in told} == {"delta", "response"}


@on_virtual_time
async def test_grants_that_expired_together_are_told_in_turn() -> None:
    """As after a store was away for longer than grants live."""
    many = 3 * LIMITS.refetch_per_second // 10
    async with running() as node:
        peers = [node.peer() for _ in range(many)]
        for peer in peers:
            token = await node.grant(1)
            await peer.acquire(token)
            await node.engine.release_grant(token, 1, 0)
        heard = [peer for peer in peers if peer.told()]
        while not heard:
            await asyncio.sleep(0.001)
            heard = [peer for peer in peers if peer.told()]
        assert len(heard) == LIMITS.refetch_per_second // 10
        await node.publish(1)
        await asyncio.sleep(1)
        rest = [peer.told() for peer in peers if peer not in heard]
        assert rest == [["refetch expired"]] * (many - len(heard)), "they see nothing more"


@on_virtual_time
async def test_a_node_that_has_just_started_knows_the_late_from_the_latest() -> None:
    async with running(Limits()) as old:
        rows = [{"id": 1, "list": 1, "n": n} for n in range(3)]
        await old.call("publishDeltas", deltas=[versioned(rows[1], rows[2], 2)])
        new = Node(Limits(), old.engine)
        await new.service.open()
        peer, token = new.peer(), await new.grant(1)
        assert await peer.acquire(token) == ["response 1"]
        await new.call("publishDeltas", deltas=[versioned(rows[0], rows[1], 1)])
        await turns()
        (delta, _) = peer.take()
        assert delta["message"]["delta"]["newData"] == rows[2]
        await new.service.close()


def versioned(old: Any, new: Any, version: int) -> dict[str, Any]:
    return {"type": "update", "model": "Row", "oldData": old, "newData": new, "version": version}


@on_virtual_time
async def test_renewing_goes_on_when_the_store_is_back() -> None:
    async with running() as node:
        peer, token = node.peer(), await node.grant(1)
        await peer.acquire(token)
        node.engine.unavailable = True
        await asyncio.sleep(LIMITS.resume_seconds * 0.8)
        node.engine.unavailable = False
        await asyncio.sleep(LIMITS.resume_seconds * 5)
        assert peer.told() == []
        assert await node.peer().acquire(token) == ["response 0"]
        await turns()
        assert peer.told() == ["ended taken_over"]


@on_virtual_time
async def test_a_subscription_that_was_told_to_fetch_again_leaves_no_grant() -> None:
    async with running() as node:
        peer, token = node.peer(), await node.grant(1)
        await peer.acquire(token)
        await node.call("requestRefetch", model="Row")
        await asyncio.sleep(1)
        assert peer.told() == ["refetch requested"]
        assert not node.engine._grants
        assert await node.peer().acquire(token) == ["error no_such_subscription"]


# What goes for all.


@on_virtual_time
async def test_a_log_that_is_lost_ends_all_subscriptions_and_no_connection(
    expected_log: ExpectedLog,
) -> None:
    async with running() as node:
        peer, joining = node.peer(), node.peer()
        await peer.acquire(await node.grant(1))
        await peer.acquire_plainly(await node.grant(1))
        token = await behind(node, [1])
        node.engine.gate.clear()
        joining.begin(token)
        await turns()
        node.engine._logs["s"].head = Position.start()
        with expected_log("syncserver.stream", "lost"):
            node.stream.position_lost(RefetchReason.EPOCH)
            node.engine.gate.set()
            await asyncio.sleep(1)
        assert peer.told() == ["refetch epoch", "refetch epoch"]
        assert joining.told() == ["error refetch epoch"]
        node.engine._logs.clear()
        assert peer.session.open


@on_virtual_time
async def test_who_lost_a_log_is_told_in_turn_and_gets_nothing_more_meanwhile(
    expected_log: ExpectedLog,
) -> None:
    async with running(replace(LIMITS, refetch_per_second=10)) as node:
        peers = [node.peer() for _ in range(20)]
        for peer in peers:
            await peer.acquire(await node.grant(1))
        node.engine._logs["s"].head = Position.start()
        with expected_log("syncserver.stream", "lost"):
            node.stream.position_lost(RefetchReason.EPOCH)
            await asyncio.sleep(0.45)
        await node.publish(1)
        told = [peer.told() for peer in peers]
        assert told[:5] == [["refetch epoch"]] * 5
        assert told[5:] == [[]] * 15
        await asyncio.sleep(3)
        assert [peer.told() for peer in peers[5:]] == [["refetch epoch"]] * 15
        assert not node.service.subscriptions.peers.subscriptions()


@on_virtual_time
async def test_all_who_have_subscriptions_hear_that_the_log_is_away_and_back() -> None:
    async with running() as node:
        peers = [node.peer() for _ in range(3)]
        await peers[0].acquire(await node.grant(1))
        await peers[1].acquire_plainly(await node.grant(1))
        node.stream.went_stale()
        node.stream.came_fresh()
        await turns()
        assert [peer.told() for peer in peers] == [["stale", "fresh"], ["stale", "fresh"], []]
