from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from syncserver.config import Limits
from syncserver.dealers import (
    BroadcastDealer,
    Dealer,
    FilterDealer,
    KeyedDealer,
    SimpleDealer,
    SubscriptionItem,
)
from syncserver.dealers.index import TooManyLinear
from syncserver.delta import Delta, Row
from syncserver.errors import InvalidQuery

pytestmark = pytest.mark.core


class PlainDealer(Dealer):
    """Written as the documentation of Snorky shows: three methods, an own constructor."""

    model = "Task"

    def __init__(self) -> None:
        self.items: list[SubscriptionItem] = []

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        self.items.append(item)

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        self.items.remove(item)

    def get_subscription_items_for_model(self, row: Row) -> Iterable[SubscriptionItem]:
        return (item for item in self.items if item.query == row["color"])


class AllTasks(BroadcastDealer):
    name = "all"
    model = "Task"


class TasksOfEntry(SimpleDealer):
    model = "Task"

    def get_key_for_model(self, row: Row) -> Any:
        return row["entry"]["id"]


def added(dealer: Dealer, query: Any) -> SubscriptionItem:
    item = SubscriptionItem(dealer.name, query, dealer.parse_query(query))
    dealer.add_subscription_item(item)
    return item


def seen_by(dealer: Dealer, row: Row) -> set[SubscriptionItem]:
    return set(dealer.get_subscription_items_for_model(row))


# Items


def test_an_item_is_equal_only_to_itself() -> None:
    one, other = SubscriptionItem("all", [1]), SubscriptionItem("all", [1])
    assert one != other
    assert len({one, other, one}) == 2


def test_an_item_keeps_its_query_and_the_canonical_bytes_of_it() -> None:
    item = SubscriptionItem("all", {"b": 1.0, "a": []})
    assert item.key == b'{"a":[],"b":1}'
    assert item.views == set()
    assert repr(item) == "SubscriptionItem('all', {'b': 1.0, 'a': []})"


# Names, models, constructors


def test_the_name_of_a_dealer_is_its_class_unless_it_says_otherwise() -> None:
    assert PlainDealer().name == "PlainDealer"
    assert AllTasks().name == "all"
    assert BroadcastDealer(model="Task").name == "BroadcastDealer"
    assert BroadcastDealer(name="every", model="Task").name == "every"


def test_a_subclass_does_not_take_the_name_of_its_parent() -> None:
    class Urgent(AllTasks):
        pass

    assert Urgent.name == "Urgent"
    assert Urgent.model == "Task"


@pytest.mark.parametrize(
    "kind", [BroadcastDealer, FilterDealer, lambda **names: KeyedDealer(key="id", **names)]
)
def test_a_built_in_dealer_is_made_with_keywords_and_needs_a_model(kind: Any) -> None:
    dealer = kind(name="tasks", model="Task")
    assert (dealer.name, dealer.model) == ("tasks", "Task")
    with pytest.raises(TypeError, match="needs a model"):
        kind(name="tasks")


def test_keywords_of_one_dealer_do_not_reach_another() -> None:
    KeyedDealer(name="one", model="A", key="x")
    with pytest.raises(TypeError, match="needs a key"):
        KeyedDealer(name="two", model="B")
    assert KeyedDealer.name == "KeyedDealer"


def test_a_dealer_without_the_constructor_of_the_base_has_all_defaults() -> None:
    dealer = PlainDealer()
    red = added(dealer, "red")
    added(dealer, "blue")
    assert red.parsed == "red"
    assert dealer.covers(red, {"color": "red"})
    assert not dealer.covers(red, {"color": "blue"})
    assert dealer.missing_field(Delta("Task", {}, {})) is None
    dealer.remove_subscription_item(red)
    assert not dealer.covers(red, {"color": "red"})


# Broadcast


def test_a_broadcast_dealer_shows_every_row_whatever_the_query() -> None:
    dealer = AllTasks()
    items = {added(dealer, query) for query in (None, "x", {"any": 1})}
    assert seen_by(dealer, {}) == items


def test_items_may_be_removed_while_they_are_gone_through() -> None:
    for dealer in (AllTasks(), KeyedDealer(model="Task", key="id"), FilterDealer(model="Task")):
        query = ["==", "id", 1] if isinstance(dealer, FilterDealer) else 1
        for _ in range(3):
            added(dealer, query)
        for item in dealer.get_subscription_items_for_model({"id": 1}):
            dealer.remove_subscription_item(item)
        assert seen_by(dealer, {"id": 1}) == set()


# Keyed


def test_simple_dealer_is_another_name_of_keyed_dealer() -> None:
    assert SimpleDealer is KeyedDealer


def test_a_keyed_dealer_shows_a_row_to_those_who_asked_for_its_key() -> None:
    dealer = KeyedDealer(model="Task", key="entryId")
    one, _ = added(dealer, 1), added(dealer, 2)
    assert seen_by(dealer, {"entryId": 1}) == {one}
    assert seen_by(dealer, {"entryId": 3}) == set()
    assert seen_by(dealer, {"id": 1}) == set()


def test_a_key_may_stand_inside_objects_and_in_the_class() -> None:
    class TasksByOwner(KeyedDealer):
        model = "Task"
        key = "owner.id"

    dealer = TasksByOwner()
    one = added(dealer, 1)
    assert seen_by(dealer, {"owner": {"id": 1}}) == {one}
    assert seen_by(dealer, {"owner": [{"id": 1}]}) == set()


def test_a_bad_key_path_is_refused_when_the_dealer_is_made() -> None:
    with pytest.raises(ValueError, match="segment"):
        KeyedDealer(model="Task", key="owner.")


