"""The load generators, in C and in Python, count and time what a server sends, however it comes."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.build import BENCH, program
from bench.load import LEAN, Generator


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (on Debian and Ubuntu: apt install gcc libc6-dev)")
    return (str(program(BENCH / "load.c", tmp_path_factory.mktemp("built"))),)


@pytest.fixture(params=["C", "Python"])
def start(request: pytest.FixtureRequest) -> Sequence[str]:
    return LEAN if request.param == "Python" else request.getfixturevalue("compiled")


@contextlib.contextmanager
def talking(
    pieces: Sequence[bytes], go: threading.Semaphore | None = None
) -> Iterator[tuple[int, list[bytes]]]:
    """Serve one WebSocket that is sent these pieces; an empty one waits for what comes.

    :param go: is acquired before each piece but the first.
    """
    came: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def serve() -> None:
        peer, _ = listener.accept()
        peer.settimeout(10)
        with peer:
            came.append(peer.recv(4096))
            for number, piece in enumerate(pieces):
                if number and go is not None:
                    assert go.acquire(timeout=10)
                if piece:
                    peer.sendall(piece)
                else:
                    came.append(peer.recv(4096))
            peer.shutdown(socket.SHUT_WR)
            while got := peer.recv(4096):
                came.append(got)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], came
    finally:
        thread.join(10)
        listener.close()


@contextlib.contextmanager
def generating(start: Sequence[str]) -> Iterator[Generator]:
    generator = Generator(start)
    try:
        yield generator
    finally:
        generator.stop()


def frame(payload: bytes, opcode: int = 1) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes([0x80 | opcode, size]) + payload
    if size < 1 << 16:
        return bytes([0x80 | opcode, 126]) + size.to_bytes(2, "big") + payload
    return bytes([0x80 | opcode, 127]) + size.to_bytes(8, "big") + payload


def delta(size: int = 0) -> bytes:
    return b'{"pad":"' + b"x" * size + b'","sent":1}'


UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def test_frames_are_counted_however_they_are_cut(start: Sequence[str]) -> None:
    whole = b"".join(frame(delta(size)) for size in (0, 100, 200, 70_000))
    whole += frame(b"no stamp") + frame(b"?", opcode=9) + frame(delta())
    cuts = [0, 1, 2, 10, 100, 160, 250, 370, 371, 372, 380, 40_000, len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    go, answers = threading.Semaphore(0), []
    with talking([UPGRADED, *pieces, b""], go) as (port, came), generating(start) as generator:
        assert generator.connect(port, "/ws", 1, seconds=10).ready == 1
        for _ in pieces:
            go.release()
            answers.append(generator.wait(1, 0.02))  # the next piece shall come alone, if it can
        answers.append(generator.wait(5 - sum(answer.frames for answer in answers), 10))
        go.release()
    assert sum(answer.frames for answer in answers) == 5
    assert sum(answer.others for answer in answers) == 1
    assert sum(answer.bytes for answer in answers) == sum(
        len(delta(size)) for size in (0, 100, 200, 70_000, 0)
    )
    assert sum(times for answer in answers for _, times in answer.latency) == 5
    assert sum(count for answer in answers for count, _ in answer.last) == 5
    assert came[1] == b"\x8a\x81\0\0\0\0?"  # the pong, masked with zeros


def test_a_client_is_ready_when_its_calls_are_answered(
    start: Sequence[str], tmp_path: Path
) -> None:
    texts = tmp_path / "texts"
    texts.write_text("one\ntwo\n")
    replies = [frame(b'{"type":"response"}'), frame(b'{"position":"p1"}{"type":"response"}')]
    with talking([UPGRADED, b"", *replies]) as (port, came), generating(start) as generator:
        answer = generator.connect(port, "/", 1, texts=texts, mark='"type":"response"', seconds=10)
        assert (answer.ready, answer.failed, answer.position) == (1, 0, "p1")
    assert b"".join(came[1:]).startswith(b"\x81\x83\0\0\0\0one")


def test_a_client_of_socket_io_joins_and_answers_pings(start: Sequence[str]) -> None:
    pieces = [UPGRADED + frame(b'0{"sid":1}'), b"", frame(b'40{"sid":2}') + frame(b"2")]
    with talking([*pieces, b"", frame(b"42" + delta())]) as (port, came):
        with generating(start) as generator:
            answer = generator.connect(port, "/", 1, dialect="engine.io", seconds=10)
            assert answer.ready == 1
            assert generator.wait(1, 10).frames == 1
        assert b"Sec-WebSocket-Key" in came[0]
    assert came[1:3] == [b"\x81\x82\0\0\0\x0040", b"\x81\x81\0\0\0\x003"]


def test_frames_are_taken_when_they_come_and_not_when_they_are_asked_for(
    start: Sequence[str],
) -> None:
    with generating(start) as generator:
        with talking([UPGRADED, frame(b"?", opcode=9), b""]) as (port, came):
            assert generator.connect(port, "/ws", 1, seconds=10).ready == 1
        assert came[1:] == [b"\x8a\x81\0\0\0\0?"]


def test_a_client_that_is_refused_is_counted_as_failed(start: Sequence[str]) -> None:
    with talking([b"HTTP/1.1 404 Not Found\r\n\r\n"]) as (port, _), generating(start) as generator:
        answer = generator.connect(port, "/ws", 1, seconds=10)
        assert (answer.ready, answer.failed) == (0, 1)


def test_a_bucket_of_the_histogram_is_as_wide_as_a_64th_of_its_values(
    compiled: Sequence[str],
) -> None:
    values = [0, 1, 63, 64, 65, 127, 128, 1000, 12345, 999_999, 2**40, 2**62]
    told = subprocess.run(
        [*compiled, "buckets", *map(str, values)], capture_output=True, text=True, check=True
    )
    for value, line in zip(values, told.stdout.splitlines(), strict=True):
        low, after = map(int, line.split())
        assert low <= value < after
        assert after - low <= max(1, value // 64)
