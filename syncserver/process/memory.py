"""What memory the process has, and may have; Linux says so in files."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from syncserver.config import Limits

_STATM = Path("/proc/self/statm")
_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
_UNBOUNDED = 1 << 60
_MIB = 1024 * 1024
_SHARE = 0.8
_LEAST_BYTES = 128 * _MIB


def resident_bytes() -> int | None:
    """Return what the process has; None where nobody says."""
    try:
        return int(_STATM.read_text("ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return None


def allowed_bytes(groups: Path = _GROUPS, root: Path = _ROOT) -> int | None:
    """Return what the control groups of the process allow it and its siblings; None: anything.

    ``MemoryMax`` of systemd and the memory of a container are such bounds; where groups are nested
    it is the tightest.
    """
    return min(_bounds(groups, root), default=None)


def _bounds(groups: Path, root: Path) -> Iterator[int]:
    try:
        lines = groups.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tree, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            tree, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = tree / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(tree):
                yield from _read(folder / name)


def _read(file: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # not there, or "max"
        if (bound := int(file.read_text("ascii"))) < _UNBOUNDED:
            yield bound


class Bound(NamedTuple):
    """What memory a process may have, None: any; and what somebody should know of that."""

    most: int | None
    is_set: bool = False
    note: str = ""


def bound_of(limits: Limits, processes: int, resident: int | None) -> Bound:
    """Return that of one of so many processes, which share what is allowed to all.

    A share that a daemon may have without any fault is no bound.

    :param resident: what a process has that does nothing yet, if somebody says.
    """
    has = resident or 0
    if (most := limits.max_process_bytes) is not None:
        note = f"limits.max_process_bytes is {most // _MIB} MiB, but {has // _MIB} MiB are used by"
        note = f"{note} a process that does nothing yet: it lets nobody in; raise it"
        return Bound(most, is_set=True, note=note if most < has else "")
    if (allowed := allowed_bytes()) is None:
        return Bound(None)
    share, least = int(allowed * _SHARE / processes), least_bytes(resident)
    if share >= least:
        return Bound(share)
    note = f"not bounded, as four fifths of {allowed // _MIB} MiB are {share // _MIB} MiB for each"
    return Bound(None, note=f"{note} process, and it takes {least // _MIB} MiB")


def least_bytes(resident: int | None) -> int:
    """Return what a share has to be for a process that has so much when it does nothing yet."""
    return max(_LEAST_BYTES, 2 * (resident or 0))


def give_back() -> None:
    """Let the system have the memory that nobody uses, where the C library keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
