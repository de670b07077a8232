"""Connections that say nothing, say it slowly, break off, or come in numbers."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from tests.support.attacked import KEY, UPGRADE, Target, Wire, key_header, masked

POST = f"POST /backend HTTP/1.1\r\n{key_header()}"
EVENTS = "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
DEADLINE = 6.0  # generous: the settings say 1 second


def all_close(wires: dict[Wire, bytes]) -> bool:
    """Tell whether the daemon closes all in time, while each is sent a few bytes now and then."""
    deadline = time.monotonic() + DEADLINE
    left = dict(wires)
    while left and time.monotonic() < deadline:
        for wire, drip in tuple(left.items()):
            wire.plain.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                try:
                    if not wire.plain.recv(1000):
                        del left[wire]
                except ConnectionResetError:
                    del left[wire]
            wire.send(drip)
        time.sleep(0.05)
    return not left


def test_many_who_connect_and_send_nothing_are_closed(target: Target) -> None:
    before = target.sockets
    with contextlib.ExitStack() as stack:
        mute = [stack.enter_context(target.connect()) for _ in range(300)]
        with target.websocket() as other:  # who comes between them is served
            assert other.call("cancelSubscription", token="x" * 32)["type"] == "error"
        assert all_close(dict.fromkeys(mute, b""))
    assert target.settles(before)


SLOW = [
    ("frontend", "", b"G"),
    ("frontend", "GET /ws HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"a"),
    ("frontend", "GET /ws HTTP/1.1\r\n", b"a: b\r\n"),
    ("frontend", f"{EVENTS}Content-Length: 1000\r\n\r\n", b" "),
    ("frontend", "GET /syncserver.d.ts HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    ("backend", f"{POST}Content-Length: 1000\r\n\r\n", b" "),
    ("backend", f"{POST}Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ("backend", f"{POST}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", b""),
]


def test_a_head_or_body_that_drips_and_a_connection_without_another_request_are_given_up(
    target: Target,
) -> None:
    with contextlib.ExitStack() as stack:
        wires = {}
        for door, head, drip in SLOW:
            wire = stack.enter_context(target.connect(door))
            wire.send(head.encode())
            wires[wire] = drip
        assert all_close(wires)


@pytest.mark.parametrize(
    ("door", "data"),
    [
        ("frontend", b""),
        ("frontend", b"GET /ws HT"),
        ("frontend", UPGRADE.format(path="/ws").encode()),
        ("frontend", UPGRADE.format(path="/ws").encode() + masked(0x81, b"{}")[:-1]),
        ("frontend", UPGRADE.format(path="/ws").encode() + masked(0x01, b"{")),
        ("backend", f"{POST}Content-Length: 1000\r\n\r\n{{".encode()),
        ("backend", f"{POST}Content-Length: 2\r\n\r\n{{}}".encode()),
    ],
)
@pytest.mark.parametrize("way", ["reset", "close", "half-close"])
def test_who_breaks_off_anywhere_leaves_nothing_behind(
    target: Target, door: str, data: bytes, way: str
) -> None:
    before = target.sockets
    for _ in range(5):
        wire = target.connect(door)
        wire.send(data)
        if way == "reset":
            wire.reset()
        elif way == "close":
            wire.close()
        else:
            wire.plain.shutdown(socket.SHUT_WR)
            wire.rest()
            wire.close()
    assert target.settles(before)


def test_a_session_in_segments_of_one_byte_works(target: Target) -> None:
    call = {"command": "cancelSubscription", "params": {"token": "none"}, "callId": 5}
    text = json.dumps({"service": "datasync", "message": call}).encode()
    with target.connect() as wire:
        wire.plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in UPGRADE.format(path="/ws").encode():
            wire.send(bytes([byte]))
        assert wire.status() == 101
        for byte in masked(0x81, text):
            wire.send(bytes([byte]))
        assert wire.read()["code"] == "no_such_subscription"


def test_thousands_of_connects_in_a_row_are_taken_and_forgotten(target: Target) -> None:
    before = target.sockets
    for number in range(2_000):
        wire = target.connect("frontend" if number % 4 else "backend")
        (wire.reset if number % 2 else wire.close)()
    assert target.settles(before)


def test_who_comes_again_and_again_is_served_and_forgotten(target: Target) -> None:
    before = target.sockets
    for _ in range(200):
        target.websocket().reset()
    assert target.settles(before)


def test_who_is_closed_and_does_not_let_go_is_cut_off(target: Target) -> None:
    before = target.sockets
    with target.websocket(buffer=4096) as never_reads, target.websocket() as goes_on:
        never_reads.call("acquireSubscription", token=target.authorize())
        row = {"id": 1, "text": "x" * 200_000}
        for _ in range(20):
            delta = {"type": "insert", "model": "Task", "data": row}
            assert target.post("publishDeltas", deltas=[delta])["type"] == "response"
        goes_on.send(masked(0x83))
        assert goes_on.close_code() == 1002
        deadline = time.monotonic() + 15
        while target.sockets > before and time.monotonic() < deadline:
            goes_on.send(masked(0x81, b"{}"))
            time.sleep(0.01)
        assert target.settles(before)


def test_pipelined_requests_whose_answers_nobody_reads_are_held_back(target: Target) -> None:
    one = b"GET /syncserver.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with target.connect(buffer=4096) as wire:
        wire.plain.settimeout(0.5)
        with contextlib.suppress(TimeoutError, OSError):
            for _ in range(10_000):
                wire.plain.sendall(one)


def test_what_is_said_of_the_key_is_no_secret_of_the_log(target: Target) -> None:
    with target.ask(f"GET /?key={KEY[:10]}%0aroot HTTP/1.1\r\nHost: x\r\n\r\n".encode()) as wire:
        assert wire.status() == 404
