"""What is put into the log is read from it as it was, and what is not ours is passed over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver import canonical, strict_json
from syncserver.delta import Delta
from syncserver.engines.base import revoked_notice, taken_notice
from syncserver.rowsync import entries
from tests.conftest import ExpectedLog

pytestmark = pytest.mark.core

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | keys
values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
rows = st.dictionaries(keys, values, max_size=4)
versions = st.none() | st.integers(0, 2**53 - 1)
deltas = (
    st.builds(Delta, keys, st.none(), rows, versions)
    | st.builds(Delta, keys, rows, st.none(), versions)
    | st.builds(Delta, keys, rows, rows, versions)
)


@given(st.lists(deltas, max_size=4))
def test_a_batch_comes_back_as_it_was(batch: list[Delta]) -> None:
    assert entries.decode(entries.encode_batch(batch)) == entries.Batch(tuple(batch))


@given(values)
def test_a_request_to_fetch_again_names_items_by_their_canonical_query(query: Any) -> None:
    data = entries.encode_refetch_request(items=[("Dealer", query)])
    expected = frozenset([("Dealer", canonical.key(query))])
    assert entries.decode(data) == entries.RefetchRequested(None, expected)


def test_a_request_to_fetch_again_may_name_a_model() -> None:
    data = entries.encode_refetch_request(model="Task")
    assert entries.decode(data) == entries.RefetchRequested("Task", frozenset())


def test_the_notices_of_engines_are_read() -> None:
    assert entries.decode(taken_notice("a1", 3)) == entries.TakenOver("a1", 3)
    assert entries.decode(revoked_notice("a1")) == entries.Revoked("a1")


def delta(**changes: Any) -> Any:
    return {"deltas": [{"type": "insert", "model": "M", "data": {"id": 1}, **changes}]}


JUNK: list[Any] = [
    None,
    [],
    "text",
    {},
    {"deltas": None},
    {"deltas": {}},
    {"deltas": [None]},
    {"deltas": ["text"]},
    {"deltas": [[]]},
    {"deltas": [{}]},
    {"deltas": [{"type": "update", "model": "M", "oldData": {}}]},
    {"deltas": [{"type": "rename", "model": "M"}]},
    {"deltas": [{"type": "update", "model": "M", "oldData": {}, "newData": 0}]},
    {"deltas": [{"type": "update", "model": "M", "oldData": "", "newData": {}}]},
    delta(type=None),
    delta(type=[]),
    delta(model=None),
    delta(model=5),
    delta(data=None),
    delta(data=[]),
    delta(data=3),
    delta(version="1"),
    delta(version=True),
    delta(version=1.5),
    {"taken": ["t"]},
    {"taken": ["t", "1"]},
    {"taken": [1, 1]},
    {"revoked": 5},
    {"refetch": {}},
    {"refetch": {"model": None, "items": [5]}},
    {"refetch": {"model": None, "items": [["D"]]}},
    {"refetch": {"model": None, "items": [[["D"], 1]]}},
    {"refetch": {"model": None, "items": [[5, 1]]}},
    {"refetch": {"model": 5, "items": []}},
    {"from": "a later version"},
]


@pytest.mark.parametrize(
    "data",
    [*map(strict_json.encode, JUNK), b"", b"\xff\xfe", b"{", b"[" * 100_000, bytes(100)],
    ids=lambda data: repr(data[:60]),
)
def test_what_is_not_ours_is_passed_over_and_logged(data: bytes, expected_log: ExpectedLog) -> None:
    with expected_log("syncserver.entries", f"{len(data)} bytes"):
        assert entries.decode(data) == entries.Unreadable()
