"""Items and views are shared and go with their last holder; what they see is the law's."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver.dealers import (
    BroadcastDealer,
    Dealer,
    FilterDealer,
    KeyedDealer,
    SubscriptionItem,
)
from syncserver.delta import Delta, Row
from syncserver.errors import InvalidQuery
from syncserver.rowsync.grants import ItemSpec
from syncserver.rowsync.views import View, Views
from tests.conftest import ExpectedLog


class Fragile(Dealer):
    """Sees a row by its key; fails wherever the test says."""

    model = "Row"

    def __init__(self) -> None:
        self.items: dict[bytes, SubscriptionItem] = {}
        self.bad_index = False
        self.bad_items: set[Any] = set()
        self.bad_add = False
        self.bad_remove = False

    def add_subscription_item(self, item: SubscriptionItem) -> None:
        if self.bad_add:
            raise LookupError("cannot add")
        self.items[item.key] = item

    def remove_subscription_item(self, item: SubscriptionItem) -> None:
        del self.items[item.key]
        if self.bad_remove:
            raise LookupError("cannot remove")

    def get_subscription_items_for_model(self, row: Row) -> Iterable[SubscriptionItem]:
        for item in self.items.values():
            if item.query == row["k"]:
                yield item
        if self.bad_index:
            raise LookupError("cannot find")

    def covers(self, item: SubscriptionItem, row: Row) -> bool:
        if item.query in self.bad_items:
            raise LookupError("cannot tell")
        return bool(item.query == row["k"])


ALL = ItemSpec("All", None)


def some(operator: str = ">", n: Any = 0, tag: str | None = None) -> ItemSpec:
    return ItemSpec("Some", [operator, "n", n], tag)


def keyed(key: Any, tag: str | None = None) -> ItemSpec:
    return ItemSpec("ByKey", key, tag)


def fragile(key: Any, tag: str | None = None) -> ItemSpec:
    return ItemSpec("Fragile", key, tag)


def views() -> Views:
    made = Views()
    made.add_dealer(BroadcastDealer(name="All", model="Row"))
    made.add_dealer(KeyedDealer(name="ByKey", model="Row", key="k"))
    made.add_dealer(FilterDealer(name="Some", model="Row"))
    made.add_dealer(BroadcastDealer(name="Others", model="Other"))
    made.add_dealer(Fragile())
    return made


def the_fragile(made: Views) -> Fragile:
    dealer = made.dealers["Fragile"]
    assert isinstance(dealer, Fragile)
    return dealer


def indexed(made: Views, row: Row) -> list[str]:
    """Return which items of any dealer see a row, by the dealers' own index."""
    dealers = made.dealers.values()
    found = [item for dealer in dealers for item in dealer.get_subscription_items_for_model(row)]
    return sorted(f"{item.dealer} {item.query}" for item in found)


def kept(made: Views) -> int:
    return sum(map(len, (made._items, made._item_uses, made._views, made._view_uses)))


def insert(**row: Any) -> Delta:
    return Delta("Row", None, row)


def delete(**row: Any) -> Delta:
    return Delta("Row", row, None)


def update(old: Row, new: Row) -> Delta:
    return Delta("Row", old, new)


# Opening and closing.


def test_who_asks_for_the_same_gets_the_same_view() -> None:
    made = views()
    first = made.open([keyed(1), ALL, some()])
    assert made.open([some(), keyed(1.0), ALL, ALL]) == first
    assert len(first) == 1
    assert {item.dealer for item in first[0].items} == {"All", "ByKey", "Some"}


def test_items_are_shared_by_views_that_differ() -> None:
    made = views()
    (one,), (other,) = made.open([keyed(1)]), made.open([keyed(1), keyed(2)])
    assert one is not other
    assert one.items < other.items
    assert len(indexed(made, {"k": 1, "n": 0})) == 1


def test_there_is_a_view_for_each_model_and_tag() -> None:
    made = views()
    opened = made.open(
        [keyed(1, "a"), keyed(2, "b"), keyed(3), ItemSpec("Others", None), ALL, keyed(1, "b")]
    )
    assert sorted((view.model, view.tag or "", len(view.items)) for view in opened) == [
        ("Other", "", 1), ("Row", "", 2), ("Row", "a", 1), ("Row", "b", 2),
    ]  # fmt: skip


def test_the_last_to_close_takes_items_and_views_along() -> None:
    made = views()
    first, second = made.open([keyed(1), some()]), made.open([keyed(1), some()])
    other = made.open([keyed(1)])
    row = {"k": 1, "n": 1}
    made.close(first)
    assert indexed(made, row) == ["ByKey 1", "Some ['>', 'n', 0]"]
    made.close(second)
    assert indexed(made, row) == ["ByKey 1"]
    assert made.narrow([insert(**row)]).seen == {other[0]: [(0, "insert")]}
    made.close(other)
    assert indexed(made, row) == []
    assert kept(made) == 0
    assert first[0].items
    assert not any(item.views for item in first[0].items)


