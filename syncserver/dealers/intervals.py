"""Closed intervals, found by a point inside them.

A treap ordered by (low, high), in which every node knows the highest end below it (an
interval tree). Priorities are random, so that no order of insertions makes it deep.
Adding, removing and the first interval found cost O(log n), each further one O(log n)
at most. Ends are numbers or strings, not both.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class _Node(Generic[V]):
    """One interval; ``top`` is the highest end in its subtree."""

    __slots__ = ("high", "left", "low", "priority", "right", "top", "value")

    def __init__(self, low: Any, high: Any, value: V) -> None:
        self.low = low
        self.high = self.top = high
        self.value = value
        self.priority = random.random()  # noqa: S311  # balance is no secret
        self.left: _Node[V] | None = None
        self.right: _Node[V] | None = None

    def is_before(self, low: Any, high: Any) -> bool:
        return bool(self.low < low or (self.low == low and self.high < high))

    def refresh(self) -> None:
        top, left, right = self.high, self.left, self.right
        if left is not None and left.top > top:
            top = left.top
        if right is not None and right.top > top:
            top = right.top
        self.top = top


class Intervals(Generic[V]):
    """A value for each interval that was put in."""

    __slots__ = ("_root", "_size")

    def __init__(self) -> None:
        self._root: _Node[V] | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def get(self, low: Any, high: Any) -> V | None:
        """Return the value of exactly this interval."""
        node = self._root
        while node is not None:
            if low != node.low:
                node = node.left if low < node.low else node.right
            elif high != node.high:
                node = node.left if high < node.high else node.right
            else:
                return node.value
        return None

    def setdefault(self, low: Any, high: Any, make: Callable[[], V]) -> V:
        """Return the value of exactly this interval, which ``make`` makes if there is none."""
        value = self.get(low, high)
        if value is None:
            value = make()
            self._insert(_Node(low, high, value))
            self._size += 1
        return value

    def discard(self, low: Any, high: Any) -> None:
        """Forget an interval, if it is there."""
        path = []
        node = self._root
        while node is not None and (node.low != low or node.high != high):
            path.append(node)
            node = node.right if node.is_before(low, high) else node.left
        if node is None:
            return
        self._hang(_merged(node.left, node.right), path[-1] if path else None, low, high)
        self._size -= 1
        for above in reversed(path):
            above.refresh()

    def at(self, point: Any) -> list[V]:
        """Return the values of all intervals that the point is in."""
        found = []
        pending = [self._root]
        while pending:
            node = pending.pop()
            if node is None or node.top < point:
                continue
            pending.append(node.left)
            if node.low <= point:
                if point <= node.high:
                    found.append(node.value)
                pending.append(node.right)
        return found

    def _insert(self, new: _Node[V]) -> None:
        low, high, priority = new.low, new.high, new.priority
        above: _Node[V] | None = None
        node = self._root
        while node is not None and node.priority >= priority:
            node.top = max(node.top, high)
            above = node
            if low != node.low:
                node = node.left if low < node.low else node.right
            else:
                node = node.left if high < node.high else node.right
        new.left, new.right = _split(node, low, high)
        new.refresh()
        self._hang(new, above, low, high)

    def _hang(self, node: _Node[V] | None, above: _Node[V] | None, low: Any, high: Any) -> None:
        """Put a subtree where the interval (low, high) has its place below ``above``."""
        if above is None:
            self._root = node
        elif above.is_before(low, high):
            above.right = node
        else:
            above.left = node


def _split(node: _Node[V] | None, low: Any, high: Any) -> tuple[_Node[V] | None, _Node[V] | None]:
    """Return what is before and what is after an interval that is not there."""
    if node is None:
        return None, None
    if node.is_before(low, high):
        node.right, after = _split(node.right, low, high)
        before: _Node[V] | None = node
    else:
        before, node.left = _split(node.left, low, high)
        after = node
    node.refresh()
    return before, after


def _merged(before: _Node[V] | None, after: _Node[V] | None) -> _Node[V] | None:
    if before is None or after is None:
        return after if before is None else before
    if before.priority > after.priority:
        before.right = _merged(before.right, after)
        before.refresh()
        return before
    after.left = _merged(before, after.left)
    after.refresh()
    return after
