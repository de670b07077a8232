"""The filter language: checked once, compiled once, explained (docs/reference/filters).

A comparison on a missing field, or between types that it does not compare, is
false; ``not`` negates that too. No row makes a compiled filter raise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from syncserver import canonical, strict_json
from syncserver.errors import InvalidQuery

MAX_NODES = 64
MAX_DEPTH = 8
MISSING: Final = object()
"""What a reader returns where the row has no such field; null is no missing field."""

Predicate = Callable[[Any], bool]
Indices = tuple[int, ...]

_SHOWN_CHARACTERS = 40
_NUMBERS = (int, float)  # compared by class: bool is a subclass of int


class Anchor(NamedTuple):
    """What a row must have to match: at ``path`` a value with one of these canonical keys."""

    path: str
    keys: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled filter; equal to another one with the same expression.

    ``matches(row)`` tells whether the row passes. ``anchor`` is the equality that
    a row cannot match without, if there is one, for an index.
    """

    key: bytes = field(repr=False)
    text: str = field(compare=False)
    anchor: Anchor | None = field(compare=False, repr=False)
    matches: Predicate = field(compare=False, repr=False)

    def explain(self) -> str:
        """Return the filter in words, for a person."""
        return self.text


def parse(expression: Any, *, max_nodes: int = MAX_NODES, max_depth: int = MAX_DEPTH) -> Filter:
    """Compile a prefix expression; InvalidQuery says what is wrong and where.

    The error's ``field`` is the path of list indices to the fault, None for the whole.
    """
    try:
        strict_json.encode(expression)
    except ValueError as error:
        raise InvalidQuery(f"filter: {error}") from None
    node = _Parser(max_nodes, max_depth).parse(expression, ())
    return Filter(canonical.key(expression), node.text, node.anchor, node.test)


def reader(path: str) -> Callable[[Any], Any]:
    """Return a function that reads a dotted path of a row, or MISSING; ValueError on a bad path.

    Each segment is a key of an object; arrays are not entered.
    """
    names = path.split(".")
    if not all(names):
        raise ValueError("a path has no empty segment")
    if len(names) == 1:
        return lambda row: row.get(path, MISSING) if isinstance(row, dict) else MISSING

    def read(row: Any) -> Any:
        for name in names:
            if not isinstance(row, dict) or name not in row:
                return MISSING
            row = row[name]
        return row

    return read


class _Node(NamedTuple):
    test: Predicate
    text: str
    anchor: Anchor | None = None
    joined: bool = False
    """Whether the text needs brackets inside another one."""


class _Parser:
    """Turns one expression into a node; counts as it goes."""

    def __init__(self, max_nodes: int, max_depth: int) -> None:
        self._max_nodes = max_nodes
        self._max_depth = max_depth
        self._nodes = 0

    def parse(self, expression: Any, at: Indices) -> _Node:
        name, operands = _split(expression, at)
        self._nodes += 1
        if self._nodes > self._max_nodes:
            raise _refusal(f"more than {self._max_nodes} expressions", at)
        if len(at) >= self._max_depth:  # one index for each level that was entered
            raise _refusal(f"nested deeper than {self._max_depth}", at)
        if name in _COMPARISONS:
            return _comparison(name, operands, at)
        if not operands or (name == "not" and len(operands) > 1):
            raise _refusal(f"{name} takes {_LOGIC[name]}", at)
        return _combine(name, [self.parse(e, (*at, i)) for i, e in enumerate(operands, 1)])


def _split(expression: Any, at: Indices) -> tuple[str, list[Any]]:
    if not isinstance(expression, list):
        raise _refusal('must be a list such as ["==", "color", "blue"]', at)
    if not expression:
        raise _refusal("is empty", at)
    name, *operands = expression
    if not isinstance(name, str) or not (name in _COMPARISONS or name in _LOGIC):
        known = ", ".join((*_COMPARISONS, *_LOGIC))
        raise _refusal(f"unknown operator {_shown(name)}; known are {known}", (*at, 0))
    return name, operands


def _combine(name: str, nodes: list[_Node]) -> _Node:
    tests = [node.test for node in nodes]
    texts = [f"({node.text})" if node.joined else node.text for node in nodes]
    match name:
        case "not":
            test = tests[0]
            return _Node(lambda row: not test(row), f"not ({nodes[0].text})")
        case "and":
            test, anchor = _decided(tests, False), _narrowest(nodes)
        case _:
            test, anchor = _decided(tests, True), _united(nodes)
    return _Node(test, f" {name} ".join(texts), anchor, joined=len(nodes) > 1)


def _decided(tests: list[Predicate], verdict: bool) -> Predicate:
    def test(row: Any) -> bool:
        for each in tests:  # any() would make a generator for every row
            if each(row) is verdict:
                return verdict
        return not verdict

    return test


def _narrowest(nodes: list[_Node]) -> Anchor | None:
    anchors = [node.anchor for node in nodes if node.anchor is not None]
    return min(anchors, key=lambda anchor: len(anchor.keys), default=None)


