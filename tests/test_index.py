"""The index finds what the law says, and looks at little else."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bench.matching import MAKERS, row
from syncserver.dealers import pins
from syncserver.dealers.index import Index
from syncserver.dealers.pins import Bucket, Column, Node, Pin
from syncserver.filters import Filter, parse
from tests.support.expressions import EXPRESSIONS, ROWS

FEW_EXPRESSIONS = st.sampled_from(
    [
        *(["==", path, value] for path in ("a", "b", "a.b") for value in (1, True, "a", None)),
        *(["and", ["==", "a", 1], [op, "b", 1]] for op in ("==", "!=", "<", ">=", "contains")),
        *(["and", ["in", "a", [1, "a", n]], ["in", "b", [1, n]]] for n in range(4)),
        *(["and", ["between", "a", 0, n], ["between", "b", n - 1, n]] for n in range(4)),
        *(["and", ["between", "a", 0, n], ["between", "b", "a", "b"]] for n in range(4)),
        *(["contains", "a", text] for text in ("a", "ab", "", 1, [1])),
        *(["prefix", "a", text] for text in ("a", "ab", "")),
        ["not", ["<", "a", 1]],
        ["not", ["exists", "a.b"]],
        ["or", ["==", "a", 1], ["not", ["!=", "b", 1]]],
        ["in", "a", []],
    ]
)

OF_STRINGS = st.tuples(
    st.sampled_from(["contains", "contains", "prefix", ">=", "<"]),
    st.just("a"),
    st.text("ab", max_size=20),
).map(list)
STRINGS = st.fixed_dictionaries({"a": st.text("ab", max_size=40)})
NUMBERS = st.sampled_from([-5, -0.5, 0, 0.25, 1, 3, 7.5, 64, 100])
BOXES = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS).map(
    lambda ends: ["and", ["between", "a", *ends[:2]], ["between", "b", *ends[2:]]]
)
POINTS = st.fixed_dictionaries({"a": NUMBERS, "b": NUMBERS})


def counted(node: Node) -> int:
    """Return how many pins are below a node; check that nothing empty is kept there."""
    found = len(node.loose)
    assert all(node.paths.values())
    for some in (*node.paths.values(), node.sparse):
        for column in some.values():
            assert column.node is node
            assert column.buckets
            found += sum(map(in_bucket, buckets(column)))
    assert found == node.size
    return found


def in_bucket(bucket: Bucket) -> int:
    match bucket.held:
        case Node() as node:
            assert node.size > 0
            assert node.bucket is bucket
            return counted(node)
        case list() as several:
            assert 0 < len(several) <= pins.BUCKET_PINS
            assert {pin.place for pin in several} == {bucket}
            return len(several)
        case held:
            assert isinstance(held, Pin)
            assert held.place is bucket
            return 1


def buckets(column: Column) -> Iterator[Bucket]:
    if isinstance(column.buckets, dict):
        yield from column.buckets.values()
        return
    pending = [column.buckets._root]
    while pending:
        node = pending.pop()
        if node is not None:
            yield node.value
            pending += [node.left, node.right]


def is_empty(index: Index[Any]) -> bool:
    """Tell whether nothing is kept, not even an empty container."""
    root = index._root
    kept = (index._entries, root.paths, root.sparse, root.loose, index.pins, index.linear)
    return not any(kept)


class AnyIndex(RuleBasedStateMachine):
    """Whatever is added and removed, a row finds exactly the items whose filter it passes."""

    def __init__(self) -> None:
        super().__init__()
        self.index: Index[int] = Index()
        self.items: dict[int, Filter] = {}
        self.added = 0

    @initialize(most=st.sampled_from([2, 3, 24]))
    def divide(self, most: int) -> None:
        self.usual, pins.BUCKET_PINS = pins.BUCKET_PINS, most

    def teardown(self) -> None:
        for item, filter_ in self.items.items():
            self.index.remove(filter_, item)
        pins.BUCKET_PINS = self.usual
        assert is_empty(self.index)

    @rule(expression=EXPRESSIONS | FEW_EXPRESSIONS, holders=st.sampled_from([1, 1, 1, 12]))
    def add(self, expression: Any, holders: int) -> None:
        for _ in range(holders):
            self.added += 1
            self.items[self.added] = parse(expression)
            self.index.add(self.items[self.added], self.added)

    @rule(expressions=st.lists(FEW_EXPRESSIONS | OF_STRINGS | BOXES, max_size=30))
    def add_many(self, expressions: list[Any]) -> None:
        for expression in expressions:
            self.add(expression, 1)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def add_again(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.items)))
        self.index.add(self.items[item], item)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.items)), unique=True, max_size=20))
        for item in chosen:
            self.index.remove(self.items.pop(item), item)

    @rule(expression=FEW_EXPRESSIONS)
    def remove_unknown(self, expression: Any) -> None:
        with pytest.raises(KeyError):
            self.index.remove(parse(expression), 0)

    @rule(row=ROWS | STRINGS | POINTS)
    def find(self, row: Any) -> None:
        expected = [item for item, filter_ in self.items.items() if filter_.matches(row)]
        assert sorted(self.index.find(row)) == expected

    @invariant()
    def everything_is_stored_once(self) -> None:
        assert len(self.index) == len(set(self.items.values()))
        assert counted(self.index._root) == self.index.pins


TestAnyIndex = AnyIndex.TestCase
TestAnyIndex.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


def world(name: str, size: int) -> tuple[Index[int], list[Filter]]:
    """Return an index of ``size`` different filters of which a row passes about two."""
    index: Index[int] = Index()
    filters = [parse(MAKERS[name](number, size)) for number in range(size)]
    for number, filter_ in enumerate(filters):
        index.add(filter_, number)
    return index, filters


def looked_at(index: Index[int], size: int, rows: int = 50) -> float:
    """Return how many filters are looked at for a row, in the mean."""
    before, chance = index.examined, random.Random(size)
    for _ in range(rows):
        index.find(row(size, chance))
    return (index.examined - before) / rows


@pytest.mark.parametrize("size", [1_000, 10_000])
@pytest.mark.parametrize("name", sorted(MAKERS.keys() - {"rectangle"}))
def test_what_is_looked_at_does_not_grow_with_what_is_stored(name: str, size: int) -> None:
    index, filters = world(name, size)
    assert looked_at(index, size) < 20
    one = row(size, random.Random(0))
    assert sorted(index.find(one)) == [n for n, each in enumerate(filters) if each.matches(one)]


@pytest.mark.parametrize("name", ["equality", "interval"])
def test_of_a_hundred_thousand_filters_a_row_looks_at_those_it_passes(name: str) -> None:
    index, filters = world(name, 100_000)
    assert looked_at(index, 100_000) < 3
    for number, filter_ in enumerate(filters):
        index.remove(filter_, number)
    assert is_empty(index)


def test_of_small_boxes_on_a_plane_a_few_are_looked_at() -> None:
    index, filters = world("rectangle", 10_000)
    assert looked_at(index, 10_000) < 200
    one = row(10_000, random.Random(0))
    assert sorted(index.find(one)) == [n for n, each in enumerate(filters) if each.matches(one)]


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_kept_when_all_are_gone_in_any_order(name: str) -> None:
    index, filters = world(name, 2_000)
    order = list(enumerate(filters))
    random.Random(name).shuffle(order)
    for number, filter_ in order:
        index.remove(filter_, number)
    assert is_empty(index)


@pytest.mark.core
def test_a_filter_of_many_items_is_looked_at_once() -> None:
    index: Index[int] = Index()
    for number in range(1000):
        index.add(parse(["or", ["==", "a", 1], ["==", "b", 1]]), number)
    assert sorted(index.find({"a": 1, "b": 1})) == list(range(1000))
    assert (index.examined, len(index)) == (1, 1)
    for number in range(1000):
        index.remove(parse(["or", ["==", "b", 1], ["==", "a", 1]]), number)
    assert is_empty(index)


@pytest.mark.core
def test_an_equality_that_all_share_is_divided_by_what_differs() -> None:
    index: Index[int] = Index()
    for number in range(1000):
        index.add(
            parse(["and", ["==", "tenant", 1], [">=", "at", number], ["<", "at", number + 2]]),
            number,
        )
    assert sorted(index.find({"tenant": 1, "at": 500.5})) == [499, 500]
    assert index.examined <= 3


@pytest.mark.core
def test_the_smallest_bucket_is_taken() -> None:
    index: Index[int] = Index()
    for number in range(1000):
        index.add(parse(["and", ["==", "state", "open"], ["==", "owner", number]]), number)
    assert index.find({"state": "open", "owner": 7}) == [7]
    assert index.examined <= 1 + pins.BUCKET_PINS
    assert index.find({"state": "open"}) == []
    assert index.examined <= 1 + 2 * pins.BUCKET_PINS


@pytest.mark.core
def test_both_ends_of_a_range_may_stand_apart() -> None:
    index: Index[int] = Index()
    for number in range(1000):
        low, high = ["<=", "at", number + 1], ["not", ["<", "at", number]]
        index.add(parse(["and", low, ["exists", "x"], high]), number)
    assert sorted(index.find({"at": 500.5, "x": 1})) == [500]
    assert index.examined == 1


@pytest.mark.core
def test_a_filter_with_more_ways_than_the_cap_is_found_by_some_of_its_terms() -> None:
    index: Index[int] = Index()
    pairs = [["or", ["==", f"{name}", 1], ["<", f"{name}", 0]] for name in "abcdefgh"]
    for number in range(100):
        index.add(parse(["and", ["==", "owner", number], *pairs]), number)
    assert index.pins <= 100 * 16
    index.find({"owner": 5} | dict.fromkeys("abcdefgh", 1))
    assert index.examined <= 1 + 2 * pins.BUCKET_PINS
    assert index.linear == 0


@pytest.mark.core
def test_lists_of_values_do_not_multiply_each_other() -> None:
    index: Index[int] = Index()
    values = list(range(100))
    options = [["in", name, values] for name in "abc"]
    for number in range(30):
        index.add(parse(["and", *options, ["!=", "d", number]]), number)
        either = ["or", *(["<", name, number] for name in "efgh")]
        index.add(parse(["and", ["in", "z", values], either]), -1 - number)
    assert index.pins == 60 * 100
    assert len(index.find({"a": 1, "b": 2, "c": 3, "d": 4})) == 29
    assert index.examined == 30


def test_what_was_kept_for_filters_is_free_at_once_without_a_collection() -> None:
    gc.collect()
    gc.disable()
    try:
        before = len(parts())
        index, filters = world("mixed", 2_000)
        assert len(parts()) > before + 4_000
        for number, filter_ in enumerate(filters):
            index.remove(filter_, number)
        assert len(parts()) == before + 1  # the root
    finally:
        gc.enable()


def parts() -> list[Any]:
    """Return all that any index is made of."""
    return [each for each in gc.get_objects() if isinstance(each, Pin | Bucket | Column | Node)]


@pytest.mark.core
def test_filters_with_one_part_in_common_are_divided_by_what_differs() -> None:
    index: Index[int] = Index()
    for number in range(1_000):
        part = "part one" if number % 2 else "part two"
        at = ["between", "at", number, number + 1]
        index.add(parse(["and", ["contains", "title", part], at]), number)
    assert index.find({"title": "here is part one, there", "at": 100.5}) == []
    assert index.find({"title": "here is part one, there", "at": 101.5}) == [101]
    assert index.examined < 50


@pytest.mark.core
def test_many_paths_that_a_row_does_not_have_cost_it_nothing() -> None:
    index: Index[int] = Index()
    for number in range(1000):
        index.add(parse(["==", f"field{number}.x", 1]), number)
        index.add(parse(["!=", f"other{number}", 1]), -number)
    assert sorted(index.find({"field7": {"x": 1}, "other7": 2})) == [-7, 7]
    assert index.examined == 2


@pytest.mark.core
def test_a_dotted_name_of_a_row_is_no_path() -> None:
    index: Index[str] = Index()
    index.add(parse(["==", "a.b", 1]), "inner")
    index.add(parse(["not", ["exists", "a.b"]]), "absent")
    assert index.find({"a.b": 1}) == ["absent"]
    assert index.find({"a.b": 2, "a": {"b": 1}}) == ["inner"]
    assert index.find({"a": {"b": 2}}) == []


@pytest.mark.core
@pytest.mark.parametrize("long", ["x" * 300, "\U0010ffff" * 300, "é" * 256])
def test_strings_that_differ_far_behind_are_told_apart_by_the_law(long: str) -> None:
    index: Index[str] = Index()
    for end in "abc":
        index.add(parse(["prefix", "s", long + end]), f"prefix {end}")
        index.add(parse(["contains", "s", long + end]), f"part {end}")
        index.add(parse([">=", "s", long + end]), f"from {end}")
        index.add(parse(["between", "s", long, long + end]), f"to {end}")
    found = sorted(index.find({"s": long + "b"}))
    assert found == ["from a", "from b", "part b", "prefix b", "to b", "to c"]


@pytest.mark.core
def test_numbers_beyond_what_json_clients_keep_do_not_get_lost() -> None:
    index: Index[str] = Index()
    index.add(parse([">", "n", 1e300]), "huge")
    index.add(parse(["between", "n", 2**53 - 2, 2**53 - 1]), "last")
    index.add(parse(["==", "n", 1e300]), "same")
    assert index.find({"n": 10**400}) == ["huge"]
    assert index.find({"n": float("inf")}) == ["huge"]
    assert index.find({"n": 1e300}) == ["same"]
    assert index.find({"n": float(2**53 - 1)}) == ["last"]
    assert index.find({"n": float("nan")}) == []
