"""Copies of a module with one thing changed, which tests have to find out."""

from __future__ import annotations

import inspect
import types


def mutated(
    module: types.ModuleType, old: str, new: str, *, number: int = 0, of: int = 1
) -> types.ModuleType:
    """Return a copy of a module in whose source ``old`` is ``new``.

    :param number: which of its places is changed, from 0.
    :param of: how many places there are; another number fails, as the source has changed then.
    """
    pieces = inspect.getsource(module).split(old)
    assert len(pieces) == of + 1, f"{old!r} is not {of} times in {module.__name__}"
    source = old.join(pieces[: number + 1]) + new + old.join(pieces[number + 1 :])
    copy = types.ModuleType(f"{module.__name__}_mutant")
    exec(compile(source, copy.__name__, "exec"), copy.__dict__)
    return copy
