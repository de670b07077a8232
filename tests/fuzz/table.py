"""All that is fuzzed."""

from __future__ import annotations

from tests.fuzz import connections, framing, parsers, settings, stores
from tests.fuzz.doors import DOORS

TARGETS = {
    one.name: one
    for one in (
        *parsers.TARGETS,
        *framing.TARGETS,
        *connections.TARGETS,
        *stores.TARGETS,
        *settings.TARGETS,
    )
}
SOURCES = {one.name: one.source for one in (*TARGETS.values(), *DOORS.values())}
