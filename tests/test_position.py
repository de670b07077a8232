from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver.position import MAX_TEXT, START_MARK, Position

pytestmark = pytest.mark.core

POSITIONS = st.builds(
    Position,
    st.text("az09", min_size=1, max_size=24),
    st.integers(0, 10**16 - 1),
    st.text("az09", min_size=1, max_size=16),
)


@given(POSITIONS)
def test_a_position_is_read_as_it_was_written(position: Position) -> None:
    text = str(position)
    assert len(text) <= MAX_TEXT
    assert Position.parse(text) == position


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        [],
        b"a.1.b",
        "",
        "a",
        "a.1",
        "a.1.b.c",
        "a..b",
        ".1.b",
        "a.1.",
        "a.01.b",
        "a.-1.b",
        "a.+1.b",
        "a. 1.b",
        "a.1_0.b",
        "a.1.0.b",
        "a.1.b\n",
        " a.1.b",
        "A.1.b",
        "a.1.B",
        "é.1.b",
        "a.\u0661.b",
        "a.1.b" + "b" * 20,
        "a" * 25 + ".1.b",
        "a." + "9" * 17 + ".b",
        "a" * 5000,
    ],
)
def test_what_no_server_ever_sent_is_no_position(text: object) -> None:
    with pytest.raises(ValueError, match=r"^not a position$"):
        Position.parse(text)


def test_a_new_log_starts_before_its_first_entry_with_an_epoch_of_its_own() -> None:
    one, other = Position.start(), Position.start()
    assert (one.offset, one.mark) == (0, START_MARK)
    assert one.epoch != other.epoch
    assert Position.parse(str(one)) == one


def test_the_next_position_keeps_the_epoch_and_has_a_mark_of_its_own() -> None:
    start = Position.start()
    one, other = start.next(), start.next()
    assert (one.epoch, one.offset) == (start.epoch, 1)
    assert one.mark != other.mark
    assert one != other
    assert one.next().offset == 2