def test_a_view_that_was_closed_can_be_opened_anew() -> None:
    made = views()
    made.close(made.open([keyed(1)]))
    (view,) = made.open([keyed(1)])
    assert made.narrow([insert(k=1)]).seen == {view: [(0, "insert")]}


REFUSED = {
    "query": ItemSpec("Some", ["no", "operator"]),
    "dealer": ItemSpec("Nobody", 1),
}


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("others", [0, 1])
def test_a_refused_item_leaves_nothing_behind(refused: str, others: int) -> None:
    made = views()
    kept_before = made.open([keyed(1)]) if others else []
    before = kept(made), indexed(made, {"k": 1, "n": 5})
    with pytest.raises(InvalidQuery) as caught:
        made.open([keyed(1), some(), REFUSED[refused], ALL])
    assert caught.value.message
    assert (kept(made), indexed(made, {"k": 1, "n": 5})) == before
    made.close(kept_before)
    assert kept(made) == 0


@pytest.mark.parametrize("others", [0, 1])
def test_a_dealer_that_cannot_take_an_item_leaves_nothing_behind(others: int) -> None:
    made = views()
    kept_before = made.open([keyed(1)]) if others else []
    before = kept(made), indexed(made, {"k": 1, "n": 5})
    the_fragile(made).bad_add = True
    with pytest.raises(LookupError, match="cannot add"):
        made.open([keyed(1), some(), fragile(1), ALL])
    assert (kept(made), indexed(made, {"k": 1, "n": 5})) == before
    the_fragile(made).bad_add = False
    made.close(made.open([keyed(1), fragile(1)]))
    made.close(kept_before)
    assert kept(made) == 0


def test_a_dealer_that_cannot_forget_an_item_does_not_keep_the_others(
    expected_log: ExpectedLog,
) -> None:
    made = views()
    opened = made.open([fragile(1, "a"), keyed(1, "b"), some(tag="c")])
    the_fragile(made).bad_remove = True
    with expected_log("syncserver.views", "Dealer Fragile"):
        made.close(opened)
    assert kept(made) == 0
    assert indexed(made, {"k": 1, "n": 5}) == []


def test_a_dealer_s_name_is_taken_once() -> None:
    made = views()
    with pytest.raises(RuntimeError, match="'All' already is registered"):
        made.add_dealer(BroadcastDealer(name="All", model="Other"))


def test_a_dealer_that_goes_names_the_views_that_can_no_longer_be_told() -> None:
    made = views()
    held = made.open([keyed(1, "a"), some(tag="a"), some(tag="b")])
    orphans = made.discard_dealer(made.dealers["ByKey"])
    assert {view.tag for view in orphans} == {"a"}
    with pytest.raises(InvalidQuery):
        made.open([keyed(1)])
    made.close(held)
    assert kept(made) == 0


def test_those_concerned_are_found_by_model_and_by_item() -> None:
    made = views()
    (one,), (two,) = made.open([keyed(1)]), made.open([keyed(1), keyed(2)])
    (other,) = made.open([ItemSpec("Others", None)])
    key = next(iter(one.items)).key
    assert made.concerned("Row", ()) == {one, two}
    assert made.concerned(None, [("ByKey", key)]) == {one, two}
    assert made.concerned(None, [("ByKey", b"2"), ("ByKey", b"77"), ("All", key)]) == {two}
    assert made.concerned("Other", [("ByKey", b"2")]) == {other, two}
    assert made.concerned("Nothing", ()) == made.concerned(None, ()) == set()


# Narrowing.


def test_a_row_that_moves_is_an_insert_an_update_or_a_delete() -> None:
    made = views()
    (view,) = made.open([some(">", 5)])
    deltas = [
        update({"n": 1}, {"n": 9}), update({"n": 9}, {"n": 8}), update({"n": 8}, {"n": 2}),
        update({"n": 2}, {"n": 3}), insert(n=7), insert(n=1), delete(n=7), delete(n=1),
    ]  # fmt: skip
    seen = [(0, "insert"), (1, "update"), (2, "delete"), (4, "insert"), (6, "delete")]
    assert made.narrow(deltas).seen == {view: seen}
    assert made.replay(view, deltas) == tuple(seen)


def test_several_items_of_a_view_that_see_a_row_count_once() -> None:
    made = views()
    (view,) = made.open([ALL, keyed(1), some(), some(">=", 0)])
    deltas = [insert(k=1, n=1), update({"k": 1, "n": 1}, {"k": 2, "n": 2}), delete(k=2, n=2)]
    seen = [(0, "insert"), (1, "update"), (2, "delete")]
    assert made.narrow(deltas).seen == {view: seen}
    assert made.replay(view, deltas) == tuple(seen)


