"""TOML with one kind of refusal: the parser of the standard library has several."""

from __future__ import annotations

import tomllib
from typing import Any

from syncserver.errors import ConfigError

_MAX_DEPTH = 32


def parse(text: str) -> dict[str, Any]:
    """Return what a text says; ConfigError if it is no TOML, or nested too deep for anybody."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from error
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # Python reads no number of thousands of digits
        raise ConfigError("not TOML: a number has too many digits") from error
    level: list[Any] = [content]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        raise _too_deep()
    return content


def _too_deep() -> ConfigError:
    return ConfigError(f"not TOML for settings: nested deeper than {_MAX_DEPTH}")
