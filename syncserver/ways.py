"""What a row must have to pass a filter: the ways in which an index may look for it.

A *way* is a set of *terms*, all of which a row has if it passes the filter that way; a
row that passes has all terms of one way at least. The converse need not hold. A term is a
*column* and an operand. A column is a letter and a path; the letters are:

==================  ==============================================  ======================
letter              the row has, at the path,                       operand
==================  ==============================================  ======================
``=``               a value with one of these canonical keys        keys
``[``               an array with an element with this key          keys, one
``1`` ... ``6``     a string with this part                         the part; the letter
                                                                    is its length, or 6
``#``               a number from low to high, both included        (low, high)
``$``               a string from low to high, cut to               (low, high)
                    ``TEXT_CHARACTERS``
``@``               a value in this cell (``syncserver.cells``);    keys, one
                    beside an interval, if there are several
``+``               anything                                        keys, ``HERE``
``-``               nothing, or no number, or no string             keys
==================  ==============================================  ======================

Negations are moved inwards, the disjunctive normal form is capped at ``MAX_WAYS``
for each ``and``: beyond it, some operands of the ``and`` are left to the law.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Final

from syncserver import canonical
from syncserver.cells import cell_of, cells_around
from syncserver.comparisons import NUMBERS, Comparison
from syncserver.filters import Filter, Tree

MAX_WAYS = 16
TEXT_CHARACTERS = 256
PART_CHARACTERS = 6

HERE: Final = b"here"
ABSENT: Final = b"absent"
NO_NUMBER: Final = b"no number"
NO_STRING: Final = b"no string"

RANGES: Final = "#$"
_PARTS = "123456"
_ORDER = ("=", "[@" + _PARTS, RANGES, "", "-", "+")  # 3 is an interval without one end
RANKS: Final = {letter: rank for rank, some in enumerate(_ORDER) for letter in some}
MAX_KEYED_RANK: Final = 1
"""Up to here an index knows how many share a key."""

Term = tuple[str, Any]
Way = tuple[Term, ...]
_Draft = dict[str, Any]

_EXCLUDED = {ABSENT: "=[123456#$+", NO_NUMBER: "#", NO_STRING: "$123456"}
_INTERVAL = RANKS["#"]
_WEAK = RANKS["-"]
_TOP_TEXT = chr(sys.maxunicode) * TEXT_CHARACTERS
_FORM = {  # letter, lowest, highest, and what a row has that is not of this kind
    "number": ("#", -math.inf, math.inf, NO_NUMBER),
    "string": ("$", "", _TOP_TEXT, NO_STRING),
}


def ways_of(filter_: Filter) -> list[Way]:
    """Return the ways of a filter; none if no row passes it. Terms that narrow most come first.

    Weak terms (``+``, ``-``), which rows have or lack by form, stand alone if at all.
    """
    drafts = _ways(filter_.shape.tree, filter_.operands, wanted=True)
    return [_finished(draft) for draft in drafts]


def rank(term: Term) -> int:
    """Return how little a term is expected to narrow: 0 to 5."""
    letter, operand = term[0][0], term[1]
    if letter in RANGES and (operand[0] in (-math.inf, "") or operand[1] in (math.inf, _TOP_TEXT)):
        return 3  # bounded on one side
    return RANKS[letter]


def keys_of(term: Term) -> Sequence[Sequence[Any]]:
    """Return under which keys an index may put a term: any one of these lists."""
    name, operand = term
    if name[0] in RANGES:
        return ((operand,),)
    if name[0] in _PARTS:
        return [(part,) for part in parts_of(operand, int(name[0]))]
    return (operand,)


def left_of(term: Term, keys: Sequence[Any]) -> Way:
    """Return what is left of a term once it was used with these keys: more of a part, if any."""
    name, operand = term
    if name[0] not in _PARTS:
        return ()
    before, _, after = operand.partition(keys[0])
    rest = max(before, after, key=len)
    return ((_part_column(name[1:], rest), rest),) if rest else ()


def narrows(way: Way) -> bool:
    """Tell whether rows of the usual form need not have what this way asks for."""
    return bool(way) and RANKS[way[0][0][0]] < _WEAK


def keys_at(letter: str, value: Any) -> Sequence[Any] | frozenset[Any]:
    """Return what to look for in the columns of this letter, of a row with this value there."""
    match letter:
        case "=":
            return (canonical.key(value),)
        case "#":
            return (value,) if value.__class__ in NUMBERS else ()
        case "$":
            return (value[:TEXT_CHARACTERS],) if isinstance(value, str) else ()
        case "@":
            is_ordered = value.__class__ in NUMBERS or isinstance(value, str)
            return cells_around(value) if is_ordered else ()
        case "[":
            return frozenset(map(canonical.key, value)) if isinstance(value, list) else ()
        case "+":
            return (HERE,)
        case "-":
            if value.__class__ in NUMBERS:
                return (NO_STRING,)
            return (NO_NUMBER,) if value.__class__ is str else (NO_NUMBER, NO_STRING)
        case _:
            return parts_of(value, int(letter)) if isinstance(value, str) else ()


ABSENT_KEYS: Final = (ABSENT, NO_NUMBER, NO_STRING)
"""What to look for in ``-`` columns, of a row that has nothing there."""


def parts_of(text: str, length: int) -> frozenset[str]:
    """Return the parts of a text that have this length."""
    return frozenset([text[at : at + length] for at in range(len(text) - length + 1)])


def _finished(draft: _Draft) -> Way:
    terms = [term for term in draft.items() if RANKS[term[0][0]] < _WEAK]
    if len(terms) > 1:
        terms += _cells(terms)
        terms.sort(key=rank)
    return tuple(terms or sorted(draft.items(), key=rank)[:1])


def _cells(terms: Sequence[Term]) -> list[Term]:
    """Return the cells of intervals, if there are several; one alone is found without."""
    ranges = [(name[1:], ends) for name, ends in terms if rank((name, ends)) == _INTERVAL]
    return [(sys.intern(f"@{path}"), (cell_of(*ends),)) for path, ends in ranges if len(ranges) > 1]


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
        elif len(ways) * len(part) <= MAX_WAYS:  # beyond, the law alone asks for this part
            both = [_met(one, other) for one in ways for other in part]
            ways = [way for way in both if way is not None]
    return [{}] if ways is None else ways


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
            return [{_column("=", leaf): (_key(leaf, operand),)}]
        case "in":
            return [{_column("=", leaf): tuple(operand)}] if operand else []
        case "contains":
            return _containing(leaf, operand)
        case "prefix":
            return [{_column("$", leaf): (operand[:TEXT_CHARACTERS], _after(operand))}]
        case "between":
            return _range(leaf, *operand)
        case "<" | "<=":
            return _range(leaf, None, operand)
        case ">" | ">=":
            return _range(leaf, operand, None)
        case _:  # != and exists
            return [{_column("+", leaf): (HERE,)}]


def _failing(leaf: Comparison, operand: Any) -> list[_Draft]:
    match leaf.operator:
        case "!=":
            absent = {_column("-", leaf): (ABSENT,)}
            return [absent, {_column("=", leaf): (_key(leaf, operand),)}]
        case "exists":
            return [{_column("-", leaf): (ABSENT,)}]
        case "between":
            below, above = _range(leaf, None, operand[0]), _range(leaf, operand[1], None)
            return below + above + _not_of_kind(leaf)
        case "<" | "<=":
            return _range(leaf, operand, None) + _not_of_kind(leaf)
        case ">" | ">=":
            return _range(leaf, None, operand) + _not_of_kind(leaf)
        case _:
            return [{}]  # almost every row fails a ==, in, prefix or contains


def _column(letter: str, leaf: Comparison) -> str:
    return sys.intern(letter + leaf.path)


def _part_column(path: str, part: str) -> str:
    return sys.intern(f"{min(len(part), PART_CHARACTERS)}{path}")


def _key(leaf: Comparison, operand: Any) -> bytes:
    return bytes(operand) if leaf.kind == "structure" else canonical.key(operand)


def _range(leaf: Comparison, low: Any, high: Any) -> list[_Draft]:
    letter, lowest, highest, _ = _FORM[leaf.kind]
    low = lowest if low is None else low
    high = highest if high is None else high
    if letter == "$":
        low, high = low[:TEXT_CHARACTERS], high[:TEXT_CHARACTERS]
    return [{_column(letter, leaf): (low, high)}] if low <= high else []


def _not_of_kind(leaf: Comparison) -> list[_Draft]:
    return [{_column("-", leaf): (_FORM[leaf.kind][3],)}]


def _containing(leaf: Comparison, operand: Any) -> list[_Draft]:
    element = {_column("[", leaf): (_key(leaf, operand),)}
    if leaf.kind != "string":
        return [element]
    if not operand:
        return [{_column("+", leaf): (HERE,)}]
    part = operand[:TEXT_CHARACTERS]
    return [element, {_part_column(leaf.path, part): part}]


def _after(start: str) -> str:
    """Return a text that no text with this start is larger than, cut as texts are."""
    start = start[:TEXT_CHARACTERS].rstrip(chr(sys.maxunicode))
    return start[:-1] + chr(ord(start[-1]) + 1) if start else _TOP_TEXT
