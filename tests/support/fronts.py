"""nginx and Caddy before a daemon, with the files of deploy/, for a name and on ports of their own.

``authority`` signs nginx's certificate; Caddy makes one with an authority of its own.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trustme
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.websocket import websocket_connect

from tests.support.daemon import ROOT, Peer

DEPLOY = ROOT / "deploy"
SECONDS = 15.0
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def needs(program: str, package: str | None = None) -> str:
    """Return a program's path; without it the test is skipped, or fails where CI=true."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        text = f"needs {program}: apt-get install --no-install-recommends {package or program}"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return path


class Front:
    """A proxy that runs: what is at its TLS port."""

    def __init__(self, port: int, authority: Path) -> None:
        self.port = port
        self.authority = authority
        self.context = ssl.create_default_context(cafile=authority)

    def url(self, path: str, scheme: str = "https") -> str:
        return f"{scheme}://localhost:{self.port}{path}"

    async def connect(self, path: str = "/ws", **options: str) -> Peer:
        """Connect from 127.0.0.2, over TLS."""
        request = HTTPRequest(
            self.url(path, "wss"),
            ssl_options=self.context,
            network_interface="127.0.0.2",
            headers=options,
        )
        return Peer(await websocket_connect(request))

    async def request(self, path: str, body: str | None = None, **headers: str) -> HTTPResponse:
        """Make a GET, or a POST of a body."""
        request = HTTPRequest(
            self.url(path),
            method="GET" if body is None else "POST",
            body=body,
            headers={name.replace("_", "-"): text for name, text in headers.items()},
            ssl_options=self.context,
        )
        return await AsyncHTTPClient().fetch(request, raise_error=False)

    @asynccontextmanager
    async def stream(self, path: str, *options: str) -> AsyncIterator[Stream]:
        """Have curl read a response, over HTTP/2 where the proxy speaks it."""
        child = await asyncio.create_subprocess_exec(
            needs("curl"),
            *("--silent", "--no-buffer", "--cacert", str(self.authority)),
            *options,
            self.url(path),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield Stream(child)
        finally:
            if child.returncode is None:
                child.kill()
            await child.communicate()


class Stream:
    """A response that curl reads as it comes."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def until(self, text: str) -> bytes:
        """Return what comes up to the end of a text."""
        assert self._child.stdout is not None
        async with asyncio.timeout(SECONDS):
            return await self._child.stdout.readuntil(text.encode())


Proxy = Callable[[Path, trustme.CA, str], AbstractAsyncContextManager[Front]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def replaced(name: str, pairs: Mapping[str, str]) -> str:
    """Return a file of deploy/ with other places in it."""
    text = (DEPLOY / name).read_text("utf-8")
    for found, put in pairs.items():
        assert text.count(found) in {1, 2}, found
        text = text.replace(found, put)
    return text


@asynccontextmanager
async def running(
    command: Sequence[str],
    log: Path,
    is_up: Callable[[], bool],
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[None]:
    """Run a proxy that writes to a log, from when it is up to the end of the block."""
    with log.open("ab") as file:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file, env=environ
        )
    try:
        async with asyncio.timeout(SECONDS):
            while not is_up():
                assert child.returncode is None, log.read_text("utf-8")
                await asyncio.sleep(0.01)
        yield
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


@asynccontextmanager
async def nginx_with(folder: Path, text: str, is_up: Callable[[], bool]) -> AsyncIterator[None]:
    """Run nginx with what stands in its ``http`` block."""
    program, log = needs("nginx"), folder / "error.log"
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in _TEMPORARY)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {log};\n"
        f"events {{ }}\nhttp {{ access_log off; {temporary}\n{text}\n}}\n"
    )
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(log)]
    async with running(command, log, is_up):
        said = [line for line in log.read_text("utf-8").splitlines() if "[warn]" in line]
        assert [
            line for line in said if "deprecated" not in line
        ] == []  # newer ones say it of http2
        yield


def certified(folder: Path, authority: trustme.CA) -> dict[str, str]:
    """Make what nginx's file needs for TLS; return what to put into it."""
    made = authority.issue_cert("localhost")
    made.private_key_pem.write_to_path(str(folder / "door.key"))
    made.cert_chain_pems[0].write_to_path(str(folder / "door.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return {
        "/etc/ssl/app.example.org": str(folder / "door"),
        "server_name app.example.org": "server_name localhost",
    }


@asynccontextmanager
async def nginx(
    folder: Path, authority: trustme.CA, upstream: str, *, listen: str = "ssl"
) -> AsyncIterator[Front]:
    """Run nginx with the how-to's file."""
    port = free_port()
    text = replaced(
        "nginx.conf",
        {
            **certified(folder, authority),
            "listen 443 ssl": f"listen 127.0.0.1:{port} {listen}",
            "server 127.0.0.1:5800": f"server {upstream}",
            "proxy_pass http://127.0.0.1:8000": "return 204",
        },
    )
    async with nginx_with(folder, text, lambda: is_open(port)):
        yield Front(port, folder / "ca.pem")


@asynccontextmanager
async def nginx_of_nodes(
    folder: Path, authority: trustme.CA, nodes: Sequence[tuple[int, int]]
) -> AsyncIterator[tuple[Front, str]]:
    """Run nginx before two nodes, with the how-to's files; give the web app's door too.

    :param nodes: the ports of frontend and backend of each.
    """
    port, door = free_port(), free_port()
    upstream = (DEPLOY / "nginx.conf").read_text("utf-8")
    upstream = upstream[upstream.index("upstream") : upstream.index("\nserver {")]
    places = {
        **certified(folder, authority),
        upstream: "",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "proxy_pass http://127.0.0.1:8000": "return 204",
    }
    addresses = {"listen 127.0.0.1:5801": f"listen 127.0.0.1:{door}"}
    for number, (frontend, backend) in enumerate(nodes, 1):
        addresses[f"10.0.0.{number}:5800"] = f"127.0.0.1:{frontend}"
        addresses[f"10.0.0.{number}:5801"] = f"127.0.0.1:{backend}"
    text = replaced("nginx-nodes.conf", addresses) + replaced("nginx.conf", places)
    async with nginx_with(folder, text, lambda: is_open(port) and is_open(door)):
        yield Front(port, folder / "ca.pem"), f"http://127.0.0.1:{door}/backend"


_CADDY_OF_A_TEST = """{
	admin unix/%(folder)s/admin
	default_bind 127.0.0.1
	auto_https disable_redirects
	skip_install_trust
	storage file_system %(folder)s/data
	servers {
		protocols h1 h2
	}
}
"""


def caddyfile(folder: Path, port: int, upstream: str) -> str:
    """Return the how-to's file; of its name Caddy makes a certificate of its own authority."""
    text = replaced(
        "Caddyfile",
        {
            "app.example.org {": f"localhost:{port} {{",
            "127.0.0.1:5800": upstream.replace("unix:", "unix/"),
            "reverse_proxy 127.0.0.1:8000": "respond 204",
        },
    )
    return _CADDY_OF_A_TEST % {"folder": folder} + text


@asynccontextmanager
async def caddy(folder: Path, authority: trustme.CA, upstream: str) -> AsyncIterator[Front]:
    """Run Caddy with the how-to's file."""
    program, port = needs("caddy"), free_port()
    (folder / "Caddyfile").write_text(caddyfile(folder, port, upstream))
    root = folder / "data/pki/authorities/local/root.crt"
    command = [program, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    environ = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    async with running(command, folder / "log", lambda: shakes_hands(port, root), environ):
        yield Front(port, root)


def shakes_hands(port: int, authority: Path) -> bool:
    """Tell whether a port shows a certificate that is signed by this authority."""
    if not (authority.exists() and is_open(port)):
        return False
    context = ssl.create_default_context(cafile=authority)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="localhost"),
        ):
            return True
    except ssl.SSLError:  # it is being made
        return False


PROXIES: dict[str, Proxy] = {
    "nginx": nginx,
    "nginx_http2": functools.partial(nginx, listen="ssl http2"),
    "caddy": caddy,
}
