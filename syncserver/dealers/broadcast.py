"""Everybody sees every row."""

from __future__ import annotations

from syncserver.dealers.base import Dealer, SubscriptionItem
from syncserver.delta import Row


class BroadcastDealer(Dealer):
    """Show every row of the model to every item, whatever its query."""

    def __init__(self, *, name: str | None = None, model: str | None = None) -> None:
        super().__init__(name=name, model=model)
        self._items: set[SubscriptionItem] = set()

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        self._items.add(item)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        self._items.remove(item)

    def get_subscription_items_for_model(self, row: Row) -> list[SubscriptionItem]:
        return list(self._items)

    def covers(self, item: SubscriptionItem, row: Row) -> bool:
        return True
