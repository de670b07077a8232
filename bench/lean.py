"""The load generator where there is no C compiler: the commands and answers of ``load.c``.

It costs several times what ``load.c`` costs, so with thousands of clients it may be what is
slow; latencies then are partly its own. Processor time of the server is measured all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

MAX_FRAME = 1 << 20
SENT, POSITION = b'"sent":', b'"position":"'


def now() -> int:
    """Return microseconds of the clock that publishers stamp with."""
    return time.monotonic_ns() // 1000


class Client:
    """One socket and where it is on its way."""

    def __init__(self, sock: socket.socket, texts: list[bytes]) -> None:
        self.sock = sock
        self.state = "connecting"
        self.began = now()
        self.texts = texts
        self.answered = 0
        self.kept = b""


class Lean:
    """The generator."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.clients: list[Client] = []
        self.ready = self.failed = 0
        self.connecting = False
        self.position = ""
        self.waiting = False
        self.mark = b""
        self._forget()

    def _forget(self) -> None:
        self.latency: Counter[int] = Counter()
        self.stamps: dict[int, list[int]] = {}
        self.frames = self.others = self.bytes = self.lost = self.first = self.last = 0

    def answer(self) -> None:
        """Print what was counted since the last answer."""
        names = ("ready", "failed", "frames", "others", "bytes", "lost", "position")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        found["micros"] = self.last - self.first
        found["latency"] = sorted(self.latency.items())
        found["last"] = [(count, last - sent) for sent, (count, last) in self.stamps.items()]
        print(json.dumps(found), flush=True)
        self._forget()

    def run(self) -> None:
        """Take commands until there are no more."""
        self.selector.register(0, selectors.EVENT_READ)
        while True:
            self.turn_until(lambda: self.waiting, float("inf"))
            name, *args = self.line().split() or ["end"]
            if name == "end":
                return
            if name == "connect":
                self.connect(args)
            elif name == "await":
                self.turn_until(lambda count=int(args[0]): self.frames >= count, float(args[1]))
            else:
                self.drop()
            self.answer()
            self.connecting = False

    def line(self) -> str:
        """Read the command that waits, and nothing of the next; empty at the end."""
        said = b""
        while not said.endswith(b"\n") and (one := os.read(0, 1)):
            said += one
        self.waiting = False
        return said.decode()

    def connect(self, args: list[str]) -> None:
        """Open clients, as ``load.c`` does."""
        port, path, count, window, seconds, dialect, *given = args
        texts, mark = given or ("", "")
        self.drop()
        self._forget()
        self.connecting, self.mark, self.engine_io = True, mark.encode(), dialect == "engine.io"
        lines = Path(texts).read_bytes().splitlines() if texts else []
        self.request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: c3luY3NlcnZlciBiZW5jaA==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        self.first, total = now(), int(count)

        def done() -> bool:
            while (begun := len(self.clients)) < total and (
                begun - self.ready - self.failed < int(window)
            ):
                self.begin(int(port), lines[begun::total])
            return self.ready + self.failed >= total

        self.turn_until(done, float(seconds))
        self.last, self.failed = now(), total - self.ready

    def begin(self, port: int, texts: list[bytes]) -> None:
        """Start to connect one client."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        self.clients.append(Client(sock, texts))
        self.selector.register(sock, selectors.EVENT_WRITE, self.clients[-1])

    def turn_until(self, done: Any, seconds: float) -> None:
        """Serve sockets until something holds or the time is up."""
        end = now() + seconds * 1_000_000
        while not done() and now() < end:
            for key, _ in self.selector.select(0.02):
                client = key.data
                if client is None:
                    self.waiting = True
                    continue
                try:
                    self.serve(client)
                except (OSError, ValueError):
                    self.leave(client)

    def drop(self) -> None:
        """Close all clients."""
        for client in self.clients:
            self.leave(client)
        self.clients = []
        self.ready = self.failed = self.lost = 0

    def leave(self, client: Client) -> None:
        """Close one client."""
        if client.state == "dead":
            return
        self.failed += client.state != "ready"
        self.lost += 1
        client.state = "dead"
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(client.sock)
        client.sock.close()

    def serve(self, client: Client) -> None:
        """Do what a socket is ready for; OSError or ValueError ends it."""
        if client.state == "connecting":
            client.sock.sendall(self.request)
            self.selector.modify(client.sock, selectors.EVENT_READ, client)
            client.state = "upgrading"
            return
        got = client.sock.recv(1 << 18)
        if not got:
            raise ConnectionResetError
        data = client.kept + got
        if client.state == "upgrading":
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                client.kept = head
                return
            if not head.startswith(b"HTTP/1.1 101"):
                raise ValueError(head)
            self.opened(client)
        client.kept = data[self.take_frames(client, data) :]

    def opened(self, client: Client) -> None:
        """Send what the client has to send."""
        client.state = "open"
        for text in client.texts:
            self.say(client, 1, text)
        if not client.texts and not self.engine_io:
            self.become_ready(client)

    def become_ready(self, client: Client) -> None:
        """Count a client as ready."""
        client.state = "ready"
        self.ready += 1
        self.latency[now() - client.began] += 1

    def say(self, client: Client, opcode: int, text: bytes) -> None:
        """Send one frame, masked with zeros."""
        size = len(text)
        head = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        client.sock.sendall(bytes([0x80 | opcode]) + head + bytes(4) + text)

    def take_frames(self, client: Client, data: bytes) -> int:
        """Take the frames that are whole; return how many bytes they had."""
        at = 0
        while client.state != "dead" and len(data) - at >= 2:
            size = data[at + 1] & 127
            skip = {126: 4, 127: 10}.get(size, 2)
            if len(data) - at < skip:
                break
            if skip > 2:
                size = int.from_bytes(data[at + 2 : at + skip], "big")
            if size > MAX_FRAME:
                raise ValueError(size)
            end = at + skip + size
            if end > len(data):
                break
            opcode = data[at] & 15
            if opcode == 8:
                raise ConnectionResetError
            if opcode == 9:
                self.say(client, 10, data[at + skip : end])
            elif opcode < 3:
                self.take_text(client, data[at + skip : end])
            at = end
        return at

    def take_text(self, client: Client, text: bytes) -> None:
        """Count a frame, or see how far the client is."""
        _, found, rest = text.partition(SENT)
        if found:
            self.count(int(rest[:20].translate(None, b'}] "\n').partition(b",")[0]), len(text))
            return
        self.others += 1
        _, found, rest = text.partition(POSITION)
        if found:
            self.position = rest.partition(b'"')[0].decode()
        if self.engine_io and text == b"2":
            self.say(client, 1, b"3")
        if client.state != "open":
            return
        if self.engine_io and text.startswith(b"0"):
            self.say(client, 1, b"40")
        elif self.engine_io and text.startswith(b"40"):
            self.become_ready(client)
        elif client.texts and self.mark in text:
            client.answered += 1
            if client.answered == len(client.texts):
                self.become_ready(client)

    def count(self, sent: int, size: int) -> None:
        """Count one frame."""
        at = now()
        self.first = self.first if self.frames else at
        self.last = at
        self.frames += 1
        self.bytes += size
        if self.connecting:
            return
        self.latency[at - sent] += 1
        stamp = self.stamps.setdefault(sent, [0, at])
        stamp[:] = stamp[0] + 1, at


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Lean().run()
