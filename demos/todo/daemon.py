"""The syncserver daemon as a child process, with settings made for the demo."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from urllib.parse import urlsplit

START_SECONDS = 30.0
STOP_SECONDS = 15.0
ADDRESS = "127.0.0.1"

SETTINGS = """\
# Written by demos.todo. The key is in the environment of the two processes and nowhere else.
engine = "memory"

[frontend]
address = "{address}"
port = {frontend}
allowed_origins = ["http://localhost:*", "http://127.0.0.1:*"]

[backend]
address = "{address}"
port = {backend}
api_keys = ["env:SYNCSERVER_API_KEY"]

[models.Task]
key = "id"

[services.datasync]
type = "datasync"

[services.datasync.dealers.AllTasks]
type = "broadcast"
model = "Task"

[services.datasync.dealers.FilteredTasks]
type = "filter"
model = "Task"
"""


class DaemonFailed(Exception):
    """The daemon did not start; the message says what is known."""


def free_port(wanted: int) -> int:
    """Return the port that is wanted, or 0 (any) where another program has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, wanted))
        except OSError:
            return 0
    return wanted


class Daemon:
    """A child process that is started, and started again on the same ports if it dies.

    :param directory: where the file with its settings is written.
    """

    def __init__(self, directory: Path, frontend_port: int, backend_port: int) -> None:
        self.key = secrets.token_urlsafe(32)
        self.frontend = self.backend = ""
        self._settings = directory / "syncserver.toml"
        self._ports = (frontend_port, backend_port)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process that runs, or ran last."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Start and wait until both doors are open; DaemonFailed if they do not open."""
        frontend, backend = self._ports
        text = SETTINGS.format(address=ADDRESS, frontend=frontend, backend=backend)
        self._settings.write_text(text, "utf-8")
        # The settings are this file's alone. A session of its own: Ctrl-C in the terminal is
        # for us, who then tell the daemon when it is its turn.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SYNCSERVER_")}
        command = ["-m", "syncserver", "serve", "--config", str(self._settings)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            "--log-level",
            "warning",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            env=environment | {"SYNCSERVER_API_KEY": self.key},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._read_addresses(self._process)
        except TimeoutError:
            await self.stop()
            raise DaemonFailed(f"the daemon did not open within {START_SECONDS:.0f} s") from None
        self._ports = (urlsplit(self.frontend).port or 0, urlsplit(self.backend).port or 0)

    async def wait(self) -> int:
        """Wait until the process ends; return its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> int:
        """Let it drain, and end it if that takes too long; return its exit code."""
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _read_addresses(self, process: asyncio.subprocess.Process) -> None:
        """Read the lines ``frontend URL`` and ``backend URL`` of its start."""
        assert process.stdout is not None
        found: dict[str, str] = {}
        while not {"frontend", "backend"} <= found.keys():
            line = await process.stdout.readline()
            if not line:
                code = await process.wait()
                raise DaemonFailed(f"the daemon ended with exit code {code}; see its lines above")
            name, _, text = line.decode().strip().partition(" ")
            found[name] = text
        self.frontend, self.backend = found["frontend"], found["backend"]
