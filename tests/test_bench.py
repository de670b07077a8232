"""The benchmark measures what it says."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from docutils.core import publish_string

from bench import crowds, docs, fanout, ingest, matches, matching, plots, report
from bench.build import BENCH, PROGRAMS, Missing, program
from bench.engines import Measured, node, rate
from bench.engines import report as engines_report
from bench.figures import Figures, Spread, merged, quantile
from bench.load import LEAN, Generator
from bench.peers import KINDS, TEXT_BYTES, Kind, added, row, text
from bench.product import NAME
from bench.stage import FULL, QUICK, Stage
from bench.targets import TARGETS, Target

TINY = replace(QUICK, rounds=1, seconds=0.01, fan_out=(10,), paced=10, paced_seconds=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (on Debian and Ubuntu: apt install gcc libc6-dev)")
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="module")
def compiled(folder: Path) -> Sequence[str]:
    return (str(program(BENCH / "load.c", folder)),)


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


def test_quantiles_are_of_all_that_was_counted() -> None:
    histogram = merged([[(1, 50), (3, 49)], [(9, 1)], []])
    assert [quantile(histogram, part) for part in (0.5, 0.51, 0.99, 0.999)] == [1, 3, 3, 9]


def test_ratios_are_taken_within_a_round_and_told_by_their_median(tmp_path: Path) -> None:
    figures = Figures()
    for own, other in ((2, 4), (1, 3), (10, 100)):
        figures.add("s", "c", "own", cpu_us=own)
        figures.add("s", "c", "other", cpu_us=other)
    figures.note("once")
    figures.note("once")
    figures.write(tmp_path / "r" / "figures.json")
    again = Figures.read(tmp_path / "r" / "figures.json")
    for each in (figures, again):
        over, under = ("s", "c", "other", "cpu_us"), ("s", "c", "own", "cpu_us")
        assert each.ratios(over, under) == Spread(3, 2, 10)
        assert each.ratios(over, ("s", "c", "nobody", "cpu_us")) is None
        assert each.notes == ["once"]


@pytest.mark.parametrize(
    ("median", "verdict"), [(2, "moonshot"), (4, "yes"), (6, "no"), (None, "not measured")]
)
def test_a_target_is_met_by_the_median(median: float | None, verdict: str) -> None:
    target = Target("what", 5, 3, lambda figures: None, at_most=True)
    assert target.verdict(None if median is None else Spread(median, 0, 9)) == verdict


def as_a_full_run_has_it() -> Figures:
    """Return figures with the names that a full run gives them."""
    figures = Figures()
    servers = [NAME, *KINDS]
    for server in servers:
        for clients in FULL.fan_out:
            for mode in (fanout.ALONE, fanout.SIXTEEN):
                figures.add(fanout.SCENARIO, fanout.case(clients, mode), server, cpu_us=1)
        load = fanout.case(FULL.paced, fanout.PACED)
        figures.add(fanout.SCENARIO, load, server, cpu_us=1, p99_ms=1)
        for load in (ingest.SINGLE, ingest.BATCHED):
            figures.add(ingest.SCENARIO, load, server, cpu_us=1)
        figures.add(crowds.IDLE, f"{FULL.idle} clients", server, rss_bytes=1)
    for name in matching.MAKERS:
        for size in FULL.matching:
            load = matches.matching_case(name, size)
            figures.add(matches.MATCHING, load, NAME, us_per_delta=1, each_us=1)
    load = f"memory, {matches.MATCHING_MEMORY} filters"
    figures.add(matches.MATCHING, load, NAME, distinct_bytes=1, repeated_bytes=1)
    return figures


def test_a_full_run_measures_every_target_and_every_picture_of_the_documentation() -> None:
    figures = as_a_full_run_has_it()
    unmeasured = [target.what for target in TARGETS if target.reached(figures) is None]
    assert unmeasured == []
    drawn = {name for name, _, _ in plots.pictures(figures)}
    assert {plots.slug(shown) for shown in plots.SHOWN} <= drawn


def test_every_frame_is_as_long_as_every_other() -> None:
    assert {len(text(row(n, s, o))) for n in (0, 10**6) for s in (1, 10**12) for o in (0, 99)} == {
        TEXT_BYTES
    }


def made(tmp_path: Path, start: Sequence[str], limit: Kind) -> Figures:
    stage = Stage(TINY, start, [NAME, "epoll", "absent"], {"epoll": limit, "absent": _absent()})
    stage.figures.about = {"date": "a day", "machine": "m", "python": "p", "rounds": 1}
    stage.figures.about["generator"] = "C"
    fanout.run(stage)
    return stage.figures


def _absent() -> Kind:
    def command() -> Sequence[str]:
        raise Missing("it is not to be had")

    return Kind(command)


def test_a_fan_out_reaches_everybody_and_what_is_missing_is_named(
    tmp_path: Path, compiled: Sequence[str], folder: Path
) -> None:
    limit = str(program(PROGRAMS / "limit.c", folder))
    figures = made(tmp_path, compiled, Kind(lambda: (limit,)))
    for mode in (fanout.ALONE, fanout.SIXTEEN, fanout.BURST, fanout.PACED):
        for server in (NAME, "epoll"):
            case = fanout.case(10, mode)
            assert figures.get(fanout.SCENARIO, case, server, "delivered") == [1]
            assert figures.get(fanout.SCENARIO, case, server, "cpu_us")[0] > 0
    assert figures.missing == {"absent": "it is not to be had"}
    assert "missing: absent: it is not to be had" in report.whole(figures)
    docs.write(figures, tmp_path)
    page = (tmp_path / docs.PAGE).read_text("utf-8")
    publish_string(page, writer="null", settings_overrides={"halt_level": 2, "report_level": 5})
    assert "Missing: absent: it is not to be had." in page
    assert all(target.what in page for target in TARGETS)


def test_a_picture_is_well_formed_and_has_a_bar_for_each_server() -> None:
    bars = [("<own>", Spread(2, 1, 3)), ("other", Spread(1, 1, 1))]
    picture = ET.fromstring(plots.svg("a & b", bars, "x"))
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 2


def test_a_server_can_be_added_on_the_command_line() -> None:
    name, kind = added("mine=./serve --port 0")
    assert (name, kind.command()) == ("mine", ["./serve", "--port", "0"])
    with pytest.raises(SystemExit, match="NAME=COMMAND"):
        added("mine")


def test_what_does_not_start_is_missing_with_its_last_words(start: Sequence[str]) -> None:
    stage = Stage(TINY, start, ["broken"], {"broken": Kind(lambda: ("sh", "-c", "echo no >&2"))})
    with stage.all(1) as peers:
        assert peers == []
    assert stage.figures.missing == {"broken": "it did not start; no"}


def test_every_server_of_the_table_has_its_program_and_its_package() -> None:
    wanted = (PROGRAMS / "requirements.txt").read_text() + (PROGRAMS / "package.json").read_text()
    for name in KINDS.keys() - {"nchan", "epoll"}:
        assert name in wanted
    assert json.loads((PROGRAMS / "package.json").read_text())["private"]


def test_the_report_has_medians_and_their_ratios_to_the_first_engine() -> None:
    results = {
        "memory": Measured(single=[10, 1000, 20], batched=[100, 200, 300]),
        "other": Measured(single=[5, 10, 2000], batched=[50, 50, 1]),
    }
    _, memory, other = engines_report(results).splitlines()
    assert memory.split() == ["memory", "20", "(1.00x)", "200", "(1.00x)"]
    assert other.split() == ["other", "10", "(0.50x)", "50", "(0.25x)"]


async def test_a_rate_is_of_deltas_that_reached_every_node() -> None:
    async with contextlib.AsyncExitStack() as held:
        nodes = [await held.enter_async_context(node("memory"))]
        assert await rate(nodes, 10, 0.2) > 0
        assert nodes[0].counted
        assert not nodes[0].counted % 10
