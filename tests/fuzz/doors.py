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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from syncserver.config import Limits, ProtocolConfig
from syncserver.errors import CloseCode
from syncserver.handlers import frames
from syncserver.handlers import sockjs_framing as framing
from tests.fuzz import oracles, redis_bytes, requests
from tests.fuzz.client_frames import pieces
from tests.fuzz.parsers import read_by_a_client
from tests.fuzz.requests import STREAM, TOKEN
from tests.fuzz.target import Failure, Source
from tests.support.daemon import Daemon, Peer, serving, settings

BATCH = 64
_PATIENCE_SECONDS = 0.05
_HANG_SECONDS = 20.0
_LOOK_SECONDS = 0.01
_RUDE = 8
_MUCH = 65_536
_PRESCRIBED = (  # with 500, by the protocol of SockJS
    *(b"Payload expected.", b"Broken JSON encoding."),
    *(b'"callback" parameter required', b'"callback" parameter must be a plain name'),
)
_FREELY = (1001, *(code for code in oracles.CLOSE_CODES if code >= 4000))
_MANY = 1_000_000
_LIMITS = {
    "max_connections_per_address": _MANY,
    "accepts_per_second": _MANY,
    "accepts_per_second_per_address": _MANY,
    "requests_per_second": _MANY,
    "wrong_keys_per_minute": _MANY,
    "messages_per_second": _MANY,
    "max_message_burst": _MANY,
    "max_inbox_messages": _MANY,
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
async def placed(**limits: float) -> AsyncIterator[Place]:
    """Run a daemon that lets everybody in."""
    config = settings(origins=["*"], **{**_LIMITS, **limits})
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
    :param count: how many inputs are tried in CI.
    :param limits: settings that are others than those of all doors.
    """

    source: Source
    send: Callable[[Place, Sequence[bytes]], Awaitable[None]]
    count: int
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return its name, which is that of its corpus."""
        return self.source.name

    async def run(self, rng: Random, count: int) -> int:
        """Try so many inputs, the corpus and the seeds first; return how many it were."""
        inputs = self.source.inputs(rng)
        made = list(itertools.islice(inputs, max(count, self.source.least)))
        async with placed(
            **self.limits
        ) as place:  # to make them takes longer than a canary holds its breath
            for begin in range(0, len(made), BATCH):
                await self.attempt(place, made[begin : begin + BATCH])
        return len(made)

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
        async with asyncio.timeout(_HANG_SECONDS):
            while place.daemon.frontend.sockets > 1:  # a second, where a ping has to find it out
                await asyncio.sleep(_LOOK_SECONDS)
        gc.collect(1)  # an exception that nobody fetched is logged now
        place.watch.check()


# Bytes.


async def _exchange(port: int, hello: bytes, data: bytes) -> bytes:
    """Send bytes in pieces, look whether an answer begins, end, and return what came.

    Some do not wait: they reset the connection at once.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    came = b""
    try:
        if hello:
            writer.write(hello)
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        for piece in pieces(data):
            if writer.transport.is_closing():  # it was answered before it was whole
                break
            writer.write(piece)
            await asyncio.sleep(0)  # in which the daemon may read
        if zlib.crc32(data) % _RUDE == 0:
            plain = writer.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return came
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                came = await reader.read(_MUCH)
        writer.write_eof()
        async with asyncio.timeout(_HANG_SECONDS):
            while not came and (piece := await reader.read(_MUCH)):
                came += piece
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while piece := await reader.read(_MUCH):  # which may be without an end
                came += piece
    except TimeoutError:
        assert came, f"neither an answer nor an end to {data[:200]!r}"
    except OSError:  # a reset is an end
        pass
    finally:
        writer.transport.abort()
    return came


def _check_http(came: bytes, _: bytes) -> None:
    """What is answered is HTTP, and no fault of the daemon's."""
    status = re.match(rb"HTTP/1\.[01] (\d{3}) \(?[A-Z]", came)
    assert not came or status, came[:80]
    is_fine = status is None or int(status[1]) < 500 or any(one in came for one in _PRESCRIBED)
    assert is_fine, came


def _check_frames(came: bytes, data: bytes, freely: Sequence[int] = _FREELY) -> None:
    """A server's frames, up to a close with the code that the client's bytes ask for."""
    found = oracles.server_frames(came)
    for opcode, payload in found:
        if opcode == frames.TEXT:
            payload.decode()
    if found and found[-1][0] == frames.CLOSE:
        code = int.from_bytes(found[-1][1][:2], "big")
        meant = oracles.frames(data, Limits().max_message_bytes)
        ends = {one for one in meant if isinstance(one, int)}
        ends |= {int.from_bytes(one[1][:2], "big") for one in meant if _is_close(one)}
        assert code in ends or code in freely, f"closed with {code}, not {ends}"


def _is_close(one: Any) -> bool:
    return isinstance(one, tuple) and one[0] == frames.CLOSE


def _check_sockjs(came: bytes, data: bytes) -> None:
    """As frames, and a text that is no array closes too."""
    _check_frames(came, data, (*_FREELY, CloseCode.PROTOCOL_ERROR))


def _bytes_to(
    port: Callable[[Daemon], int], check: Callable[[bytes, bytes], None], hello: bytes = b""
) -> Callable[[Place, Sequence[bytes]], Awaitable[None]]:
    async def send(place: Place, batch: Sequence[bytes]) -> None:
        exchanges = (_exchange(port(place.daemon), hello, one) for one in batch)
        for data, came in zip(batch, await asyncio.gather(*exchanges), strict=True):
            check(came, data)

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
            _check_answer(one)
    finally:
        await peer.close()
        place.daemon.peers.remove(peer)


def _check_answer(message: Any) -> None:
    if message["type"] == "error":
        assert message["code"] in oracles.ERROR_CODES - {"internal_error"}, message
        assert message["message"], message


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

    def begin(self, path: str, headers: Sequence[str] = (), body: bytes = b"") -> None:
        """Make a request and do not wait for the answer."""
        length = [] if body else ["Content-Length: 0"]
        self._writer.write(requests.request("POST", path, [*headers, *length], body))

    async def post(self, path: str, headers: Sequence[str], body: bytes) -> tuple[int, bytes]:
        """Return status and body of an answer."""
        self.begin(path, headers, body)
        async with asyncio.timeout(_HANG_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            size = re.search(r"\r\ncontent-length: (\d+)", head)
            answer = await self._reader.readexactly(int(size[1]) if size else 0)
        return int(head.split(" ")[1]), answer


async def _posts(place: Place, batch: Sequence[bytes]) -> None:
    async with _Posting.to(_backend(place.daemon)) as posting:
        for body in batch:
            status, answer = await posting.post("/backend", requests.KEYED, body)
            message = read_by_a_client(answer)["message"]
            assert status in (200, 400), (status, message)
            _check_answer(message)


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
        posting.begin(f"{path}/xhr")  # who breaks it off ends the session at once


_LAST = requests.call("none", "none").decode().replace('"callId": 1', '"callId": "the last"')


def _socket(
    path: str, check: Callable[[bytes, bytes], None] = _check_frames
) -> Callable[[Place, Sequence[bytes]], Awaitable[None]]:
    return _bytes_to(_frontend, check, requests.handshake(path))


_SENDS = {
    "backend": (_bytes_to(_backend, _check_http), 1_500),
    "frontend": (_bytes_to(_frontend, _check_http), 512),
    "websocket": (_socket("/ws"), 1_000),
    "rohrpost-ws": (_socket("/rohrpost/"), 750),
    "sockjs-ws": (_socket("/ws/sockjs/000/abc/websocket", _check_sockjs), 750),
    "calls": (_calls, 4_500),
    "posts": (_posts, 2_500),
    "polls": (_polls, 128, {"disconnect_seconds": 5.0}),  # it polls after it has sent all
}
DOORS = {
    one.name: one
    for one in (
        *(Door(requests.SOURCES[name], *rest) for name, rest in _SENDS.items()),
        Door(redis_bytes.SOURCE, redis_bytes.send, 500),
    )
}
