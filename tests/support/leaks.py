"""No key and no token stands in a log: all that the tests make are noted, and looked for.

Keys are noted where the daemon reads them, tokens where it makes them; those of daemons in other
processes where a test uses them. Short ones are words of the tests, and are let be.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from syncserver import apikeys
from syncserver.rowsync import grants

SHORTEST = 24
FEWEST = 6
"""How many different characters a key or token has at least: a fuzz makes keys of ones."""

_RUN = re.compile(rf"[a-z0-9]{{{SHORTEST},}}")
_TRACEBACK = logging.Formatter()


class Noted:
    """The keys and tokens of a run of the tests, and the logs of the test that runs."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._tokens: set[str] = set()
        self._lengths: set[int] = set()
        self._texts: list[str] = []

    def note(self, text: object) -> None:
        """Note a key or token."""
        if not isinstance(text, str) or len(text) < SHORTEST or len(set(text)) < FEWEST:
            return
        if _RUN.fullmatch(text):
            self._tokens.add(text)
            self._lengths.add(len(text))
        else:
            self._keys.add(text)

    def hear(self, text: str) -> None:
        """Note what was written to a log."""
        self._texts.append(text)

    def leaks(self) -> list[str]:
        """Return the lines heard that hold a key or token, and forget all lines."""
        texts, self._texts = self._texts, []
        return [line for text in texts for line in text.splitlines() if self._is_leak(line)]

    def _is_leak(self, line: str) -> bool:
        return any(key in line for key in self._keys) or any(
            run in self._tokens for run in self._runs(line)
        )

    def _runs(self, line: str) -> Iterator[str]:
        """Yield what could be a token: the cost does not grow with how many there are."""
        for found in _RUN.findall(line):
            for length in self._lengths:
                yield from (
                    found[start : start + length] for start in range(len(found) - length + 1)
                )


class Listener(logging.Handler):
    """Hears all records, whatever their level, with their tracebacks."""

    def __init__(self, noted: Noted) -> None:
        super().__init__(logging.DEBUG)
        self._noted = noted

    def emit(self, record: logging.LogRecord) -> None:
        self._noted.hear(record.getMessage())
        if record.exc_info:
            self._noted.hear(_TRACEBACK.formatException(record.exc_info))


NOTED = Noted()


def install() -> None:
    """Have every key that is read and every token that is made in this process noted.

    Before anything imports ``new_token`` from its module.
    """
    make, keep = grants.new_token, apikeys.Secret.__init__

    def new_token() -> str:
        token = make()
        NOTED.note(token)
        return token

    def init(self: apikeys.Secret, value: str, *rest: Any) -> None:
        NOTED.note(value)
        keep(self, value, *rest)

    grants.new_token = new_token
    apikeys.Secret.__init__ = init  # type: ignore[method-assign]
