"""WebSockets: who may connect, pings, bounds, slow peers, and the frames themselves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import socket
import ssl
import statistics
import struct
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from syncserver.config import Limits
from syncserver.dealers import BroadcastDealer
from syncserver.engines.base import Taken
from syncserver.engines.memory import MemoryEngine
from syncserver.handlers import outlet
from syncserver.protocols.base import Change, Event, Frame
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.services.base import Request, RPCService, Service, rpc_command
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from syncserver.session import Client, Session
from syncserver.timers import Wheel
from tests.conftest import ExpectedLog
from tests.support.calls import backend_call
from tests.support.daemon import Daemon, Peer, serving, settings, until
from tests.support.sockets import HANDSHAKE, Echo, RawPeer, mounted


class Maker(RPCService):
    """Makes texts of any length."""

    @rpc_command
    def text(self, req: Request, length: int) -> str:
        return "x" * length

    @rpc_command
    def many(self, req: Request, count: int, length: int) -> int:
        for _ in range(count):
            self.send_message_to(req.client, {"type": "text", "text": "x" * length})
        return count


# Origins.


async def origin_status(url: str, origin: str | None, **headers: str) -> int:
    """Connect as a page of an origin and return the status of the answer."""
    if origin is not None:
        headers["Origin"] = origin
    try:
        connection = await websocket_connect(HTTPRequest(url, headers=headers))
    except HTTPClientError as error:
        return error.code
    await Peer(connection).close()
    return 101


LISTED = ["https://good.example", "http://dev.example:8080", "http://localhost:*"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("https://good.example", 101),
        ("HTTPS://Good.Example", 101),
        ("http://dev.example:8080", 101),
        ("http://localhost", 101),
        ("http://localhost:1", 101),
        ("http://localhost:65535", 101),
        ("http://LOCALHOST:80", 101),
        ("http://good.example", 403),
        ("https://good.example:8443", 403),
        ("https://good.example.evil.com", 403),
        ("https://evil.com/https://good.example", 403),
        ("https://good.example@evil.com", 403),
        ("https://evilgood.example", 403),
        ("https://sub.good.example", 403),
        ("https://good.example/", 403),
        ("https://good.example, https://good.example", 403),
        ("http://dev.example", 403),
        ("http://dev.example:80801", 403),
        ("https://localhost", 403),
        ("http://localhost.evil.com", 403),
        ("http://localhost.evil.com:80", 403),
        ("http://localhost:80@evil.com:80", 403),
        ("http://localhost:80.evil.com", 403),
        ("http://localhost:99999", 403),
        ("null", 403),
        ("*", 403),
        ("file://", 403),
        ("garbage", 403),
        ("http://[::1", 403),
    ],
)
async def test_only_pages_of_listed_origins_may_connect(origin: str | None, status: int) -> None:
    config = settings(origins=LISTED)
    async with serving(Echo("echo"), config=config) as daemon:
        assert await origin_status(daemon.ws_url, origin) == status


async def test_a_page_whose_name_was_made_to_point_here_may_not_connect() -> None:
    async with serving(Echo("echo"), config=settings(origins=LISTED)) as daemon:
        host = f"evil.example:{daemon.server.frontend_port}"
        for site in ({}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
            assert await origin_status(daemon.ws_url, f"http://{host}", Host=host, **site) == 403


@pytest.mark.parametrize("path", ["/ws", "/ws/sockjs/info", "/events"])
async def test_an_origin_that_is_refused_stands_in_the_log_in_one_line(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Echo("echo"), config=settings(origins=LISTED)) as daemon:
        url = daemon.ws_url.replace("ws://", "http://").removesuffix("/ws") + path
        for origin in ("https://evil.example", "https://evil\texample", "https://" + "x" * 1000):
            with caplog.at_level("INFO", "syncserver"):
                answer = await AsyncHTTPClient().fetch(
                    HTTPRequest(url, headers={"Origin": origin}), raise_error=False
                )
            assert answer.code == 403
    lines = [text for text in caplog.messages if "Refused" in text]
    assert lines[0] == "Refused a page of the origin 'https://evil.example' from 127.0.0.1"
    assert r"'https://evil\texample'" in lines[1]
    assert len(lines[2]) < 300
    assert len(lines) == 3


async def test_a_daemon_that_was_told_nothing_lets_pages_of_this_machine_in() -> None:
    async with serving() as daemon:
        for origin, status in (
            ("http://localhost:3000", 101),
            ("https://127.0.0.1", 101),
            ("http://[::1]:8000", 101),
            ("https://app.example", 403),
            ("null", 403),
        ):
            assert await origin_status(daemon.ws_url, origin) == status, origin


async def test_any_origin_may_connect_where_the_list_says_so() -> None:
    async with serving(Echo("echo"), config=settings(origins=["*"])) as daemon:
        assert await origin_status(daemon.ws_url, "https://any.example") == 101
        assert await origin_status(daemon.ws_url, "null") == 101


async def test_without_a_list_only_pages_of_the_same_host_may_connect(
    expected_log: ExpectedLog,
) -> None:
    refused = expected_log("tornado.access", "403 GET /ws")  # as any application logs it
    async with mounted(ServiceRegistry([Echo("echo")])) as port:
        url = f"ws://127.0.0.1:{port}/ws"
        assert await origin_status(url, f"http://127.0.0.1:{port}") == 101
        assert await origin_status(url, None) == 101
        with refused:
            assert await origin_status(url, "http://127.0.0.1") == 403
            assert await origin_status(url, "https://evil.com") == 403
            assert await origin_status(url, "null") == 403


async def test_an_origin_in_a_list_of_the_program_may_be_written_in_any_case() -> None:
    registry = ServiceRegistry([Echo("echo")])
    async with mounted(registry, allowed_origins=["https://Good.Example"]) as port:
        assert await origin_status(f"ws://127.0.0.1:{port}/ws", "https://good.example") == 101


async def test_what_is_no_websocket_is_told_so() -> None:
    async with serving(Echo("echo")) as daemon:
        url = daemon.ws_url.replace("ws:", "http:")
        response = await daemon._client.fetch(url, raise_error=False)
        assert response.code == 400


# Life signs.


async def test_s78_pings_with_an_empty_payload_come_every_interval() -> None:
    registry = ServiceRegistry([Echo("echo")])
    async with mounted(registry, ping_pong_interval=0.05) as port, RawPeer.connected(port) as peer:
        times = []
        for _ in range(5):
            assert await peer.frame() == (0x89, 2, b"")
            times.append(asyncio.get_running_loop().time())
            peer.send(0xA)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert min(gaps) > 0.04
        assert statistics.median(gaps) < 0.2


async def test_a_peer_that_does_not_answer_a_ping_is_closed_with_4012() -> None:
    registry = ServiceRegistry([Echo("echo")], limits=Limits(pong_seconds=0.04))
    async with mounted(registry, ping_pong_interval=0.05) as port, RawPeer.connected(port) as peer:
        begin = asyncio.get_running_loop().time()
        assert await peer.close_code() == 4012
        assert asyncio.get_running_loop().time() - begin < 1
        assert not registry.sessions


async def test_a_peer_that_sends_something_else_lives_too() -> None:
    registry = ServiceRegistry([Echo("echo")], limits=Limits(pong_seconds=0.04))
    async with mounted(registry, ping_pong_interval=0.05) as port, RawPeer.connected(port) as peer:
        for number in range(4):
            assert (await peer.frame())[0] == 0x89
            peer.send_json("echo", number)
            first, _, payload = await peer.frame()
            assert (first, json.loads(payload)["message"]) == (0x81, number)


async def test_a_pong_that_was_not_asked_for_is_harmless() -> None:
    async with (
        mounted(ServiceRegistry([Echo("echo")]), ping_pong_interval=None) as port,
        RawPeer.connected(port) as peer,
    ):
        peer.send(0xA, b"unasked")
        peer.send_json("echo", 1)
        assert (await peer.frame())[0] == 0x81


@pytest.mark.parametrize("interval", [0, None])
async def test_pings_may_be_left_off(interval: Any) -> None:
    wheel = Wheel(tick_seconds=0.01)
    registry = ServiceRegistry([Echo("echo")], limits=Limits(ping_seconds=0.01))
    async with (
        mounted(registry, ping_pong_interval=interval, wheel=wheel) as port,
        RawPeer.connected(port) as peer,
    ):
        rung = asyncio.Event()
        wheel.call_later(0.05, rung.set)
        await rung.wait()
        peer.send_json("echo", 1)
        assert (await peer.frame())[0] == 0x81


async def test_the_interval_is_that_of_the_limits_unless_the_route_says_otherwise() -> None:
    registry = ServiceRegistry([Echo("echo")], limits=Limits(ping_seconds=0.03))
    async with mounted(registry) as port, RawPeer.connected(port) as peer:
        assert await peer.frame() == (0x89, 2, b"")


async def test_a_ping_of_the_peer_is_answered_while_a_command_takes_its_time() -> None:
    class Stuck(Service):
        async def process_message_from(self, client: Client, msg: Any) -> None:
            await gate.wait()

    gate = asyncio.Event()
    async with (
        serving(Stuck("stuck")) as daemon,
        RawPeer.connected(daemon.server.frontend_port) as peer,
    ):
        peer.send_json("stuck", 1)
        peer.send(0x9, b"are you there?")
        assert await peer.frame() == (0x8A, 2, b"are you there?")
        gate.set()


async def test_alarms_are_cancelled_when_their_session_ends() -> None:
    wheel = Wheel(tick_seconds=0.01)
    registry = ServiceRegistry([Echo("echo")])
    async with (
        mounted(registry, ping_pong_interval=0.02, wheel=wheel) as port,
        RawPeer.connected(port) as peer,
    ):
        await peer.frame()
        peer.vanish()
        await until(lambda: not registry.sockets)
        await until(lambda: wheel._timer is None)


# Bounds and ends.


async def test_a_message_over_the_limit_ends_its_connection_with_1009() -> None:
    async with serving(Echo("echo"), max_message_bytes=1000) as daemon:
        peer, other = await daemon.connect(), await daemon.connect()
        peer.send_text("x" * 1000)
        assert (await peer.read())["message"]["code"] == "invalid_json"
        peer.send_text("x" * 1001)
        assert (await peer.end())[0] == 1009
        assert await other.rest() == []


async def test_a_message_in_pieces_over_the_limit_ends_its_connection_with_1009() -> None:
    async with (
        serving(Echo("echo"), max_message_bytes=150) as daemon,
        RawPeer.connected(daemon.server.frontend_port) as peer,
    ):
        peer.send_bytes(0x01, b"x" * 100)
        peer.send_bytes(0x80, b"x" * 100)
        assert await peer.close_code() == 1009


async def test_a_message_in_pieces_is_read_as_one() -> None:
    async with (
        serving(Echo("echo")) as daemon,
        RawPeer.connected(daemon.server.frontend_port) as peer,
    ):
        text = b'{"service": "echo", "message": [1, 2]}'
        peer.send_bytes(0x01, text[:10])
        peer.send(0x9, b"between")
        peer.send_bytes(0x80, text[10:])
        assert (await peer.frame())[0] == 0x8A
        assert json.loads((await peer.frame())[2])["message"] == [1, 2]


async def test_text_that_is_no_utf_8_ends_its_own_connection_alone() -> None:
    async with serving(Echo("echo")) as daemon:
        other = await daemon.connect()
        async with RawPeer.connected(daemon.server.frontend_port) as peer:
            peer.send(0x1, b"\xff\xfe")
            assert await peer.close_code() == 1007
            assert await other.rest() == []


@pytest.mark.parametrize(
    ("first", "payload"),
    [
        (0xC1, b"compressed, though nobody agreed to that"),
        (0x83, b"no such opcode"),
        (0x8B, b"no such control frame"),
        (0x80, b"the continuation of nothing"),
        (0x09, b"a ping in pieces"),
        (0x89, bytes(126)),
    ],
)
async def test_a_frame_that_breaks_the_rules_is_answered_with_1002(
    first: int, payload: bytes
) -> None:
    async with serving(Echo("echo")) as daemon:
        other = await daemon.connect()
        async with RawPeer.connected(daemon.server.frontend_port) as peer:
            peer.send_bytes(first, payload)
            assert await peer.close_code() == 1002
            assert await other.rest() == []
        await until(lambda: len(daemon.frontend.sessions) == 1)


# Each with raw bytes: over the socket itself, and over Tornado's stream.


@pytest.fixture(params=["direct", "stream"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let bytes go over the socket itself, or over Tornado's stream."""
    if request.param == "stream":
        monkeypatch.setattr(outlet, "taken", lambda stream: None)
    return str(request.param)


