"""Telling systemd how far the daemon is (sd_notify), where it asks."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

logger = logging.getLogger("syncserver.app")

READY = "READY=1"
STOPPING = "STOPPING=1"


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
