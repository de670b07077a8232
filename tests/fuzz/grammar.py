"""The parts that the grammars of hypothesis have in common: JSON, and texts that nearly are some.

What is rare stands in a list beside what is usual: the lists say how often.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzz.mutation import MAX_BYTES, RAW

Texts = SearchStrategy[str]
Inputs = SearchStrategy[bytes]


def drawn(
    inputs: SearchStrategy[Any], count: int, number: int, take: Callable[[Any], None]
) -> None:
    """Give ``take`` so many inputs, the same for the same number."""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,  # what fails is kept in the corpus
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def each(made: Any) -> None:
        take(made)

    each()


def one(*choices: Any) -> SearchStrategy[Any]:
    """Return a strategy for one of some values."""
    return st.sampled_from(choices)


def as_bytes(texts: Texts) -> Inputs:
    """Return the bytes of texts, with lone surrogates in them let through."""
    return texts.map(lambda text: text.encode("utf-8", "surrogatepass")[:MAX_BYTES])


# JSON.

NAMES = one("a", "b", "id", "", "type", "é", "__class__", "self", "req", "a.b", "$group", "x" * 70)
_SPACES = one(*[""] * 12, " ", "\n\t", "\r\n ", "\u00a0")
_COMMAS = one(*[","] * 30, " , ", ",\n", ",,", "", ";")
_COLONS = one(*[":"] * 30, " : ", "", "::", "=")
_ENDS = one(*[("[", "]")] * 40, ("[", ""), ("[", "}"), ("[", ",]"), ("", "]"), ("[", "]]"))


def quoted(text: str, style: int = 0) -> str:
    """Return a text as a JSON string: as it is, in ASCII, or with all its characters escaped."""
    if style == 2:
        units = text.encode("utf-16-be", "surrogatepass")
        pairs = (units[n : n + 2].hex() for n in range(0, len(units), 2))
        return '"' + "".join(f"\\u{pair}" for pair in pairs) + '"'
    return json.dumps(text, ensure_ascii=style == 1)


STRINGS: Texts = st.builds(quoted, NAMES | st.text(max_size=6), one(0, 0, 0, 1, 2))
_GOOD = [*("null", "true", "false", "0", "1", "-1", "1.5", '""', '"a"', "[]", "{}"), str(2**53 - 1)]
_LEAVES = st.one_of(
    st.sampled_from([*_GOOD * 8, *RAW]),
    STRINGS,
    st.integers(-(2**54), 2**54).map(str),
    st.floats(width=32).map(json.dumps),
)


@st.composite
def _listed(draw: DrawFn, inner: Texts) -> str:
    begin, end = draw(_ENDS)
    parts = draw(st.lists(inner, max_size=3))
    return begin + draw(_SPACES) + draw(_COMMAS).join(parts) + end


@st.composite
def _mapped(draw: DrawFn, inner: Texts) -> str:
    comma, colon = draw(_COMMAS), draw(_COLONS)
    pairs = draw(st.lists(st.tuples(STRINGS, inner), max_size=3))
    return "{" + comma.join(key + colon + value for key, value in pairs) + draw(_SPACES) + "}"


VALUES: Texts = st.recursive(_LEAVES, lambda inner: _listed(inner) | _mapped(inner), max_leaves=5)
"""Texts of JSON, or nearly."""


_RIGHT, _WRONG, _MISSING, _TWICE = "right", "wrong", "missing", "twice"
_FATES = one(*[_RIGHT] * 24, _WRONG, _WRONG, _MISSING, _TWICE)


@st.composite
def objects(draw: DrawFn, /, **fields: Texts) -> str:
    """Return an object with these fields, in any order, of which some are wrong, away or twice."""
    pairs = []
    for name, right in fields.items():
        fate = draw(_FATES)
        if fate != _MISSING:
            pairs.append(f"{quoted(name)}:{draw(VALUES if fate == _WRONG else right)}")
        if fate == _TWICE:
            pairs.append(pairs[-1])
    if draw(one(*[False] * 12, True)):
        pairs.insert(0, f"{draw(STRINGS)}:{draw(VALUES)}")
    return "{" + ",".join(draw(st.permutations(pairs))) + "}"


def lists(inner: Texts, most: int = 3) -> Texts:
    """Return lists of some."""
    return st.lists(inner, max_size=most).map(lambda parts: "[" + ",".join(parts) + "]")


def consts(*values: Any) -> Texts:
    """Return the texts of values."""
    return st.sampled_from([json.dumps(value) for value in values])


# Trees that are those of seeds, but for a place.


def _spots(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(tree, dict | list):
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        found += [spot for key in keys for spot in _spots(tree[key], (*path, key))]
    return found


_HERE = quoted("@here")


def near(seeds: Sequence[bytes]) -> Inputs:
    """Return JSON like that of seeds, with another value in one place."""
    marked = [
        json.dumps(_replaced(json.loads(seed), path, "@here"))
        for seed in seeds
        for path in _spots(json.loads(seed))
    ]
    texts = st.sampled_from(marked)
    return as_bytes(st.builds(lambda text, value: text.replace(_HERE, value), texts, VALUES))


def _replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    tree[path[0]] = _replaced(tree[path[0]], path[1:], value)
    return tree