@asynccontextmanager
async def beside_a_canary() -> AsyncIterator[tuple[Daemon, RawPeer]]:
    """Give a raw peer beside another one, which must not notice anything."""
    async with serving(Echo("echo")) as daemon:
        canary = await daemon.connect()
        async with RawPeer.connected(daemon.server.frontend_port) as peer:
            yield daemon, peer
            assert await canary.rest() == []
        await until(lambda: len(daemon.frontend.sessions) == 1)
        await until(lambda: daemon.frontend.sockets == 1)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x01x", 1002),  # not masked
        (b"\x88\x00", 1002),  # a close that is not masked
        (b"\xc1\x80\0\0\0\0", 1002),
        (b"\xa1\x80\0\0\0\0", 1002),
        (b"\x83\x80\0\0\0\0", 1002),
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),
        (b"\x01\x81\0\0\0\0\xff", 1007),
        (b"\x88\x81\0\0\0\0\x03", 1002),
        (b"\x88\x83\0\0\0\0\x03\xe8\xff", 1007),
        (b"\x81\xff" + b"\xff" * 8, 1009),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
        *[
            (b"\x88\x82\0\0\0\0" + struct.pack(">H", code), 1002)
            for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535)
        ],
    ],
)
async def test_what_breaks_a_rule_is_told_why_and_nobody_else_notices(
    way: str, data: bytes, code: int
) -> None:
    async with beside_a_canary() as (daemon, peer):
        peer.send_raw(data)
        assert await peer.close_code() == code
        await until(lambda: len(daemon.frontend.sessions) == 1)
        peer.send_raw(b"\x81\x81\0\0\0\0x")  # nothing is read of it any more


