"""The doors of a daemon: bytes at their sockets, and a canary that must notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import re
import secrets
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain
from random import Random
from typing import Any

from syncserver import strict_json
from syncserver.config import ProtocolConfig
from syncserver.handlers import sockjs_framing as framing
from tests.fuzz import redis_bytes, requests
from tests.fuzz.mutation import Make, bytes_like
from tests.fuzz.parsers import FRAME_SEEDS
from tests.fuzz.requests import STREAM, TOKEN
from tests.fuzz.target import Failure, kept
from tests.support.daemon import Daemon, Peer, serving, settings, until

BATCH = 64
_PATIENCE_SECONDS = 0.05
_HANG_SECONDS = 20.0
_RUDE = 8
_MANY = 1_000_000
_LIMITS = {
    "max_connections_per_address": _MANY,
    "accepts_per_second": _MANY,
    "accepts_per_second_per_address": _MANY,
    "requests_per_second": _MANY,
    "wrong_keys_per_minute": _MANY,
    "messages_per_second": _MANY,
    "max_message_burst": _MANY,
    "disconnect_seconds": 0.2,
    "ping_seconds": 1.0,  # ends what has more to read behind it, where Tornado sees no end
    "pong_seconds": 0.9,
}
_LOGGERS = ("syncserver", "tornado", "asyncio")


class Watch(logging.Handler):
    """Keeps what is logged of failures."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or record.exc_info:
            self.lines.append(self.format(record))

    def check(self) -> None:
        """Fail if there was anything."""
        lines, self.lines = self.lines, []
        assert not lines, lines[0]


class Place:
    """A daemon, a canary that is connected to it, and its log."""

    def __init__(self, daemon: Daemon, canary: Peer, watch: Watch) -> None:
        self.daemon = daemon
        self.watch = watch
        self._canary = canary
        self._numbers = itertools.count()

    async def filled(self, batch: Sequence[bytes]) -> list[bytes]:
        """Return inputs with a token and a stream that there are."""
        token = await self.daemon.authorize(("AllTasks", None), ("CommentsByBlogEntry", 7, "t"))
        whole = [one.replace(TOKEN, token.encode()) for one in batch]
        if all(STREAM not in one for one in batch):
            return whole
        stream = await _stream_of(self.daemon, token)
        return [one.replace(STREAM, stream.encode()) for one in whole]

    async def sing(self) -> None:
        """Let the canary be answered, and hear what is published."""
        channel = f"canary {next(self._numbers)}"
        answer = await self._canary.call("pubsub", "subscribe", channel=channel)
        assert answer["type"] == "response", answer
        await self.daemon.post("pubsub_backend", "publish", channel=channel, message="still here")
        while (await self._canary.read())["message"].get("channel") != channel:
            pass
        answer = await self._canary.call("pubsub", "unsubscribe", channel=channel)
        assert answer["type"] == "response", answer
        self._canary.take()


async def _stream_of(daemon: Daemon, token: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.server.frontend_port)
    headers = ["Content-Type: application/json", "Connection: close"]
    writer.write(requests.request("POST", "/events", headers, b'{"token":"%b"}' % token.encode()))
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    stream: str = json.loads(answer.partition(b"\r\n\r\n")[2])["stream"]
    return stream


@asynccontextmanager
async def placed() -> AsyncIterator[Place]:
    """Run a daemon that lets everybody in."""
    config = settings(origins=["*"], **_LIMITS)
    config = replace(config, protocols={"rohrpost": ProtocolConfig()})
    watch = Watch()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(watch)
    try:
        async with serving(config=config) as daemon:
            place = Place(daemon, await daemon.connect(), watch)
            yield place
            await place.sing()
        watch.check()
    finally:
        for logger in loggers:
            logger.removeHandler(watch)


@dataclass(frozen=True)
class Door:
    """A target of many inputs at a time.

    :param send: gives inputs to the daemon and fails if something does not hold.
    """

    name: str
    seeds: Sequence[bytes]
    make: Make
    send: Callable[[Place, Sequence[bytes]], Awaitable[None]]
    count: int

    async def run(self, place: Place, rng: Random, count: int) -> int:
        """Try so many inputs, the corpus and the seeds first; return how many it were."""
        first = [*kept(self.name), *self.seeds]
        made = (self.make(rng) for _ in itertools.count())
        every = chain(first, made)
        tried = 0
        while tried < max(count, len(first)):
            batch = list(itertools.islice(every, BATCH))
            await self.attempt(place, batch)
            tried += len(batch)
        return tried

    async def attempt(self, place: Place, batch: Sequence[bytes]) -> None:
        """Try a batch; Failure, with the input that did it if it does it alone."""
        try:
            await self._try(place, batch)
        except Exception as error:
            for one in batch if len(batch) > 1 else ():
                await self.attempt(place, [one])
            alone = len(batch) == 1
            raise Failure(self.name, b"\n--\n".join(batch), error, alone=alone) from error

    async def _try(self, place: Place, batch: Sequence[bytes]) -> None:
        await self.send(place, await place.filled(batch))
        await place.sing()
        await until(lambda: place.daemon.frontend.sockets <= 1, _HANG_SECONDS)
        gc.collect(1)  # an exception that nobody fetched is logged now
        place.watch.check()


# Bytes.


