"""One run: a web app, its pages, nodes, a store, faults; and what was seen, judged."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.faults import checkers
from tests.faults.actors import Publisher, Site, Subscriber, until
from tests.faults.checkers import Event
from tests.faults.cluster import cluster
from tests.faults.nemesis import Nemesis
from tests.support.world import ITEMS

REST_SECONDS = 40.0


@dataclass
class Report:
    """What a run came to; ``wrong`` is empty if all went well."""

    seed: int
    seconds: float
    faults: Counter[str]
    history: list[Event]
    wrong: list[str]
    logged: list[str]

    def __str__(self) -> str:
        told = Counter(event["reason"] for event in self.history if event["type"] == "told")
        kinds = Counter(event["type"] for event in self.history)
        unknown = Counter(event["error"] for event in self.history if event["type"] == "unknown")
        applied = sum(len(event["changes"]) for event in self.history if event["type"] == "applied")
        calm = next(event["at"] for event in self.history if event["type"] == "calm")
        live = [event["at"] - calm for event in self.history if event["type"] == "live"]
        return "\n".join(
            [
                f"seed {self.seed}, {self.faults.total()} faults in {self.seconds:.0f} s",
                f"faults: {dict(self.faults.most_common())}",
                f"told: {dict(told.most_common())}",
                f"published {kinds['publish']}, in doubt {dict(unknown)}, applied {applied}",
                f"connections {kinds['connected']}, stale {kinds['stale']}, lives {kinds['life']}",
                (
                    f"after the last fault all live within {max(live, default=-1):.2f} s"
                    f" (median {statistics.median(live or [-1]):.2f})"
                ),
                *[f"WRONG {line}" for line in self.wrong[:20]],
                *[f"LOGGED {line}" for line in self.logged[:20]],
            ]
        )


async def run(
    folder: Path,
    kind: str,
    *,
    nodes: int,
    faults: int,
    seed: int,
    kinds: dict[str, int],
    pages: int = 30,
    publishers: int = 4,
    pause_seconds: float = 0.1,
    module: str = "syncserver",
    rest_seconds: float = REST_SECONDS,
) -> Report:
    """Let everything happen, come to rest for so long at most, and judge."""
    rng = random.Random(seed)
    began = time.monotonic()
    async with cluster(folder, kind, nodes, module=module) as some:
        site = Site(some, rng)
        names = list(ITEMS)
        subscribers = [
            Subscriber(site, f"page{number}", names[number % len(names)]) for number in range(pages)
        ]
        nemesis = Nemesis(site, subscribers, kinds, random.Random(seed))
        async with asyncio.TaskGroup() as group:
            writing = [
                group.create_task(Publisher(site, number, pause_seconds).run())
                for number in range(publishers)
            ]
            reading = [group.create_task(page.run()) for page in subscribers]
            await until(lambda: all(page.live_now for page in subscribers), REST_SECONDS)
            await nemesis.run(faults)
            await rest(site, subscribers, writing, rest_seconds)
            for task in reading:
                task.cancel()
        wrong = checkers.faults(site.history)
        report = Report(
            seed, time.monotonic() - began, nemesis.count, site.history, wrong, some.logged()
        )
    if wrong:
        path = folder / "history.jsonl"
        path.write_text("".join(json.dumps(event) + "\n" for event in site.history))
    site.client.close()
    return report


async def rest(
    site: Site, pages: list[Subscriber], writing: list[asyncio.Task[None]], seconds: float
) -> None:
    """End the faults and the publishing, and write down how all end."""
    site.record("calm")
    site.publishing = False
    await asyncio.wait(writing, timeout=REST_SECONDS)
    await asyncio.gather(*(_rests(page, seconds) for page in pages))
    await until(lambda: not any(checkers.staleness(site.history)), seconds)
    site.record("database", rows={item: site.seen(item) for item in ITEMS})
    for page in pages:
        page.record("final", rows=page.rows, item=page.item)
    site.record("log", changes=site.cluster.changes_in_log())
    site.closing = True


async def _rests(page: Subscriber, seconds: float) -> None:
    if await until(page.has_all, seconds):
        page.record("live")
