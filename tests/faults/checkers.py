"""What a recorded history must not show. Pure functions: history in, a line for each fault out.

A history is a list of events, dicts with ``at`` (seconds) and ``type``:

``publish``
    publisher, changes: a commit that will be published as one batch; a change is ``[n, items]``,
    its number and the items that see it. The n of a publisher follow one another.
``ok``, ``unknown``
    publisher, n (of the last change), how an attempt to publish ended.
``life``
    subscriber, token, item, known: a token was taken and the database read after it; it had the
    changes of each publisher up to ``known``. The subscriber's life before this is over.
``applied``
    subscriber, position, changes (``[publisher, n]``): what was applied with a position.
``told``
    subscriber, reason: it was told to fetch again, and its life is over.
``connected``, ``lost``, ``stale``, ``fresh``
    subscriber; ``lost`` has a cause, ``cut`` and ``killed`` where the nemesis was it.
``restored``
    since: the store is as it was at that time.
``calm``
    the faults are over. ``live``: subscriber has all there is.
``final``, ``database``
    subscriber or none, rows: what there was at the end.
``log``
    changes, ``[publisher, n]``: what stood in the log at the end.
"""

from __future__ import annotations

import graphlib
import itertools
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
History = Sequence[Event]
Change = tuple[int, int]  # publisher, n

LIVE_WITHIN_SECONDS = 30.0
EXPECTED_LOSSES = ("cut", "killed")


@dataclass
class Life:
    """What one subscriber saw under one token."""

    subscriber: str
    item: str
    known: dict[int, int]
    applied: list[Change] = field(default_factory=list)
    positions: list[tuple[str, int, str]] = field(default_factory=list)
    told: str | None = None

    def __str__(self) -> str:
        return f"{self.subscriber} ({self.item})"


def lives(history: History) -> list[Life]:
    """Return all lives; one that was not told anything and is not the last counts as told."""
    found: list[Life] = []
    current: dict[str, Life] = {}
    for event in history:
        who = event.get("subscriber", "")
        match event["type"]:
            case "life":
                if who in current:
                    current[who].told = current[who].told or "left"
                known = {int(publisher): n for publisher, n in event["known"].items()}
                current[who] = Life(who, event["item"], known)
                found.append(current[who])
            case "applied":
                epoch, offset, mark = event["position"].split(".")
                current[who].positions.append((epoch, int(offset), mark))
                current[who].applied += [(change[0], change[1]) for change in event["changes"]]
            case "told" if who in current:
                current[who].told = event["reason"]
    return found


def gaps(history: History) -> Iterator[str]:
    """Changes that were left out of a life before the last that was seen, or before its end."""
    seen_by = _visible(history)
    excused = _rolled_back(history)
    for life in lives(history):
        seen: dict[int, set[int]] = defaultdict(set)
        for publisher, n in life.applied:
            seen[publisher].add(n)
        for publisher, visible in seen_by[life.item].items():
            some = seen[publisher]
            known = life.known.get(publisher, 0)
            first = min([known, *(n - 1 for n in some)])
            last = visible[-1] if life.told is None else max(some, default=0)
            due = visible[bisect_right(visible, first) : bisect_right(visible, last)]
            missing = [n for n in due if n not in some]
            if life.told is not None:  # it has heard of it, if a little later
                missing = [n for n in missing if (publisher, n) not in excused]
            if missing:
                yield f"{life} did not see {missing} of {publisher} ({life.told or 'to the end'})"


def repeats(history: History) -> Iterator[str]:
    """Changes that were applied twice in one life."""
    for life in lives(history):
        twice = [change for change, count in Counter(life.applied).items() if count > 1]
        if twice:
            yield f"{life} saw {twice} more than once"


def disorder(history: History) -> Iterator[str]:
    """Lives that have no common order, or one that is not their publishers'."""
    excused = _rolled_back(history)
    graphs: dict[str, dict[Change, set[Change]]] = defaultdict(lambda: defaultdict(set))
    for life in lives(history):
        kept = [change for change in life.applied if change not in excused]
        latest: dict[int, int] = {}
        for publisher, n in kept:
            if n < latest.get(publisher, 0):
                yield f"{life} saw {n} of {publisher} after {latest[publisher]}"
            latest[publisher] = n
        if life.positions:
            for before, after in itertools.pairwise(kept):
                if before != after:
                    graphs[life.positions[0][0]][after].add(before)
    for epoch, graph in graphs.items():
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            yield f"no order of {epoch} is that of all who saw it: {error.args[1]}"


def histories(history: History) -> Iterator[str]:
    """Lives that went on in another log, or went back in theirs."""
    for life in lives(history):
        for before, after in itertools.pairwise(life.positions):
            same = before[1] == after[1] and before[2] != after[2]
            if before[0] != after[0] or before[1] > after[1] or same:
                yield f"{life} went from {before} to {after}"


