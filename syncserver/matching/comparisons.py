"""The comparisons of the filter language: one field of a row against one operand.

A comparison of a missing field, or of a value of another type than the operator
compares, is false. Each is an operator, the *kind* of its operand, and a check of
(value, operand) that all filters of this operator and kind share.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from syncserver import canonical, strict_json
from syncserver.errors import InvalidQuery

MISSING: Final = object()
"""What a reader returns where the row has no such field; null is no missing field."""

NUMBERS: Final = (int, float)
"""The classes of JSON numbers; compared by class, as bool is a subclass of int."""

Indices = tuple[int, ...]
Check = Callable[[Any, Any], bool]

_SHOWN_CHARACTERS = 40


class Comparison(NamedTuple):
    """A comparison without its operand, which is number ``place`` of the filter's operands."""

    operator: str
    path: str
    kind: str
    place: int


class Operator(NamedTuple):
    """One row of the table: how it reads, and what makes (kind, operand) of its values."""

    template: str
    operand: Callable[[list[Any], Indices], tuple[str, Any]]


def reader(path: str) -> Callable[[Any], Any]:
    """Return a function that reads a dotted path of a row, or MISSING; ValueError on a bad path.

    Each segment is a key of an object; arrays are not entered.
    """
    names = path.split(".")
    if not all(names):
        raise ValueError("a path has no empty segment")
    if len(names) == 1:
        return lambda row: row.get(path, MISSING) if isinstance(row, dict) else MISSING

    def read(row: Any) -> Any:
        for name in names:
            if not isinstance(row, dict) or name not in row:
                return MISSING
            row = row[name]
        return row

    return read


def compare(comparison: Comparison) -> Callable[[Any, Sequence[Any]], bool]:
    """Return what tests a row with the operands of a filter."""
    name, path, kind, place = comparison
    read, check = reader(path), _CHECKS[name, kind]
    if "." not in path:  # without the call of a reader

        def test_column(row: Any, operands: Sequence[Any]) -> bool:
            found = row.get(path, MISSING) if isinstance(row, dict) else MISSING
            return found is not MISSING and check(found, operands[place])

        return test_column

    def test(row: Any, operands: Sequence[Any]) -> bool:
        found = read(row)
        return found is not MISSING and check(found, operands[place])

    return test


def shown(value: Any) -> str:
    """Return JSON for a person, in part if it is long."""
    text = strict_json.encode_trusted(value).decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def refusal(message: str, at: Indices) -> InvalidQuery:
    """Return the error that says what is wrong with a filter, and where."""
    where = ".".join(map(str, at))
    place = f"filter at {where}" if where else "filter"
    return InvalidQuery(f"{place}: {message}", field=where or None)


# Operands: what a filter keeps of the values, and of which kind it is.


def _value(values: list[Any], _: Indices) -> tuple[str, Any]:
    match values[0]:
        case None | bool() as constant:
            return "constant", constant
        case str() as text:
            return "string", text
        case int() | float() as number:
            return "number", number
        case structure:
            return "structure", canonical.key(structure)


def _limit(values: list[Any], at: Indices) -> tuple[str, Any]:
    return _kind_of(values, at), values[0]


def _limits(values: list[Any], at: Indices) -> tuple[str, Any]:
    return _kind_of(values, at), tuple(values)


def _kind_of(limits: list[Any], at: Indices) -> str:
    for kind, classes in (("number", NUMBERS), ("string", (str,))):
        if all(limit.__class__ in classes for limit in limits):
            return kind
    what = "a number or a string" if len(limits) == 1 else "two numbers or two strings"
    raise refusal(f"is compared with {what}", (*at, 2))


def _options(values: list[Any], at: Indices) -> tuple[str, Any]:
    if not isinstance(values[0], list):
        raise refusal("in takes a list of values", (*at, 2))
    return "options", frozenset(map(canonical.key, values[0]))


def _start(values: list[Any], at: Indices) -> tuple[str, Any]:
    if not isinstance(values[0], str):
        raise refusal("prefix takes a string", (*at, 2))
    return "string", values[0]


# Checks, of a value that is there.


def _is_constant(found: Any, value: Any) -> bool:
    return found is value


def _is_string(found: Any, value: Any) -> bool:
    return bool(found == value)


def _is_number(found: Any, value: Any) -> bool:
    return found.__class__ in NUMBERS and bool(found == value)


def _is_structure(found: Any, key: Any) -> bool:
    return isinstance(found, list | dict) and canonical.key(found) == key


def _differs(equal: Check) -> Check:
    return lambda found, value: not equal(found, value)


def _numbers(compare: Check) -> Check:
    return lambda found, limit: found.__class__ in NUMBERS and compare(found, limit)


def _strings(compare: Check) -> Check:
    return lambda found, limit: found.__class__ is str and compare(found, limit)


def _between(found: Any, limits: Any) -> bool:
    return bool(limits[0] <= found <= limits[1])


def _is_option(found: Any, keys: Any) -> bool:
    return canonical.key(found) in keys


def _starts(found: Any, start: Any) -> bool:
    return isinstance(found, str) and found.startswith(start)


def _has_element(equal: Check) -> Check:
    return lambda found, value: (
        isinstance(found, list) and any(equal(element, value) for element in found)
    )


def _has_part(found: Any, text: Any) -> bool:
    return text in found if isinstance(found, str) else _HAS_STRING(found, text)


def _is_there(_found: Any, _operand: Any) -> bool:
    return True


_HAS_STRING = _has_element(_is_string)
_EQUAL: dict[str, Check] = {
    "constant": _is_constant,
    "string": _is_string,
    "number": _is_number,
    "structure": _is_structure,
}
_ORDER = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "between": _between,
}
_CHECKS: dict[tuple[str, str], Check] = {
    **{("==", kind): equal for kind, equal in _EQUAL.items()},
    **{("!=", kind): _differs(equal) for kind, equal in _EQUAL.items()},
    **{(name, "number"): _numbers(compare) for name, compare in _ORDER.items()},
    **{(name, "string"): _strings(compare) for name, compare in _ORDER.items()},
    ("in", "options"): _is_option,
    ("prefix", "string"): _starts,
    **{("contains", kind): _has_element(equal) for kind, equal in _EQUAL.items()},
    ("contains", "string"): _has_part,
    ("exists", "none"): _is_there,
}

OPERATORS: dict[str, Operator] = {
    "==": Operator("{} == {}", _value),
    "!=": Operator("{} != {}", _value),
    "<": Operator("{} < {}", _limit),
    "<=": Operator("{} <= {}", _limit),
    ">": Operator("{} > {}", _limit),
    ">=": Operator("{} >= {}", _limit),
    "in": Operator("{} in {}", _options),
    "between": Operator("{} between {} and {}", _limits),
    "prefix": Operator("{} starts with {}", _start),
    "contains": Operator("{} contains {}", _value),
    "exists": Operator("{} exists", lambda _values, _: ("none", None)),
}
