from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syncserver.matching.cells import cell_of, cells_around

pytestmark = pytest.mark.core

NUMBERS = st.integers() | st.floats(allow_nan=False) | st.integers(-9, 9)
TEXTS = st.text() | st.text("ab\x00\ud800\U0010ffff", max_size=40)


@given(st.lists(NUMBERS, min_size=3, max_size=3) | st.lists(TEXTS, min_size=3, max_size=3))
@example([-0.0, 0, 0.0])
@example([-(10**400), 1, 10**400])
@example([-1, -0.5, 0.5])
def test_a_point_lies_in_the_cell_of_every_interval_that_holds_it(ends: list[Any]) -> None:
    low, point, high = sorted(ends)
    assert cell_of(low, high) in cells_around(point)


@pytest.mark.parametrize("point", [0, 1.5, -7, "", "2024-05-01", "é" * 100])
def test_a_point_lies_in_few_cells(point: Any) -> None:
    assert len(cells_around(point)) < 40


def test_far_points_do_not_lie_in_the_cell_of_a_small_interval() -> None:
    cell = cell_of(100.0, 100.5)
    assert cell in cells_around(100.25)
    assert [n for n in range(1000) if cell in cells_around(n)] == [100, 101, 102, 103]
    day = cell_of("2024-05-01", "2024-05-07")
    assert day in cells_around("2024-05-03T12:00")
    assert day not in cells_around("2024-06-03")
