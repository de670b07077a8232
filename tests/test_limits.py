"""Bounds on who comes, how fast, and what is kept for them: what happens when they are reached."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from syncserver.admission import gate as gates
from syncserver.admission.accepting import Acceptor
from syncserver.admission.addresses import _REMEMBERED, Addresses, Guesses, counted_as, is_public
from syncserver.admission.bucket import Bucket
from syncserver.admission.gate import BUSY, Gate, Seats, descriptors, places, raise_descriptors
from syncserver.config import Frontend, Limits
from syncserver.errors import TooManyWrongKeys
from syncserver.registry import ServiceRegistry
from syncserver.services.base import Request, RPCService, rpc_asynchronous, rpc_command
from tests.conftest import ExpectedLog
from tests.support.daemon import Daemon, Peer, call_body, process, serving, settings, until
from tests.support.sockets import Echo, RawPeer, mounted
from tests.support.sockjs import site

FULL = ("syncserver.server", "the most")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# Buckets and addresses.


def test_a_bucket_gives_what_it_holds_and_then_what_comes_back() -> None:
    clock = Clock()
    bucket = Bucket(10, 3, clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    assert bucket.wait_seconds == pytest.approx(0.1)
    clock.now = 0.1
    assert [bucket.take() for _ in range(2)] == [True, False]
    clock.now = 100
    assert bucket.is_full
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_what_is_too_much_at_once_takes_nothing() -> None:
    bucket = Bucket(1, 3, Clock())
    assert not bucket.take(4)
    assert bucket.wait_for(5) == 2
    assert bucket.wait_for(2) == 0
    assert bucket.take(1)


def test_an_address_has_so_many_at_once_and_asks_so_often() -> None:
    most, rate = 3, 2
    limits = Limits(max_connections_per_address=most, accepts_per_second_per_address=rate)
    addresses = Addresses(limits)
    for _ in range(most):
        assert addresses.admits("a")
        addresses.enter("a")
    assert not addresses.admits("a")
    assert addresses.admits("b")
    addresses.leave("a")
    assert addresses.admits("a")
    asked = [addresses.admits("c") for _ in range(20)]
    assert asked.count(True) in range(5 * rate, 2 * 5 * rate)


def test_addresses_without_end_take_no_memory_without_end() -> None:
    addresses = Addresses(Limits())
    for number in range(3 * _REMEMBERED):
        assert addresses.admits(str(number))
    assert len(addresses._rates._buckets) <= _REMEMBERED


def test_keys_that_are_none_are_counted_by_address_and_come_back_with_time() -> None:
    guesses = Guesses(Limits(wrong_keys_per_minute=6))
    for address in ("10.0.0.1", "2a00:1:2:3::1", "2a00:1:2:3::2", "no address"):
        for _ in range(3):
            guesses.wrong(address)
    for _ in range(12):
        with contextlib.suppress(TooManyWrongKeys):
            guesses.wrong("2a00:1:2:3::3")
    with pytest.raises(TooManyWrongKeys) as refused:
        guesses.wrong("2a00:1:2:3::4")
    assert refused.value.retry_after_seconds in range(1, 11)
    guesses.wrong("10.0.0.1")


@pytest.mark.parametrize(
    ("address", "counted", "public"),
    [
        ("8.8.8.8", "8.8.8.8", True),
        ("::ffff:8.8.8.8", "8.8.8.8", True),
        ("2a00:1:2:3:4:5:6:7", "2a00:1:2:3::/64", True),
        ("127.0.0.1", "127.0.0.1", False),
        ("10.1.2.3", "10.1.2.3", False),
        ("::ffff:10.1.2.3", "10.1.2.3", False),
        ("::1", "::/64", False),
        ("fd00::1", "fd00::/64", False),
        ("no address", "no address", False),
    ],
)
def test_an_address_counts_with_its_network_and_those_of_ones_own_do_not(
    address: str, counted: str, public: bool
) -> None:
    assert (counted_as(address), is_public(address)) == (counted, public)


# Connections.


def test_descriptors_are_left_for_what_is_not_a_browser() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        assert places(Limits()) == (1024 - 128, 128 - 32)
        assert places(Limits(max_connections=10)) == (10, 96)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert places(Limits()) == (256 - 64, 32)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("soft", "hard", "most", "wanted", "has_room"),
    [
        (1024, 524_288, 100_000, 114_286, True),
        (1024, 20_000, 100_000, 20_000, False),
        (1024, resource.RLIM_INFINITY, 7_000, 8_001, True),
        (1024, 524_288, 100, 1024, True),
        (1024, 1024, 100_000, 1024, False),
        (200_000, 524_288, 100_000, 200_000, True),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 100_000, resource.RLIM_INFINITY, True),
    ],
)
def test_the_soft_limit_of_descriptors_is_raised_as_far_as_the_connections_need(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, most: int, wanted: int, has_room: bool
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _what: (soft, hard))
    limits = Limits(max_connections=most)
    assert descriptors(limits) == wanted
    assert (places(limits, wanted)[0] == most) == has_room


async def test_a_daemon_takes_what_descriptors_it_may_have_and_says_for_how_many_clients(
    tmp_path: Path,
) -> None:
    limited = ("sh", "-c", 'ulimit -Sn 300; ulimit -Hn 3000; exec "$@"', "sh")
    program = (*limited, sys.executable, "-m", "syncserver")
    environ = {
        "SYNCSERVER_STATE_DIR": str(tmp_path),
        "SYNCSERVER_FRONTEND__PORT": "0",
        "SYNCSERVER_BACKEND__PORT": "0",
    }
    async with process("serve", environ=environ, program=program) as daemon:
        await daemon.started()
        said = "2625 at most: 3000 open files are too few for 100000"
        assert daemon.line("connections") == said
        assert resource.prlimit(daemon.child.pid, resource.RLIMIT_NOFILE) == (3000, 3000)


async def test_a_limit_that_may_not_be_raised_is_said(
    monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    def refuse(_what: int, _limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr("resource.getrlimit", lambda _what: (1024, 4096))
    monkeypatch.setattr("resource.setrlimit", refuse)
    with expected_log("syncserver.server", "1024 descriptors are all, for 4096 were refused"):
        raise_descriptors(Limits())


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_doors_that_share_their_seats_have_no_more_together() -> None:
    seats = Seats(1)
    one, other = (Gate(Limits(), seats, lambda address: False) for _ in range(2))
    ours, theirs = pair()
    with theirs:
        counted = one.admit(ours, "")
        assert counted is not None
        other._is_full = True  # it would say so in the log
        assert other.admit(theirs, "") is None
        counted.close()
        again = other.admit(theirs, "")
        assert again is not None
        again.close()
    assert seats.taken == 0


def test_a_connection_of_a_public_address_is_counted_until_it_is_closed() -> None:
    limits, seats = Limits(max_connections_per_address=1), Seats(10)
    gate = Gate(limits, seats, lambda address: address == "9.9.9.9")
    ours, theirs = pair()
    counted = gate.admit(ours, ("8.8.8.8", 1))
    assert counted is not None
    assert gate.open == 1
    for address in (("8.8.8.8", 2), ("::ffff:8.8.8.8", 2, 0, 0)):
        assert gate.admit(theirs, address) is None
    with contextlib.ExitStack() as stack:
        for address in (("9.9.9.9", 1), ("9.9.9.9", 2), ("10.0.0.1", 1), ("10.0.0.1", 2), ""):
            one, _ = map(stack.enter_context, pair())
            admitted = gate.admit(one, address)
            assert admitted is not None
            stack.enter_context(admitted)
    counted.close()
    counted.close()
    assert (gate.open, seats.taken) == (0, 0)
    with theirs:
        again = gate.admit(theirs, ("8.8.8.8", 3))
        assert again is not None
        again.close()
    assert gate.refused["address"] == 2


async def test_more_connections_than_allowed_are_told_to_come_again(
    expected_log: ExpectedLog,
) -> None:
    async with serving(Echo("echo"), max_connections=2) as daemon:
        port = daemon.server.frontend_port
        one, two = await daemon.connect(), await daemon.connect()
        with expected_log(*FULL):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await asyncio.wait_for(reader.read(), 5) == BUSY
        writer.close()
        assert await one.rest() == []
        assert (await daemon.request("/live", method="GET", headers={})).code == 200
        await two.close()
        await until(lambda: daemon.server._doors["frontend"].gate.open == 1)
        three = await daemon.connect()
        assert await three.rest() == []


async def test_under_tls_connections_are_counted_too(
    tmp_path: Path, expected_log: ExpectedLog
) -> None:
    authority = trustme.CA()
    certificate = tmp_path / "cert.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    certificate.chmod(0o600)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    config = settings(max_connections=1)
    door = Frontend(port=0, tls_cert=str(certificate))
    object.__setattr__(config, "frontend", door)
    async with serving(Echo("echo"), config=config) as daemon:
        port, gate = daemon.server.frontend_port, daemon.server._doors["frontend"].gate
        async with RawPeer.connected(port, tls=trust) as peer:
            assert gate.open == 1
            with expected_log(*FULL):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
            peer.send_json("echo", 1)
            assert json.loads((await peer.frame())[2])["message"] == 1
        await until(lambda: gate.open == 0)
        with socket.create_connection(("127.0.0.1", port)) as broken:
            await until(lambda: gate.open == 1)
            with expected_log("tornado.general", "SSL Error"):
                broken.sendall(b"GET / HTTP/1.1\r\n\r\n")
                await until(lambda: gate.open == 0)


def test_a_tls_connection_that_is_gone_at_once_is_counted_no_more(tmp_path: Path) -> None:
    certificate = tmp_path / "cert.pem"
    trustme.CA().issue_cert("x").private_key_and_cert_chain_pem.write_to_path(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    gate = Gate(Limits(), Seats(10), lambda _: False)
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = socket.create_connection(door.getsockname())
        client.sendall(b"x")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        taken, address = door.accept()
        client.close()  # with a reset
        counted = gate.admit(taken, address)
        assert counted is not None
        with contextlib.suppress(OSError):
            gates.wrapped(context, counted).close()
    assert gate.open == 0


async def test_connections_are_taken_at_a_pace_and_none_is_lost() -> None:
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=50) as door, contextlib.ExitStack() as all_:
        door.setblocking(False)
        acceptor = Acceptor(door, lambda one, _: taken.append(one), Bucket(100, 5))
        for _ in range(20):
            all_.enter_context(socket.create_connection(door.getsockname()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(taken) < 20
        async with asyncio.timeout(5):
            while len(taken) < 20:
                await asyncio.sleep(0.01)
        acceptor.close()
        for one in taken:
            one.close()


async def test_whom_a_trusted_proxy_names_is_bounded_by_address() -> None:
    config = settings(max_connections_per_address=2)
    door = Frontend(port=0, trusted_proxies=("127.0.0.1",))
    object.__setattr__(config, "frontend", door)
    async with serving(Echo("echo"), config=config) as daemon:
        one = await daemon.connect({"X-Forwarded-For": "8.8.8.8"})
        await daemon.connect({"X-Forwarded-For": "8.8.8.8"})
        with pytest.raises(HTTPClientError) as refused:
            await daemon.connect({"X-Forwarded-For": "8.8.8.8"})
        assert refused.value.code == 429
        assert refused.value.response is not None
        assert refused.value.response.headers["Retry-After"] == "1"
        await daemon.connect({"X-Forwarded-For": "9.9.9.9"})
        await one.close()
        await until(lambda: len(daemon.frontend.sessions) == 2)
        await daemon.connect({"X-Forwarded-For": "8.8.8.8"})


async def test_who_is_no_trusted_proxy_cannot_name_another() -> None:
    async with serving(Echo("echo"), max_connections_per_address=1) as daemon:
        for address in ("8.8.8.8", "8.8.8.8", "9.9.9.9"):
            await daemon.connect({"X-Forwarded-For": address})
        assert {one.remote_address for one in daemon.frontend.sessions} == {"127.0.0.1"}


@contextlib.contextmanager
def many(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connect as often as the daemon lets us."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            plain = stack.enter_context(socket.socket())
            plain.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                plain.connect(("127.0.0.1", port))
            sockets.append(plain)
        yield sockets


@pytest.mark.parametrize("when", ["before its start", "while it runs"])
@pytest.mark.seconds(60)
async def test_a_daemon_at_its_limit_of_descriptors_serves_those_it_has(
    tmp_path: Path, when: str
) -> None:
    descriptors, extra = 128, 400
    key = "k" * 32
    environ = {"HOME": str(tmp_path), "SYNCSERVER_KEY": key}
    sets = [
        f"--set={one}"
        for one in ("frontend.port=0", "backend.port=0", "backend.api_keys=env:SYNCSERVER_KEY")
    ]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    at_start = descriptors if when == "before its start" else max(soft, 1024)
    resource.setrlimit(resource.RLIMIT_NOFILE, (at_start, hard))
    try:
        async with process("serve", *sets, environ=environ, cwd=tmp_path) as running:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1024), hard))
            await running.started()
            pid = running.child.pid
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))
            url = running.line("frontend")
            port = int(url.rpartition(":")[2].partition("/")[0])
            peer = Peer(await websocket_connect(url))
            with many(port, extra):
                began = cpu_seconds(pid)
                for _ in range(20):
                    assert await peer.rest() == []
                    await asyncio.sleep(0.05)
                assert cpu_seconds(pid) - began < 0.8, "it spins"
            again = Peer(await connected(url))
            assert await again.rest() == []
            await again.close()
            await peer.close()
            running.child.terminate()
            assert await running.ended() == 0
            assert len(running.log) < 20_000, running.log
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def connected(url: str) -> Any:
    """Connect, when there is room again."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(OSError, HTTPClientError):
                return await websocket_connect(HTTPRequest(url, connect_timeout=2))
            await asyncio.sleep(0.05)


