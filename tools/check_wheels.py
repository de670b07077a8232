"""Build both wheels and try them as a user would: an empty environment, outside the checkout."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "clients" / "javascript" / "syncserver.js"
SECONDS = 30

CONFIG = """
[frontend]
port = 0

[backend]
port = 0
api_keys = ["env:SYNCSERVER_API_KEY"]

[services.datasync]
type = "datasync"

[services.datasync.dealers.AllTasks]
type = "broadcast"
model = "Task"
"""

CALL = """
import os, sys
from syncserver_client import Backend, Unauthorized
url, key = sys.argv[1], os.environ["SYNCSERVER_API_KEY"]
with Backend(url, key) as backend:
    assert len(backend.authorize([{"dealer": "AllTasks", "query": None}])) == 32
    backend.publish([{"type": "insert", "model": "Task", "data": {"id": 1}}])
with Backend(url, key + "x") as backend:
    try:
        backend.publish([])
    except Unauthorized:
        sys.exit(0)
sys.exit("a wrong key was taken")
"""


def copy_of_the_checkout(folder: Path) -> Path:
    """Copy what a clone would hold: what earlier builds left behind must not get into a wheel."""
    made = (".*", "node_modules", "build", "dist", "static", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*made)))


def run_quietly(command: list[str]) -> None:
    """Run a command whose output is of interest only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\n{' '.join(command)} failed")


def build(project: Path, out: Path) -> Path:
    """Build a wheel by way of an sdist; it must be the wheel that the checkout itself makes."""
    direct = out / "direct"
    command = [sys.executable, "-m", "build", str(project), "--outdir"]
    run_quietly([*command, str(out)])
    run_quietly([*command, str(direct), "--wheel", "--no-isolation"])
    (wheel,) = out.glob("*.whl")
    if contents(wheel) != contents(direct / wheel.name):
        raise SystemExit(f"{wheel.name}: the sdist builds another wheel than the checkout")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel, without the list of them."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("RECORD")]
        return {name: archive.read(name) for name in names}


def check_contents(server: Path, client: Path) -> None:
    """Compare what the wheels hold with what they must."""
    held = contents(server)
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "syncserver").rglob("*.py")}
    extra = {f"syncserver/{n}" for n in ("py.typed", "static/syncserver.js")}
    missing = (sources | extra | {"syncserver/static/syncserver.d.ts"}) - held.keys()
    strange = {n for n in held if not n.startswith(("syncserver/", "syncserver-"))}
    if missing or strange:
        raise SystemExit(f"{server.name}: lacks {sorted(missing)}, should not hold {strange}")
    if "syncserver_client/py.typed" not in contents(client):
        raise SystemExit(f"{client.name}: lacks py.typed")


@contextmanager
def serving(command: list[str], environment: dict[str, str], cwd: Path) -> Iterator[dict[str, str]]:
    """Run the daemon, give its two addresses, and expect it to end well when told to."""
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True
    ) as daemon:
        deadline = threading.Timer(SECONDS, daemon.kill)
        deadline.start()
        try:
            yield _addresses(daemon)
            daemon.send_signal(signal.SIGTERM)
            status = daemon.wait(SECONDS)
        finally:
            deadline.cancel()
            daemon.kill()
    if status != 0:
        raise SystemExit(f"after SIGTERM the daemon ended with {status}, not 0")


def _addresses(daemon: subprocess.Popen[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in daemon.stdout or ():
        if match := re.match(r"(frontend|backend) (\S+)$", line.strip()):
            found[match[1]] = match[2]
        if len(found) == 2:
            return found
    raise SystemExit(f"the daemon did not say where it listens, only {found}")


def get(url: str) -> bytes:
    """Return the body of a 200; any other status raises."""
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        body: bytes = response.read()
        return body


def check_extra_is_named(url: str) -> None:
    """See that a door which needs a package says so; the environment has none of them."""
    try:
        get(url)
    except urllib.error.HTTPError as error:
        if error.code == 501 and b"syncserver[metrics]" in error.read():
            return
    raise SystemExit(f"{url} does not say what it needs")


def check_running(bin_folder: Path, outside: Path) -> None:
    """Start the installed daemon and use each of its doors once."""
    (outside / "syncserver.toml").write_text(CONFIG, "utf-8")
    environment = {"PATH": os.defpath, "SYNCSERVER_API_KEY": secrets.token_urlsafe(32)}
    syncserver = str(bin_folder / "syncserver")
    serve = [syncserver, "serve", "--config", "syncserver.toml"]
    with serving(serve, environment, outside) as url:
        get(url["backend"].replace("/backend", "/live"))
        check_extra_is_named(url["backend"].replace("/backend", "/metrics"))
        call = [str(bin_folder / "python"), "-c", CALL, url["backend"]]
        subprocess.run(call, cwd=outside, env=environment, check=True)
        page = url["frontend"].replace("ws://", "http://").replace("/ws", "/syncserver.js")
        if get(page) != LIBRARY.read_bytes():
            raise SystemExit(f"{page} is not clients/javascript/syncserver.js")
    subprocess.run([syncserver, "client", "--out", "copied"], cwd=outside, check=True)
    if (outside / "copied" / "syncserver.js").read_bytes() != LIBRARY.read_bytes():
        raise SystemExit("syncserver client --out does not copy clients/javascript/syncserver.js")


def main() -> None:
    """Build, install, run."""
    with tempfile.TemporaryDirectory(prefix="syncserver-wheels-") as folder:
        outside = Path(folder)
        checkout = copy_of_the_checkout(outside)
        server = build(checkout, outside / "server")
        client = build(checkout / "clients" / "python", outside / "client")
        check_contents(server, client)
        venv.create(outside / "empty", with_pip=True)
        bin_folder = outside / "empty" / "bin"
        pip = [str(bin_folder / "python"), "-m", "pip", "install", "--quiet"]
        wheels = [str(server), str(client)]
        run_quietly([*pip, "--disable-pip-version-check", *wheels])
        check_running(bin_folder, outside)
        print(f"{server.name} and {client.name}: built, installed, served, called, ended")


if __name__ == "__main__":
    main()
