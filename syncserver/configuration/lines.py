"""On which line of a configuration file a setting stands.

The parser does not say. But a setting stands where the file, read up to there, has it:
the file is parsed once for each of its lines.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from syncserver.configuration.toml import parse
from syncserver.errors import ConfigError

Path = tuple[str | int, ...]

_MAX_LINES = 2000  # the time grows with the square


def line_of(text: str, path: Path) -> int | None:
    """Return the line of a setting, or of the nearest table around it that is there."""
    lines = _lines(text)
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


@functools.lru_cache(maxsize=1)
def _lines(text: str) -> Mapping[Path, int]:
    """Return where each table, key and element of a list begins."""
    lines = [line + "\n" for line in text.split("\n")]
    found: dict[Path, int] = {}
    begins = 1
    for number in range(1, min(len(lines), _MAX_LINES) + 1):
        try:
            content = parse("".join(lines[:number]))
        except ConfigError:
            continue  # in the middle of a value of several lines
        for path in _paths(content, ()):
            found.setdefault(path, begins)
        begins = number + 1
    return found


def _paths(value: Any, path: Path) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, (*path, index))
