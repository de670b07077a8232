"""The door of the web app over real HTTP: S75, S76, and every status of docs/reference/wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from syncserver.apikeys import OPERATIONS, ApiKey
from syncserver.config import Backend
from syncserver.dealers import BroadcastDealer
from syncserver.engines.base import Engine
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import TooManyWrongKeys, Unavailable
from syncserver.handlers import base
from syncserver.position import Position
from syncserver.services.base import (
    Request,
    RPCError,
    RPCService,
    Service,
    operation,
    rpc_asynchronous,
    rpc_command,
)
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from syncserver.services.pubsub import PubSubBackend, PubSubService
from syncserver.session import Client
from syncserver.strict_json import MAX_ELEMENTS
from tests.conftest import ExpectedLog
from tests.support.daemon import (
    KEY,
    SECONDS,
    Daemon,
    Peer,
    call_body,
    serving,
    settings,
    until,
)


class Office(RPCService):
    """A trusted service."""

    def __init__(self, name: str = "office") -> None:
        super().__init__(name)
        self.waiting: list[Request] = []
        self.gate = asyncio.Event()
        self.stopped = False

    @rpc_command
    def add(self, req: Request, a: int, b: int) -> int:
        return a + b

    @rpc_command
    def nothing(self, req: Request) -> None:
        pass

    @rpc_command
    def size(self, req: Request, text: str) -> int:
        return len(text)

    @rpc_command
    def refuse(self, req: Request) -> None:
        raise RPCError("Not today", code="not_today")

    @rpc_command
    def broken(self, req: Request) -> None:
        raise RuntimeError("the password is swordfish")

    @rpc_command
    @rpc_asynchronous
    def later(self, req: Request) -> None:
        self.waiting.append(req)

    @rpc_command
    async def slow(self, req: Request) -> str:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped = True
            raise
        return "done"

    @rpc_command
    async def hasty(self, req: Request) -> str:
        self.send_message_to(req.client, {"type": "first"})
        await self.gate.wait()
        return "second"

    @rpc_command
    def chatty(self, req: Request) -> str:
        self.send_message_to(req.client, {"type": "first"})
        return "second"


class Silent(Service):
    """Takes messages and says nothing."""

    def process_message_from(self, client: Client, msg: Any) -> None:
        pass


class Hanging(Service):
    async def process_message_from(self, client: Client, msg: Any) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def office(**limits: Any) -> AsyncIterator[tuple[Daemon, Office]]:
    service = Office()
    services = [service, Silent("silent"), Hanging("hanging")]
    async with serving(backend=services, **limits) as daemon:
        yield daemon, service


GOOD = call_body("office", "add", {"a": 1, "b": 2})
ANSWER = {"service": "office", "message": {"type": "response", "data": 3}}


def error(response: Any) -> tuple[int, str]:
    """Return status and code of an answer that is an error envelope."""
    assert response.headers["Content-Type"] == "application/json; charset=UTF-8"
    message = json.loads(response.body)["message"]
    assert message["type"] == "error"
    assert message["message"]
    return response.code, message["code"]


class Wire:
    """One connection to the backend door, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, head: str | bytes, body: bytes = b"", *, length: int | None = None) -> None:
        """Send a POST with these headers (``Name: value``, one a line) and its length."""
        lines = head.encode() if isinstance(head, str) else head
        size = len(body) if length is None else length
        self._writer.write(
            b"POST /backend HTTP/1.1\r\nHost: x\r\n"
            + b"".join(line + b"\r\n" for line in lines.splitlines())
            + b"Content-Length: %d\r\n\r\n" % size
            + body
        )

    def send_chunks(self, head: str, count: int, size: int) -> None:
        """Send a POST whose body comes in chunks and does not end."""
        lines = "".join(line + "\r\n" for line in head.splitlines())
        self._writer.write(
            f"POST /backend HTTP/1.1\r\nHost: x\r\n{lines}"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(count):
            self._writer.write(b"%x\r\n%b\r\n" % (size, b"x" * size))

    def end_chunks(self) -> None:
        self._writer.write(b"0\r\n\r\n")

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """Return status and body of the next answer."""
        async with asyncio.timeout(5):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = HTTPHeaders.parse("\r\n".join(head[1:]))
            body = await self._reader.readexactly(int(headers["Content-Length"]))
        return int(head[0].split()[1]), json.loads(body)

    async def ended(self) -> bool:
        """Tell whether the other side closes without another word."""
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                return await self._reader.read(1) == b""
        return True

    def vanish(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def wire(daemon: Daemon) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.server.backend_port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


HEAD = f"X-Backend-Key: {KEY}\nContent-Type: application/json"


# What works.


async def test_s75_a_call_is_answered_with_200_and_its_envelope() -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=GOOD)
        assert response.code == 200
        assert response.headers["Content-Type"] == "application/json; charset=UTF-8"
        assert response.headers["Cache-Control"] == "no-store"
        assert json.loads(response.body) == ANSWER


async def test_s75_a_null_result_is_said() -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=call_body("office", "nothing", {}))
        assert json.loads(response.body) == {
            "service": "office",
            "message": {"type": "response", "data": None},
        }


