"""The cases of ``vectors/`` on a real server; clients run them from the other side.

A new wire protocol is one row in ``PROTOCOLS``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.daemon import Daemon, Peer, serving
from tests.support.rohrpost import rohrpost

VECTORS = Path(__file__).parent / "vectors"


class Row(NamedTuple):
    """A daemon for the cases of a protocol, its path, and what it answers at once, with what."""

    serve: Callable[[], AbstractAsyncContextManager[Daemon]]
    path: str
    marker: dict[str, Any]
    marked: dict[str, Any]


PROTOCOLS = {
    "native": Row(
        serving,
        "/ws",
        {"service": "no service of this name", "message": {"callId": "marker"}},
        {
            "service": "no service of this name",
            "message": {"type": "error", "callId": "marker", "code": "unknown_service"},
        },
    ),
    "rohrpost": Row(
        rohrpost, "/rohrpost/", {"id": "marker", "type": "ping"}, {"id": "marker", "type": "pong"}
    ),
}
CASES = [
    pytest.param(PROTOCOLS[name], case, id=f"{name}: {case['name']}")
    for name in PROTOCOLS
    for case in json.loads((VECTORS / f"{name}.json").read_text())["cases"]
]


class Values:
    """What the names that begin with ``$`` stand for."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def filled(self, value: Any) -> Any:
        """Return a value with its names replaced."""
        match value:
            case str() if value.startswith("$"):
                return self._values[value]
            case list():
                return [self.filled(item) for item in value]
            case dict():
                return {name: self.filled(item) for name, item in value.items()}
            case _:
                return value

    def check(self, expected: Any, value: Any) -> None:
        """Compare a value with what is expected, and learn the names that are new."""
        if isinstance(expected, str) and expected.startswith("$"):
            assert self._values.setdefault(expected, value) == value
        elif isinstance(expected, dict):
            assert isinstance(value, dict)
            spare = {"message"} if expected.get("type") == "error" else set()
            assert value.keys() - spare == expected.keys() - spare, value
            for name, item in expected.items():
                self.check(item, value[name])
        else:
            assert value == expected
            assert isinstance(value, bool) == isinstance(expected, bool)


class Runner:
    """Runs the steps of one case."""

    def __init__(self, row: Row, daemon: Daemon) -> None:
        self._row = row
        self._daemon = daemon
        self._values = Values()
        self._peers: dict[str, Peer] = {}
        self._answer: Any = None

    async def run(self, step: dict[str, Any]) -> None:
        name = step.pop("as", "first")
        match step:
            case {"send": envelope}:
                (await self._peer(name)).send_text(json.dumps(self._values.filled(envelope)))
            case {"text": text}:
                (await self._peer(name)).send_text(text)
            case {"expect": envelope}:
                self._values.check(envelope, await (await self._peer(name)).read())
            case {"silence": True}:
                (await self._peer(name)).send_text(json.dumps(self._row.marker))
                self._values.check(self._row.marked, await (await self._peer(name)).read())
            case {"cut": True}:
                await self._peers.pop(name).close()
            case {"post": envelope}:
                body = json.dumps(self._values.filled(envelope))
                self._answer = json.loads((await self._daemon.request(body=body)).body)
            case {"answer": envelope}:
                self._values.check(envelope, self._answer)
            case _:
                raise AssertionError(step)

    async def _peer(self, name: str) -> Peer:
        if name not in self._peers:
            self._peers[name] = await self._daemon.connect(path=self._row.path)
        return self._peers[name]


@pytest.mark.parametrize(("row", "case"), CASES)
async def test_the_server_keeps_to_the_vectors_of_each_protocol(row: Row, case: Any) -> None:
    async with row.serve() as daemon:
        runner = Runner(row, daemon)
        for number, step in enumerate(case["steps"]):
            try:
                await runner.run(dict(step))
            except (AssertionError, TimeoutError) as error:
                error.add_note(f"in step {number}: {json.dumps(step)}")
                raise


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.id for case in CASES]
    assert len(names) == len(set(names))


def test_every_file_of_protocol_cases_is_run() -> None:
    files = {path.stem for path in VECTORS.glob("*.json")} - {"filters"}
    assert files == set(PROTOCOLS)
