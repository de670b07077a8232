"""What every dealer keeps: the index finds exactly the items that the law covers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver.dealers import (
    BroadcastDealer,
    Dealer,
    FilterDealer,
    KeyedDealer,
    SimpleDealer,
    SubscriptionItem,
)
from syncserver.delta import Row

pytestmark = pytest.mark.core


class OwnKey(SimpleDealer):
    model = "Task"

    def get_key_for_model(self, row: Row) -> Any:
        return row["k"]


class OwnDealer(Dealer):
    """A dealer of a user: the three methods and nothing else."""

    model = "Task"

    def __init__(self) -> None:
        self.by_key: dict[bytes, list[SubscriptionItem]] = {}

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        self.by_key.setdefault(item.key, []).append(item)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        self.by_key[item.key].remove(item)
        if not self.by_key[item.key]:
            del self.by_key[item.key]

    def get_subscription_items_for_model(self, row: Row) -> Iterable[SubscriptionItem]:
        yield from self.by_key.get(SubscriptionItem("", row.get("k", "none")).key, ())


KEYS: list[Any] = [1, 1.0, True, "1", None, 0, False, "", [1], [True], [1.0], {"a": 1}, {"a": True}]
ROWS = [{"k": key, "n": n} for key in KEYS for n in (1, "x")] + [{"n": 1}, {}]


def key_filters() -> list[Any]:
    plain = [["==", "k", key] for key in KEYS]
    return [
        *plain,
        ["in", "k", []],
        ["in", "k", [1, "1", [1]]],
        ["!=", "k", 1],
        ["not", ["==", "k", 1]],
        ["and", ["==", "n", 1], ["==", "k", True]],
        ["and", ["<", "n", 2], ["in", "k", [True, None]]],
        ["or", ["==", "k", 1], ["==", "k", True]],
        ["or", ["==", "k", 1], ["==", "n", "x"]],
        ["==", "k.a", 1],
        ["exists", "k"],
    ]


@dataclass(frozen=True)
class Case:
    """One dealer: how it is made, what it may be asked, and how one asks for a key."""

    make: Callable[[], Dealer]
    queries: list[Any]
    query_for: Callable[[Any], Any]


CASES = {
    "broadcast": Case(lambda: BroadcastDealer(model="Task"), KEYS, lambda key: key),
    "keyed": Case(lambda: KeyedDealer(model="Task", key="k"), KEYS, lambda key: key),
    "own key": Case(OwnKey, KEYS, lambda key: key),
    "filter": Case(lambda: FilterDealer(model="Task"), key_filters(), lambda key: ["==", "k", key]),
    "own dealer": Case(OwnDealer, KEYS, lambda key: key),
}
SELECTIVE = sorted(CASES.keys() - {"broadcast"})

every_dealer = pytest.mark.parametrize("name", CASES)
every_selective_dealer = pytest.mark.parametrize("name", SELECTIVE)


def added(dealer: Dealer, query: Any) -> SubscriptionItem:
    item = SubscriptionItem(dealer.name, query, dealer.parse_query(query))
    dealer.add_subscription_item(item)
    return item


def check_law(dealer: Dealer, items: list[SubscriptionItem]) -> None:
    for row in ROWS:
        found = list(dealer.get_subscription_items_for_model(row))
        assert len(found) == len(set(found)), "an item was given twice"
        assert set(found) == {item for item in items if dealer.covers(item, row)}


@every_dealer
@given(data=st.data())
def test_the_index_is_the_law_after_any_additions_and_removals(
    name: str, data: st.DataObject
) -> None:
    case = CASES[name]
    dealer, items = case.make(), list[SubscriptionItem]()
    for step in data.draw(st.lists(st.integers(-5, len(case.queries) - 1), max_size=15)):
        if step >= 0:
            items.append(added(dealer, case.queries[step]))
        elif items:
            dealer.remove_subscription_item(items.pop(step % len(items)))
    check_law(dealer, items)


@every_dealer
def test_the_index_is_the_law_with_every_query_at_once(name: str) -> None:
    case = CASES[name]
    dealer = case.make()
    items = [added(dealer, query) for query in case.queries * 2]
    check_law(dealer, items)
    for item in items[::2]:
        dealer.remove_subscription_item(item)
    check_law(dealer, items[1::2])


@every_dealer
def test_nothing_is_kept_when_all_items_are_gone(name: str) -> None:
    case = CASES[name]
    dealer = case.make()
    empty = held_by(dealer)
    items = [added(dealer, query) for query in case.queries * 2]
    references = [weakref.ref(item) for item in items]
    while items:
        dealer.remove_subscription_item(items.pop())
    gc.collect()
    assert [reference for reference in references if reference() is not None] == []
    assert held_by(dealer) == empty


def held_by(dealer: Dealer) -> dict[str, int]:
    """Return how much each container of the dealer holds."""
    held = vars(dealer).items()
    return {name: len(value) for name, value in held if isinstance(value, dict | set | list)}


@pytest.mark.parametrize(
    ("key", "asked"),
    [
        (1, [1, 1.0]),
        (1.0, [1, 1.0]),
        (True, [True]),
        ("1", ["1"]),
        (0, [0]),
        (False, [False]),
        (None, [None]),
        ([1], [[1], [1.0]]),
        ([True], [[True]]),
        ({"a": 1.0}, [{"a": 1}]),
        ({"a": True}, [{"a": True}]),
    ],
    ids=repr,
)
@every_selective_dealer
def test_equal_keys_of_json_are_one_and_different_ones_are_not(
    name: str, key: Any, asked: list[Any]
) -> None:
    case = CASES[name]
    dealer = case.make()
    for each in KEYS:
        added(dealer, case.query_for(each))
    found = [item.query for item in dealer.get_subscription_items_for_model({"k": key})]
    assert sorted(map(repr, found)) == sorted(repr(case.query_for(each)) for each in asked)


@every_selective_dealer
def test_a_row_that_moves_leaves_some_items_and_enters_others(name: str) -> None:
    case = CASES[name]
    dealer = case.make()
    red, blue = (added(dealer, case.query_for(color)) for color in ("red", "blue"))
    assert set(dealer.get_subscription_items_for_model({"k": "red"})) == {red}
    assert set(dealer.get_subscription_items_for_model({"k": "blue"})) == {blue}
    assert set(dealer.get_subscription_items_for_model({"k": "green"})) == set()


@every_dealer
def test_two_items_with_the_same_query_are_two(name: str) -> None:
    case = CASES[name]
    dealer = case.make()
    one, other = added(dealer, case.query_for("x")), added(dealer, case.query_for("x"))
    assert set(dealer.get_subscription_items_for_model({"k": "x"})) == {one, other}
    dealer.remove_subscription_item(one)
    assert set(dealer.get_subscription_items_for_model({"k": "x"})) == {other}
    assert dealer.covers(other, {"k": "x"})
