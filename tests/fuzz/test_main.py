"""The fuzz that runs for as long as is wanted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import strategies as st

from syncserver import filters, position, strict_json
from syncserver.configuration import toml as configtoml
from syncserver.handlers import connection, frames, sockjs_framing
from syncserver.protocols import rohrpost
from tests.fuzz import __main__ as fuzz
from tests.fuzz import target as targets
from tests.fuzz.grammar import VALUES
from tests.fuzz.mutation import json_like
from tests.fuzz.target import Failure, Source, Target, run

ROOT = Path(__file__).parents[2]
_peer_closes = connection.Connection._peer_closes


def _without_a_code(self: connection.Connection, code: int | None) -> None:
    _peer_closes(self, None)


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

    source = Source("made", [b"some ! input"], st.just(b""), lambda rng, pool: b"!")
    monkeypatch.setattr(targets, "CORPUS", tmp_path)
    monkeypatch.setattr(fuzz, "TARGETS", {"made": Target(source, check, 10)})
    monkeypatch.setattr(fuzz, "SOURCES", {"made": source})
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seconds", "0.1", "--target", "made"])
    assert fuzz.main() == 1
    [kept] = (tmp_path / "made").iterdir()
    assert kept.read_bytes() == b"!"
    assert kept.name.startswith("keyerror-bang-")
    assert "1 kinds of failure" in capsys.readouterr().out


def test_a_life_that_goes_wrong_is_told_step_by_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.support.life.Life.narrowed", lambda *_: ["never sent"])
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seconds", "0.1", "--target", "lives"])
    assert fuzz.main() == 1
    told = capsys.readouterr().out
    assert "FAILED lives: AssertionError" in told
    assert "state.begin(" in told


def test_the_printed_seed_gives_the_same_inputs_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[bytes]] = []

    def check(data: bytes) -> None:
        seen[-1].append(data)

    source = Source("made", [b"seed"], VALUES.map(str.encode), json_like())
    monkeypatch.setattr(fuzz, "TARGETS", {"made": Target(source, check, 10)})
    monkeypatch.setattr(fuzz, "SOURCES", {"made": source})
    arguments = ["fuzz", "--seconds", "0.3", "--target", "made"]
    for more in ([], ["--seed"]):
        if more:
            more.append(capsys.readouterr().out.split()[1].rstrip(";"))
        monkeypatch.setattr(sys, "argv", arguments + more)
        seen.append([])
        assert fuzz.main() == 0
    shorter = min(map(len, seen))
    assert shorter > 1
    assert seen[0][:shorter] == seen[1][:shorter]


@pytest.mark.parametrize(
    ("module", "name", "fault", "target"),
    [
        (position, "_TEXT", re.compile(r"(.*)\.(\d+)\.(.*)"), "positions"),
        (strict_json, "_check_size", lambda skeleton: None, "json"),
        (strict_json, "_check_integers", lambda value: None, "json"),
        (rohrpost, "_pong", lambda data, asked: {"data": data}, "rohrpost"),
        (configtoml, "_MAX_DEPTH", 10_000, "config"),
        (frames, "_unmasked", lambda mask, payload: bytes(payload), "frames"),
        (frames, "_BEFORE_SURROGATES", 0, "frames"),
        (frames, "_PIECES", 1_023, "frames"),
        (connection.Connection, "_peer_closes", _without_a_code, "connection"),
        (strict_json, "MAX_INTEGER", 2**53, "json"),
        (filters, "_LOGIC", {"and": "", "or": ""}, "filters"),
        (sockjs_framing, "_quoted", lambda text: b'"x"', "sockjs"),
    ],
)
def test_a_fault_is_found_in_a_few_thousand_inputs(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fault: Any, target: str
) -> None:
    monkeypatch.setattr(module, name, fault)
    monkeypatch.setattr(targets, "_SMALLER_SECONDS", 0.0)
    with pytest.raises(Failure):
        run(fuzz.TARGETS[target], Random(1), 4_000)
