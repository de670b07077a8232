"""Filters: views of which few match, the way from a POST to the last socket, the index alone."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from bench.build import say
from bench.fanout import one_by_one, paced
from bench.figures import merged, quantiles
from bench.peers import Row, row, stopping
from bench.product import EVERYTHING, NAME
from bench.stage import Stage, settle

VIEWS = "views"
END_TO_END = "end to end"
MATCHING = "matching"
CLIENTS = 100
OWNERS = 50
END_CLIENTS = 1000
# The filters that are measured by the million; the others, and the memory, up to this many.
MATCHING_LARGE = ("equality", "mixed")
MATCHING_MEMORY = 100_000
MATCHING_METRICS = ("us_per_delta", "each_us", "candidates", "matches", "insert_us", "remove_us")


def views(stage: Stage) -> None:
    """Publish rows that match two of many different filters; a hundred clients hold them."""
    if NAME not in stage.names:
        return
    for size in stage.plan.views:
        with stopping(stage.product(_one_of_two, size // CLIENTS)) as peer:
            say(f"{VIEWS}: {size:,} of them")
            peer.connect(CLIENTS)
            peer.clients = 2  # those that a row reaches
            make = functools.partial(_row_of_some_owner, owners=size // 2)
            for _ in stage.rounds(f"{VIEWS} {size:,}"):
                metrics = one_by_one(peer, 1, stage.plan.seconds, make)
                per_delta = {**metrics, "cpu_us": metrics["cpu_us"] * 2}
                stage.figures.add(VIEWS, f"{size} views", NAME, **per_delta)


def _one_of_two(number: int) -> Sequence[Row]:
    """Return a filter no other token has; two of them hold for the tasks of one owner."""
    owned = ["==", "owner", number // 2]
    query = ["and", owned, ["==", "done", False]] if number % 2 else owned
    return ({"dealer": "FilteredTasks", "query": query},)


def _row_of_some_owner(number: int, sent: int, *, owners: int) -> Row:
    return row(number, sent, number * 7 % owners)


def end_to_end(stage: Stage) -> None:
    """Time a POST until the last socket: half of the clients follow all, half by a filter."""
    if NAME not in stage.names:
        return
    clients = min(END_CLIENTS, stage.plan.storm)
    filtered = clients // 2 // OWNERS
    with stopping(stage.product(_half_filtered)) as peer:
        peer.connect(clients)
        for _ in stage.rounds(END_TO_END):
            metrics, answer = paced(
                peer,
                stage.plan.paced_seconds,
                lambda number, sent: row(number, sent, number % OWNERS),
                lambda _: clients // 2 + filtered,
            )
            settle(peer.server)
            last = quantiles(merged([[(micros, 1) for _, micros in answer.last]]))
            stage.figures.add(END_TO_END, f"{clients} clients", NAME, **metrics)
            both = {"last_p50_ms": last["p50_ms"], "last_p99_ms": last["p99_ms"]}
            stage.figures.add(END_TO_END, f"{clients} clients", NAME, **both)


def _half_filtered(number: int) -> Sequence[Row]:
    if number % 2:
        return (EVERYTHING,)
    query = ["==", "owner", number // 2 % OWNERS]
    return ({"dealer": "FilteredTasks", "query": query},)


def matching(stage: Stage) -> None:
    """Measure the index of filters alone, in a process of its own."""
    try:
        module = importlib.import_module("bench.matching")
    except ModuleNotFoundError:
        stage.figures.note("matching: not measured; bench/matching.py is not there.")
        return
    plan = stage.plan
    small = [size for size in plan.matching if size <= MATCHING_MEMORY]
    others = tuple(name for name in module.MAKERS if name not in MATCHING_LARGE)
    others = others if plan.every_filter else ()
    for names, sizes in ((MATCHING_LARGE, plan.matching), (others, small)):
        for name in names:
            say(f"{MATCHING}: {name}, {', '.join(f'{size:,}' for size in sizes)} filters")
            for one in _in_a_process(module.run, sizes, rounds=plan.rounds, names=(name,)):
                load = matching_case(name, one["size"])
                found = {key: one[key] for key in MATCHING_METRICS if key in one}
                stage.figures.add(MATCHING, load, NAME, **found)
    make, size = module.MAKERS["equality"], min(max(small), MATCHING_MEMORY)
    distinct = _in_a_process(module.memory, make, size)
    repeated = _in_a_process(module.memory, make, size, holders=100)
    found = {"distinct_bytes": distinct, "repeated_bytes": repeated}
    stage.figures.add(MATCHING, f"memory, {size} filters", NAME, **found)


def matching_case(name: str, size: int) -> str:
    """Return the name of one world of filters."""
    return f"{name}, {size} filters"


def _in_a_process(function: Callable[..., Any], *args: object, **named: object) -> Any:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args, **named).result()