@pytest.mark.parametrize("call_id", [0, "x", {"a": [1]}])
async def test_a_call_id_is_echoed(call_id: Any) -> None:
    async with office() as (daemon, _):
        message = {"command": "nothing", "params": {}, "callId": call_id}
        response = await daemon.request(body=json.dumps({"service": "office", "message": message}))
        assert json.loads(response.body)["message"]["callId"] == call_id


@pytest.mark.parametrize(
    ("command", "params", "code"),
    [
        ("refuse", {}, "not_today"),
        ("unheard", {}, "unknown_command"),
        ("add", {"a": 1}, "invalid_params"),
    ],
)
async def test_s75_what_a_service_refuses_is_200_too(
    command: str, params: dict[str, Any], code: str
) -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=call_body("office", command, params))
        assert error(response) == (200, code)
        assert json.loads(response.body)["service"] == "office"


async def test_a_command_that_breaks_tells_nothing_of_why(expected_log: ExpectedLog) -> None:
    async with office() as (daemon, _):
        with expected_log("syncserver.rpc", "Unhandled exception"):
            response = await daemon.request(body=call_body("office", "broken", {}))
        assert error(response) == (200, "internal_error")
        assert b"swordfish" not in response.body


async def test_the_first_thing_that_a_caller_is_told_is_its_answer() -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=call_body("office", "chatty", {}))
        assert json.loads(response.body)["message"] == {"type": "first"}


async def test_an_answer_leaves_at_once_and_the_command_goes_on_as_long_as_it_likes() -> None:
    async with office(call_seconds=0.05) as (daemon, service):
        response = await daemon.request(body=call_body("office", "hasty", {}))
        assert json.loads(response.body)["message"] == {"type": "first"}
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, later.set)
        await later.wait()
        assert daemon.backend.calls_under_way == 1
        service.gate.set()
        await until(lambda: not daemon.backend.calls_under_way)


async def test_a_command_may_answer_later() -> None:
    async with office() as (daemon, service):
        asking = asyncio.ensure_future(daemon.request(body=call_body("office", "later", {})))
        await until(lambda: service.waiting)
        service.waiting.pop().reply("now")
        response = await asking
        assert json.loads(response.body)["message"]["data"] == "now"


async def test_several_calls_run_at_once() -> None:
    async with office() as (daemon, service):
        slow = asyncio.ensure_future(daemon.request(body=call_body("office", "slow", {})))
        await until(lambda: daemon.backend.calls_under_way)
        assert (await daemon.request(body=GOOD)).code == 200
        service.gate.set()
        assert (await slow).code == 200
        assert not daemon.backend.calls_under_way


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON ;charset=UTF-8"],
)
async def test_json_may_be_announced_with_its_charset(content_type: str) -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=GOOD, headers={"Content-Type": content_type})
        assert response.code == 200


# Keys.


@pytest.mark.parametrize(
    "key", ["", "wrong", KEY[:-1], KEY + "x", KEY.upper(), f'"{KEY}"', f"{KEY},{KEY}"]
)
async def test_s75_a_wrong_key_is_401(key: str) -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=GOOD, headers={"X-Backend-Key": key})
        assert error(response) == (401, "unauthorized")
        assert KEY.encode() not in response.body


