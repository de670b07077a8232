"""What the benchmark needs around it: two C programs, a venv and Node.js packages of its own.

All of it is made in build/bench, once; what cannot be had is named, not guessed around.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"
PROGRAMS = BENCH / "programs"
BUILD = ROOT / "build" / "bench"
VENV_PYTHON = BUILD / "venv" / "bin" / "python"
CFLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")
INSTALL_SECONDS = 600


class Missing(Exception):
    """Something that is measured cannot be had here; the message says what and why."""


def say(text: str) -> None:
    """Tell on standard error how far it is."""
    print(text, file=sys.stderr, flush=True)


def program(source: Path, folder: Path = BUILD) -> Path:
    """Compile a C program if it changed; return where it is."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("no C compiler (on Debian and Ubuntu: apt install gcc libc6-dev)")
    out = folder / source.stem
    sources = [source, *source.parent.glob("*.h")]
    if not out.exists() or any(one.stat().st_mtime > out.stat().st_mtime for one in sources):
        folder.mkdir(parents=True, exist_ok=True)
        _run([compiler, *CFLAGS, "-o", str(out), str(source)], "cc")
    return out


def python_packages() -> None:
    """Make the venv that the Python servers run in."""
    wanted = PROGRAMS / "requirements.txt"
    stamp = BUILD / "venv" / ".made"
    if _is_made(stamp, wanted):
        return
    say("installing the Python servers that are measured (once) ...")
    _run([sys.executable, "-m", "venv", "--clear", str(BUILD / "venv")], "python -m venv")
    pip = [str(VENV_PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "install", "-r", str(wanted)], "pip install")
    _made(stamp, wanted)


def node_packages() -> str:
    """Install the packages that the Node.js servers need; return where node is."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing("no Node.js with npm (on Debian and Ubuntu: apt install nodejs npm)")
    wanted = PROGRAMS / "package.json"
    stamp = BUILD / "node_modules" / ".made"
    if not _is_made(stamp, wanted):
        say("installing the Node.js servers that are measured (once) ...")
        BUILD.mkdir(parents=True, exist_ok=True)
        shutil.copy(wanted, BUILD)
        quiet = ("--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock")
        _run([npm, "install", "--silent", *quiet, "--prefix", str(BUILD)], "npm install")
        _made(stamp, wanted)
    return node


def nginx_with_nchan() -> tuple[str, str]:
    """Return where nginx and its nchan module are."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    places = ("/usr/lib/nginx/modules", "/usr/local/nginx/modules", "/etc/nginx/modules")
    modules = [Path(place, "ngx_nchan_module.so") for place in places]
    found = next((module for module in modules if module.exists()), None)
    if nginx is None or found is None:
        raise Missing("no nginx with nchan (on Debian: apt install nginx libnginx-mod-nchan)")
    return nginx, str(found)


def _is_made(stamp: Path, wanted: Path) -> bool:
    return stamp.exists() and stamp.read_text("utf-8") == _digest(wanted)


def _made(stamp: Path, wanted: Path) -> None:
    stamp.write_text(_digest(wanted), "utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: Sequence[str], name: str) -> None:
    """Run a command; Missing with its last line if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"{name} took longer than {INSTALL_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"{name} failed: {said[-1] if said else done.returncode}")
