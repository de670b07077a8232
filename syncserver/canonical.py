"""Canonical JSON bytes: equal for equal JSON values, and hashable (docs/reference/wire).

Python holds ``1 == True``; in JSON they are two values, and 1 and 1.0 are one.
"""

from __future__ import annotations

from typing import Any

import msgspec

_encode = msgspec.json.Encoder(order="sorted").encode


def key(value: Any) -> bytes:
    """Return the canonical bytes of a strictly decoded value."""
    text = _encode(value)
    # msgspec writes the whole floats that strict JSON has as integers too with ".0".
    if b".0" in text and not isinstance(value, str):
        return _encode(_with_integers(value))
    return text


def _with_integers(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case list() | tuple():
            return [_with_integers(item) for item in value]
        case dict():
            return {name: _with_integers(item) for name, item in value.items()}
        case _:
            return value
