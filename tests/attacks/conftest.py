"""One daemon for all attacks, and a canary beside each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.attacked import Target, attacked


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with attacked(tmp_path_factory.mktemp("attacked")) as target:
        yield target


@pytest.fixture
def target(daemon: Target) -> Iterator[Target]:
    """Give the daemon; at the end the canary must have lost nothing, and memory be as it was."""
    with daemon.unnoticed():
        yield daemon
