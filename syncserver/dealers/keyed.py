"""A row is seen by those who asked for its key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from syncserver import canonical
from syncserver.dealers.base import Dealer, SubscriptionItem
from syncserver.delta import Delta, Row
from syncserver.filters import MISSING, reader

_NO_KEY = (LookupError, TypeError, AttributeError, ValueError)
"""What reading a key raises on a row that has none, or none that is JSON."""


class KeyedDealer(Dealer):
    """Show a row to the items whose query equals the row's key, any JSON value.

    ``key`` is the field that holds it, such as ``"entryId"`` or ``"entry.id"``; a
    subclass may override ``get_key_for_model`` instead.
    """

    key: str | None = None

    def __init__(
        self, *, name: str | None = None, model: str | None = None, key: str | None = None
    ) -> None:
        super().__init__(name=name, model=model)
        if key is not None:
            self.key = key
        if self.key is not None:
            self._read = reader(self.key)
        elif type(self).get_key_for_model is KeyedDealer.get_key_for_model:
            raise TypeError(f"dealer {self.name} needs a key")
        self._index: dict[bytes, set[SubscriptionItem]] = {}

    def get_key_for_model(self, row: Row) -> Any:
        """Return the row's key; LookupError or TypeError on a row without."""
        value = self._read(row)
        if value is MISSING:
            raise KeyError(self.key)
        return value

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        self._index.setdefault(item.key, set()).add(item)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        bucket = self._index[item.key]
        bucket.remove(item)
        if not bucket:
            del self._index[item.key]

    def get_subscription_items_for_model(self, row: Row) -> list[SubscriptionItem]:
        try:
            return list(self._index.get(self._bytes(row), ()))
        except _NO_KEY:  # missing_field has the row refused when it is published
            return []

    def covers(self, item: SubscriptionItem, row: Row) -> bool:
        try:
            return self._bytes(row) == item.key
        except _NO_KEY:
            return False

    def missing_field(self, delta: Delta) -> str | None:
        for name, row in _rows(delta):
            try:
                self._bytes(row)
            except KeyError as error:
                return f"{name}.{error.args[0]}" if error.args else name
            except _NO_KEY:
                return name
        return None

    def _bytes(self, row: Row) -> bytes:
        return canonical.key(self.get_key_for_model(row))


def _rows(delta: Delta) -> Iterator[tuple[str, Row]]:
    """Give the rows of a delta with their names on the wire."""
    update = delta.kind == "update"
    if delta.new is not None:
        yield "newData" if update else "data", delta.new
    if delta.old is not None:
        yield "oldData" if update else "data", delta.old


SimpleDealer = KeyedDealer
