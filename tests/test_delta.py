from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver.delta import Delta, InvalidDelta

pytestmark = pytest.mark.core

OLD = {"id": 1, "color": "red"}
NEW = {"id": 1, "color": "blue"}

INSERT = {"type": "insert", "model": "Task", "data": NEW}
UPDATE = {"type": "update", "model": "Task", "newData": NEW, "oldData": OLD}
DELETE = {"type": "delete", "model": "Task", "data": OLD}

ROWS = st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(), max_size=3)
DELTAS = st.builds(
    Delta,
    st.text(max_size=5),
    st.none() | ROWS,
    ROWS,
    st.none() | st.integers(0, 2**53 - 1),
)


@pytest.mark.parametrize(
    ("wire", "delta"),
    [
        (INSERT, Delta("Task", None, NEW)),
        (UPDATE, Delta("Task", OLD, NEW)),
        (DELETE, Delta("Task", OLD, None)),
        ({**UPDATE, "version": 7}, Delta("Task", OLD, NEW, 7)),
        ({**INSERT, "version": 0}, Delta("Task", None, NEW, 0)),
        ({**INSERT, "data": {}}, Delta("Task", None, {})),
        ({**DELETE, "model": ""}, Delta("", OLD, None)),
    ],
)
def test_a_delta_is_read_and_written_as_on_the_wire(wire: dict[str, Any], delta: Delta) -> None:
    assert Delta.parse(wire) == delta
    assert delta.for_json() == wire


@given(DELTAS)
def test_what_is_written_is_read_as_the_same(delta: Delta) -> None:
    assert Delta.parse(delta.for_json()) == delta


def test_a_null_version_is_no_version() -> None:
    assert Delta.parse({**INSERT, "version": None}).version is None


@pytest.mark.parametrize("wire", [None, 1, "insert", [], [INSERT]])
def test_what_is_no_object_is_no_delta(wire: object) -> None:
    with pytest.raises(InvalidDelta, match=r"^delta must be object$"):
        Delta.parse(wire)


@pytest.mark.parametrize(
    ("wire", "field", "message"),
    [
        ({}, "model", "model must be string"),
        ({**INSERT, "model": 1}, "model", "model must be string"),
        ({**INSERT, "type": "upsert"}, "type", "Invalid delta type"),
        ({**INSERT, "type": ["insert"]}, "type", "Invalid delta type"),
        ({"model": "Task", "data": NEW}, "type", "Invalid delta type"),
        ({"type": "insert", "model": "Task"}, "data", "Missing field 'data'"),
        ({"type": "delete", "model": "Task"}, "data", "Missing field 'data'"),
        ({"type": "update", "model": "T", "newData": {}}, "oldData", "Missing field 'oldData'"),
        ({"type": "update", "model": "T", "oldData": {}}, "newData", "Missing field 'newData'"),
        ({**INSERT, "data": None}, "data", "data must be object"),
        ({**DELETE, "data": [OLD]}, "data", "data must be object"),
        ({**UPDATE, "oldData": "red"}, "oldData", "oldData must be object"),
        ({**UPDATE, "newData": 3}, "newData", "newData must be object"),
        ({**INSERT, "version": -1}, "version", "version must be a whole number from 0"),
        ({**INSERT, "version": "1"}, "version", "version must be a whole number from 0"),
        ({**INSERT, "version": True}, "version", "version must be a whole number from 0"),
        ({**INSERT, "version": 1.5}, "version", "version must be a whole number from 0"),
        ({**INSERT, "oldData": OLD}, "oldData", "Unknown field"),
        ({**UPDATE, "data": NEW}, "data", "Unknown field"),
        ({**INSERT, "tag": "t"}, "tag", "Unknown field"),
        ({**INSERT, "z": 1, "extra": 2}, "extra", "Unknown field"),
    ],
)
def test_a_bad_delta_is_refused_and_the_field_named(
    wire: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidDelta) as caught:
        Delta.parse(wire)
    assert (caught.value.field, caught.value.message) == (field, message)
    assert caught.value.code == "invalid_delta"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("insert", Delta("Task", None, NEW, 3)),
        ("update", Delta("Task", OLD, NEW, 3)),
        ("delete", Delta("Task", OLD, None, 3)),
    ],
)
def test_an_update_is_narrowed_to_what_it_is_for_a_view(kind: Any, expected: Delta) -> None:
    narrowed = Delta("Task", OLD, NEW, 3).narrowed(kind)
    assert narrowed == expected
    assert narrowed.kind == kind


@pytest.mark.parametrize("wire", [INSERT, DELETE])
def test_an_insert_or_delete_is_narrowed_to_itself(wire: dict[str, Any]) -> None:
    delta = Delta.parse(wire)
    assert delta.narrowed(delta.kind) == delta


def test_the_tag_is_written_when_there_is_one() -> None:
    delta = Delta("Task", None, NEW, 3)
    assert delta.for_json("mine") == {**INSERT, "version": 3, "tag": "mine"}
    assert "tag" not in delta.for_json()


def test_a_delta_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Delta("Task", None, NEW).model = "Other"  # type: ignore[misc]
