"""All tests are in one part of the run, and one part that fails makes the run fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import run_tests
from tools.run_tests import PARTS, ROOT, Part, Skipped


def saying(text: str, code: int = 0) -> Part:
    program = f"print({text!r}); raise SystemExit({code})"
    return Part(text, lambda part: part.run(sys.executable, "-c", program))


def test_what_the_parts_name_is_there_and_in_no_other_part() -> None:
    paths = [ROOT / path for part in PARTS.values() for path in part]
    assert [path for path in paths if not path.exists()] == []
    for path in paths:
        assert not [other for other in paths if other is not path and path.is_relative_to(other)]


def test_others_are_all_that_the_parts_do_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: dict[str, list[str]] = {}

    def run(part: Part, *command: str, cwd: Path = ROOT) -> bool:
        ran[part.name] = list(command[len(run_tests.PYTEST) :])
        return True

    monkeypatch.setattr(Part, "run", run)
    for part in run_tests.parts():
        if part.name != "javascript":
            part.go()
    named = [path for name, paths in ran.items() if name != "others" for path in paths]
    assert ran["others"] == [f"--ignore={path}" for path in named]


def test_all_parts_run_and_one_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_tests.py"])
    monkeypatch.setattr(run_tests, "parts", lambda: [saying("bad", 3), saying("good")])
    assert run_tests.main() == 1
    *said, bad, good, verdict = capfd.readouterr().out.splitlines()
    assert sorted(said) == ["", "bad         bad", "good        good"]
    assert (bad.endswith("s  FAILED"), good.endswith("s  passed")) == (True, True)
    assert verdict == "not all is well"


@pytest.mark.parametrize(("in_ci", "code"), [(True, 1), (False, 0)])
def test_a_part_that_cannot_run_is_a_failure_in_ci(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], in_ci: bool, code: int
) -> None:
    def test(part: Part) -> bool:
        raise Skipped("needs what is not here")

    monkeypatch.setattr(sys, "argv", ["run_tests.py"])
    monkeypatch.setattr(run_tests, "IN_CI", in_ci)
    monkeypatch.setattr(run_tests, "parts", lambda: [Part("one", test)])
    assert run_tests.main() == code
    assert "skipped: needs what is not here" in capfd.readouterr().out