@pytest.mark.parametrize("body", [b"", b"\x03\xe8", b"\x03\xe9away", b"\x0f\xa0", b"\x13\x87"])
async def test_a_close_is_answered_with_its_code_and_ends_the_connection(
    way: str, body: bytes
) -> None:
    async with beside_a_canary() as (_, peer):
        peer.send(0x8, body)
        assert await peer.frame() == (0x88, 2, body[:2])
        assert await peer.ended()


async def test_what_comes_after_a_close_is_not_read(way: str) -> None:
    async with beside_a_canary() as (_, peer):
        close = b"\x88\x82\0\0\0\0\x03\xe8"
        peer.send_raw(close + b"\x81\x81\0\0\0\0x" + close)
        assert await peer.frame() == (0x88, 2, b"\x03\xe8")
        assert await peer.ended()


async def test_a_ping_between_pieces_is_answered_and_the_message_is_whole(way: str) -> None:
    async with beside_a_canary() as (_, peer):
        text = b'{"service":"echo","message":"\xe2\x82\xac"}'
        cut = text.index(b"\x82")
        peer.send_bytes(0x01, text[:cut])
        peer.send(0x9, b"?")
        peer.send_bytes(0x80, text[cut:])
        assert await peer.frame() == (0x8A, 2, b"?")
        assert json.loads((await peer.frame())[2])["message"] == "\u20ac"


