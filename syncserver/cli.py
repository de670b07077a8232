"""The command line: what it reads, what it prints, and what its exit codes mean.

Exit codes are those of sysexits.h; docs/reference/commands lists them.
"""

from __future__ import annotations

import argparse
import errno
import functools
import logging
import select
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from syncserver.commands import check_config, doctor, generate_key, publish, tail
from syncserver.commands.base import (
    CANNOT_WRITE,
    INTERNAL,
    INTERRUPTED,
    NOBODY_READS,
    REFUSED,
    UNAVAILABLE,
    Commands,
    Failed,
    add_settings,
    fail,
    read_settings,
)
from syncserver.config import LOG_LEVELS, Log
from syncserver.errors import ConfigError, Unavailable
from syncserver.logs import LogHandler, forget_output
from syncserver.version import __version__

logger = logging.getLogger("syncserver.cli")

_ABOUT = ("-h", "--help", "--version")
_MAX_WORKERS = 256
_BIND_ERRNOS = {
    errno.EACCES,
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
    errno.EPERM,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    options = _parser().parse_args(_with_command(sys.argv[1:] if argv is None else argv))
    try:
        code: int = options.run(options)
        if sys.stdout is not None:  # closed by who started it
            sys.stdout.flush()
    except ConfigError as error:
        return fail(REFUSED, error.in_one_line())
    except Failed as failed:
        return fail(failed.code, str(failed))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            forget_output()
            return NOBODY_READS
        logger.exception("Ended by an error of its own; please report it")
        return INTERNAL
    return code


def _nobody_reads() -> bool:
    """Tell whether standard output is closed at its other end; another pipe may be what broke."""
    if sys.stdout is None:
        return False
    output = select.poll()
    output.register(sys.stdout, 0)
    return bool(output.poll(0))


def _with_command(arguments: Sequence[str]) -> Sequence[str]:
    """Return the arguments with ``serve`` where no command stands."""
    if arguments and (arguments[0] in _ABOUT or not arguments[0].startswith("-")):
        return arguments
    return ["serve", *arguments]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="syncserver",
        description="A daemon beside your web app that keeps lists in browsers equal to rows in"
        " its database: the app posts every change of a row, browsers get those that they may"
        " see.",
        epilog="Without a command it serves, with settings for trying out on this machine."
        " 'syncserver COMMAND --help' says more about a command. Exit codes: 0 done, 2 the command"
        " line is wrong, 69 no port, engine or daemon to be had, 70 an error of its own, 78 the"
        " configuration is refused; docs/reference/commands has all.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"syncserver {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_client(commands)
    for command in (check_config, generate_key, doctor, publish, tail):
        command.add(commands)
    return parser


def _add_serve(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve browsers and the web app until SIGTERM or SIGINT (the default)",
        description="Serve until SIGTERM or SIGINT: then calls under way are finished and clients"
        " are told to reconnect. A second signal ends at once.",
        epilog="Single settings can be given in the environment, before those of the file:"
        " SYNCSERVER_FRONTEND__PORT=8080; --set goes before both. Without API keys one is"
        " made and kept; its file is named at start.",
        allow_abbrev=False,
    )
    add_settings(parser)
    parser.add_argument(
        "--app",
        metavar="MODULE:ATTRIBUTE",
        help="serve a pair of registries (frontend, backend) made in Python, or a function that"
        " returns one, in place of the [services] of the file; a function with a parameter is"
        " given the settings",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_workers,
        default=1,
        help="processes that share the ports and the store; needs an engine for several"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        type=str.lower,
        choices=LOG_LEVELS,
        help=f"what is logged on standard error: {', '.join(LOG_LEVELS)} (default: log.level of"
        " the settings, which is info)",
    )
    parser.set_defaults(run=_serve)


def _add_client(commands: Commands) -> None:
    parser = commands.add_parser(
        "client",
        help="copy the browser library into a directory of your web app",
        description="Copy the browser library of this release, an ES module and its TypeScript"
        " types. (A running daemon also serves it, at /syncserver.js.)",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        required=True,
        help="directory for syncserver.js and syncserver.d.ts; made if it is missing, files of"
        " another release are replaced",
    )
    parser.set_defaults(run=_copy_client)


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= _MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {_MAX_WORKERS}")
    return int(text)


def _serve(options: argparse.Namespace) -> int:
    from syncserver import running  # noqa: PLC0415  # --help does not wait for Tornado

    read = functools.partial(read_settings, options, make_key=True)
    config = read()
    _log_to_stderr(config.log, options.log_level)
    try:
        return running.run(config, application=options.app, workers=options.workers, read=read)
    except Unavailable as error:
        mend = "mend or start it, or change engine"
        return fail(UNAVAILABLE, f"engine {config.shown_engine}: {error}; {mend}")
    except OSError as error:
        if error.errno not in _BIND_ERRNOS and not isinstance(error, socket.gaierror):
            raise
        doors = " or ".join(
            door.unix_socket or f"{door.address} port {door.port}"
            for door in (config.frontend, config.backend)
        )
        mend = "is another daemon running? Else change address or port of [frontend] or [backend]"
        return fail(UNAVAILABLE, f"cannot listen on {doors}: {error.strerror}; {mend}")


def _copy_client(options: argparse.Namespace) -> int:
    from syncserver import app  # noqa: PLC0415  # --help does not wait for Tornado

    out: Path = options.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, path in app.client_files().items():
            shutil.copyfile(path, out / name)
            print(out / name)
    except OSError as error:
        place = error.filename2 or error.filename or out
        return fail(CANNOT_WRITE, f"{place}: {error.strerror or error}")
    return 0


def _log_to_stderr(log: Log, level: str | None) -> None:
    handler = LogHandler(format=log.format)
    logging.basicConfig(level=(level or log.level).upper(), handlers=[handler], force=True)
