"""What decides who sees a change: dealers, and the items that one may be allowed to see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from syncserver import canonical
from syncserver.delta import Delta, Row


class SubscriptionItem:
    """A query to a dealer, shared by all that hold it; equal only to itself.

    ``key`` is the query in canonical bytes, ``parsed`` what the dealer's
    ``parse_query`` made of it; ``views`` belongs to ``syncserver.rowsync.views``.
    """

    __slots__ = ("__weakref__", "dealer", "key", "parsed", "query", "views")

    def __init__(self, dealer: str, query: Any, parsed: Any = None) -> None:
        self.dealer = dealer
        self.query = query
        self.key = canonical.key(query)
        self.parsed = parsed
        self.views: set[Any] = set()

    def __repr__(self) -> str:
        return f"SubscriptionItem({self.dealer!r}, {self.query!r})"


class Dealer(ABC):
    """Decide which subscription items see a row of ``model``.

    A subclass writes the three abstract methods and may have an ``__init__``
    that does not call this one. Methods are plain and quick: they run between
    two frames. A row or query is made of what JSON has and is never changed.
    """

    name: str
    """What items call the dealer; the name of the class unless it says otherwise."""
    model: str
    """The model whose deltas the dealer gets."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def __init__(self, *, name: str | None = None, model: str | None = None) -> None:
        if name is not None:
            self.name = name
        if model is not None:
            self.model = model
        if not isinstance(getattr(self, "model", None), str):
            raise TypeError(f"dealer {self.name} needs a model")

    def parse_query(self, query: Any) -> Any:
        """Return what ``item.parsed`` shall be; InvalidQuery tells a person what is wrong.

        Its ``field`` is a path inside the query. Called once, when an item is authorised.
        """
        return query

    @abstractmethod
    def add_subscription_item(self, item: SubscriptionItem) -> None:
        """Take an item in."""

    @abstractmethod
    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        """Forget an item that was taken in, and all that was kept for it."""

    @abstractmethod
    def get_subscription_items_for_model(self, row: Row) -> Iterable[SubscriptionItem]:
        """Return exactly the items that see the row, each once."""

    def covers(self, item: SubscriptionItem, row: Row) -> bool:
        """Tell whether this item sees the row: the law that the index must keep."""
        return any(found is item for found in self.get_subscription_items_for_model(row))

    def missing_field(self, delta: Delta) -> str | None:
        """Return the path of what the delta lacks for this dealer, such as ``oldData.id``."""
        return None
