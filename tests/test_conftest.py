"""The guard of the log and the runner of async tests are tested from outside, by a pytest run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

INNER = """
import asyncio
import logging

import pytest
from hypothesis import given, settings, strategies as st

from syncserver.apikeys import ApiKey

log = logging.getLogger("syncserver.rpc")


def test_quiet():
    log.info("nothing to see")
    logging.getLogger("elsewhere").error("not ours")


def test_unannounced_warning():
    log.warning("surprise")


def test_announced(expected_log):
    with expected_log("syncserver.rpc", "Invalid .arams"):
        log.warning("Invalid params in %s", "calc")


def test_announced_by_its_parent(expected_log):
    with expected_log("tornado"):
        logging.getLogger("tornado.access").error("500")


def test_announced_as_uncertain(expected_log):
    with expected_log("syncserver.rpc", "never comes", certain=False):
        pass
    with expected_log("syncserver.rpc", "comes", certain=False):
        log.warning("comes")


def test_announced_for_another_logger(expected_log):
    with expected_log("syncserver.rpcs", "surprise"):
        log.warning("surprise")


def test_announced_but_absent(expected_log):
    with expected_log("syncserver.rpc", "never comes"):
        pass


def test_failure_inside_an_announcement_is_not_hidden(expected_log):
    with expected_log("syncserver.rpc", "never comes"):
        raise ValueError("the real one")


async def test_async_runs(tmp_path):
    await asyncio.sleep(0)
    assert tmp_path.exists()
    assert not asyncio.get_running_loop().get_debug()


async def test_async_fails():
    await asyncio.sleep(0)
    assert False


class TestMethod:
    @pytest.mark.parametrize("one", [1])
    async def test_async_method_runs(self, one):
        assert one == 1


async def test_ending_task_is_no_leak():
    asyncio.create_task(asyncio.sleep(0.01))


async def test_leaked_task():
    asyncio.create_task(asyncio.Event().wait(), name="forgotten")


@pytest.mark.seconds(0.05)
async def test_too_long():
    await asyncio.Event().wait()


async def test_lost_exception():
    async def lose():
        raise RuntimeError("lost")

    asyncio.create_task(lose())
    await asyncio.sleep(0.01)


ran = []


def test_leaking_key():
    key = ApiKey.of("a-Key_that.is-long-enough-for-use")
    logging.getLogger("syncserver.x").debug("took %s", key.secret.reveal().decode())


@settings(max_examples=3)
@given(number=st.integers())
async def test_law(number):
    await asyncio.sleep(0)
    ran.append(number)


def test_law_ran():
    assert ran
"""

PASS = (
    "test_quiet",
    "test_announced",
    "test_announced_by_its_parent",
    "test_announced_as_uncertain",
    "test_async_runs",
    "test_async_method_runs",
    "test_ending_task_is_no_leak",
    "test_law",
    "test_law_ran",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run INNER in a process of its own, since the loggers of this one are guarded."""
    folder = tmp_path_factory.mktemp("inner")
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_inner.py").write_text(INNER, "utf-8")
    command = [sys.executable, "-m", "pytest", "-rA", "--tb=short", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return run.stdout


@pytest.mark.parametrize("name", PASS)
def test_what_is_in_order_passes(report: str, name: str) -> None:
    assert re.search(rf"^PASSED .*::{name}(\[.*)?$", report, re.MULTILINE)


@pytest.mark.parametrize(
    ("outcome", "name", "why"),
    [
        ("ERROR", "test_unannounced_warning", "WARNING syncserver.rpc: surprise"),
        ("ERROR", "test_announced_for_another_logger", "WARNING syncserver.rpc: surprise"),
        ("FAILED", "test_announced_for_another_logger", "'surprise' of syncserver.rpcs did not"),
        ("FAILED", "test_announced_but_absent", "'never comes' of syncserver.rpc did not come"),
        ("FAILED", "test_failure_inside_an_announcement_is_not_hidden", "the real one"),
        ("FAILED", "test_async_fails", "assert False"),
        ("FAILED", "test_leaked_task", "name='forgotten'"),
        ("FAILED", "test_too_long", "TimeoutError"),
        ("ERROR", "test_leaking_key", "took a-Key_that.is-long-enough-for-use"),
        ("ERROR", "test_lost_exception", "Task exception was never retrieved"),
    ],
)
def test_what_is_not_fails_and_says_why(report: str, outcome: str, name: str, why: str) -> None:
    assert re.search(rf"^{outcome} .*::{name}( .*)?$", report, re.MULTILINE)
    assert why in report


def test_with_ci_a_skipped_test_fails_the_run(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_inner.py").write_text(
        "import pytest\ndef test_fine(): pass\ndef test_skipped(): pytest.skip('no browser')\n",
        "utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]

    def exit_code(**environment: str) -> int:
        kept = {name: value for name, value in os.environ.items() if name != "CI"}
        kept["PYTHONPATH"] = str(ROOT)
        return subprocess.run(
            command, cwd=tmp_path, env=kept | environment, capture_output=True, check=False
        ).returncode

    assert exit_code() == pytest.ExitCode.OK
    assert exit_code(CI="true") == pytest.ExitCode.TESTS_FAILED
