"""The grammar of a client's frames: messages in pieces, controls between them, a rule broken."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.fuzz.client_frames import client_frame
from tests.fuzz.grammar import Inputs, one

CONTENTS = st.one_of(
    one("", "x", "é€😀", "a" * 125, "a" * 126, "a" * 999, "a" * 1_001).map(str.encode),
    one(b"\xe2\x82", b"\xed\xa0\x80", b"\xc0\x80", b"\xff", b"\xf4\x90\x80\x80"),
    st.text(max_size=12).map(str.encode),
    st.binary(max_size=12),
)
_CLOSES = one(
    *(b"", b"\x03\xe8", b"\x03\xe8bye", b"\x0f\xa1", b"\x03", b"\x03\xed", b"\x03\xe7", b"\0\0"),
    *(b"\x13\x88", b"\x0b\xb8\xff", b"\x03\xe8" + b"x" * 123, b"\x03\xe8" + b"x" * 124),
)
_PINGS = st.binary(max_size=8) | one(b"x" * 125, b"x" * 126)
_FAULTS = one(*[0] * 40, 0x40, 0x20, 0x10, 0x70)
_MASKS = one(b"\1\2\3\4", b"\0\0\0\0", b"\xff\0\xff\0")
_FORMS = one(*[0] * 16, 126, 127)
_UNMASKED = one(*[False] * 30, True)


@st.composite
def _frames(draw: DrawFn, first: int, payload: bytes) -> bytes:
    frame = client_frame(first ^ draw(_FAULTS), payload, draw(_MASKS), draw(_FORMS))
    return bytes((frame[0], frame[1] & 0x7F)) + frame[2:] if draw(_UNMASKED) else frame


@st.composite
def _controls(draw: DrawFn) -> bytes:
    opcode = draw(one(*[0x89] * 6, *[0x8A] * 4, 0x88, 0x09, 0x8B))
    payload = draw(
        _CLOSES if opcode == 0x88 else st.binary(max_size=8) | one(b"x" * 125, b"x" * 126)
    )
    return draw(_frames(opcode, payload))


@st.composite
def messages(draw: DrawFn, contents: Inputs = CONTENTS) -> bytes:
    """Return a message in one frame or in pieces, with controls between these."""
    opcode, content = draw(one(1, 1, 1, 2)), draw(contents)
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=3)))
    parts = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    data = b""
    for number, part in enumerate(parts):
        final = 0x80 if number == len(parts) - 1 else 0
        data += draw(_frames(final | (0 if number else opcode), part))
        if not final and draw(one(False, False, True)):
            data += draw(_controls())
    return data


@st.composite
def streams(draw: DrawFn, contents: Inputs = CONTENTS) -> bytes:
    """Return what a client sends, whole or up to somewhere."""
    parts = draw(st.lists(messages(contents) | messages(contents) | _controls(), max_size=4))
    data = b"".join(parts)
    if draw(one(*[False] * 6, True)):
        return data[: draw(st.integers(0, len(data)))]
    return data


FRAMES: Inputs = streams()
