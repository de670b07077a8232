"""The ways to pass a filter, in which an index may look for it.

A *way* is a set of *terms* (``syncserver.matching.terms``), all of which a row has if it passes the
filter that way; a row that passes has all terms of one way at least. The converse need not
hold: the law decides.

Negations are moved inwards. The disjunctive normal form is capped for each ``and`` at
``MAX_WAYS`` ways and ``MAX_COPIES`` keys: beyond, some of its operands are left to the law.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from syncserver import canonical
from syncserver.filters import Filter, Tree
from syncserver.matching.cells import cell_of
from syncserver.matching.comparisons import Comparison
from syncserver.matching.terms import (
    ABSENT,
    HERE,
    INTERVAL,
    NO_NUMBER,
    NO_STRING,
    RANGES,
    RANKS,
    TEXT_CHARACTERS,
    TOP_TEXT,
    WEAK,
    Term,
    Way,
    column_of,
    part_of,
    rank,
)

MAX_WAYS = 16
MAX_COPIES = 256

_Draft = dict[str, Any]

_EXCLUDED = {ABSENT: "=[123456#$+", NO_NUMBER: "#", NO_STRING: "$123456"}
_FORM = {  # letter, lowest, highest, and what a row has that is not of this kind
    "number": ("#", -math.inf, math.inf, NO_NUMBER),
    "string": ("$", "", TOP_TEXT, NO_STRING),
}


def ways_of(filter_: Filter) -> list[Way]:
    """Return the ways of a filter; none if no row passes it. Terms that narrow most come first.

    Weak terms (``+``, ``-``), which rows have or lack by form, stand alone if at all.
    """
    drafts = _ways(filter_.shape.tree, filter_.operands, wanted=True)
    return [_finished(draft) for draft in drafts]


def narrows(way: Way) -> bool:
    """Tell whether rows of the usual form need not have what this way asks for."""
    return bool(way) and RANKS[way[0][0][0]] < WEAK


def _finished(draft: _Draft) -> Way:
    terms = [term for term in draft.items() if RANKS[term[0][0]] < WEAK]
    if len(terms) > 1:
        terms += _cells(terms)
        terms.sort(key=rank)
    return tuple(terms or sorted(draft.items(), key=rank)[:1])


def _cells(terms: Sequence[Term]) -> list[Term]:
    """Return the cells of intervals, if there are several; one alone is found without."""
    ranges = [(name[1:], ends) for name, ends in terms if rank((name, ends)) == INTERVAL]
    return [(column_of("@", path), (cell_of(*ends),)) for path, ends in ranges if len(ranges) > 1]


def _ways(tree: Tree, operands: Sequence[Any], *, wanted: bool) -> list[_Draft]:
    """Return the ways to pass (or, if not ``wanted``, to fail) a tree."""
    if isinstance(tree, Comparison):
        operand = operands[tree.place]
        return _passing(tree, operand) if wanted else _failing(tree, operand)
    if tree.operator == "not":
        return _ways(tree.parts[0], operands, wanted=not wanted)
    parts = [_ways(part, operands, wanted=wanted) for part in tree.parts]
    return _any_of(parts) if (tree.operator == "or") is wanted else _all_of(parts)


def _any_of(parts: list[list[_Draft]]) -> list[_Draft]:
    ways: list[_Draft] = []
    keys: dict[str, tuple[bytes, ...]] = {}  # of the ways that are one equality
    for way in (way for part in parts for way in part):
        column = next(iter(way), "")
        if not way:
            return [{}]
        if len(way) > 1 or column[0] != "=":
            ways.append(way)
        else:
            keys[column] = tuple({*keys.get(column, ()), *way[column]})
    return ways + [{column: some} for column, some in keys.items()]


def _all_of(parts: list[list[_Draft]]) -> list[_Draft]:
    ways: list[_Draft] | None = None
    for part in sorted(parts, key=len):
        if not all(part):
            continue  # it narrows nothing
        if ways is None:
            ways = part
        elif _fits(ways, part):  # beyond, the law alone asks for this part
            both = [_met(one, other) for one in ways for other in part]
            ways = [way for way in both if way is not None]
    return [{}] if ways is None else ways


def _fits(ways: list[_Draft], part: list[_Draft]) -> bool:
    number = len(ways) * len(part)
    return number <= 1 or (
        number <= MAX_WAYS and number * max(map(_copies, ways + part)) <= MAX_COPIES
    )


def _copies(way: _Draft) -> int:
    """Return how many pins a way may need: one for each of its keys."""
    return max([len(keys) for column, keys in way.items() if column[0] == "="], default=1)


def _met(one: _Draft, other: _Draft) -> _Draft | None:
    """Return the way that has the terms of both; None if no row can."""
    met = one | other
    for column in met:
        if column[0] == "-" and not _may_lack(column, met):
            return None
    for column in one.keys() & other.keys():
        operand, more = one[column], other[column]
        if column[0] in RANGES:
            met[column] = max(operand[0], more[0]), min(operand[1], more[1])
            if met[column][0] > met[column][1]:
                return None
        elif column[0] == "=":
            met[column] = tuple(set(operand).intersection(more))
            if not met[column]:
                return None
    return met


def _may_lack(column: str, draft: _Draft) -> bool:
    """Tell whether a row with the other terms can be one that this column is about."""
    path = column[1:]
    return any(
        not any(letter + path in draft for letter in _EXCLUDED[key]) for key in draft[column]
    )


def _passing(leaf: Comparison, operand: Any) -> list[_Draft]:
    match leaf.operator:
        case "==":
            return [{column_of("=", leaf.path): (_key(leaf, operand),)}]
        case "in":
            return [{column_of("=", leaf.path): tuple(operand)}] if operand else []
        case "contains":
            return _containing(leaf, operand)
        case "prefix":
            return [{column_of("$", leaf.path): (operand[:TEXT_CHARACTERS], _after(operand))}]
        case "between":
            return _range(leaf, *operand)
        case "<" | "<=":
            return _range(leaf, None, operand)
        case ">" | ">=":
            return _range(leaf, operand, None)
        case _:  # != and exists
            return [{column_of("+", leaf.path): (HERE,)}]


def _failing(leaf: Comparison, operand: Any) -> list[_Draft]:
    match leaf.operator:
        case "!=":
            absent = {column_of("-", leaf.path): (ABSENT,)}
            return [absent, {column_of("=", leaf.path): (_key(leaf, operand),)}]
        case "exists":
            return [{column_of("-", leaf.path): (ABSENT,)}]
        case "between":
            below, above = _range(leaf, None, operand[0]), _range(leaf, operand[1], None)
            return below + above + _not_of_kind(leaf)
        case "<" | "<=":
            return _range(leaf, operand, None) + _not_of_kind(leaf)
        case ">" | ">=":
            return _range(leaf, None, operand) + _not_of_kind(leaf)
        case _:
            return [{}]  # almost every row fails a ==, in, prefix or contains


def _key(leaf: Comparison, operand: Any) -> bytes:
    return bytes(operand) if leaf.kind == "structure" else canonical.key(operand)


def _range(leaf: Comparison, low: Any, high: Any) -> list[_Draft]:
    letter, lowest, highest, _ = _FORM[leaf.kind]
    low = lowest if low is None else low
    high = highest if high is None else high
    if letter == "$":
        low, high = low[:TEXT_CHARACTERS], high[:TEXT_CHARACTERS]
    return [{column_of(letter, leaf.path): (low, high)}] if low <= high else []


def _not_of_kind(leaf: Comparison) -> list[_Draft]:
    return [{column_of("-", leaf.path): (_FORM[leaf.kind][3],)}]


def _containing(leaf: Comparison, operand: Any) -> list[_Draft]:
    element = {column_of("[", leaf.path): (_key(leaf, operand),)}
    if leaf.kind != "string":
        return [element]
    if not operand:
        return [{column_of("+", leaf.path): (HERE,)}]
    column, text = part_of(leaf.path, operand[:TEXT_CHARACTERS])
    return [element, {column: text}]


def _after(start: str) -> str:
    """Return a text that no text with this start is larger than, cut as texts are."""
    start = start[:TEXT_CHARACTERS].rstrip(chr(sys.maxunicode))
    return start[:-1] + chr(ord(start[-1]) + 1) if start else TOP_TEXT
