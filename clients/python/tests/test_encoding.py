"""What rows hold, as JSON; and which value it was that has no JSON form."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
import uuid
from typing import Any

import pytest
from syncserver_client import EncodingError, json_default
from syncserver_client.encoding import encode

CEST = datetime.timezone(datetime.timedelta(hours=2))


class Colour(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


class Kind(enum.StrEnum):
    OLD = "old"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (
            datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=CEST),
            "2026-01-02T03:04:05.000678+02:00",
        ),
        (datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC), "2026-01-02T03:04:00+00:00"),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),  # noqa: DTZ001
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.time(3, 4, 5), "03:04:05"),
        (decimal.Decimal("10.10"), "10.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (Size.LARGE, 3),
        (Kind.OLD, "old"),
        ((1, [2.5, None, True]), [1, [2.5, None, True]]),
        ({"é": "😀"}, {"é": "😀"}),
    ],
)
def test_what_a_row_holds_has_a_json_form(value: Any, plain: Any) -> None:
    assert json.loads(encode({"row": value}, json_default)) == {"row": plain}


def test_text_is_utf_8() -> None:
    assert encode("é", json_default) == '"é"'.encode()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"a": [1, {"b": math.nan}]}, "a[1].b: nan is no JSON number"),
        ({"a": -math.inf}, "a: -inf is no JSON number"),
        (math.inf, "the value: inf is no JSON number"),
        ({"a": decimal.Decimal("NaN")}, "a: NaN is no number"),
        ({"a": {1, 2}}, "a: set has no JSON form; give a json_encoder that knows it"),
        ({"a": {uuid.UUID(int=1): 1}}, "a: key UUID('00000000-0000-0000-0000-000000000001')"),
        ({"a": {math.nan: 1}}, "a: key nan is no JSON number"),
        ({"a": "x\ud800"}, "a: half a surrogate pair at character 1"),
        ({"a": {"\ud800": 1}}, "a key in a: half a surrogate pair at character 0"),
    ],
)
def test_what_has_none_is_named(value: Any, complaint: str) -> None:
    with pytest.raises(EncodingError) as caught:
        encode(value, json_default)
    assert str(caught.value).startswith(complaint)


def test_what_contains_itself_is_named() -> None:
    ring: dict[str, Any] = {}
    ring["me"] = ring
    with pytest.raises(EncodingError, match=r"me\.me\..* containing itself"):
        encode(ring, json_default)


def test_what_is_nested_beyond_the_stack_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(EncodingError, match="nested deeper than 64"):
        encode(deep, json_default)


def test_a_bad_value_from_ones_own_encoder_is_named() -> None:
    with pytest.raises(EncodingError, match="a: nan is no JSON number"):
        encode({"a": object()}, lambda value: math.nan)


def test_a_failure_of_ones_own_encoder_is_not_hidden() -> None:
    def encoder(value: Any) -> Any:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        encode({"a": object()}, encoder)
