"""Terms: what a row may have that a filter asks for, in the form in which it is looked for.

A term is a *column* and an operand. A column is a letter and a path; the letters are:

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
``@``               a value in this cell (``syncserver.matching.cells``);    keys, one
                    beside an interval, if there are several
``+``               anything                                        keys, ``HERE``
``-``               nothing, or no number, or no string             keys
==================  ==============================================  ======================
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Final

from syncserver import canonical
from syncserver.matching.cells import cells_around
from syncserver.matching.comparisons import NUMBERS

TEXT_CHARACTERS = 256
PART_CHARACTERS = 6

HERE: Final = b"here"
ABSENT: Final = b"absent"
NO_NUMBER: Final = b"no number"
NO_STRING: Final = b"no string"

RANGES: Final = "#$"
PARTS: Final = "123456"
_ORDER = ("=", "[@" + PARTS, RANGES, "", "-", "+")  # 3 is an interval without one end
RANKS: Final = {letter: rank for rank, some in enumerate(_ORDER) for letter in some}
KEYED: Final = 1
"""The highest rank of which an index knows how many filters share a key."""
INTERVAL: Final = 2
WEAK: Final = 4
"""The lowest rank of terms that rows have or lack by form."""

TOP_TEXT: Final = chr(sys.maxunicode) * TEXT_CHARACTERS

Term = tuple[str, Any]
Way = tuple[Term, ...]


def column_of(letter: str, path: str) -> str:
    """Return the name of a column; the same object each time, while it is in use."""
    return sys.intern(letter + path)


def part_of(path: str, text: str) -> Term:
    """Return the term of a string that has this part."""
    return column_of(str(min(len(text), PART_CHARACTERS)), path), text


def rank(term: Term) -> int:
    """Return how little a term is expected to narrow: 0 to 5."""
    letter, operand = term[0][0], term[1]
    if letter in RANGES and (operand[0] in (-math.inf, "") or operand[1] in (math.inf, TOP_TEXT)):
        return 3  # bounded on one side
    return RANKS[letter]


def keys_of(term: Term) -> Sequence[Sequence[Any]]:
    """Return under which keys an index may put a term: any one of these lists."""
    name, operand = term
    if name[0] in RANGES:
        return ((operand,),)
    if name[0] in PARTS:
        return [(part,) for part in parts_in(operand, int(name[0]))]
    return (operand,)


def rest_of(term: Term, keys: Sequence[Any]) -> Way:
    """Return what is left of a term once it was used with these keys: more of a part, if any."""
    name, operand = term
    if name[0] not in PARTS:
        return ()
    before, _, after = operand.partition(keys[0])
    rest = max(before, after, key=len)
    return (part_of(name[1:], rest),) if rest else ()


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
            return parts_in(value, int(letter)) if isinstance(value, str) else ()


ABSENT_KEYS: Final = (ABSENT, NO_NUMBER, NO_STRING)
"""What to look for in ``-`` columns, of a row that has nothing there."""


def parts_in(text: str, length: int) -> frozenset[str]:
    """Return the parts of a text that have this length."""
    return frozenset([text[at : at + length] for at in range(len(text) - length + 1)])
