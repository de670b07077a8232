"""What is right, said a second time and plainly: slow readers for the real ones to agree with."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

_CODES = Path(__file__).parents[2] / "docs" / "reference" / "codes.rst"
_errors, _, _closes = _CODES.read_text("utf-8").partition("\nClose codes\n")
ERROR_CODES = set(re.findall(r"^``([a-z_]+)``", _errors, re.MULTILINE))
CLOSE_CODES = set(map(int, re.findall(r"^``(\d+)``", _closes, re.MULTILINE)))

REFUSED = "refused"
_MOST_DEPTH, _MOST_ELEMENTS, _LARGEST = 64, 100_000, 2**53 - 1


def strict(data: bytes) -> Any:
    """Return the value of strict JSON in a tuple, or REFUSED: by Python's own parser."""
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unlike,
            parse_constant=_refuse,
            parse_int=_whole,
            parse_float=_finite,
        )
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate has no bytes
    except (ValueError, RecursionError):
        return REFUSED
    depth, elements = measured(value)
    return (value,) if depth <= _MOST_DEPTH and elements <= _MOST_ELEMENTS else REFUSED


def measured(value: Any) -> tuple[int, int]:
    """Return how deep a value is, and how many brackets and commas it is written with."""
    if not isinstance(value, dict | list):
        return 0, 0
    inner = [measured(one) for one in (value.values() if isinstance(value, dict) else value)]
    deepest = max((depth for depth, _ in inner), default=0)
    return 1 + deepest, 1 + max(0, len(value) - 1) + sum(count for _, count in inner)


def _unlike(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("the same key twice")
    return dict(pairs)


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _whole(text: str) -> int:
    if abs(int(text)) > _LARGEST:
        raise ValueError(text)
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


# Filters.

_MOST_LEVELS, _MOST_NODES = 8, 64


def is_filter(expression: Any) -> bool:
    """Tell whether the reference has such a filter."""
    levels, nodes = _levels(expression)
    return _is_filter(expression) and levels <= _MOST_LEVELS and nodes <= _MOST_NODES


def _levels(expression: Any) -> tuple[int, int]:
    match expression:
        case ["and" | "or" | "not", *inner]:
            found = [_levels(one) for one in inner]
            return 1 + max((one for one, _ in found), default=0), 1 + sum(n for _, n in found)
    return 1, 1


def _is_filter(expression: Any) -> bool:
    match expression:
        case ["not", inner]:
            return _is_filter(inner)
        case ["and" | "or", first, *others]:
            return all(map(_is_filter, [first, *others]))
        case [str() as name, str() as path, *values] if all(path.split(".")):
            return _takes(name, values)
    return False


def _takes(name: str, values: list[Any]) -> bool:
    match name, values:
        case (("==" | "!=" | "contains"), [_]):
            return True
        case ("exists", []) | ("in", [list()]) | ("prefix", [str()]):
            return True
        case (("<" | "<=" | ">" | ">="), [limit]):
            return _is_number(limit) or isinstance(limit, str)
        case "between", [low, high]:
            both = (low, high)
            return all(map(_is_number, both)) or all(isinstance(one, str) for one in both)
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Frames.

_CLOSE, _PIECES = 8, 1_024
_ENDS = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80")


class _Broken(Exception):
    """A rule is; the argument is the code that says so."""


def frames(data: bytes, most: int) -> list[Any]:
    """Return what a client's bytes mean, read all at once, up to the code of a broken rule.

    A text, the bytes of a binary message, or (opcode, payload); a number ends it.
    """
    found: list[Any] = []
    try:
        _read(data, most, found)
    except _Broken as broken:
        found.append(broken.args[0])
    return found


def _read(data: bytes, most: int, found: list[Any]) -> None:
    whole, begun = b"", 0
    is_text, at = False, 0
    while len(data) >= at + 2:
        opcode, final = data[at] & 15, data[at] >> 7
        _check_head(data[at], data[at + 1], is_within=begun > 0)
        size, body = _size(data, at)
        if opcode < _CLOSE and size + len(whole) > most:
            raise _Broken(1009)
        at = body + 4 + size
        if len(data) < at:
            return
        mask = data[body : body + 4]
        payload = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data[body + 4 : at]))
        if opcode >= _CLOSE:
            found.append((opcode, payload))
            if opcode == _CLOSE and (fault := close_fault(payload)):
                raise _Broken(fault)
            continue
        is_text = is_text if begun else opcode == 1
        whole, begun = whole + payload, begun + 1
        if begun > _PIECES:
            raise _Broken(1009)
        if is_text and not any(_is_text(whole + end) for end in _ENDS[: 1 if final else None]):
            raise _Broken(1007)
        if final:
            found.append(whole.decode() if is_text else whole)
            whole, begun = b"", 0


def _check_head(first: int, second: int, *, is_within: bool) -> None:
    opcode, final, size = first & 15, first >> 7, second & 127
    if opcode not in (0, 1, 2, 8, 9, 10) or first & 0x70 or not second & 0x80:
        raise _Broken(1002)
    if opcode >= _CLOSE and (not final or size > 125):
        raise _Broken(1002)
    if opcode < _CLOSE and (opcode == 0) != is_within:
        raise _Broken(1002)


def _size(data: bytes, at: int) -> tuple[int, int]:
    """Return the length of a payload and where its mask begins, perhaps beyond the data."""
    size = data[at + 1] & 127
    width = {126: 2, 127: 8}.get(size, 0)
    body = at + 2 + width
    if width and len(data) >= body:
        size = int.from_bytes(data[at + 2 : body], "big")
        if size < {2: 126, 8: 65_536}[width]:
            raise _Broken(1002)
    return (size if len(data) >= body else 0), body


def close_fault(payload: bytes) -> int | None:
    """Return the code that a close frame is answered with if it breaks a rule."""
    code = int.from_bytes(payload[:2], "big")
    named = 1000 <= code <= 1014 and code not in (1004, 1005, 1006)
    if payload and (len(payload) == 1 or not (named or 3000 <= code <= 4999)):
        return 1002
    return None if _is_text(payload[2:]) else 1007


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Return the frames of a server, the last of which may not be whole and is left out."""
    found, at = [], 0
    while len(data) >= at + 2:
        first, size = data[at], data[at + 1]
        assert first in (0x81, 0x82, 0x88, 0x89, 0x8A), f"a server began a frame with {first:#x}"
        assert size < 128, "a server masks"
        width = {126: 2, 127: 8}.get(size, 0)
        body = at + 2 + width
        size = int.from_bytes(data[at + 2 : body], "big") if width else size
        at = body + size
        if len(data) < at:
            break
        found.append((first & 15, data[body:at]))
    closes = [number for number, (opcode, _) in enumerate(found) if opcode == _CLOSE]
    assert closes in ([], [len(found) - 1]), "a server went on after its close"
    return found
