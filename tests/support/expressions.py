"""Filters and rows at random, and an evaluator that only reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, -0.0, 1.5, 2, "", "a", "ab", "b", "1"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab0"), inner, max_size=2)
    ),
    max_leaves=4,
)
ROWS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)
FIELDS = st.sampled_from(["a", "b", "a.b", "a.a", "b.0", "a.b.a"])
LIMITS = st.sampled_from([(0, 1), (1, 1.5), (2, 0), ("a", "b"), ("", "ab")])
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["==", "!=", "contains"]), FIELDS, VALUES).map(list),
    st.tuples(
        st.sampled_from(["<", "<=", ">", ">="]), FIELDS, st.sampled_from([0, 1, 1.5, "", "a", "b"])
    ).map(list),
    st.tuples(st.just("in"), FIELDS, st.lists(VALUES, max_size=3)).map(list),
    st.tuples(st.just("prefix"), FIELDS, st.sampled_from(["", "a", "ab"])).map(list),
    st.tuples(st.just("exists"), FIELDS).map(list),
    st.tuples(FIELDS, LIMITS).map(lambda pair: ["between", pair[0], *pair[1]]),
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: (
        inner.map(lambda one: ["not", one])
        | st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)).map(
            lambda pair: [pair[0], *pair[1]]
        )
    ),
    max_leaves=5,
)


def kind(value: Any) -> str:
    """Return the JSON type of a value."""
    names = {bool: "bool", int: "number", float: "number", str: "string", list: "array"}
    return "null" if value is None else names.get(type(value), "object")


def same(one: Any, other: Any) -> bool:
    """Compare as JSON does."""
    if kind(one) != kind(other):
        return False
    if kind(one) == "array":
        return len(one) == len(other) and all(map(same, one, other))
    if kind(one) == "object":
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def found_at(row: Any, path: str) -> list[Any]:
    """Return the value at a path as a list of one, or an empty list."""
    head, _, rest = path.partition(".")
    if kind(row) != "object" or head not in row:
        return []
    return found_at(row[head], rest) if rest else [row[head]]


def ordered(low: Any, high: Any) -> bool:
    return kind(low) == kind(high) in ("number", "string") and low <= high


def evaluate(expression: list[Any], row: Any) -> bool:
    """Evaluate a filter by reading it: slow, and without what the compiler does."""
    match expression:
        case ["not", inner]:
            return not evaluate(inner, row)
        case ["and", *inner]:
            return {evaluate(one, row) for one in inner} == {True}
        case ["or", *inner]:
            return True in {evaluate(one, row) for one in inner}
        case [name, path, *values]:
            return any(COMPARE[name](found, *values) for found in found_at(row, path))
    raise AssertionError(expression)


def contains(found: Any, value: Any) -> bool:
    if kind(found) == "array":
        return any(same(element, value) for element in found)
    return kind(found) == kind(value) == "string" and found.find(value) >= 0


COMPARE: dict[str, Callable[..., bool]] = {
    "==": same,
    "!=": lambda found, value: not same(found, value),
    "<=": ordered,
    ">=": lambda found, value: ordered(value, found),
    "<": lambda found, value: ordered(found, value) and not same(found, value),
    ">": lambda found, value: ordered(value, found) and not same(found, value),
    "between": lambda found, low, high: ordered(low, found) and ordered(found, high),
    "in": lambda found, options: any(same(found, option) for option in options),
    "prefix": lambda found, start: kind(found) == "string" and found[: len(start)] == start,
    "contains": contains,
    "exists": lambda found: True,
}
