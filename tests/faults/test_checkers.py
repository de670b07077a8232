"""Each checker of the fault tests finds what it is for, and nothing in a history that is fine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults import checkers
from tests.faults.checkers import Event


def publish(at: float, n: int, *items: str, publisher: int = 1) -> list[Event]:
    change = [n, list(items or ("all",))]
    return [
        {"at": at, "type": "publish", "publisher": publisher, "changes": [change]},
        {"at": at + 0.5, "type": "ok", "publisher": publisher, "n": n},
    ]


def event(type_: str, who: str = "a", at: float = 0, **fields: Any) -> Event:
    return {"at": at, "type": type_, "subscriber": who, **fields}


def life(who: str = "a", known: int = 0, item: str = "all") -> Event:
    return event("life", who, token=who, item=item, known={"1": known})


def applied(position: str, *changes: tuple[int, int], who: str = "a") -> Event:
    return event("applied", who, position=position, changes=[list(change) for change in changes])


def fine() -> list[Event]:
    """Two subscribers, one of which began late, and three changes."""
    return [
        life("a"),
        *publish(1, 1),
        applied("e.1.x", (1, 1)),
        life("b", known=1),
        *publish(2, 2, "all", "some"),
        *publish(3, 3),
        applied("e.3.z", (1, 2), (1, 3)),
        applied("e.3.z", (1, 2), (1, 3), who="b"),
        event("connected"),
        event("stale"),
        event("fresh"),
        event("lost", cause="cut"),
        {"at": 4, "type": "calm"},
        event("live", "a", at=5),
        event("live", "b", at=5),
        {"at": 6, "type": "database", "rows": {"all": {"r": 3}}},
        event("final", "a", rows={"r": 3}, item="all"),
        event("final", "b", rows={"r": 3}, item="all"),
        {"at": 6, "type": "log", "changes": [[1, 1], [1, 2], [1, 3]]},
    ]


def with_(*more: Event, without: Event | None = None) -> list[Event]:
    return [one for one in fine() if one != without] + list(more)


def test_a_history_in_which_all_is_well_has_no_faults() -> None:
    assert checkers.faults(fine()) == []


SEEN_BY_B = applied("e.3.z", (1, 2), (1, 3), who="b")

BAD = {
    "nothing": [],
    "gaps": [
        life("c"),
        applied("e.3.z", (1, 1), (1, 3), who="c"),
        event("told", "c", reason="fork"),
    ],
    "repeats": [applied("e.4.z", (1, 3))],
    "disorder": [
        life("c"),
        *publish(4, 1, publisher=2),
        applied("e.4.q", (2, 1), (1, 3), who="c"),
        event("told", "c", reason="fork"),
        life("d"),
        applied("e.4.q", (1, 3), (2, 1), who="d"),
        event("told", "d", reason="fork"),
    ],
    "histories": [applied("f.9.z")],
    "silences": publish(4, 4),
    "unacknowledged": publish(4, 4)[:1],
    "differences": [event("final", "a", rows={"r": 2}, item="all")],
    "doubles": [{"at": 7, "type": "log", "changes": [[1, 1], [1, 1]]}],
    "wedges": [event("live", "a", at=100)],
    "losses": [event("lost", cause="1011")],
    "staleness": [event("stale")],
}


@pytest.mark.parametrize("name", BAD)
def test_a_checker_finds_what_it_is_for(name: str) -> None:
    history = with_(*BAD[name]) if BAD[name] else []
    check = next(one for one in checkers.CHECKERS if one.__name__ == name)
    assert list(check(history))
    assert not list(check(fine()))


def test_every_checker_has_been_seen_to_find_something() -> None:
    assert [check.__name__ for check in checkers.CHECKERS] == list(BAD)


def test_a_gap_at_the_end_of_a_life_or_before_its_first_change_is_one() -> None:
    assert list(checkers.gaps(with_(without=SEEN_BY_B)))
    late = [life("c"), applied("e.3.z", (1, 2), (1, 3), who="c")]
    assert list(checkers.gaps(with_(*late)))
    other = [life("c", item="some"), applied("e.3.z", who="c")]
    assert list(checkers.gaps(with_(*other)))


def test_who_was_told_has_no_gap_after_what_it_saw() -> None:
    told = [life("c"), applied("e.1.x", (1, 1), who="c"), event("told", "c", reason="epoch")]
    assert checkers.faults(with_(*told, event("live", "c", at=5))) == []


def test_what_a_restored_store_has_lost_is_no_gap_to_who_was_told() -> None:
    restored = {"at": 4, "type": "restored", "since": 2.2}
    history = with_(restored, without=SEEN_BY_B)
    assert list(checkers.gaps(history))
    assert list(checkers.silences(history))
    after = applied("e.4.x", (1, 4), who="b")
    told = event("told", "b", reason="epoch")
    assert not list(checkers.gaps([*history, after, told]))


def test_one_life_is_in_the_order_of_its_publisher() -> None:
    backwards = [life("c"), applied("e.3.z", (1, 2), (1, 1), who="c")]
    assert list(checkers.disorder(with_(*backwards)))


@pytest.mark.parametrize("position", ["e.3.other", "e.2.y"])
def test_a_life_does_not_go_back_nor_change_sides(position: str) -> None:
    assert list(checkers.histories(with_(applied(position))))
