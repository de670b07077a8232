"""Inputs made from good ones: bytes that are changed a little, and JSON whose parts are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

MAX_BYTES = 60_000

Mutate = Callable[[Random, Sequence[bytes]], bytes]
"""Makes an input of one or two others."""

_BYTES = [b"\0", b"\xff", b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
_TEXTS = [b"\r\n", b"\n", b'"', b"\\", b"\\u0000", b"\\ud800", b"[", b"]", b"{", b"}", b",", b":"]
_NUMBERS = [b"0", b"-1", b"-0", b"1e999", b"9007199254740992", b"1" * 5_000, b"NaN", b"1.0"]
WORDS = [
    *_BYTES,
    *_TEXTS,
    *_NUMBERS,
    b"true",
    b"null",
    b" ",
    "é€😀".encode(),
    b"\xef\xbb\xbf",
]

RAW = [
    *("1e999", "-0", "-0.0", "1E5", "1e-999", "NaN", "-Infinity", "01", "+1", ".5", "1.", "0x1"),
    *("9007199254740991", "9007199254740992", "-9007199254740992", "1" * 5_000, "1e16", "1" * 30),
    *('"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\n"', '"\\x"', "'a'", "nul", "", "[1,]"),
    *('{"a":1,"a":2}', '{"a":1,"\\u0061":2}', "{1:2}", '{"a":1,}', "[" * 70 + "]" * 70),
    *("[" * 63 + "]" * 63, "[" * 3_000 + "]" * 3_000, '{"a":' * 70 + "1" + "}" * 70, "[" * 90),
    "[" + "0," * 2_000 + "0]",
]
_RAW_MARK = "@raw "
_PLAINLY: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.5, 2**53 - 1, "", "a", "\0", "é", "😀", "\ud800", "x" * 300),
    *([], {}, [[]], [None], {"": 0}, {"a": {"a": {}}}, "__class__", "self", "req", "$group"),
]
_PLAIN = [json.dumps(one) for one in _PLAINLY]


def mutated_bytes(
    data: bytes, rng: Random, seeds: Sequence[bytes], words: Sequence[bytes]
) -> bytes:
    """Return bytes with one to four changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        at = rng.randint(0, len(changed))
        to = min(len(changed), at + rng.choice((1, 1, 2, 4, 16, 200)))
        match rng.randrange(9):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.choice((0, 1, 9, 32, 127, 128, 255, rng.randrange(256)))
            case 2:
                del changed[at:to]
            case 3:
                changed[at:at] = changed[at:to] * rng.choice((1, 2, 30))
            case 4 | 5:
                changed[at:at] = rng.choice(words)
            case 6:
                changed[at:to] = rng.choice(words)
            case 7:
                del changed[at:]
            case _:
                other = rng.choice(seeds)
                begin = rng.randint(0, len(other))
                changed[at:] = other[begin:]
    return bytes(changed[:MAX_BYTES])


def _spot(tree: Any, rng: Random) -> tuple[Any, Any]:
    """Return a container and a key of it; (None, None) is the whole."""
    parent = key = None
    inner = tree
    while isinstance(inner, dict | list) and inner and (parent is None or rng.random() < 0.7):
        parent = inner
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        inner = parent[key]
    return parent, key


def _value(tree: Any, rng: Random) -> Any:
    match rng.randrange(4):
        case 0:
            return f"{_RAW_MARK}{rng.randrange(len(RAW))}"
        case 1:
            parent, key = _spot(tree, rng)
            return None if parent is None else json.loads(json.dumps(parent[key]))
        case _:
            return json.loads(rng.choice(_PLAIN))


def mutated_tree(tree: Any, rng: Random) -> Any:
    """Change one place of a JSON value, perhaps in place."""
    parent, key = _spot(tree, rng)
    if parent is None:
        return _value(tree, rng)
    new = _value(tree, rng)
    match rng.randrange(7):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(("", "a", "type", "\0", "é", "self", "req", "service"))] = new
        case 1 | 2 if isinstance(parent, list):
            parent.insert(key, new)
        case 2:
            for _ in range(rng.choice((1, 2, 9, 60))):
                parent[key] = [parent[key]]
        case 3 if isinstance(parent, list):
            parent *= rng.choice((2, 3, 30))
        case _:
            parent[key] = new
    return tree


def written(tree: Any) -> bytes:
    """Return a tree as JSON, or nearly."""
    text = json.dumps(tree)
    for number, raw in enumerate(RAW):
        text = text.replace(f'"{_RAW_MARK}{number}"', raw)
    return text.encode()[:MAX_BYTES]


def bytes_like(*words: bytes) -> Mutate:
    """Return what makes bytes out of others."""
    known = [*WORDS, *words, *words]
    return lambda rng, pool: mutated_bytes(rng.choice(pool), rng, pool, known)


def json_like(*words: bytes) -> Mutate:
    """Return what makes JSON, or nearly, out of others, most of which are JSON."""
    as_bytes = bytes_like(*words)

    def mutate(rng: Random, pool: Sequence[bytes]) -> bytes:
        if rng.random() < 0.2:
            return as_bytes(rng, pool)
        seed = rng.choice(pool)
        try:
            tree = json.loads(seed)
        except (ValueError, RecursionError):
            return as_bytes(rng, [seed])
        for _ in range(rng.choice((1, 1, 2, 3))):
            tree = mutated_tree(tree, rng)
        data = written(tree)
        return data if rng.random() < 0.8 else as_bytes(rng, [data])

    return mutate
