"""One change of one row, and its form on the wire (docs/reference/wire)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from syncserver.errors import RPCError

Row = Mapping[str, Any]
Kind = Literal["insert", "update", "delete"]

_ONE_ROW = frozenset({"type", "model", "version", "data"})
_TWO_ROWS = frozenset({"type", "model", "version", "oldData", "newData"})

GROUP_MODEL = "$group"
"""The model of what is told to groups; its rows have ``group`` and ``object``."""


class InvalidDelta(RPCError):
    """A published delta is refused, and with it its whole batch."""

    code = "invalid_delta"


class Delta(NamedTuple):
    """A row was inserted (no ``old``), deleted (no ``new``) or updated (both).

    ``version`` rises with each change of the row; it orders deltas whose
    publishers may overtake each other.
    """

    model: str
    old: Row | None
    new: Row | None
    version: int | None = None

    @property
    def kind(self) -> Kind:
        """Return the wire name of the change."""
        if self.old is None:
            return "insert"
        return "delete" if self.new is None else "update"

    def narrowed(self, kind: Kind) -> Delta:
        """Return this change as somebody sees it to whom it is a ``kind``."""
        match kind:
            case "insert":
                return Delta(self.model, None, self.new, self.version)
            case "delete":
                return Delta(self.model, self.old, None, self.version)
            case _:
                return self

    def for_json(self, tag: str | None = None) -> dict[str, Any]:
        """Return the wire form; ``tag`` is the name of the items that let it through."""
        model, old, new, version = self
        wire: dict[str, Any] = {"type": self.kind, "model": model}
        if tag is not None:
            wire["tag"] = tag
        if version is not None:
            wire["version"] = version
        if old is not None and new is not None:
            wire["newData"] = new
            wire["oldData"] = old
        else:
            wire["data"] = old if new is None else new
        return wire

    @classmethod
    def parse(cls, wire: object) -> Delta:
        """Check the wire form; InvalidDelta names the field at fault."""
        if not isinstance(wire, dict):
            raise InvalidDelta("delta must be object")
        model = wire.get("model")
        if not isinstance(model, str):
            raise InvalidDelta("model must be string", field="model")
        old: Row | None
        new: Row | None
        match wire.get("type"):
            case "insert":
                old, new, rows = None, _row(wire, "data"), _ONE_ROW
            case "update":
                old, new = _row(wire, "oldData"), _row(wire, "newData")
                rows = _TWO_ROWS
            case "delete":
                old, new, rows = _row(wire, "data"), None, _ONE_ROW
            case _:
                raise InvalidDelta("Invalid delta type", field="type")
        version = wire.get("version")
        if version is not None and (type(version) is not int or version < 0):
            raise InvalidDelta("version must be a whole number from 0", field="version")
        if not rows.issuperset(wire):
            raise InvalidDelta("Unknown field", field=min(wire.keys() - rows))
        return cls(model, old, new, version)


def _row(wire: Mapping[str, Any], field: str) -> Row:
    if field not in wire:
        raise InvalidDelta(f"Missing field '{field}'", field=field)
    row = wire[field]
    if not isinstance(row, dict):
        raise InvalidDelta(f"{field} must be object", field=field)
    return row
