"""Whatever comes, a parser says what it always says of it, and raises what its docstring tells.

The inputs are the same in each run; ``make fuzz`` tries others. What it finds is kept in
``corpus/`` and tried first from then on.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from itertools import islice
from random import Random

import pytest
from hypothesis import strategies as st

from tests.fuzz.doors import DOORS, Door, Place
from tests.fuzz.mutation import bytes_like, mutated_tree, written
from tests.fuzz.running import COUNTS, IN_CI, tallied, wanted
from tests.fuzz.table import SOURCES, TARGETS
from tests.fuzz.target import CORPUS, Failure, Source, Target, run

ENOUGH = 200_000
MOST_MEMORY_KB = 300_000


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_parser_raises_only_what_it_documents_and_gives_back_what_it_took(target: Target) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tallied(target.name) as tally:
        tally.count = run(target, Random(target.name), wanted(target.count))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_MEMORY_KB, f"{grown} KB more than before"


@pytest.mark.seconds(300)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
async def test_a_door_answers_or_closes_and_others_are_served_on(door: Door) -> None:
    with tallied(door.name) as tally:
        tally.count = await door.run(Random(door.name), wanted(door.count))


def made(*inputs: bytes) -> Source:
    """Return a source of these inputs, and of empty ones."""
    return Source("made", inputs, st.just(b""), lambda rng, pool: b"")


async def test_an_input_that_fails_at_a_door_is_found_among_those_beside_it() -> None:
    async def send(place: Place, batch: Sequence[bytes]) -> None:
        assert b"!" not in b"".join(batch)

    with pytest.raises(Failure) as caught:
        await Door(made(b"a", b"b!", b"c"), send, 10).run(Random(0), 10)
    assert caught.value.data == b"b!"


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_same_seed_makes_the_same_inputs(source: Source) -> None:
    one, other = (islice(source.inputs(Random(1)), source.least + 10) for _ in range(2))
    assert list(one) == list(other)


def test_what_hypothesis_made_is_changed_by_mutation() -> None:
    source = Source("made", [b"seed"], st.just(b"a word of the grammar"), bytes_like())
    mutated = islice(source.inputs(Random(0)), source.least, source.least + 50)
    assert any(b"gramm" in one for one in mutated)


def test_a_failure_is_reported_with_its_smallest_input() -> None:
    def check(data: bytes) -> None:
        if b"!" in data:
            raise KeyError("bang")

    with pytest.raises(Failure, match=r'made: KeyError.*\n"!"'):
        run(Target(made(b"some ! input"), check, 10), Random(0), 10)


def test_a_parser_that_says_something_else_the_second_time_is_found() -> None:
    said = iter(range(100))
    with pytest.raises(Failure, match="another result"):
        run(Target(made(), lambda data: next(said), 1), Random(0), 1)


def test_mutated_trees_can_be_written_whatever_became_of_them() -> None:
    rng = Random(3)
    for _ in range(200):
        tree = {"a": [1, {"b": [None, "x"]}], "c": {}}
        for _ in range(20):
            tree = mutated_tree(tree, rng)
        assert isinstance(written(tree), bytes)


def test_each_file_of_the_corpus_is_of_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= SOURCES.keys()


def test_two_hundred_thousand_inputs_were_tried() -> None:
    tried = sum(count for count, _ in COUNTS.values())
    assert tried >= ENOUGH or not IN_CI, f"{tried} of {ENOUGH}"
