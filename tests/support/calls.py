"""Calls without sockets: of a backend, and of a peer with a transport in memory."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from syncserver.handlers.backend import BackendClient
from syncserver.protocols.base import Command, Frame, Protocol
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry


async def backend_call(
    registry: ServiceRegistry, service: str, command: str, *, key: str | None = None, **params: Any
) -> dict[str, Any]:
    """Make one call as the web app would and return its message."""
    client = BackendClient("test", key)
    pending = registry.dispatch(client, Command(service, command, params))
    if inspect.isawaitable(pending):
        await pending
    _, body = await asyncio.wait_for(client.answer, 5)
    message: dict[str, Any] = json.loads(body)["message"]
    return message


class MemoryPeer:
    """A connected peer whose transport is a list; ``messages`` is what it has been sent.

    :param stalled: takes nothing until ``resume`` is called.
    """

    def __init__(
        self,
        registry: ServiceRegistry,
        protocol: Callable[[], Protocol] = NativeProtocol,
        *,
        stalled: bool = False,
    ) -> None:
        self.texts: deque[bytes] = deque()
        self.closed: tuple[int, str] | None = None
        self.stalled = stalled
        self.numbered = not protocol.shared if isinstance(protocol, type) else False
        self._number = 0
        self.session = registry.connect(protocol(), self, remote_address="peer")
        self._call_ids = 0

    def write(self, frames: Sequence[Frame]) -> bool:
        for frame in frames:
            self.texts.extend(frame.texts)
        return not self.stalled

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)
        self.session.connection_lost()

    def resume(self) -> None:
        self.stalled = False
        self.session.drained()

    def take(self) -> list[dict[str, Any]]:
        """Return the envelopes that came since the last time."""
        taken = []
        while self.texts:
            taken.append(self.read_one())
        return taken

    def read_one(self) -> dict[str, Any]:
        text = self.texts.popleft()
        if self.numbered:
            number, _, text = text.partition(b"|")
            self._number += 1
            assert int(number) == self._number, "a session's own protocol object was passed over"
        envelope: dict[str, Any] = json.loads(text)
        return envelope

    def send(self, service: str, message: Any) -> None:
        self.session.receive(json.dumps({"service": service, "message": message}))

    def begin_call(self, service: str, command: str, **params: Any) -> int:
        """Send a call and return its id."""
        self._call_ids += 1
        message = {"command": command, "params": params, "callId": self._call_ids}
        self.send(service, message)
        return self._call_ids

    async def call(self, service: str, command: str, **params: Any) -> list[dict[str, Any]]:
        """Make a call and return the messages of the service up to its answer, which is last."""
        call_id = self.begin_call(service, command, **params)
        seen = []
        async with asyncio.timeout(5):
            while True:
                while self.texts:
                    message = self.read_one()["message"]
                    seen.append(message)
                    if message.get("callId") == call_id:
                        return seen
                await asyncio.sleep(0)


async def turns(count: int = 20) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)
