"""What stands in the stream of a data sync service, and its bytes there.

Besides batches of deltas these are words to all nodes about subscriptions, so
that they have a place in the one order.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from syncserver import canonical, strict_json
from syncserver.delta import Delta

logger = logging.getLogger("syncserver.entries")


@dataclass(frozen=True, slots=True)
class Batch:
    """Deltas that were published together."""

    deltas: tuple[Delta, ...]


@dataclass(frozen=True, slots=True)
class TakenOver:
    """The grant of ``token`` was taken for the ``take``-th time while it was held."""

    token: str
    take: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """The grant of ``token`` is revoked."""

    token: str


@dataclass(frozen=True, slots=True)
class RefetchRequested:
    """Who sees ``model``, or holds one of ``items`` (dealer, canonical query), fetches again."""

    model: str | None
    items: frozenset[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something that this version did not write; it is passed over."""


Value = Batch | TakenOver | Revoked | RefetchRequested | Unreadable


def encode_batch(deltas: Sequence[Delta]) -> bytes:
    """Return the bytes of a batch."""
    return strict_json.encode_trusted({"deltas": [delta.for_json() for delta in deltas]})


def encode_refetch_request(*, model: str | None = None, items: Sequence[Any] = ()) -> bytes:
    """Return the bytes of a request; ``items`` are pairs of dealer and query."""
    return strict_json.encode_trusted({"refetch": {"model": model, "items": items}})


def decode(data: bytes) -> Value:
    """Read the bytes of an entry; never fails."""
    try:
        return _decode(data)
    except (ValueError, LookupError, TypeError):
        logger.exception("An entry of %s bytes is not one of ours", len(data))
        return Unreadable()


def _decode(data: bytes) -> Value:
    match strict_json.decode_trusted(data):
        case {"deltas": [*deltas]}:
            return Batch(tuple(map(_delta, deltas)))
        case {"taken": [str(token), int(take)]}:
            return TakenOver(token, take)
        case {"revoked": str(token)}:
            return Revoked(token)
        case {"refetch": {"model": model, "items": [*items]}}:
            pairs = frozenset((dealer, canonical.key(query)) for dealer, query in items)
            return RefetchRequested(model, pairs)
        case _:
            raise ValueError("unknown kind of entry")


def _delta(wire: dict[str, Any]) -> Delta:
    match wire["type"]:
        case "insert":
            old, new = None, wire["data"]
        case "delete":
            old, new = wire["data"], None
        case _:
            old, new = wire["oldData"], wire["newData"]
    return Delta(wire["model"], old, new, wire.get("version"))
