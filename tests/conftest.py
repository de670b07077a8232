"""What every test gets: a log in which nothing unannounced stands, and a loop for ``async def``.

A WARNING or worse of syncserver, Tornado or asyncio fails the test unless it was announced::

    with expected_log("syncserver.rpc", "Invalid params"):
        ...

An ``async def test_...`` runs on an asyncio loop of its own, for at most 30 seconds
(``@pytest.mark.seconds(90)`` allows more), and fails when it leaves a task behind.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import os
import re
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support import leaks

LINE = logging.Formatter("%(levelname)s %(name)s: %(message)s")
GUARDED = ("syncserver", "tornado", "asyncio")
LISTENED = ("syncserver", "syncserver_client", "tornado")
SECONDS = 30
LEAK_GRACE_SECONDS = 0.5

ExpectedLog = Callable[..., AbstractContextManager[None]]


def pytest_configure(config: pytest.Config) -> None:
    leaks.install()
    # What a shell starts with & has SIGINT ignored, and so had all that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "seconds(n): let an async test run for n seconds, not 30")
    config.addinivalue_line("markers", "core: pure code below the sessions; all in seconds")
    settings.register_profile("quick", max_examples=15, deadline=None)
    settings.register_profile("thorough", max_examples=100, deadline=None)
    profile = "thorough" if os.environ.get("CI") == "true" else "quick"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", profile))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m core`` read no file that has nothing of it: that takes longer than its tests."""
    if config.option.markexpr != "core" or not collection_path.name.startswith("test_"):
        return None
    return "mark.core" not in collection_path.read_text("utf-8") or None


def pytest_collection_finish() -> None:
    """Leave what was imported out of every ``gc.collect()`` of a test: it took 0.3 seconds."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CI=true nothing may be skipped: what a test needs is there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("\nskipped, which is a failure with CI=true", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class Announcement:
    """A log line that a test says will come."""

    def __init__(self, logger: str, pattern: str, *, certain: bool) -> None:
        self.logger = logger
        self.pattern = re.compile(pattern)
        self.seen = not certain

    def matches(self, record: logging.LogRecord) -> bool:
        named = record.name == self.logger or record.name.startswith(self.logger + ".")
        return named and self.pattern.search(record.getMessage()) is not None


class LogGuard(logging.Handler):
    """Keeps the records that nobody announced."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.announced: list[Announcement] = []
        self.unannounced: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # Every announcement that matches has come true: two may be open for one line.
        matching = [one for one in self.announced if one.matches(record)]
        for one in matching:
            one.seen = True
        if not matching:
            self.unannounced.append(LINE.format(record))

    @contextmanager
    def expect(self, logger: str, pattern: str = "", *, certain: bool = True) -> Iterator[None]:
        """Announce a record of this logger, or one below it, whose text has the pattern.

        One that is not certain may come, as where it depends on how fast the machine is.
        """
        announcement = Announcement(logger, pattern, certain=certain)
        self.announced.append(announcement)
        try:
            yield
        finally:
            self.announced.remove(announcement)
        if not announcement.seen:
            pytest.fail(f"the log line {pattern!r} of {logger} did not come")


@pytest.fixture(autouse=True)
def log_guard() -> Iterator[LogGuard]:
    """Fail a test that leaves an unannounced warning in the log."""
    guard = LogGuard()
    for name in GUARDED:
        logging.getLogger(name).addHandler(guard)
    try:
        yield guard
    finally:
        for name in GUARDED:
            logging.getLogger(name).removeHandler(guard)
    if guard.unannounced:
        pytest.fail("unannounced in the log:\n" + "\n".join(guard.unannounced), pytrace=False)


@pytest.fixture(autouse=True)
def leak_guard() -> Iterator[leaks.Noted]:
    """Fail a test whose log, at level debug, holds a key or a token that any test made."""
    listener = leaks.Listener(leaks.NOTED)
    before = {name: logging.getLogger(name).level for name in LISTENED}
    for name in LISTENED:
        logging.getLogger(name).addHandler(listener)
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield leaks.NOTED
    finally:
        for name, level in before.items():
            logging.getLogger(name).removeHandler(listener)
            logging.getLogger(name).setLevel(level)
    if found := leaks.NOTED.leaks():
        pytest.fail("a key or token in the log:\n" + "\n".join(found), pytrace=False)


@pytest.fixture
def expected_log(log_guard: LogGuard) -> ExpectedLog:
    """Return the context manager that announces a log line: ``(logger, pattern)``."""
    return log_guard.expect


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run ``async def`` tests; hypothesis calls its own inside, one loop for each example."""
    marker = pyfuncitem.get_closest_marker("seconds")
    seconds = marker.args[0] if marker else SECONDS
    given = getattr(pyfuncitem.obj, "hypothesis", None)
    if given is not None and inspect.iscoroutinefunction(given.inner_test):
        given.inner_test = _on_a_loop(given.inner_test, seconds)
        return None
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    test = _on_a_loop(pyfuncitem.obj, seconds)
    test(**{name: pyfuncitem.funcargs[name] for name in names})
    return True


def _on_a_loop(
    test: Callable[..., Coroutine[Any, Any, None]], seconds: float
) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(debug=False) as runner:
            runner.run(_bounded(test(*args, **kwargs), seconds))
        gc.collect(1)  # an exception that nobody fetched is logged now, in the test that lost it

    return run


async def _bounded(test: Coroutine[Any, Any, None], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        await test
    leaked = asyncio.all_tasks() - {asyncio.current_task()}
    if leaked:  # what is just ending may end
        _, leaked = await asyncio.wait(leaked, timeout=LEAK_GRACE_SECONDS)
    if leaked:
        pytest.fail("tasks left behind:\n" + "\n".join(map(repr, leaked)), pytrace=False)
