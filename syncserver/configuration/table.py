"""The tables of a configuration file: checked values, and refusals that say where they stand."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, TypeVar, cast

from syncserver.config import suggest
from syncserver.configuration.lines import line_of
from syncserver.errors import ConfigError

T = TypeVar("T")

# Fields that say where something was found; no file can set them.
_FOUND = {"source", "given", "key_file"}
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_ELEMENT = re.compile(r"([A-Za-z0-9_-]+)\[([0-9]{1,9})\]")
_KINDS = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}

_FOUND_KINDS = _KINDS | {float: "a number with a point"}


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the file: hands out checked values and knows where each of them stands."""

    source: str
    content: Mapping[str, Any]
    overrides: Mapping[str, str]
    text: str = ""
    path: tuple[str, ...] = ()
    problems: list[ConfigError] = field(default_factory=list)

    def error(self, key: str, what: str) -> ConfigError:
        """Return a refusal of the value of ``key``, whether it came from file or environment."""
        name, *index = re.split(r"(?=\[)", key, maxsplit=1)
        if variable := self.overrides.get(".".join((*self.path, name))):
            return ConfigError(f"{variable}{''.join(index)}: {what}")
        table = f"[{'.'.join(map(shown, self.path))}] " if self.path else ""
        line = line_of(self.text, tuple(chain.from_iterable(map(_steps, (*self.path, key)))))
        return ConfigError(f"{self.source}: {table}{key}: {what}", source=self.source, line=line)

    def attempt(self, part: Callable[[], T], otherwise: T) -> T:
        """Return what ``part`` does; if it is refused note that, and go on with ``otherwise``."""
        try:
            return part()
        except ConfigError as error:
            self.problems.append(error)
            return otherwise

    def only(self, names: Sequence[str]) -> None:
        """Note keys that are none of ``names`` as refused."""
        for key in self.content:
            if key not in names:
                what = f"unknown key; {suggest(key, names)}"
                self.problems.append(self.error(shown(key), what))

    def get(self, key: str, kind: type[T], default: T) -> T:
        """Return the value of a key that may be left out."""
        value = self.content.get(key, default)
        if type(value) not in ((int, float) if kind is float else (kind,)):
            raise self.error(key, f"must be {_KINDS[kind]}, not {_kind_of(value)}")
        return cast(T, value)

    def name(self, key: str, default: str = "", hint: str = "it has no default") -> str:
        """Return a text that cannot be empty; without a default it cannot be left out."""
        text = self.get(key, str, default)
        if key not in self.content and not default:
            raise self.error(key, f"missing; {hint}")
        if not text or not text.isprintable():
            raise self.error(key, "must be a text without control characters, and not empty")
        return text

    def choice(self, key: str, names: Iterable[str], default: str = "") -> str:
        """Return one of ``names``."""
        value = self.name(key, default, suggest("", names))
        if value not in names:
            raise self.error(key, f"unknown {key} {json.dumps(value)}; {suggest(value, names)}")
        return value

    def each(self, key: str, check: Callable[[str], T]) -> tuple[T, ...]:
        """Return what ``check`` makes of every string of a list."""
        values = enumerate(self.get(key, list, []))
        return tuple(self.checked(f"{key}[{index}]", value, check) for index, value in values)

    def checked(self, place: str, value: object, check: Callable[[str], T]) -> T:
        """Return what ``check`` makes of a string that stands at ``place``."""
        if type(value) is not str:
            raise self.error(place, f"must be a string, not {_kind_of(value)}")
        try:
            return check(value)
        except ConfigError as error:
            raise self.error(place, str(error)) from error

    def table(self, key: str) -> Table:
        """Return the table under a key, empty where it is left out."""
        content = self.get(key, dict, {})
        return replace(self, content=content, path=(*self.path, key))

    def entry(self, place: str, content: dict[str, Any]) -> Table:
        """Return the table that stands at ``place`` in a list."""
        return replace(self, content=content, path=(*self.path, place))

    def tables(self, key: str) -> Iterator[tuple[str, Table]]:
        """Yield the named tables under a key."""
        parent = self.table(key)
        for name in parent.content:
            if not name or not name.isprintable():
                what = "no name; give it letters and digits"
                self.problems.append(parent.error(shown(name), what))
            elif found := self.attempt(functools.partial(parent.table, name), None):
                yield name, found

    def each_table(self, key: str, make: Callable[[Table], T]) -> dict[str, T]:
        """Return what ``make`` makes of each of the named tables under a key."""
        made = {}
        for name, table in self.tables(key):
            one = self.attempt(functools.partial(make, table), None)
            if one is not None:
                made[name] = one
        return made


def _steps(key: str) -> tuple[str | int, ...]:
    """Return a key as it is told, ``name``, ``name[0]`` or quoted, as steps into the file."""
    if key.startswith('"'):
        with contextlib.suppress(ValueError):  # or else it is a name that begins so
            return (json.loads(key),)
    found = _ELEMENT.fullmatch(key)
    return (found[1], int(found[2])) if found else (key,)


def _kind_of(value: object) -> str:
    return _FOUND_KINDS.get(type(value), "a date or time")


def shown(key: str) -> str:
    """Return a key as a file would have it, on one line whatever it holds."""
    return key if _PLAIN.fullmatch(key) or _ELEMENT.fullmatch(key) else json.dumps(key)


def settings_of(settings: type) -> list[str]:
    """Return the names that a file may use for the fields of a dataclass."""
    return [one.name for one in fields(settings) if one.name not in _FOUND]
