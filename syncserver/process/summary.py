"""What a daemon says of itself when it starts."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Sequence

from syncserver.admission.gate import places
from syncserver.config import LOCAL_ORIGINS, Config
from syncserver.logs import forget_output
from syncserver.version import __version__

logger = logging.getLogger("syncserver.app")

_NOTES = {"memory": " (what is not delivered is gone with the process)"}


def summary(
    config: Config, *, frontend: str, backend: str, services: Sequence[str], has_engine: bool
) -> str:
    """Return what was started and where, a line for each thing, for a person at a terminal."""
    lines = {
        "syncserver": f"{__version__}, settings from {config.source or 'none (defaults)'}",
        "frontend": frontend,
        "backend": backend,
        "api key": _keys(config),
        "origins": _origins(config.frontend.allowed_origins),
        "connections": _connections(config),
        "services": ", ".join(services),
        "engine": _engine(config) if has_engine else "of the services' own",
    }
    return "\n".join(f"{name} {text}" for name, text in lines.items())


def show(text: str) -> None:
    """Print the summary, or log it: a daemon whose standard output is closed serves too."""
    if sys.stdout is not None:
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except OSError:
            forget_output()
        else:
            return
    logger.info("Serving; standard output is closed: %s", "; ".join(text.splitlines()))


def _keys(config: Config) -> str:
    if config.backend.key_file:
        return f"in {config.backend.key_file}"
    return ", ".join(key.id for key in config.backend.api_keys)


def _origins(allowed: tuple[str, ...]) -> str:
    return "localhost on any port" if allowed == LOCAL_ORIGINS else ", ".join(allowed)


def _connections(config: Config) -> str:
    most, _ = places(config.limits)
    if most == config.limits.max_connections:
        return f"{most} at most"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{most} at most: {soft} open files are too few for {config.limits.max_connections}"


def _engine(config: Config) -> str:
    return config.shown_engine + _NOTES.get(config.engine, "")
