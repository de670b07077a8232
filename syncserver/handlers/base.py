"""What the handlers of browsers share: who may connect."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

_ANY_PORT = ":*"


def origin_allowed(origin: str, allowed: Iterable[str]) -> bool:
    """Tell whether a page's origin is in a list of origins.

    Entries are ``scheme://host[:port]``, exact but for case; ``:*`` at the end is
    any port or none, ``*`` alone any origin.
    """
    origin = origin.lower()
    for entry in map(str.lower, allowed):
        if entry in ("*", origin):
            return True
        if entry.endswith(_ANY_PORT) and _without_port(origin) == entry.removesuffix(_ANY_PORT):
            return True
    return False


def _without_port(origin: str) -> str:
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return origin
    return origin.removesuffix(f":{port}") if port is not None else origin
