"""Publishes that overtook each other end where the database is, whoever looks and since when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver.delta import Delta, Row
from syncserver.rowsync.entries import (
    Batch,
    RefetchRequested,
    Revoked,
    TakenOver,
    Unreadable,
    Value,
)
from syncserver.rowsync.reorder import Reorder

pytestmark = pytest.mark.core

PLENTY = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def reorder(clock: Clock | None = None, *, max_bytes: int = PLENTY) -> Reorder:
    return Reorder(lambda _: "id", seconds=60, max_bytes=max_bytes, clock=clock or Clock())


def row(n: int | None, key: Any = 1) -> Row | None:
    return None if n is None else {"id": key, "n": n}


def change(old: int | None, new: int | None, version: int | None, key: Any = 1) -> Delta:
    return Delta("M", row(old, key), row(new, key), version)


def settled(order: Reorder, *deltas: Delta) -> tuple[Delta, ...]:
    value = order.settle(Batch(deltas))
    assert isinstance(value, Batch)
    return value.deltas


@pytest.mark.parametrize("value", [
    Batch(()), Batch((change(1, 2, None),)), TakenOver("t", 2), Revoked("t"), Unreadable(),
    RefetchRequested("M", frozenset()),
])  # fmt: skip
def test_what_has_no_version_stays_the_very_same(value: Value) -> None:
    assert reorder().settle(value) is value


def test_what_comes_in_order_stays_as_it_is() -> None:
    order, deltas = reorder(), (change(None, 1, 1), change(1, 2, 2), change(2, None, 3))
    assert settled(order, *deltas) == deltas
    assert settled(order, change(None, 4, 4)) == (change(None, 4, 4),)


def test_a_late_update_leads_from_its_old_state_to_the_latest() -> None:
    order = reorder()
    settled(order, change(2, 3, 3))
    assert settled(order, change(1, 2, 2)) == (change(1, 3, 3),)


def test_a_late_insert_leads_to_the_latest_state() -> None:
    order = reorder()
    settled(order, change(1, 2, 2))
    assert settled(order, change(None, 1, 1)) == (change(None, 2, 2),)


def test_a_late_update_of_a_row_that_is_gone_is_a_delete() -> None:
    order = reorder()
    settled(order, change(2, None, 3))
    assert settled(order, change(1, 2, 2)) == (change(1, None, 3),)


def test_a_late_insert_of_a_row_that_is_gone_is_nothing() -> None:
    order = reorder()
    settled(order, change(1, None, 2))
    assert settled(order, change(None, 1, 1)) == ()


def test_a_late_delete_of_a_row_that_is_back_leads_to_what_it_is_now() -> None:
    order = reorder()
    settled(order, change(None, 3, 3))
    assert settled(order, change(1, None, 2)) == (change(1, 3, 3),)


def test_the_same_version_again_is_no_older_than_itself() -> None:
    order = reorder()
    assert settled(order, change(1, 2, 2)) == settled(order, change(1, 2, 2)) == (change(1, 2, 2),)


def test_deltas_of_one_batch_are_put_in_order_too() -> None:
    assert settled(reorder(), change(1, 2, 2), change(None, 1, 1)) == (
        change(1, 2, 2),
        change(None, 2, 2),
    )


def test_only_the_same_row_of_the_same_model_is_compared() -> None:
    order = reorder()
    settled(order, change(4, 5, 5, key=1))
    for key in (True, "1", 2, None, [1]):
        assert settled(order, change(0, 1, 1, key)) == (change(0, 1, 1, key),)
    other = Delta("Other", {"id": 1}, {"id": 1, "x": 1}, 1)
    assert settled(order, other) == (other,)
    assert settled(order, change(0, 1, 1, key=1.0))[0].new == row(5)


def test_a_row_without_its_key_is_left_alone() -> None:
    order, keyless = reorder(), Delta("M", None, {"n": 1}, 1)
    assert settled(order, Delta("M", None, {"n": 2}, 2), keyless)[1] == keyless


def test_deltas_without_version_are_left_alone_between_others() -> None:
    order = reorder()
    settled(order, change(1, 2, 2))
    plain = change(7, 8, None)
    assert settled(order, plain, change(None, 1, 1)) == (plain, change(None, 2, 2))


def test_a_row_is_forgotten_when_its_time_is_over_and_not_before() -> None:
    clock = Clock()
    order = reorder(clock)
    settled(order, change(1, 2, 2))
    clock.now += 59
    assert settled(order, change(None, 1, 1)) == (change(None, 2, 2),)
    clock.now += 2
    assert settled(order, change(None, 1, 1)) == (change(None, 1, 1),)


def test_a_new_version_keeps_a_row_in_mind_and_a_late_one_does_not() -> None:
    clock = Clock()
    order = reorder(clock)
    settled(order, change(1, 2, 2))
    clock.now += 40
    settled(order, change(2, 3, 3))
    clock.now += 40
    assert settled(order, change(None, 1, 1)) == (change(None, 3, 3),)
    clock.now += 40
    assert settled(order, change(None, 1, 1)) == (change(None, 1, 1),)


def test_what_is_remembered_is_bounded_in_bytes_and_the_oldest_goes_first() -> None:
    order = reorder(max_bytes=20_000)
    for key in range(1_000):
        settled(order, Delta("M", None, {"id": key, "text": "x" * 500}, 2))
        assert order._bytes <= 20_000
        assert order._bytes == sum(known.size for known in order._latest.values())
    assert 10 <= len(order._latest) <= 30
    assert settled(order, Delta("M", None, {"id": 0}, 1))[0].new == {"id": 0}
    assert settled(order, Delta("M", None, {"id": 999}, 1))[0].version == 2


def test_a_batch_larger_than_the_bound_is_not_kept_beyond_it() -> None:
    order = reorder(max_bytes=5_000)
    settled(order, *(Delta("M", None, {"id": key, "text": "x" * 500}, 2) for key in range(100)))
    assert order._bytes <= 5_000
    settled(order, Delta("M", None, {"id": "huge", "text": "x" * 10_000}, 1))
    assert order._bytes <= 5_000


# The law.

History = tuple[list[int | None], list[Delta]]
"""The states of a row, one for each version from 0, and its deltas in the order of arrival."""

WINDOW = 4


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Let a row live and die, and its publishes overtake each other within a window."""
    present = draw(st.lists(st.booleans(), min_size=1, max_size=10))
    states: list[int | None] = [draw(st.sampled_from([None, 0]))]
    for number, there in enumerate(present, 1):
        # A row that is not there cannot be deleted.
        states.append(number if there or states[-1] is None else None)
    deltas = [change(states[v - 1], states[v], v) for v in range(1, len(states))]
    arrivals = []
    while deltas:
        arrivals.append(deltas.pop(draw(st.integers(0, min(WINDOW, len(deltas)) - 1))))
    return states, arrivals


