"""The log: one line for each record, and a bound on lines of one kind."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from syncserver.logs import BURST, WINDOW_SECONDS, LogHandler
from syncserver.registry import ServiceRegistry
from tests.support.calls import MemoryPeer
from tests.support.daemon import process


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


def test_a_pipe_that_nobody_reads_is_not_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        with os.fdopen(writing, "w", encoding="utf-8") as stream:
            handler = LogHandler(stream)
            record = functools.partial(logging.LogRecord, "syncserver.x", logging.INFO, "", 1)
            for number in range(300):
                handler.handle(record(f"kind {number} " + "x" * 10 * number, (), None))
            lost, before = handler._lost, os.read(reading, 1 << 20).decode().split("\n")
            assert lost
            assert sum("syncserver.x: kind" in line for line in before) == 300 - lost + bool(
                before[-1]
            )
            handler.handle(record("it is read again", (), None))
            lines = os.read(reading, 1 << 16).decode().strip("\n").split("\n")
        assert lines[0].endswith(f"WARNING syncserver.log: {lost} lines could not be written")
        assert lines[1].endswith("it is read again")
    finally:
        os.close(reading)


def test_a_full_disk_is_no_end() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        handler = LogHandler(stream)
        for _ in range(3):
            handler.handle(logging.LogRecord("syncserver.x", logging.INFO, "", 1, "x", (), None))
        assert handler._lost == 3
        null = os.open(os.devnull, os.O_WRONLY)  # so that what is left can be let go of
        os.dup2(null, stream.fileno())
        os.close(null)


def test_kinds_without_end_take_no_memory_without_end() -> None:
    log = Log()
    for number in range(5000):
        log.say(f"a kind of its own: {number}")
    assert len(log.take()) == 5000
    assert len(log.handler._windows) <= 1000


# JSON.


def as_json(text: str, *args: Any, exc_info: Any = None) -> dict[str, Any]:
    """Log one record and read it as a program would."""
    stream = io.StringIO()
    record = logging.LogRecord("syncserver.x", logging.INFO, "", 1, text, args, exc_info)
    LogHandler(stream, format="json").handle(record)
    (line,) = stream.getvalue().splitlines()
    fields: dict[str, Any] = json.loads(line)
    return fields


def test_a_record_may_be_a_json_object() -> None:
    fields = as_json("Refused %s\n", 'a "quoted"\u2028\x1b thing')
    assert fields.pop("time").endswith("Z")
    assert fields.pop("pid") > 0
    assert fields == {
        "level": "info",
        "logger": "syncserver.x",
        "message": 'Refused a "quoted"\u2028\x1b thing\n',
        "event": "Refused %s\n",
    }


def test_a_traceback_stands_in_its_object() -> None:
    try:
        raise ValueError("x")
    except ValueError:
        fields = as_json("Failed", exc_info=sys.exc_info())
    assert fields["exception"].startswith("Traceback")
    assert fields["exception"].endswith("ValueError: x")


async def test_lines_about_a_connection_name_it_and_another_has_another_name() -> None:
    registry = ServiceRegistry()
    one, two = MemoryPeer(registry).session, MemoryPeer(registry).session
    fields = as_json("No pong from %s", one)
    assert (fields["connection"], fields["remote"]) == (one.connection_id, "peer")
    assert fields["message"] == f"No pong from peer (connection {one.connection_id})"
    assert one.connection_id != two.connection_id


async def test_a_daemon_logs_as_its_settings_say(tmp_path: Path) -> None:
    environ = {
        "SYNCSERVER_LOG__FORMAT": "json",
        "SYNCSERVER_STATE_DIR": str(tmp_path / "state"),
        "SYNCSERVER_FRONTEND__PORT": "0",
        "SYNCSERVER_BACKEND__PORT": "0",
    }
    async with process("serve", environ=environ) as daemon:
        await daemon.started()
        daemon.child.send_signal(signal.SIGTERM)
        assert await daemon.ended() == 0
    first, last = (json.loads(line)["message"] for line in daemon.log.splitlines())
    assert first == "Draining; a second signal ends at once"
    assert last.startswith("Drained in ")
    environ["SYNCSERVER_LOG__LEVEL"] = "warning"
    async with process("serve", environ=environ) as daemon:
        await daemon.started()
        daemon.child.send_signal(signal.SIGTERM)
        assert await daemon.ended() == 0
    assert daemon.log == ""
