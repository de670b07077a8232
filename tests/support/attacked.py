"""A daemon as a process of its own that is attacked, and a canary that must not notice.

All of it is synchronous: the canary runs in a thread, an attacker has plain sockets.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.daemon import KEY, ROOT

SECONDS = 30.0
LATENCY_SECONDS = 8.0
MEMORY_BYTES = 64 * 1024 * 1024
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LIMITS = {
    "header_seconds": 1,
    "body_seconds": 1,
    "max_subscriptions": 8,
    "wrong_keys_per_minute": 100_000,
    "retention_bytes": 4 * 1024 * 1024,
    "tail_bytes": 4 * 1024 * 1024,
}

Message = dict[str, Any]


def masked(first: int, payload: bytes = b"", length: bytes | None = None) -> bytes:
    """Return a frame with this first byte, masked with zeros; ``length`` may lie."""
    if length is None:
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 1 << 16:
            length = struct.pack(">BH", 0x80 | 126, size)
        else:
            length = struct.pack(">BQ", 0x80 | 127, size)
    return bytes([first]) + length + bytes(4) + payload


class Wire:
    """One connection of an attacker, or of the canary."""

    def __init__(self, plain: socket.socket) -> None:
        plain.settimeout(SECONDS)
        self.plain = plain
        self._calls = 0
        self._read = b""

    def send(self, data: bytes) -> None:
        """Send bytes; that the daemon has closed meanwhile is found by reading."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.plain.sendall(data)

    def rest(self) -> bytes:
        """Read up to the end."""
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):
            while data := self.plain.recv(1 << 16):
                self._read += data
        taken, self._read = self._read, b""
        return taken

    def head(self) -> bytes:
        """Read the head of an answer; what there is, if the end comes first."""
        with contextlib.suppress(ConnectionResetError):
            while b"\r\n\r\n" not in self._read and (data := self.plain.recv(1 << 16)):
                self._read += data
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        return head

    def status(self) -> int | None:
        """Read the status of an answer; None: the connection was closed instead."""
        head = self.head()
        return int(head.split()[1]) if head else None

    def exactly(self, count: int) -> bytes:
        """Read so many bytes; EOFError if there are not as many."""
        while len(self._read) < count:
            data = self.plain.recv(1 << 16)
            if not data:
                raise EOFError(self._read)
            self._read += data
        taken, self._read = self._read[:count], self._read[count:]
        return taken

    def frame(self) -> tuple[int, bytes]:
        """Read one frame of the daemon: its first byte and its payload."""
        first, size = self.exactly(2)
        if size == 126:
            [size] = struct.unpack(">H", self.exactly(2))
        elif size == 127:
            [size] = struct.unpack(">Q", self.exactly(8))
        return first, self.exactly(size)

    def close_code(self) -> int | None:
        """Read on to the close frame and return its code; None: there was none."""
        try:
            while True:
                first, payload = self.frame()
                if first == 0x88:
                    return int.from_bytes(payload[:2], "big") if payload else None
        except (EOFError, ConnectionResetError):
            return None

    def read(self) -> Message:
        """Read the next message."""
        while True:
            first, payload = self.frame()
            if first == 0x81:
                message: Message = json.loads(payload)["message"]
                return message
            if first == 0x89:
                self.send(masked(0x8A, payload))
            elif first == 0x88:
                raise EOFError(payload)

    def say(self, text: str | bytes) -> None:
        """Send a text message."""
        self.send(masked(0x81, text.encode() if isinstance(text, str) else text))

    def begin(self, command: str, **params: Any) -> int:
        """Send a call to the datasync service and return its id."""
        self._calls += 1
        call = {"command": command, "params": params, "callId": self._calls}
        self.say(json.dumps({"service": "datasync", "message": call}))
        return self._calls

    def call(self, command: str, **params: Any) -> Message:
        """Make a call and return its answer."""
        number = self.begin(command, **params)
        while (message := self.read()).get("callId") != number:
            pass
        return message

    def close(self) -> None:
        """Be gone."""
        self.plain.close()

    def reset(self) -> None:
        """Be gone with a reset."""
        self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.plain.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Target:
    """The daemon that is attacked."""

    def __init__(self, child: subprocess.Popen[str], log: Path, trust: ssl.SSLContext | None):
        self.child = child
        self.log = log
        self.trust = trust
        self.ports: dict[str, int] = {}
        self.secrets = [KEY]
        assert child.stdout is not None
        for line in child.stdout:
            name, _, said = line.partition(" ")
            if name in ("frontend", "backend"):
                self.ports[name] = int(said.rpartition(":")[2].partition("/")[0])
            if name == "engine":
                break
        self.canary = Canary(self)

    def connect(self, door: str = "frontend", buffer: int = 0, *, secure: bool = True) -> Wire:
        """Connect to a door; under TLS where it is spoken, unless that is not wanted."""
        plain = socket.socket()
        plain.settimeout(SECONDS)
        if buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.connect(("127.0.0.1", self.ports[door]))
        if self.trust is not None and secure and door == "frontend":
            plain = self.trust.wrap_socket(plain, server_hostname="localhost")
        return Wire(plain)

    def ask(self, request: bytes, door: str = "frontend") -> Wire:
        """Connect and send the bytes of a request."""
        wire = self.connect(door)
        wire.send(request)
        return wire

    def websocket(self, path: str = "/ws", buffer: int = 0) -> Wire:
        """Open a WebSocket."""
        wire = self.connect(buffer=buffer)
        wire.send(UPGRADE.format(path=path).encode())
        assert wire.status() == 101
        return wire

    def post(self, command: str, service: str = "datasync_backend", **params: Any) -> Message:
        """Make a call of the web app and return the message of its answer."""
        return self.request(json.dumps(envelope(service, command, params)))[1]

    def request(self, body: str | bytes, **headers: str) -> tuple[int, Message]:
        """Post a body; return status and message."""
        backend = http.client.HTTPConnection("127.0.0.1", self.ports["backend"], timeout=SECONDS)
        head = {"X-Backend-Key": KEY, "Content-Type": "application/json", **headers}
        try:
            backend.request("POST", "/backend", body, head)
            answer = backend.getresponse()
            return answer.status, json.loads(answer.read())["message"]
        finally:
            backend.close()

    def authorize(self, dealer: str = "AllTasks", query: Any = None) -> str:
        """Return a token for an item."""
        answer = self.post("authorizeSubscription", items=[{"dealer": dealer, "query": query}])
        token: str = answer["data"]
        self.secrets.append(token)
        return token

    @property
    def memory(self) -> int:
        """The bytes of memory that the daemon has."""
        pages = Path(f"/proc/{self.child.pid}/statm").read_text("utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def sockets(self) -> int:
        """How many descriptors the daemon has."""
        return len(list(Path(f"/proc/{self.child.pid}/fd").iterdir()))

    def settles(self, sockets: int) -> bool:
        """Wait until the daemon has no more than so many descriptors."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            self.canary.catch_up()  # what came before has been taken by then
            if self.sockets <= sockets:
                return True
        return False

    @contextlib.contextmanager
    def unnoticed(self) -> Iterator[None]:
        """See that an attack costs the canary nothing, and the daemon no memory to speak of."""
        self.canary.catch_up()
        begun, memory = len(self.canary.latencies), self.memory
        yield
        self.canary.catch_up()
        assert self.child.poll() is None, "the daemon ended"
        worst = max(self.canary.latencies[begun:])
        assert worst < LATENCY_SECONDS, f"the canary waited {worst:.1f} seconds"
        grown = self.memory - memory
        assert grown < MEMORY_BYTES, f"the daemon grew by {grown >> 20} MiB"

    def end(self) -> None:
        """End the daemon, which is to have written nothing that it should not."""
        self.canary.end()
        self.child.send_signal(signal.SIGTERM)
        try:
            code = self.child.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise
        log = self.log.read_text("utf-8")
        assert code == 0
        assert "Traceback" not in log, log[-5_000:]
        assert not [line for line in log.splitlines() if " ERROR " in line]
        assert not [secret for secret in self.secrets if secret in log]
        assert len(log) < 1_000_000


class Canary:
    """Publishes a row, waits until it has come, and does so again, all the time."""

    def __init__(self, target: Target) -> None:
        self.latencies: list[float] = []
        self.failure: BaseException | None = None
        self._target = target
        self._wire = target.websocket()
        token = target.authorize("CommentsByBlogEntry", 7)
        assert (
            "position" in self._wire.call("acquireSubscription", token=token, position=None)["data"]
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
        self._thread.start()

    def catch_up(self) -> None:
        """Wait until it has seen one more row; raise what went wrong, if something did."""
        wanted, deadline = len(self.latencies) + 1, time.monotonic() + 2 * SECONDS
        while len(self.latencies) < wanted and self.failure is None:
            assert time.monotonic() < deadline, "the canary is silent"
            time.sleep(0.002)
        if self.failure is not None:
            raise AssertionError("the canary died") from self.failure

    def end(self) -> None:
        """Stop."""
        self._ending.set()
        self._thread.join(SECONDS)
        self._wire.close()

    def _run(self) -> None:
        backend = http.client.HTTPConnection(
            "127.0.0.1", self._target.ports["backend"], timeout=SECONDS
        )
        try:
            number = 0
            while not self._ending.wait(0.002):
                number += 1
                began = time.monotonic()
                self._publish(backend, number)
                assert self._next_row() == number
                self.latencies.append(time.monotonic() - began)
        except Exception as error:  # noqa: BLE001  # it is raised where somebody looks
            self.failure = error
        finally:
            backend.close()

    def _publish(self, backend: http.client.HTTPConnection, number: int) -> None:
        row = {"id": number, "entryId": 7}
        deltas = [{"type": "insert", "model": "Comment", "data": row}]
        body = json.dumps(envelope("datasync_backend", "publishDeltas", {"deltas": deltas}))
        backend.request(
            "POST", "/backend", body, {"X-Backend-Key": KEY, "Content-Type": "application/json"}
        )
        answer = backend.getresponse()
        said = answer.read()
        assert answer.status == 200, said

    def _next_row(self) -> int:
        while True:
            message = self._wire.read()
            if message["type"] == "delta":
                number: int = message["delta"]["data"]["id"]
                return number
            assert message["type"] == "position", message


def envelope(service: str, command: str, params: Any) -> Message:
    """Return a call in its envelope."""
    return {"service": service, "message": {"command": command, "params": params}}


def key_header() -> str:
    """Return the lines of a head that a call of the web app needs."""
    return f"Host: x\r\nX-Backend-Key: {KEY}\r\nContent-Type: application/json\r\n"


def nonce() -> str:
    """Return a key for a handshake."""
    return base64.b64encode(os.urandom(16)).decode()


@contextlib.contextmanager
def attacked(
    folder: Path, trust: ssl.SSLContext | None = None, **settings: str
) -> Iterator[Target]:
    """Run a daemon to be attacked; ``settings`` have ``__`` for the dot."""
    given = {f"limits.{name}": str(value) for name, value in LIMITS.items()}
    given |= {"frontend.port": "0", "backend.port": "0", "backend.api_keys": "env:ATTACKED_KEY"}
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    log = folder / "log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "syncserver", "serve"]
            + [f"--set={name}={value}" for name, value in given.items()],
            cwd=folder,
            env={
                "PYTHONPATH": str(ROOT),
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(folder),
                "ATTACKED_KEY": KEY,
            },
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
        )
    try:
        target = Target(child, log, trust)
        yield target
        target.end()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        assert child.stdout is not None
        child.stdout.close()
