"""What commands share: exit codes, settings, and where to find a daemon.

Exit codes are those of sysexits.h; docs/reference/commands lists them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from syncserver.apikeys import ApiKey, Secret
from syncserver.config import Backend, Config, Frontend
from syncserver.configuration.file import load
from syncserver.configuration.keys import find_key
from syncserver.errors import ConfigError
from syncserver.logs import CONTROLS

TO_MEND = 1
BAD_DATA = 65
NO_INPUT = 66
UNAVAILABLE = 69
INTERNAL = 70
CANNOT_WRITE = 73
NOT_ALLOWED = 77
REFUSED = 78
INTERRUPTED = 128 + signal.SIGINT
NOBODY_READS = 128 + signal.SIGPIPE

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Failed(Exception):
    """A command ends here, with this exit code and one line on standard error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def fail(code: int, message: str) -> int:
    """Say in one line on standard error why the command ends, and return its exit code."""
    say(f"syncserver: {message}")
    return code


def say(text: str) -> None:
    """Write one line on standard error, whatever stands in it."""
    print(text.translate(CONTROLS), file=sys.stderr)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Give a command the flags that choose its settings."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file with the settings; without it the file that SYNCSERVER_CONFIG names, or"
        " else the defaults",
    )
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="one setting of the fixed sections, before those of environment and file, such as"
        " frontend.port=8080; may stand several times",
    )


def read_settings(options: argparse.Namespace, *, make_key: bool = False) -> Config:
    """Return the settings that the flags and the environment choose, or raise ConfigError."""
    from syncserver import app  # --help does not wait for Tornado

    assignments: Sequence[str] = options.set
    return load(options.config, os.environ, app.KNOWN, assignments=assignments, make_key=make_key)


def add_daemon(parser: argparse.ArgumentParser) -> None:
    """Give a command the flags that say where the daemon is and which key to use."""
    add_settings(parser)
    parser.add_argument(
        "--url",
        metavar="URL",
        help="where the daemon takes calls, such as http://127.0.0.1:5801/backend; without it"
        " what the settings say",
    )
    parser.add_argument(
        "--key",
        metavar="env:NAME|file:PATH",
        help="where the API key stands; without it the first of the settings that is known here"
        " (one that is given as a hash is not)",
    )


@dataclass(frozen=True, slots=True)
class Daemon:
    """Where a daemon is, and the key for it."""

    url: str
    key: Secret
    config: Config


def find_daemon(options: argparse.Namespace) -> Daemon:
    """Return the daemon that the flags and settings name, or raise ConfigError."""
    config = read_settings(options)
    if config.backend.unix_socket is not None and options.url is None:
        raise ConfigError("the backend listens on a Unix socket; give --url, that of the proxy")
    door = config.frontend if config.backend.on_frontend else config.backend
    url = options.url or f"{base_url(door, 'http')}/backend"
    if options.key is not None:
        kind = options.key.partition(":")[0]
        if kind not in {"env", "file"}:
            raise ConfigError("--key: others see the command line; write env:NAME or file:PATH")
        keys: Sequence[ApiKey] = (find_key(options.key, os.environ, Path()),)
    else:
        keys = config.backend.api_keys
    for key in keys:
        if key.secret is not None and not key.expired():
            return Daemon(url, key.secret, config)
    raise ConfigError("no API key is known here; give --key env:NAME or --key file:PATH")


def base_url(door: Frontend | Backend, scheme: str) -> str:
    """Return the address of a door as this machine reaches it."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
    address = everywhere.get(door.address, door.address)
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}{'s' if door.tls_cert else ''}://{host}:{door.port}"
