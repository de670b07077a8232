"""``python -m tests.faults.mutant serve ...``: a server with the check of the marks taken out.

It goes by offsets alone, as if a log could not go back and grow again. The fault tests have to
find it out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from syncserver import stream, tail
from syncserver.cli import main
from syncserver.engines import redis, redis_link, redis_reader, redis_scripts
from syncserver.engines.base import Entry
from syncserver.errors import RefetchReason
from syncserver.position import Position

_CHECKS = {
    "if head[1] ~= ARGV[1] then return 'epoch' end": "",
    "return head[3] == ARGV[3] and {} or 'fork'": "return {}",
}


def _accept(self: Any, entry: Entry) -> bool:
    if entry.position.offset > self.cursor.offset + 1:
        return False
    if entry.position.offset == self.cursor.offset + 1:
        self._deliver(self._record(entry))
    return True


def _reaches(self: Any, after: Position, cursor: Position) -> bool:
    return bool(self) and self._first - 1 <= after.offset <= cursor.offset


def _chained(last: Position, raw: Sequence[Any]) -> tuple[list[Entry], RefetchReason | None]:
    entries = [redis_reader._entry(id_, fields) for id_, fields in raw]
    return [entry for entry in entries if entry is not None], None


async def _misfit(
    self: Any, meta: Sequence[bytes | None], due: Position, *, silent: bool
) -> RefetchReason | None:
    return None if meta[1] and int(meta[1]) >= self._last.offset else RefetchReason.ROLLBACK


def _without_checks(script: redis_scripts.Script) -> redis_scripts.Script:
    source = script.source.decode()
    for old, new in _CHECKS.items():
        assert source.count(old) == 1, f"{old!r} is not in the script any more"
        source = source.replace(old, new)
    return redis_scripts.Script.of(source)


def take_out() -> None:
    """Take the checks out of this process."""
    stream.Stream._accept = _accept  # type: ignore[method-assign]
    tail.Tail._reaches = _reaches  # type: ignore[method-assign]
    redis_reader.Reader._misfit = _misfit  # type: ignore[method-assign]
    redis_reader.chained = redis.chained = _chained
    read = _without_checks(redis_scripts.READ)
    redis.READ = read
    redis_link.ALL = (*redis_link.ALL, read)


if __name__ == "__main__":
    take_out()
    sys.exit(main())
