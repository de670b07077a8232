"""Frames that break the rules of WebSocket, or keep them and are too many."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest

from tests.support.attacked import UPGRADE, Target, masked

ECHOED = json.dumps({"service": "none", "message": {"callId": 1}}).encode()


def close(code: int, reason: bytes = b"") -> bytes:
    return masked(0x88, struct.pack(">H", code) + reason)


def lying(first: int, form: str, size: int, base: int) -> bytes:
    """Return a head that says a length in a form that may not be the one for it."""
    return bytes([first, 0x80 | base]) + struct.pack(form, size) + bytes(4)


BROKEN = {
    "not masked": (b"\x81\x02{}", 1002),
    "a ping that is not masked": (b"\x89\x00", 1002),
    "a close that is not masked": (b"\x88\x02\x03\xe8", 1002),
    **{f"bits {bits:x}": (masked(0x81 | bits, b"{}"), 1002) for bits in range(0x10, 0x80, 0x10)},
    **{f"opcode {code}": (masked(0x80 | code), 1002) for code in (3, 4, 5, 6, 7, *range(11, 16))},
    "bits on a continuation": (masked(0x01, b"{") + masked(0xC0, b"}"), 1002),
    "bits on a ping": (masked(0xC9), 1002),
    "compressed, though nobody agreed": (masked(0xC1, b"\xaa\x56\x4a\x04\x00"), 1002),
    "a continuation of nothing": (masked(0x80, b"{}"), 1002),
    "a continuation of what has ended": (masked(0x81, ECHOED) + masked(0x80, b"{}"), 1002),
    "a message inside another": (masked(0x01, b"{") + masked(0x81, b"}"), 1002),
    "another beginning": (masked(0x01, b"{") + masked(0x02, b"}"), 1002),
    "a ping in pieces": (masked(0x09), 1002),
    "a close in pieces": (masked(0x08, b"\x03\xe8"), 1002),
    "a long ping": (masked(0x89, bytes(126)), 1002),
    "a long pong": (masked(0x8A, bytes(70_000)), 1002),
    "a long close": (masked(0x88, b"\x03\xe8" + bytes(124)), 1002),
    "a length of 2 in two bytes": (lying(0x81, ">H", 2, 126) + b"{}", 1002),
    "a length of 125 in two bytes": (lying(0x81, ">H", 125, 126), 1002),
    "a length of 2 in eight bytes": (lying(0x81, ">Q", 2, 127) + b"{}", 1002),
    "a length of 65535 in eight bytes": (lying(0x81, ">Q", 65_535, 127), 1002),
    "2^63": (lying(0x81, ">Q", 1 << 63, 127), 1009),
    "2^64-1": (lying(0x82, ">Q", (1 << 64) - 1, 127), 1009),
    "2^31": (lying(0x81, ">Q", 1 << 31, 127), 1009),
    "one byte too many": (lying(0x81, ">Q", 65_537, 127), 1009),
    "too long in the third piece": (
        masked(0x01, b"x" * 60_000) + masked(0x00) + lying(0x00, ">H", 6_000, 126),
        1009,
    ),
    "half a close code": (masked(0x88, b"\x03"), 1002),
    **{
        f"close code {code}": (close(code), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
    "a reason that is no text": (close(1000, b"\xff"), 1007),
    "a reason with half a character": (close(1000, b"\xe2\x82"), 1007),
    "no text": (masked(0x81, b"\xff\xfe"), 1007),
    "a half of a pair": (masked(0x81, b"\xed\xa0\x80"), 1007),
    "overlong": (masked(0x81, b"\xc0\xaf"), 1007),
    "beyond the last character": (masked(0x81, b"\xf4\x90\x80\x80"), 1007),
    "half a character at the end": (masked(0x81, b"\xe2\x82"), 1007),
    "half a character at the end of the pieces": (
        masked(0x01, b"\xe2") + masked(0x80, b"\x82"),
        1007,
    ),
    "no text, told in the first piece": (masked(0x01, b"\xff"), 1007),
    "no text across pieces": (masked(0x01, b"\xe2") + masked(0x00, b"\x28"), 1007),
    "a surrogate across pieces": (masked(0x01, b"\xed") + masked(0x00, b"\xa0"), 1007),
    "pieces without end, all empty": (masked(0x01) + masked(0x00) * 1_100, 1009),
    "pieces of one byte": (masked(0x01, b" ") + masked(0x00, b" ") * 1_100, 1009),
    "binary pieces without end": (masked(0x02) + masked(0x00) * 1_100, 1009),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 1002),
    "zeros": (bytes(1_000), 1002),
    "ones": (b"\xff" * 1_000, 1002),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_frame_that_breaks_a_rule_is_told_which(target: Target, what: str) -> None:
    data, code = BROKEN[what]
    with target.websocket() as wire:
        wire.send(data + masked(0x81, ECHOED))  # what comes after it is not read
        assert wire.close_code() == code


def test_so_it_is_of_what_comes_with_the_handshake(target: Target) -> None:
    for data, code in BROKEN.values():
        with target.ask(UPGRADE.format(path="/ws").encode() + data) as wire:
            assert wire.status() == 101
            assert wire.close_code() == code


def test_so_it_is_byte_by_byte(target: Target) -> None:
    for data, code in list(BROKEN.values())[::3]:
        if len(data) < 100:
            with target.websocket() as wire:
                for byte in data:
                    wire.send(bytes([byte]))
                assert wire.close_code() == code


@pytest.mark.parametrize(
    "pieces",
    [
        [masked(0x81, ECHOED)],
        [masked(0x01, ECHOED[:5]), masked(0x00), masked(0x80, ECHOED[5:])],
        [masked(0x01), masked(0x00, ECHOED), masked(0x80)],
        [masked(0x02, ECHOED[:5]), masked(0x80, ECHOED[5:])],
        [masked(0x01, ECHOED[:5]), masked(0x89, b"?"), masked(0x8A), masked(0x80, ECHOED[5:])],
        [masked(0x8A, b"nobody asked")] * 3 + [masked(0x81, ECHOED)],
    ],
)
def test_what_keeps_the_rules_is_read(target: Target, pieces: list[bytes]) -> None:
    with target.websocket() as wire:
        for piece in pieces:
            wire.send(piece)
        while (frame := wire.frame())[0] != 0x81:
            assert frame == (0x8A, b"?")
        assert json.loads(frame[1])["message"]["code"] == "unknown_service"


@pytest.mark.parametrize(
    ("frame", "count"),
    [
        (masked(0x89, bytes(125)), 20_000),
        (masked(0x8A, bytes(125)), 20_000),
        (masked(0x89), 100_000),
        (masked(0x81), 100_000),
        (masked(0x81, b"{}"), 20_000),
        (masked(0x81, ECHOED), 20_000),
        (masked(0x82, bytes(1_000)), 5_000),
    ],
)
@pytest.mark.parametrize("reads", [True, False])
def test_a_flood_ends_with_4013(target: Target, frame: bytes, count: int, reads: bool) -> None:
    with target.websocket(buffer=0 if reads else 4096) as wire:
        wire.plain.settimeout(1)
        with contextlib.suppress(TimeoutError):
            for _ in range(0, count, 100):
                wire.send(frame * 100)
        if reads:
            wire.plain.settimeout(10)
            assert wire.close_code() in (4013, None)  # None: it was reset with what we had sent


def test_what_comes_after_a_close_is_not_read_and_the_socket_goes(target: Target) -> None:
    with target.websocket() as wire:
        wire.send(close(1000) + masked(0x81, ECHOED) * 100)
        assert wire.frame() == (0x88, b"\x03\xe8")
        assert wire.rest() == b""


def test_a_head_of_a_large_message_costs_no_memory(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            wire = stack.enter_context(target.websocket())
            wire.send(lying(0x81, ">H", 65_000, 126) + b"x" * 100)


def test_messages_that_are_not_finished_cost_what_was_sent_of_them(target: Target) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            wire = stack.enter_context(target.websocket())
            wire.send(masked(0x01, b"x" * 30_000) + lying(0x00, ">H", 30_000, 126) + b"x" * 29_000)


def test_a_message_over_the_limit_in_a_frame_of_sockjs_is_refused_too(target: Target) -> None:
    with target.websocket("/ws/sockjs/0/a/websocket") as wire:
        assert wire.frame() == (0x81, b"o")
        wire.send(masked(0x81, b"[" * 300_000))
        assert wire.close_code() == 1009
    with target.websocket("/ws/sockjs/0/a/websocket") as wire:
        wire.send(masked(0x81, json.dumps(["x" * 70_000]).encode()))
        assert wire.close_code() in (1002, 1009)
