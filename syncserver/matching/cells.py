"""Cells: the line of all numbers (or strings) cut in halves, these in halves, and so on.

An interval belongs to the smallest cell that holds all of it, so it has one key; a point
lies in one cell of each size, so it has few. An interval that holds a point has a key that
the point has too. Thereby filters with ranges on several fields can be found by all of them.
"""

from __future__ import annotations

import math
import secrets
import struct
from typing import Any

LEVELS_PER_STEP = 4

_NUMBER_BITS = 64
_TEXT_BYTES = 16
_LEVEL_BITS = 8
_SALT = secrets.randbits(_TEXT_BYTES * 8)  # nobody can choose cells whose hashes collide


def cell_of(low: Any, high: Any) -> int:
    """Return the key of the smallest cell that holds an interval."""
    start = _place(low)
    level = (start ^ _place(high)).bit_length()
    return _key(start, level + -level % LEVELS_PER_STEP)


def cells_around(point: Any) -> frozenset[int]:
    """Return the keys of all cells that a point lies in."""
    place, bits = _place(point), _TEXT_BYTES * 8 if isinstance(point, str) else _NUMBER_BITS
    return frozenset([_key(place, level) for level in range(0, bits + 1, LEVELS_PER_STEP)])


def _key(place: int, level: int) -> int:
    return (place >> level) << _LEVEL_BITS | level


def _place(value: Any) -> int:
    """Return an integer that is no smaller for a larger value, but for the salt."""
    if isinstance(value, str):
        start = value[:_TEXT_BYTES].encode(errors="surrogatepass")[:_TEXT_BYTES]
        return int.from_bytes(start.ljust(_TEXT_BYTES, b"\0")) ^ _SALT
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    bits = int.from_bytes(struct.pack(">d", number + 0.0))  # -0.0 is 0.0
    sign = bits >> (_NUMBER_BITS - 1)
    ordered = bits ^ ((1 << _NUMBER_BITS) - 1 if sign else 1 << (_NUMBER_BITS - 1))
    return ordered ^ _SALT % (1 << _NUMBER_BITS)
