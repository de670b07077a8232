"""A crowd that is in nobody's way: thousands who idle, and hundreds who stop reading.

    python -m bench.crowd --idle 10000 --stalled 1000

One subscriber, the canary, is sent a delta every few milliseconds throughout; what it waits for
each is the measure. docs/howto/benchmark says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import resource
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import load, report
from bench.build import Missing, say
from bench.figures import merged, quantile
from bench.load import Answer, Generator
from bench.peers import Row, now_micros, publish, row
from bench.product import Product
from bench.server import Poster
from bench.stage import settle

POSTS, WARM = 100, 20
PACE_SECONDS = 0.02
WAIT_SECONDS = 20.0
# The stalled are sent so much at a time, until all are closed or it is enough.
BATCH, TEXT_BYTES = 1, 15_000
LOOK_SECONDS = 0.5
RESERVED_FILES = 200
CLOSED = re.compile(r'^syncserver_sessions_closed_total\{.*code="4008".*\} (\S+)$', re.MULTILINE)
HEADS = ("", "clients", "RSS MB", "p50 ms", "p99 ms", "last ms", "sent", "arrived", "closed 4008")


@dataclass(frozen=True)
class Stage:
    """What was seen while one crowd was there; ``lost`` and ``repeated`` are the canary's."""

    name: str
    clients: int
    resident_bytes: int
    p50_ms: float
    p99_ms: float
    last_ms: float
    sent: int
    arrived: int
    lost: int
    repeated: int
    slow_closes: int


class Group:
    """Clients in a process of their own, which can be stopped as a whole: then none reads."""

    def __init__(self, start: Sequence[str], daemon: Product, folder: Path, entry: int) -> None:
        self.generator = Generator(start)
        self._daemon = daemon
        self._texts = folder / f"texts-{entry}"
        self._item: Row = {"dealer": "CommentsByBlogEntry", "query": entry}

    def connect(self, poster: Poster, count: int) -> None:
        """Connect and subscribe so many; Missing if some are refused."""
        tokens = [self._daemon.token(poster, [self._item]) for _ in range(count)]
        answer = self._daemon.acquiring_with(self.generator, tokens, None, self._texts)()
        if answer.failed:
            raise Missing(f"{answer.failed} of {count} clients could not connect")

    def stop_reading(self) -> None:
        """Leave everything unread from now on."""
        self.generator.signal(signal.SIGSTOP)

    def end(self) -> None:
        """Drop all clients and end the process."""
        self.generator.signal(signal.SIGCONT)
        self.generator.stop()


class Canary:
    """The subscriber that is measured, and whoever publishes to it."""

    def __init__(self, daemon: Product, poster: Poster, posts: int) -> None:
        self._daemon, self._poster = daemon, poster
        self._posts = posts
        self._sent = 0

    def stage(self, name: str, clients: int, between: Callable[[], bool] = lambda: False) -> Stage:
        """Publish at a pace, for some time and as long as ``between`` has more to do."""
        sent, more = 0, True
        began = time.monotonic()
        while more or sent < self._posts:
            more = between()
            publish(self._daemon, self._poster, [row(self._sent, now_micros())])
            sent += 1
            self._sent += 1
            time.sleep(max(0.0, began + sent * PACE_SECONDS - time.monotonic()) if not more else 0)
        answer = self._daemon.generator.wait(sent, WAIT_SECONDS)
        return self._seen(name, clients, sent, answer)

    def _seen(self, name: str, clients: int, sent: int, answer: Answer) -> Stage:
        times = merged([answer.latency])
        came = [count for count, _ in answer.last]
        return Stage(
            name=name,
            clients=clients,
            resident_bytes=self._daemon.server.resident_bytes(),
            p50_ms=quantile(times, 0.5) / 1000,
            p99_ms=quantile(times, 0.99) / 1000,
            last_ms=quantile(times, 1) / 1000,
            sent=sent,
            arrived=answer.frames,
            lost=sent - len(came),
            repeated=sum(came) - len(came),
            slow_closes=slow_closes(self._daemon),
        )


def slow_closes(daemon: Product) -> int:
    """Return how many the daemon has closed with 4008, as its metrics say."""
    with urllib.request.urlopen(daemon.metrics_url, timeout=WAIT_SECONDS) as answer:
        return sum(int(float(number)) for number in CLOSED.findall(answer.read().decode()))


