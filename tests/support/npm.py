"""The packages of a folder with a ``package.json``, got by npm when they are needed first."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import ROOT

NODE_MAJOR = 20
SOCKJS = ROOT / "demos" / "chat_sockjs"


def modules(folder: Path = SOCKJS) -> Path:
    """Return the folder of the packages; without npm the test is skipped, or fails in CI."""
    npm, found = shutil.which("npm"), folder / "node_modules"
    if npm is None or not _is_new_enough():
        _give_up(f"needs Node.js {NODE_MAJOR} or newer with npm: https://nodejs.org")
    made = found / ".package-lock.json"
    if not made.exists() or made.stat().st_mtime < (folder / "package-lock.json").stat().st_mtime:
        command = [str(npm), "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            _give_up(f"npm ci in {folder} did not work: {done.stderr.strip()[-300:]}")
    return found


def _is_new_enough() -> bool:
    node = shutil.which("node")
    if node is None:
        return False
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.strip().lstrip("v").split(".")[0]) >= NODE_MAJOR


def _give_up(text: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)
