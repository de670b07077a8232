"""Who makes things fail: one fault after the other, some at once, all from one seed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from tests.faults.actors import GONE, Site, Subscriber
from tests.faults.cluster import Node, RedisStore
from tests.support.proxy import DOWN, UP, Proxy

MEND_SECONDS = 20.0

NODES = {"node killed": 4, "node stopped": 3, "pages cut": 4}
NETWORK = {"link cut": 4, "link slow": 3, "link half open": 3, "link one way": 3}
REDIS = {
    "redis killed": 3,
    "redis stopped": 2,
    "redis emptied": 1,
    "older snapshot": 3,
    "flushall": 1,
    "meta deleted": 1,
    "stream deleted": 1,
    "connections killed": 3,
    "redis full": 2,
}
APP = {"token revoked": 2, "page left": 2}
EVERYTHING = NODES | NETWORK | REDIS | APP


class Nemesis:
    """Makes things fail, and mends what it broke; ``count`` says how often in which way.

    :param kinds: what it does, and how likely.
    """

    def __init__(
        self, site: Site, pages: Sequence[Subscriber], kinds: dict[str, int], rng: random.Random
    ) -> None:
        self.count: Counter[str] = Counter()
        self._site = site
        self._cluster = site.cluster
        self._pages = pages
        self._kinds = kinds
        self._rng = rng
        self._acts: dict[str, Callable[[], Awaitable[None]]] = {
            "node killed": self._node_killed,
            "node stopped": self._node_stopped,
            "pages cut": self._pages_cut,
            "link cut": self._link_cut,
            "link slow": lambda: self._link(lambda link: link.delay(self._rng.uniform(0, 0.3))),
            "link half open": lambda: self._link(Proxy.half_open),
            "link one way": lambda: self._link(lambda link: link.one_way(rng.choice((UP, DOWN)))),
            "redis killed": lambda: self._redis_killed(lose=False),
            "redis emptied": lambda: self._redis_killed(lose=True),
            "redis stopped": self._redis_stopped,
            "older snapshot": self._older_snapshot,
            "flushall": lambda: self._command("FLUSHALL"),
            "meta deleted": lambda: self._command("DEL", "{syncserver}:m:datasync"),
            "stream deleted": lambda: self._command("DEL", "{syncserver}:l:datasync"),
            "connections killed": lambda: self._command("CLIENT", "KILL", "TYPE", "normal"),
            "redis full": self._redis_full,
            "token revoked": self._token_revoked,
            "page left": self._page_left,
        }

    async def run(self, faults: int) -> None:
        """Do so many things; some of them two at a time."""
        while self.count.total() < faults:
            names = list(self._kinds)
            many = 2 if self._rng.random() < 0.3 else 1
            chosen = self._rng.choices(names, [self._kinds[name] for name in names], k=many)
            await asyncio.gather(*map(self._act, dict.fromkeys(chosen)))
            await asyncio.sleep(self._rng.uniform(0, 0.4))

    async def _act(self, kind: str) -> None:
        self.count[kind] += 1
        self._site.record("fault", kind=kind)
        await self._acts[kind]()
        self._site.record("mended", kind=kind)

    def _node(self) -> Node:
        return self._rng.choice(list(self._cluster.nodes))

    async def _node_killed(self) -> None:
        node = self._node()
        async with node.busy:
            await node.kill()
            await asyncio.sleep(self._rng.uniform(0, 0.3))
            deadline = time.monotonic() + MEND_SECONDS
            while not node.up:
                try:
                    await node.start()
                except (OSError, TimeoutError):  # its store may be away: it ends with 69
                    if time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.2)

    async def _node_stopped(self) -> None:
        node = self._node()
        async with node.busy:
            node.signal(signal.SIGSTOP)
            await asyncio.sleep(self._rng.uniform(0.1, 1))
            node.signal(signal.SIGCONT)

    async def _pages_cut(self) -> None:
        some = self._rng.sample(list(self._pages), self._rng.randint(1, len(self._pages)))
        for page in some:
            page.cut()
            if self._rng.random() < 0.2:
                await asyncio.sleep(0.01)

    def _links(self) -> list[Proxy]:
        links = self._cluster.store.proxies
        return self._rng.sample(links, self._rng.randint(1, len(links)))

    async def _link(self, fail: Callable[[Proxy], None]) -> None:
        links = self._links()
        for link in links:
            fail(link)
        await asyncio.sleep(self._rng.uniform(0.2, 1.2))
        for link in links:
            link.normal()

    async def _link_cut(self) -> None:
        for link in self._links():
            link.cut()

    @property
    def _redis(self) -> RedisStore:
        store = self._cluster.store
        assert isinstance(store, RedisStore)
        return store

    async def _command(self, *words: str) -> None:
        async with self._redis.busy:
            self._redis.command(*words)

    async def _redis_killed(self, *, lose: bool) -> None:
        async with self._redis.busy:
            await self._redis.restart(self._rng.choice((0.0, self._rng.uniform(0, 1.5))), lose=lose)

    async def _redis_stopped(self) -> None:
        async with self._redis.busy:
            self._redis.server.signal(signal.SIGSTOP)
            await asyncio.sleep(self._rng.uniform(0.1, 1))
            self._redis.server.signal(signal.SIGCONT)

    async def _redis_full(self) -> None:
        async with self._redis.busy:
            self._redis.command("CONFIG", "SET", "maxmemory", "1")
            await asyncio.sleep(self._rng.uniform(0.1, 0.6))
            self._redis.command("CONFIG", "SET", "maxmemory", "0")

    async def _token_revoked(self) -> None:
        """Revoke what a page has, whether it is there or away."""
        tokens = [page.token for page in self._pages if page.token is not None]
        node = self._rng.choice(self._cluster.running())
        if tokens:
            with contextlib.suppress(*GONE):  # another fault was in the way
                token = self._rng.choice(tokens)
                await self._site.post(node, "revokeSubscription", token=token)

    async def _page_left(self) -> None:
        self._rng.choice(list(self._pages)).leave()

    async def _older_snapshot(self) -> None:
        """Set the store back, while some nodes cannot see it until it has grown again."""
        async with self._redis.busy:
            since = self._redis.copy()
            await asyncio.sleep(self._rng.uniform(0.1, 0.6))
            links = self._redis.proxies
            blind = self._rng.sample(links, self._rng.randrange(len(links)))
            for link in blind:
                link.half_open()
            await self._redis.restart(0, back=True)
            self._site.record("restored", since=since)
            await asyncio.sleep(self._rng.uniform(0.5, 1))
            for link in blind:
                link.normal()
