from __future__ import annotations

import contextlib
import gc
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver import filters, strict_json
from syncserver.config import Limits
from syncserver.errors import InvalidQuery
from syncserver.filters import MISSING, parse, reader
from tests.support.expressions import EXPRESSIONS, ROWS, VALUES, evaluate

pytestmark = pytest.mark.core

VECTORS = json.loads((Path(__file__).parent / "vectors" / "filters.json").read_text("utf-8"))


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


@given(EXPRESSIONS, ROWS)
def test_an_evaluator_that_only_reads_agrees(expression: list[Any], row: dict[str, Any]) -> None:
    assert parse(expression).matches(row) is evaluate(expression, row)


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


def test_filters_are_equal_when_their_json_is() -> None:
    assert parse(["==", "a", 1]) == parse(["==", "a", 1.0])
    assert parse(["==", "a", 1]) != parse(["==", "a", True])
    assert len({parse(["==", "a", 1]), parse(["==", "a", 1.0])}) == 1


def test_the_order_of_operands_and_one_that_stands_twice_make_no_other_filter() -> None:
    one, other = ["==", "a", 1], ["<", "b", 2]
    assert parse(["and", one, other]) == parse(["and", other, one, other])
    assert parse(["and", one, other]) != parse(["or", one, other])
    assert parse(["or", one, ["and", other]]) != parse(["or", one, other, ["and", other]])


def test_filters_of_one_shape_share_their_test_while_there_is_one() -> None:
    one, other = (
        parse(["and", ["==", "a", 1], ["<", "b", 2]]),
        parse(["and", ["==", "a", 3.5], ["<", "b", 4]]),
    )
    assert one.shape is other.shape
    assert one.shape is not parse(["and", ["==", "a", "x"], ["<", "b", 2]]).shape
    tree = one.shape.tree
    del one, other
    gc.collect()
    assert tree not in filters._shapes


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
