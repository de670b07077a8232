"""Where the daemon listens, and whom it takes a request to be from."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from tornado.httpclient import HTTPRequest
from tornado.web import RequestHandler, stream_request_body
from tornado.websocket import websocket_connect

from syncserver import doors
from syncserver.admission.gate import Seats
from syncserver.config import Backend, Config, Frontend, Limits
from syncserver.configuration.file import load
from syncserver.doors import Door, UnixPlace
from syncserver.errors import ConfigError
from syncserver.handlers.proxied import Proxies
from tests.conftest import ExpectedLog
from tests.support import valkey
from tests.support.daemon import KEY, Daemon, Peer, call_body, process, serving, settings, until

CALL = call_body("pubsub_backend", "publish", {"channel": 1, "message": 1})


def with_doors(frontend: dict[str, Any] | None = None, **backend: Any) -> Config:
    config = settings()
    return replace(
        config,
        frontend=replace(config.frontend, **frontend or {}),
        backend=replace(config.backend, **backend),
    )


async def exchange(path: Path, head: str, body: str = "") -> bytes:
    """Send a request over a Unix socket and return the answer."""
    reader, writer = await asyncio.open_unix_connection(path)
    lines = f"{head}\nHost: x\nConnection: close\nContent-Length: {len(body)}\n\n"
    writer.write(lines.replace("\n", "\r\n").encode() + body.encode())
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


POST = f"POST /backend HTTP/1.1\nX-Backend-Key: {KEY}\nContent-Type: application/json"


# Certificates.


async def test_a_certificate_that_fits_no_key_leaves_the_one_before(tmp_path: Path) -> None:
    first, second = trustme.CA(), trustme.CA()
    certificate, key = tmp_path / "door.pem", tmp_path / "door.key"
    made = first.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    made.cert_chain_pems[0].write_to_path(certificate)
    config = with_doors({"tls_cert": str(certificate), "tls_key": str(key)})
    trust = ssl.create_default_context()
    first.configure_trust(trust)
    async with serving(config=config) as daemon:
        second.issue_cert("127.0.0.1").cert_chain_pems[0].write_to_path(certificate)
        with pytest.raises(ConfigError, match="is no certificate with its key"):
            daemon.server.renew(config)
        url = f"wss://127.0.0.1:{daemon.server.frontend_port}/ws"
        peer = Peer(await websocket_connect(HTTPRequest(url, ssl_options=trust)))
        daemon.peers.append(peer)
        assert await peer.rest() == []


# What is no request.


async def send(port: int, text: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.replace("\n", "\r\n").encode())
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


@pytest.mark.parametrize("end", ["\r", "\0", "\x7f"])
async def test_a_key_that_ends_in_a_control_character_does_not_stand_in_the_log(
    caplog: pytest.LogCaptureFixture, end: str
) -> None:
    caplog.set_level("DEBUG")
    async with serving() as daemon:
        head = POST.replace(KEY, KEY + end)
        line = await send(daemon.server.backend_port, f"{head}\nHost: x\n\n")
        assert line.startswith(b"HTTP/1.1 400 ")
    assert "Malformed HTTP message" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/ws", "/ws/sockjs"])
async def test_a_form_that_is_none_is_refused_without_a_warning(path: str) -> None:
    head = f"GET {path} HTTP/1.1\nHost: x\nContent-Type: multipart/form-data; boundary=x\n"
    async with serving() as daemon:
        line = await send(daemon.server.frontend_port, f"{head}Content-Length: 0\n\n")
        assert line.split()[1] in (b"200", b"400", b"404"), line


async def test_where_nothing_is_a_line_says_so() -> None:
    async with serving() as daemon:
        answer = await daemon.request("/nowhere", method="GET")
        assert (answer.code, answer.body) == (404, b"Not Found\n")


@stream_request_body
class Stuck(RequestHandler):
    """Waits before it reads a body."""

    def initialize(self, began: asyncio.Event, goes_on: asyncio.Event) -> None:
        self.began, self.goes_on = began, goes_on

    async def prepare(self) -> None:
        self.began.set()
        await self.goes_on.wait()
        self.finish()


async def test_a_door_waits_a_moment_for_what_is_under_way_and_then_closes(
    monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    monkeypatch.setattr(doors, "_CLOSE_SECONDS", 0.1)
    began, goes_on = asyncio.Event(), asyncio.Event()
    routes = [("/", Stuck, {"began": began, "goes_on": goes_on})]
    door = Door(Frontend(port=0), routes, limits=Limits(), idle_seconds=60, seats=Seats(9))
    door.open()
    _, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
    async with asyncio.timeout(5):
        await began.wait()
        door.stop()
        with expected_log("tornado.application", "Uncaught exception"):
            await door.close_all_connections()
            await until(lambda: not door._server._connections)
    goes_on.set()
    await until(lambda: not door.gate.open)
    writer.close()


# Proxies.


async def peer_of(daemon: Daemon, **headers: str) -> str:
    """Connect with headers; return the address that the session has."""
    before = set(daemon.frontend.sessions)
    await daemon.connect({name.replace("_", "-"): text for name, text in headers.items()})
    (session,) = set(daemon.frontend.sessions) - before
    return session.remote_address


async def test_who_is_no_trusted_proxy_is_not_believed() -> None:
    async with serving(config=with_doors({"trusted_proxies": ("192.0.2.0/24",)})) as daemon:
        assert await peer_of(daemon, X_Forwarded_For="203.0.113.7") == "127.0.0.1"
    async with serving() as daemon:
        assert await peer_of(daemon, X_Forwarded_For="203.0.113.7") == "127.0.0.1"
        assert await peer_of(daemon, X_Real_Ip="203.0.113.7") == "127.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the first was written by the client
        ("203.0.113.7, 10.1.2.3", "203.0.113.7"),  # two proxies
        ("10.9.9.9, 10.1.2.3", "10.9.9.9"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, nonsense", "127.0.0.1"),
        ("nonsense, 203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_a_trusted_proxy_names_the_client(forwarded: str, address: str) -> None:
    config = with_doors({"trusted_proxies": ("127.0.0.1/32", "10.0.0.0/8")})
    async with serving(config=config) as daemon:
        assert await peer_of(daemon, X_Forwarded_For=forwarded) == address


async def test_each_request_of_a_kept_connection_has_its_own_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "syncserver.backend")
    config = with_doors(trusted_proxies=("127.0.0.1/32",))
    async with serving(config=config) as daemon:
        port = daemon.server.backend_port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for forwarded in ("X-Forwarded-For: 203.0.113.7\r\n", ""):
            head = f"POST /backend HTTP/1.1\r\nHost: x\r\n{forwarded}Content-Length: 0\r\n\r\n"
            writer.write(head.encode())
            await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}}")
        writer.close()
    said = [record.getMessage() for record in caplog.records]
    assert [text.split()[4].rstrip(":") for text in said] == ["203.0.113.7", "127.0.0.1"]


def test_a_network_holds_both_forms_of_an_address() -> None:
    proxies = Proxies(["10.0.0.0/8"])
    assert proxies.client_of(["1.2.3.4", "::ffff:10.0.0.1"]) == "1.2.3.4"
    assert not Proxies()


# Unix sockets.


async def test_both_doors_may_be_unix_sockets(tmp_path: Path) -> None:
    front, back = tmp_path / "front", tmp_path / "back"
    config = with_doors(
        {"unix_socket": str(front), "trusted_proxies": ("unix",)},
        unix_socket=str(back),
        unix_socket_mode="0600",
    )
    async with serving(config=config) as daemon:
        assert stat.S_IMODE(front.stat().st_mode) == 0o660
        assert stat.S_IMODE(back.stat().st_mode) == 0o600
        assert f"frontend ws://unix:{front}:/ws\n" in daemon.server.summary()
        assert b" 200 " in (await exchange(front, "GET /syncserver.js HTTP/1.1")).split(b"\r\n")[0]
        assert b'"response"' in await exchange(back, POST, CALL)
    assert not front.exists()
    assert not back.exists()


async def test_a_socket_that_nobody_listens_on_is_replaced_and_another_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "front"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    config = with_doors({"unix_socket": str(path)})
    async with serving(config=config):
        with pytest.raises(OSError, match="in use"):
            UnixPlace(str(path), "0660").listen()
        assert path.exists()


async def test_a_door_leaves_the_socket_of_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "front"
    first = UnixPlace(str(path), "0660")
    first.listen().close()
    path.unlink()
    second = UnixPlace(str(path), "0660")
    second.listen().close()
    first.leave()
    assert path.exists()
    second.leave()
    assert not path.exists()


@pytest.mark.seconds(60)
async def test_several_processes_share_a_unix_socket(tmp_path: Path) -> None:
    with valkey.running() as server:
        path = tmp_path / "s.toml"
        path.write_text(
            f'engine = "{server.url}"\n[frontend]\nunix_socket = "front"\n'
            f'[backend]\nunix_socket = "back"\napi_keys = ["{KEY}"]\n[limits]\ndrain_seconds = 3'
        )
        async with process("serve", "--config", str(path), "--workers", "2") as daemon:
            await daemon.started()
            for _ in range(6):
                assert b'"response"' in await exchange(tmp_path / "back", POST, CALL)
            daemon.child.send_signal(signal.SIGTERM)
            assert await daemon.ended() == 0
        assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]


# One door for both.


async def test_the_backend_may_stand_behind_the_frontend_s_door() -> None:
    async with serving(config=with_doors(on_frontend=True)) as daemon:
        assert daemon.server.backend_port == daemon.server.frontend_port
        assert (await daemon.post("pubsub_backend", "publish", channel=1, message=1)) == {
            "type": "response",
            "data": None,
        }
        assert (await daemon.request("/ready", method="GET")).code == 200
        peer = await daemon.connect()
        assert (await peer.call("pubsub", "subscribe", channel=1))["type"] == "response"
        wrong = await daemon.request(body=CALL, headers={"X-Backend-Key": "wrong"})
        assert wrong.code == 401


# What a file may say of it.


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "s.toml"
    path.write_text(text)
    return load(str(path), {"SYNCSERVER_STATE_DIR": str(tmp_path / "state")})


def test_doors_are_read(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
[frontend]
unix_socket = "front.sock"
unix_socket_mode = "0666"
trusted_proxies = ["unix", "10.0.0.0/8", "2001:db8::1"]
[backend]
on_frontend = true
""",
    )
    assert config.frontend == Frontend(
        unix_socket=str(tmp_path / "front.sock"),
        unix_socket_mode="0666",
        trusted_proxies=("unix", "10.0.0.0/8", "2001:db8::1/128"),
    )
    assert config.backend == replace(
        Backend(on_frontend=True),
        api_keys=config.backend.api_keys,
        key_file=config.backend.key_file,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[frontend]\nunix_socket = "x"\nport = 1', "port: does not go with unix_socket; take one"),
        ('[frontend]\nunix_socket_mode = "0660"', "unix_socket_mode: without unix_socket; name"),
        (
            '[frontend]\nunix_socket = "x"\nunix_socket_mode = "rw"',
            "unix_socket_mode: must be three octal digits",
        ),
        (f'[frontend]\nunix_socket = "{"x" * 108}"', "unix_socket: longer than 107 bytes"),
        (
            '[frontend]\nunix_socket = "x"\n[backend]\nunix_socket = "x"',
            "unix_socket: the frontend has the same; give each its own",
        ),
        ("[backend]\non_frontend = true\nport = 1", "port: does not go with on_frontend; take it"),
        (
            "[backend]\non_frontend = true\nmetrics_need_key = false",
            "metrics_need_key: does not go with on_frontend; take it",
        ),
        ("[backend]\nmetrics_need_key = 1", "metrics_need_key: must be true or false, not"),
        (
            '[frontend]\ntrusted_proxies = ["10.0.0.1/8"]',
            "trusted_proxies[0]: 10.0.0.1/8 has host bits set; write an address, a network",
        ),
        ('[frontend]\ntrusted_proxies = ["proxy"]', "trusted_proxies[0]: 'proxy' does not appear"),
    ],
)
def test_doors_that_make_no_sense_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value).partition("] ")[2].startswith(message)
