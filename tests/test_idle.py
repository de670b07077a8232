"""The run that has idle connections says what is not as it should be."""

from __future__ import annotations

import pytest

from tests import idle
from tests.support.fronts import needs


async def test_a_connection_that_is_open_though_it_should_be_cut_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for program in ("nginx", "caddy", "curl"):
        needs(program)
    assert await idle.run(idle_seconds=0) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "10 connections are idle for 0 s"
    assert said[-2].startswith("FAILED: a WebSocket without pings through nginx was cut")
    assert said[-1] == "9 passed, 1 failed"
