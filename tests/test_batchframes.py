"""What is told of a batch is encoded once for all who get the same."""

from __future__ import annotations

import pytest

from syncserver.delta import Delta
from syncserver.protocols.base import Change, Event, Protocol
from syncserver.protocols.native import NativeProtocol
from syncserver.rowsync.batchframes import BatchFrames
from tests.support.toy import ToyProtocol


class Counting(NativeProtocol):
    """Counts what it encodes, over all its objects."""

    encoded: list[Event] = []  # noqa: RUF012

    def encode(self, event: Event) -> tuple[bytes, ...]:
        self.encoded.append(event)
        return super().encode(event)


class CountingElse(Counting):
    """Another protocol."""


@pytest.fixture
def encoded() -> list[Event]:
    Counting.encoded.clear()
    return Counting.encoded


DELTAS = [Delta("Row", {"n": 1}, {"n": 2}), Delta("Row", None, {"n": 3})]


def test_each_event_is_encoded_once_however_many_views_and_sessions_get_it(
    encoded: list[Event],
) -> None:
    batch = BatchFrames("s", DELTAS)
    for seen in (((0, "update"),), ((0, "update"), (1, "insert")), ((1, "insert"),)):
        for _ in range(50):  # views
            frame_for = batch.of_view(None, seen)  # type: ignore[arg-type]
            frames = {id(frame_for(Counting())) for _ in range(20)}
            assert len(frames) == 1
    assert len(encoded) == 2
    batch.of_view(None, ((0, "delete"),))(Counting())
    batch.of_view("tag", ((0, "update"),))(Counting())
    batch.of_view(None, ((0, "update"),))(CountingElse())
    assert len(encoded) == 5


def test_a_frame_holds_what_its_view_sees_in_order() -> None:
    batch = BatchFrames("s", DELTAS)
    seen = ((0, "delete"), (1, "insert"))
    frame = batch.frame(NativeProtocol(), "t", seen)  # type: ignore[arg-type]
    events = [Change("s", DELTAS[0].narrowed("delete"), "t"), Change("s", DELTAS[1], "t")]
    assert frame.texts == tuple(text for e in events for text in NativeProtocol().encode(e))
    assert frame is batch.of_view("t", seen)(NativeProtocol())  # type: ignore[arg-type]


def test_a_protocol_that_is_not_shared_encodes_for_each_session() -> None:
    batch = BatchFrames("s", DELTAS)
    frame_for = batch.of_view(None, ((0, "update"), (1, "insert")))
    sessions: list[Protocol] = [ToyProtocol(), ToyProtocol()]
    for start in (1, 3):
        for session in sessions:
            texts = frame_for(session).texts
            assert [text[:2] for text in texts] == [b"%d|" % start, b"%d|" % (start + 1)]
