"""The only JSON door: strict on the way in, and on the way out for what others made.

msgspec parses; what it lets through (duplicate keys, huge integers, any depth) is
found on the *skeleton*, the text without its strings, at the speed of C.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import msgspec

from syncserver.errors import InvalidJSON

MAX_DEPTH = 64
"""How many arrays and objects may stand inside each other."""

MAX_ELEMENTS = 100_000
"""How many commas and opening brackets one text may have, which bounds its values."""

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON client keeps exactly."""

_FRAME_ELEMENTS = 16
_FRAME_DEPTH = 2
_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_SIXTEEN_DIGITS = b"0" * 16  # what a number beyond MAX_INTEGER has at least
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_CONTAINERS = {dict, list}
_WRITABLE = {str, bool, type(None)}  # lone surrogates are left for msgspec to refuse

_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


def decode(data: bytes | str) -> Any:
    """Read strict JSON; InvalidJSON says in its ``code`` what is wrong and never quotes it."""
    raw = _utf8(data) if isinstance(data, str) else data
    skeleton = _skeleton(raw)
    _check_size(skeleton)
    value = _parse(raw)
    if _SIXTEEN_DIGITS in skeleton.translate(_TO_ZEROS):
        _check_integers(value)
    if _count_keys(value) != skeleton.count(b":"):
        raise InvalidJSON("an object has the same key twice", code="duplicate_key")
    return value


def split_array(data: bytes) -> list[bytes]:
    """Return the elements of an array of any length, each to be decoded; InvalidJSON: it is none.

    For one's own files: the bounds of ``decode`` hold for the elements alone.
    """
    try:
        return [bytes(raw) for raw in msgspec.json.decode(data, type=list[msgspec.Raw])]
    except msgspec.DecodeError as error:
        raise InvalidJSON(str(error)) from None


def split_object(data: bytes | str) -> dict[str, bytes]:
    """Return the members of an object, each to be decoded; InvalidJSON: it is none.

    For what ``decode`` refused: a member may be sound although another is not.
    """
    try:
        members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidJSON(f"no object: {type(error).__name__}") from None
    return {name: bytes(raw) for name, raw in members.items()}


def encode(value: Any, *, is_frame: bool = False) -> bytes:
    """Write JSON that ``decode`` accepts; ValueError on a value that has none.

    :param is_frame: whether it is a frame around what may be as large and as deep as can be read,
        and so be a little more.
    """
    if is_frame:
        _check_writable(value, MAX_ELEMENTS + _FRAME_ELEMENTS, MAX_DEPTH + _FRAME_DEPTH)
    else:
        _check_writable(value, MAX_ELEMENTS, MAX_DEPTH)
    try:
        return _encoder.encode(value)
    except (TypeError, UnicodeEncodeError) as error:
        raise ValueError(f"no JSON: {type(error).__name__}") from None


def decode_trusted(data: bytes) -> Any:
    """Read what ``encode`` or ``encode_trusted`` wrote, without the checks."""
    return _decoder.decode(data)


def encode_trusted(value: Any) -> bytes:
    """Write a value made of what came through ``decode``, without the checks."""
    return _encoder.encode(value)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidJSON(f"lone surrogate (character {error.start})") from None


def _skeleton(raw: bytes) -> bytes:
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(raw.split(b'"')[::2])


def _check_size(skeleton: bytes) -> None:
    openers = skeleton.count(b"[") + skeleton.count(b"{")
    if openers + skeleton.count(b",") > MAX_ELEMENTS:
        raise InvalidJSON(f"more than {MAX_ELEMENTS} elements", code="too_many_elements")
    if openers > MAX_DEPTH and _depth(skeleton) > MAX_DEPTH:
        raise InvalidJSON(f"nested deeper than {MAX_DEPTH}", code="too_deep")


def _depth(skeleton: bytes) -> int:
    brackets = skeleton.translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)))


def _parse(raw: bytes) -> Any:
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError:
        raise InvalidJSON("number out of range", code="bad_number") from None
    except msgspec.DecodeError as error:
        raise InvalidJSON(str(error)) from None
    except UnicodeDecodeError:
        raise InvalidJSON("not UTF-8") from None


def _check_integers(value: Any) -> None:
    pending = [value]
    for item in pending:  # grows while it is read
        match item:
            case dict():
                pending.extend(item.values())
            case list():
                pending.extend(item)
            case int() if not -MAX_INTEGER <= item <= MAX_INTEGER:
                raise InvalidJSON("integer beyond 2^53-1", code="bad_number")


def _count_keys(value: Any) -> int:
    count = 0
    pending = [value] if type(value) in _CONTAINERS else []
    while pending:
        item = pending.pop()
        if type(item) is dict:
            count += len(item)
            item = item.values()
        for inner in item:
            kind = type(inner)
            if kind is dict or kind is list:
                pending.append(inner)
    return count


def _check_writable(value: Any, max_elements: int, max_depth: int) -> None:
    level = [value]
    depth = count = 0
    while level:
        containers = [v for v in level if type(v) not in _WRITABLE and _is_container(v)]
        depth += 1 if containers else 0
        count += sum(len(container) or 1 for container in containers)
        if depth > max_depth:
            raise ValueError(f"no JSON: nested deeper than {max_depth}")
        if count > max_elements:
            raise ValueError(f"no JSON: more than {max_elements} elements")
        level = []
        for container in containers:
            level += container.values() if isinstance(container, dict) else container


def _is_container(value: Any) -> bool:
    match value:
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise ValueError("no JSON: a key is no string")
            return True
        case list() | tuple():
            return True
        case None | bool() | str():
            return False
        case int() if -MAX_INTEGER <= value <= MAX_INTEGER:
            return False
        case float() if math.isfinite(value):
            return False
        case int() | float():
            raise ValueError("no JSON: number out of range")
        case _:
            raise ValueError(f"no JSON: {type(value).__name__}")
