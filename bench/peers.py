"""The servers that are measured side by side, each a process with clients of its own.

A server beside syncserver is a small program (``bench/programs``) that keeps this contract:

* its first line on standard output is a JSON object with ``port`` (WebSocket, at ``path``, by
  default ``/ws``) and, if it has them, ``publish_port``, ``version``, ``dialect``
  (``engine.io``) and ``each`` (true: it takes one message in a POST);
* a POST to ``/publish`` with a JSON object in each line of its body sends each to every client
  as one text message, and is answered with 2xx and a Content-Length.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bench import build
from bench.build import PROGRAMS, Missing
from bench.load import Answer, Generator
from bench.server import Poster, Server, await_port, posting

Row: TypeAlias = Mapping[str, object]

# A frame has 204 bytes on the wire: a header of 4 and this text.
TEXT_BYTES = 200
_BEFORE = '{"service":"datasync","message":{"type":"delta","delta":'
_AFTER = "}}"
PAUSE_SECONDS = 0.3


def now_micros() -> int:
    """Return the time that latencies are counted from."""
    return time.monotonic_ns() // 1000


def row(number: int, sent: int, owner: int = 0) -> Row:
    """Return a row whose frame has 204 bytes, whatever its numbers are."""
    found = {"id": number, "title": "", "done": False, "owner": owner, "sent": sent}
    return found | {"title": "x" * (TEXT_BYTES - len(text(found)))}


def insert(of: Row) -> dict[str, object]:
    """Return the delta that a row is published as."""
    return {"type": "insert", "model": "Task", "data": of}


def text(of: Row) -> str:
    """Return what a client is sent for a row, the same by every server."""
    return _BEFORE + json.dumps(insert(of), separators=(",", ":")) + _AFTER


class Peer(ABC):
    """One server and its clients."""

    version = ""

    def __init__(self, name: str, server: Server, generator: Generator) -> None:
        self.name = name
        self.server = server
        self.generator = generator
        self.clients = 0

    @abstractmethod
    def poster(self) -> contextlib.AbstractContextManager[Poster]:
        """Connect to where it takes POSTs."""

    @abstractmethod
    def bodies(self, rows: Sequence[Row]) -> list[bytes]:
        """Return the bodies of the POSTs that publish some rows at once."""

    @abstractmethod
    def prepare(self, count: int) -> Callable[[], Answer]:
        """Get so many clients ready; return what connects them."""

    def connect(self, count: int) -> Answer:
        """Connect so many clients and wait until they are ready; Missing if some are refused."""
        answer = self.prepare(count)()
        if answer.failed:
            raise Missing(f"{answer.failed} of {count} clients could not connect")
        self.clients = count
        return answer

    def stop(self) -> None:
        """End server and clients."""
        self.generator.stop()
        self.server.stop()


class Program(Peer):
    """A server that keeps the contract."""

    def __init__(self, name: str, command: Sequence[str], start: Sequence[str]) -> None:
        server = Server(name, command)
        self._ready: dict[str, Any] = json.loads(server.line())
        self.version = self._ready.get("version", "")
        await_port(self._ready["port"])
        super().__init__(name, server, Generator(start))

    def poster(self) -> contextlib.AbstractContextManager[Poster]:
        """Connect to its ``/publish``."""
        return posting(self._ready.get("publish_port", self._ready["port"]), "/publish", {})

    def bodies(self, rows: Sequence[Row]) -> list[bytes]:
        """Return one body with a line for each row, or a body for each row."""
        texts = [text(one).encode() for one in rows]
        return texts if self._ready.get("each") else [b"\n".join(texts)]

    def prepare(self, count: int) -> Callable[[], Answer]:
        """Return what connects: these clients have nothing to ask for."""
        path, dialect = self._ready.get("path", "/ws"), self._ready.get("dialect", "plain")
        port = self._ready["port"]
        return lambda: self.generator.connect(port, path, count, dialect=dialect)


def publish(peer: Peer, poster: Poster, rows: Sequence[Row]) -> None:
    """Publish some rows at once, as the server takes them."""
    for body in peer.bodies(rows):
        poster.post(body)


@dataclass(frozen=True)
class Kind:
    """How to get one of the servers; ``slow`` ones are left out of the largest loads."""

    command: Callable[[], Sequence[str]]
    slow: bool = False


def _python(name: str) -> Callable[[], Sequence[str]]:
    def command() -> Sequence[str]:
        build.python_packages()
        return (str(build.VENV_PYTHON), str(PROGRAMS / name))

    return command


def _node(name: str) -> Callable[[], Sequence[str]]:
    def command() -> Sequence[str]:
        # Where it stands decides where Node.js looks for packages.
        node = build.node_packages()
        program = build.BUILD / name
        program.write_bytes((PROGRAMS / name).read_bytes())
        return (node, str(program))

    return command


def _nchan() -> Sequence[str]:
    return (sys.executable, str(PROGRAMS / "nchan.py"), *build.nginx_with_nchan())


KINDS: dict[str, Kind] = {
    "tornado": Kind(_python("naive_tornado.py")),
    "websockets": Kind(_python("broadcast_websockets.py")),
    "starlette": Kind(_python("on_starlette.py")),
    "python-socketio": Kind(_python("on_socketio.py"), slow=True),
    "channels": Kind(_python("on_channels.py"), slow=True),
    "ws": Kind(_node("node_ws.js")),
    "socket.io": Kind(_node("node_socketio.js")),
    "nchan": Kind(_nchan),
    "epoll": Kind(lambda: (str(build.program(PROGRAMS / "limit.c")),)),
}


def added(given: str) -> tuple[str, Kind]:
    """Read ``NAME=COMMAND`` from the command line."""
    name, _, command = given.partition("=")
    if not name or not command:
        raise SystemExit(f"--add wants NAME=COMMAND, not {given!r}")
    return name, Kind(lambda: shlex.split(command))


@contextlib.contextmanager
def stopping(peer: Peer) -> Iterator[Peer]:
    """Stop a server when the block ends."""
    try:
        yield peer
    finally:
        peer.stop()
