"""``syncserver tail``: print what a dealer and a query would see."""

from __future__ import annotations

import argparse

from syncserver.commands import base


def add(commands: base.Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "tail",
        help="print what a dealer and a query would see, live",
        description="Be a browser: have a token authorised, acquire it over a WebSocket, and print"
        " each delta as a line of JSON (which 'publish' takes). After a lost connection it goes on"
        " where it was. What it does is said on standard error. Ctrl-C ends it.",
        epilog="Examples: syncserver tail AllTasks; syncserver tail FilteredTasks"
        ' \'["==", "owner", 7]\'. Ends with 65 if dealer or query are refused, 69 if the'
        " daemon is not there, 77 if it refuses the key.",
        allow_abbrev=False,
    )
    parser.add_argument("dealer", metavar="DEALER", help="the name of the dealer")
    parser.add_argument(
        "query",
        metavar="QUERY",
        nargs="?",
        default="null",
        help="the query, as JSON; what is no JSON is a string (default: null)",
    )
    parser.add_argument(
        "--service",
        metavar="NAME",
        default="datasync",
        help="the service for browsers (default: %(default)s)",
    )
    parser.add_argument(
        "--count", metavar="N", type=int, default=0, help="end after so many deltas"
    )
    parser.add_argument(
        "--ws-url",
        metavar="URL",
        help="where browsers connect, such as ws://127.0.0.1:5800/ws; without it what the"
        " settings say",
    )
    base.add_daemon(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print until there is nothing more to print, or Ctrl-C."""
    from syncserver.commands import tailing  # --help does not wait for Tornado

    return tailing.run(options)
