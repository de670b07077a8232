"""Where the ways of filters are kept, so that a row finds those that it may pass.

Pure structure: ``syncserver.dealers.index`` has the rules, ``syncserver.matching.terms`` the words.
A pin goes into a node; the node puts it into a bucket of one of its columns; a bucket that
has too many becomes a node in its turn. ``grow`` and ``shrink`` tell those above.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from syncserver.dealers.intervals import Intervals
from syncserver.filters import MISSING
from syncserver.matching.terms import (
    ABSENT_KEYS,
    KEYED,
    RANGES,
    RANKS,
    Way,
    keys_at,
    keys_of,
    rest_of,
)

BUCKET_PINS = 24

_FLAT = frozenset({str, int, float, bool, type(None), list})


class Pin:
    """One way of a filter, or a copy of it under another key, with the terms that are left.

    The pins of one owner are linked by ``sibling``.
    """

    __slots__ = ("owner", "place", "sibling", "terms")

    def __init__(self, owner: Any, terms: Way, sibling: Pin | None) -> None:
        self.owner = owner
        self.terms = terms
        self.sibling = sibling
        self.place: Bucket | Node

    def copy(self) -> Pin:
        """Return another pin of the same owner with the same terms left."""
        self.sibling = Pin(self.owner, self.terms, self.sibling)
        return self.sibling


class Bucket:
    """The pins under one key of a column: one, a list, or a node when they are many."""

    __slots__ = ("column", "held", "key")

    def __init__(self, column: Column, key: Any) -> None:
        self.column = column
        self.key = key
        self.held: Pin | list[Pin] | Node | None = None

    def __len__(self) -> int:
        match self.held:
            case None:
                return 0
            case Pin():
                return 1
            case held:
                return len(held)

    def put(self, pin: Pin) -> None:
        """Take a pin in."""
        held = self.held
        if isinstance(held, Node):
            held.put(pin)
            return
        pin.place = self
        if held is None:
            self.held = pin
        elif isinstance(held, Pin):
            self.held = [held, pin]
        else:
            held.append(pin)
            if len(held) > BUCKET_PINS:
                self.held = node = Node(self)
                for each in held:
                    node.put(each)

    def remove(self, pin: Pin) -> None:
        """Let go of a pin whose place this is."""
        if isinstance(self.held, list) and len(self.held) > 1:
            self.held.remove(pin)
        else:
            self.held = None
        self.shrink()

    def shrink(self) -> None:
        """Note that a pin went; go when it was the last."""
        if not len(self):
            self.held = None  # no cycle is left for the collector
            self.column.discard(self)
        self.column.node.shrink()


class Column:
    """The buckets of one column of a node, by key or (where it says ranges) by interval."""

    __slots__ = ("buckets", "name", "node")

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self.buckets: dict[Any, Bucket] | Intervals[Bucket]
        self.buckets = Intervals() if name[0] in RANGES else {}

    def load(self, key: Any) -> int:
        """Return how many pins are under a key."""
        bucket = self.buckets.get(key) if isinstance(self.buckets, dict) else None
        return 0 if bucket is None else len(bucket)

    def bucket(self, key: Any) -> Bucket:
        """Return the bucket of a key, made if there is none."""
        buckets = self.buckets
        if not isinstance(buckets, dict):
            return buckets.setdefault(key[0], key[1], lambda: Bucket(self, key))
        bucket = buckets.get(key)
        if bucket is None:
            bucket = buckets[key] = Bucket(self, key)
        return bucket

    def discard(self, bucket: Bucket) -> None:
        """Forget a bucket, and with the last one the column."""
        if isinstance(self.buckets, dict):
            del self.buckets[bucket.key]
        else:
            self.buckets.discard(bucket.key[0], bucket.key[1])
        if not self.buckets:
            self.node.discard(self)

    def at(self, keys: Sequence[Any] | frozenset[Any]) -> Iterable[Bucket]:
        """Return the buckets that a row finds with what it has."""
        buckets = self.buckets
        if not isinstance(buckets, dict):
            return [bucket for key in keys for bucket in buckets.at(key)]
        if isinstance(keys, frozenset):
            return map(buckets.__getitem__, buckets.keys() & keys)
        return [buckets[key] for key in keys if key in buckets]


class Node:
    """Many pins, divided by the terms that they have left; ``bucket`` is where it hangs."""

    __slots__ = ("bucket", "loose", "paths", "size", "sparse")

    def __init__(self, bucket: Bucket | None = None) -> None:
        self.bucket = bucket
        self.size = 0
        self.paths: dict[str, dict[str, Column]] = {}
        self.sparse: dict[str, Column] = {}  # the "-" columns, which a missing path finds too
        self.loose: dict[Pin, None] = {}

    def __len__(self) -> int:
        return self.size

    def at(self, values: Values) -> Iterator[Bucket]:
        """Give the buckets that a row finds here."""
        for path in values.paths.keys() & self.paths.keys():
            for name, column in self.paths[path].items():
                yield from column.at(values.keys_at(name))
        for name, column in self.sparse.items():
            yield from column.at(values.keys_at(name))

    def put(self, pin: Pin) -> None:
        """Take a pin in."""
        self.size += 1
        if not pin.terms:
            self.loose[pin] = None
            pin.place = self
            return
        number, keys = self._chosen(pin.terms)
        column = self._column(pin.terms[number][0])
        pin.terms = _left_of(pin.terms, number, keys)
        for key in keys[1:]:
            self._grow()
            column.bucket(key).put(pin.copy())
        column.bucket(keys[0]).put(pin)

    def remove(self, pin: Pin) -> None:
        """Let go of a loose pin."""
        del self.loose[pin]
        self.shrink()

    def shrink(self) -> None:
        """Note that a pin went, here and in what the node hangs on."""
        self.size -= 1
        if self.bucket is not None:
            self.bucket.shrink()

    def discard(self, column: Column) -> None:
        """Forget a column."""
        columns = self._columns(column.name)
        del columns[column.name]
        if not columns and columns is not self.sparse:
            del self.paths[column.name[1:]]

    def _grow(self) -> None:
        self.size += 1
        if self.bucket is not None:
            self.bucket.column.node._grow()

    def _columns(self, name: str) -> dict[str, Column]:
        return self.sparse if name[0] == "-" else self.paths.get(name[1:], {})

    def _column(self, name: str) -> Column:
        columns = self.sparse if name[0] == "-" else self.paths.setdefault(name[1:], {})
        column = columns.get(name)
        if column is None:
            column = columns[name] = Column(self, name)
        return column

    def _chosen(self, terms: Way) -> tuple[int, Sequence[Any]]:
        """Return which of the terms is to hold a pin, and under which keys."""
        rank = RANKS[terms[0][0][0]]
        options = [(0, keys) for keys in keys_of(terms[0])]
        if rank <= KEYED:  # of intervals it is not known how many overlap
            for number in range(1, len(terms)):
                if RANKS[terms[number][0][0]] == rank:
                    options += [(number, keys) for keys in keys_of(terms[number])]
        if len(options) == 1:
            return options[0]
        return min(options, key=lambda option: self._load(terms[option[0]][0], option[1]))

    def _load(self, name: str, keys: Sequence[Any]) -> int:
        """Return how many pins stand where these would go, and how many these are."""
        column = self._columns(name).get(name)
        return len(keys) + (0 if column is None else max(map(column.load, keys)))


def _left_of(terms: Way, number: int, keys: Sequence[Any]) -> Way:
    """Return what is left of terms once one was used.

    Of several keys each has a copy of the pin, so no other term with several is left: a
    way has no more pins than keys.
    """
    # More of a part comes last: those that share one are better divided by something else.
    rest = (*terms[:number], *terms[number + 1 :], *rest_of(terms[number], keys))
    if len(keys) == 1:
        return rest
    return tuple([term for term in rest if term[0][0] != "=" or len(term[1]) == 1])


class Values:
    """What a row has at its paths, and the keys that columns look for; each is made once."""

    __slots__ = ("_keys", "paths")

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.paths: Mapping[str, Any] = row
        self._keys: dict[str, Sequence[Any] | frozenset[Any]] = {}
        if not _FLAT.issuperset(map(type, row.values())) or "." in "".join(row):
            self.paths = dict(_paths(row))

    def keys_at(self, name: str) -> Sequence[Any] | frozenset[Any]:
        """Return what to look for in a column."""
        keys = self._keys.get(name)
        if keys is None:
            value = self.paths.get(name[1:], MISSING)
            missing = value is MISSING
            keys = ABSENT_KEYS if missing else keys_at(name[0], value)
            self._keys[name] = keys
        return keys


def _paths(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    pending: list[tuple[str, Mapping[str, Any]]] = [("", row)]
    for above, values in pending:  # grows while it is read
        for name, value in values.items():
            if "." not in name:  # no path of a filter names another
                yield above + name, value
                if isinstance(value, dict):
                    pending.append((f"{above}{name}.", value))
