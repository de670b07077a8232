"""The filter language: checked once, compiled once for all of one shape, explained.

Its rules are in docs/reference/filters. A *shape* is a filter without its operands:
a million filters of one form share one compiled test. No row makes a filter raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from syncserver import canonical, strict_json
from syncserver.errors import InvalidQuery
from syncserver.matching.comparisons import (
    MISSING,
    OPERATORS,
    Comparison,
    Indices,
    compare,
    reader,
    refusal,
    shown,
)

__all__ = ["MAX_DEPTH", "MAX_NODES", "MISSING", "Combination", "Filter", "Tree", "parse", "reader"]

MAX_NODES = 64
MAX_DEPTH = 8

Test = Callable[[Any, Sequence[Any]], bool]


class Combination(NamedTuple):
    """``and``, ``or`` or ``not`` of what stands below it."""

    operator: str
    parts: tuple[Tree, ...]


Tree = Comparison | Combination


class Shape:
    """The form of a filter, and its test of (row, operands)."""

    __slots__ = ("__weakref__", "test", "tree")

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.test = _compile(tree)


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled filter; equal to another one with the same expression.

    The order of the operands of ``and`` and ``or`` makes no difference, nor does
    one that stands there twice. The expression must not be changed.
    """

    key: bytes = field(repr=False)
    shape: Shape = field(compare=False, repr=False)
    operands: tuple[Any, ...] = field(compare=False, repr=False)
    expression: Any = field(compare=False)

    def matches(self, row: Any) -> bool:
        """Tell whether a row passes."""
        return self.shape.test(row, self.operands)

    def explain(self) -> str:
        """Return the filter in words, for a person."""
        return _text(self.expression)


def parse(expression: Any, *, max_nodes: int = MAX_NODES, max_depth: int = MAX_DEPTH) -> Filter:
    """Compile a prefix expression; InvalidQuery says what is wrong and where.

    The error's ``field`` is the path of list indices to the fault, None for the whole.
    """
    try:
        strict_json.encode(expression)
    except ValueError as error:
        raise InvalidQuery(f"filter: {error}") from None
    parser = _Parser(max_nodes, max_depth)
    tree, key = parser.parse(expression, ())
    return Filter(key, _shape(tree), tuple(parser.operands), expression)


class _Parser:
    """Turns one expression into a tree and its canonical key; gathers the operands."""

    def __init__(self, max_nodes: int, max_depth: int) -> None:
        self.operands: list[Any] = []
        self._max_nodes = max_nodes
        self._max_depth = max_depth
        self._nodes = 0

    def parse(self, expression: Any, at: Indices) -> tuple[Tree, bytes]:
        name, operands = _split(expression, at)
        self._nodes += 1
        if self._nodes > self._max_nodes:
            raise refusal(f"more than {self._max_nodes} expressions", at)
        if len(at) >= self._max_depth:  # one index for each level that was entered
            raise refusal(f"nested deeper than {self._max_depth}", at)
        if name in OPERATORS:
            return self._comparison(name, operands, at), canonical.key(expression)
        if not operands or (name == "not" and len(operands) > 1):
            raise refusal(f"{name} takes {_LOGIC[name]}", at)
        parsed = [self.parse(one, (*at, number)) for number, one in enumerate(operands, 1)]
        keys = sorted({key for _, key in parsed})
        whole = b'["%b",%b]' % (name.encode(), b",".join(keys))
        return Combination(name, tuple(tree for tree, _ in parsed)), whole

    def _comparison(self, name: str, operands: list[Any], at: Indices) -> Comparison:
        template, operand_of = OPERATORS[name]
        takes = template.count("{}")
        if len(operands) != takes:
            raise refusal(f"{name} takes {takes} operands, not {len(operands)}", at)
        path, *values = operands
        if not isinstance(path, str) or not all(path.split(".")):
            raise refusal('the field must be a name such as "color" or "owner.id"', (*at, 1))
        kind, operand = operand_of(values, at)
        self.operands.append(operand)
        return Comparison(name, path, kind, len(self.operands) - 1)


def _split(expression: Any, at: Indices) -> tuple[str, list[Any]]:
    if not isinstance(expression, list):
        raise refusal('must be a list such as ["==", "color", "blue"]', at)
    if not expression:
        raise refusal("is empty", at)
    name, *operands = expression
    if not isinstance(name, str) or not (name in OPERATORS or name in _LOGIC):
        known = ", ".join((*OPERATORS, *_LOGIC))
        raise refusal(f"unknown operator {shown(name)}; known are {known}", (*at, 0))
    return name, operands


_shapes: WeakValueDictionary[Tree, Shape] = WeakValueDictionary()
"""The shapes of the filters that there are."""


def _shape(tree: Tree) -> Shape:
    shape = _shapes.get(tree)
    if shape is None:
        shape = _shapes[tree] = Shape(tree)
    return shape


def _compile(tree: Tree) -> Test:
    if isinstance(tree, Comparison):
        return compare(tree)
    tests = [_compile(part) for part in tree.parts]
    match tree.operator:
        case "not":
            test = tests[0]
            return lambda row, operands: not test(row, operands)
        case "and":
            return _decided(tests, False)
        case _:
            return _decided(tests, True)


def _decided(tests: list[Test], verdict: bool) -> Test:
    def test(row: Any, operands: Sequence[Any]) -> bool:
        for each in tests:  # any() would make a generator for every row
            if each(row, operands) is verdict:
                return verdict
        return not verdict

    return test


def _text(expression: Any) -> str:
    name, *operands = expression
    if name in OPERATORS:
        path, *values = operands
        return OPERATORS[name].template.format(path, *map(shown, values))
    if name == "not":
        return f"not ({_text(operands[0])})"
    return f" {name} ".join(map(_bracketed, operands))


def _bracketed(expression: Any) -> str:
    joined = expression[0] in ("and", "or") and len(expression) > 2
    return f"({_text(expression)})" if joined else _text(expression)


_LOGIC = {"and": "one or more filters", "or": "one or more filters", "not": "one filter"}
