"""``syncserver generate-key``: a new API key, and its line for the configuration."""

from __future__ import annotations

import argparse
import json
import re
import secrets
from datetime import date

from syncserver.apikeys import HASH_PREFIX, OPERATIONS, ApiKey
from syncserver.commands import base

_BYTES = 32
_PREFIX = "ss_"  # so that programs which look for leaked keys can know one


def add(commands: base.Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "generate-key",
        help="make an API key, and the line for the configuration that knows it",
        description="Make a random API key of 256 bits. The first line on standard output is the"
        " key, which is shown this once and kept nowhere: give it to the program that posts. The"
        " second is the entry for 'api_keys' of [backend], which holds its hash alone, so that the"
        " configuration is no secret.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--id",
        metavar="NAME",
        type=_id,
        required=True,
        help="what the log calls the key: letters, digits, dots, dashes, underscores",
    )
    parser.add_argument(
        "--operations",
        metavar="LIST",
        type=_operations,
        default=OPERATIONS,
        help=f"what it may do, with commas: {', '.join(OPERATIONS)} (default: all)",
    )
    parser.add_argument(
        "--expires",
        metavar="DATE",
        type=_date,
        help="the day, as in 2027-01-31, from whose beginning (UTC) it is refused",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make a key and print it with its entry."""
    text = _PREFIX + secrets.token_urlsafe(_BYTES)
    entry = [f'id = "{options.id}"', f'key = "{HASH_PREFIX}{ApiKey.of(text).digest.hex()}"']
    if options.operations != OPERATIONS:
        entry.append(f"operations = {json.dumps(options.operations)}")
    if options.expires is not None:
        entry.append(f"expires = {options.expires}")
    base.say("The key, shown this once; then its entry for the list api_keys of [backend]:")
    print(f"{text}\n{{ {', '.join(entry)} }},")  # in one: who wants the key alone reads no further
    return 0


def _id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise argparse.ArgumentTypeError("give 1 to 64 letters, digits, dots, dashes, underscores")
    return text


def _operations(text: str) -> list[str]:
    given = [part.strip() for part in text.split(",")]
    for one in given:
        if one not in OPERATIONS:
            raise argparse.ArgumentTypeError(f"{one} is none of {', '.join(OPERATIONS)}")
    return given


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no date as in 2027-01-31") from None
