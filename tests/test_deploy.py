"""The files of deploy/ for systemd and the container; those of proxies are in test_fronts."""

from __future__ import annotations

import asyncio
import configparser
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncserver.admission.gate import places
from syncserver.config import Config
from tests.support.daemon import ROOT, process

DEPLOY = ROOT / "deploy"


# systemd.


def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(DEPLOY / "syncserver.service")
    return found


def test_the_unit_runs_commands_that_there_are_and_is_hardened(tmp_path: Path) -> None:
    service = unit()["Service"]
    program, command, flag, _ = service["ExecStart"].split()
    assert (program, command, flag) == ("/opt/syncserver/bin/syncserver", "serve", "--config")
    assert service["RestartPreventExitStatus"] == "78"
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0", "a Redis may be away for long"
    assert "ExecStartPre" not in service, "whose code does not prevent a restart"
    most = int(service["LimitNOFILE"])
    assert places(Config().limits, most)[0] == Config().limits.max_connections
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
    assert f":{config.backend.port}/live" in text, "who is not ready is not to be killed"
    assert "/ready" not in text
    assert re.search(r"^USER 10001", text, re.MULTILINE), "not root"
