from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver import canonical, strict_json

pytestmark = pytest.mark.core

SAME = [
    ("1", "1.0"),
    ("0", "-0.0"),
    ("-0", "0.0"),
    ("100", "1e2"),
    ("9007199254740991", "9007199254740991.0"),
    ("1e16", "10000000000000000.0"),
    ("[1e16,1]", "[1e16,1.0]"),
    ('{"a":1,"b":2}', '{"b":2,"a":1}'),
    ('{"a":{"x":1,"y":[1]}}', '{"a":{"y":[1.0],"x":1}}'),
    ("[1.0,[2.0]]", "[1,[2]]"),
    ('"\\u00e9"', '"é"'),
]

DISTINCT = [
    "null", "true", "false", "0", "1", "-1", "1.5", "1e16", "1e300",
    '""', '"1"', '"1.0"', '"true"', '"null"', '"[1]"', '"É"', '"é"', '"e\\u0301"',
    "[]", "[1]", "[true]", '["1"]', "[[1]]", "[1,2]", "[2,1]", "[null]", '["1.0"]',
    "{}", '{"a":1}', '{"a":true}', '{"a":null}', '{"a":"1"}', '{"b":1}', '{"1.0":1}', '{"1":1}',
]  # fmt: skip


def key_of(text: str) -> bytes:
    return canonical.key(strict_json.decode(text))


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_json_has_the_same_key(one: str, other: str) -> None:
    assert key_of(one) == key_of(other)


def test_different_json_has_different_keys() -> None:
    for one, other in itertools.combinations(DISTINCT, 2):
        assert key_of(one) != key_of(other), (one, other)


def test_a_tuple_has_the_key_of_the_list() -> None:
    assert canonical.key((1, (True,))) == canonical.key([1.0, [True]])


def test_a_key_is_json_with_sorted_names() -> None:
    assert canonical.key({"b": [1.0, 0.5], "a": "1.0"}) == b'{"a":"1.0","b":[1,0.5]}'


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([-0.0, 0.0, 1.0, 2.0, 0.5])
    | st.text(alphabet="ab.01", max_size=2)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=5,
)


def same(one: Any, other: Any) -> bool:
    """Compare as JSON does, written without canonical bytes."""
    match one, other:
        case (dict(), dict()):
            return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
        case (list(), list()):
            return len(one) == len(other) and all(map(same, one, other))
        case (bool(), _) | (_, bool()):
            return one is other
        case _:
            return bool(one == other)


@given(VALUES, VALUES)
def test_keys_are_equal_exactly_when_the_values_are(one: Any, other: Any) -> None:
    assert (canonical.key(one) == canonical.key(other)) == same(one, other)


@given(VALUES)
def test_the_key_of_a_key_is_the_key(value: Any) -> None:
    key = canonical.key(value)
    assert canonical.key(json.loads(key)) == key
