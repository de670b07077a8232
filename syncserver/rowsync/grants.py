"""What a token is made of: its text, and the bytes that an engine keeps for it."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from syncserver import strict_json

_ALPHABET = string.ascii_lowercase + string.digits
_LENGTH = 32


class ItemSpec(NamedTuple):
    """An item as it was authorised."""

    dealer: str
    query: Any
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class GrantBody:
    """The items of a grant, and who its holder is (None: nothing is said of it)."""

    items: Sequence[ItemSpec]
    identity: Any = None

    def encode(self) -> bytes:
        """Return the bytes for an engine."""
        return strict_json.encode_trusted({"items": self.items, "identity": self.identity})

    @classmethod
    def decode(cls, data: bytes) -> GrantBody:
        """Read the bytes that ``encode`` made; ValueError if it made none such."""
        try:
            body = strict_json.decode_trusted(data)
        except RecursionError:
            raise ValueError("nested too deep") from None
        match body:
            case {"items": [*items], "identity": identity}:
                return cls(list(map(_item, items)), identity)
        raise ValueError("no grant")


def _item(wire: Any) -> ItemSpec:
    match wire:
        case [str(dealer), query, str() | None as tag]:
            return ItemSpec(dealer, query, tag)
    raise ValueError("no item of a grant")


def new_token() -> str:
    """Return a token that nobody can guess."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
