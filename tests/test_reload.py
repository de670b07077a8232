"""SIGHUP: keys, origins and certificates change while the daemon runs; what is refused does not."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from tests.support import valkey
from tests.support.daemon import KEY, ROOT, DaemonProcess, call_body, process
from tests.test_workers import children

OTHER = "another-key-that-is-long-enough-too"
SETTINGS = """
engine = "{engine}"
[frontend]
port = 0
allowed_origins = ["{origin}"]
{frontend}
[backend]
port = 0
api_keys = ["{key}"]
[limits]
drain_seconds = 3
"""
AGAIN = "certificates again; waiting for a restart: "


class Place:
    """A daemon's directory, where its file is written anew."""

    def __init__(self, folder: Path, **given: str) -> None:
        self.path = folder / "syncserver.toml"
        self.given = {"engine": "memory", "frontend": "", "key": KEY, "origin": "https://a.example"}
        self.write(**given)

    def write(self, **given: str) -> None:
        self.given |= given
        self.path.write_text(SETTINGS.format(**self.given), "utf-8")


@asynccontextmanager
async def running(place: Place, *arguments: str) -> AsyncIterator[DaemonProcess]:
    async with process("serve", "--config", str(place.path), *arguments) as daemon:
        await daemon.started()
        yield daemon


async def hang_up(daemon: DaemonProcess, line: str) -> str:
    """Send SIGHUP and return the line of the log that has the text."""
    daemon.child.send_signal(signal.SIGHUP)
    return await logged(daemon, line)


async def logged(daemon: DaemonProcess, text: str) -> str:
    assert daemon.child.stderr is not None
    async with asyncio.timeout(15):
        while True:
            line = (await daemon.child.stderr.readline()).decode()
            assert line, f"it ended without {text!r} in its log"
            if text in line:
                return line


async def status(daemon: DaemonProcess, key: str) -> int:
    body = call_body("pubsub_backend", "publish", {"channel": 1, "message": 1})
    headers = {"X-Backend-Key": key, "Content-Type": "application/json", "Connection": "close"}
    request = HTTPRequest(daemon.line("backend"), method="POST", body=body, headers=headers)
    return (await AsyncHTTPClient().fetch(request, raise_error=False)).code


async def may_connect(daemon: DaemonProcess, origin: str) -> bool:
    request = HTTPRequest(daemon.line("frontend"), headers={"Origin": origin})
    try:
        connection = await websocket_connect(request)
    except HTTPClientError:
        return False
    connection.close()
    await connection.read_message()
    return True


