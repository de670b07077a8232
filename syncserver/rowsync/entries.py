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
from syncserver.delta import Delta, Row

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


_ROWS = (dict, type(None))

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
    except (ValueError, LookupError, TypeError, RecursionError):
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
        case {"refetch": {"model": str() | None as model, "items": [*items]}}:
            return RefetchRequested(model, frozenset(map(_pair, items)))
        case _:
            raise ValueError("unknown kind of entry")


def _pair(item: list[Any]) -> tuple[str, bytes]:
    match item:
        case [str(dealer), query]:
            return dealer, canonical.key(query)
        case _:
            raise ValueError("no pair of dealer and query")


def _delta(wire: dict[str, Any]) -> Delta:
    old: Row | None = None
    new: Row | None = None
    match wire["type"]:
        case "insert":
            new = wire["data"]
        case "delete":
            old = wire["data"]
        case "update":
            old, new = wire["oldData"], wire["newData"]
        case _:
            raise ValueError("unknown kind of delta")
    model, version = wire["model"], wire.get("version")
    if type(old) not in _ROWS or type(new) not in _ROWS or old is new:  # the same: both None
        raise ValueError("a row that is none")
    if type(model) is not str or (version is not None and type(version) is not int):
        raise ValueError("a model or version that is none")
    return Delta(model, old, new, version)
