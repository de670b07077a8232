"""Messages find their services, and garbage of every kind is answered: S11 to S13."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from syncserver import ServiceRegistry
from syncserver.services.base import Request, RPCService, Service, rpc_command
from syncserver.session import Client
from tests.conftest import ExpectedLog
from tests.support.calls import MemoryPeer, turns
from tests.support.daemon import Peer, serving, until


class Echo(Service):
    """Answers with what it was sent, and notes who comes and goes."""

    def __init__(self, name: str = "echo") -> None:
        super().__init__(name)
        self.seen: list[str] = []

    def process_message_from(self, client: Client, msg: Any) -> None:
        self.send_message_to(client, msg)

    def client_connected(self, client: Client) -> None:
        self.seen.append("connected")

    def client_disconnected(self, client: Client) -> None:
        self.seen.append("disconnected")


class Patient(Service):
    """Takes its time, as an ``async def``."""

    async def process_message_from(self, client: Client, msg: Any) -> None:
        await asyncio.sleep(0)
        self.send_message_to(client, msg)


class Fragile(Echo):
    """Fails at who comes and goes."""

    def client_connected(self, client: Client) -> None:
        raise RuntimeError("no room")

    def client_disconnected(self, client: Client) -> None:
        raise RuntimeError("never let go")


class FragileAtOnce(Service):
    """Fails at what it is sent, and at nothing else."""

    def process_message_from(self, client: Client, msg: Any) -> None:
        raise LookupError("the password is swordfish")


class FragileLater(Service):
    """The same, when it has waited."""

    async def process_message_from(self, client: Client, msg: Any) -> None:
        await asyncio.sleep(0)
        raise LookupError("the password is swordfish")


class Adder(RPCService):
    @rpc_command
    def add(self, req: Request, a: int, b: int) -> int:
        return a + b


NESTED = {"a": [1, {"b": None, "c": [[], {}]}], "ñ": "☃", "n": -0.5}


@pytest.mark.parametrize("service", [Echo("s"), Patient("s")])
@pytest.mark.parametrize("payload", ["foo", NESTED, None, 0, False, [], "", [1, 2]])
async def test_s11_a_service_echoes_any_json(service: Service, payload: Any) -> None:
    async with serving(service) as daemon:
        peer = await daemon.connect()
        peer.send("s", payload)
        assert await peer.read() == {"service": "s", "message": payload}


GARBAGE: list[tuple[str | bytes, str | None, str]] = [
    # text, service of the answer, code
    ("", None, "invalid_json"),
    ("{", None, "invalid_json"),
    ("hello", None, "invalid_json"),
    ('{"service": "echo", "message": 1} x', None, "invalid_json"),
    ("{'service': 'echo'}", None, "invalid_json"),
    ('{"service": "echo", "message": NaN}', None, "invalid_json"),
    ('{"service": "echo", "message": -Infinity}', None, "invalid_json"),
    ('{"service": "echo", "message": 1e999}', "echo", "bad_number"),
    ('{"service": "echo", "message": 9007199254740993}', "echo", "bad_number"),
    (r'{"service": "echo", "message": "\ud800"}', None, "invalid_json"),
    ('{"service": "echo", "service": "echo", "message": 1}', "echo", "duplicate_key"),
    ('{"service": "echo", "message": ' + "[" * 70 + "]" * 70 + "}", "echo", "too_deep"),
    ('{"service": "echo", "message": ' + "[" * 9000, None, "invalid_json"),
    ("[]", None, "malformed"),
    ('["echo", 1]', None, "malformed"),
    ("3", None, "malformed"),
    ("-1.5", None, "malformed"),
    ('"echo"', None, "malformed"),
    ("null", None, "malformed"),
    ("true", None, "malformed"),
    ("{}", None, "malformed"),
    ('{"cat": 42}', None, "malformed"),
    ('{"message": 1}', None, "malformed"),
    ('{"service": 3, "message": 1}', None, "malformed"),
    ('{"service": null, "message": 1}', None, "malformed"),
    ('{"service": ["echo"], "message": 1}', None, "malformed"),
    ('{"service": "echo"}', "echo", "malformed"),
    ('{"service": "nobody"}', "nobody", "malformed"),
    ('{"service": "nobody", "message": 1}', "nobody", "unknown_service"),
    ('{"service": "", "message": 1}', "", "unknown_service"),
    ('{"service": "Echo", "message": 1}', "Echo", "unknown_service"),
    ('{"service": "__class__", "message": {}}', "__class__", "unknown_service"),
    ('{"service": "' + "x" * 3000 + '", "message": 1}', None, "unknown_service"),
    (b"\xff\xfe", None, "invalid_json"),
    (b'{"service": "echo", "message": "\xff"}', "echo", "invalid_json"),
    (b'\xef\xbb\xbf{"service": "echo", "message": 1}', None, "invalid_json"),
    (b"", None, "invalid_json"),
]


async def test_s12_s13_garbage_of_every_kind_is_answered_and_the_connection_lives() -> None:
    async with serving(Echo()) as daemon:
        peer, other = await daemon.connect(), await daemon.connect()
        for text, service, code in GARBAGE:
            peer.send_text(text)
            envelope = await peer.read()
            assert envelope["service"] == service, text
            message = envelope["message"]
            assert (message["type"], message["callId"]) == ("error", None), text
            if text != '{"service": "echo", "message": ' + "[" * 9000:
                assert message["code"] == code, text
            peer.send("echo", "alive")
            assert await peer.read() == {"service": "echo", "message": "alive"}
        other.send("echo", "undisturbed")
        assert await other.read() == {"service": "echo", "message": "undisturbed"}


async def test_garbage_is_not_quoted_in_its_answer() -> None:
    async with serving(Echo()) as daemon:
        peer = await daemon.connect()
        peer.send_text('{"service": "echo", "message": swordfish}')
        assert "swordfish" not in str(await peer.read())


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ('{"x": 1152921504606846976}', "bad_number"),
        ('{"x": 1, "x": 2}', "duplicate_key"),
        ('{"x": ' + "[" * 64 + "]" * 64 + "}", "too_deep"),
        ('{"x": [' + "0," * 100_000 + "0]}", "too_many_elements"),
        ('{"x": 1e999}', "bad_number"),
    ],
)
@pytest.mark.parametrize("call_id", [0, "a", {"b": [None]}])
async def test_a_call_whose_params_are_no_strict_json_is_answered_with_its_id(
    params: str, code: str, call_id: Any
) -> None:
    text = f'{{"params": {params}, "callId": {json.dumps(call_id)}}}'
    async with serving(Echo(), max_message_bytes=300_000) as daemon:
        peer = await daemon.connect()
        peer.send_text(f'{{"service": "echo", "message": {text}}}')
        answer = await peer.read()
        assert (answer["service"], answer["message"]["callId"]) == ("echo", call_id)
        assert answer["message"]["code"] == code


@pytest.mark.parametrize(
    "text",
    [
        '{"service": {"a": 1, "a": 2}, "message": {"callId": 3}}',
        '{"service": "echo", "message": {"callId": 9007199254740993}}',
        '{"service": "echo", "message": {"callId": ' + "[" * 70 + "]" * 70 + "}}",
        '{"service": "echo", "message": ' + "[" * 20_000 + "]" * 20_000 + "}",
        '{"message": {"callId": 9007199254740993}}',
    ],
)
async def test_an_id_that_is_no_strict_json_itself_is_not_echoed(text: str) -> None:
    async with serving(Echo()) as daemon:
        peer = await daemon.connect()
        peer.send_text(text)
        assert (await peer.read())["message"]["callId"] is None


async def test_an_answer_to_an_unknown_service_has_the_call_id() -> None:
    async with serving(Echo()) as daemon:
        peer = await daemon.connect()
        peer.send("nobody", {"command": "x", "params": {}, "callId": 7})
        assert (await peer.read())["message"]["callId"] == 7


@pytest.mark.parametrize("payload", [[1], 3, None, "text", NESTED])
async def test_s13_a_binary_message_is_read_as_the_text_it_holds(payload: Any) -> None:
    async with serving(Echo()) as daemon:
        peer = await daemon.connect()
        peer.send_text(json.dumps({"service": "echo", "message": payload}).encode())
        text = await peer.read_text()
        assert isinstance(text, str)
        assert json.loads(text) == {"service": "echo", "message": payload}


@pytest.mark.parametrize("kind", [FragileAtOnce, FragileLater])
async def test_a_service_that_fails_on_a_message_answers_and_disturbs_nobody(
    kind: type[Service], expected_log: ExpectedLog
) -> None:
    failure = {
        "type": "error",
        "callId": 3,
        "message": "Internal error",
        "code": "internal_error",
    }
    async with serving(Echo(), backend=[kind("fragile")]) as daemon:
        with expected_log("syncserver.registry", 'Service "fragile" failed on a message'):
            response = await daemon.request(body='{"service": "fragile", "message": {"callId": 3}}')
        assert json.loads(response.body)["message"] == failure
        daemon.frontend.register_service(kind("fragile too"))
        peer = MemoryPeer(daemon.frontend)
        with expected_log("syncserver.registry", 'Service "fragile too" failed on a message'):
            peer.send("fragile too", {"callId": 3})
            peer.send("echo", 1)
            await until(lambda: len(peer.texts) == 2)
        assert [envelope["message"] for envelope in peer.take()] == [failure, 1]
        peer.session.connection_lost()


async def test_a_service_that_fails_as_clients_come_and_go_keeps_nobody_out(
    expected_log: ExpectedLog,
) -> None:
    echo = Echo()
    with (
        expected_log("syncserver.registry", 'Service "fragile" failed on a connect'),
        expected_log("syncserver.registry", 'Service "fragile" failed on a disconnect'),
    ):
        async with serving(Fragile("fragile"), echo) as daemon:
            peer = await daemon.connect()
            peer.send("echo", 1)
            assert await peer.read() == {"service": "echo", "message": 1}
            await peer.close()
    assert echo.seen == ["connected", "disconnected"]


async def test_a_message_that_json_cannot_carry_is_an_error_of_its_service(
    expected_log: ExpectedLog,
) -> None:
    class Unwritable(Service):
        def process_message_from(self, client: Client, msg: Any) -> None:
            self.send_message_to(client, float("nan"))

    async with serving(Unwritable("u"), Echo()) as daemon:
        peer = await daemon.connect()
        with expected_log("syncserver.registry", 'Service "u" failed'):
            peer.send("u", 1)
            assert (await peer.read())["message"]["message"] == "Internal error"
        peer.send("echo", 1)
        assert (await peer.read())["message"] == 1


async def test_services_of_the_backend_hear_nothing_of_calls_coming_and_going() -> None:
    echo = Echo()
    async with serving(backend=[echo]) as daemon:
        response = await daemon.request(body='{"service": "echo", "message": [1]}')
        assert json.loads(response.body) == {"service": "echo", "message": [1]}
    assert echo.seen == []


async def test_a_service_may_send_envelopes_of_any_name() -> None:
    class Other(Service):
        def process_message_from(self, client: Client, msg: Any) -> None:
            client.send({"service": "elsewhere", "message": msg})

    async with serving(Other("here")) as daemon:
        peer = await daemon.connect()
        peer.send("here", 1)
        assert await peer.read() == {"service": "elsewhere", "message": 1}


async def test_a_client_knows_where_it_comes_from_and_has_no_identity_yet() -> None:
    class Who(Service):
        def process_message_from(self, client: Client, msg: Any) -> None:
            self.send_message_to(client, [client.remote_address, client.identity])

    async with serving(Who("who")) as daemon:
        peer = await daemon.connect()
        peer.send("who", None)
        assert (await peer.read())["message"] == ["127.0.0.1", None]


async def test_more_messages_than_an_inbox_holds_end_the_connection_with_4013() -> None:
    class Stuck(Service):
        async def process_message_from(self, client: Client, msg: Any) -> None:
            await gate.wait()

    gate = asyncio.Event()
    async with serving(Stuck("stuck"), max_inbox_messages=5) as daemon:
        peer, other = await daemon.connect(), await daemon.connect()
        for _ in range(10):
            peer.send("stuck", 1)
        code, reason = await peer.end()
        assert (code, json.loads(reason or "")) == (4013, {"retry_after": 1000})
        assert await other.rest() == []
        gate.set()


async def test_more_bytes_than_an_inbox_holds_end_the_connection_with_4013() -> None:
    class Stuck(Service):
        async def process_message_from(self, client: Client, msg: Any) -> None:
            await gate.wait()

    gate = asyncio.Event()
    async with serving(Stuck("stuck"), max_inbox_bytes=5000) as daemon:
        peer = await daemon.connect()
        for _ in range(10):
            peer.send("stuck", "x" * 1000)
        assert (await peer.end())[0] == 4013
        gate.set()


def test_a_registry_knows_its_services_by_name() -> None:
    one, other = Echo("one"), Echo("other")
    registry = ServiceRegistry([one])
    registry.register_service(other)
    registry.register_service(other)
    assert registry.registered_services == {"one": one, "other": other}
    with pytest.raises(RuntimeError, match="Service with name 'one' already is registered"):
        registry.register_service(Echo("one"))
    registry.unregister_service(one)
    assert registry.registered_services == {"other": other}


async def test_a_registry_opens_and_closes_all_its_services() -> None:
    told = []

    class Doors(Echo):
        async def open(self) -> None:
            told.append(f"{self.name} opens")

        async def close(self) -> None:
            told.append(f"{self.name} closes")

    registry = ServiceRegistry([Doors("a"), Doors("b")])
    await registry.open()
    await registry.close()
    assert told == ["a opens", "b opens", "a closes", "b closes"]


async def test_a_service_that_is_unregistered_is_unknown_from_then_on() -> None:
    echo = Echo()
    async with serving(echo, Adder("adder")) as daemon:
        peer = await daemon.connect()
        daemon.frontend.unregister_service(echo)
        peer.send("echo", 1)
        assert (await peer.read())["message"]["code"] == "unknown_service"
        assert (await peer.call("adder", "add", a=1, b=2))["data"] == 3


async def test_several_registries_do_not_know_each_others_services() -> None:
    async with serving(Echo("public"), backend=[Echo("trusted")]) as daemon:
        peer = await daemon.connect()
        peer.send("trusted", 1)
        assert (await peer.read())["message"]["code"] == "unknown_service"
        response = await daemon.request(body='{"service": "public", "message": 1}')
        assert response.code == 400
        assert json.loads(response.body)["message"]["code"] == "unknown_service"


async def test_text_and_envelopes_may_be_handed_to_a_registry_directly() -> None:
    registry = ServiceRegistry([Echo(), Patient("patient")])
    peer = MemoryPeer(registry)
    client = peer.session
    assert registry.process_message_raw(client, '{"service": "echo", "message": 1}') is None
    registry.process_message_from(client, {"service": "echo", "message": 2})
    later = registry.process_message_raw(client, b'{"service": "patient", "message": 3}')
    assert later is not None
    await later
    registry.process_message_raw(client, "garbage")
    await turns()
    *echoed, refusal = [envelope["message"] for envelope in peer.take()]
    assert echoed == [1, 2, 3]
    assert refusal["code"] == "invalid_json"
    client.connection_lost()


async def peers_of(daemon: Any, count: int) -> list[Peer]:
    return [await daemon.connect() for _ in range(count)]


async def test_every_client_gets_its_own_answers() -> None:
    async with serving(Adder("adder")) as daemon:
        peers = await peers_of(daemon, 5)
        calls = [peer.begin_call("adder", "add", a=n, b=n) for n, peer in enumerate(peers)]
        answers = [await peer.answer(call) for peer, call in zip(peers, calls, strict=True)]
        assert [answer["data"] for answer in answers] == [0, 2, 4, 6, 8]
