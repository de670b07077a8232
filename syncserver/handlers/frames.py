"""The frames of WebSocket (RFC 6455, 5), read and made. Pure.

What breaks the rules raises ``Violation`` with the close code that says so, as soon as it can be
known: a frame that is too long before its payload is read. Frames before it have been given.
"""

from __future__ import annotations

import codecs
import struct
from typing import NamedTuple

from syncserver.errors import CloseCode

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

_FIN, _RESERVED, _OPCODE, _CONTROL, _MASKED = 0x80, 0x70, 0x0F, 0x08, 0x80
_OPCODES = (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG)
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_MASK_BYTES = 4
_PIECES = 1_024
_BEFORE_SURROGATES, _SURROGATE = 0xED, 0xA0
_CODES_IN_CLOSE = (range(1000, 1004), range(1007, 1015), range(3000, 5000))


class Violation(Exception):
    """The peer broke a rule; ``code`` is what its connection is closed with."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Message(NamedTuple):
    """A whole message: a text, or the bytes of a binary one."""

    content: str | bytes


class Control(NamedTuple):
    """A frame between messages, or between the pieces of one: CLOSE, PING or PONG."""

    opcode: int
    payload: bytes


Received = Message | Control


class FrameReader:
    """Puts the bytes of a client together to messages and control frames.

    :param max_bytes: how long a message may be.
    """

    __slots__ = ("_buffer", "_max_bytes", "_message")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer: bytearray | None = None  # most have none, most of the time
        self._message: _Pieces | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes as they came from the socket; then call ``next`` until it gives None."""
        if self._buffer is None:
            self._buffer = bytearray(data)
        else:
            self._buffer += data

    @property
    def is_within(self) -> bool:
        """Tell whether a message or a frame has begun that is not whole."""
        return bool(self._buffer) or self._message is not None

    def next(self) -> Received | None:
        """Return what came next and is complete; None if more bytes are needed for it."""
        while (frame := self._frame()) is not None:
            received = self._understood(*frame)
            if received is not None:
                return received
        return None

    def _frame(self) -> tuple[int, bool, bytes] | None:
        """Take one whole frame from the buffer: its opcode, whether it is final, its payload."""
        buffer = self._buffer
        if buffer is None or len(buffer) < 2:  # first byte and length
            return None
        first, second = buffer[0], buffer[1]
        self._check(first, second)
        size, head = second & ~_MASKED, 2
        if size == _TWO_BYTES:
            size, head = _length(buffer, ">H", 4, _TWO_BYTES)
        elif size == _EIGHT_BYTES:
            size, head = _length(buffer, ">Q", 10, 1 << 16)
        opcode = first & _OPCODE
        so_far = self._message.size if self._message is not None and not opcode & _CONTROL else 0
        if size + so_far > self._max_bytes and not opcode & _CONTROL:
            raise Violation(CloseCode.MESSAGE_TOO_BIG, "message too big")
        begin = head + _MASK_BYTES
        if not head or len(buffer) < begin + size:
            return None
        payload = _unmasked(buffer[head:begin], buffer[begin : begin + size])
        if len(buffer) == begin + size:
            self._buffer = None
        else:
            del buffer[: begin + size]
        return opcode, bool(first & _FIN), payload

    def _check(self, first: int, second: int) -> None:
        opcode = first & _OPCODE
        if opcode not in _OPCODES:
            raise _broken("no such opcode")
        if first & _RESERVED:
            raise _broken("reserved bits")
        if not second & _MASKED:
            raise _broken("not masked")
        if opcode & _CONTROL:
            if not first & _FIN:
                raise _broken("a control frame in pieces")
            if second & ~_MASKED >= _TWO_BYTES:
                raise _broken("a control frame that is too long")
        elif (opcode == CONTINUATION) != (self._message is not None):
            raise _broken("a message inside another, or the rest of none")

    def _understood(self, opcode: int, final: bool, payload: bytes) -> Received | None:
        if opcode & _CONTROL:
            return Control(opcode, payload)
        if final and self._message is None:
            return Message(_decoded(payload) if opcode == TEXT else payload)
        if self._message is None:
            self._message = _Pieces(opcode)
        self._message.add(payload, final=final)
        if not final:
            return None
        message, self._message = self._message, None
        return message.whole()


class _Pieces:
    """A message that comes in pieces; a text is decoded with each of them."""

    __slots__ = ("_decoder", "_pieces", "size")

    def __init__(self, opcode: int) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT else None

    def add(self, payload: bytes, *, final: bool) -> None:
        self.size += len(payload)
        self._pieces.append(payload)
        if len(self._pieces) > _PIECES:
            raise Violation(CloseCode.MESSAGE_TOO_BIG, "too many pieces")
        if self._decoder is not None:
            try:
                self._decoder.decode(payload, final)
                begun = self._decoder.getstate()[0]
                if len(begun) > 1 and begun[0] == _BEFORE_SURROGATES and begun[1] >= _SURROGATE:
                    raise _not_utf8()  # Python waits for the third byte of what can be none
            except UnicodeDecodeError:
                raise _not_utf8() from None

    def whole(self) -> Message:
        payload = b"".join(self._pieces)
        return Message(payload if self._decoder is None else payload.decode())


def close_code(payload: bytes) -> int | None:
    """Return the code in a close frame, None if it has none; Violation if it may not have it."""
    if not payload:
        return None
    if len(payload) == 1:
        raise _broken("half a close code")
    [code] = struct.unpack(">H", payload[:2])
    if not any(code in codes for codes in _CODES_IN_CLOSE):
        raise _broken("a close code that is not sent")
    _decoded(payload[2:])
    return int(code)


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a final, unmasked frame, as a server sends it."""
    length = len(payload)
    if length < _TWO_BYTES:
        return struct.pack(">BB", _FIN | opcode, length) + payload
    if length < 1 << 16:
        return struct.pack(">BBH", _FIN | opcode, _TWO_BYTES, length) + payload
    return struct.pack(">BBQ", _FIN | opcode, _EIGHT_BYTES, length) + payload


def text_frames(texts: tuple[bytes, ...]) -> bytes:
    """Return each text as a frame; the same for every socket, so it is made once and shared."""
    return b"".join([frame(TEXT, text) for text in texts])


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Return a close frame; a reason that is too long is cut."""
    if code is None:
        return frame(CLOSE, b"")
    cut = reason.encode()[: _TWO_BYTES - 1 - 2].decode(errors="ignore")
    return frame(CLOSE, struct.pack(">H", code) + cut.encode())


def _unmasked(mask: bytearray, payload: bytearray) -> bytes:
    size = len(payload)
    key = (mask * (size // _MASK_BYTES + 1))[:size]
    plain = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return plain.to_bytes(size, "little")


def _length(buffer: bytearray, form: str, end: int, least: int) -> tuple[int, int]:
    """Return a longer length and where the mask begins; zeros if it is not there yet."""
    if len(buffer) < end:
        return 0, 0
    [size] = struct.unpack(form, buffer[2:end])
    if size < least:
        raise _broken("a length that has a shorter form")
    return size, end


def _decoded(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise _not_utf8() from None


def _broken(reason: str) -> Violation:
    return Violation(CloseCode.PROTOCOL_ERROR, reason)


def _not_utf8() -> Violation:
    return Violation(CloseCode.INVALID_TEXT, "not UTF-8")
