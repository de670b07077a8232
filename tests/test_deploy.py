"""The files of deploy/: nginx with TLS in front of the daemon, systemd, the container."""

from __future__ import annotations

import asyncio
import configparser
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

from syncserver.config import Config
from tests.support.daemon import Daemon, Peer, process, serving, settings, until
from tests.test_events_outside import needs

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
READ_TIMEOUT_SECONDS = 4
IDLE_SECONDS = 8.5  # more than twice as long; pings come every two seconds


class Front:
    """nginx with the file of deploy/, for a name and on a port of its own."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.port = port
        self.context = context

    async def connect(self, path: str = "/ws", **options: str) -> Peer:
        """Connect from 127.0.0.2, over TLS."""
        request = HTTPRequest(
            f"wss://localhost:{self.port}{path}",
            ssl_options=self.context,
            network_interface="127.0.0.2",
            headers=options,
        )
        return Peer(await websocket_connect(request))

    async def status(self, path: str) -> int:
        url = f"https://localhost:{self.port}{path}"
        request = HTTPRequest(url, ssl_options=self.context)
        return (await AsyncHTTPClient().fetch(request, raise_error=False)).code


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def nginx(folder: Path, authority: trustme.CA, upstream: str) -> AsyncIterator[Front]:
    """Run nginx as the how-to says, with a certificate made here and times made short."""
    program = needs("nginx")
    made = authority.issue_cert("localhost")
    made.private_key_pem.write_to_path(str(folder / "door.key"))
    made.cert_chain_pems[0].write_to_path(str(folder / "door.pem"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    for found, put in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/app.example.org", str(folder / "door")),
        ("server_name app.example.org", "server_name localhost"),
        ("server 127.0.0.1:5800", f"server {upstream}"),
        ("proxy_read_timeout 60s", f"proxy_read_timeout {READ_TIMEOUT_SECONDS}s"),
        ("proxy_pass http://127.0.0.1:8000", "return 204"),
    ):
        assert text.count(found) in {1, 2}, found
        text = text.replace(found, put)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind}; "
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    error_log = folder / "error.log"
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {error_log};\n"
        f"events {{ }}\nhttp {{ access_log off; {temporary}\n{text}\n}}\n"
    )
    child = await asyncio.create_subprocess_exec(
        program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(error_log)
    )
    try:
        async with asyncio.timeout(15):
            while not is_open(port):
                assert child.returncode is None, error_log.read_text()
                await asyncio.sleep(0.01)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        yield Front(port, context)
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def behind_proxy(unix_socket: Path | None = None, **limits: float) -> Config:
    config = settings(**limits)
    trusted = ("127.0.0.1/32", "unix")
    path = None if unix_socket is None else str(unix_socket)
    frontend = replace(config.frontend, trusted_proxies=trusted, unix_socket=path)
    return replace(config, frontend=frontend)


@asynccontextmanager
async def fronted(
    folder: Path, authority: trustme.CA, config: Config
) -> AsyncIterator[tuple[Daemon, Front]]:
    folder.mkdir(exist_ok=True)
    async with serving(config=config) as daemon:
        path = config.frontend.unix_socket
        upstream = f"unix:{path}" if path else f"127.0.0.1:{daemon.server.frontend_port}"
        async with nginx(folder, authority, upstream) as front:
            yield daemon, front


async def test_a_websocket_through_nginx_gets_what_is_published(
    tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "syncserver")
    async with fronted(tmp_path, authority, behind_proxy()) as (daemon, front):
        token = await daemon.authorize(("AllTasks", None))
        peer = await front.connect()
        answer = await peer.call("datasync", "acquireSubscription", token=token, position=None)
        assert answer["type"] == "response"
        await daemon.publish({"type": "insert", "model": "Task", "data": {"id": 1}})
        assert (await peer.notice("delta"))["delta"]["data"] == {"id": 1}
        (session,) = daemon.frontend.sessions
        assert session.remote_address == "127.0.0.2"
        peer.send_text("no JSON")
        await peer.read()
        await peer.close()
        await until(lambda: not daemon.frontend.sessions)
    assert re.search(r"from 127\.0\.0\.2\b", caplog.text), "the client's address is in the log"


async def test_what_a_client_writes_of_its_address_is_not_believed(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async with fronted(tmp_path, authority, behind_proxy()) as (daemon, front):
        peer = await front.connect(**{"X-Forwarded-For": "203.0.113.7"})
        (session,) = daemon.frontend.sessions
        assert session.remote_address == "127.0.0.2"
        await peer.close()


async def test_nginx_reaches_the_daemon_by_a_unix_socket(
    tmp_path: Path, authority: trustme.CA
) -> None:
    config = behind_proxy(tmp_path / "front.sock")
    async with fronted(tmp_path, authority, config) as (daemon, front):
        peer = await front.connect()
        assert (await peer.call("pubsub", "subscribe", channel=1))["type"] == "response"
        (session,) = daemon.frontend.sessions
        assert session.remote_address == "127.0.0.2"
        await peer.close()


async def test_the_web_app_s_paths_are_not_passed_on(tmp_path: Path, authority: trustme.CA) -> None:
    config = behind_proxy()
    config = replace(config, backend=replace(config.backend, on_frontend=True))
    async with fronted(tmp_path, authority, config) as (_, front):
        assert await front.status("/syncserver.js") == 200
        assert await front.status("/ws/sockjs/info") == 200
        for path in ("/backend", "/ready", "/live", "/", "/ws/backend", "/events/../backend"):
            assert await front.status(path) == 204, "the web app's, not the daemon's"


async def test_an_idle_websocket_outlives_the_proxy_s_timeout_by_its_pings(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async with (
        fronted(tmp_path / "a", authority, behind_proxy(ping_seconds=0.5)) as (_, pinged),
        fronted(tmp_path / "b", authority, behind_proxy(ping_seconds=60)) as (_, silent),
    ):
        kept, lost = await pinged.connect(), await silent.connect()
        ends = [asyncio.ensure_future(peer.connection.read_message()) for peer in (kept, lost)]
        done, pending = await asyncio.wait(ends, timeout=IDLE_SECONDS)
        assert (done, pending) == ({ends[1]}, {ends[0]}), "only the one without pings has ended"
        kept.send("pubsub", {"command": "subscribe", "params": {"channel": 1}, "callId": 7})
        assert '"callId":7' in str(await ends[0])
        await kept.close()
        lost.connection.close()


# systemd.


def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(DEPLOY / "syncserver.service")
    return found


def test_the_unit_runs_commands_that_there_are_and_is_hardened(tmp_path: Path) -> None:
    service = unit()["Service"]
    for name in ("ExecStartPre", "ExecStart"):
        program, command, flag, _ = service[name].split()
        assert (program, flag) == ("/opt/syncserver/bin/syncserver", "--config")
        assert command in {"check-config", "serve"}
    assert service["RestartPreventExitStatus"] == "78"
    assert service["KillMode"] == "mixed", "or workers are told twice"
    assert int(service["TimeoutStopSec"]) > Config().limits.drain_seconds
    if shutil.which("systemd-analyze"):  # more than this file needs is not installed for it
        checked = tmp_path / "syncserver.service"
        text = (DEPLOY / "syncserver.service").read_text("utf-8")
        checked.write_text(text.replace("/opt/syncserver/bin/syncserver", "/bin/true"))
        for command in (["verify"], ["security", "--offline=true", "--threshold=15"]):
            done = subprocess.run(
                ["systemd-analyze", *command, str(checked)], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


async def test_systemd_is_told_when_the_doors_are_open_and_when_it_ends(
    tmp_path: Path, systemd: socket.socket
) -> None:
    environ = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "SYNCSERVER_STATE_DIR": str(tmp_path / "state"),
        "SYNCSERVER_FRONTEND__PORT": "0",
        "SYNCSERVER_BACKEND__PORT": "0",
    }
    async with process("serve", environ=environ) as daemon:
        assert await asyncio.to_thread(systemd.recv, 100) == b"READY=1"
        await daemon.started()
        daemon.child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(systemd.recv, 100) == b"STOPPING=1"
        assert await daemon.ended() == 0


# The container.


def test_the_container_s_file_names_what_there_is() -> None:
    text = (DEPLOY / "Containerfile").read_text("utf-8")
    assert re.findall(r"/src(/[a-z/]+)", text) == ["/clients/python"]
    assert (ROOT / "clients/python/pyproject.toml").exists()
    ports = re.search(r"EXPOSE (\d+) (\d+)", text)
    assert ports
    config = Config()
    assert ports.groups() == (str(config.frontend.port), str(config.backend.port))
    assert f":{config.backend.port}/ready" in text
    assert re.search(r"^USER 10001", text, re.MULTILINE), "not root"