async def test_a_frame_that_comes_byte_by_byte_is_read(way: str) -> None:
    text = b'{"service":"echo","message":1}'
    async with beside_a_canary() as (_, peer):
        for byte in bytes([0x81, 0x80 | len(text)]) + bytes(4) + text:
            peer.send_raw(bytes([byte]))
            await asyncio.sleep(0)
        assert (await peer.frame())[2] == text


@pytest.mark.parametrize("data", [b"\x81", b"\x81\x85\0\0", b"\x01\x81\0\0\0\0x"])
async def test_a_peer_that_vanishes_in_the_middle_of_a_frame_is_forgotten(
    way: str, data: bytes
) -> None:
    async with beside_a_canary() as (daemon, peer):
        peer.send_raw(data)
        await asyncio.sleep(0)
        peer.vanish()
        await until(lambda: daemon.frontend.sockets == 1)


async def test_a_peer_that_ends_its_half_has_ended(way: str) -> None:
    async with beside_a_canary() as (_, peer):
        peer._writer.write_eof()
        assert await peer.ended()


async def test_a_peer_that_does_not_answer_a_close_is_cut_off(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncserver.handlers.connection._LINGER_SECONDS", 0.05)
    registry = ServiceRegistry([Echo("echo")])
    async with mounted(registry) as port, RawPeer.connected(port) as peer:
        [session] = registry.sessions
        session.close(4001, "go")
        assert await peer.frame() == (0x88, 2, b"\x0f\xa1go")
        assert await peer.ended()


async def test_a_peer_that_takes_nothing_is_cut_off_though_no_close_can_reach_it(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncserver.handlers.connection._LINGER_SECONDS", 0.05)
    registry = ServiceRegistry([Maker("maker")], limits=Limits(max_send_buffer_bytes=4096))
    async with (
        mounted(registry, ping_pong_interval=None) as port,
        RawPeer.connected(port, buffer=4096) as peer,
    ):
        peer.send_json("maker", {"command": "many", "params": {"count": 100, "length": 5000}})
        await until(lambda: registry.sessions and next(iter(registry.sessions)).pending)
        [session] = registry.sessions
        session.abort(4008)
        await until(lambda: not registry.sockets)
        assert not registry.sessions


# The handshake.

GOOD = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


async def shake(port: int, **changes: str | None) -> tuple[int, dict[str, str]]:
    """Return status and header of the answer; names have ``_`` for ``-``."""
    header = GOOD | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in header.items() if value is not None]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join(["GET /ws HTTP/1.1", *lines, "", ""]).encode("latin-1"))
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return int(first.split()[1]), dict(line.split(": ", 1) for line in rest)