def apply(view: set[int], seen: int | None, deltas: Sequence[Delta]) -> int | None:
    """Return what a viewer has after narrowed deltas came in the order of arrival.

    It upserts by key and does not look at versions: the plainest client there is.
    """
    for delta in deltas:
        before = delta.old is not None and delta.old["n"] in view
        after = delta.new is not None and delta.new["n"] in view
        if after:
            assert delta.new is not None
            seen = delta.new["n"]
        elif before:
            seen = None
    return seen


@given(history=histories(), view=st.sets(st.integers(0, 10)), data=st.data())
def test_every_view_ends_at_the_latest_state_whenever_its_viewer_came(
    history: History, view: set[int], data: st.DataObject
) -> None:
    states, arrivals = history
    order = reorder()
    told = [settled(order, delta) for delta in arrivals]
    joined = data.draw(st.integers(0, len(arrivals)), "entries before the token")
    # Published before the token was made is committed before the snapshot is read.
    least = max((delta.version or 0 for delta in arrivals[:joined]), default=0)
    snapshot = states[data.draw(st.integers(least, len(states) - 1), "version of the snapshot")]
    seen = snapshot if snapshot in view else None
    seen = apply(view, seen, [delta for some in told[joined:] for delta in some])
    assert seen == (states[-1] if states[-1] in view else None)


@given(history=histories(), cut=st.data())
def test_how_deltas_are_batched_makes_no_difference(history: History, cut: st.DataObject) -> None:
    _, arrivals = history
    order = reorder()
    one_by_one = [late for delta in arrivals for late in settled(order, delta)]
    middle = cut.draw(st.integers(0, len(arrivals)))
    order = reorder()
    halves = [*settled(order, *arrivals[:middle]), *settled(order, *arrivals[middle:])]
    assert halves == one_by_one


def test_without_the_rewriting_a_view_keeps_a_state_that_is_over() -> None:
    newer, late, view = change(1, 2, 2), change(0, 1, 1), {1}
    assert apply(view, None, [newer, late]) == 1
    assert apply(view, None, settled(reorder(), newer, late)) is None
