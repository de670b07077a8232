"""Telling systemd how far the daemon is, and that it goes on (sd_notify), where it asks."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

logger = logging.getLogger("syncserver.app")

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


def notify(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Send a state to the socket that ``NOTIFY_SOCKET`` names; without one, nothing."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
            notifying.sendto(state.encode(), address.replace("@", "\0", 1))
    except OSError as error:
        logger.warning("Cannot tell systemd of %s: %s", state, error.strerror)


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return how long systemd waits for a sign of life of this process; None: it asks for none."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not (microseconds.isascii() and microseconds.isdecimal() and int(microseconds)):
        return None
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000
