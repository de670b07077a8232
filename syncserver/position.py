"""A point in a stream: which log, how far, and the very entry that stands there."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

MAX_TEXT = 64
_TEXT = re.compile(r"([a-z0-9]{1,24})\.(0|[1-9][0-9]{0,15})\.([a-z0-9]{1,16})")

START_MARK = "0"
"""The mark of the place before the first entry."""


class Position(NamedTuple):
    """The place after the entry ``offset`` of the log ``epoch``.

    ``mark`` is random for each entry, so that a log which was rolled back and
    written again is told from the one that a reader followed.
    """

    epoch: str
    offset: int
    mark: str

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}.{self.mark}"

    @classmethod
    def parse(cls, text: object) -> Position:
        """Read the wire form; ValueError on anything that no server ever sent."""
        if isinstance(text, str) and len(text) <= MAX_TEXT:
            match = _TEXT.fullmatch(text)
            if match:
                return cls(match[1], int(match[2]), match[3])
        raise ValueError("not a position")

    @classmethod
    def start(cls) -> Position:
        """Return the start of a new log, with an epoch that was never used."""
        return cls(secrets.token_hex(6), 0, START_MARK)

    def next(self) -> Position:
        """Return the position of the entry that follows, with a mark of its own."""
        return Position(self.epoch, self.offset + 1, secrets.token_hex(4))
