"""A server that is measured: a process of its own, what it says when it is ready, what it costs."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.build import BUILD, ROOT, Missing

START_SECONDS = 30
STOP_SECONDS = 15
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_MICROS = 1_000_000


class Server:
    """One process, with those that it started.

    :param command: starts it; it prints its first line when it is ready.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        self.log = BUILD / f"{name.replace('/', '-')}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def line(self) -> str:
        """Return the next line it prints; Missing if it ends or says nothing."""
        assert self.process.stdout is not None
        text, end = b"", time.monotonic() + START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not text.endswith(b"\n"):
                left = end - time.monotonic()
                got = b""
                if left > 0 and selector.select(left):
                    got = os.read(self.process.stdout.fileno(), 1)
                if not got:
                    self.stop()
                    raise Missing(f"it did not start; {self._last_words()}")
                text += got
        return text.decode().rstrip()

    def cpu_micros(self) -> float:
        """Return the processor time, user and system, that it and its children have used."""
        return sum(cpu_micros(pid) for pid in family(self.process.pid))

    def resident_bytes(self) -> int:
        """Return the memory that it and its children hold."""
        return sum(_resident_bytes(pid) for pid in family(self.process.pid))

    def stop(self) -> None:
        """End it and what it started."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        with contextlib.suppress(ProcessLookupError):  # its session, if anything is left of it
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _last_words(self) -> str:
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"nothing in {self.log}"


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int(path.read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_micros(pid: int) -> float:
    """Return the processor time, user and system, that a process has used."""
    try:
        # The clock of another process, as clock_getcpuclockid(3) names it: nanoseconds, where
        # /proc/PID/stat has the same time in hundredths of a second.
        return time.clock_gettime_ns((~pid << 3) | 2) / 1000
    except OSError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) * _MICROS / _TICK


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("utf-8").split()[1]) * _PAGE
    except OSError:
        return 0


class Poster:
    """Posts over one kept connection."""

    def __init__(self, port: int, path: str, headers: Mapping[str, str]) -> None:
        self._socket = _connected(port)
        self._answers = self._socket.makefile("rb")
        fields = {"Host": f"127.0.0.1:{port}", **headers, "Content-Type": "application/json"}
        self._head = f"POST {path} HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in fields.items()
        )

    def post(self, body: bytes) -> bytes:
        """Send one body and return that of the answer; RuntimeError if it was refused."""
        self._socket.sendall(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status = self._answers.readline()
        length, chunked = 0, False
        while (line := self._answers.readline().lower()) not in {b"\r\n", b""}:
            if line.startswith(b"content-length:"):
                length = int(line[15:])
            chunked = chunked or line.startswith(b"transfer-encoding: chunked")
        answer = b"".join(self._chunks()) if chunked else self._answers.read(length)
        if not status.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"a POST was refused: {status!r} {answer[:500]!r}")
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._socket.close()

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._answers.readline(), 16):
            yield self._answers.read(size)
            self._answers.readline()
        self._answers.readline()


@contextlib.contextmanager
def posting(port: int, path: str, headers: Mapping[str, str]) -> Iterator[Poster]:
    """Connect to where a server takes POSTs."""
    poster = Poster(port, path, headers)
    try:
        yield poster
    finally:
        poster.close()


def await_port(port: int) -> None:
    """Return when a server listens there."""
    _connected(port).close()


def _connected(port: int) -> socket.socket:
    """Connect; a server may have named its port just before it listens there."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            found = socket.create_connection(("127.0.0.1", port), timeout=120)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
