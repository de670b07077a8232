"""The index of filters: which of them a row may pass, at a cost that grows with those.

Rules, in the words of ``syncserver.matching.ways`` and ``syncserver.matching.terms``:

* A filter is stored once, however many items have it, and has a *pin* for each of its ways.
* A *node* holds pins. Each is in a *bucket*: the node's column of one of its terms, under
  the term's key. Equalities come first, among them the one whose bucket is smallest now;
  then elements of arrays, parts of strings and cells of several intervals, then intervals.
* A bucket with more than ``BUCKET_PINS`` pins becomes a node, where its pins are put by the
  terms they have left. A pin without any left is *loose* in its node.
* A row is looked up in the columns of those paths alone that the row has. What it finds,
  and what is loose in the nodes that it reaches, is a superset: the law is asked for each.
* What holds nothing goes: buckets, columns, nodes, filters.

So there are no rebuilds; a pin is moved at most once for each of its terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

from syncserver.dealers.pins import Node, Pin, Values
from syncserver.delta import Row
from syncserver.errors import InvalidQuery
from syncserver.filters import Filter
from syncserver.matching import ways
from syncserver.matching.comparisons import Comparison
from syncserver.matching.terms import Way

T = TypeVar("T")


class TooManyLinear(InvalidQuery):
    """The query is a filter that the index cannot narrow, and there are enough of these."""

    code = "linear_filter_limit"


def is_linear(filter_: Filter, found: Sequence[Way]) -> bool:
    """Tell whether the filter has to be looked at for rows that it has nothing to do with.

    A single comparison without narrow terms (``!=``, ``exists``) is not counted, nor its
    negation: a row fails few of them, so that they cost what they match.
    """
    if all(map(ways.narrows, found)):
        return False
    tree = filter_.shape.tree
    if not isinstance(tree, Comparison) and tree.operator == "not":
        (tree,) = tree.parts
        return not isinstance(tree, Comparison) or tree.operator in ("in", "prefix", "contains")
    return not isinstance(tree, Comparison)


class _Entry(Generic[T]):
    """A filter and who has it: an item, or a dict of several; ``pin`` is the first of its pins."""

    __slots__ = ("filter", "items", "pin")

    def __init__(self, filter_: Filter, item: T) -> None:
        self.filter = filter_
        self.items: T | dict[T, None] = item  # one is the rule, and a dict takes 200 bytes
        self.pin: Pin | None = None

    def add(self, item: T) -> None:
        if isinstance(self.items, dict):
            self.items[item] = None
        elif self.items != item:
            self.items = {self.items: None, item: None}

    def remove(self, item: T) -> bool:
        """Forget an item and tell whether there is another; KeyError if it is not there."""
        items = self.items
        if isinstance(items, dict):
            del items[item]
            if len(items) == 1:
                (self.items,) = items
            return True
        if items != item:
            raise KeyError(item)
        return False


class Index(Generic[T]):
    """Items by the filters they have.

    ``examined`` counts how often a filter's law was asked.
    """

    def __init__(self) -> None:
        self.examined = 0
        self._linear: set[_Entry[T]] = set()
        self._entries: dict[bytes, _Entry[T]] = {}
        self._root = Node()

    def __len__(self) -> int:
        """Return the number of filters; those that are equal count once."""
        return len(self._entries)

    @property
    def linear(self) -> int:
        """Return how many filters are looked at for rows that they have nothing to do with."""
        return len(self._linear)

    @property
    def pins(self) -> int:
        """Return in how many places filters stand."""
        return len(self._root)

    def add(self, filter_: Filter, item: T, *, max_linear: float = math.inf) -> None:
        """Take an item in; TooManyLinear if its filter would be one linear filter too many."""
        entry = self._entries.get(filter_.key)
        if entry is None:
            self._store(filter_, item, max_linear)
        else:
            entry.add(item)

    def remove(self, filter_: Filter, item: T) -> None:
        """Forget an item; KeyError if this filter does not have it."""
        entry = self._entries[filter_.key]
        if entry.remove(item):
            return
        del self._entries[filter_.key]
        if not self._entries:
            self._entries = {}  # an empty dictionary keeps the room that it had
        self._linear.discard(entry)
        pin, entry.pin = entry.pin, None  # no cycle is left for the collector
        while pin is not None:
            pin.place.remove(pin)
            pin = pin.sibling

    def find(self, row: Row) -> list[T]:
        """Return the items whose filter the row passes, each once."""
        found: list[T] = []
        if not self._entries:
            return found
        candidates = self._candidates(row)
        self.examined += len(candidates)
        for entry in candidates:
            if entry.filter.matches(row):
                items = entry.items
                if isinstance(items, dict):
                    found.extend(items)
                else:
                    found.append(items)
        return found

    def _store(self, filter_: Filter, item: T, max_linear: float) -> None:
        found = ways.ways_of(filter_)
        linear = is_linear(filter_, found)
        if linear and self.linear >= max_linear:
            raise TooManyLinear(
                "filter: needs an ==, in, range, prefix or contains that every row must pass;"
                f" there are {self.linear} filters without one already",
                field="query",
            )
        entry = self._entries[filter_.key] = _Entry(filter_, item)
        if linear:
            self._linear.add(entry)
        for terms in found:
            entry.pin = Pin(entry, terms, entry.pin)
            self._root.put(entry.pin)

    def _candidates(self, row: Row) -> set[_Entry[T]]:
        values = Values(row)
        pins: list[Pin] = []
        nodes = [self._root]
        for node in nodes:  # grows while it is read
            pins += node.loose
            for bucket in node.at(values):
                match bucket.held:
                    case Pin() as pin:
                        pins.append(pin)
                    case list() as several:
                        pins += several
                    case Node() as inner:
                        nodes.append(inner)
        return {pin.owner for pin in pins}
