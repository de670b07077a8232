"""Many clients that are cut at once all come back, and nobody asks the app for anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.storm import SPARE_FILES, allow_files, storm

CLIENTS = 500
BACKOFF_SECONDS = 0.25


@pytest.mark.seconds(120)
@pytest.mark.parametrize("engine", ["sqlite", "redis"])
async def test_clients_that_are_cut_at_once_resume_and_miss_nothing(
    tmp_path: Path, engine: str
) -> None:
    allow_files(CLIENTS + SPARE_FILES)
    result = await storm(tmp_path, engine, CLIENTS, BACKOFF_SECONDS)
    print(f"\n{engine}: {result}")
    assert result.wrong == 0
    assert not [name for name in result.failures if name not in {"unavailable", "TimeoutError"}]
