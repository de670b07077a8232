from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver import strict_json
from syncserver.errors import InvalidJSON
from syncserver.strict_json import MAX_DEPTH, MAX_ELEMENTS, MAX_INTEGER

pytestmark = pytest.mark.core

TEXTS = st.text() | st.text(alphabet='"\\:,[]{}0u')
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

TRICKY_STRINGS = [
    "",
    '"',
    "\\",
    '\\"',
    '\\\\"',
    '{"a":1,"a":2}',
    "[" * 99,
    "," * 99,
    "1234567890123456789",
    "a:b",
    "\x00\x1f\x7f",
    "\u2028",
    "\U0001f600",
    "\ufeff",
]


def code_of(data: bytes | str) -> str:
    with pytest.raises(InvalidJSON) as caught:
        strict_json.decode(data)
    return caught.value.code


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"  ",
        b"nul",
        b"{",
        b"]",
        b"[1,]",
        b'{"a":1,}',
        b"{1:2}",
        b'{"a"}',
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"-",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1 2",
        b"{} {}",
        b"/**/1",
        b"'a'",
        b'"a',
        b'"\\x"',
        b'"a\nb"',
        b"\x00",
        b'\\"[[[',
        b"\xef\xbb\xbf1",
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\\ude00\\ud83d"',
        b'{"\\udfff":1}',
        "\ufeff1",
        '"\ud800"',
    ],
)
def test_what_is_no_json_is_refused(data: bytes | str) -> None:
    assert code_of(data) == "invalid_json"


@pytest.mark.parametrize(
    "number",
    ["9007199254740992", "-9007199254740992", "9" * 25, "9" * 999, "9" * 5000, "1e400", "-1e999"],
)
@pytest.mark.parametrize("around", ["%s", "[1,[%s]]", '{"a":{"b":%s}}'])
def test_a_number_that_clients_do_not_keep_is_refused(number: str, around: str) -> None:
    assert code_of(around % number) == "bad_number"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9007199254740991", MAX_INTEGER),
        ("-9007199254740991", -MAX_INTEGER),
        ("0.12345678901234567890", 0.12345678901234568),
        ("1e300", 1e300),
        ("1E5", 100000.0),
        ("-0.0", -0.0),
        ("1e-400", 0.0),
    ],
)
def test_a_number_that_clients_keep_is_read(text: str, value: float) -> None:
    assert repr(strict_json.decode(text)) == repr(value)


@pytest.mark.parametrize(
    "data",
    [
        '{"a":1,"a":1}',
        '{"a":1,"\\u0061":2}',
        '[{"x":[{"b":{},"b":{}}]}]',
        '{"a:b":":","a:b":"::"}',
        '{"\\"":1,"\\"":2}',
        '{"":1,"":2}',
    ],
)
def test_the_same_key_twice_is_refused(data: str) -> None:
    assert code_of(data) == "duplicate_key"


def test_the_same_key_in_two_objects_is_no_duplicate() -> None:
    assert strict_json.decode('[{"a":{"a":1}},{"a":":"}]') == [{"a": {"a": 1}}, {"a": ":"}]


@pytest.mark.parametrize(("opener", "closer"), [("[", "]"), ('{"k":', "}")])
def test_nesting_is_allowed_to_the_limit_and_not_beyond(opener: str, closer: str) -> None:
    def nested(depth: int) -> str:
        return opener * depth + "1" + closer * depth

    strict_json.decode(nested(MAX_DEPTH))
    assert code_of(nested(MAX_DEPTH + 1)) == "too_deep"


def test_a_pit_without_bottom_is_refused_before_it_is_parsed() -> None:
    assert code_of("[" * 90_000) == "too_deep"


def test_many_shallow_containers_are_not_deep() -> None:
    assert len(strict_json.decode("[" + "[[]]," * 500 + "{}]")) == 501


@pytest.mark.parametrize("element", ["1,", "[],", "{},"])
def test_too_many_elements_are_refused_before_they_are_parsed(element: str) -> None:
    assert code_of("[" + element * MAX_ELEMENTS + "no JSON") == "too_many_elements"


def test_as_many_elements_as_are_allowed_are_read() -> None:
    text = "[" + "1," * (MAX_ELEMENTS - 1) + "1]"
    assert len(strict_json.decode(text)) == MAX_ELEMENTS


