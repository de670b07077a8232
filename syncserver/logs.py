"""The log of the daemon: one line for each record, and not more of one kind than can be read.

A kind is a logger and the text that it formats. Of each kind ``BURST`` records are
written in a window of ``WINDOW_SECONDS``; those over it are counted, and the count is
written when the window is over. So who knocks a million times with a wrong key fills
no disk and hides no other line.

The daemon never waits for its log: what a pipe that nobody reads, or a full disk, does not take
is dropped, and counted when it takes something again.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

BURST = 20
WINDOW_SECONDS = 10.0

_MAX_KINDS = 1000
_PIECE = 1000  # characters, so less than a pipe takes at once when it takes anything

# Text from outside cannot begin a line of its own in the log, nor steer a terminal.
CONTROLS = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029)
    if chr(code) != "\t"
}


class LineFormatter(logging.Formatter):
    """One line for each record, whatever stands in it; a traceback follows on its own lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line with control characters escaped."""
        return super().formatMessage(record).translate(CONTROLS)


class JSONFormatter(logging.Formatter):
    """One JSON object on a line for each record, its traceback in it.

    ``event`` is the text before its values were put in, the same for all records of a kind.
    Of a client among the values, ``connection`` and ``remote`` are told apart.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "event": str(record.msg),
            "pid": record.process,
        }
        for value in record.args if isinstance(record.args, tuple) else ():
            if connection := getattr(value, "connection_id", None):
                remote = getattr(value, "remote_address", "")
                fields |= {"connection": connection, "remote": remote}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


@dataclass(slots=True)
class _Window:
    ends: float
    count: int
    last: logging.LogRecord


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes the log to standard error, or to ``stream``.

    :param clock: seconds that never go back.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        format: str = "text",  # noqa: A002  # as the setting is called
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream)
        self.setFormatter(JSONFormatter() if format == "json" else LineFormatter())
        self._clock = clock
        self._windows: dict[tuple[str, str], _Window] = {}
        self._lost = 0
        self._is_torn = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless there were too many of its kind."""
        now = self._clock()
        self._end_windows(now)
        kind = (record.name, str(record.msg))
        window = self._windows.get(kind)
        if window is None:
            if len(self._windows) >= _MAX_KINDS:
                self._end_windows(now + WINDOW_SECONDS)
            window = self._windows[kind] = _Window(now + WINDOW_SECONDS, 0, record)
        window.count += 1
        window.last = record
        if window.count <= BURST:
            self._write(record)

    def close(self) -> None:
        """Write what was counted, and close."""
        self._end_windows(float("inf"))
        super().close()

    def _end_windows(self, now: float) -> None:
        """Forget the windows that are over; they stand in the order of their ends."""
        while self._windows:
            kind, window = next(iter(self._windows.items()))
            if window.ends > now:
                return
            del self._windows[kind]
            if window.count > BURST:
                self._write(_summary(window.last, window.count - BURST))

    def _write(self, record: logging.LogRecord) -> None:
        begin = 0
        try:
            text = self.format(record) + self.terminator
            if self._lost:
                text = self.format(_loss(self._lost)) + self.terminator + text
            if self._is_torn:
                text = self.terminator + text
            for begin in range(0, len(text), _PIECE):
                if not _has_room(self.stream):
                    raise BlockingIOError  # as a full disk would
                self.stream.write(text[begin : begin + _PIECE])
                self.flush()
            self._lost, self._is_torn = 0, False
        except OSError:
            self._lost += 1
            self._is_torn = self._is_torn or begin > 0
        except Exception:  # noqa: BLE001  # a record that cannot be formatted: logging's own way
            self.handleError(record)


def forget_output() -> None:
    """Let nothing be written to who reads standard output no more, as in ``... | head``."""
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())


def _has_room(stream: TextIO) -> bool:
    """Tell whether a piece can be written without waiting for who reads."""
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):  # it is in memory
        return True
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(0))


def _loss(lines: int) -> logging.LogRecord:
    """Return a record of those that could not be written."""
    text = "%d lines could not be written"
    return logging.LogRecord("syncserver.log", logging.WARNING, "", 0, text, (lines,), None)


def _summary(last: logging.LogRecord, left_out: int) -> logging.LogRecord:
    """Return a record for those that were left out, at the place of the last of them."""
    args = (left_out, WINDOW_SECONDS, str(last.msg))
    text = "%d more within %.0f s are not shown: %s"
    return logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, text, args, None)