def test_a_row_under_two_tags_is_seen_under_each_in_its_own_way() -> None:
    made = views()
    opened = {view.tag: view for view in made.open([keyed(1, "one"), keyed(2, "two")])}
    deltas = [update({"k": 1}, {"k": 2})]
    narrowed = made.narrow(deltas)
    assert narrowed.seen == {opened["one"]: [(0, "delete")], opened["two"]: [(0, "insert")]}
    for view in opened.values():
        assert made.replay(view, deltas) == tuple(narrowed.seen[view])


def test_other_models_are_not_seen() -> None:
    made = views()
    (view,) = made.open([ALL])
    deltas = [Delta("Other", None, {"n": 1}), Delta("Unknown", None, {"n": 1})]
    assert made.narrow(deltas).seen == {}
    assert made.replay(view, deltas) == ()


values = st.sampled_from([0, 1, 1.0, 2, True, False, None, "a", "", "1", [1], {"x": 1}])
rows = st.fixed_dictionaries({}, optional={"k": values, "n": values})
batches = st.lists(
    st.builds(update, rows, rows) | st.builds(lambda row: insert(**row), rows)
    | st.builds(lambda row: delete(**row), rows)
    | st.builds(lambda row: Delta("Other", None, row), rows),
    max_size=6,
)  # fmt: skip
comparisons = st.tuples(
    st.sampled_from(["==", "!=", "<", ">", "<=", ">="]), st.sampled_from(["n", "k"]), values
).map(list)
filters = st.recursive(
    comparisons,
    lambda inner: (
        st.tuples(st.just("not"), inner).map(list)
        | st.tuples(st.sampled_from(["and", "or"]), inner, inner).map(list)
    ),
    max_leaves=4,
)
tags = st.sampled_from([None, None, "a", "b"])
specs = (
    st.builds(ItemSpec, st.just("All"), values, tags)
    | st.builds(ItemSpec, st.just("Others"), values, tags)
    | st.builds(ItemSpec, st.just("ByKey"), values, tags)
    | st.builds(ItemSpec, st.just("Some"), filters, tags)
)


def open_what_is_valid(made: Views, some_specs: Sequence[ItemSpec]) -> list[View]:
    valid = []
    for spec in some_specs:
        try:
            made.parse(spec)
        except InvalidQuery:
            continue
        valid.append(spec)
    return made.open(valid)


@given(st.lists(st.lists(specs, min_size=1, max_size=5), min_size=1, max_size=5), batches)
def test_the_index_sees_what_the_law_says_for_every_view(
    subscriptions: list[list[ItemSpec]], deltas: list[Delta]
) -> None:
    made = views()
    opened = [open_what_is_valid(made, wanted) for wanted in subscriptions]
    narrowed = made.narrow(deltas)
    assert not narrowed.failed
    for view in {view for held in opened for view in held}:
        assert tuple(narrowed.seen.get(view, ())) == made.replay(view, deltas)
    for held in random.Random(1).sample(opened, len(opened)):
        made.close(held)
    assert kept(made) == 0
    assert made.narrow(deltas).seen == {}


# Dealers that fail.


def test_an_index_that_fails_costs_nobody_a_row_as_long_as_the_law_holds(
    expected_log: ExpectedLog,
) -> None:
    made = views()
    opened = [made.open([fragile(key)])[0] for key in (1, 2)]
    (all_of,) = made.open([ALL])
    the_fragile(made).bad_index = True
    with expected_log("syncserver.views", "Dealer Fragile failed on a row of Row"):
        narrowed = made.narrow([insert(k=1), update({"k": 1}, {"k": 2})])
    assert not narrowed.failed
    assert narrowed.seen == {
        opened[0]: [(0, "insert"), (1, "delete")],
        opened[1]: [(1, "insert")],
        all_of: [(0, "insert"), (1, "update")],
    }


def test_only_the_views_of_faulty_items_fail(expected_log: ExpectedLog) -> None:
    made = views()
    (bad,), (both,), (good,), (all_of,) = (
        made.open(wanted) for wanted in ([fragile(1)], [fragile(1), ALL], [fragile(2)], [ALL])
    )
    the_fragile(made).bad_index = True
    the_fragile(made).bad_items = {1}
    with expected_log("syncserver.views", "Dealer Fragile failed"):
        narrowed = made.narrow([insert(k=2)])
    assert narrowed.failed == {bad, both}
    assert narrowed.seen[good] == narrowed.seen[all_of] == [(0, "insert")]
    with pytest.raises(LookupError, match="cannot tell"):
        made.replay(bad, [insert(k=2)])
    assert made.replay(good, [insert(k=2)]) == ((0, "insert"),)