def test_null_is_a_key_like_others() -> None:
    dealer = KeyedDealer(model="Task", key="entryId")
    orphans = added(dealer, None)
    assert seen_by(dealer, {"entryId": None}) == {orphans}
    assert seen_by(dealer, {}) == set()
    assert dealer.missing_field(Delta("Task", None, {"entryId": None})) is None


def test_an_overridden_key_method_is_used() -> None:
    dealer = TasksOfEntry()
    one = added(dealer, 1)
    assert seen_by(dealer, {"entry": {"id": 1}}) == {one}
    assert dealer.covers(one, {"entry": {"id": 1}})
    assert seen_by(dealer, {"entry": 5}) == set()
    assert not dealer.covers(one, {})


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        (None, {"owner": {"id": 1}}, None),
        (None, {"owner": {}}, "data.owner.id"),
        ({}, None, "data.owner.id"),
        ({"owner": {"id": 1}}, {"owner": {"id": 2}}, None),
        ({}, {"owner": {"id": 2}}, "oldData.owner.id"),
        ({"owner": {"id": 2}}, {"owner": None}, "newData.owner.id"),
    ],
)
def test_a_row_without_key_is_named_as_on_the_wire(
    old: Row | None, new: Row | None, missing: str | None
) -> None:
    dealer = KeyedDealer(model="Task", key="owner.id")
    assert dealer.missing_field(Delta("Task", old, new)) == missing


@pytest.mark.parametrize(
    ("row", "missing"),
    [({}, "data.entry"), ({"entry": None}, "data"), ({"entry": {}}, "data.id")],
)
def test_what_an_own_key_method_misses_is_named_where_known(row: Row, missing: str) -> None:
    assert TasksOfEntry().missing_field(Delta("Task", None, row)) == missing


def test_an_own_key_that_is_no_json_refuses_the_row() -> None:
    class Odd(SimpleDealer):
        model = "Task"

        def get_key_for_model(self, row: Row) -> Any:
            return object()

    assert Odd().missing_field(Delta("Task", None, {"id": 1})) == "data"


# Filter


def test_a_filter_dealer_refuses_a_bad_query_when_it_is_parsed() -> None:
    with pytest.raises(InvalidQuery, match="unknown operator"):
        FilterDealer(model="Task").parse_query(["~", "color", "blue"])


def test_the_limits_of_a_filter_dealer_can_be_set() -> None:
    class Shallow(FilterDealer):
        model = "Task"
        max_depth = 1

    deep = ["not", ["exists", "a"]]
    FilterDealer(model="Task").parse_query(deep)
    for dealer in (Shallow(), FilterDealer(model="Task", max_nodes=1)):
        with pytest.raises(InvalidQuery):
            dealer.parse_query(deep)


def test_a_filter_dealer_shows_a_row_to_the_filters_that_it_passes() -> None:
    dealer = FilterDealer(model="Task")
    blue = added(dealer, ["==", "color", "blue"])
    young = added(dealer, ["<", "age", 18])
    either = added(dealer, ["in", "color", ["blue", "red"]])
    added(dealer, ["in", "color", []])
    assert seen_by(dealer, {"color": "blue", "age": 30}) == {blue, either}
    assert seen_by(dealer, {"color": "red", "age": 3}) == {young, either}
    assert seen_by(dealer, {}) == set()


def test_only_filters_of_the_same_value_are_looked_at() -> None:
    dealer = FilterDealer(model="Task")
    for owner in range(50):
        added(dealer, ["and", ["==", "owner", owner], ["exists", "title"]])
    assert seen_by(dealer, {"owner": 7}) == set()
    assert dealer.index.examined == 1


def test_filters_that_cannot_be_narrowed_are_taken_up_to_a_limit() -> None:
    dealer = FilterDealer(model="Task", max_linear=2)
    kept = [added(dealer, ["and", ["!=", "a", n], ["!=", "b", n]]) for n in range(2)]
    again = added(dealer, ["and", ["!=", "b", 0], ["!=", "a", 0]])
    with pytest.raises(TooManyLinear, match="there are 2") as caught:
        added(dealer, ["or", ["==", "a", 1], ["exists", "b"]])
    assert (caught.value.code, caught.value.field) == ("linear_filter_limit", "query")
    added(dealer, ["!=", "a", 7])  # fails for one value alone, so it costs what it matches
    added(dealer, ["and", ["!=", "a", 7], ["==", "b", 7]])
    dealer.remove_subscription_item(again)
    with pytest.raises(TooManyLinear):
        added(dealer, ["not", ["in", "a", [1, 2]]])
    dealer.remove_subscription_item(kept[0])
    added(dealer, ["not", ["in", "a", [1, 2]]])
    assert dealer.index.linear == 2


def test_the_default_limit_is_that_of_the_settings() -> None:
    assert FilterDealer(model="Task").max_linear == Limits().max_linear_filters


def test_a_filter_that_no_row_passes_is_added_and_removed_beside_others() -> None:
    dealer = FilterDealer(model="Task")
    never = added(dealer, ["in", "color", []])
    blue = added(dealer, ["==", "color", "blue"])
    dealer.remove_subscription_item(blue)
    dealer.remove_subscription_item(never)
    assert seen_by(dealer, {"color": "blue"}) == set()


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        (None, {"a": 1}, None),
        ({"a": 1}, None, None),
        ({"a": 1, "b": 2}, {"a": 2}, None),
        ({"a": None}, {"a": 2}, None),
        ({"a": 1}, {"a": 2, "c": 3, "b": 3}, "oldData.b"),
        ({}, {"id": 1}, "oldData.id"),
    ],
)
def test_the_old_row_of_an_update_has_what_the_new_one_has(
    old: Row | None, new: Row | None, missing: str | None
) -> None:
    assert FilterDealer(model="Task").missing_field(Delta("Task", old, new)) == missing
