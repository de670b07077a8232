"""The frames of WebSocket, without a socket: what is read, what is refused, what is made."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver.errors import CloseCode
from syncserver.handlers import frames
from syncserver.handlers.frames import (
    CLOSE,
    PING,
    PONG,
    Control,
    FrameReader,
    Message,
    Received,
    Violation,
)

MAX = 1_000
FIN, RSV1, MASKED = 0x80, 0x40, 0x80


def sent(
    first: int, payload: bytes = b"", *, mask: bytes = b"\x01\x02\x03\x04", form: int = 0
) -> bytes:
    """Return a frame of a client; ``form`` 126 or 127 has a length that could be shorter."""
    size = len(payload)
    if not form and size >= 126:
        form = 126 if size < 1 << 16 else 127
    length = bytes([MASKED | (form or size)])
    length += {0: b"", 126: struct.pack(">H", size % 65_536), 127: struct.pack(">Q", size)}[form]
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes([first]) + length + mask + masked


def read(data: bytes, step: int | None = None) -> list[Received | CloseCode]:
    """Read bytes, ``step`` at a time; the code stands where a rule was broken."""
    reader = FrameReader(MAX)
    got: list[Received | CloseCode] = []
    try:
        for begin in range(0, len(data), step or len(data)):
            reader.feed(data[begin : begin + (step or len(data))])
            while (one := reader.next()) is not None:
                got.append(one)
    except Violation as violation:
        got.append(violation.code)
    return got


WHOLE = [
    (sent(0x81, b"text"), [Message("text")]),
    (sent(0x81, "ü€😀".encode()), [Message("ü€😀")]),
    (sent(0x81), [Message("")]),
    (sent(0x82, b"\xff\x00"), [Message(b"\xff\x00")]),
    (sent(0x81, b"x" * 125), [Message("x" * 125)]),
    (sent(0x81, b"x" * 126), [Message("x" * 126)]),
    (sent(0x81, b"x" * MAX), [Message("x" * MAX)]),
    (sent(0x81, b"\0\0\0", mask=bytes(4)), [Message("\0\0\0")]),
    (sent(0x89, b"p"), [Control(PING, b"p")]),
    (sent(0x8A), [Control(PONG, b"")]),
    (sent(0x88, b"\x03\xe8bye"), [Control(CLOSE, b"\x03\xe8bye")]),
    (sent(0x01, b"a") + sent(0x00, b"b") + sent(0x80, b"c"), [Message("abc")]),
    (sent(0x01) + sent(0x00) + sent(0x80), [Message("")]),
    (sent(0x02, b"\xe2") + sent(0x80, b"\x82"), [Message(b"\xe2\x82")]),
    (sent(0x01, b"\xe2\x82") + sent(0x80, b"\xac"), [Message("€")]),
    (sent(0x01, b"a") + sent(0x89) + sent(0x80, b"b"), [Control(PING, b""), Message("ab")]),
    (sent(0x01) + b"".join(sent(0x00) for _ in range(1022)) + sent(0x80), [Message("")]),
    (sent(0x81, b"1") + sent(0x81, b"2"), [Message("1"), Message("2")]),
]


@pytest.mark.parametrize(("data", "expected"), WHOLE)
@pytest.mark.parametrize("step", [None, 1, 3])
def test_what_keeps_the_rules_is_read_however_it_is_cut(
    data: bytes, expected: list[Received], step: int | None
) -> None:
    assert read(data, step) == expected


BROKEN = {
    "not masked (row 35)": (b"\x81\x01x", CloseCode.PROTOCOL_ERROR),
    "not masked, and empty": (b"\x81\x00", CloseCode.PROTOCOL_ERROR),
    "a control frame that is not masked": (b"\x89\x00", CloseCode.PROTOCOL_ERROR),
    "compressed, though nobody agreed to that (row 36)": (sent(0xC1), CloseCode.PROTOCOL_ERROR),
    "the second reserved bit": (sent(0xA1), CloseCode.PROTOCOL_ERROR),
    "the third reserved bit": (sent(0x91), CloseCode.PROTOCOL_ERROR),
    "a reserved bit in a control frame": (sent(0xC9), CloseCode.PROTOCOL_ERROR),
    **{
        f"opcode {opcode}": (sent(FIN | opcode), CloseCode.PROTOCOL_ERROR)
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "text that is no UTF-8 (row 37)": (sent(0x81, b"\xff"), CloseCode.INVALID_TEXT),
    "half of a surrogate pair": (sent(0x81, b"\xed\xa0\x80"), CloseCode.INVALID_TEXT),
    "an overlong form": (sent(0x81, b"\xc0\x80"), CloseCode.INVALID_TEXT),
    "beyond Unicode": (sent(0x81, b"\xf4\x90\x80\x80"), CloseCode.INVALID_TEXT),
    "text that ends in a character": (sent(0x81, b"\xe2\x82"), CloseCode.INVALID_TEXT),
    "pieces that end in a character": (
        sent(0x01, b"\xe2") + sent(0x80, b"\x82"),
        CloseCode.INVALID_TEXT,
    ),
    "a first piece that is no UTF-8": (sent(0x01, b"\xff"), CloseCode.INVALID_TEXT),
    "a ping in pieces (row 39)": (sent(0x09), CloseCode.PROTOCOL_ERROR),
    "a long ping": (sent(0x89, bytes(126)), CloseCode.PROTOCOL_ERROR),
    "a long close": (sent(0x88, b"\x03\xe8" + b"x" * 126), CloseCode.PROTOCOL_ERROR),
    "the rest of nothing (row 40)": (sent(0x80), CloseCode.PROTOCOL_ERROR),
    "a message inside another": (sent(0x01) + sent(0x81), CloseCode.PROTOCOL_ERROR),
    "2^63 bytes (row 41)": (b"\x81\xff" + struct.pack(">Q", 2**63), CloseCode.MESSAGE_TOO_BIG),
    "more than may be": (b"\x81\xfe" + struct.pack(">H", MAX + 1), CloseCode.MESSAGE_TOO_BIG),
    "more than may be, in pieces": (
        sent(0x01, bytes(MAX)) + b"\x80\x81",
        CloseCode.MESSAGE_TOO_BIG,
    ),
    "a length with a shorter form (row 42)": (
        sent(0x81, b"x" * 125, form=126),
        CloseCode.PROTOCOL_ERROR,
    ),
    "a long length with a shorter form": (
        sent(0x81, b"x" * 200, form=127),
        CloseCode.PROTOCOL_ERROR,
    ),
    "pieces without end (row 43)": (
        sent(0x01) + b"".join(sent(0x00) for _ in range(1024)),
        CloseCode.MESSAGE_TOO_BIG,
    ),
    "HTTP (row 54)": (b"GET / HTTP/1.1\r\n\r\n", CloseCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("step", [None, 1])
def test_what_breaks_a_rule_is_refused_at_once_and_what_was_before_it_is_read(
    data: bytes, code: CloseCode, step: int | None
) -> None:
    assert read(data, step) == [code]
    assert read(sent(0x81, b"before") + data, step) == [Message("before"), code]


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1014, 3000, 4008, 4999]
)
def test_a_close_code_that_may_be_sent_is_read(code: int) -> None:
    assert frames.close_code(struct.pack(">H", code) + "grüße".encode()) == code


@pytest.mark.parametrize(
    "code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535]
)
def test_a_close_code_that_may_not_be_sent_is_refused(code: int) -> None:
    with pytest.raises(Violation) as caught:
        frames.close_code(struct.pack(">H", code))
    assert caught.value.code == CloseCode.PROTOCOL_ERROR


def test_a_close_frame_may_have_nothing_in_it() -> None:
    assert frames.close_code(b"") is None
    assert frames.close_frame(None) == b"\x88\x00"


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"\x03", CloseCode.PROTOCOL_ERROR), (b"\x03\xe8\xff", CloseCode.INVALID_TEXT)],
)
def test_a_close_frame_that_is_not_whole_is_refused(payload: bytes, code: CloseCode) -> None:
    with pytest.raises(Violation) as caught:
        frames.close_code(payload)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_frame_that_is_made_has_the_shortest_header(length: int, header: bytes) -> None:
    assert frames.text_frames((b"x" * length,)) == header + b"x" * length


def test_a_reason_that_is_too_long_is_cut_between_characters() -> None:
    assert frames.close_frame(4001, "ü" * 100) == b"\x88\x7c\x0f\xa1" + "ü".encode() * 61


@given(
    st.lists(st.binary(max_size=300), max_size=8),
    st.binary(min_size=4, max_size=4),
    st.integers(1, 50),
)
def test_binary_messages_come_out_as_they_went_in(
    messages: list[bytes], mask: bytes, step: int
) -> None:
    data = b"".join(sent(0x82, message, mask=mask) for message in messages)
    assert read(data, step) == [Message(message) for message in messages]


@given(st.text(max_size=100), st.lists(st.integers(0, 400), max_size=5))
def test_a_text_in_any_pieces_is_the_same_text(text: str, cuts: list[int]) -> None:
    payload = text.encode()
    places = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    pieces = [payload[a:b] for a, b in itertools.pairwise(places)]
    data = b"".join(
        sent((0x01 if index == 0 else 0) | (FIN if index == len(pieces) - 1 else 0), piece)
        for index, piece in enumerate(pieces)
    )
    assert read(data) == [Message(text)]


@given(st.binary(max_size=200), st.integers(1, 20))
def test_whatever_comes_is_read_or_refused_and_never_kept_beyond_the_bound(
    data: bytes, step: int
) -> None:
    whole, cut = read(data or b"\0"), read(data or b"\0", step)
    assert whole == cut
