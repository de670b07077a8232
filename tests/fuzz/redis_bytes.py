"""What a Redis may send, byte by byte: an engine refuses as it documents, or understands."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from syncserver.engines.base import Grant, GrantHeld, GrantMissing, GrantRevoked
from syncserver.engines.redis import RedisEngine
from syncserver.errors import EngineError, PositionLost
from syncserver.position import Position
from tests.fuzz.grammar import Inputs, one
from tests.fuzz.mutation import bytes_like
from tests.fuzz.target import Source

_COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n([A-Z]+)")
_REFUSALS = (EngineError, PositionLost, GrantMissing, GrantRevoked, GrantHeld)
_AT = Position("abc", 4, "m4")

SEEDS = [
    b"$8\r\nabc.4.m4\r\n",
    b"*4\r\n$8\r\ndatasync\r\n$8\r\nabc.4.m4\r\n$4\r\nbody\r\n:2\r\n",
    b"*1\r\n*2\r\n$3\r\n5-0\r\n*4\r\n$1\r\nh\r\n$9\r\nabc m5 m4\r\n$1\r\nd\r\n$1\r\nx\r\n",
    b"*2\r\n:0\r\n:1\r\n",
    *(b"*0\r\n", b"*-1\r\n", b"$-1\r\n", b":1\r\n", b"+OK\r\n", b"$7\r\nmissing\r\n", b""),
    *(b"-%b x\r\n" % word for word in (b"NOSCRIPT", b"ERR", b"MOVED 1 h:1", b"LOADING", b"OOM")),
    *(
        b"_\r\n",
        b"%1\r\n+a\r\n:1\r\n",
        b"%1\r\n*0\r\n:1\r\n",
        b"~1\r\n:1\r\n",
        b"#t\r\n",
        b",inf\r\n",
    ),
    *(b"(" + b"9" * 5_000 + b"\r\n", b"=7\r\ntxt:abc\r\n", b">1\r\n+x\r\n", b"!3\r\nERR\r\n"),
    *(b"$999999999999\r\n", b"*1\r\n" * 200, b":99999999999999999999\r\n"),
]

# What a Redis may answer, by its own grammar.

_LENGTHS = one(*["{}"] * 16, "-1", "0{}", "+{}", "{}0", "x")
_ATOMS = st.one_of(
    st.sampled_from([seed for seed in SEEDS if len(seed) < 40]),
    one(*(b":%b\r\n" % number for number in (b"0", b"1", b"-1", b"9" * 19, b"9" * 30, b"x"))),
    one(*(b"%c%b\r\n" % (kind, word) for kind in b"+-" for word in (b"OK", b"", b"ERR", b"\xff"))),
)


@st.composite
def _bulks(draw: DrawFn) -> bytes:
    text = draw(
        one(b"abc.4.m4", b"abc m5 m4", b"h", b"d", b"5-0", b"datasync", b"\xff", b"", b"\r\n")
    )
    return b"$" + draw(_LENGTHS).format(len(text)).encode() + b"\r\n" + text + b"\r\n"


@st.composite
def _arrays(draw: DrawFn, inner: Inputs) -> bytes:
    parts = draw(st.lists(inner, max_size=4))
    kind, length = draw(one(*[b"*"] * 10, b"~", b">", b"%")), draw(_LENGTHS).format(len(parts))
    return kind + length.encode() + b"\r\n" + b"".join(parts)


ANSWERS: Inputs = st.recursive(_bulks() | _ATOMS, _arrays, max_leaves=6)
SOURCE = Source("redis-bytes", SEEDS, ANSWERS, bytes_like(), share=10)

_CALLS: Sequence[Callable[[RedisEngine], Awaitable[Any]]] = (
    lambda engine: engine.head("datasync"),
    lambda engine: engine.since("datasync", 1),
    lambda engine: engine.read("datasync", _AT, 10),
    lambda engine: engine.append("datasync", b"data", idempotency_key="k"),
    lambda engine: engine.take_grant("token", 1, resumable=True),
    lambda engine: engine.put_grant("token", Grant("datasync", _AT, b"body"), 1),
    lambda engine: engine.renew_grants(["a", "b", "c"], 1),
    lambda engine: engine.revoke_grant("token", 1),
    lambda engine: engine.check(),
    lambda engine: engine.open(),
)


async def send(_: object, batch: Sequence[bytes]) -> None:
    """Let a Redis answer each of the calls of an engine with an input."""
    await asyncio.gather(*map(_ask, batch))


async def _ask(data: bytes) -> None:
    handlers: list[asyncio.Task[None]] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.ensure_future(_answer(reader, writer, data)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine = RedisEngine(None, f"redis://127.0.0.1:{port}?timeout_seconds=5")
    first = zlib.crc32(data) % len(_CALLS)
    try:
        for call in (_CALLS[first], _CALLS[first - 1]):
            async with asyncio.timeout(20):
                try:
                    await call(engine)
                except _REFUSALS:
                    continue
    finally:
        await engine.close()
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    """Greet who connects, answer the first command with the input, and end."""
    try:
        while asked := await reader.read(65_536):
            names = _COMMAND.findall(asked)
            if any(name != b"CLIENT" for name in names):
                writer.write(data)
                break
            writer.write(b"+OK\r\n" * len(names))
    finally:
        writer.close()
