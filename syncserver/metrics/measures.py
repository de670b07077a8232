"""What the daemon tells of itself: the metrics by name, and their values when somebody asks.

Labels have few values: those of the settings, of tables in the code, and codes of errors,
of which there is a most (``counters.Tally``). None names a client, a token, a channel or a row.
"""

from __future__ import annotations

import platform
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import tornado

from syncserver.counters import OK, Activity, Histogram, Standing, Tally
from syncserver.doors import Door
from syncserver.errors import CloseCode, RefetchReason
from syncserver.process.memory import resident_bytes
from syncserver.process.pressure import Pressure
from syncserver.registry import ServiceRegistry
from syncserver.version import __version__

PREFIX = "syncserver_"
WORKER = "worker"
"""The label that tells processes of one daemon apart, where there are several."""
REFUSALS = (
    "address",
    "connections",
    "draining",
    "handshake",
    "memory",
    "origin",
    "requests",
    "version",
)
"""Why connections, handshakes and sessions are refused."""

_PEER = "peer"
_OF_THE_APP = ("internal_error", "unauthorized", "too_many_wrong_keys")
# What alerts look at is there from the start (``_known``).
_ERRORS = {"frontend": ("internal_error",), "backend": _OF_THE_APP}
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: ``counter``, ``gauge`` or ``histogram``, what it says, and its labels."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


class Buckets(NamedTuple):
    """The value of a histogram."""

    bounds: tuple[float, ...]
    cumulative: list[int]
    seconds: float


class Sample(NamedTuple):
    """One value of a metric, which is named without the prefix."""

    name: str
    labels: Mapping[str, str]
    value: float | Buckets


_KIND = ("transport", "protocol")
_SERVICE = ("service",)

