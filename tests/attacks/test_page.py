"""The page of attacks names a test for each, or why there is none; and what the code never does."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "attacks.rst"
LEAST = 100
# They are names, which tests use too; the gaps mean nothing.
NUMBERS = {*range(1, 55), *range(68, 87), *range(107, 132), *range(141, 151)}


def rows() -> dict[int, str]:
    """Return the rows of the page by number."""
    found = re.findall(r"(?ms)^   \* - (\d+)\n(.*?)(?=^   \* - |\n\n|\Z)", PAGE.read_text("utf-8"))
    return {int(number): text for number, text in found}


def test_every_attack_has_a_row() -> None:
    assert set(rows()) == NUMBERS


def test_every_attack_has_a_test_that_is_there_or_a_reason() -> None:
    sources = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "clients").rglob("test_*.py")]
    tests = "\n".join(path.read_text("utf-8") for path in sources)
    shown = {number: re.findall(r"``(test_\w+)``", text) for number, text in rows().items()}
    missing = [name for names in shown.values() for name in names if f"def {name}(" not in tests]
    assert missing == []
    assert len([names for names in shown.values() if names]) >= LEAST
    without = [number for number, names in shown.items() if not names]
    assert [number for number in without if "Not tested:" not in rows()[number]] == []


@functools.cache
def nodes() -> list[tuple[str, ast.AST]]:
    found = []
    for path in sorted((ROOT / "syncserver").rglob("*.py")):
        name = path.relative_to(ROOT / "syncserver").as_posix()
        found += [(name, node) for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    return found


def files(*places: str) -> set[str]:
    """Return the files at each of some places, folders or files; a place without any fails."""
    names = {name for name, _ in nodes()}
    found = {place: {name for name in names if name.startswith(place)} for place in places}
    assert all(found.values()), [place for place, there in found.items() if not there]
    return set().union(*found.values())


def importers(*wanted: str) -> set[str]:
    return {path for path, name in imports() if name in wanted}


def imports() -> Iterator[tuple[str, str]]:
    for path, node in nodes():
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from ((path, name) for name in names)


def test_the_daemon_asks_no_address_that_somebody_gave_it() -> None:
    clients = ("urllib.request", "http.client", "requests", "tornado.httpclient", "aiohttp")
    found = importers(*clients)
    assert all(path.startswith("commands/") for path in found), found


def test_nothing_that_runs_what_it_reads_is_used() -> None:
    assert not importers("pickle", "marshal", "shelve", "yaml", "subprocess")
    for path, node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), path


def test_no_pattern_of_a_client_is_run() -> None:
    matching = files("matching/", "filters.py", "dealers/", "rowsync/views.py")
    assert matching & importers("re", "fnmatch") == set()


def test_a_rule_for_a_place_that_is_not_there_fails() -> None:
    with pytest.raises(AssertionError, match=r"views\.py"):
        files("filters.py", "views.py")


def test_no_timer_goes_by_the_clock_on_the_wall() -> None:
    """Only the end of a key and what is shown do, and SQLite once, at its start."""
    clock = re.compile(r"\btime\.time\(|datetime\.now\(|time_ns\(")
    found = {
        path.relative_to(ROOT / "syncserver").as_posix()
        for path in (ROOT / "syncserver").rglob("*.py")
        if clock.search(path.read_text("utf-8"))
    }
    assert found == files(
        "apikeys.py", "commands/doctor.py", "engines/sqlite.py", "handlers/sockjs_http.py"
    )