class Flood:
    """What is published to those who do not read, until the daemon has closed them all."""

    def __init__(self, daemon: Product, poster: Poster, stalled: int, seconds: float) -> None:
        self._daemon, self._poster, self._stalled = daemon, poster, stalled
        self._end = time.monotonic() + seconds
        self._looked = time.monotonic()
        self._body = comments(BATCH)

    def more(self) -> bool:
        """Publish a batch; tell whether somebody is left."""
        self._poster.post(self._body)
        now = time.monotonic()
        if now < self._looked + LOOK_SECONDS:
            return True
        self._looked = now
        return now < self._end and slow_closes(self._daemon) < self._stalled


def comments(count: int) -> bytes:
    """Return a call that publishes comments for the blog entry of the stalled."""
    data = {"id": 1, "entryId": STALLED, "text": "x" * TEXT_BYTES}
    deltas = [{"type": "insert", "model": "Comment", "data": data}] * count
    message = {"command": "publishDeltas", "params": {"deltas": deltas}}
    return json.dumps({"service": "datasync_backend", "message": message}).encode()


IDLE, STALLED = 0, 1


def measure(
    idle: int, stalled: int, *, start: Sequence[str], posts: int = POSTS, flood_seconds: float = 30
) -> Iterator[Stage]:
    """Give one stage after the other; the daemon ends with the last."""
    make_room(idle + stalled)
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="syncserver-crowd-")))
        daemon = Product(start)
        held.callback(daemon.stop)
        poster = held.enter_context(daemon.poster())
        daemon.connect(1)
        Canary(daemon, poster, WARM).stage("warming up", 1)
        canary = Canary(daemon, poster, posts)
        yield canary.stage("alone", 1)
        groups = [Group(start, daemon, folder, entry) for entry in (IDLE, STALLED)]
        for group in groups:
            held.callback(group.end)
        say(f"connecting {idle:,} who idle")
        groups[IDLE].connect(poster, idle)
        settle(daemon.server)
        yield canary.stage("idle crowd", 1 + idle)
        say(f"connecting {stalled:,} who will stop reading")
        groups[STALLED].connect(poster, stalled)
        groups[STALLED].stop_reading()
        flood = Flood(daemon, poster, stalled, flood_seconds)
        yield canary.stage("stall", 1 + idle + stalled, flood.more)
        settle(daemon.server)
        yield canary.stage("after", 1 + idle)


def make_room(clients: int) -> None:
    """Let the daemon and the clients have so many open files; Missing if they may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + clients // 9 + RESERVED_FILES  # the daemon keeps a tenth for itself
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Missing(f"{wanted} open files are needed and {hard} allowed; ulimit -Hn, or fewer")
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def table(stages: Sequence[Stage]) -> str:
    """Return a row for each stage, and what became of the canary."""
    rows = [HEADS]
    for one in stages:
        times = [one.p50_ms, one.p99_ms, one.last_ms]
        counts = [one.sent, one.arrived, one.slow_closes]
        megabytes = f"{one.resident_bytes / 1e6:.1f}"
        cells = [f"{one.clients:,}", megabytes, *map(report.number, times), *map(str, counts)]
        rows.append((one.name, *cells))  # type: ignore[arg-type]
    lost, repeated = sum(one.lost for one in stages), sum(one.repeated for one in stages)
    return f"{report.table(rows)}\nof the canary's deltas {lost} were lost, {repeated} repeated"


def main() -> int:
    """Measure and tell; 1 if the canary noticed a loss, or somebody who stalls is left."""
    parser = argparse.ArgumentParser(prog="python -m bench.crowd")
    parser.add_argument("--idle", metavar="N", type=int, default=10_000)
    parser.add_argument("--stalled", metavar="N", type=int, default=1_000)
    parser.add_argument("--json", metavar="FILE", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # nothing is left
    command, generator = load.command()
    say(f"generator in {generator}")
    stages = []
    try:
        for stage in measure(options.idle, options.stalled, start=command):
            say(f"{stage.name}: p99 {report.number(stage.p99_ms)} ms")
            stages.append(stage)
    except Missing as why:
        raise SystemExit(f"bench.crowd: {why}") from why
    print(table(stages))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in stages], indent=1) + "\n")
    whole = all(one.lost == one.repeated == 0 and not math.isnan(one.p50_ms) for one in stages)
    return 0 if whole and stages[-1].slow_closes == options.stalled else 1


if __name__ == "__main__":
    sys.exit(main())