METRICS: Mapping[str, Metric] = {
    "build_info": Metric("gauge", "1", ("version", "python", "tornado", "engine")),
    "worker_up": Metric("gauge", "Whether a process of this daemon answers"),
    "start_time_seconds": Metric("gauge", "When the process started, since 1970"),
    "cpu_seconds_total": Metric("counter", "CPU time of the process"),
    "resident_memory_bytes": Metric("gauge", "Memory of the process"),
    "resident_memory_limit_bytes": Metric("gauge", "Memory that the process may have"),
    "memory_scarce": Metric("gauge", "Whether nobody is let in as memory is scarce"),
    "open_fds": Metric("gauge", "File descriptors that are open"),
    "max_fds": Metric("gauge", "File descriptors that may be open"),
    "loop_lag_seconds": Metric("histogram", "How late a timer was called, four times a second"),
    "draining": Metric("gauge", "Whether the process is closing"),
    "connections": Metric("gauge", "Connections that are open", ("door",)),
    "connections_limit": Metric("gauge", "Connections that may be open", ("door",)),
    "connections_accepted_total": Metric("counter", "Connections taken", ("door",)),
    "connections_failed_total": Metric("counter", "Connections that could not be taken", ("door",)),
    "connections_refused_total": Metric(
        "counter", "Connections and requests turned away before a session", ("reason",)
    ),
    "sessions": Metric("gauge", "Sessions", _KIND),
    "sessions_opened_total": Metric("counter", "Sessions that were opened", _KIND),
    "sessions_closed_total": Metric("counter", "Sessions that ended", ("code", "reason")),
    "outbox_bytes": Metric("gauge", "Bytes that wait in the outboxes of all sessions"),
    "outbox_max_bytes": Metric("gauge", "Bytes that wait in the fullest outbox"),
    "messages_received_total": Metric("counter", "Messages from clients"),
    "received_bytes_total": Metric("counter", "Bytes of messages from clients"),
    "frames_sent_total": Metric("counter", "Messages handed to sockets"),
    "sent_bytes_total": Metric("counter", "Bytes of messages handed to sockets"),
    "writes_total": Metric("counter", "Writes that handed messages to sockets"),
    "errors_total": Metric("counter", "Errors that were answered", ("door", "code")),
    "backend_calls": Metric("gauge", "Calls of the web app that are under way"),
    "clients": Metric("gauge", "Sessions that are subscribed to something", _SERVICE),
    "subscriptions": Metric("gauge", "Subscriptions that are held", _SERVICE),
    "views": Metric("gauge", "Views that subscriptions share; channels of pubsub", _SERVICE),
    "items": Metric("gauge", "Items in the indexes of dealers; channels of pubsub", _SERVICE),
    "publishes_total": Metric("counter", "Publishes to this process", ("service", "result")),
    "publish_seconds": Metric("histogram", "Time of the appends of publishes", _SERVICE),
    "published_deltas_total": Metric("counter", "Deltas or messages published here", _SERVICE),
    "entries_total": Metric("counter", "Entries that came from the log", _SERVICE),
    "deltas_total": Metric("counter", "Deltas or messages that came from the log", _SERVICE),
    "deliveries_total": Metric("counter", "Frames of entries put in outboxes", _SERVICE),
    "delivery_lag_seconds": Metric(
        "histogram", "From before an append to all frames of it being handed to sockets", _SERVICE
    ),
    "grants_made_total": Metric("counter", "Tokens that were given out", _SERVICE),
    "grants_waiting": Metric("gauge", "Tokens that nobody has acquired yet", _SERVICE),
    "acquires_total": Metric("counter", "First acquires", ("service", "result")),
    "resumes_total": Metric("counter", "Acquires with a position", ("service", "result")),
    "refetches_total": Metric(
        "counter", "Subscriptions whose rows had to be read again", ("service", "reason")
    ),
    "stream_offset": Metric("gauge", "How far the log was followed", _SERVICE),
    "tail_bytes": Metric("gauge", "Bytes of entries that are kept decoded", _SERVICE),
    "engine_stale": Metric("gauge", "Whether the log is out of reach", _SERVICE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Reads the values of one process.

    :param engine: what the engine is called.
    :param loop_lag: how late the loop was.
    :param doors: those that are open, by name; one may have two names.
    :param pressure: what memory the process may have.
    """

    frontend: ServiceRegistry
    backend: ServiceRegistry
    engine: str
    loop_lag: Histogram
    doors: Mapping[str, Door]
    pressure: Pressure
    started: float = field(default_factory=time.time)

    def read(self) -> list[Sample]:
        """Return all values of now."""
        return [*self._process(), *self._connections(), *self._sessions(), *self._services()]

    def _process(self) -> Iterator[Sample]:
        versions = {"version": __version__, "python": platform.python_version()}
        build = {**versions, "tornado": tornado.version, "engine": self.engine}
        yield Sample("build_info", build, 1)
        yield Sample("worker_up", {}, 1)
        yield Sample("start_time_seconds", {}, self.started)
        yield Sample("cpu_seconds_total", {}, time.process_time())
        if (memory := resident_bytes()) is not None:
            yield Sample("resident_memory_bytes", {}, memory)
        yield Sample("resident_memory_limit_bytes", {}, self.pressure.most or 0)
        yield Sample("memory_scarce", {}, self.pressure.is_high)
        if (descriptors := _open_descriptors()) is not None:
            yield Sample("open_fds", {}, descriptors)
        yield Sample("max_fds", {}, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        yield Sample("loop_lag_seconds", {}, _buckets(self.loop_lag))
        yield Sample("draining", {}, self.backend.draining)

    def _connections(self) -> Iterator[Sample]:
        first_names = {door: name for name, door in reversed(tuple(self.doors.items()))}
        for door, name in first_names.items():
            yield Sample("connections", {"door": name}, door.gate.open)
            yield Sample("connections_limit", {"door": name}, door.gate.seats.most)
            yield Sample("connections_accepted_total", {"door": name}, door.accepted)
            yield Sample("connections_failed_total", {"door": name}, door.failures)
        refused = Counter(dict.fromkeys(REFUSALS, 0))
        for audience, registry in (("frontend", self.frontend), ("backend", self.backend)):
            refused.update(dict(registry.traffic.refused.items()))
            for code, count in _known(registry.traffic.errors, _ERRORS[audience]):
                yield Sample("errors_total", {"door": audience, "code": code}, count)
        for reason, count in refused.items():
            yield Sample("connections_refused_total", {"reason": reason}, count)
        yield Sample("backend_calls", {}, self.backend.calls_under_way)

    def _sessions(self) -> Iterator[Sample]:
        sessions, traffic = self.frontend.sessions, self.frontend.traffic
        now = Counter(sessions.values())
        for kind, count in traffic.opened.items():
            labels = dict(zip(_KIND, kind, strict=True))
            yield Sample("sessions", labels, now[kind])
            yield Sample("sessions_opened_total", labels, count)
        for label, count in _known(traffic.closed, (_PEER, *map(_text, CloseCode))):
            yield Sample("sessions_closed_total", _end(label), count)
        pending = [session.pending for session in sessions]
        yield Sample("outbox_bytes", {}, sum(pending))
        yield Sample("outbox_max_bytes", {}, max(pending, default=0))
        yield Sample("messages_received_total", {}, traffic.received)
        yield Sample("received_bytes_total", {}, traffic.received_bytes)
        yield Sample("frames_sent_total", {}, traffic.frames)
        yield Sample("sent_bytes_total", {}, traffic.sent_bytes)
        yield Sample("writes_total", {}, traffic.writes)

    def _services(self) -> Iterator[Sample]:
        for name, service in self.frontend.registered_services.items():
            if service.activity is not None:
                yield from _activity({"service": name}, service.activity)
            if (standing := service.standing()) is not None:
                yield from _standing({"service": name}, standing)


def _activity(of: dict[str, str], activity: Activity) -> Iterator[Sample]:
    for result, count in _known(activity.publishes, (OK, "unavailable")):
        yield Sample("publishes_total", {**of, "result": result}, count)
    yield Sample("publish_seconds", of, _buckets(activity.publish_seconds))
    yield Sample("delivery_lag_seconds", of, _buckets(activity.lag_seconds))
    yield Sample("published_deltas_total", of, activity.published_deltas)
    yield Sample("entries_total", of, activity.entries)
    yield Sample("deltas_total", of, activity.deltas)
    yield Sample("deliveries_total", of, activity.deliveries)
    if activity.has_grants:
        yield from _grants(of, activity)


def _grants(of: dict[str, str], activity: Activity) -> Iterator[Sample]:
    yield Sample("grants_made_total", of, activity.grants)
    for result, count in _known(activity.acquires, (OK,)):
        yield Sample("acquires_total", {**of, "result": result}, count)
    for result, count in _known(activity.resumes, (OK, "refetch")):
        yield Sample("resumes_total", {**of, "result": result}, count)
    for reason, count in _known(activity.refetches, RefetchReason):
        yield Sample("refetches_total", {**of, "reason": reason}, count)


def _standing(of: dict[str, str], standing: Standing) -> Iterator[Sample]:
    yield Sample("clients", of, standing.clients)
    yield Sample("subscriptions", of, standing.subscriptions)
    yield Sample("views", of, standing.views)
    yield Sample("items", of, standing.items)
    yield Sample("stream_offset", of, standing.offset)
    yield Sample("tail_bytes", of, standing.tail_bytes)
    yield Sample("engine_stale", of, standing.stale)
    if standing.waiting_grants is not None:
        yield Sample("grants_waiting", of, standing.waiting_grants)


def _known(tally: Tally, labels: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Give all that was counted, and 0 for known labels that were not: a rate needs a start."""
    counted = dict(tally.items())
    for label in labels:
        yield label, counted.pop(label, 0)
    yield from counted.items()


def _text(code: CloseCode) -> str:
    return str(int(code))


_NAMES = {_text(code): code.name.lower() for code in CloseCode}


def _end(label: str) -> dict[str, str]:
    """Return the labels of an end: a peer that went of its own has no code."""
    if label == _PEER:
        return {"code": "", "reason": _PEER}
    return {"code": label, "reason": _NAMES.get(label, "application")}


def _buckets(histogram: Histogram) -> Buckets:
    return Buckets(histogram.bounds, histogram.cumulative(), histogram.seconds)


def _open_descriptors() -> int | None:
    """Return how many there are; newer kernels say so at once. None where nobody says."""
    try:
        return _DESCRIPTORS.stat().st_size or sum(1 for _ in _DESCRIPTORS.iterdir())
    except OSError:
        return None


def from_json(value: Any) -> list[Sample]:
    """Return the samples of another process, as JSON carried them."""
    return [
        Sample(name, labels, Buckets(*value) if isinstance(value, list) else value)
        for name, labels, value in value
    ]
