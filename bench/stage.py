"""What every scenario works with: how much to do, which servers there are, where figures go."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.build import Missing, say
from bench.figures import Figures
from bench.peers import KINDS, Kind, Peer, Program, stopping
from bench.product import NAME, Items, Product, everything
from bench.server import Server

LARGE = 2000


@dataclass(frozen=True)
class Plan:
    """How much a run measures: ``FULL`` for figures, ``QUICK`` to see that all works."""

    rounds: int
    seconds: float  # of each measurement, roughly
    fan_out: Sequence[int]
    paced: int
    paced_seconds: float
    views: Sequence[int]
    storm: int
    idle: int
    matching: Sequence[int]
    engine_seconds: float
    every_filter: bool = True


FULL = Plan(
    rounds=5,
    seconds=0.4,
    fan_out=(100, 1000, 5000),
    paced=1000,
    paced_seconds=2,
    views=(100, 10_000),
    storm=1000,
    idle=10_000,
    matching=(1_000, 10_000, 100_000, 1_000_000),
    engine_seconds=1,
)
QUICK = Plan(
    rounds=2,
    seconds=0.1,
    fan_out=(100, 300),
    paced=100,
    paced_seconds=0.5,
    views=(100, 1000),
    storm=200,
    idle=500,
    matching=(1_000, 10_000),
    engine_seconds=0.1,
    every_filter=False,
)


class Stage:
    """One run.

    :param generator: starts the load generator.
    :param names: the servers to measure.
    """

    def __init__(
        self,
        plan: Plan,
        generator: Sequence[str],
        names: Sequence[str],
        kinds: Mapping[str, Kind] = KINDS,
    ) -> None:
        self.plan = plan
        self.figures = Figures()
        self.names = list(names)
        self._kinds = kinds
        self._generator = generator

    def is_slow(self, name: str) -> bool:
        """Tell whether a server is left out of the largest loads."""
        return name in self._kinds and self._kinds[name].slow

    def open(self, name: str) -> Peer:
        """Start a server; Missing if it cannot be had."""
        if name == NAME:
            return self.product()
        if name not in self._kinds:
            raise Missing(f"unknown; there are {', '.join([NAME, *self._kinds])}")
        peer = Program(name, self._kinds[name].command(), self._generator)
        self.figures.about.setdefault("versions", {})[name] = peer.version
        return peer

    def product(self, items: Items = everything, tokens_each: int = 1) -> Product:
        """Start the daemon."""
        product = Product(self._generator, items=items, tokens_each=tokens_each)
        self.figures.about.setdefault("versions", {})[NAME] = product.version
        return product

    @contextlib.contextmanager
    def one(self, name: str) -> Iterator[Peer | None]:
        """Start one server for the block; None, and its name among the missing, without it."""
        try:
            peer = self.open(name)
        except Missing as why:
            self.miss(name, str(why))
            yield None
            return
        with stopping(peer):
            yield peer

    @contextlib.contextmanager
    def all(self, clients: int) -> Iterator[list[Peer]]:
        """Start all servers, with so many clients each, for the block."""
        with contextlib.ExitStack() as held:
            found = []
            for name in list(self.names):
                if clients > LARGE and self.is_slow(name):
                    self.figures.note(f"{name}: left out with more than {LARGE:,} clients.")
                    continue
                say(f"  starting {name} with {clients:,} clients")
                peer = held.enter_context(self.one(name))
                if peer is None:
                    continue
                try:
                    if clients:
                        peer.connect(clients)
                except Missing as why:
                    self.figures.note(f"{name}: {why}.")
                    continue
                found.append(peer)
            yield found

    def miss(self, name: str, why: str) -> None:
        """Name what cannot be measured, and do not try again."""
        say(f"  missing: {name}: {why}")
        self.figures.missing[name] = why
        if name in self.names:
            self.names.remove(name)

    @contextlib.contextmanager
    def trying(self, peers: list[Peer], peer: Peer, what: str) -> Iterator[None]:
        """Leave a server out of what follows if it breaks down in the block."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            say(f"  {peer.name} broke down: {error}")
            self.figures.note(f"{peer.name}: broke down at {what}: {error}.")
            peers.remove(peer)

    def rounds(self, what: str) -> Iterator[int]:
        """Count the rounds, and tell them."""
        for number in range(self.plan.rounds):
            say(f"{what}: round {number + 1} of {self.plan.rounds}")
            yield number


def settle(server: Server, seconds: float = 10) -> None:
    """Return when a server has come to rest, so that it is not counted for the next."""
    end, used = time.monotonic() + seconds, -1.0
    while time.monotonic() < end and used != (used := server.cpu_micros()):
        time.sleep(0.05)
