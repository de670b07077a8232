from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given

from syncserver.dealers.index import is_linear
from syncserver.filters import parse
from syncserver.matching.terms import (
    ABSENT,
    HERE,
    NO_NUMBER,
    NO_STRING,
    TEXT_CHARACTERS,
    Way,
    keys_at,
)
from syncserver.matching.ways import ways_of
from tests.support.expressions import EXPRESSIONS

pytestmark = pytest.mark.core

TOP = "\U0010ffff" * TEXT_CHARACTERS


def ways(expression: Any) -> list[Way]:
    """Return the ways of an expression; keys are in order."""
    found = ways_of(parse(expression))
    return [
        tuple((name, tuple(sorted(x)) if name[0] in "=[+-" else x) for name, x in way)
        for way in found
    ]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (["==", "a.b", 1.0], [(("=a.b", (b"1",)),)]),
        (["==", "a", [1.0, True]], [(("=a", (b"[1,true]",)),)]),
        (["!=", "a", 1], [(("+a", (HERE,)),)]),
        (["exists", "a"], [(("+a", (HERE,)),)]),
        (["in", "a", [1, "x", 1.0]], [(("=a", (b'"x"', b"1")),)]),
        (["in", "a", []], []),
        (["<", "a", 5], [(("#a", (-inf, 5)),)]),
        ([">=", "a", "m"], [(("$a", ("m", TOP)),)]),
        (["between", "a", 1, 2], [(("#a", (1, 2)),)]),
        (["between", "a", 2, 1], []),
        (["prefix", "a", "xy"], [(("$a", ("xy", "xz")),)]),
        (["prefix", "a", ""], [(("$a", ("", TOP)),)]),
        (["prefix", "a", "x\U0010ffff"], [(("$a", ("x\U0010ffff", "y")),)]),
        (["contains", "a", 1], [(("[a", (b"1",)),)]),
        (["contains", "a", "xy"], [(("[a", (b'"xy"',)),), (("2a", "xy"),)]),
        (
            ["contains", "a", "abcdefgh"],
            [(("[a", (b'"abcdefgh"',)),), (("6a", "abcdefgh"),)],
        ),
        (["contains", "a", ""], [(("+a", (HERE,)),)]),
    ],
)
def test_a_comparison_has_the_ways_of_what_it_compares(expression: Any, expected: Any) -> None:
    assert ways(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (["==", "a", 1], [()]),
        (["!=", "a", 1], [(("-a", (ABSENT,)),), (("=a", (b"1",)),)]),
        (["exists", "a"], [(("-a", (ABSENT,)),)]),
        (["<", "a", 5], [(("#a", (5, inf)),), (("-a", (NO_NUMBER,)),)]),
        ([">", "a", "m"], [(("$a", ("", "m")),), (("-a", (NO_STRING,)),)]),
        (
            ["between", "a", 1, 2],
            [(("#a", (-inf, 1)),), (("#a", (2, inf)),), (("-a", (NO_NUMBER,)),)],
        ),
        (["contains", "a", 1], [()]),
        (["not", ["==", "a", 1]], [(("=a", (b"1",)),)]),
        (
            ["or", ["!=", "a", 1], ["<", "a", 5]],
            [(("-a", (NO_NUMBER,)),), (("=a", (b"1",)), ("#a", (5, inf))), (("=a", (b"1",)),)],
        ),
        (["and", ["exists", "a"], ["==", "b", 1]], [()]),
    ],
)
def test_a_negation_has_the_ways_to_fail(expression: Any, expected: Any) -> None:
    assert ways(["not", expression]) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (["or", ["==", "a", 1], ["==", "a", 2]], [(("=a", (b"1", b"2")),)]),
        (["or", ["==", "a", 1], ["==", "b", 1]], [(("=a", (b"1",)),), (("=b", (b"1",)),)]),
        (["or", ["==", "a", 1], ["not", ["==", "b", 1]]], [()]),
        (["and", ["<", "a", 9], ["==", "b", 1]], [(("=b", (b"1",)), ("#a", (-inf, 9)))]),
        (["and", ["<", "a", 9], [">", "a", 1]], [(("#a", (1, 9)),)]),
        (["and", ["<", "a", 1], [">", "a", 9]], []),
        (["and", ["==", "a", 1], ["==", "a", True]], []),
        (["and", ["in", "a", [1, 2]], ["in", "a", [2, 3]]], [(("=a", (b"2",)),)]),
        (["and", ["exists", "a"], ["==", "b", 1]], [(("=b", (b"1",)),)]),
        (["and", ["not", ["<", "a", 1]], ["<", "a", 9]], [(("#a", (1, 9)),)]),
        (["and", ["not", ["exists", "a"]], ["==", "a", 1]], []),
    ],
)
def test_terms_are_met_and_ways_joined(expression: Any, expected: Any) -> None:
    assert ways(expression) == expected


def test_an_and_has_no_more_ways_than_the_cap_but_all_of_an_in() -> None:
    pairs = [["or", ["==", name, 1], ["<", name, 0]] for name in "abcdefgh"]
    assert len(ways(["and", *pairs])) == 16
    assert len(ways(["or", *pairs])) == 16
    (way,) = ways(["and", ["in", "a", list(range(100))], ["in", "b", list(range(100))]])
    assert [len(keys) for _, keys in way] == [100, 100]


@given(EXPRESSIONS)
def test_the_number_of_ways_is_bounded_by_the_size_of_the_filter(expression: Any) -> None:
    assert len(ways(expression)) <= 16 * 8


@pytest.mark.parametrize(
    ("expression", "linear"),
    [
        (["==", "a", 1], False),
        (["in", "a", []], False),
        (["and", ["!=", "a", 1], ["<", "b", 1]], False),
        (["not", ["between", "a", 1, 2]], False),
        (["!=", "a", 1], False),
        (["not", ["==", "a", 1]], False),
        (["not", ["in", "a", [1, 2]]], True),
        (["not", ["prefix", "a", "x"]], True),
        (["and", ["!=", "a", 1], ["!=", "b", 1]], True),
        (["or", ["==", "a", 1], ["!=", "b", 1]], True),
        (["not", ["and", ["==", "a", 1], ["==", "b", 1]]], True),
        (["not", ["or", ["!=", "a", 1], ["==", "b", 1]]], True),
    ],
)
def test_linear_is_what_is_looked_at_for_rows_it_has_nothing_to_do_with(
    expression: Any, *, linear: bool
) -> None:
    filter_ = parse(expression)
    assert is_linear(filter_, ways_of(filter_)) is linear


@pytest.mark.parametrize(
    ("letter", "value", "keys"),
    [
        ("=", 1.0, [b"1"]),
        ("=", True, [b"true"]),
        ("#", 1.5, [1.5]),
        ("#", True, []),
        ("#", "1", []),
        ("$", "x" * 300, ["x" * 256]),
        ("$", 1, []),
        ("[", [1, 1.0, True], [b"1", b"true"]),
        ("[", "text", []),
        ("2", "abca", ["ab", "bc", "ca"]),
        ("2", "a", []),
        ("2", ["ab"], []),
        ("+", None, [HERE]),
        ("-", 1, [NO_STRING]),
        ("-", "1", [NO_NUMBER]),
        ("-", None, [NO_NUMBER, NO_STRING]),
        ("-", False, [NO_NUMBER, NO_STRING]),
    ],
)
def test_a_value_is_looked_for_where_terms_that_it_has_would_stand(
    letter: str, value: Any, keys: list[Any]
) -> None:
    assert sorted(keys_at(letter, value)) == keys
