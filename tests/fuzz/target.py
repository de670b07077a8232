"""What is fuzzed: how its inputs are made, what must hold of each, and the corpus that is kept.

Inputs come from two drivers. Hypothesis makes some by a grammar, most of them right or nearly;
mutation, which is many times as fast, changes what there is: the corpus, the seeds, and what
hypothesis made. Both are tried by the same check.

``corpus/NAME/`` has a file for each input that once failed, or that is of interest, named after
what it was. They are tried first.
"""

from __future__ import annotations

import json
import logging
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.grammar import Inputs, drawn
from tests.fuzz.mutation import Mutate

CORPUS = Path(__file__).parent / "corpus"
_AGAIN = 8
_DRAWN = 20
_POOL = 1_000
_SMALLER_SECONDS = 5.0


@dataclass(frozen=True)
class Source:
    """Makes inputs, the same for the same ``rng``.

    :param share: one in so many is made by hypothesis.
    """

    name: str
    seeds: Sequence[bytes]
    grammar: Inputs
    mutate: Mutate
    share: int = 80

    def inputs(self, rng: Random) -> Iterator[bytes]:
        """Yield what is kept, then the seeds, then ever new ones."""
        pool = [*kept(self.name), *self.seeds]
        yield from pool
        while True:
            made: list[bytes] = []
            drawn(self.grammar, _DRAWN, rng.getrandbits(64), made.append)
            yield from made
            pool += made
            for _ in range(len(pool) - _POOL):
                pool.pop(rng.randrange(len(pool)))
            for _ in range(_DRAWN * (self.share - 1)):
                yield self.mutate(rng, pool)

    @property
    def least(self) -> int:
        """Return how many inputs there are before those that are made."""
        return len(kept(self.name)) + len(self.seeds) + _DRAWN


@dataclass(frozen=True)
class Target:
    """A parser.

    :param check: fails on an input of which something does not hold, or else returns what
        came of it: the same each time.
    :param count: how many inputs are tried in CI.
    :param quiet: loggers that tell of bad input, as they should.
    """

    source: Source
    check: Callable[[bytes], Any]
    count: int
    quiet: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return its name, which is that of its corpus."""
        return self.source.name


@dataclass
class Failure(Exception):
    """An input that fails; not alone: several did, together."""

    target: str
    data: bytes
    error: BaseException = field(repr=False)
    alone: bool = True

    def __str__(self) -> str:
        shown = json.dumps(self.data.decode("latin-1"))
        return f"{self.target}: {type(self.error).__name__}: {self.error}\n{shown[:2_000]}"

    @property
    def kind(self) -> str:
        """Return what tells it from other failures: the error, and the line it came from."""
        trace = self.error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
        return f"{type(self.error).__name__} {where}"


def kept(name: str) -> list[bytes]:
    """Return the inputs in the corpus of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def keep(name: str, data: bytes, was: str) -> None:
    """Put an input into the corpus of a target, unless it is there."""
    if data not in kept(name):
        words = "-".join(re.findall(r"[a-z0-9]+", was.lower()))[:60]
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        (CORPUS / name / f"{words}-{zlib.crc32(data):08x}").write_bytes(data)


@contextmanager
def hushed(names: Sequence[str]) -> Iterator[None]:
    """Let loggers say nothing for a while."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def attempt(target: Target, data: bytes, *, twice: bool = False) -> None:
    """Try one input; Failure if something does not hold."""
    try:
        came = target.check(data)
        if twice:
            assert target.check(data) == came, "another result the second time"
    except Exception as error:
        raise Failure(target.name, data, error) from error


def run(target: Target, rng: Random, count: int) -> int:
    """Try ``count`` inputs or what the corpus and the seeds have; return how many it were."""
    count = max(count, target.source.least)
    with hushed(target.quiet):
        for tried, data in enumerate(islice(target.source.inputs(rng), count)):
            try:
                attempt(target, data, twice=tried % _AGAIN == 0)
            except Failure as failure:
                raise smaller(target, failure) from failure.error
    return count


def smaller(target: Target, failure: Failure) -> Failure:
    """Return the same failure of an input from which nothing can be left out, or nearly."""
    size, ends = len(failure.data) // 2, time.monotonic() + _SMALLER_SECONDS
    while size and time.monotonic() < ends:
        begin = 0
        while begin < len(failure.data) and time.monotonic() < ends:
            shorter = failure.data[:begin] + failure.data[begin + size :]
            try:
                attempt(target, shorter)
            except Failure as again:
                if again.kind == failure.kind:
                    failure = again
                    continue
            begin += size
        size //= 2
    return failure