async def test_the_handshake_of_the_standard_is_answered_as_there() -> None:
    async with serving(Echo("echo")) as daemon:
        status, header = await shake(daemon.server.frontend_port)
        assert status == 101
        assert header["Sec-Websocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert header["Upgrade"] == "websocket"
        assert header["Connection"] == "Upgrade"
        assert "Content-Type" not in header


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZQ=="}, 400),
        ({"Sec_WebSocket_Key": "\xff" * 24}, 400),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
        ({"Upgrade": "h2c"}, 400),
        ({"Upgrade": None}, 400),
        ({"Connection": "close"}, 400),
        ({"Upgrade": "WebSocket", "Connection": "UPGRADE"}, 101),
        *[
            ({"Sec_WebSocket_Extensions": f"permessage-deflate; {offer}"}, 101)
            for offer in (
                "client_max_window_bits=7",
                "server_max_window_bits=abc",
                "unknown=1",
                "client_no_context_takeover; client_no_context_takeover",
                "," * 8000,
            )
        ],
        ({"Sec_WebSocket_Protocol": ", ".join(["chat"] * 2000)}, 101),
        ({"Sec_WebSocket_Protocol": "a b, \xff"}, 101),
    ],
)
async def test_a_handshake_is_answered_by_its_needs_and_offers_are_left_alone(
    changes: dict[str, str | None], status: int
) -> None:
    async with serving(Echo("echo")) as daemon:
        answered, header = await shake(daemon.server.frontend_port, **changes)
        assert answered == status
        assert "Sec-Websocket-Extensions" not in header
        assert "Sec-Websocket-Protocol" not in header
        if status == 426:
            assert header["Sec-Websocket-Version"] == "13"


async def test_a_daemon_that_is_closing_says_when_to_come_again() -> None:
    async with serving(Echo("echo")) as daemon:
        daemon.frontend.draining = True
        status, header = await shake(daemon.server.frontend_port)
        assert (status, header["Retry-After"]) == (503, "1")


async def test_under_tls_all_is_the_same() -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    registry = ServiceRegistry([Echo("echo"), Maker("maker")])
    async with (
        mounted(registry, tls=server) as port,
        RawPeer.connected(port, tls=client) as peer,
    ):
        peer.send_json("echo", 1)
        assert json.loads((await peer.frame())[2])["message"] == 1
        peer.send_json("maker", {"command": "many", "params": {"count": 10, "length": 60_000}})
        sizes = [len((await peer.frame())[2]) for _ in range(10)]
        assert min(sizes) > 60_000
        await peer.frame()
        peer.send(0x8, b"\x03\xe8")
        assert await peer.frame() == (0x88, 2, b"\x03\xe8")


