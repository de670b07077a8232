"""Run all tests in parts side by side, Python's and JavaScript's, and say how each went.

Each line of output begins with the part that wrote it. Arguments are given to pytest, and then
only pytest runs, as it does by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
JAVASCRIPT = ROOT / "clients" / "javascript"
NODE_MAJOR = 20
NODE_OPTIONS = f"{os.environ.get('NODE_OPTIONS', '')} --test-reporter=spec".lstrip()
IN_CI = os.environ.get("CI") == "true"
AT_ONCE = max(2, os.cpu_count() or 2)
WIDTH = 12

PYTEST = (sys.executable, "-m", "pytest")
PARTS = {
    # What loads the machine or has many processes, one after the other.
    "load": (
        "tests/faults",
        "tests/test_crowd.py",
        "tests/test_first_hour.py",
        "tests/test_load.py",
    ),
    "engines": (
        "tests/conformance",
        "tests/test_redis_engine.py",
        "tests/test_sqlite_engine.py",
        "tests/test_sqlite_restarts.py",
    ),
    "pages": ("tests/clients", "tests/demos", "tests/test_events_outside.py"),
    "attacks": ("tests/attacks",),
    "fuzz": ("tests/fuzz",),
}


class Skipped(Exception):
    """A part cannot run here; the text says how to get what it needs."""


class Part:
    """Some of the tests, and how they went."""

    def __init__(self, name: str, test: Callable[[Part], bool]) -> None:
        self.name = name
        self.seconds = 0.0
        self.fine = False
        self.word = "FAILED"
        self._test = test

    def go(self) -> None:
        """Run them all, and note how it went and how long it took."""
        started = time.monotonic()
        try:
            self.fine = self._test(self)
            self.word = "passed" if self.fine else "FAILED"
        except Skipped as reason:
            self.fine = not IN_CI
            self.word = f"skipped: {reason}"
        self.seconds = time.monotonic() - started

    def run(self, *command: str, cwd: Path = ROOT) -> bool:
        """Run a command and pass its lines on; what Node starts is a daemon on this Python."""
        environment = os.environ | {"PYTHON": sys.executable, "NODE_OPTIONS": NODE_OPTIONS}
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            for line in process.stdout or ():
                print(f"{self.name:{WIDTH}}{line}".rstrip() + "\n", end="", flush=True)
        return process.returncode == 0

    def __str__(self) -> str:
        return f"{self.name:{WIDTH}}{self.seconds:6.1f} s  {self.word}"


def some_of_python(*arguments: str) -> Callable[[Part], bool]:
    """Return the test of a part that is a run of pytest."""
    return lambda part: part.run(*PYTEST, *arguments)


def javascript(part: Part) -> bool:
    """Run the browser library's tests, first alone and then against the daemon."""
    npm = _npm()
    if not _is_installed() and not part.run(npm, "ci", "--no-audit", "--no-fund", cwd=JAVASCRIPT):
        return False
    alone = part.run(npm, "test", cwd=JAVASCRIPT)
    return part.run(npm, "run", "test:real", cwd=JAVASCRIPT) and alone


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


def parts() -> list[Part]:
    """Return all parts, long ones first; the one called others has what no other names."""
    elsewhere = [f"--ignore={path}" for paths in PARTS.values() for path in paths]
    load, *more = (Part(name, some_of_python(*paths)) for name, paths in PARTS.items())
    others = Part("others", some_of_python(*elsewhere))
    return [load, others, *more, Part("javascript", javascript)]


def main() -> int:
    """Run the parts, all of them even if one fails, or what was asked for."""
    if asked := sys.argv[1:]:
        return subprocess.run([*PYTEST, *asked], cwd=ROOT, check=False).returncode
    every = parts()
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for one in [pool.submit(part.go) for part in every]:
            one.result()
    except KeyboardInterrupt:  # those that run have been interrupted too
        print("interrupted")
        return 130
    finally:
        pool.shutdown(cancel_futures=True)
    succeeded = all(part.fine for part in every)
    print("", *every, "all is well" if succeeded else "not all is well", sep="\n")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