async def test_keys_and_origins_are_read_again(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with running(place) as daemon:
        assert (await status(daemon, KEY), await status(daemon, OTHER)) == (200, 401)
        assert await may_connect(daemon, "https://a.example")
        place.write(key=OTHER, origin="https://b.example")
        line = await hang_up(daemon, AGAIN)
        assert line.endswith("restart: nothing\n")
        assert KEY not in line
        assert OTHER not in line
        assert (await status(daemon, KEY), await status(daemon, OTHER)) == (401, 200)
        assert not await may_connect(daemon, "https://a.example")
        assert await may_connect(daemon, "https://b.example")


async def test_a_broken_file_keeps_what_there_is_and_says_so_in_one_line(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with running(place) as daemon:
        place.write(key=OTHER, origin="no origin")
        line = await hang_up(daemon, "The settings stay as they were")
        number = place.path.read_text("utf-8").partition("allowed_origins")[0].count("\n") + 1
        where = f"{place.path}:{number}: [frontend] allowed_origins"
        assert f"ERROR syncserver.app: The settings stay as they were: {where}" in line
        assert "allowed_origins[0]: 'no origin' is no origin" in line
        assert (await status(daemon, KEY), await status(daemon, OTHER)) == (200, 401)
        assert await may_connect(daemon, "https://a.example")
        daemon.child.send_signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        assert "Traceback" not in daemon.log
        assert "no origin" not in daemon.log


async def test_what_waits_for_a_restart_is_named(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with running(place) as daemon:
        place.write(frontend='address = "::1"\n[models.Task]\nkey = "uuid"')
        line = await hang_up(daemon, AGAIN)
        assert line.endswith("restart: frontend.address, models\n")


async def test_a_certificate_is_shown_until_another_is_read(tmp_path: Path) -> None:
    first, second = trustme.CA(), trustme.CA()

    def write(issuer: trustme.CA) -> None:
        made = issuer.issue_cert("127.0.0.1")
        (tmp_path / "door.pem").write_bytes(made.private_key_and_cert_chain_pem.bytes())
        (tmp_path / "door.pem").chmod(0o600)

    write(first)
    async with running(Place(tmp_path, frontend='tls_cert = "door.pem"')) as daemon:
        assert daemon.line("frontend").startswith("wss://127.0.0.1:")
        assert await trusted(daemon, first)
        write(second)
        assert await trusted(daemon, first)
        await hang_up(daemon, AGAIN)
        assert await trusted(daemon, second)
        (tmp_path / "door.pem").write_text("broken")
        await hang_up(daemon, "door.pem is no certificate with its key")
        assert await trusted(daemon, second)


async def trusted(daemon: DaemonProcess, issuer: trustme.CA) -> bool:
    """Call over a WebSocket with TLS; tell whether the certificate is of this issuer."""
    context = ssl.create_default_context()
    issuer.configure_trust(context)
    request = HTTPRequest(daemon.line("frontend"), ssl_options=context)
    connection = await websocket_connect(request)
    await connection.write_message('{"service": "none", "message": 1}')
    answer = await connection.read_message()
    connection.close()
    await connection.read_message()
    return answer is not None and "unknown_service" in str(answer)


@pytest.mark.seconds(60)
async def test_all_workers_read_again_and_so_does_one_that_comes_later(tmp_path: Path) -> None:
    with valkey.running() as server:
        place = Place(tmp_path, engine=server.url)
        async with running(place, "--workers", "2") as daemon:
            place.write(key=OTHER)
            await hang_up(daemon, AGAIN)
            for _ in range(8):  # each process will have taken one
                await becomes(daemon, OTHER, 200)
                await becomes(daemon, KEY, 401)
            place.write(key="broken")
            await hang_up(daemon, "The settings stay as they were")
            assert await status(daemon, OTHER) == 200


async def test_a_terminal_that_is_closed_drains_the_daemon(tmp_path: Path) -> None:
    place = Place(tmp_path)
    terminal, its_end = pty.openpty()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "syncserver", "serve", "--config", str(place.path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=its_end,
    )
    os.close(its_end)
    try:
        assert child.stdout is not None
        async with asyncio.timeout(15):
            while b"engine memory" not in await child.stdout.readline():
                pass
            os.close(terminal)
            child.send_signal(signal.SIGHUP)
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def becomes(daemon: DaemonProcess, key: str, wanted: int) -> None:
    async with asyncio.timeout(10):
        while await status(daemon, key) != wanted:
            await asyncio.sleep(0)


REPLACING = """
import os, signal, sys
from syncserver.process.workers import supervise

number_of_settings = 1

def hung_up():
    global number_of_settings
    number_of_settings += 1
    return signal.SIGHUP

def serve(number, pulse):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.signal(signal.SIGHUP, lambda *_: os._exit(3))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    print(number_of_settings, flush=True)
    signal.pause()
    return 0

sys.exit(supervise(1, serve, settled_seconds=0, on_hangup=hung_up))
"""


async def test_a_worker_that_replaces_another_has_the_newest_settings() -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        REPLACING,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(15):
            assert await child.stdout.readline() == b"1\n"
            first = children(child.pid)
            child.send_signal(signal.SIGHUP)  # it ends, and is replaced
            assert await child.stdout.readline() == b"2\n"
            assert children(child.pid) != first
    finally:
        child.kill()
        await child.communicate()
