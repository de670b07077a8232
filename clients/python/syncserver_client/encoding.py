"""The body of a call: JSON, and an answer to "which value was it?" when it is none."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from syncserver_client.errors import EncodingError

Default = Callable[[Any], Any]
MAX_DEPTH = 64


def json_default(value: object) -> Any:
    """Return the JSON form of what a database row holds and JSON has not.

    Dates and times are ISO 8601 text, with their offset where they have one; a
    naive datetime stays naive. A Decimal is text, so that it keeps its digits
    (filters compare text with text: encode prices as numbers if a filter
    shall order them). A UUID is text, an Enum its value.
    """
    match value:
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal() if not value.is_finite():
            raise ValueError(f"{value} is no number")
        case decimal.Decimal() | uuid.UUID():
            return str(value)
        case enum.Enum():
            return value.value
    raise TypeError(f"{type(value).__name__} has no JSON form; give a json_encoder that knows it")


def encode(value: Any, default: Default) -> bytes:
    """Return strict JSON; EncodingError names the value that has none.

    What ``default`` raises itself, other than TypeError and ValueError, goes through.
    """
    try:
        text = json.dumps(
            value, default=default, allow_nan=False, ensure_ascii=False, separators=(",", ":")
        )
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        for complaint in _complaints(value, default, "", MAX_DEPTH):
            raise EncodingError(complaint) from error
        raise EncodingError(str(error)) from error


def _complaints(value: Any, default: Default, path: str, depth: int) -> Iterator[str]:
    """Give what is wrong with a value, in the order of its text."""
    place = path.lstrip(".") or "the value"
    match value:
        case None | bool() | int():
            return
        case float():
            if not math.isfinite(value):
                yield f"{place}: {value} is no JSON number"
        case str():
            yield from _text_complaints(value, place)
        case _ if depth == 0:
            yield f"{place}: nested deeper than {MAX_DEPTH}, or containing itself"
        case dict():
            for key, item in value.items():
                yield from _key_complaints(key, place)
                yield from _complaints(item, default, f"{path}.{key}", depth - 1)
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _complaints(item, default, f"{path}[{index}]", depth - 1)
        case _:
            try:
                plain = default(value)
            except (TypeError, ValueError) as error:
                yield f"{place}: {error}"
            else:
                yield from _complaints(plain, default, path, depth - 1)


def _key_complaints(key: object, place: str) -> Iterator[str]:
    if isinstance(key, str):
        yield from _text_complaints(key, f"a key in {place}")
    elif not isinstance(key, int | float | None):
        yield f"{place}: key {key!r} is not text"
    elif isinstance(key, float) and not math.isfinite(key):
        yield f"{place}: key {key} is no JSON number"


def _text_complaints(text: str, place: str) -> Iterator[str]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        yield f"{place}: half a surrogate pair at character {error.start}"