async def test_s75_a_missing_key_is_401() -> None:
    async with office() as (daemon, _), wire(daemon) as raw:
        raw.send("Content-Type: application/json", GOOD.encode())
        status, body = await raw.answer()
        assert (status, body["message"]["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("keys", [[KEY, KEY], [KEY, "wrong"], ["wrong", KEY]])
async def test_a_key_that_is_given_twice_is_401(keys: list[str]) -> None:
    async with office() as (daemon, _), wire(daemon) as raw:
        lines = "".join(f"X-Backend-Key: {key}\n" for key in keys)
        raw.send(lines + "Content-Type: application/json", GOOD.encode())
        assert (await raw.answer())[0] == 401


@pytest.mark.parametrize(
    "key", [b"\xff\xfe\xfd", "schlüssel".encode(), "schlüssel".encode("latin1")]
)
async def test_a_key_of_any_bytes_is_401(key: bytes) -> None:
    async with office() as (daemon, _), wire(daemon) as raw:
        raw.send(b"X-Backend-Key: " + key + b"\nContent-Type: application/json", GOOD.encode())
        assert (await raw.answer())[0] == 401
        raw.send(HEAD, GOOD.encode())
        assert await raw.answer() == (200, ANSWER)


async def test_every_one_of_several_keys_is_good() -> None:
    other = "another-key-that-is-long-enough-too"
    config = settings()
    config = replace(
        config, backend=replace(config.backend, api_keys=(ApiKey.of(KEY), ApiKey.of(other)))
    )
    async with serving(backend=[Office()], config=config) as daemon:
        for key, status in ((KEY, 200), (other, 200), (KEY + other, 401)):
            response = await daemon.request(body=GOOD, headers={"X-Backend-Key": key})
            assert response.code == status


async def test_a_key_in_the_address_is_none() -> None:
    async with office() as (daemon, _):
        response = await daemon.request(
            f"/backend?X-Backend-Key={KEY}&api_key={KEY}", body=GOOD, headers={"X-Backend-Key": ""}
        )
        assert response.code == 401


async def test_who_guesses_is_429_and_a_right_key_of_the_same_address_passes_meanwhile() -> None:
    config = settings(wrong_keys_per_minute=1)
    async with serving(backend=[Office()], config=config) as daemon:
        wrong = {"X-Backend-Key": "wrong"}
        pending = [
            asyncio.ensure_future(daemon.request(body=GOOD, headers=wrong)) for _ in range(4)
        ]
        early = {(await one).code for one in pending[:1]}
        assert (await daemon.request(body=GOOD)).code == 200
        assert not all(one.done() for one in pending)
        late = await asyncio.gather(*pending)
        refused = [answer for answer in late if answer.code == 429]
        assert early == {401}
        assert {answer.code for answer in late} == {401, 429}
        assert {error(answer) for answer in refused} == {(429, "too_many_wrong_keys")}
        assert all(int(answer.headers["Retry-After"]) in range(1, 61) for answer in refused)
        counted = daemon.backend.traffic.errors
        assert counted["too_many_wrong_keys"] == len(refused)
        no_key = await daemon.request(body=GOOD, headers={"X-Backend-Key": "x", "Expect": "x"})
        assert no_key.code == 429


@pytest.mark.parametrize("kind", ["Expect", "Content-Length", "chunks", "a call"])
async def test_who_guesses_waits_for_429_however_the_body_is_announced(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = settings(wrong_keys_per_minute=1, max_body_bytes=1000)
    wrong = "X-Backend-Key: wrong\nContent-Type: application/json"

    def guess(raw: Wire) -> None:
        match kind:
            case "Expect":
                raw.send(wrong + "\nExpect: 100-continue", length=10)
            case "Content-Length":
                raw.send(wrong, length=10**6)
            case "chunks":
                raw.send_chunks(wrong, 10, 1000)
            case _:
                raw.send(wrong, GOOD.encode())

    async with serving(backend=[Office()], config=config) as daemon:
        with contextlib.suppress(TooManyWrongKeys):
            while True:
                daemon.backend.guesses.wrong("127.0.0.1")
        codes = daemon.backend.traffic.errors
        monkeypatch.setattr(base, "GUESS_SECONDS", 0.0)
        async with wire(daemon) as raw:
            guess(raw)
            assert (await raw.answer())[0] == 429
        monkeypatch.setattr(base, "GUESS_SECONDS", 3600.0)
        async with wire(daemon) as raw:
            guess(raw)
            answer = asyncio.ensure_future(raw.answer())
            for _ in range(5):
                assert (await daemon.request(body=GOOD)).code == 200
            assert not answer.done(), answer
            assert codes["too_many_wrong_keys"] == 1
            # Nor does it hold up the end.
            async with asyncio.timeout(SECONDS):
                await daemon.server.stop()
                while daemon.server._doors["backend"].gate.open:
                    await asyncio.sleep(0)
            answer.cancel()


async def test_a_key_that_is_over_is_no_guess() -> None:
    over = replace(ApiKey.of(KEY), expires=datetime.now(UTC))
    other = ApiKey.of("another-key-that-is-long-enough-too")
    config = settings(wrong_keys_per_minute=1)
    config = replace(config, backend=replace(config.backend, api_keys=(over, other)))
    async with serving(backend=[Office()], config=config) as daemon:
        for _ in range(5):
            assert error(await daemon.request(body=GOOD)) == (401, "unauthorized")


# What is no call.


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_s75_any_other_method_is_405(method: str) -> None:
    async with office() as (daemon, _):
        response = await daemon.request(
            method=method, body=GOOD if method in ("PUT", "PATCH") else None
        )
        assert response.code == 405
        if method != "HEAD":
            assert error(response) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"hello", "invalid_json"),
        (b'{"service": "office", "message": NaN}', "invalid_json"),
        (b'{"service": "office", "message": Infinity}', "invalid_json"),
        (b'{"service": "office", "message": 1e400}', "bad_number"),
        (b'{"service": "office", "message": "\xff"}', "invalid_json"),
        (b'\xef\xbb\xbf{"service": "office", "message": 1}', "invalid_json"),
        (b'{"service": "office", "service": "office", "message": 1}', "duplicate_key"),
        (b'{"service": "office", "message": ' + b"[" * 70 + b"]" * 70 + b"}", "too_deep"),
        (b"[]", "malformed"),
        (b"[" + GOOD.encode() + b"]", "malformed"),
        (b"3", "malformed"),
        (b"null", "malformed"),
        (b'"office"', "malformed"),
        (b"{}", "malformed"),
        (b'{"message": {}}', "malformed"),
        (b'{"service": 3, "message": {}}', "malformed"),
        (b'{"service": "office"}', "malformed"),
        (b'{"service": "nobody", "message": {}}', "unknown_service"),
        (b'{"service": "nobody"}', "malformed"),
        (b"service=office&message=1", "invalid_json"),
    ],
)
async def test_s76_a_body_that_is_no_envelope_for_a_service_here_is_400(
    body: bytes, code: str
) -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=body)
        assert error(response) == (400, code)
        assert json.loads(response.body)["message"]["callId"] is None


