"""The frames of WebSocket: what a reader makes of them, however they come."""

from __future__ import annotations

from typing import Any

from syncserver.handlers import frames
from tests.fuzz import grammar_frames, oracles
from tests.fuzz.client_frames import FRAME_SEEDS, client_frame, pieces
from tests.fuzz.mutation import bytes_like
from tests.fuzz.target import Source, Target

_MAX = 1_000
_CODES = (1002, 1007, 1009)


def read_frames(parts: list[bytes]) -> list[Any]:
    """Return what a reader makes of bytes that come in pieces, and the code it closes with."""
    reader = frames.FrameReader(_MAX)
    got: list[Any] = []
    try:
        for piece in parts:
            reader.feed(piece)
            while (one := reader.next()) is not None:
                got.append(one)
                if isinstance(one, frames.Control):
                    assert len(one.payload) <= 125
                    if one.opcode == frames.CLOSE:
                        frames.close_code(one.payload)
                else:
                    assert len(one.content) <= _MAX
            assert len(reader._buffer or b"") <= _MAX + 14, "more is kept than a frame may have"
            assert reader._message is None or reader._message.size <= _MAX
    except frames.Violation as violation:
        assert violation.code in _CODES
        assert len(frames.close_frame(violation.code, violation.reason)) < 130
        got.append(violation.code)
    return got


def check_frames(data: bytes) -> str:
    """A plain reader says the same, however the bytes are cut; a broken rule is a Violation."""
    whole = read_frames([data])
    assert [_plain(one) for one in whole] == oracles.frames(data, _MAX)
    assert read_frames(pieces(data)) == whole
    if len(data) < 100:
        assert read_frames([data[n : n + 1] for n in range(len(data))]) == whole
    messages = [one for one in whole if isinstance(one, frames.Message)]
    assert read_frames([b"".join(map(_framed, messages))]) == messages
    return repr(whole)


def _framed(message: frames.Message) -> bytes:
    content = message.content
    return (
        client_frame(0x81, content.encode())
        if isinstance(content, str)
        else client_frame(0x82, content)
    )


def _plain(one: Any) -> Any:
    return one.content if isinstance(one, frames.Message) else one


SOURCE = Source("frames", FRAME_SEEDS, grammar_frames.FRAMES, bytes_like(), share=25)
TARGETS = [Target(SOURCE, check_frames, 10_000)]