def _united(nodes: list[_Node]) -> Anchor | None:
    anchors = [node.anchor for node in nodes if node.anchor is not None]
    paths = {anchor.path for anchor in anchors}
    if len(anchors) < len(nodes) or len(paths) > 1:
        return None
    return Anchor(paths.pop(), frozenset().union(*(anchor.keys for anchor in anchors)))


def _comparison(name: str, operands: list[Any], at: Indices) -> _Node:
    template, build = _COMPARISONS[name]
    takes = template.count("{}")
    if len(operands) != takes:
        raise _refusal(f"{name} takes {takes} operands, not {len(operands)}", at)
    path, *values = operands
    read = _field(path, at)
    check = build(values, at)
    text = template.format(path, *map(_shown, values))
    return _Node(_on_field(read, check), text, _anchor(name, path, values))


def _field(path: Any, at: Indices) -> Callable[[Any], Any]:
    if not isinstance(path, str) or not all(path.split(".")):
        raise _refusal('the field must be a name such as "color" or "owner.id"', (*at, 1))
    return reader(path)


def _on_field(read: Callable[[Any], Any], check: Predicate) -> Predicate:
    def test(row: Any) -> bool:
        found = read(row)
        return found is not MISSING and check(found)

    return test


def _anchor(name: str, path: str, values: list[Any]) -> Anchor | None:
    match name:
        case "==":
            return Anchor(path, frozenset(map(canonical.key, values)))
        case "in":
            return Anchor(path, frozenset(map(canonical.key, values[0])))
        case _:
            return None


def _equal_to(value: Any) -> Predicate:
    if value is None or isinstance(value, bool):
        return lambda found: found is value
    if isinstance(value, str):
        return lambda found: bool(found == value)
    if isinstance(value, int | float):
        return lambda found: found.__class__ in _NUMBERS and bool(found == value)
    key = canonical.key(value)
    return lambda found: isinstance(found, list | dict) and canonical.key(found) == key


def _inequality(values: list[Any], _: Indices) -> Predicate:
    equal = _equal_to(values[0])
    return lambda found: not equal(found)


def _order(compare: Callable[[Any, Any], bool]) -> _Build:
    def build(values: list[Any], at: Indices) -> Predicate:
        limit = values[0]
        kinds = _kinds(values, at)
        return lambda found: found.__class__ in kinds and compare(found, limit)

    return build


def _between(values: list[Any], at: Indices) -> Predicate:
    low, high = values
    kinds = _kinds(values, at)
    return lambda found: found.__class__ in kinds and low <= found <= high


def _kinds(limits: Sequence[Any], at: Indices) -> tuple[type, ...]:
    """Return the classes of values that these limits are compared with."""
    for kinds in (_NUMBERS, (str,)):
        if all(limit.__class__ in kinds for limit in limits):
            return kinds
    what = "a number or a string" if len(limits) == 1 else "two numbers or two strings"
    raise _refusal(f"is compared with {what}", (*at, 2))


def _membership(values: list[Any], at: Indices) -> Predicate:
    options = values[0]
    if not isinstance(options, list):
        raise _refusal("in takes a list of values", (*at, 2))
    keys = frozenset(map(canonical.key, options))
    return lambda found: canonical.key(found) in keys


def _prefix(values: list[Any], at: Indices) -> Predicate:
    start = values[0]
    if not isinstance(start, str):
        raise _refusal("prefix takes a string", (*at, 2))
    return lambda found: isinstance(found, str) and found.startswith(start)


def _contains(values: list[Any], _: Indices) -> Predicate:
    value = values[0]
    equal = _equal_to(value)

    def check(found: Any) -> bool:
        if isinstance(found, list):
            return any(map(equal, found))
        return isinstance(found, str) and isinstance(value, str) and value in found

    return check


def _shown(value: Any) -> str:
    text = strict_json.encode_trusted(value).decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _refusal(message: str, at: Indices) -> InvalidQuery:
    where = ".".join(map(str, at))
    place = f"filter at {where}" if where else "filter"
    return InvalidQuery(f"{place}: {message}", field=where or None)


_Build = Callable[[list[Any], Indices], Predicate]

_COMPARISONS: dict[str, tuple[str, _Build]] = {
    "==": ("{} == {}", lambda values, _: _equal_to(values[0])),
    "!=": ("{} != {}", _inequality),
    "<": ("{} < {}", _order(operator.lt)),
    "<=": ("{} <= {}", _order(operator.le)),
    ">": ("{} > {}", _order(operator.gt)),
    ">=": ("{} >= {}", _order(operator.ge)),
    "in": ("{} in {}", _membership),
    "between": ("{} between {} and {}", _between),
    "prefix": ("{} starts with {}", _prefix),
    "contains": ("{} contains {}", _contains),
    "exists": ("{} exists", lambda _values, _: lambda _found: True),
}

_LOGIC = {"and": "one or more filters", "or": "one or more filters", "not": "one filter"}
