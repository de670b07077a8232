"""The table of what was tried, at the end of a run."""

from __future__ import annotations

import pytest

from tests.fuzz.running import COUNTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNTS:
        terminalreporter.section("fuzzed inputs")
        for name, (count, seconds) in sorted(COUNTS.items()):
            terminalreporter.write_line(f"{name:12}{count:9,}{seconds:8.1f} s")
        total = sum(count for count, _ in COUNTS.values())
        terminalreporter.write_line(f"{'all':12}{total:9,}")
