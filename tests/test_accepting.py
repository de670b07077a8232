"""Connections are taken some at a time, and a process out of descriptors does not spin."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from syncserver.admission.accepting import Acceptor
from tests.conftest import ExpectedLog

MANY = 100
MOST_PER_TURN = 16


OF_ONE = ("ECONNABORTED", "EPROTO", "ENETDOWN", "EHOSTUNREACH", "ETIMEDOUT", "EPERM")
OF_ALL = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EINVAL", "EIO")


class Failing(socket.socket):
    """A listening socket whose kernel has an error for us so many times."""

    def __init__(self, error: str, times: int) -> None:
        super().__init__()
        self.bind(("127.0.0.1", 0))
        self.listen(MANY)
        self.setblocking(False)
        self.error = getattr(errno, error)
        self.times = times
        self.asked = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.times:
            self.times -= 1
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@contextlib.contextmanager
def failing(error: str, times: int) -> Iterator[tuple[Failing, Acceptor, list[socket.socket]]]:
    """Give a door that fails, at which somebody knocks, and what was taken from it."""
    door, taken = Failing(error, times), list[socket.socket]()
    with socket.create_connection(door.getsockname()):
        acceptor = Acceptor(door, lambda connection, _: taken.append(connection))
        try:
            yield door, acceptor, taken
        finally:
            acceptor.close()
            for connection in taken:
                connection.close()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


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


@pytest.mark.parametrize("error", OF_ONE)
async def test_what_is_wrong_with_one_connection_does_not_keep_the_next(error: str) -> None:
    with failing(error, times=3) as (_, acceptor, taken):
        await turns(20)
        assert (len(taken), acceptor.failures) == (1, 3)


@pytest.mark.parametrize("error", [*OF_ALL, *OF_ONE])
async def test_whatever_keeps_connections_from_being_taken_it_rests_and_says_so_once(
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    expected_log: ExpectedLog,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("syncserver.admission.accepting._REST_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    raised: list[Any] = []
    loop.set_exception_handler(lambda _, context: raised.append(context))
    with failing(error, times=10**9) as (door, acceptor, taken):
        with expected_log("syncserver.server", "Cannot take connections"):
            await until(lambda: door.asked >= 50)
        asked, at = door.asked, loop.time()
        await turns(2_000)
        rests = 1 + (loop.time() - at) / 0.01
        assert door.asked - asked <= MOST_PER_TURN + rests, "it spins"
        assert acceptor.failures == door.asked
        assert not taken
        door.times = 0
        await until(lambda: taken)
    assert raised == []
    assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 1


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
