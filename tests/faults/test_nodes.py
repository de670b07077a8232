"""Several nodes on one Redis are one daemon to a page, whichever of them falls.

Times are printed (``pytest -s``); the bounds here are wide, as machines of CI are slow.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import websocket_connect

from tests.faults.actors import Publisher, Site, Subscriber, until
from tests.faults.checkers import staleness
from tests.faults.cluster import Cluster, Node, RedisStore, cluster
from tests.support.daemon import Peer

ALL = {"dealer": "All", "query": None}
PAGES = 20
BOUND_SECONDS = 15.0


async def page(node: Node) -> Peer:
    return Peer(await websocket_connect(node.ws_url))


async def acquire(peer: Peer, token: str, position: str | None) -> str:
    answer = await peer.call("datasync", "acquireSubscription", token=token, position=position)
    assert answer["type"] == "response", answer
    reached: str = answer["data"]["position"]
    return reached


async def seen(peer: Peer, until_id: int) -> tuple[list[int], str]:
    """Return the rows up to one, in the order in which they came, and the position after it."""
    ids: list[int] = []
    async with asyncio.timeout(BOUND_SECONDS):
        while True:
            for message in [*peer.take(), (await peer.read())["message"]]:
                if message["type"] == "delta":
                    ids.append(message["delta"]["data"]["id"])
                elif message["type"] == "position" and ids and ids[-1] == until_id:
                    return ids, message["position"]


async def insert(site: Site, node: Node, number: int) -> None:
    delta = {"type": "insert", "model": "Row", "data": {"id": number, "group": 0}}
    await site.post(node, "publishDeltas", seconds=BOUND_SECONDS, deltas=[delta])


async def token_of(site: Site, node: Node) -> str:
    token: str = await site.post(node, "authorizeSubscription", seconds=BOUND_SECONDS, items=[ALL])
    return token


@asynccontextmanager
async def site_of(some: Cluster) -> AsyncIterator[Site]:
    site = Site(some, random.Random(1))
    try:
        yield site
    finally:
        site.client.close()


@pytest.mark.seconds(60)
async def test_a_token_of_one_node_is_acquired_on_a_second_and_resumed_on_a_third(
    tmp_path: Path,
) -> None:
    """The second is killed; what all three published comes in one order."""
    async with cluster(tmp_path, "redis", 3) as some, site_of(some) as site:
        a, b, c = some.nodes
        token = await token_of(site, a)
        peer, watcher = await page(b), await page(c)
        position = await acquire(peer, token, None)
        other = await token_of(site, b)
        await acquire(watcher, other, None)
        for number, node in zip(range(6), itertools.cycle(some.nodes), strict=False):
            await insert(site, node, number)
        ids, position = await seen(peer, 5)
        assert ids == list(range(6))
        began = time.monotonic()
        await b.kill()
        await insert(site, a, 6)
        await insert(site, c, 7)
        again = await page(c)
        reached = await acquire(again, token, position)
        live = time.monotonic() - began
        await insert(site, c, 8)
        rest = [m["delta"]["data"]["id"] for m in again.take() if m["type"] == "delta"]
        assert rest == [6, 7]
        assert reached.partition(".")[0] == position.partition(".")[0]
        assert (await seen(again, 8))[0] == [8]
        assert (await seen(watcher, 8))[0] == list(range(9))
        print(f"\nkill of a node -> live on another: {1000 * live:.0f} ms (two publishes between)")
        for one in (peer, watcher, again):
            await one.close()


@asynccontextmanager
async def followed(some: Cluster) -> AsyncIterator[tuple[Site, list[Subscriber]]]:
    """Have pages follow one publisher that does not rest."""
    async with site_of(some) as site, asyncio.TaskGroup() as group:
        pages = [Subscriber(site, f"page{number}", "all") for number in range(PAGES)]
        tasks = [group.create_task(one.run()) for one in pages]
        writer = group.create_task(Publisher(site, 1, 0.02).run())
        try:
            assert await until(lambda: all(one.live_now for one in pages), BOUND_SECONDS)
            yield site, pages
        finally:
            site.publishing = False
            await writer
            site.closing = True
            for task in tasks:
                task.cancel()


def times(site: Site, type_: str, since: float) -> list[float]:
    """Return, for each page, when a thing first happened to it after ``since``, in ms."""
    first: dict[str, float] = {}
    for event in site.history:
        if event["type"] == type_ and event["at"] > since:
            first.setdefault(event["subscriber"], 1000 * (event["at"] - since))
    return sorted(first.values())


@pytest.mark.seconds(60)
async def test_pages_of_a_node_that_is_killed_are_soon_live_on_another(tmp_path: Path) -> None:
    async with cluster(tmp_path, "redis", 3) as some, followed(some) as (site, pages):
        victim = max(some.nodes, key=lambda node: sum(one.node is node for one in pages))
        hit = [one for one in pages if one.node is victim]
        killed = time.monotonic()
        await victim.kill()
        assert await until(lambda: all(one.live_now for one in hit), BOUND_SECONDS)
        took = 1000 * (time.monotonic() - killed)
        lost = {event["subscriber"] for event in site.history if event["type"] == "lost"}
        assert lost == {one.name for one in hit}
        assert not [event for event in site.history if event["type"] == "told"]
        print(f"\nkill of a node with {len(hit)} pages -> all live again: {took:.0f} ms")


@pytest.mark.seconds(60)
@pytest.mark.parametrize("keeps", [True, False], ids=["with its data", "without"])
async def test_a_restart_of_redis_disconnects_nobody_and_deliveries_go_on(
    tmp_path: Path, keeps: bool
) -> None:
    async with cluster(tmp_path, "redis", 2) as some, followed(some) as (site, pages):
        assert isinstance(some.store, RedisStore)
        # By default Redis puts off writing while the disk is busy, and a kill costs what it has
        # acknowledged; nodes rightly call that a new log.
        some.store.command("CONFIG", "SET", "appendfsync", "always")
        began = time.monotonic()
        await some.store.restart(0.5, lose=not keeps)
        back = time.monotonic()

        def delivered() -> bool:
            return len(times(site, "applied" if keeps else "life", back)) == PAGES

        assert await until(delivered, BOUND_SECONDS)
        published = [e["at"] for e in site.history if e["type"] == "ok" and e["at"] > back]
        assert await until(lambda: all(one.live_now for one in pages), BOUND_SECONDS)
        took = 1000 * (time.monotonic() - back)
        assert len(times(site, "stale", began)) == PAGES
        assert await until(lambda: not list(staleness(site.history)), BOUND_SECONDS)
        assert not [event for event in site.history if event["type"] == "lost"]
        told = {event["reason"] for event in site.history if event["type"] == "told"}
        assert told == (set() if keeps else {"epoch"})
        first = 1000 * (published[0] - back) if published else -1
        words = json.dumps(
            {
                "away_ms": round(1000 * (back - began)),
                "back_to_first_publish_ms": round(first),
                "back_to_all_delivering_ms": round(took),
                "disconnects": 0,
            }
        )
        print(f"\nrestart of Redis, keeps={keeps}: {words}")


@pytest.mark.seconds(60)
async def test_who_was_away_when_the_store_went_back_fetches_again(tmp_path: Path) -> None:
    """The older store has its position too, but not what came after it."""
    async with cluster(tmp_path, "redis", 2) as some, site_of(some) as site:
        assert isinstance(some.store, RedisStore)
        node = some.nodes[0]
        tokens = [await token_of(site, node) for _ in range(2)]
        away, present = [await page(one) for one in some.nodes]
        positions = [
            await acquire(peer, token, None)
            for peer, token in zip((away, present), tokens, strict=True)
        ]
        await away.close()
        some.store.copy()
        await insert(site, node, 1)
        await seen(present, 1)
        await some.store.restart(0, back=True)
        assert (await present.notice("refetch"))["reason"] == "epoch"
        again = await page(some.nodes[1])
        answer: Any = await again.call(
            "datasync", "acquireSubscription", token=tokens[0], position=positions[0]
        )
        assert (answer["code"], answer["reason"]) == ("refetch", "epoch")
        for peer in (present, again):
            await peer.close()
