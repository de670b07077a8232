"""The processes that share a port: who has a session, and who still has somebody to tell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from syncserver.siblings import Siblings
from tests.support.daemon import ROOT

HOLDER = """
import sys
from syncserver.siblings import Siblings

own = Siblings(sys.argv[1], 1, 2)
own.open()
own.begin_telling()
print("telling", flush=True)
sys.stdin.read()
"""


@contextmanager
def several(folder: Path, count: int) -> Iterator[list[Siblings]]:
    """Give so many that are open; each has a descriptor of its own, as in processes."""
    with ExitStack() as stack:
        found = [Siblings(folder, number, count) for number in range(count)]
        for one in found:
            stack.enter_context(closing(one)).open()
        yield found


def test_sessions_are_spread_over_all_processes() -> None:
    siblings = Siblings("/nowhere", 0, 8)
    counts = [0] * 8
    for number in range(8000):
        counts[siblings.owner(f"session-{number}")] += 1
    assert min(counts) > 800


def test_all_have_told_when_the_last_one_has(tmp_path: Path) -> None:
    with several(tmp_path, 3) as (first, second, third):
        for one in (first, second, third):
            one.begin_telling()
        first.told()
        assert not first.all_told()
        third.told()
        assert not any(one.all_told() for one in (first, third))
        second.told()
        assert all(one.all_told() for one in (first, second, third))


def test_who_does_not_end_is_not_waited_for(tmp_path: Path) -> None:
    with several(tmp_path, 2) as (first, _):
        first.begin_telling()
        first.told()
        assert first.all_told()


def test_who_falls_is_not_waited_for(tmp_path: Path) -> None:
    with several(tmp_path, 1) as (first,):
        program = [sys.executable, "-c", HOLDER, str(tmp_path)]
        with subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"telling\n"
            assert not first.all_told()
            other.kill()
        assert first.all_told()