def cpu_seconds(pid: int) -> float:
    """Return what a process has used of its processor."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Messages.


async def test_messages_faster_than_allowed_end_a_session_with_4013() -> None:
    most = 20
    async with serving(Echo("echo"), messages_per_second=1, max_message_burst=most) as daemon:
        canary = await daemon.connect()
        async with RawPeer.connected(daemon.server.frontend_port) as peer:
            for number in range(3 * most):
                peer.send_json("echo", number)
            answers = 0
            while (frame := await peer.frame())[0] == 0x81:
                answers += 1
            assert frame[2] == b'\x0f\xad{"retry_after": 1000}'
            assert answers in range(most, 2 * most + 1)
        assert await canary.rest() == []


async def test_a_long_message_counts_as_several() -> None:
    async with serving(Echo("echo"), messages_per_second=1, max_message_burst=20) as daemon:
        long, short = await daemon.connect(), await daemon.connect()
        for _ in range(4):
            long.send("echo", "x" * 50_000)
            short.send("echo", "x")
        assert (await long.end())[0] == 4013
        assert await short.rest() == ["x"] * 4


@pytest.mark.parametrize("opcode", [0x9, 0xA])
async def test_pings_and_pongs_nobody_asked_for_count_as_messages(opcode: int) -> None:
    registry = ServiceRegistry([], limits=Limits(messages_per_second=1, max_message_burst=20))
    async with mounted(registry) as port, RawPeer.connected(port) as peer:
        for _ in range(60):
            peer.send(opcode)
        assert await peer.close_code() == 4013
        for _ in range(60):  # and nothing of it is read from then on
            peer.send(opcode)


async def test_who_answers_pings_and_says_nothing_else_is_closed_in_time() -> None:
    limits = {"ping_seconds": 0.04, "pong_seconds": 5, "first_message_seconds": 0.2}
    async with serving(Echo("echo"), **limits) as daemon:
        daemon.server._wheel._tick_seconds = 0.02
        mute, speaker = await daemon.connect(), await daemon.connect()
        assert await speaker.rest() == []
        assert (await mute.end())[0] == 4009
        assert await speaker.rest() == []


async def test_who_polls_and_says_nothing_is_closed_in_time() -> None:
    async with site(ping_seconds=0.1, first_message_seconds=0.3) as place:
        path = place.session()
        async with asyncio.timeout(10):
            while not (frame := await place.poll(path)).startswith(b"c"):
                pass
        assert frame == b'c[4009,""]\n'


async def test_a_message_that_does_not_end_is_given_up() -> None:
    limits = {"ping_seconds": 0.04, "pong_seconds": 5, "message_seconds": 0.2}
    async with serving(Echo("echo"), **limits) as daemon:
        daemon.server._wheel._tick_seconds = 0.02
        async with RawPeer.connected(daemon.server.frontend_port) as peer:
            peer.send_json("echo", 1)
            peer.send_bytes(0x01, b"{")
            codes = []
            while not codes:
                first, _, payload = await peer.frame()
                if first == 0x89:
                    peer.send(0xA, payload)
                    peer.send_bytes(0x00, b" ")
                if first == 0x88:
                    codes.append(int.from_bytes(payload[:2], "big"))
            assert codes == [4009]


# What waits for all.


class Maker(RPCService):
    @rpc_command
    def many(self, req: Request, count: int, length: int) -> None:
        for _ in range(count):
            self.send_message_to(req.client, {"type": "text", "text": "x" * length})

    @rpc_command
    @rpc_asynchronous
    def never(self, req: Request) -> None:
        return None


async def test_over_the_bound_for_all_those_with_the_most_waiting_are_closed(
    expected_log: ExpectedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncserver.server._RELIEF_SECONDS", 0.05)
    limits = {"max_outboxes_bytes": 500_000, "max_send_buffer_bytes": 4096}
    async with serving(Maker("maker"), **limits) as daemon:
        daemon.server._wheel._tick_seconds = 0.02
        canary = await daemon.connect()
        port = daemon.server.frontend_port
        async with contextlib.AsyncExitStack() as stack:
            connect = RawPeer.connected
            big, small = [
                await stack.enter_async_context(connect(port, buffer=4096)) for _ in range(2)
            ]
            call = {"command": "many", "params": {"count": 300, "length": 1_000}}
            with expected_log("syncserver.session", "max_outboxes_bytes"):
                small.send_json("maker", call)
                for _ in range(3):
                    big.send_json("maker", call)
                await until(lambda: len(daemon.frontend.sessions) == 2)
            waiting = sorted(session.pending for session in daemon.frontend.sessions)
            assert 100_000 < waiting[-1] < 400_000
            assert await canary.rest() == []


async def test_what_many_wait_for_counts_once() -> None:
    limits = {"max_outboxes_bytes": 400_000, "max_send_buffer_bytes": 4096}
    async with serving(**limits) as daemon, contextlib.AsyncExitStack() as stack:
        port = daemon.server.frontend_port
        for _ in range(8):
            peer = await stack.enter_async_context(RawPeer.connected(port, buffer=4096))
            peer.acquire(await daemon.authorize(("AllTasks", None)))
        peers = daemon.frontend.registered_services["datasync"].subscriptions.peers  # type: ignore[attr-defined]
        await until(lambda: len(peers) == 8)
        row = {"id": 1, "text": "x" * 30_000}
        for _ in range(10):
            await daemon.publish({"type": "insert", "model": "Task", "data": row})
        sessions = daemon.frontend.sessions
        await until(lambda: sum(one.pending for one in sessions) > 8 * 200_000)
        daemon.server._relieve()
        assert len(sessions) == 8


# Of the web app.


async def test_more_calls_than_allowed_are_429() -> None:
    async with serving(backend=[Maker("maker")], max_calls=2, call_seconds=1) as daemon:
        slow = [asyncio.ensure_future(daemon.post("maker", "never")) for _ in range(2)]
        await until(lambda: daemon.backend.calls_under_way == 2)
        refused = await daemon.request(body=call_body("maker", "never", {}))
        assert (refused.code, refused.headers["Retry-After"]) == (429, "1")
        assert json.loads(refused.body)["message"]["code"] == "too_many_calls"
        assert {answer["code"] for answer in await asyncio.gather(*slow)} == {"timeout"}
        answer = await daemon.post("maker", "many", count=0, length=0)
        assert answer == {"type": "response", "data": None}


async def test_more_bytes_of_calls_than_allowed_are_429_and_let_go_of() -> None:
    limits = {"max_calls_bytes": 10_000, "max_body_bytes": 8_000, "call_seconds": 1}
    async with serving(backend=[Maker("maker")], **limits) as daemon:
        body = call_body("maker", "never", {}) + " " * 7_000
        slow = asyncio.ensure_future(daemon.request(body=body))
        await until(lambda: daemon.backend.bytes_under_way > 7_000)
        refused = await daemon.request(body=body)
        assert (refused.code, refused.headers["Retry-After"]) == (429, "1")
        assert (await slow).code == 504
        assert daemon.backend.bytes_under_way == 0


async def test_a_caller_that_leaves_in_the_middle_of_its_body_is_let_go_of() -> None:
    async with serving(backend=[Maker("maker")]) as daemon:
        _, writer = await asyncio.open_connection("127.0.0.1", daemon.server.backend_port)
        head = "POST /backend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        key = "X-Backend-Key: the-key-of-the-tests-is-long-enough\r\n"
        writer.write(f"{head}{key}Content-Length: 1000\r\n\r\nhalf".encode())
        await until(lambda: daemon.backend.bytes_under_way == 4)
        writer.transport.abort()
        await until(lambda: daemon.backend.bytes_under_way == 0)


async def test_more_tokens_than_allowed_are_429_until_some_are_acquired() -> None:
    async with serving(max_grants=3) as daemon:
        tokens = [await daemon.authorize(("AllTasks", None)) for _ in range(3)]
        assert await refusal(daemon) == (429, "1", "too_many_grants")
        peer = await daemon.connect()
        await peer.call("datasync", "acquireSubscription", token=tokens[0])
        await daemon.authorize(("AllTasks", None))
        assert await refusal(daemon) == (429, "1", "too_many_grants")


async def test_more_bytes_of_tokens_than_allowed_are_429_until_they_expire() -> None:
    async with serving(max_grants_bytes=2_000, grant_seconds=0.05) as daemon:
        for _ in range(2):
            await daemon.authorize(("AllTasks", None))
        assert (await refusal(daemon, query="x" * 2_000))[0] == 429
        engine: Any = daemon.server._engine
        async with asyncio.timeout(5):
            while engine._grants:
                await asyncio.sleep(0.05)
        assert engine._waiting._bytes == 0
        await daemon.authorize(("AllTasks", None))


async def refusal(daemon: Daemon, query: Any = None) -> tuple[int, str, str]:
    items = [{"dealer": "AllTasks", "query": query}]
    answer = await daemon.request(
        body=call_body("datasync_backend", "authorizeSubscription", {"items": items})
    )
    return answer.code, answer.headers["Retry-After"], json.loads(answer.body)["message"]["code"]


@pytest.mark.parametrize(
    ("door", "path", "method", "allowed"),
    [
        ("backend", "/backend", "GET", "POST"),
        ("backend", "/backend", "TRACE", "POST"),
        ("backend", "/live", "POST", "GET"),
        ("backend", "/ready", "DELETE", "GET"),
        ("frontend", "/ws", "POST", "GET"),
        ("frontend", "/events", "PUT", "GET, POST, OPTIONS"),
        ("frontend", "/syncserver.js", "POST", "GET"),
        ("frontend", "/ws/sockjs/info", "POST", "OPTIONS, GET"),
    ],
)
async def test_a_method_that_is_not_there_is_405_and_told_what_is(
    door: str, path: str, method: str, allowed: str
) -> None:
    async with serving() as daemon:
        port = daemon.server.backend_port if door == "backend" else daemon.server.frontend_port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
        assert head.startswith("HTTP/1.1 405 ")
        assert f"\r\nAllow: {allowed}\r\n" in head


async def test_a_library_has_no_gate_and_the_limits_of_its_registry() -> None:
    registry = ServiceRegistry([Echo("echo")], limits=Limits(max_message_burst=5))
    assert registry.admits("anywhere")
    async with mounted(registry) as port, RawPeer.connected(port) as peer:
        for number in range(20):
            peer.send_json("echo", number)
        assert await peer.close_code() == 4013