class Gated(MemoryEngine):
    """Hands out a grant only when the gate opens."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.gate = asyncio.Event()
        self.asked = 0

    async def take_grant(self, token: str, seconds: float, *, resumable: bool) -> Taken:
        self.asked += 1
        taken = await super().take_grant(token, seconds, resumable=resumable)
        await self.gate.wait()
        return taken


class AllRows(BroadcastDealer):
    model = "Row"


def rows(first: int, count: int, size: int = 10) -> list[dict[str, Any]]:
    """Return inserts of rows of about so many bytes."""
    return [
        {"type": "insert", "model": "Row", "data": {"id": first + n, "text": "x" * size}}
        for n in range(count)
    ]


@asynccontextmanager
async def datasync(
    engine: MemoryEngine | None = None, **limits: Any
) -> AsyncIterator[tuple[Daemon, DataSyncService]]:
    service = DataSyncService("datasync", [AllRows], engine=engine, limits=Limits(**limits))
    trusted = DataSyncBackend("datasync_backend", service)
    async with serving(service, Maker("maker"), backend=[trusted], **limits) as daemon:
        yield daemon, service
    await service.engine.close()


async def publish(daemon: Daemon, deltas: Sequence[dict[str, Any]]) -> None:
    """Publish without a socket, which is quicker."""
    answer = await backend_call(
        daemon.backend, "datasync_backend", "publishDeltas", deltas=list(deltas)
    )
    assert answer["type"] == "response", answer


@pytest.mark.parametrize("position", [{}, {"position": None}])
async def test_a_socket_that_closes_while_it_acquires_leaves_nothing_behind(
    position: dict[str, None],
) -> None:
    engine = Gated(Limits())
    async with datasync(engine) as (daemon, service):
        peer, token = await daemon.connect(), await daemon.authorize(("AllRows", 1))
        peer.begin_call("datasync", "acquireSubscription", token=token, **position)
        await until(lambda: engine.asked)
        await peer.close()
        await until(lambda: not daemon.frontend.sessions)
        engine.gate.set()
        await until(lambda: token not in engine._grants or not engine._grants[token].held)
        assert not service.views._views
        assert not service.subscriptions.peers.subscriptions()
        other = await daemon.connect()
        answer = await other.call("datasync", "acquireSubscription", token=token, **position)
        assert answer["type"] == ("response" if position else "error")


async def test_a_socket_that_closes_during_its_replay_leaves_nothing_behind() -> None:
    limits = {"max_outbox_bytes": 20_000, "max_send_buffer_bytes": 4096, "tail_bytes": 1000}
    async with datasync(**limits) as (daemon, service):
        token = await daemon.authorize(("AllRows", 1))
        for n in range(300):
            await publish(daemon, rows(n, 1, 2000))
        async with RawPeer.connected(daemon.server.frontend_port, buffer=4096) as peer:
            message = {
                "command": "acquireSubscription",
                "params": {"token": token, "position": None},
            }
            peer.send_json("datasync", message)
            await peer.frame()
            assert service.subscriptions.peers.subscriptions()
            peer.vanish()
            await until(lambda: not service.subscriptions.peers.subscriptions())
            assert not service.views._views
            again = await daemon.connect()
            answer = await again.call("datasync", "acquireSubscription", token=token, position=None)
            assert answer["type"] == "response"
            assert sum("delta" in message for message in again.take()) == 300


async def test_a_long_replay_goes_at_the_pace_of_its_reader() -> None:
    limits = {"max_outbox_bytes": 50_000, "max_send_buffer_bytes": 4096, "tail_bytes": 1000}
    async with datasync(**limits) as (daemon, _):
        token = await daemon.authorize(("AllRows", 1))
        for n in range(300):
            await publish(daemon, rows(n, 1, 2000))
        peer = await daemon.connect()
        answer = await peer.call("datasync", "acquireSubscription", token=token, position=None)
        assert answer["type"] == "response"
        deltas = [message["delta"] for message in peer.take() if "delta" in message]
        seen = [delta["data"]["id"] for delta in deltas]
        assert seen == list(range(300))


async def test_a_batch_larger_than_an_outbox_is_sent_to_whom_nothing_else_waits_for() -> None:
    async with datasync(max_outbox_bytes=20_000, max_send_buffer_bytes=4096) as (daemon, _):
        token = await daemon.authorize(("AllRows", 1))
        peer = await daemon.connect()
        await peer.call("datasync", "acquireSubscription", token=token, position=None)
        for first in (0, 10, 20):
            await publish(daemon, rows(first, 10, 3000))
            position = await peer.notice("position")
            assert position["position"]
            assert len(peer.take()) == 10


async def test_a_batch_larger_than_an_outbox_is_sent_whole_however_many_tags_it_is_for() -> None:
    async with datasync(max_outbox_bytes=20_000, max_send_buffer_bytes=4096) as (daemon, _):
        token = await daemon.authorize(*[("AllRows", 1, tag) for tag in ("one", "two", "three")])
        peer = await daemon.connect()
        await peer.call("datasync", "acquireSubscription", token=token, position=None)
        for first in (0, 10, 20):
            await publish(daemon, rows(first, 10, 3000))
            await peer.notice("position")
            tags = [message["delta"]["tag"] for message in peer.take()]
            assert sorted(tags) == sorted(["one", "two", "three"] * 10)


async def test_a_batch_larger_than_an_outbox_reaches_its_reader_at_the_latest_by_a_resume() -> None:
    limits = {"max_outbox_bytes": 20_000, "max_send_buffer_bytes": 4096}
    async with datasync(**limits) as (daemon, _):
        token = await daemon.authorize(("AllRows", 1, "one"), ("AllRows", 1, "two"))
        peer = await daemon.connect()
        answer = await peer.call("datasync", "acquireSubscription", token=token, position=None)
        position = answer["data"]["position"]
        for first in (0, 10, 20):
            await publish(daemon, rows(first, 10, 3000))
        assert await peer.end() == (4008, None)
        again = await daemon.connect()
        answer = await again.call("datasync", "acquireSubscription", token=token, position=position)
        assert answer["type"] == "response"
        seen = [message["delta"] for message in again.take()]
        for tag in ("one", "two"):
            ids = [delta["data"]["id"] for delta in seen if delta["tag"] == tag]
            assert ids == list(range(30))


# A client that stops reading.

OUTBOX = 200_000
KERNEL = 100_000  # what both ends of the socket may take besides
BATCH = 10_000


def alive(type_: type) -> int:
    """Count the objects of a type."""
    gc.collect()
    return sum(type(one) is type_ for one in gc.get_objects())


async def latency(daemon: Daemon, canary: Peer, first: int) -> float:
    """Publish a batch, read it as the canary, and return the seconds between."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await publish(daemon, rows(first, 1, BATCH))
    message = (await canary.read())["message"]
    assert message["delta"]["data"]["id"] == first
    return loop.time() - begin


