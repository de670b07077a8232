"""The look for keys and tokens in logs: it finds what is there, in whatever form it was logged."""

from __future__ import annotations

import logging

from syncserver.apikeys import ApiKey
from tests.support.daemon import serving
from tests.support.leaks import NOTED, Listener, Noted

TOKEN = "q1w2e3r4t5z6u7i8o9p0a1s2d3f4g5h6"
KEY = "a-Key_that.is-long-enough-for-use"


def noted() -> Noted:
    made = Noted()
    made.note(TOKEN)
    made.note(KEY)
    return made


def test_a_key_or_token_in_a_line_is_found_and_the_lines_are_forgotten() -> None:
    made = noted()
    made.hear(f"first\nsecond {TOKEN}!\nx{TOKEN}y\n{KEY}")
    assert made.leaks() == [f"second {TOKEN}!", f"x{TOKEN}y", KEY]
    assert made.leaks() == []


def test_what_is_no_key_is_let_be() -> None:
    made = noted()
    made.note("swordfish")
    made.note(None)
    made.note("1" * 40)
    made.hear(f"swordfish {TOKEN[1:]} {KEY[:-1]} {TOKEN.upper()} {'1' * 50}")
    assert made.leaks() == []


def test_a_traceback_is_looked_through_too() -> None:
    made = noted()
    listener = Listener(made)
    try:
        raise ValueError(TOKEN)
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
        listener.handle(logging.LogRecord("x", logging.ERROR, "", 1, "failed", (), info))
    listener.handle(logging.LogRecord("x", logging.DEBUG, "", 1, "with %s", (TOKEN,), None))
    assert made.leaks() == [f"ValueError: {TOKEN}", f"with {TOKEN}"]


async def test_what_a_daemon_makes_and_reads_is_noted() -> None:
    ApiKey.of(KEY)
    async with serving() as daemon:
        token = await daemon.authorize(("AllTasks", None))
    NOTED.hear(f"{token}\n{KEY}")
    assert NOTED.leaks() == [token, KEY]
