"""What it costs to find who sees a row, with 1,000 filters and with a million.

    python -m bench.matching [--sizes 1000,10000,100000] [--rounds 5] [--only NAME]

Each world has as many different filters as its size says, made so that a row passes about
two of them whatever the size. The same rows are looked up in the worlds of all sizes in
turn, so that what else the machine does meets all alike; the medians of the rounds are
compared. ``each`` is what evaluating every filter costs, where that is bearable.
``candidates`` counts the filters that were looked at for a row; no noise changes it.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

from syncserver.dealers import FilterDealer, SubscriptionItem

SIZES = (1_000, 10_000, 100_000)
ROUNDS = 5
ROWS = 200
EACH_ROWS = 3
EACH_AT_MOST = 100_000

Make = Callable[[int, int], Any]
Result = dict[str, Any]


def _equality(number: int, _size: int) -> Any:
    return ["and", ["==", "owner", number // 2], ["!=", "state", ("gone", "draft")[number % 2]]]


def _mixed(number: int, _size: int) -> Any:
    """Forms as pages have them, most in one of 50 tenants: an equality alone is not enough."""
    tenant, owner, start = ["==", "tenant", number % 50], number // 2, number * 10
    match number % 5:
        case 0:
            return ["and", tenant, ["==", "owner", owner]]
        case 1:
            return ["and", tenant, ["in", "owner", [owner, -owner, -owner - 1]], [">", "age", 3]]
        case 2:
            return ["and", tenant, [">=", "at", start], ["<", "at", start + 15]]
        case 3:
            return ["or", ["==", "owner", owner], ["and", tenant, ["==", "owner", -owner]]]
        case _:
            return ["and", tenant, ["prefix", "path", f"/{owner}/"], ["not", ["==", "age", 5]]]


def _interval(number: int, _size: int) -> Any:
    return ["between", "at", number * 10, number * 10 + 20]


def _rectangle(number: int, size: int) -> Any:
    """Boxes anywhere on a plane, as of pages that show a map."""
    side = max(1, int(size**0.5)) * 10
    chance = random.Random(number)
    x, y = chance.random() * side, chance.random() * side
    return ["and", ["between", "x", x, x + 14], ["between", "y", y, y + 14]]


def _dates(number: int, _size: int) -> Any:
    return ["between", "day", f"2024-{number * 10:09}", f"2024-{number * 10 + 20:09}"]


def _prefix(number: int, _size: int) -> Any:
    return ["prefix", "path", f"/{number // 2}/{'x' * (number % 2)}"]


def _part(number: int, _size: int) -> Any:
    return ["contains", "title", f"word {number:07}"]


MAKERS: dict[str, Make] = {
    "equality": _equality,
    "mixed": _mixed,
    "interval": _interval,
    "rectangle": _rectangle,
    "dates": _dates,
    "prefix": _prefix,
    "contains": _part,
}


def row(size: int, chance: random.Random) -> dict[str, Any]:
    """Return a row that about two of the filters of each world pass."""
    number = chance.randrange(size)
    side = max(1, int(size**0.5)) * 10
    return {
        "id": number,
        "owner": number // 2,
        "tenant": number % 50,
        "state": "open",
        "age": chance.randrange(100),
        "at": number * 10 + 5,
        "day": f"2024-{number * 10 + 5:09}",
        "path": f"/{number // 2}/x/file.txt",
        "title": f"a word {number:07} and another word {chance.randrange(size):07}",
        "x": chance.randrange(side),
        "y": chance.randrange(side),
        "done": False,
    }


class World:
    """A filter dealer that holds ``size`` different filters."""

    def __init__(self, make: Make, size: int) -> None:
        self.size = size
        self.dealer = FilterDealer(model="Task")
        parse = self.dealer.parse_query
        queries = (make(number, size) for number in range(size))
        self.items = [SubscriptionItem("F", query, parse(query)) for query in queries]
        gc.freeze()  # a collection among a million objects would be measured as an insertion
        before = time.process_time()
        for item in self.items:
            self.dealer.add_subscription_item(item)
        self.insert_us = (time.process_time() - before) / size * 1e6
        chance = random.Random(size)
        self.rows = [row(size, chance) for _ in range(ROWS)]
        self.times: list[float] = []
        self.each_times: list[float] = []

    def look_up(self) -> None:
        """Time the look-up of all rows."""
        find = self.dealer.get_subscription_items_for_model
        before = time.process_time()
        for one in self.rows:
            find(one)
        self.times.append((time.process_time() - before) / len(self.rows) * 1e6)

    def evaluate_each(self) -> None:
        """Time what the look-up saves."""
        filters = [item.parsed for item in self.items]
        before = time.process_time()
        for one in self.rows[:EACH_ROWS]:
            for each in filters:
                each.matches(one)
        self.each_times.append((time.process_time() - before) / EACH_ROWS * 1e6)

    def remove_all(self) -> float:
        """Empty the dealer and return what a removal cost."""
        before = time.process_time()
        for item in self.items:
            self.dealer.remove_subscription_item(item)
        return (time.process_time() - before) / self.size * 1e6

    def result(self, name: str) -> Result:
        """Return what was seen."""
        find = self.dealer.get_subscription_items_for_model
        before = self.dealer.index.examined
        matches = sum(len(find(one)) for one in self.rows)
        examined = self.dealer.index.examined - before
        found: Result = {
            "name": name,
            "size": self.size,
            "us_per_delta": statistics.median(self.times),
            "spread": (max(self.times) - min(self.times)) / statistics.median(self.times),
            "candidates": examined / len(self.rows),
            "matches": matches / len(self.rows),
            "insert_us": self.insert_us,
            "remove_us": self.remove_all(),
        }
        if self.each_times:
            found["each_us"] = statistics.median(self.each_times)
            found["ratio"] = found["each_us"] / found["us_per_delta"]
        return found


def memory(make: Make, size: int, holders: int = 1) -> float:
    """Return the bytes that the index takes for a filter, or for a holder of one."""
    dealer = FilterDealer(model="Task")
    queries = [make(number, size) for number in range(size // holders)]
    items = [
        SubscriptionItem("F", q, dealer.parse_query(q)) for q in queries for _ in range(holders)
    ]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for item in items:
        dealer.add_subscription_item(item)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / len(items)


def run(
    sizes: Sequence[int] = SIZES, *, rounds: int = ROUNDS, names: Sequence[str] = tuple(MAKERS)
) -> list[Result]:
    """Measure worlds of these sizes; each result can be written as JSON."""
    results: list[Result] = []
    for name in names:
        worlds = [World(MAKERS[name], size) for size in sizes]
        for _ in range(rounds):
            for world in worlds:
                world.look_up()
        for world in worlds:
            if world.size <= EACH_AT_MOST:
                world.evaluate_each()
        results += [world.result(name) for world in worlds]
        del worlds
        gc.unfreeze()
        gc.collect()
    return results


def report(results: Sequence[Result]) -> str:
    """Return a table."""
    names = ("us/row", "spread", "looked at", "passed", "each, us", "ratio", "add us", "remove us")
    lines = [f"{'filters':12}{'size':>10}" + "".join(f"{name:>10}" for name in names)]
    for one in results:
        each = f"{one['each_us']:10,.0f}{one['ratio']:10,.0f}" if "each_us" in one else " " * 20
        lines.append(
            f"{one['name']:12}{one['size']:10,}{one['us_per_delta']:10.1f}{one['spread']:10.0%}"
            f"{one['candidates']:10.1f}{one['matches']:10.1f}{each}"
            f"{one['insert_us']:10.1f}{one['remove_us']:10.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=MAKERS, action="append", help="these filters alone")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    results = run(sizes, rounds=options.rounds, names=options.only or tuple(MAKERS))
    print(json.dumps(results) if options.json else report(results))


if __name__ == "__main__":
    main()
