"""What is fuzzed: how its inputs are made, what must hold of each, and the corpus that is kept.

``corpus/NAME.json`` is a list of ``{"input": TEXT, "was": TEXT}``: inputs that once failed, or
that are of interest, each byte as the character of its number. They are tried first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutation import Make

CORPUS = Path(__file__).parent / "corpus"
_AGAIN = 8


@dataclass(frozen=True)
class Target:
    """A parser.

    :param check: fails on an input of which something does not hold, or else returns what
        came of it: the same each time.
    :param count: how many inputs are tried in CI.
    :param quiet: loggers that tell of bad input, as they should.
    """

    name: str
    seeds: Sequence[bytes]
    make: Make
    check: Callable[[bytes], Any]
    count: int
    quiet: tuple[str, ...] = ()

    def inputs(self, rng: Random) -> Iterator[bytes]:
        """Yield what is kept, then the seeds, then ever new ones."""
        yield from chain(kept(self.name), self.seeds)
        while True:
            yield self.make(rng)


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
    path = CORPUS / f"{name}.json"
    if not path.exists():
        return []
    return [one["input"].encode("latin-1") for one in json.loads(path.read_text("utf-8"))]


def keep(name: str, data: bytes, was: str) -> None:
    """Put an input into the corpus of a target, unless it is there."""
    path = CORPUS / f"{name}.json"
    cases = json.loads(path.read_text("utf-8")) if path.exists() else []
    text = data.decode("latin-1")
    if all(case["input"] != text for case in cases):
        cases.append({"input": text, "was": was})
        path.write_text(json.dumps(cases, indent=1) + "\n", "utf-8")


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
    at_least = len(kept(target.name)) + len(target.seeds)
    tried = 0
    with hushed(target.quiet):
        for data in target.inputs(rng):
            attempt(target, data, twice=tried % _AGAIN == 0)
            tried += 1
            if tried >= max(count, at_least):
                break
    return tried


def smaller(target: Target, failure: Failure) -> Failure:
    """Return the same failure of an input from which nothing can be left out."""
    size = len(failure.data) // 2
    while size:
        begin = 0
        while begin < len(failure.data):
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
