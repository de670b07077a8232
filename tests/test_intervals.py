from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from syncserver.dealers.intervals import Intervals, _Node

POINTS = st.integers(0, 12) | st.sampled_from([-1.5, 3.0, 3.5, float("inf"), -float("inf")])


class AnyIntervals(RuleBasedStateMachine):
    """Whatever is added and removed, a point finds what a list would."""

    def __init__(self) -> None:
        super().__init__()
        self.intervals: Intervals[list[int]] = Intervals()
        self.plain: dict[tuple[Any, Any], list[int]] = {}

    @rule(low=POINTS, high=POINTS)
    def add(self, low: Any, high: Any) -> None:
        value = self.intervals.setdefault(low, high, list)
        assert self.plain.setdefault((low, high), value) is value

    @rule(low=POINTS, high=POINTS)
    def discard(self, low: Any, high: Any) -> None:
        self.intervals.discard(low, high)
        self.plain.pop((low, high), None)

    @rule(low=POINTS, high=POINTS)
    def get(self, low: Any, high: Any) -> None:
        assert self.intervals.get(low, high) is self.plain.get((low, high))

    @rule(point=POINTS)
    def find(self, point: Any) -> None:
        expected = [value for (low, high), value in self.plain.items() if low <= point <= high]
        assert sorted(map(id, self.intervals.at(point))) == sorted(map(id, expected))

    @invariant()
    def sound(self) -> None:
        assert len(self.intervals) == len(self.plain)
        check(self.intervals._root)


def check(node: _Node[Any] | None) -> None:
    """Check order, priorities and tops below a node."""
    if node is None:
        return
    below = [child for child in (node.left, node.right) if child is not None]
    assert all(child.priority <= node.priority for child in below)
    assert node.top == max([node.high, *(child.top for child in below)])
    assert node.left is None or node.left.is_before(node.low, node.high)
    assert node.right is None or node.is_before(node.right.low, node.right.high)
    for child in below:
        check(child)


TestAnyIntervals = AnyIntervals.TestCase
TestAnyIntervals.settings = settings(max_examples=60, stateful_step_count=40)


def depth(intervals: Intervals[Any]) -> int:
    level, deep = [intervals._root], 0
    while level := [node for node in level if node is not None]:
        deep += 1
        level = [child for node in level for child in (node.left, node.right)]
    return deep


@pytest.mark.core
@pytest.mark.parametrize("step", [1, -1])
def test_no_order_of_insertions_makes_the_tree_deep(step: int) -> None:
    intervals: Intervals[object] = Intervals()
    for number in range(3000)[::step]:
        intervals.setdefault(number, number + 5, object)
    assert depth(intervals) < 60
    for number in range(3000):
        intervals.discard(number, number + 5)
    assert (len(intervals), intervals._root) == (0, None)


@pytest.mark.core
@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3))), st.text(max_size=3))
def test_strings_are_ordered_as_they_compare(pairs: list[tuple[str, str]], point: str) -> None:
    intervals: Intervals[object] = Intervals()
    values = {pair: intervals.setdefault(*pair, object) for pair in pairs}
    expected = {id(values[low, high]) for low, high in pairs if low <= point <= high}
    assert set(map(id, intervals.at(point))) == expected


@pytest.mark.core
def test_a_wide_interval_does_not_make_a_point_look_at_narrow_ones() -> None:
    intervals: Intervals[object] = Intervals()
    wide = [intervals.setdefault(-n, 100_000, object) for n in range(5)]
    for number in random.Random(1).sample(range(10_000), 10_000):
        intervals.setdefault(number * 10, number * 10 + 5, object)
    assert len(intervals.at(Counted(50_007))) == len(wide)
    assert 0 < Counted.comparisons < 1000


class Counted(int):
    """A number that counts how often it is compared."""

    comparisons = 0

    def __ge__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) >= other

    def __gt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) > other

    def __le__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) <= other