@pytest.mark.parametrize("plain", [True, False])
async def test_a_client_that_stops_reading_is_closed_and_nobody_else_notices(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain:
        monkeypatch.setattr(outlet, "taken", lambda stream: None)
    frames, sessions = alive(Frame), alive(Session)
    limits = {"max_outbox_bytes": OUTBOX, "max_send_buffer_bytes": 16_384}
    async with datasync(**limits) as (daemon, _):
        canary = await daemon.connect()
        token = await daemon.authorize(("AllRows", 1))
        await canary.call("datasync", "acquireSubscription", token=token)
        before = [await latency(daemon, canary, n) for n in range(20)]

        async with RawPeer.connected(daemon.server.frontend_port, buffer=4096) as slow:
            token = await daemon.authorize(("AllRows", 1))
            slow.acquire(token)
            assert json.loads((await slow.frame())[2])["message"]["type"] == "response"
            session = list(daemon.frontend.sessions)[-1]
            during = []
            while session.open:
                during.append(await latency(daemon, canary, 20 + len(during)))
                assert session.pending <= OUTBOX
                assert len(during) * BATCH < OUTBOX + KERNEL
            assert len(during) * BATCH > OUTBOX / 2
            await until(lambda: len(daemon.frontend.sessions) == 1)
            after = [await latency(daemon, canary, 20 + len(during) + n) for n in range(20)]
            assert statistics.median(during) < 5 * statistics.median(before) + 0.005
            assert max(during) < 0.25
            assert statistics.median(after) < 5 * statistics.median(before) + 0.005

            assert await slow.close_code() == 4008
            slow.vanish()
            await until(lambda: daemon.frontend.sockets == 1)
            del session
            assert alive(Session) == sessions + 1
            assert alive(Frame) <= frames + 5
    assert alive(Session) == sessions
    assert alive(Frame) == frames


async def test_a_slow_client_is_resumed_where_it_was() -> None:
    limits = {"max_outbox_bytes": 50_000, "max_send_buffer_bytes": 4096}
    async with (
        datasync(**limits) as (daemon, _),
        RawPeer.connected(daemon.server.frontend_port, buffer=4096) as slow,
    ):
        token = await daemon.authorize(("AllRows", 1))
        message = {
            "command": "acquireSubscription",
            "params": {"token": token, "position": None},
        }
        slow.send_json("datasync", message)
        answer = json.loads((await slow.frame())[2])["message"]
        position = answer["data"]["position"]
        sent = 0
        while daemon.frontend.sessions:
            await publish(daemon, rows(sent, 1, 5000))
            sent += 1
            await asyncio.sleep(0)
        seen: list[int] = []
        gathered: list[int] = []
        while True:
            first, _, payload = await slow.frame()
            if first == 0x88:
                break
            message = json.loads(payload)["message"]
            if message["type"] == "position":
                position = message["position"]
                seen += gathered
                gathered = []
            else:
                gathered.append(message["delta"]["data"]["id"])
        again = await daemon.connect()
        answer = await again.call("datasync", "acquireSubscription", token=token, position=position)
        assert answer["type"] == "response", answer
        seen += [message["delta"]["data"]["id"] for message in again.take()]
        assert seen == list(range(sent))


async def test_a_replay_to_a_client_that_does_not_read_is_given_up_with_4008() -> None:
    limits = {
        "max_outbox_bytes": 20_000,
        "max_send_buffer_bytes": 4096,
        "stall_seconds": 0.1,
    }
    async with datasync(**limits) as (daemon, service):
        token = await daemon.authorize(("AllRows", 1))
        for n in range(300):
            await publish(daemon, rows(n, 1, 2000))
        async with RawPeer.connected(daemon.server.frontend_port, buffer=4096) as peer:
            peer.acquire(token)
            await until(lambda: daemon.frontend.sessions)
            await until(lambda: not daemon.frontend.sessions)
            assert not service.subscriptions.peers.subscriptions()
            assert await peer.close_code() == 4008


# Frames.


@pytest.mark.parametrize("plain", [True, False])
async def test_frames_of_every_size_have_the_right_header(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain:
        monkeypatch.setattr(outlet, "taken", lambda stream: None)
    empty = len('{"service":"maker","message":{"type":"response","data":""}}')
    async with (
        serving(Maker("maker")) as daemon,
        RawPeer.connected(daemon.server.frontend_port) as peer,
    ):
        for length, header in (
            (125, 2),
            (126, 4),
            (127, 4),
            (65_535, 4),
            (65_536, 10),
            (300_000, 10),
        ):
            message = {"command": "text", "params": {"length": length - empty}}
            peer.send_json("maker", message)
            first, size, payload = await peer.frame()
            assert (first, size, len(payload)) == (0x81, header, length)
            assert json.loads(payload)["message"]["data"] == "x" * (length - empty)


async def test_compression_is_not_agreed_to() -> None:
    async with serving(Maker("maker")) as daemon:
        connection = await websocket_connect(daemon.ws_url, compression_options={})
        assert "Sec-WebSocket-Extensions" not in connection.headers
        peer = Peer(connection)
        assert (await peer.call("maker", "text", length=70_000))["data"] == "x" * 70_000
        await peer.close()


@pytest.mark.parametrize("plain", [True, False])
async def test_what_was_sent_before_the_end_arrives_before_the_end(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain:
        monkeypatch.setattr(outlet, "taken", lambda stream: None)
    async with serving(Maker("maker")) as daemon:
        peer = await daemon.connect()
        peer.begin_call("maker", "many", count=100, length=5000)
        await until(lambda: next(iter(daemon.frontend.sessions)).pending)
        next(iter(daemon.frontend.sessions)).close(4001, '{"retry_after": 5}')
        assert await peer.end() == (4001, '{"retry_after": 5}')
        assert len(peer.take()) == 101


@pytest.mark.parametrize("plain", [True, False])
async def test_a_client_that_vanishes_with_much_on_its_way_is_forgotten(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain:
        monkeypatch.setattr(outlet, "taken", lambda stream: None)
    async with (
        serving(Maker("maker"), max_send_buffer_bytes=4096) as daemon,
        RawPeer.connected(daemon.server.frontend_port, buffer=4096) as peer,
    ):
        peer.send_json("maker", {"command": "many", "params": {"count": 100, "length": 5000}})
        await peer.frame()
        peer.vanish()
        await until(lambda: not daemon.frontend.sockets)
        assert not daemon.frontend.sessions


class Mute(NativeProtocol):
    """Says nothing of deltas, as a protocol may that merges them away."""

    shared = False

    def encode(self, event: Event) -> tuple[bytes, ...]:
        return () if isinstance(event, Change) else super().encode(event)


@pytest.mark.parametrize("plain", [True, False])
async def test_a_protocol_may_have_nothing_to_say(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain:
        monkeypatch.setattr(outlet, "taken", lambda stream: None)
    service = DataSyncService("datasync", [AllRows])
    registry = ServiceRegistry([service])
    backend = ServiceRegistry([DataSyncBackend("trusted", service)])
    async with mounted(registry, protocol=Mute) as port:
        peer = Peer(await websocket_connect(f"ws://127.0.0.1:{port}/ws"))
        items = [{"dealer": "AllRows", "query": 1}]
        token = (await backend_call(backend, "trusted", "authorizeSubscription", items=items))[
            "data"
        ]
        await peer.call("datasync", "acquireSubscription", token=token)
        await backend_call(backend, "trusted", "publishDeltas", deltas=rows(1, 3))
        assert await peer.rest() == []
        await peer.close()
    await service.close()
    await service.engine.close()


# What is left of a connection.


async def test_a_connection_that_ended_is_freed_without_the_collector(way: str) -> None:
    kinds = (Session, outlet.DirectConnection, outlet.StreamConnection)
    async with datasync() as (daemon, _):
        peer = await daemon.connect()
        token = await daemon.authorize(("AllRows", 1))
        await peer.call("datasync", "acquireSubscription", token=token, position=None)
        await publish(daemon, rows(1, 3))
        gc.collect()
        gc.disable()
        try:
            await peer.close()
            await until(lambda: not any(type(one) in kinds for one in gc.get_objects()))
        finally:
            gc.enable()


async def test_an_idle_connection_with_a_subscription_costs_little(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "syncserver")  # what is logged is kept, and would be counted
    count, most = 200, 4_000
    async with datasync() as (daemon, service), contextlib.AsyncExitStack() as stack:
        tokens = [await daemon.authorize(("AllRows", 1)) for _ in range(count + 1)]
        sockets = [stack.enter_context(socket.socket()) for _ in tokens]
        address = ("127.0.0.1", daemon.server.frontend_port)

        async def subscribe(plain: socket.socket, token: str) -> None:
            loop, before = asyncio.get_running_loop(), len(service.subscriptions.peers)
            plain.setblocking(False)
            await loop.sock_connect(plain, address)
            params = {"token": token, "position": None}
            call = {"command": "acquireSubscription", "params": params}
            text = json.dumps({"service": "datasync", "message": call}).encode()
            head = struct.pack("!BBH", 0x81, 0x80 | 126, len(text)) + bytes(4)
            await loop.sock_sendall(plain, HANDSHAKE + head + text)
            await until(lambda: len(service.subscriptions.peers) > before)

        await subscribe(sockets[0], tokens[0])  # what is there once for all
        gc.collect()
        tracemalloc.start()
        try:
            for plain, token in zip(sockets[1:], tokens[1:], strict=True):
                await subscribe(plain, token)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] / count < most
        finally:
            tracemalloc.stop()
