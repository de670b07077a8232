"""Run all tests, Python's and JavaScript's, and say at the end how each went.

Arguments are given to pytest, and then only pytest runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
JAVASCRIPT = ROOT / "clients" / "javascript"
NODE_MAJOR = 20
NODE_OPTIONS = f"{os.environ.get('NODE_OPTIONS', '')} --test-reporter=spec".lstrip()
IN_CI = os.environ.get("CI") == "true"


class Skipped(Exception):
    """A stage cannot run here; the text says how to get what it needs."""


def run(*command: str, cwd: Path = ROOT) -> bool:
    """Run a command in sight of the reader; the tests in Node start a daemon with this Python."""
    environment = os.environ | {"PYTHON": sys.executable, "NODE_OPTIONS": NODE_OPTIONS}
    return subprocess.run(command, cwd=cwd, env=environment, check=False).returncode == 0


def python() -> bool:
    """Run pytest over everything, or what was asked for."""
    return run(sys.executable, "-m", "pytest", *sys.argv[1:])


def javascript() -> bool:
    """Run the browser library's tests, first alone and then against the daemon."""
    npm = _npm()
    if not _is_installed() and not run(npm, "ci", "--no-audit", "--no-fund", cwd=JAVASCRIPT):
        return False
    alone = run(npm, "test", cwd=JAVASCRIPT)
    return run(npm, "run", "test:real", cwd=JAVASCRIPT) and alone


def _npm() -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Skipped(f"needs Node.js {NODE_MAJOR} or newer with npm: https://nodejs.org")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < NODE_MAJOR:
        raise Skipped(f"{version.strip()} is older than Node.js {NODE_MAJOR}: https://nodejs.org")
    return npm


def _is_installed() -> bool:
    made, wanted = JAVASCRIPT / "node_modules/.package-lock.json", JAVASCRIPT / "package-lock.json"
    return made.exists() and made.stat().st_mtime >= wanted.stat().st_mtime


def outcome(stage: Callable[[], bool]) -> tuple[bool, str]:
    """Run a stage; return whether the whole may still succeed, and a word for it."""
    try:
        passed = stage()
    except Skipped as reason:
        return not IN_CI, f"skipped: {reason}"
    return passed, "passed" if passed else "FAILED"


def main() -> int:
    """Run the stages, all of them even if one fails."""
    stages = {"Python": python} if sys.argv[1:] else {"Python": python, "JavaScript": javascript}
    lines, succeeded = [], True
    for name, stage in stages.items():
        started = time.monotonic()
        fine, word = outcome(stage)
        succeeded = succeeded and fine
        lines.append(f"{name:12}{time.monotonic() - started:6.1f} s  {word}")
    print("", *lines, "all is well" if succeeded else "not all is well", sep="\n")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
