"""A row is seen by those whose filter it passes."""

from __future__ import annotations

from typing import Any

from syncserver import filters
from syncserver.dealers.base import Dealer, SubscriptionItem
from syncserver.dealers.index import Index
from syncserver.delta import Delta, Row
from syncserver.filters import Filter

MAX_LINEAR = 10_000


class FilterDealer(Dealer):
    """Show a row to the items whose query is a filter that it passes.

    ``index`` has the items; it finds those that a row may concern (``dealers.index``).
    At most ``max_linear`` of the filters may be such as it cannot narrow.
    """

    max_nodes: int = filters.MAX_NODES
    max_depth: int = filters.MAX_DEPTH
    max_linear: int = MAX_LINEAR

    def __init__(
        self,
        *,
        name: str | None = None,
        model: str | None = None,
        max_nodes: int | None = None,
        max_depth: int | None = None,
        max_linear: int | None = None,
    ) -> None:
        super().__init__(name=name, model=model)
        if max_nodes is not None:
            self.max_nodes = max_nodes
        if max_depth is not None:
            self.max_depth = max_depth
        if max_linear is not None:
            self.max_linear = max_linear
        self.index: Index[SubscriptionItem] = Index()

    def parse_query(self, query: Any) -> Filter:
        return filters.parse(query, max_nodes=self.max_nodes, max_depth=self.max_depth)

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        self.index.add(item.parsed, item, max_linear=self.max_linear)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        self.index.remove(item.parsed, item)

    def get_subscription_items_for_model(self, row: Row) -> list[SubscriptionItem]:
        return self.index.find(row)

    def covers(self, item: SubscriptionItem, row: Row) -> bool:
        return bool(item.parsed.matches(row))

    def missing_field(self, delta: Delta) -> str | None:
        if delta.old is None or delta.new is None:
            return None
        missing = delta.new.keys() - delta.old.keys()
        return f"oldData.{min(missing)}" if missing else None
