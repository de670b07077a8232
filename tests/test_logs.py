"""The log: one line for each record, and a bound on lines of one kind."""

from __future__ import annotations

import io
import logging

from syncserver.logs import BURST, WINDOW_SECONDS, LogHandler


class Log:
    """A handler over a text, and the time that it goes by."""

    def __init__(self) -> None:
        self.now = 0.0
        self.text = io.StringIO()
        self.handler = LogHandler(self.text, clock=lambda: self.now)

    def say(self, text: str, *args: object, name: str = "syncserver.x") -> None:
        record = logging.LogRecord(name, logging.INFO, "", 1, text, args, None)
        self.handler.handle(record)

    def take(self) -> list[str]:
        lines = self.text.getvalue().splitlines()
        self.text.seek(0)
        self.text.truncate()
        return [line.split(" ", 3)[3] for line in lines]


def test_no_more_than_a_burst_of_one_kind_is_written_and_the_rest_is_counted() -> None:
    log = Log()
    for number in range(BURST + 5):
        log.say("Refused %s", number)
    assert log.take() == [f"syncserver.x: Refused {number}" for number in range(BURST)]
    log.now = WINDOW_SECONDS
    log.say("Refused %s", "again")
    assert log.take() == [
        "syncserver.x: 5 more within 10 s are not shown: Refused %s",
        "syncserver.x: Refused again",
    ]


def test_other_kinds_are_written_meanwhile() -> None:
    log = Log()
    for _ in range(BURST + 1):
        log.say("Refused %s", "a")
    log.take()
    log.say("Something else")
    log.say("Refused %s", "b", name="syncserver.other")
    assert log.take() == ["syncserver.x: Something else", "syncserver.other: Refused b"]


def test_what_was_counted_is_written_at_the_end() -> None:
    log = Log()
    for _ in range(BURST + 1):
        log.say("Refused")
    log.take()
    log.handler.close()
    assert log.take() == ["syncserver.x: 1 more within 10 s are not shown: Refused"]


def test_kinds_without_end_take_no_memory_without_end() -> None:
    log = Log()
    for number in range(5000):
        log.say(f"a kind of its own: {number}")
    assert len(log.take()) == 5000
    assert len(log.handler._windows) <= 1000
