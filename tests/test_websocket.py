"""WebSockets: who may connect, pings, bounds, slow peers, and the frames themselves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import itertools
import json
import os
import socket
import statistics
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.web import Application
from tornado.websocket import websocket_connect

from syncserver.config import Limits
from syncserver.dealers import BroadcastDealer
from syncserver.engines.base import Taken
from syncserver.engines.memory import MemoryEngine
from syncserver.handlers import outlet
from syncserver.handlers.websocket import WebSocketHandler
from syncserver.protocols.base import Change, Event, Frame
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.services.base import Request, RPCService, Service, rpc_command
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from syncserver.session import Client, Session
from syncserver.wheel import Wheel
from tests.conftest import ExpectedLog
from tests.support.calls import backend_call
from tests.support.daemon import Daemon, Peer, serving, settings, until


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


class Echo(Service):
    def process_message_from(self, client: Client, msg: Any) -> None:
        self.send_message_to(client, msg)


class RawPeer:
    """A WebSocket client by hand, which answers nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, port: int, path: str = "/ws", buffer: int = 0
    ) -> AsyncIterator[RawPeer]:
        """Connect; ``buffer`` is how many bytes the kernel may take for it."""
        plain = socket.socket()
        if buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def send(self, opcode: int, payload: bytes = b"") -> None:
        """Send one frame, masked with zeros."""
        self.send_bytes(0x80 | opcode, payload)

    def send_bytes(self, first: int, payload: bytes) -> None:
        """Send one frame with this first byte."""
        length = bytes([0x80 | len(payload)])
        if len(payload) > 125:
            length = struct.pack("!BH", 0x80 | 126, len(payload))
        self._writer.write(bytes([first]) + length + bytes(4) + payload)

    def send_json(self, service: str, message: Any) -> None:
        self.send(1, json.dumps({"service": service, "message": message}).encode())

    def acquire(self, token: str, **position: None) -> None:
        """Send the call that acquires a subscription."""
        params = {"token": token, **position}
        self.send_json("datasync", {"command": "acquireSubscription", "params": params})

    async def frame(self) -> tuple[int, int, bytes]:
        """Return the next frame: its first byte, the length of its header, its payload."""
        async with asyncio.timeout(5):
            first, length = await self._reader.readexactly(2)
            size = 2
            if length == 126:
                [length] = struct.unpack("!H", await self._reader.readexactly(2))
                size = 4
            elif length == 127:
                [length] = struct.unpack("!Q", await self._reader.readexactly(8))
                size = 10
            return first, size, await self._reader.readexactly(length)

    async def close_code(self) -> int:
        """Read on to the close frame and return its code."""
        while True:
            first, _, payload = await self.frame()
            if first == 0x88:
                code: int = struct.unpack("!H", payload[:2])[0]
                return code

    def vanish(self) -> None:
        """Be gone without a word."""
        self._writer.transport.abort()


@asynccontextmanager
async def mounted(
    registry: ServiceRegistry, handler: type[WebSocketHandler] = WebSocketHandler, **options: Any
) -> AsyncIterator[int]:
    """Serve a registry in an application of our own; give the port."""
    wheel = options.setdefault("wheel", Wheel(tick_seconds=0.02))
    server = HTTPServer(Application([handler.get_route(registry, "/ws", **options)]))
    server.listen(0, "127.0.0.1")
    [listening] = server._sockets.values()
    try:
        yield listening.getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()
        await until(lambda: not registry.sockets)
        wheel.close()


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
            assert len(again.take()) == 300


async def test_a_long_replay_goes_at_the_pace_of_its_reader() -> None:
    limits = {"max_outbox_bytes": 50_000, "max_send_buffer_bytes": 4096, "tail_bytes": 1000}
    async with datasync(**limits) as (daemon, _):
        token = await daemon.authorize(("AllRows", 1))
        for n in range(300):
            await publish(daemon, rows(n, 1, 2000))
        peer = await daemon.connect()
        answer = await peer.call("datasync", "acquireSubscription", token=token, position=None)
        assert answer["type"] == "response"
        seen = [message["delta"]["data"]["id"] for message in peer.take()]
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
        monkeypatch.setattr(outlet, "_stream_of", lambda handler: None)
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
        monkeypatch.setattr(outlet, "_stream_of", lambda handler: None)
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


class Compressed(WebSocketHandler):
    """Has what it sends compressed."""

    def get_compression_options(self) -> dict[str, Any]:
        return {}


async def test_a_compressed_connection_gets_the_same() -> None:
    registry = ServiceRegistry([Maker("maker")])
    async with mounted(registry, Compressed) as port:
        connection = await websocket_connect(f"ws://127.0.0.1:{port}/ws", compression_options={})
        assert "permessage-deflate" in connection.headers["Sec-WebSocket-Extensions"]
        peer = Peer(connection)
        assert (await peer.call("maker", "many", count=50, length=1000))["data"] == 50
        assert [len(message["text"]) for message in peer.take()] == [1000] * 50
        assert (await peer.call("maker", "text", length=70_000))["data"] == "x" * 70_000
        await peer.close()


@pytest.mark.parametrize("plain", [True, False])
async def test_what_was_sent_before_the_end_arrives_before_the_end(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain:
        monkeypatch.setattr(outlet, "_stream_of", lambda handler: None)
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
        monkeypatch.setattr(outlet, "_stream_of", lambda handler: None)
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
        monkeypatch.setattr(outlet, "_stream_of", lambda handler: None)
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
