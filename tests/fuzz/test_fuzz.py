"""Whatever comes, a parser says what it always says of it, and raises what its docstring tells.

The inputs are the same in each run; ``make fuzz`` tries others. What it finds is kept in
``corpus/`` and tried first from then on.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from random import Random

import pytest

from tests.fuzz import parsers, settings, stores
from tests.fuzz.doors import DOORS, Door, Place, placed
from tests.fuzz.mutation import mutated_tree, written
from tests.fuzz.running import COUNTS, IN_CI, tallied, wanted
from tests.fuzz.target import CORPUS, Failure, Target, run, smaller

TARGETS = [*parsers.TARGETS, *stores.TARGETS, *settings.TARGETS]
ENOUGH = 200_000
MOST_MEMORY_KB = 300_000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_parser_raises_only_what_it_documents_and_gives_back_what_it_took(target: Target) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tallied(target.name) as tally:
        tally.count = run(target, Random(target.name), wanted(target.count))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_MEMORY_KB, f"{grown} KB more than before"


@pytest.mark.seconds(300)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
async def test_a_door_answers_or_closes_and_others_are_served_on(door: Door) -> None:
    with tallied(door.name) as tally:
        async with placed() as place:
            tally.count = await door.run(place, Random(door.name), wanted(door.count))


async def test_an_input_that_fails_at_a_door_is_found_among_those_beside_it() -> None:
    async def send(place: Place, batch: Sequence[bytes]) -> None:
        assert b"!" not in b"".join(batch)

    door = Door("made", [b"a", b"b!", b"c"], lambda rng: b"d", send, 10)
    async with placed() as place:
        with pytest.raises(Failure) as caught:
            await door.run(place, Random(0), 10)
    assert caught.value.data == b"b!"


def test_the_same_seed_makes_the_same_inputs() -> None:
    for target in (*TARGETS, *DOORS):
        one, other = Random(1), Random(1)
        assert [target.make(one) for _ in range(20)] == [target.make(other) for _ in range(20)]


def test_a_failure_is_reported_with_its_smallest_input() -> None:
    def check(data: bytes) -> None:
        if b"!" in data:
            raise KeyError("bang")

    target = Target("made", [b"seed"], lambda rng: b"some ! input", check, 10)
    with pytest.raises(Failure, match=r"made: KeyError.*\n.*some ! input") as caught:
        run(target, Random(0), 10)
    assert smaller(target, caught.value).data == b"!"


def test_a_parser_that_says_something_else_the_second_time_is_found() -> None:
    said = iter(range(100))
    target = Target("made", [], lambda rng: b"", lambda data: next(said), 1)
    with pytest.raises(Failure, match="another result"):
        run(target, Random(0), 1)


def test_mutated_trees_can_be_written_whatever_became_of_them() -> None:
    rng = Random(3)
    for _ in range(200):
        tree = {"a": [1, {"b": [None, "x"]}], "c": {}}
        for _ in range(20):
            tree = mutated_tree(tree, rng)
        assert isinstance(written(tree), bytes)


def test_each_file_of_the_corpus_is_of_a_target() -> None:
    names = {path.stem for path in CORPUS.glob("*.json")}
    assert names <= {target.name for target in (*TARGETS, *DOORS)}


def test_two_hundred_thousand_inputs_were_tried() -> None:
    tried = sum(count for count, _ in COUNTS.values())
    assert tried >= ENOUGH or not IN_CI, f"{tried} of {ENOUGH}"
