"""``syncserver check-config``: say whether the configuration is as it should be."""

from __future__ import annotations

import argparse

from syncserver.commands import base
from syncserver.errors import ConfigError


def add(commands: base.Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "check-config",
        help="say everything that is wrong with a configuration, and where it stands",
        description="Read the configuration as 'serve' does, with environment and flags, and say"
        " everything that is refused: file, line, key and what to do. Nothing is started, made"
        " or connected to. 'doctor' looks at the machine too.",
        epilog="Ends with 0 if nothing is refused, or else with 78.",
        allow_abbrev=False,
    )
    base.add_settings(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check and tell."""
    from syncserver import app  # --help does not wait for Tornado

    try:
        config = base.read_settings(options)
        app.engine_class(config)
    except ConfigError as error:
        for one in sorted((error, *error.others), key=lambda one: one.line or 0):
            base.say(one.located())
        return base.REFUSED
    for key in config.backend.api_keys:
        if key.expired():
            base.say(f"{config.source or 'settings'}: the API key {key.id} has expired")
    print(f"{config.source or 'the defaults'}: nothing is wrong")
    return 0