async def _exchange(port: int, hello: bytes, data: bytes) -> bytes:
    """Send bytes, look whether an answer begins, end, and return what came.

    Some do not wait: they reset the connection at once.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    came = b""
    try:
        if hello:
            writer.write(hello)
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        if zlib.crc32(data) % _RUDE == 0:
            plain = writer.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return came
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                came = await reader.read(16)
        writer.write_eof()
        async with asyncio.timeout(_HANG_SECONDS):
            while not came and (piece := await reader.read(1_000)):
                came += piece
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await reader.read()  # who still reads may be sent an answer that does not end
    except TimeoutError:
        assert came, f"neither an answer nor an end to {data[:200]!r}"
    except OSError:  # a reset is an end
        pass
    finally:
        writer.transport.abort()
    return came


def _bytes_to(
    port: Callable[[Daemon], int], hello: bytes = b""
) -> Callable[[Place, Sequence[bytes]], Awaitable[None]]:
    async def send(place: Place, batch: Sequence[bytes]) -> None:
        exchanges = (_exchange(port(place.daemon), hello, one) for one in batch)
        for came in await asyncio.gather(*exchanges):
            assert hello or not came or came.startswith(b"HTTP/1."), came[:80]

    return send


def _backend(daemon: Daemon) -> int:
    return daemon.server.backend_port


def _frontend(daemon: Daemon) -> int:
    return daemon.server.frontend_port


# Calls: each is answered, and once.


async def _calls(place: Place, batch: Sequence[bytes]) -> None:
    peer = await place.daemon.connect()
    try:
        for data in batch:
            peer.send_text(data.decode("utf-8", "replace"))
        answers: list[Any] = [one for one in await peer.rest() if _is_answer(one)]
        assert len(answers) == len(batch), f"{len(answers)} answers to {len(batch)} calls"
        for one in answers:
            assert one.get("code") != "internal_error", one
    finally:
        await peer.close()
        place.daemon.peers.remove(peer)


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("type") in ("response", "error")


class _Posting:
    """A connection that is kept, for one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[_Posting]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()

    async def post(self, path: str, headers: Sequence[str], body: bytes) -> tuple[int, bytes]:
        """Return status and body of an answer."""
        length = [] if body else ["Content-Length: 0"]
        self._writer.write(requests.request("POST", path, [*headers, *length], body))
        async with asyncio.timeout(_HANG_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            size = re.search(r"\r\ncontent-length: (\d+)", head)
            answer = await self._reader.readexactly(int(size[1]) if size else 0)
        return int(head.split(" ")[1]), answer


async def _posts(place: Place, batch: Sequence[bytes]) -> None:
    async with _Posting.to(_backend(place.daemon)) as posting:
        for body in batch:
            status, answer = await posting.post("/backend", requests._KEYED, body)
            message = strict_json.decode(answer)["message"]
            assert status in (200, 400), (status, message)
            assert message.get("code") != "internal_error", message


async def _polls(place: Place, batch: Sequence[bytes]) -> None:
    path = f"/ws/sockjs/000/{secrets.token_hex(8)}"
    async with _Posting.to(_frontend(place.daemon)) as posting:
        assert await posting.post(f"{path}/xhr", (), b"") == (200, b"o\n")
        due: list[bytes] = []
        for body in batch:
            status, said = await posting.post(f"{path}/xhr_send", (), body)
            try:
                texts = framing.read(body)
            except ValueError:
                assert status == 500, said
            else:
                assert status == 204, said
                due += texts
        await posting.post(f"{path}/xhr_send", (), json.dumps([_LAST]).encode())
        answers: list[Any] = []
        while not answers or answers[-1].get("callId") != "the last":
            _, frame = await posting.post(f"{path}/xhr", (), b"")
            if frame.startswith(b"a"):
                answers += [json.loads(text)["message"] for text in json.loads(frame[1:])]
            assert frame[:1] in (b"a", b"h"), frame
        answers = [one for one in answers if _is_answer(one)]
        assert len(answers) == len(due) + 1, f"{len(answers) - 1} answers to {len(due)} calls"


_LAST = requests.call("none", "none").decode().replace('"callId": 1', '"callId": "the last"')


DOORS = [
    Door("backend", requests.BACKEND, requests.BACKEND_LIKE, _bytes_to(_backend), 2_000),
    Door("frontend", requests.FRONTEND, requests.FRONTEND_LIKE, _bytes_to(_frontend), 1_000),
    Door(
        "websocket",
        FRAME_SEEDS,
        requests.NATIVE_LIKE,
        _bytes_to(_frontend, requests.handshake("/ws")),
        2_000,
    ),
    Door(
        "rohrpost-ws",
        FRAME_SEEDS,
        requests.ROHRPOST_LIKE,
        _bytes_to(_frontend, requests.handshake("/rohrpost/")),
        1_000,
    ),
    Door(
        "sockjs-ws",
        FRAME_SEEDS,
        requests.FRAMED_LIKE,
        _bytes_to(_frontend, requests.handshake("/ws/sockjs/000/abc/websocket")),
        1_000,
    ),
    Door("calls", requests.CALLS, requests.CALL_LIKE, _calls, 6_000),
    Door("polls", requests.POLLED, requests.polled_like, _polls, 250),
    Door("redis-bytes", redis_bytes.SEEDS, bytes_like(redis_bytes.SEEDS), redis_bytes.send, 500),
    Door("posts", requests.POSTS, requests.POST_LIKE, _posts, 3_000),
]
