from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver import canonical, filters, strict_json
from syncserver.config import Limits
from syncserver.errors import InvalidQuery
from syncserver.filters import MISSING, Anchor, parse, reader

pytestmark = pytest.mark.core

VECTORS = json.loads((Path(__file__).parent / "vectors" / "filters.json").read_text("utf-8"))

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


def test_each_vector_matches_as_it_says() -> None:
    wrong = [
        case["why"]
        for case in VECTORS["valid"]
        if parse(case["filter"]).matches(case["row"]) is not case["matches"]
    ]
    assert not wrong


def test_each_bad_filter_is_refused_with_a_reason() -> None:
    for case in VECTORS["invalid"]:
        with pytest.raises(InvalidQuery, match=r"^filter( at [0-9.]+)?: .+"):
            parse(case["filter"])


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


@given(EXPRESSIONS, ROWS)
def test_an_evaluator_that_only_reads_agrees(expression: list[Any], row: dict[str, Any]) -> None:
    assert parse(expression).matches(row) is evaluate(expression, row)


@given(EXPRESSIONS, ROWS)
def test_what_matches_has_the_value_of_the_anchor(expression: list[Any], row: Any) -> None:
    compiled = parse(expression)
    if compiled.anchor is not None and compiled.matches(row):
        found = reader(compiled.anchor.path)(row)
        assert canonical.key(found) in compiled.anchor.keys


@given(EXPRESSIONS, VALUES | st.dictionaries(st.text(max_size=3), VALUES, max_size=3))
def test_no_json_row_makes_a_filter_raise(expression: list[Any], row: Any) -> None:
    assert parse(expression).matches(row) in (True, False)


@given(VALUES | EXPRESSIONS.map(lambda expression: [*expression, None]) | st.lists(VALUES))
def test_any_json_is_compiled_or_refused(expression: Any) -> None:
    with contextlib.suppress(InvalidQuery):
        assert parse(expression).explain()


@pytest.mark.parametrize(
    ("expression", "field", "says"),
    [
        ({}, None, "must be a list"),
        (["and", ["==", "a", 1], ["~", "b", 1]], "2.0", 'unknown operator "~"; known are =='),
        (["color", "==", 1], "0", "unknown operator"),
        (["or", ["not", ["<", "age", None]]], "1.1.2", "compared with a number or a string"),
        (["between", "age", 1, "2"], "2", "two numbers or two strings"),
        (["not", ["==", "a..b", 1]], "1.1", "field must be a name"),
        (["not", ["==", "a"]], "1", "== takes 2 operands, not 1"),
        (["and", ["or"]], "1", "or takes one or more filters"),
        (["==", "a", float("nan")], None, "out of range"),
        (["==", "a", {1}], None, "set"),
    ],
)
def test_the_refusal_says_what_and_where(expression: Any, field: str | None, says: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        parse(expression)
    assert caught.value.field == field
    assert says in caught.value.message
    assert caught.value.code == "invalid_query"


def test_an_endless_operator_is_shown_in_part() -> None:
    with pytest.raises(InvalidQuery) as caught:
        parse(["x" * 5000, "a", 1])
    assert len(caught.value.message) < 200


def test_depth_and_nodes_are_bounded_as_told() -> None:
    parse(["not", ["exists", "a"]], max_nodes=2, max_depth=2)
    with pytest.raises(InvalidQuery, match="nested deeper than 1"):
        parse(["not", ["exists", "a"]], max_depth=1)
    with pytest.raises(InvalidQuery, match="more than 1 expressions"):
        parse(["not", ["exists", "a"]], max_nodes=1)


def test_the_default_limits_are_those_of_the_settings() -> None:
    limits = Limits()
    assert limits.max_filter_nodes == filters.MAX_NODES
    assert limits.max_filter_depth == filters.MAX_DEPTH


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (["==", "color", "blue"], 'color == "blue"'),
        (["in", "state", ["a", None]], 'state in ["a",null]'),
        (["between", "age", 18, 30], "age between 18 and 30"),
        (["prefix", "owner.name", "A"], 'owner.name starts with "A"'),
        (["contains", "tags", 1], "tags contains 1"),
        (["exists", "{}"], "{} exists"),
        (["not", ["or", ["<", "a", 1], [">", "a", 2]]], "not (a < 1 or a > 2)"),
        (
            ["and", ["or", ["==", "a", 1], ["==", "b", 1]], ["or", ["!=", "c", 1]]],
            "(a == 1 or b == 1) and c != 1",
        ),
        (["==", "a", "x" * 50], f'a == "{"x" * 36}...'),
    ],
)
def test_a_filter_explains_itself(expression: list[Any], text: str) -> None:
    assert parse(expression).explain() == text


@pytest.mark.parametrize(
    ("expression", "anchor"),
    [
        (["==", "a.b", 1.0], Anchor("a.b", frozenset({b"1"}))),
        (["in", "a", ["x", True]], Anchor("a", frozenset({b'"x"', b"true"}))),
        (["and", ["in", "a", [1, 2]], ["==", "b", 1]], Anchor("b", frozenset({b"1"}))),
        (["and", ["<", "a", 1], ["and", ["==", "b", 1]]], Anchor("b", frozenset({b"1"}))),
        (["or", ["==", "a", 1], ["==", "a", 2]], Anchor("a", frozenset({b"1", b"2"}))),
        (["or", ["==", "a", 1], ["==", "b", 1]], None),
        (["or", ["==", "a", 1], ["<", "a", 1]], None),
        (["not", ["==", "a", 1]], None),
        (["!=", "a", 1], None),
    ],
)
def test_the_anchor_is_what_a_match_cannot_do_without(
    expression: list[Any], anchor: Anchor | None
) -> None:
    assert parse(expression).anchor == anchor


def test_filters_are_equal_when_their_json_is() -> None:
    assert parse(["==", "a", 1]) == parse(["==", "a", 1.0])
    assert parse(["==", "a", 1]) != parse(["==", "a", True])
    assert len({parse(["==", "a", 1]), parse(["==", "a", 1.0])}) == 1


def test_a_filter_keeps_its_meaning_when_the_expression_is_changed_later() -> None:
    expression: list[Any] = ["in", "a", [1]]
    compiled = parse(expression)
    expression[2].append(2)
    assert not compiled.matches({"a": 2})


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b"])
def test_a_path_with_an_empty_segment_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="segment"):
        reader(path)


def test_a_reader_tells_null_from_missing() -> None:
    assert reader("a.b")({"a": {"b": None}}) is None
    assert reader("a.b")({"a": None}) is MISSING
    assert reader("a")([]) is MISSING


def test_the_vectors_are_strict_json() -> None:
    path = Path(__file__).parent / "vectors" / "filters.json"
    assert strict_json.decode(path.read_bytes()) == VECTORS