@pytest.mark.parametrize(
    "message",
    [
        None,
        3,
        [],
        {},
        {"command": "add"},
        {"params": {}},
        {"command": 3, "params": {}},
        {"command": "add", "params": []},
        {"command": "add", "params": None},
    ],
)
async def test_s76_an_envelope_without_a_call_is_answered(message: Any) -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=json.dumps({"service": "office", "message": message}))
        status, code = error(response)
        assert status == 400
        assert code in ("malformed", "invalid_params")


async def test_s76_a_service_that_does_not_answer_is_504() -> None:
    async with office(call_seconds=0.05) as (daemon, _):
        for name in ("silent", "hanging"):
            response = await daemon.request(body=json.dumps({"service": name, "message": 1}))
            assert error(response) == (504, "timeout")
        assert not daemon.backend.calls_under_way


async def test_s76_an_asynchronous_command_without_a_reply_is_504() -> None:
    async with office(call_seconds=0.05) as (daemon, service):
        response = await daemon.request(body=call_body("office", "later", {}))
        assert error(response) == (504, "timeout")
        service.waiting.pop().reply("too late")
        assert (await daemon.request(body=GOOD)).code == 200


async def test_s76_a_command_that_takes_too_long_is_504_and_stopped() -> None:
    async with office(call_seconds=0.05) as (daemon, service):
        response = await daemon.request(body=call_body("office", "slow", {}))
        assert error(response) == (504, "timeout")
        await until(lambda: service.stopped)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "text/json", "json"]
)
async def test_another_content_type_is_415(content_type: str) -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=GOOD, headers={"Content-Type": content_type})
        assert error(response) == (415, "unsupported_media_type")


async def test_no_content_type_is_415() -> None:
    async with office() as (daemon, _), wire(daemon) as raw:
        raw.send(f"X-Backend-Key: {KEY}", GOOD.encode())
        assert (await raw.answer())[0] == 415


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity", ""])
async def test_an_encoded_body_is_415(encoding: str) -> None:
    async with office() as (daemon, _):
        response = await daemon.request(body=GOOD, headers={"Content-Encoding": encoding})
        assert error(response) == (415, "unsupported_media_type")


# Sizes.


