"""A row is seen by those whose filter it passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from syncserver import canonical, filters
from syncserver.dealers.base import Dealer, SubscriptionItem
from syncserver.delta import Delta, Row
from syncserver.filters import MISSING, Filter, reader


@dataclass(slots=True)
class _Path:
    """The items that need an equality at one path, by the value it must have there."""

    read: Callable[[Any], Any]
    buckets: dict[bytes, set[SubscriptionItem]] = field(default_factory=dict)

    def add(self, item: SubscriptionItem, key: bytes) -> None:
        self.buckets.setdefault(key, set()).add(item)

    def remove(self, item: SubscriptionItem, key: bytes) -> None:
        bucket = self.buckets[key]
        bucket.remove(item)
        if not bucket:
            del self.buckets[key]

    def find(self, row: Row) -> set[SubscriptionItem]:
        value = self.read(row)
        if value is MISSING:
            return set()
        return self.buckets.get(canonical.key(value), set())


class FilterDealer(Dealer):
    """Show a row to the items whose query is a filter that it passes.

    A filter that no row can pass without an equality is only looked at when the
    row has that value; the others are all evaluated.
    """

    max_nodes: int = filters.MAX_NODES
    max_depth: int = filters.MAX_DEPTH

    def __init__(
        self,
        *,
        name: str | None = None,
        model: str | None = None,
        max_nodes: int | None = None,
        max_depth: int | None = None,
    ) -> None:
        super().__init__(name=name, model=model)
        if max_nodes is not None:
            self.max_nodes = max_nodes
        if max_depth is not None:
            self.max_depth = max_depth
        self._paths: dict[str, _Path] = {}
        self._unanchored: set[SubscriptionItem] = set()

    def parse_query(self, query: Any) -> Filter:
        return filters.parse(query, max_nodes=self.max_nodes, max_depth=self.max_depth)

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        anchor = item.parsed.anchor
        if anchor is None:
            self._unanchored.add(item)
            return
        for key in anchor.keys:
            if anchor.path not in self._paths:
                self._paths[anchor.path] = _Path(reader(anchor.path))
            self._paths[anchor.path].add(item, key)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        anchor = item.parsed.anchor
        if anchor is None:
            self._unanchored.remove(item)
            return
        for key in anchor.keys:
            path = self._paths[anchor.path]
            path.remove(item, key)
            if not path.buckets:
                del self._paths[anchor.path]

    def get_subscription_items_for_model(self, row: Row) -> list[SubscriptionItem]:
        return [item for item in self._candidates(row) if item.parsed.matches(row)]

    def covers(self, item: SubscriptionItem, row: Row) -> bool:
        return bool(item.parsed.matches(row))

    def missing_field(self, delta: Delta) -> str | None:
        if delta.old is None or delta.new is None:
            return None
        missing = delta.new.keys() - delta.old.keys()
        return f"oldData.{min(missing)}" if missing else None

    def _candidates(self, row: Row) -> Iterator[SubscriptionItem]:
        yield from self._unanchored
        for path in self._paths.values():
            yield from path.find(row)
