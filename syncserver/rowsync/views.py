"""Items and views, shared by all who hold the same; deltas narrowed once for each view.

An *item* is a dealer and a query; while somebody holds it, it stands in the index of its
dealer. A *view* is a model, a tag and the items under it. Both exist once, however many
subscriptions have them, and go with the last one. Pure.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from syncserver import canonical
from syncserver.dealers.base import Dealer, SubscriptionItem
from syncserver.delta import Delta, Kind, Row
from syncserver.errors import InvalidQuery
from syncserver.rowsync.grants import ItemSpec

logger = logging.getLogger("syncserver.views")

Seen = tuple[tuple[int, Kind], ...]
"""What a view sees of a batch: number of the delta, and what it is to this view."""


class View:
    """The items of a subscription that share model and tag."""

    __slots__ = ("items", "model", "subscribers", "tag")

    def __init__(self, model: str, tag: str | None, items: frozenset[SubscriptionItem]) -> None:
        self.model = model
        self.tag = tag
        self.items = items
        self.subscribers: dict[Any, None] = {}


@dataclass(slots=True)
class Narrowed:
    """A batch as the views see it, and the views whose dealers failed on it."""

    seen: dict[View, list[tuple[int, Kind]]] = field(default_factory=dict)
    failed: set[View] = field(default_factory=set)

    def add(self, view: View, index: int, kind: Kind) -> None:
        """Note that delta ``index`` is a ``kind`` to ``view``."""
        self.seen.setdefault(view, []).append((index, kind))


class Views:
    """The views that are in use, over the dealers of one service."""

    def __init__(self) -> None:
        self.dealers: dict[str, Dealer] = {}
        self._by_model: dict[str, list[Dealer]] = {}
        self._items: dict[tuple[str, bytes], SubscriptionItem] = {}
        self._item_uses: Counter[SubscriptionItem] = Counter()
        self._views: dict[tuple[str, str | None, frozenset[SubscriptionItem]], View] = {}
        self._view_uses: Counter[View] = Counter()

    @property
    def counts(self) -> tuple[int, int]:
        """How many views there are, and how many items in the indexes of the dealers."""
        return len(self._views), len(self._items)

    def add_dealer(self, dealer: Dealer) -> None:
        """Let subscriptions name ``dealer``."""
        if dealer.name in self.dealers:
            raise RuntimeError(f"Dealer with name '{dealer.name}' already is registered.")
        self.dealers[dealer.name] = dealer
        self._by_model.setdefault(dealer.model, []).append(dealer)

    def discard_dealer(self, dealer: Dealer) -> set[View]:
        """Let nobody name ``dealer`` any more; return the views that can no longer be told."""
        del self.dealers[dealer.name]
        self._by_model[dealer.model].remove(dealer)
        items = [item for item in self._items.values() if item.dealer == dealer.name]
        return {view for item in items for view in item.views}

    def dealers_of(self, model: str) -> Sequence[Dealer]:
        """Return the dealers of a model."""
        return self._by_model.get(model, ())

    def parse(self, spec: ItemSpec) -> Any:
        """Return what the dealer makes of the query; InvalidQuery (with a path) if it refuses."""
        dealer = self.dealers.get(spec.dealer)
        if dealer is None:
            raise InvalidQuery("No such dealer", code="no_such_dealer", field="dealer")
        try:
            return dealer.parse_query(spec.query)
        except InvalidQuery as error:
            error.field = "query" if error.field is None else f"query.{error.field}"
            raise

    def open(self, specs: Iterable[ItemSpec]) -> list[View]:
        """Return the views of a subscription.

        InvalidQuery, or what a dealer raises as it takes an item, leaves nothing behind.
        """
        parsed = [(spec, self.parse(spec)) for spec in specs]
        groups: dict[tuple[str, str | None], set[SubscriptionItem]] = {}
        try:
            for spec, query in parsed:
                item = self._item(spec, query)
                model = self.dealers[spec.dealer].model
                groups.setdefault((model, spec.tag), set()).add(item)
        except BaseException:
            for item in {item for items in groups.values() for item in items}:
                if not self._item_uses[item]:
                    self._forget(item)
            raise
        return [self._view(model, tag, items) for (model, tag), items in groups.items()]

    def close(self, views: Iterable[View]) -> None:
        """Let go of the views of a subscription."""
        for view in views:
            self._view_uses[view] -= 1
            if self._view_uses[view]:
                continue
            del self._view_uses[view], self._views[view.model, view.tag, view.items]
            for item in view.items:
                item.views.discard(view)
                self._drop(item)

    def concerned(self, model: str | None, items: Iterable[tuple[str, bytes]]) -> set[View]:
        """Return the views on ``model`` and those that hold one of ``items`` (dealer, key)."""
        held = [self._items[key] for key in items if key in self._items]
        views = {view for item in held for view in item.views}
        return views.union(view for view in self._view_uses if view.model == model)

    def narrow(self, deltas: Sequence[Delta]) -> Narrowed:
        """Return what the views see of a batch, by the index of the dealers."""
        narrowed = Narrowed()
        for index, delta in enumerate(deltas):
            before = self._seeing(delta.model, delta.old, narrowed.failed)
            after = self._seeing(delta.model, delta.new, narrowed.failed)
            for view in before:
                narrowed.add(view, index, "update" if view in after else "delete")
            for view in after:
                if view not in before:
                    narrowed.add(view, index, "insert")
        return narrowed

    def replay(self, view: View, deltas: Sequence[Delta]) -> Seen:
        """Return what one view sees of a batch, by the law of its items.

        Whatever its dealers raise is the caller's to handle.
        """
        seen: list[tuple[int, Kind]] = []
        for index, delta in enumerate(deltas):
            if delta.model != view.model:
                continue
            before, after = self._covers(view, delta.old), self._covers(view, delta.new)
            if before:
                seen.append((index, "update" if after else "delete"))
            elif after:
                seen.append((index, "insert"))
        return tuple(seen)

    def _covers(self, view: View, row: Row | None) -> bool:
        if row is None:
            return False
        return any(self.dealers[item.dealer].covers(item, row) for item in view.items)

    def _seeing(self, model: str, row: Row | None, failed: set[View]) -> Mapping[View, None]:
        seeing: dict[View, None] = {}
        if row is None:
            return seeing
        for dealer in self._by_model.get(model, ()):
            try:
                items = dealer.get_subscription_items_for_model(row)
                for item in items:
                    seeing.update(dict.fromkeys(item.views))
            except Exception:
                logger.exception("Dealer %s failed on a row of %s", dealer.name, model)
                seeing.update(self._by_law(dealer, row, failed))
        return seeing

    def _by_law(self, dealer: Dealer, row: Row, failed: set[View]) -> dict[View, None]:
        """Ask the law of each item where the index failed, so that only the faulty ones end."""
        seeing: dict[View, None] = {}
        for item in [item for item in self._items.values() if item.dealer == dealer.name]:
            try:
                if dealer.covers(item, row):
                    seeing.update(dict.fromkeys(item.views))
            except Exception:  # noqa: BLE001  # logged by the caller, once for the dealer
                failed.update(item.views)
        return seeing

    def _item(self, spec: ItemSpec, parsed: Any) -> SubscriptionItem:
        key = (spec.dealer, canonical.key(spec.query))
        item = self._items.get(key)
        if item is None:
            item = SubscriptionItem(spec.dealer, spec.query, parsed)
            self.dealers[spec.dealer].add_subscription_item(item)
            self._items[key] = item
        return item

    def _view(self, model: str, tag: str | None, items: set[SubscriptionItem]) -> View:
        key = (model, tag, frozenset(items))
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = View(model, tag, key[2])
            for item in items:
                item.views.add(view)
                self._item_uses[item] += 1
        self._view_uses[view] += 1
        return view

    def _drop(self, item: SubscriptionItem) -> None:
        self._item_uses[item] -= 1
        if not self._item_uses[item]:
            self._forget(item)

    def _forget(self, item: SubscriptionItem) -> None:
        del self._item_uses[item], self._items[item.dealer, item.key]
        dealer = self.dealers.get(item.dealer)
        if dealer is None:
            return
        try:
            dealer.remove_subscription_item(item)
        except Exception:
            logger.exception("Dealer %s failed to forget an item", dealer.name)