def silences(history: History) -> Iterator[str]:
    """Acknowledged changes that somebody neither has nor was told to fetch."""
    acknowledged = {(event["publisher"], event["n"]) for event in history if event["type"] == "ok"}
    covering: dict[str, dict[Change, Sequence[str]]] = defaultdict(dict)
    for event in history:
        if event["type"] == "publish":
            publisher, changes = event["publisher"], event["changes"]
            if (publisher, changes[-1][0]) in acknowledged:
                for n, items in changes:
                    for item in items:
                        covering[item][publisher, n] = ()
    for life in lives(history):
        if life.told is None:
            have = set(life.applied)
            known = life.known
            lost = [
                change
                for change in covering[life.item]
                if change not in have and change[1] > known.get(change[0], 0)
            ]
            if lost:
                yield f"{life} has not got {lost}, which were acknowledged, and was told nothing"


def unacknowledged(history: History) -> Iterator[str]:
    """Publishes that never came to an end."""
    due = {
        (event["publisher"], event["changes"][-1][0])
        for event in history
        if event["type"] == "publish"
    }
    for event in history:
        if event["type"] == "ok":
            due.discard((event["publisher"], event["n"]))
    for publisher, n in sorted(due):
        yield f"the publish of {n} by {publisher} was never acknowledged"


def differences(history: History) -> Iterator[str]:
    """Subscribers whose rows are not those of the database at the end."""
    rows: dict[str, Any] = {}
    for event in history:
        if event["type"] == "database":
            rows = event["rows"]
    for event in history:
        if event["type"] == "final" and event["rows"] != rows[event["item"]]:
            have, due = event["rows"], rows[event["item"]]
            wrong = sorted(key for key in have.keys() | due if have.get(key) != due.get(key))
            what = [(key, have.get(key), due.get(key)) for key in wrong[:5]]
            yield f"{event['subscriber']} ends with other rows than the database: {what}"


def doubles(history: History) -> Iterator[str]:
    """Changes that stand in the log twice."""
    for event in history:
        if event["type"] == "log":
            counted = Counter((change[0], change[1]) for change in event["changes"])
            for change, count in counted.items():
                if count > 1:
                    yield f"{change} stands in the log {count} times"


def wedges(history: History) -> Iterator[str]:
    """Subscribers that were not live again soon after the faults."""
    everybody = {event["subscriber"] for event in history if event["type"] == "life"}
    calm = [event["at"] for event in history if event["type"] == "calm"]
    live = {event["subscriber"]: event["at"] for event in history if event["type"] == "live"}
    for who in sorted(everybody):
        if not calm or who not in live:
            yield f"{who} never came to rest"
        elif live[who] - calm[-1] > LIVE_WITHIN_SECONDS:
            yield f"{who} took {live[who] - calm[-1]:.1f} s to be live again"


def losses(history: History) -> Iterator[str]:
    """Connections that ended though nobody cut them and no node fell."""
    for event in history:
        if event["type"] == "lost" and event["cause"] not in EXPECTED_LOSSES:
            yield f"{event['subscriber']} lost its connection at {event['at']}: {event['cause']}"


def staleness(history: History) -> Iterator[str]:
    """Subscribers that heard ``stale`` and, on that connection, never ``fresh``."""
    stale: dict[str, float] = {}
    for event in history:
        match event["type"]:
            case "stale":
                stale[event["subscriber"]] = event["at"]
            case "fresh" | "connected" | "lost":
                stale.pop(event["subscriber"], None)
    for who, at in stale.items():
        yield f"{who} heard stale at {at} and nothing since"


def nothing(history: History) -> Iterator[str]:
    """A history in which nothing was delivered or acknowledged proves nothing."""
    kinds = Counter(event["type"] for event in history)
    delivered = sum(len(event["changes"]) for event in history if event["type"] == "applied")
    if not delivered or not kinds["ok"] or not kinds["final"] or not kinds["database"]:
        yield "nothing happened"


CHECKERS: tuple[Callable[[History], Iterable[str]], ...] = (
    nothing,
    gaps,
    repeats,
    disorder,
    histories,
    silences,
    unacknowledged,
    differences,
    doubles,
    wedges,
    losses,
    staleness,
)


def faults(history: History) -> list[str]:
    """Return all that is wrong with a history."""
    return [f"{check.__name__}: {line}" for check in CHECKERS for line in check(history)]


def _visible(history: History) -> dict[str, dict[int, list[int]]]:
    """Return the numbers of each publisher's changes that an item sees, in order."""
    found: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for event in history:
        if event["type"] == "publish":
            for n, items in event["changes"]:
                for item in items:
                    found[item][event["publisher"]].append(n)
    return found


def _rolled_back(history: History) -> set[Change]:
    """Return what may be in no log any more: it came while a store was written that is gone."""
    windows = [(event["since"], event["at"]) for event in history if event["type"] == "restored"]
    ended = {
        (event["publisher"], event["n"]): event["at"] for event in history if event["type"] == "ok"
    }
    excused = set()
    for event in history:
        if event["type"] == "publish":
            publisher, changes = event["publisher"], event["changes"]
            end = ended.get((publisher, changes[-1][0]), float("inf"))
            if any(event["at"] < until and end > since for since, until in windows):
                excused |= {(publisher, n) for n, _ in changes}
    return excused
