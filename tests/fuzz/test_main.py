"""The fuzz that runs for as long as is wanted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from syncserver import configtoml, position, strict_json
from syncserver.handlers import frames, sockjs_framing
from syncserver.protocols import rohrpost
from tests.fuzz import __main__ as fuzz
from tests.fuzz import target as targets
from tests.fuzz.target import Failure, Target, run

ROOT = Path(__file__).parents[2]


def test_it_tries_a_target_for_a_while_and_says_how_many_inputs_it_were() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", "0.3", "--target", "deltas"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f".{os.pathsep}clients/python"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("seed ")
    assert run.stdout.endswith(" inputs, 0 kinds of failure\n")


def test_what_fails_is_made_small_kept_once_and_ends_it_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(data: bytes) -> None:
        if b"!" in data:
            raise KeyError("bang")

    made = Target("made", [], lambda rng: b"some ! input", check, 10)
    monkeypatch.setattr(targets, "CORPUS", tmp_path)
    monkeypatch.setattr(fuzz, "TARGETS", {"made": made})
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seconds", "0.1", "--target", "made"])
    assert fuzz.main() == 1
    assert json.loads((tmp_path / "made.json").read_text("utf-8")) == [
        {"input": "!", "was": "KeyError: 'bang'"}
    ]
    assert "1 kinds of failure" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "name", "fault", "target"),
    [
        (position, "_TEXT", re.compile(r"(.*)\.(\d+)\.(.*)"), "positions"),
        (strict_json, "_check_size", lambda skeleton: None, "json"),
        (strict_json, "_check_integers", lambda value: None, "json"),
        (rohrpost, "_pong", lambda data, asked: {"data": data}, "rohrpost"),
        (configtoml, "_MAX_DEPTH", 10_000, "config"),
        (frames, "_unmasked", lambda mask, payload: bytes(payload), "frames"),
        (sockjs_framing, "_quoted", lambda text: b'"x"', "sockjs"),
    ],
)
def test_a_fault_is_found_in_a_few_thousand_inputs(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fault: Any, target: str
) -> None:
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(Failure):
        run(fuzz.TARGETS[target], Random(1), 4_000)
