"""The benchmark measures what it says."""

from __future__ import annotations

import contextlib

from bench.engines import Measured, node, rate, report


def test_the_report_has_medians_and_their_ratios_to_the_first_engine() -> None:
    results = {
        "memory": Measured(single=[10, 1000, 20], batched=[100, 200, 300]),
        "other": Measured(single=[5, 10, 2000], batched=[50, 50, 1]),
    }
    _, memory, other = report(results).splitlines()
    assert memory.split() == ["memory", "20", "(1.00x)", "200", "(1.00x)"]
    assert other.split() == ["other", "10", "(0.50x)", "50", "(0.25x)"]


async def test_a_rate_is_of_deltas_that_reached_every_node() -> None:
    async with contextlib.AsyncExitStack() as held:
        nodes = [await held.enter_async_context(node("memory"))]
        assert await rate(nodes, 10, 0.2) > 0
        assert nodes[0].counted
        assert not nodes[0].counted % 10
