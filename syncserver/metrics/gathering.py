"""The metrics of a daemon: read here, asked of its other processes, and made into text."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from syncserver.apikeys import KeyRing
from syncserver.doors import Door
from syncserver.handlers.metrics import MEASURES_PATH, MeasuresHandler, MetricsHandler, ask
from syncserver.metrics.looplag import LoopLag
from syncserver.metrics.measures import WORKER, Measures, Sample, from_json
from syncserver.process.pressure import Pressure
from syncserver.protocols.base import Protocol
from syncserver.protocols.events import EventsProtocol
from syncserver.registry import ServiceRegistry
from syncserver.siblings import Siblings

METRICS_PATH = "/metrics"

_PACKAGE = "prometheus_client"
_SIBLING_SECONDS = 1.0

Exposition = Callable[[Sequence[Sample], str], tuple[bytes, str]]


class Metrics:
    """Answers scrapes, for all processes that share the doors.

    :param engine: what the engine is called.
    :param doors: those that are open, by name; one may have two names.
    :param pressure: what memory this process may have.
    :param siblings: the others, if there are any; ``worker`` tells their values apart then.
    """

    def __init__(
        self,
        registries: tuple[ServiceRegistry, ServiceRegistry],
        engine: str,
        doors: Mapping[str, Door],
        pressure: Pressure,
        siblings: Siblings | None = None,
    ) -> None:
        self._loop_lag = LoopLag()
        self._measures = Measures(
            frontend=registries[0],
            backend=registries[1],
            engine=engine,
            loop_lag=self._loop_lag.histogram,
            doors=doors,
            pressure=pressure,
        )
        self._siblings = siblings
        self._exposition = _exposition()

    def expect(self, protocols: Iterable[type[Protocol]], sockjs: Iterable[type[Protocol]]) -> None:
        """Show sessions of each kind before there was one: rates need something to start from."""
        transports = {
            "websocket": protocols,
            "sockjs_websocket": (sockjs := tuple(sockjs)),
            "sockjs_http": sockjs,
            "events": (EventsProtocol,),
        }
        opened = self._measures.frontend.traffic.opened
        for transport, spoken in transports.items():
            opened.update({(transport, protocol.name): 0 for protocol in spoken})

    def start(self) -> None:
        """Begin to measure the loop."""
        self._loop_lag.start()

    def stop(self) -> None:
        """Measure no more."""
        self._loop_lag.stop()

    def route(self, keys: KeyRing | None) -> Any:
        """Return the route of scrapers, who must have one of these keys if any are given."""
        scrape = None if self._exposition is None else self.scrape
        registry = self._measures.backend
        options = {"scrape": scrape, "keys": keys, "registry": registry}
        return (METRICS_PATH, MetricsHandler, options)

    def private_route(self) -> Any:
        """Return the route of other processes of this daemon."""
        return (MEASURES_PATH, MeasuresHandler, {"read": self._measures.read})

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Return the text of all metrics and its content type."""
        if self._exposition is None:
            raise RuntimeError(f"{_PACKAGE} is not installed")
        return self._exposition(await self.gather(), accept)

    async def gather(self) -> list[Sample]:
        """Return the samples of all processes; one that does not answer soon is not up."""
        siblings = self._siblings
        if siblings is None:
            return self._measures.read()
        others = [number for number in range(siblings.count) if number != siblings.number]
        answers = await asyncio.gather(
            *(ask(siblings.path(number), _SIBLING_SECONDS) for number in others)
        )
        found = _labelled(self._measures.read(), siblings.number)
        for number, answer in zip(others, answers, strict=True):
            samples = [Sample("worker_up", {}, 0)] if answer is None else from_json(answer)
            found += _labelled(samples, number)
        return found


def _labelled(samples: Sequence[Sample], number: int) -> list[Sample]:
    return [Sample(name, {**labels, WORKER: str(number)}, value) for name, labels, value in samples]


def _exposition() -> Exposition | None:
    """Return what makes the text, imported before the loop turns; None if it is not installed."""
    try:
        found: Exposition = importlib.import_module("syncserver.metrics.exposition").exposition
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != _PACKAGE:
            raise
        return None
    return found
