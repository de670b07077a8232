"""The wheel calls back in time, whatever its callbacks do, and rests when it has nothing to do."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from syncserver.timers import Alarm, Wheel
from tests.conftest import ExpectedLog
from tests.support.virtual import on_virtual_time

TICK = 0.5
JITTER = 1e-6


def now() -> float:
    return asyncio.get_running_loop().time()


def timers() -> int:
    """Return how many timers the loop has, of which none is the test's own."""
    handles = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return sum(not handle.cancelled() for handle in handles)


@pytest.fixture
def rung() -> list[tuple[str, float]]:
    return []


def ringer(rung: list[tuple[str, float]], name: str) -> Callable[[], None]:
    return lambda: rung.append((name, now()))


@pytest.mark.parametrize("offset", [0.0, 0.1, 0.3, 0.49])
@on_virtual_time
async def test_an_alarm_rings_after_its_time_and_at_most_a_tick_later(offset: float) -> None:
    wheel, late = Wheel(TICK), dict[float, float]()
    wheel.call_later(100, lambda: None)  # so that the wheel turns already
    await asyncio.sleep(offset)

    def set_alarm(seconds: float) -> None:
        due = now() + seconds
        wheel.call_later(seconds, lambda: late.update({seconds: now() - due}))

    waits = (0.0, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0, 1.3, 7.9, 25.0)
    for seconds in waits:
        set_alarm(seconds)
    await asyncio.sleep(30)
    assert sorted(late) == sorted(waits)
    assert [seconds for seconds in late if not -JITTER <= late[seconds] <= TICK + JITTER] == []
    wheel.close()


@on_virtual_time
async def test_the_first_alarm_of_a_resting_wheel_is_exact_too() -> None:
    wheel, at = Wheel(TICK), list[float]()
    for seconds in (0.75, 0.25):
        start = now()
        wheel.call_later(seconds, lambda start=start: at.append(now() - start))
        await asyncio.sleep(10.1)
    assert 0.75 - JITTER <= at[0] <= 1.25 + JITTER
    assert 0.25 - JITTER <= at[1] <= 0.75 + JITTER
    assert timers() <= 1


@on_virtual_time
async def test_alarms_ring_in_the_order_of_their_times_and_then_of_their_setting(
    rung: list[tuple[str, float]],
) -> None:
    wheel = Wheel(TICK)
    for name, seconds in (("c", 3.0), ("a", 1.0), ("d", 3.0), ("b", 1.0)):
        wheel.call_later(seconds, ringer(rung, name))
    await asyncio.sleep(10)
    assert [name for name, _ in rung] == ["a", "b", "c", "d"]


@on_virtual_time
async def test_a_cancelled_alarm_does_not_ring(rung: list[tuple[str, float]]) -> None:
    wheel = Wheel(TICK)
    first, second = (wheel.call_later(1, ringer(rung, name)) for name in ("first", "second"))
    first.cancel()
    await asyncio.sleep(5)
    assert [name for name, _ in rung] == ["second"]
    second.cancel()
    second.ring()
    assert len(rung) == 1


@on_virtual_time
async def test_an_alarm_may_cancel_another_of_its_own_tick(rung: list[tuple[str, float]]) -> None:
    wheel, alarms = Wheel(TICK), list[Alarm]()

    def cancel_all() -> None:
        for alarm in alarms:
            alarm.cancel()

    wheel.call_later(1, cancel_all)
    alarms.append(wheel.call_later(1, ringer(rung, "cancelled")))
    await asyncio.sleep(5)
    assert rung == []


@on_virtual_time
async def test_an_alarm_that_sets_itself_again_rings_at_a_steady_pace(
    rung: list[tuple[str, float]],
) -> None:
    wheel = Wheel(TICK)

    def ping() -> None:
        rung.append(("ping", now()))
        if len(rung) < 20:
            wheel.call_later(2.0, ping)

    for _ in range(3):
        wheel.call_later(2.0, lambda: None)
    wheel.call_later(2.0, ping)
    await asyncio.sleep(100)
    times = [at for _, at in rung]
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) == 20
    assert min(steps) >= 2.0 - JITTER
    assert max(steps) <= 2.0 + TICK + JITTER


@on_virtual_time
async def test_one_timer_serves_all_alarms_and_none_runs_without_them() -> None:
    wheel = Wheel(TICK)
    before = timers()

    def again() -> None:
        wheel.call_later(1, lambda: None)

    for number in range(1_000):
        wheel.call_later(number % 7, again)
    for _ in range(7):
        assert timers() == before + 1
        await asyncio.sleep(1)
    await asyncio.sleep(5)
    assert timers() == before


@on_virtual_time
async def test_an_alarm_that_raises_is_logged_and_the_others_ring(
    rung: list[tuple[str, float]], expected_log: ExpectedLog
) -> None:
    wheel = Wheel(TICK)
    wheel.call_later(1, ringer(rung, "before"))
    wheel.call_later(1, [].pop)  # type: ignore[arg-type]
    wheel.call_later(1, ringer(rung, "after"))
    wheel.call_later(3, ringer(rung, "later"))
    with expected_log("syncserver.timers", "An alarm failed"):
        await asyncio.sleep(10)
    assert [name for name, _ in rung] == ["before", "after", "later"]


@on_virtual_time
async def test_a_closed_wheel_forgets_its_alarms_and_may_be_used_again(
    rung: list[tuple[str, float]],
) -> None:
    wheel = Wheel(TICK)
    before = timers()
    wheel.call_later(1, wheel.close)
    wheel.call_later(2, ringer(rung, "forgotten"))
    await asyncio.sleep(5)
    assert rung == []
    assert timers() == before
    wheel.call_later(1, ringer(rung, "new"))
    await asyncio.sleep(5)
    assert [name for name, _ in rung] == ["new"]
