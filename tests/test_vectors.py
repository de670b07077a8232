"""The cases of ``vectors/native.json`` on a real server; clients run them from the other side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, Peer, serving

CASES = json.loads((Path(__file__).parent / "vectors" / "native.json").read_text())["cases"]


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

    def __init__(self, daemon: Daemon) -> None:
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
                assert await (await self._peer(name)).rest() == []
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
            self._peers[name] = await self._daemon.connect()
        return self._peers[name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
async def test_the_server_keeps_to_the_vectors_of_the_native_protocol(case: Any) -> None:
    async with serving() as daemon:
        runner = Runner(daemon)
        for number, step in enumerate(case["steps"]):
            try:
                await runner.run(dict(step))
            except (AssertionError, TimeoutError) as error:
                error.add_note(f"in step {number}: {json.dumps(step)}")
                raise


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case["name"] for case in CASES]
    assert len(names) == len(set(names)) >= 30
