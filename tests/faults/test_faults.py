"""Nodes, stores and networks fail at random, and no page is left with a hole.

A short run each time. ``SYNCSERVER_FAULTS=500 pytest -s -o faulthandler_timeout=0 tests/faults``
makes a long one, with ``SYNCSERVER_FAULTS_SEED`` as its seed; the history of a run that failed is
in its folder. Nodes run what is in the checkout as they start: do not edit it meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.nemesis import EVERYTHING, NODES
from tests.faults.running import REST_SECONDS, Report, run

MANY = int(os.environ.get("SYNCSERVER_FAULTS", "0"))
SEED = int(os.environ.get("SYNCSERVER_FAULTS_SEED", "1"))
SHORT_SECONDS = 90
LONG_SECONDS = max(SHORT_SECONDS, 4 * MANY)

SNAPSHOTS = {"older snapshot": 1}


def check(report: Report) -> None:
    """Show what happened, and fail with what was wrong."""
    print(f"\n{report}")
    assert not report.wrong, str(report)
    assert not report.logged, str(report)


@pytest.mark.seconds(LONG_SECONDS)
async def test_whatever_fails_around_redis_no_page_has_a_hole_and_none_is_left_out(
    tmp_path: Path,
) -> None:
    report = await run(tmp_path, "redis", nodes=3, faults=MANY or 16, seed=SEED, kinds=EVERYTHING)
    check(report)


@pytest.mark.seconds(LONG_SECONDS)
async def test_whenever_a_node_on_a_file_is_killed_no_page_has_a_hole_or_fetches_again(
    tmp_path: Path,
) -> None:
    report = await run(tmp_path, "sqlite", nodes=1, faults=MANY or 10, seed=SEED, kinds=NODES)
    check(report)
    assert not [event for event in report.history if event["type"] == "told"]


@pytest.mark.seconds(SHORT_SECONDS)
async def test_a_store_that_goes_back_leaves_no_page_with_a_hole(tmp_path: Path) -> None:
    check(await back(tmp_path, "syncserver", REST_SECONDS))


@pytest.mark.seconds(SHORT_SECONDS)
async def test_a_server_that_does_not_check_the_marks_is_found_out(tmp_path: Path) -> None:
    """A store that goes back is noticed by its marks alone: without them there are holes.

    A page with a hole never rests, so it is given less time to.
    """
    report = await back(tmp_path, "tests.faults.mutant", REST_SECONDS / 4)
    assert any("did not see" in line for line in report.wrong)


async def back(folder: Path, module: str, rest_seconds: float) -> Report:
    """Set the store of two nodes back three times."""
    return await run(
        folder,
        "redis",
        nodes=2,
        faults=3,
        seed=1,
        kinds=SNAPSHOTS,
        pages=12,
        module=module,
        rest_seconds=rest_seconds,
    )
