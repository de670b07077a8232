"""A crowd that idles and peers that stop reading are in nobody's way (``bench.crowd``, small)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import pytest

from bench import crowd, load
from bench.build import Missing

IDLE, STALLED = 200, 20


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Sequence[crowd.Stage]:
    start, _ = load.command(tmp_path_factory.mktemp("built"))
    return list(crowd.measure(IDLE, STALLED, start=start, posts=30))


def test_the_canary_gets_every_delta_once_whoever_else_is_there(
    stages: Sequence[crowd.Stage],
) -> None:
    assert [one.name for one in stages] == ["alone", "idle crowd", "stall", "after"]
    for one in stages:
        assert one.arrived == one.sent >= 30
        assert (one.lost, one.repeated) == (0, 0)


def test_who_stops_reading_is_closed_with_4008_and_nobody_else(
    stages: Sequence[crowd.Stage],
) -> None:
    assert [one.slow_closes for one in stages] == [0, 0, STALLED, STALLED]


def test_a_stage_is_told_in_a_row_and_as_json(stages: Sequence[crowd.Stage]) -> None:
    *rows, verdict = crowd.table(stages).splitlines()
    assert [row.split("  ")[0] for row in rows[1:]] == [one.name for one in stages]
    assert verdict == "of the canary's deltas 0 were lost, 0 repeated"
    assert json.loads(json.dumps([asdict(one) for one in stages]))[2]["slow_closes"] == STALLED


def test_a_crowd_that_the_machine_has_no_files_for_is_refused_with_what_to_do() -> None:
    with pytest.raises(Missing, match="ulimit -Hn"):
        crowd.make_room(sys.maxsize // 4)