def sized(length: int) -> bytes:
    """Return a call of exactly so many bytes."""
    empty = len(call_body("office", "size", {"text": ""}))
    return call_body("office", "size", {"text": "x" * (length - empty)}).encode()


async def test_a_body_of_just_the_limit_is_read() -> None:
    async with office(max_body_bytes=3000) as (daemon, _):
        assert len(sized(3000)) == 3000
        assert (await daemon.request(body=sized(3000))).code == 200
        assert error(await daemon.request(body=sized(3001))) == (413, "too_large")


@pytest.mark.parametrize("length", [12_001, 10**9, 10**15])
async def test_a_body_that_is_far_too_large_is_413_before_it_has_come(length: int) -> None:
    async with office(max_body_bytes=3000) as (daemon, _), wire(daemon) as raw:
        raw.send(HEAD, b"", length=length)
        status, body = await raw.answer()
        assert (status, body["message"]["code"]) == (413, "too_large")
        assert await raw.ended()


@pytest.mark.parametrize("length", [3001, 12_000])
async def test_who_asks_before_sending_a_body_that_is_too_large_is_told_413(length: int) -> None:
    async with office(max_body_bytes=3000) as (daemon, _), wire(daemon) as raw:
        raw.send(HEAD + "\nExpect: 100-continue", b"", length=length)
        status, body = await raw.answer()
        assert (status, body["message"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("length", [3001, 12_000])
async def test_a_body_that_is_too_large_is_read_so_that_its_sender_reads_413(length: int) -> None:
    async with office(max_body_bytes=3000) as (daemon, _), wire(daemon) as raw:
        raw.send(HEAD, sized(length))
        status, body = await raw.answer()
        assert (status, body["message"]["code"]) == (413, "too_large")
        raw.send(HEAD, GOOD.encode())
        assert await raw.answer() == (200, ANSWER)


@pytest.mark.parametrize(("count", "size"), [(40, 2999), (3, 5000), (40, 20_000), (4000, 10)])
async def test_a_body_that_grows_far_too_large_in_chunks_is_413(count: int, size: int) -> None:
    async with office(max_body_bytes=3000) as (daemon, _), wire(daemon) as raw:
        raw.send_chunks(HEAD, count, size)
        status, body = await raw.answer()
        assert (status, body["message"]["code"]) == (413, "too_large")


async def test_a_body_in_chunks_that_is_too_large_is_413_at_its_end() -> None:
    async with office(max_body_bytes=3000) as (daemon, _), wire(daemon) as raw:
        raw.send_chunks(HEAD, 40, 100)
        raw.end_chunks()
        assert (await raw.answer())[0] == 413
        raw.send(HEAD, GOOD.encode())
        assert await raw.answer() == (200, ANSWER)


async def test_one_megabyte_too_many_is_answered_to_an_ordinary_client() -> None:
    async with office(max_body_bytes=1_000_000) as (daemon, _):
        assert error(await daemon.request(body=sized(2_000_000))) == (413, "too_large")
        wrong = {"X-Backend-Key": "wrong"}
        assert error(await daemon.request(body=sized(2_000_000), headers=wrong))[0] == 401


async def test_a_body_in_chunks_is_read_as_one() -> None:
    async with office() as (daemon, _), wire(daemon) as raw:
        raw.send_chunks(HEAD, 0, 0)
        for piece in (GOOD[:7], GOOD[7:]):
            raw._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece.encode()))
        raw.end_chunks()
        assert await raw.answer() == (200, ANSWER)


async def test_who_has_no_key_cannot_make_the_server_keep_a_body() -> None:
    async with office(max_body_bytes=3000) as (daemon, _), wire(daemon) as raw:
        raw.send("X-Backend-Key: wrong\nContent-Type: application/json", b"x" * 2900)
        status, _ = await raw.answer()
        assert status == 401


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "0x10"])
async def test_a_length_that_is_none_ends_the_connection_alone(length: str) -> None:
    async with office() as (daemon, _), wire(daemon) as raw:
        raw._writer.write(
            f"POST /backend HTTP/1.1\r\nHost: x\r\n{HEAD.replace(chr(10), chr(13) + chr(10))}\r\n"
            f"Content-Length: {length}\r\n\r\n".encode()
        )
        line = await raw._reader.readline()
        assert not line or line.startswith(b"HTTP/1.1 400 "), line
        assert (await daemon.request(body=GOOD)).code == 200


