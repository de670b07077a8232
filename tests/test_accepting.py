"""Connections are taken some at a time, and a process out of descriptors does not spin."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from syncserver.accepting import Acceptor
from tests.conftest import ExpectedLog

MANY = 100
MOST_PER_TURN = 16


@contextlib.contextmanager
def listening(take: Callable[[socket.socket, Any], None]) -> Iterator[tuple[str, int]]:
    door = socket.create_server(("127.0.0.1", 0), backlog=MANY)
    door.setblocking(False)
    acceptor = Acceptor(door, take)
    try:
        yield door.getsockname()
    finally:
        acceptor.close()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_many_who_come_at_once_are_taken_some_in_each_turn() -> None:
    loop = asyncio.get_running_loop()
    turns: Counter[float] = Counter()
    turn = 0
    taken: list[socket.socket] = []

    def count() -> None:
        nonlocal turn, timer
        turn += 1
        timer = loop.call_soon(count)

    def take(connection: socket.socket, _address: Any) -> None:
        turns[turn] += 1
        taken.append(connection)

    with contextlib.ExitStack() as stack, listening(take) as address:
        for _ in range(MANY):
            stack.enter_context(socket.create_connection(address))
        timer = loop.call_soon(count)
        await until(lambda: len(taken) == MANY)
        timer.cancel()
        assert max(turns.values()) <= MOST_PER_TURN
        for connection in taken:
            assert not connection.getblocking()
            connection.close()


async def test_without_descriptors_it_rests_and_goes_on_when_there_are_some(
    expected_log: ExpectedLog,
) -> None:
    taken: list[socket.socket] = []
    with (
        listening(lambda connection, _: taken.append(connection)) as address,
        socket.socket() as client,
    ):
        with no_descriptors(), expected_log("syncserver.server", "Cannot take connections"):
            client.connect(address)
            began = os.times().user + os.times().system
            await asyncio.sleep(0.2)
            assert os.times().user + os.times().system - began < 0.1, "it spins"
            assert not taken
        await until(lambda: taken)
        taken[0].close()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Use up what this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with contextlib.suppress(OSError):
            while True:
                used.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in used:
            os.close(number)
