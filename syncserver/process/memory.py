"""What memory the process has, and may have; Linux says so in files."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

_STATM = Path("/proc/self/statm")
_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
_UNBOUNDED = 1 << 60


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


def give_back() -> None:
    """Let the system have the memory that nobody uses, where the C library keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