@pytest.mark.parametrize("head", [HEAD, "Content-Type: application/json"])
async def test_a_length_of_thousands_of_digits_is_too_large_and_no_traceback(head: str) -> None:
    async with office() as (daemon, _), wire(daemon) as raw:
        lines = (
            "POST /backend HTTP/1.1",
            "Host: x",
            *head.split("\n"),
            "Content-Length: " + "9" * 5_000,
        )
        raw._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        line = await raw._reader.readline()
        assert line[:13] in (b"HTTP/1.1 413 ", b"HTTP/1.1 401 "), line
        assert (await daemon.request(body=GOOD)).code == 200


@pytest.mark.parametrize("service", ["nobody", "office"])
async def test_a_call_id_of_as_many_elements_as_may_be_comes_back(service: str) -> None:
    call_id = [0] * (MAX_ELEMENTS - 6)  # which are those of the call around it
    message = {"command": "refuse", "params": {}, "callId": call_id}
    async with office() as (daemon, _):
        response = await daemon.request(body=json.dumps({"service": service, "message": message}))
        answer = json.loads(response.body)["message"]
        assert (answer["type"], answer["callId"]) == ("error", call_id), answer["code"]


async def test_a_connection_is_kept_after_errors() -> None:
    async with office() as (daemon, _), wire(daemon) as raw:
        for head, body, status in (
            (HEAD, GOOD, 200),
            (HEAD, "garbage", 400),
            (HEAD.replace(KEY, "wrong"), GOOD, 401),
            (HEAD.replace("json", "xml"), GOOD, 415),
            (HEAD, call_body("nobody", "x", {}), 400),
            (HEAD, call_body("office", "refuse", {}), 200),
            (HEAD, GOOD, 200),
        ):
            raw.send(head, body.encode())
            answered, envelope = await raw.answer()
            assert answered == status
        assert envelope == ANSWER


async def test_a_body_that_comes_too_slowly_is_not_waited_for() -> None:
    async with office(body_seconds=0.05) as (daemon, _), wire(daemon) as raw:
        raw.send(HEAD, b"{", length=1000)
        assert await raw.ended()
        assert (await daemon.request(body=GOOD)).code == 200


async def test_a_caller_that_leaves_disturbs_nobody() -> None:
    async with office() as (daemon, service):
        async with wire(daemon) as raw:
            raw.send(HEAD, call_body("office", "slow", {}).encode())
            await until(lambda: daemon.backend.calls_under_way)
            raw.vanish()
        assert (await daemon.request(body=GOOD)).code == 200
        service.gate.set()
        await until(lambda: not daemon.backend.calls_under_way)


# Sent again.


class Rows(BroadcastDealer):
    model = "Row"


@asynccontextmanager
async def datasync(engine: Engine | None = None, **limits: Any) -> AsyncIterator[Daemon]:
    service = DataSyncService("datasync", [Rows], engine=engine)
    pubsub = PubSubService("pubsub", engine=service.engine)
    trusted = [DataSyncBackend("datasync_backend", service), PubSubBackend("p", pubsub)]
    async with serving(service, pubsub, backend=trusted, **limits) as daemon:
        yield daemon
    await service.engine.close()


def publishing(number: int) -> str:
    delta = {"type": "insert", "model": "Row", "data": {"id": number}}
    return call_body("datasync_backend", "publishDeltas", {"deltas": [delta]})


async def subscriber(daemon: Daemon) -> Peer:
    peer = await daemon.connect()
    token = await daemon.authorize(("Rows", None))
    await peer.call("datasync", "acquireSubscription", token=token)
    return peer


async def test_a_publish_sent_again_with_its_key_counts_once() -> None:
    async with datasync() as daemon:
        peer = await subscriber(daemon)
        for _ in range(2):
            response = await daemon.request(
                body=publishing(1), headers={"Idempotency-Key": "5a9b-!~"}
            )
            assert response.code == 200
            assert json.loads(response.body)["message"] == {"type": "response", "data": None}
        await daemon.request(body=publishing(1))
        assert len(await peer.rest()) == 2


async def test_a_key_used_with_another_body_is_409() -> None:
    async with datasync() as daemon:
        peer = await subscriber(daemon)
        await daemon.request(body=publishing(1), headers={"Idempotency-Key": "k"})
        response = await daemon.request(body=publishing(2), headers={"Idempotency-Key": "k"})
        assert error(response) == (409, "idempotency_conflict")
        response = await daemon.request(body=publishing(2), headers={"Idempotency-Key": "K"})
        assert response.code == 200
        ids = [message["delta"]["data"]["id"] for message in await peer.rest()]
        assert ids == [1, 2]


