from __future__ import annotations

import asyncio

from syncserver.tasks import Tasks
from tests.conftest import ExpectedLog
from tests.support.calls import turns


async def test_a_task_that_fails_is_told_to_the_log_and_forgotten(
    expected_log: ExpectedLog,
) -> None:
    async def fail() -> None:
        raise LookupError

    tasks = Tasks("the test")
    tasks.spawn(fail())
    with expected_log("syncserver.tasks", "A task of the test failed"):
        await turns()
    assert not tasks._running


async def test_closing_cancels_what_goes_on() -> None:
    cancelled = asyncio.Event()

    async def go_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    tasks = Tasks("the test")
    tasks.spawn(go_on())
    await turns()
    tasks.close()
    await cancelled.wait()
    await turns()
    assert not tasks._running
