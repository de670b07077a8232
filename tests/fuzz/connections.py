"""A whole connection in memory: frames in, calls made, answers and pongs out, one end."""

from __future__ import annotations

import asyncio
import atexit
from collections import Counter
from functools import cache
from typing import Any

from hypothesis import strategies as st

from syncserver import app, canonical
from syncserver.config import Config, Limits, ProtocolConfig
from syncserver.errors import ProtocolError
from syncserver.handlers import frames
from syncserver.handlers.connection import Terms
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.timers import Wheel
from tests.fuzz import grammar_wire as wire
from tests.fuzz import oracles
from tests.fuzz.client_frames import FRAME_SEEDS, client_frame, pieces
from tests.fuzz.grammar_frames import CONTENTS, streams
from tests.fuzz.mutation import json_like
from tests.fuzz.parsers import read_by_a_client
from tests.fuzz.requests import CALLS, frames_of
from tests.fuzz.target import Source, Target
from tests.support.memory_socket import MemoryConnection

_MANY = 1_000_000
_MAX = 1_000
_LIMITS = Limits(
    max_message_bytes=_MAX,
    messages_per_second=_MANY,
    max_message_burst=_MANY,
    max_inbox_messages=_MANY,
)
_MOST_TURNS, _TURNS = 1_000, 5


@cache
def _place() -> tuple[asyncio.Runner, ServiceRegistry, Wheel]:
    runner = asyncio.Runner()
    config = Config(limits=_LIMITS, protocols={"rohrpost": ProtocolConfig()})
    (frontend, _), engine = app.build(config)
    runner.run(frontend.open())

    async def close() -> None:
        await frontend.close()
        await engine.close()

    def end() -> None:
        runner.run(close())
        runner.close()

    atexit.register(end)
    return runner, frontend, Wheel()


def check_connection(data: bytes) -> str:
    """Pings and calls are answered, each once; a broken rule and a close have their code."""
    runner, registry, wheel = _place()
    meant = _up_to_a_close(oracles.frames(data, _MAX))
    end = _end(meant)
    asked = Counter(_call_id(one) for one in meant if isinstance(one, str | bytes))
    pinged = [one[1] for one in meant if isinstance(one, tuple) and one[0] == frames.PING]
    for parts in ([data], pieces(data)):
        said = runner.run(_said(registry, wheel, parts, asked.total()))
        assert not registry.sessions
        assert not registry.sockets
        assert [payload for opcode, payload in said if opcode == frames.PONG] == pinged
        closed = [payload[:2] for opcode, payload in said if opcode == frames.CLOSE]
        assert closed == ([] if end is None else [end])
        answered = Counter(canonical.key(answer.get("callId")) for answer in _answers(said))
        assert answered == asked if end is None else answered <= asked
    return repr((end, pinged, asked))


def _up_to_a_close(meant: list[Any]) -> list[Any]:
    for number, one in enumerate(meant):
        if isinstance(one, tuple) and one[0] == frames.CLOSE:
            fault = oracles.close_fault(one[1])
            return meant[: number + 1] + ([] if fault is None else [fault])
    return meant


def _end(meant: list[Any]) -> bytes | None:
    """Return the code of the close that a server answers with, as it sends it; None: it goes on."""
    match meant[-1:]:
        case [int(code)]:
            return code.to_bytes(2, "big")
        case [(frames.CLOSE, payload)]:
            return payload[:2]
    return None


async def _said(
    registry: ServiceRegistry, wheel: Wheel, parts: list[bytes], calls: int
) -> list[tuple[int, bytes]]:
    """Return what a connection says to bytes that come in pieces."""
    connection = MemoryConnection(Terms(registry, NativeProtocol, wheel, 0))
    for part in parts:
        connection.feed(part)
        await asyncio.sleep(0)
    said = []
    for _ in range(_MOST_TURNS):
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        said = oracles.server_frames(bytes(connection.sent))
        if connection.session.open and len(_answers(said)) < calls:
            continue
        break
    connection.cut()
    await asyncio.sleep(0)
    wheel.close()
    return said


def _answers(said: list[tuple[int, bytes]]) -> list[Any]:
    texts = [payload for opcode, payload in said if opcode == frames.TEXT]
    messages = [read_by_a_client(text)["message"] for text in texts]
    for one in messages:
        if one["type"] == "error":
            assert one["code"] in oracles.ERROR_CODES - {"internal_error"}, one
    return [one for one in messages if one["type"] in ("response", "error")]


def _call_id(content: str | bytes) -> bytes:
    """Return the call id that the answer to a message has, as text."""
    try:
        [message] = NativeProtocol().receive(content)
    except ProtocolError as error:
        return canonical.key(error.call_id)
    payload = getattr(message, "payload", None)
    return canonical.key(payload.get("callId") if isinstance(payload, dict) else None)


SOURCE = Source(
    "connection",
    [*FRAME_SEEDS, *(client_frame(0x81, call) for call in CALLS)],
    streams(st.one_of(wire.CALLS, wire.CALLS, CONTENTS)),
    frames_of(json_like(b'"callId":'), CALLS),
    share=20,
)
TARGETS = [Target(SOURCE, check_connection, 2_000)]