async def test_a_key_of_one_service_is_free_in_another() -> None:
    async with datasync() as daemon:
        for body in (publishing(1), call_body("p", "publish", {"channel": 1, "message": 2})):
            response = await daemon.request(body=body, headers={"Idempotency-Key": "k"})
            assert response.code == 200


async def test_a_key_does_no_harm_where_nothing_is_published() -> None:
    async with office() as (daemon, _):
        for _ in range(2):
            response = await daemon.request(body=GOOD, headers={"Idempotency-Key": "k"})
            assert json.loads(response.body) == ANSWER


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "a\tb"])
async def test_a_key_that_is_none_is_400_and_applies_nothing(key: str) -> None:
    async with datasync() as daemon:
        peer = await subscriber(daemon)
        response = await daemon.request(body=publishing(1), headers={"Idempotency-Key": key})
        assert error(response) == (400, "malformed")
        assert await peer.rest() == []


@pytest.mark.parametrize(
    "lines", [b"Idempotency-Key: a\nIdempotency-Key: a", b"Idempotency-Key: \xe4"]
)
async def test_two_keys_and_keys_of_other_characters_are_400(lines: bytes) -> None:
    async with datasync() as daemon, wire(daemon) as raw:
        raw.send(HEAD.encode() + b"\n" + lines, publishing(1).encode())
        assert (await raw.answer())[0] == 400


async def test_a_key_of_128_characters_is_one() -> None:
    async with datasync() as daemon:
        response = await daemon.request(body=publishing(1), headers={"Idempotency-Key": "x" * 128})
        assert response.code == 200


# Out of order.


class Away(MemoryEngine):
    """A store that can be out of reach."""

    away = False

    async def append(
        self, stream: str, data: bytes, *, idempotency_key: str | None = None
    ) -> Position:
        await self.check()
        return await super().append(stream, data, idempotency_key=idempotency_key)

    async def check(self) -> None:
        if self.away:
            raise Unavailable(retry_after_seconds=7)


class Counting(MemoryEngine):
    """A store that counts how often it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.checks = 0
        self.may_answer = asyncio.Event()

    async def check(self) -> None:
        self.checks += 1
        await self.may_answer.wait()


async def test_a_log_out_of_reach_is_503_and_says_when_to_come_again() -> None:
    engine = Away()
    async with datasync(engine) as daemon:
        peer = await subscriber(daemon)
        engine.away = True
        response = await daemon.request(body=publishing(1), headers={"Idempotency-Key": "k"})
        assert error(response) == (503, "unavailable")
        assert response.headers["Retry-After"] == "7"
        engine.away = False
        response = await daemon.request(body=publishing(1), headers={"Idempotency-Key": "k"})
        assert response.code == 200
        assert len(await peer.rest()) == 1


async def test_a_server_that_is_closing_is_503() -> None:
    async with office() as (daemon, _):
        daemon.backend.draining = True
        response = await daemon.request(body=GOOD)
        assert error(response) == (503, "unavailable")
        assert int(response.headers["Retry-After"]) >= 1


# Health.


async def test_live_and_ready_are_told_to_everybody() -> None:
    async with office() as (daemon, _):
        for path in ("/live", "/ready"):
            response = await daemon.request(path, method="GET", headers={"X-Backend-Key": ""})
            assert response.code == 200
            assert json.loads(response.body) == {"ok": True}


async def test_a_server_without_its_log_or_about_to_close_lives_and_is_not_ready() -> None:
    engine = Away()
    async with serving(backend=[Office()], config=settings()) as daemon:
        daemon.server._engine = engine
        engine.away = True
        daemon.backend.draining = True
        ready = await daemon.request("/ready", method="GET")
        assert ready.code == 503
        reasons = json.loads(ready.body)["reasons"]
        assert reasons[0] == "draining"
        assert reasons[1].startswith("engine: ")
        assert (await daemon.request("/live", method="GET")).code == 200


async def test_whoever_asks_whether_it_is_ready_shares_one_look_at_the_engine() -> None:
    engine = Counting()
    async with serving(backend=[Office()], config=settings()) as daemon:
        daemon.server._engine = engine
        asking = [asyncio.ensure_future(daemon.request("/ready", method="GET")) for _ in range(20)]
        await until(lambda: engine.checks)
        engine.may_answer.set()
        assert {(await one).code for one in asking} == {200}
        assert engine.checks in range(1, 4)
        checks = engine.checks
        async with asyncio.timeout(SECONDS):
            while engine.checks == checks:  # a second later it is asked again
                assert (await daemon.request("/ready", method="GET")).code == 200


@pytest.mark.parametrize("path", ["/", "/backend/", "/backend/x", "/ws", "/syncserver.js"])
async def test_the_backend_door_has_nothing_else(path: str) -> None:
    async with office() as (daemon, _):
        assert (await daemon.request(path, method="GET")).code == 404


async def test_the_frontend_door_has_no_backend() -> None:
    async with office() as (daemon, _):
        url = f"http://127.0.0.1:{daemon.server.frontend_port}"
        for path in ("/backend", "/live", "/ready"):
            response = await daemon._client.fetch(url + path, raise_error=False)
            assert response.code == 404
        for path in ("/syncserver.js", "/syncserver.d.ts"):
            assert (await daemon._client.fetch(url + path)).body


# What a key is for.


class Desk(RPCService):
    """A trusted service of somebody's own."""

    def __init__(self) -> None:
        super().__init__("desk")

    @rpc_command
    def change(self, req: Request) -> str:
        return "changed"

    @rpc_command
    @operation("inspect")
    def look(self, req: Request) -> str:
        return "seen"


CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "publish": ("datasync_backend", "publishDeltas", {"deltas": []}),
    "publish too": ("datasync_backend", "requestRefetch", {"model": "Task"}),
    "publish a message": ("pubsub_backend", "publish", {"channel": 1, "message": 1}),
    "authorize": (
        "datasync_backend",
        "authorizeSubscription",
        {"items": [{"dealer": "AllTasks", "query": None}]},
    ),
    "revoke": ("datasync_backend", "revokeSubscription", {"token": "none"}),
    "inspect": ("desk", "look", {}),
    "all": ("desk", "change", {}),
    "all, raw": ("silent", "any message", {}),
}


@asynccontextmanager
async def with_keys(*keys: ApiKey) -> AsyncIterator[Daemon]:
    config = settings()
    config = replace(config, backend=replace(config.backend, api_keys=keys))
    async with serving(config=config) as daemon:
        daemon.backend.register_service(Desk())
        daemon.backend.register_service(Silent("silent"))
        yield daemon


@pytest.mark.parametrize("allowed", OPERATIONS)
async def test_a_key_is_good_for_its_operations_alone(allowed: str) -> None:
    key = replace(ApiKey.of(KEY), id="narrow", operations=frozenset({allowed}))
    async with with_keys(key) as daemon:
        for name, call in CALLS.items():
            response = await daemon.request(body=call_body(*call))
            if name.startswith(allowed):
                assert response.code == 200, name
                assert json.loads(response.body)["message"]["type"] == "response"
            else:
                assert error(response) == (403, "forbidden"), name


async def test_a_key_for_all_operations_may_call_what_is_for_none() -> None:
    async with with_keys(replace(ApiKey.of(KEY), operations=frozenset(OPERATIONS))) as daemon:
        response = await daemon.request(body=call_body(*CALLS["all"]))
        assert json.loads(response.body)["message"]["data"] == "changed"


async def test_a_key_is_refused_from_its_end_on() -> None:
    now = datetime.now(UTC)
    over = replace(ApiKey.of(KEY), id="over", expires=now)
    other = "another-key-that-is-long-enough-too"
    good = replace(ApiKey.of(other), expires=now + timedelta(hours=1))
    async with with_keys(over, good) as daemon:
        assert error(await daemon.request(body=GOOD))[0] == 401
        headers = {"X-Backend-Key": other}
        call = call_body(*CALLS["publish"])
        assert (await daemon.request(body=call, headers=headers)).code == 200


async def test_a_daemon_without_keys_does_not_start() -> None:
    config = replace(settings(), backend=Backend(port=0))
    with pytest.raises(ValueError, match="at least one API key"):
        async with serving(config=config):
            pass


async def test_the_log_names_the_key_by_its_id_and_never_holds_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "syncserver")
    key = replace(ApiKey.of(KEY), id="reports", operations=frozenset({"publish"}))
    wrong = KEY[::-1]
    async with with_keys(key) as daemon:
        await daemon.request(body=call_body(*CALLS["revoke"]))
        await daemon.request(body=GOOD, headers={"X-Backend-Key": wrong})
    assert "its key reports is not for this" in caplog.text
    assert "Invalid API key" in caplog.text
    assert KEY not in caplog.text
    assert wrong not in caplog.text
