"""Telling a peer what others are told too: a protocol that fails ends its own session alone."""

from __future__ import annotations

import logging

from syncserver.errors import CloseCode
from syncserver.protocols.base import Event
from syncserver.session import Session

logger = logging.getLogger("syncserver.session")


def announce(session: Session, event: Event) -> None:
    """Tell an event; never raises. The protocol of a session may have a state of its own."""
    try:
        session.tell(event)
    except Exception:
        logger.exception("An event cannot be told to %s", session)
        session.abort(CloseCode.INTERNAL)
