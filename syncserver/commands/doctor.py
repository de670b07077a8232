"""``syncserver doctor``: say whether the machine is ready for what the configuration wants.

Each look returns findings: what is well, what may become a trouble, and what must be
mended before the daemon can serve; each of the last two says what to change.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import logging
import os
import resource
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from syncserver.admission.gate import descriptors, places
from syncserver.commands import base
from syncserver.config import LOCAL_ORIGINS, Backend, Config, Frontend
from syncserver.engines.base import Engine
from syncserver.errors import ConfigError, Unavailable
from syncserver.process.memory import bound_of, least_bytes, resident_bytes

_FILES = 10_000
_BACKLOG = 1024
_MIB = 1024 * 1024
_ENGINE_SECONDS = 10.0
_LIVE_SECONDS = 3.0
_CLOCK_SECONDS = 2.0
_LOCAL = ("127.", "::1", "localhost")


class Finding(NamedTuple):
    """What a look found: ``ok``, ``warn`` or ``FAIL``, where, and what to say of it."""

    level: str
    name: str
    text: str


def add(commands: base.Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="look at the machine and say what to change before serving on it",
        description="Look at what 'serve' will need with these settings: open files, listen"
        " backlog, memory, clock, engine, directories, ports, keys. Each line says what is well"
        " (ok), what may become a trouble (warn), or what must be mended (FAIL), and how. Run it"
        " as the user that the daemon runs as.",
        epilog="Ends with 0, with 1 if something must be mended, with 78 if the settings are"
        " refused.",
        allow_abbrev=False,
    )
    base.add_settings(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look at everything and tell."""
    config = base.read_settings(options)
    findings = [finding for look in LOOKS for finding in look(config)]
    for level, name, text in findings:
        print(f"{level:4} {name}: {text}")
    return base.TO_MEND if any(finding.level == "FAIL" for finding in findings) else 0


def _files(config: Config) -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = descriptors(config.limits)
    raised = "" if most == soft else f" ({soft}, which 'serve' raises)"
    text = f"{most} may be open{raised}, so about {places(config.limits, most)[0]} connections"
    if most == resource.RLIM_INFINITY:
        yield Finding("ok", "open files", "any number may be open")
    elif most >= _FILES or places(config.limits, most)[0] == config.limits.max_connections:
        yield Finding("ok", "open files", text)
    else:
        mend = "for more, LimitNOFILE= in the unit, or ulimit -Hn"
        yield Finding("warn", "open files", f"{text}; {mend}")


def _backlog(_config: Config) -> Iterator[Finding]:
    path = Path("/proc/sys/net/core/somaxconn")
    if not path.exists():
        return
    length = int(path.read_text("ascii"))
    text = f"{length} connections may wait to be taken"
    if length >= _BACKLOG:
        yield Finding("ok", "listen backlog", text)
    else:
        mend = f"many clients that come at once are turned away; sysctl net.core.somaxconn={4096}"
        yield Finding("warn", "listen backlog", f"{text}; {mend}")


def _memory(config: Config) -> Iterator[Finding]:
    resident = resident_bytes()
    bound = bound_of(config.limits, 1, resident)
    if bound.note:
        mend = "" if bound.is_set else "; allow more (MemoryMax=), or set limits.max_process_bytes"
        yield Finding("warn", "memory", bound.note + mend)
    elif bound.most is None:
        yield Finding("ok", "memory", "nothing bounds it")
    elif bound.is_set:
        yield Finding("ok", "memory", f"{bound.most // _MIB} MiB for each process")
    else:
        text = f"{bound.most // _MIB} MiB, which --workers share; it bounds no more of them than"
        yield Finding("ok", "memory", f"{text} {bound.most // least_bytes(resident)}")


def _clock(_config: Config) -> Iterator[Finding]:
    built = Path(__file__).stat().st_mtime
    if time.time() < built - 86_400:
        yield Finding("FAIL", "clock", "is before this program was made; set it, run an NTP client")
    else:
        yield Finding("ok", "clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def _engine(config: Config) -> Iterator[Finding]:
    from syncserver import app  # --help does not wait for the engines

    warned = _Warnings()
    logger = logging.getLogger("syncserver")
    logger.addHandler(warned)
    try:
        ahead = asyncio.run(_reach(app.make_engine(config)))
    except ConfigError as error:
        yield _refused_engine(config, error)
    except (Unavailable, TimeoutError) as error:
        said = str(error) or "no answer"
        mend = "mend or start it, or change engine"
        yield Finding("FAIL", "engine", f"{config.shown_engine}: {said}; {mend}")
    else:
        yield Finding("ok", "engine", f"{config.shown_engine} answers")
        if ahead is not None:
            yield _engine_clock(ahead)
    finally:
        logger.removeHandler(warned)
    for text in warned.texts:
        yield Finding("warn", "engine", text)


def _refused_engine(config: Config, error: ConfigError) -> Finding:
    """Tell why there can be no such engine; it is well if the daemon that runs has the file."""
    from syncserver.engines.sqlite_file import InUse

    if isinstance(error, InUse) and _is_ours(config):
        return Finding("ok", "engine", f"{config.shown_engine}: the daemon that is running has it")
    return Finding("FAIL", "engine", str(error).removeprefix("engine: "))


def _engine_clock(ahead: float) -> Finding:
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) <= _CLOCK_SECONDS:
        return Finding("ok", "engine clock", text)
    mend = "one of the two is wrong: run an NTP client on both"
    return Finding("warn", "engine clock", f"{text}; {mend}")