@pytest.mark.parametrize("text", TRICKY_STRINGS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_stands_inside_strings_counts_for_nothing(text: str, ascii_only: bool) -> None:
    value = {text: [text, {"k": text}], "other": text}
    data = json.dumps(value, ensure_ascii=ascii_only)
    assert strict_json.decode(data) == strict_json.decode(data.encode()) == value


def test_a_text_of_nothing_but_quotes_or_backslashes_is_refused_in_time() -> None:
    for filler in ('"', "\\", '\\"', '"\\"', '"a'):
        assert code_of('["' + filler * 200_000 + "x") == "invalid_json"


@given(st.text(alphabet='secr3t"\\[]{},:0\u20ac\ud800', min_size=8))
def test_the_error_never_quotes_the_input(noise: str) -> None:
    with pytest.raises(InvalidJSON) as caught:
        strict_json.decode("secr3t" + noise)
    assert "secr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(VALUES)
def test_what_is_written_is_read_as_the_same(value: Any) -> None:
    data = strict_json.encode(value)
    assert strict_json.decode(json.dumps(value, indent=1)) == value
    assert repr(strict_json.decode(data)) == repr(value)
    assert strict_json.encode_trusted(value) == data
    assert repr(strict_json.decode_trusted(data)) == repr(value)


@given(st.binary() | st.text(alphabet='[]{}",:\\u0d8ntrue1-.eE ', max_size=40))
def test_noise_gives_what_the_standard_library_reads_or_a_refusal(noise: bytes | str) -> None:
    try:
        value = strict_json.decode(noise)
    except InvalidJSON:
        return
    assert repr(value) == repr(json.loads(noise))


def cycle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def bush(depth: int) -> list[Any]:
    return [bush(depth - 1)] * 2 if depth else []


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        [{"a": float("-inf")}],
        {1: 2},
        {None: 1},
        {"a": {True: 1}},
        "\ud800",
        {"\udfff": 1},
        MAX_INTEGER + 1,
        [-MAX_INTEGER - 1],
        {1, 2},
        b"bytes",
        datetime.now(UTC),
        object(),
        Text("x"),
        cycle(),
        bush(40),
        [0] * (MAX_ELEMENTS + 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_be_read_again_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^no JSON: "):
        strict_json.encode(value)


def test_the_writer_nests_as_deep_as_the_reader() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = {"k": value}
    assert strict_json.decode(strict_json.encode(value)) == value
    with pytest.raises(ValueError, match="nested deeper"):
        strict_json.encode([value])


@pytest.mark.parametrize(("element", "counts"), [("", 1), ([], 2), ({}, 2), ([1], 2), ([1, 2], 3)])
def test_the_writer_counts_elements_as_the_reader_does(
    element: Any, counts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_json, "MAX_ELEMENTS", 600)
    fitting = [element] * (600 // counts)
    assert strict_json.decode(strict_json.encode(fitting)) == fitting
    with pytest.raises(ValueError, match="elements"):
        strict_json.encode([*fitting, element])
    data = strict_json.encode_trusted([*fitting, element])
    assert code_of(data) == "too_many_elements"


@pytest.mark.parametrize("innermost", [[], {}, (), [1]])
def test_an_empty_container_is_as_deep_as_a_full_one(innermost: Any) -> None:
    value = innermost
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    strict_json.decode(strict_json.encode(value))
    with pytest.raises(ValueError, match="nested deeper"):
        strict_json.encode([value])


def test_tuples_and_string_enums_are_written_as_what_they_stand_for() -> None:
    class Color(StrEnum):
        RED = "red"

    assert strict_json.encode({Color.RED: (1, Color.RED)}) == b'{"red":[1,"red"]}'


def test_a_frame_may_have_a_few_elements_more_than_what_it_is_around() -> None:
    most = [0] * strict_json.MAX_ELEMENTS
    assert strict_json.decode(strict_json.encode(most)) == most
    with pytest.raises(ValueError, match="more than"):
        strict_json.encode({"callId": most})
    assert strict_json.encode({"callId": most}, is_frame=True).endswith(b",0]}")
    with pytest.raises(ValueError, match="more than"):
        strict_json.encode([most, [0] * 100], is_frame=True)


def test_a_frame_may_be_a_little_deeper_than_what_it_is_around() -> None:
    deepest: Any = []
    for _ in range(strict_json.MAX_DEPTH - 1):
        deepest = [deepest]
    assert strict_json.decode(strict_json.encode(deepest)) == deepest
    with pytest.raises(ValueError, match="nested deeper than 64"):
        strict_json.encode([deepest])
    assert strict_json.encode([[deepest]], is_frame=True)
    with pytest.raises(ValueError, match="nested deeper than 66"):
        strict_json.encode([[[deepest]]], is_frame=True)


def test_the_members_of_an_object_are_had_though_one_of_them_is_refused() -> None:
    text = '{"a": 9007199254740993, "b": [1, {"c": 2}], "b": "last", "é": null}'
    members = strict_json.split_object(text)
    assert members == {"a": b"9007199254740993", "b": b'"last"', "é": b"null"}
    assert strict_json.decode(members["b"]) == "last"
    assert strict_json.split_object(text.encode()) == members


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "null", '{"a": }', '{"a": 1', b'{"a": "\xff"}x', '"\ud800"', b"\xff"]
)
def test_what_is_no_object_has_no_members(text: str | bytes) -> None:
    with pytest.raises(InvalidJSON, match="no object"):
        strict_json.split_object(text)