async def _reach(engine: Engine) -> float | None:
    """Reach the store; return how far its clock is ahead, if it has one of its own."""
    async with asyncio.timeout(_ENGINE_SECONDS):
        try:
            await engine.open()
            await engine.check()
            asked = time.time()
            theirs = await engine.clock()
            return None if theirs is None else theirs - (asked + time.time()) / 2
        finally:
            await engine.close()


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _directories(config: Config) -> Iterator[Finding]:
    if config.backend.key_file is not None:
        path = Path(config.backend.key_file).parent
        there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
        yield _directory("key directory", path, there)  # the daemon makes it
    wanted = {}
    if config.engine.startswith("sqlite:"):
        file = config.engine.partition("://")[2].partition("?")[0]
        wanted["store directory"] = Path(file).parent
    for name, door in (("frontend", config.frontend), ("backend", config.backend)):
        if door.unix_socket is not None:
            wanted[f"{name} directory"] = Path(door.unix_socket).parent
    for name, path in wanted.items():
        yield _directory(name, path, path)


def _directory(name: str, path: Path, there: Path) -> Finding:
    """Look at a directory, or at what is there of the way to it."""
    if not there.exists():
        return Finding("FAIL", name, f"{path} does not exist; make it, for the daemon's user")
    if not there.is_dir():
        return Finding("FAIL", name, f"{there} is no directory; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("FAIL", name, f"{there} cannot be written by this user; chown or chmod it")
    return Finding("ok", name, f"{path} can be written")


def _ports(config: Config) -> Iterator[Finding]:
    for name, door in (("frontend", config.frontend), ("backend", config.backend)):
        if door.unix_socket is None and not (name == "backend" and config.backend.on_frontend):
            yield from _port(name, door, config)


def _port(name: str, door: Frontend | Backend, config: Config) -> Iterator[Finding]:
    place = f"{door.address} port {door.port or 'any'}"
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            door.address, door.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _is_ours(config):
            yield Finding("ok", name, f"{place}: a daemon is running there")
        else:
            mend = f"end what listens there, or set {name}.port"
            yield Finding("FAIL", name, f"{place}: {error.strerror}; {mend}")
    else:
        yield Finding("ok", name, f"{place} is free")


def _is_ours(config: Config) -> bool:
    """Tell whether a daemon answers at the backend's door."""
    door = config.frontend if config.backend.on_frontend else config.backend
    url = f"{base.base_url(door, 'http')}/live"
    try:
        with urllib.request.urlopen(url, timeout=_LIVE_SECONDS) as answer:  # noqa: S310  # http
            return bool(json.load(answer) == {"ok": True})
    except (OSError, ValueError):
        return False


def _keys(config: Config) -> Iterator[Finding]:
    backend = config.backend
    if backend.key_file is not None:
        made = "is kept" if backend.api_keys else "will be made"
        yield Finding("ok", "api key", f"{made} in {backend.key_file}")
        return
    for key in backend.api_keys:
        if key.expired():
            yield Finding("warn", "api key", f"{key.id} has expired; take it out")
        else:
            yield Finding("ok", "api key", f"{key.id}: {', '.join(sorted(key.operations))}")
    source = Path(config.source) if config.source else None
    in_file = any(key.secret and key.id.startswith("sha256:") for key in backend.api_keys)
    if in_file and source and source.stat().st_mode & 0o004:
        mend = "chmod 640 it, or store the hash (syncserver generate-key)"
        yield Finding("FAIL", "api key", f"{source} holds a key and all users may read it; {mend}")


def _reachable(config: Config) -> Iterator[Finding]:
    frontend, backend = config.frontend, config.backend
    if config.insecure:
        yield Finding("warn", "insecure", "is set; for trying out only")
    if not frontend.address.startswith(_LOCAL) and frontend.allowed_origins == LOCAL_ORIGINS:
        mend = "set frontend.allowed_origins to the sites whose pages connect"
        yield Finding("warn", "origins", f"only pages of localhost may connect; {mend}")
    own_door = not backend.on_frontend and backend.unix_socket is None
    if own_door and not backend.address.startswith(_LOCAL) and backend.tls_cert is None:
        mend = "listen on 127.0.0.1, or set backend.tls_cert"
        yield Finding("warn", "backend", f"keys cross the network in clear text; {mend}")


LOOKS: Iterable[Callable[[Config], Iterator[Finding]]] = (
    _files,
    _backlog,
    _memory,
    _clock,
    _engine,
    _directories,
    _ports,
    _keys,
    _reachable,
)
