"""Calls of commands over a real WebSocket: SEEDS 1.2 and the cases S1 to S10."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from syncserver.errors import RPCError
from syncserver.protocols.base import Command
from syncserver.services.base import (
    Request,
    RPCService,
    ellipsis,
    format_call,
    rpc_asynchronous,
    rpc_command,
)
from syncserver.session import Client
from tests.conftest import ExpectedLog
from tests.support.daemon import Peer, serving, until


class Calculator(RPCService):
    """Commands of every kind."""

    def __init__(self, name: str = "calc") -> None:
        super().__init__(name)
        self.gate = asyncio.Event()
        self.waiting: list[Request] = []
        self.order: list[str] = []

    @rpc_command
    def sum(self, req: Request, a: Any, b: Any) -> Any:
        return a + b

    @rpc_command
    async def slow_sum(self, req: Request, a: Any, b: Any) -> Any:
        self.order.append("slow begins")
        await self.gate.wait()
        self.order.append("slow ends")
        return a + b

    @rpc_command
    def quick(self, req: Request) -> str:
        self.order.append("quick")
        return "quick"

    @rpc_command
    def difference(self, req: Request, a: int, b: int) -> None:
        req.reply(a - b)

    @rpc_command
    def echo(self, req: Request, value: Any = "nothing") -> Any:
        return value

    @rpc_command
    def any_params(self, req: Request, base: Any, *rest: Any, **more: Any) -> list[str]:
        return list(more)

    @rpc_command
    def twice(self, req: Request) -> str:
        req.reply("first")
        with pytest.raises(RuntimeError, match=r"^This request has already been resolved$"):
            req.reply("second")
        with pytest.raises(RuntimeError, match=r"^This request has already been resolved$"):
            req.error("second")
        return "ignored"

    @rpc_command
    def refuse(self, req: Request) -> None:
        raise RPCError("Not today")

    @rpc_command
    async def refuse_later(self, req: Request) -> None:
        await asyncio.sleep(0)
        raise RPCError("Not today", code="not_today", field="day")

    @rpc_command
    def refuse_in_place(self, req: Request) -> None:
        req.error("Not here")

    @rpc_command
    def bare(self, req: Request) -> None:
        raise RPCError

    @rpc_command
    def broken(self, req: Request) -> None:
        raise RuntimeError("the password is swordfish")

    @rpc_command
    def badly_typed(self, req: Request) -> int:
        return len(3)

    @rpc_command
    async def broken_later(self, req: Request) -> None:
        await asyncio.sleep(0)
        raise LookupError("secret")

    @rpc_command
    async def waits_for_what_is_cancelled(self, req: Request) -> None:
        work = asyncio.ensure_future(self.gate.wait())
        work.cancel()
        await work

    @rpc_command
    def unwritable(self, req: Request) -> Any:
        return float("nan")

    @rpc_command
    def after_the_reply(self, req: Request) -> None:
        req.reply("done")
        raise RuntimeError("too late to be answered")

    @rpc_command
    @rpc_asynchronous
    def consume(self, req: Request) -> None:
        self.waiting.append(req)

    @rpc_asynchronous
    @rpc_command
    async def consume_later(self, req: Request) -> None:
        await asyncio.sleep(0)
        self.waiting.append(req)

    @rpc_command
    @rpc_asynchronous
    def consume_or_not(self, req: Request, now: bool) -> str | None:
        return "now" if now else None

    @rpc_command
    def produce(self, req: Request, item: Any) -> None:
        self.waiting.pop(0).reply(item)

    def hidden(self, req: Request) -> str:
        return "never to be seen"


class Scientific(Calculator):
    """A subclass with a command more, and one of its own."""

    @rpc_command
    def negate(self, req: Request, a: int) -> int:
        return -a

    @rpc_command
    def quick(self, req: Request) -> str:
        return "quicker"


@asynccontextmanager
async def calculator() -> AsyncIterator[tuple[Calculator, Peer]]:
    service = Calculator()
    async with serving(service, Scientific("science")) as daemon:
        yield service, await daemon.connect()


def error(message: str, code: str, call_id: Any = None) -> dict[str, Any]:
    return {"type": "error", "callId": call_id, "message": message, "code": code}


async def test_s1_a_call_is_answered_with_its_result_and_its_id() -> None:
    async with calculator() as (_, peer):
        peer.send("calc", {"command": "sum", "params": {"a": 5, "b": 12}, "callId": 0})
        assert await peer.read() == {
            "service": "calc",
            "message": {"type": "response", "callId": 0, "data": 17},
        }


@pytest.mark.parametrize("call_id", [0, False, "", "a", -1.5, [], [1, {"a": None}], {"id": [1]}])
async def test_any_json_value_is_echoed_as_call_id(call_id: Any) -> None:
    async with calculator() as (_, peer):
        peer.send("calc", {"command": "quick", "params": {}, "callId": call_id})
        assert (await peer.read())["message"] == {
            "type": "response",
            "callId": call_id,
            "data": "quick",
        }
        peer.send("calc", {"command": "nothing", "params": {}, "callId": call_id})
        answer = (await peer.read())["message"]
        assert answer == error("Unknown command", "unknown_command", call_id)


@pytest.mark.parametrize("given", [{}, {"callId": None}])
async def test_s2_without_an_id_a_response_has_none_and_an_error_has_null(given: Any) -> None:
    async with calculator() as (_, peer):
        peer.send("calc", {"command": "quick", "params": {}, **given})
        assert (await peer.read())["message"] == {"type": "response", "data": "quick"}
        peer.send("calc", {"command": "bare", "params": {}, **given})
        assert (await peer.read())["message"] == error("Exception", "error")


async def test_s3_a_method_may_reply_through_its_request() -> None:
    async with calculator() as (_, peer):
        answer = await peer.call("calc", "difference", a=5, b=12)
        assert answer["data"] == -7
        assert await peer.rest() == []


async def test_a_coroutine_is_a_command_like_any_other() -> None:
    async with calculator() as (service, peer):
        service.gate.set()
        assert (await peer.call("calc", "slow_sum", a=1, b=2))["data"] == 3


async def test_a_request_is_resolved_once() -> None:
    async with calculator() as (_, peer):
        assert (await peer.call("calc", "twice"))["data"] == "first"
        assert await peer.rest() == []


@pytest.mark.parametrize("command", ["nothing", "hidden", "process_request", "__init__", "name"])
async def test_s4_only_commands_can_be_called(command: str) -> None:
    async with calculator() as (_, peer):
        call_id = peer.begin_call("calc", command)
        assert await peer.answer(call_id) == error("Unknown command", "unknown_command", call_id)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "a"),
        ({"a": 1}, "b"),
        ({"a": 1, "b": 2, "c": 3}, "c"),
        ({"a": 1, "c": 2, "d": 3}, "c"),
        ({"a": 1, "b": 2, "req": 3}, "req"),
        ({"a": 1, "b": 2, "self": 3}, "self"),
        ({"A": 1, "b": 2}, "A"),
        ({"a": 1, "b": 2, "c" * 65: 3}, None),
        ([], None),
        ([1, 2], None),
        (None, None),
        ("ab", None),
        (3, None),
        (True, None),
    ],
)
async def test_s5_params_that_do_not_fit_the_signature_are_refused_with_the_one_at_fault(
    params: Any, field: str | None
) -> None:
    named = {} if field is None else {"field": field}
    async with calculator() as (_, peer):
        peer.send("calc", {"command": "sum", "params": params, "callId": 1})
        refusal = error("Invalid params", "invalid_params", 1)
        assert (await peer.read())["message"] == refusal | named


@pytest.mark.parametrize(
    ("params", "field"), [({}, "base"), ({"more": 1}, "base"), ({"base": 1, "number": 2}, None)]
)
async def test_s5_a_command_may_take_any_params_beside_its_own(
    params: Any, field: str | None
) -> None:
    async with calculator() as (_, peer):
        answer = await peer.call("calc", "any_params", **params)
        assert answer.get("field") == field
        assert answer["type"] == ("response" if field is None else "error")


async def test_s5_params_that_do_not_fit_leave_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with calculator() as (_, peer):
        with caplog.at_level(logging.INFO, "syncserver.rpc"):
            await peer.call("calc", "sum", a="a secret")
    (line,) = (text for text in caplog.messages if text.startswith("Invalid params"))
    assert line.startswith('Invalid params in RPC service "calc": sum from 127.0.0.1 (conn')
    assert "a secret" not in caplog.text


async def test_a_param_with_a_default_may_be_left_out() -> None:
    async with calculator() as (_, peer):
        assert (await peer.call("calc", "echo"))["data"] == "nothing"
        assert (await peer.call("calc", "echo", value=None))["data"] is None


@pytest.mark.parametrize(
    "message",
    [
        {"command": "quick", "callId": 1},
        {"params": {}, "callId": 1},
        {"command": 3, "params": {}, "callId": 1},
        {"command": None, "params": {}, "callId": 1},
        {"command": ["quick"], "params": {}, "callId": 1},
        {"callId": 1},
    ],
)
async def test_s6_a_message_that_is_no_call_is_answered_with_its_id(message: Any) -> None:
    async with calculator() as (_, peer):
        peer.send("calc", message)
        envelope = await peer.read()
        assert envelope["service"] == "calc"
        assert envelope["message"]["type"] == "error"
        assert envelope["message"]["callId"] == 1
        assert envelope["message"]["code"] == "malformed"


@pytest.mark.parametrize("message", [None, 3, "quick", True, [], ["quick", {}]])
async def test_s6_a_message_that_is_no_object_is_answered_without_an_id(message: Any) -> None:
    async with calculator() as (_, peer):
        peer.send("calc", message)
        answer = (await peer.read())["message"]
        assert (answer["type"], answer["callId"], answer["code"]) == ("error", None, "malformed")


@pytest.mark.parametrize("command", ["broken", "badly_typed", "broken_later", "unwritable"])
async def test_s7_what_goes_wrong_inside_is_told_to_the_log_alone(
    command: str, expected_log: ExpectedLog
) -> None:
    async with calculator() as (_, peer):
        line = f'Unhandled exception in RPC service "calc": {command}'
        with expected_log("syncserver.rpc", line):
            call_id = peer.begin_call("calc", command)
            answer = await peer.answer(call_id)
        assert answer == error("Internal error", "internal_error", call_id)
        assert (await peer.call("calc", "sum", a=1, b=1))["data"] == 2


async def test_what_a_command_waits_for_may_be_cancelled_and_is_told_to_the_log(
    expected_log: ExpectedLog,
) -> None:
    async with calculator() as (_, peer):
        with expected_log("syncserver.rpc", "Unhandled exception.*waits_for_what_is_cancelled"):
            answer = await peer.call("calc", "waits_for_what_is_cancelled")
        assert answer["code"] == "internal_error"
        assert (await peer.call("calc", "quick"))["data"] == "quick"


async def test_an_operand_of_the_wrong_type_is_an_internal_error_and_no_invalid_param(
    expected_log: ExpectedLog,
) -> None:
    async with calculator() as (_, peer):
        with expected_log("syncserver.rpc", "Unhandled exception"):
            answer = await peer.call("calc", "sum", a=1, b="x")
        assert answer["message"] == "Internal error"


async def test_a_failure_after_the_reply_is_logged_and_not_answered_twice(
    expected_log: ExpectedLog,
) -> None:
    async with calculator() as (_, peer):
        with expected_log("syncserver.rpc", "Unhandled exception"):
            assert (await peer.call("calc", "after_the_reply"))["data"] == "done"
        assert await peer.rest() == []


async def test_a_reply_that_json_cannot_carry_may_be_followed_by_another() -> None:
    class Stubborn(RPCService):
        @rpc_command
        def try_twice(self, req: Request) -> None:
            with pytest.raises(ValueError, match="no JSON"):
                req.reply({1: 2})
            assert not req.resolved
            req.reply("second")

    async with serving(Stubborn("stubborn")) as daemon:
        peer = await daemon.connect()
        assert (await peer.call("stubborn", "try_twice"))["data"] == "second"


async def test_a_refusal_carries_its_message_code_and_field() -> None:
    async with calculator() as (_, peer):
        assert (await peer.call("calc", "refuse"))["message"] == "Not today"
        answer = await peer.call("calc", "refuse_later")
        assert (answer["message"], answer["code"], answer["field"]) == (
            "Not today",
            "not_today",
            "day",
        )
        assert (await peer.call("calc", "refuse_in_place"))["message"] == "Not here"


async def test_s8_a_subclass_has_the_commands_of_its_parent_and_not_the_other_way() -> None:
    async with calculator() as (_, peer):
        assert (await peer.call("science", "negate", a=4))["data"] == -4
        assert (await peer.call("science", "sum", a=4, b=4))["data"] == 8
        assert (await peer.call("science", "quick"))["data"] == "quicker"
        assert (await peer.call("calc", "negate", a=4))["message"] == "Unknown command"
    assert Scientific.rpc_commands - Calculator.rpc_commands == {"negate"}


@pytest.mark.parametrize("consume", ["consume", "consume_later"])
async def test_s9_a_consumer_is_answered_when_the_producer_comes(consume: str) -> None:
    async with calculator() as (_, peer):
        waiting = peer.begin_call("calc", consume)
        assert await peer.rest() == []
        producing = peer.begin_call("calc", "produce", item="Hello")
        first, second = [(await peer.read())["message"] for _ in range(2)]
        assert first == {"type": "response", "callId": waiting, "data": "Hello"}
        assert second == {"type": "response", "callId": producing, "data": None}


async def test_an_asynchronous_command_that_returns_something_is_answered_at_once() -> None:
    async with calculator() as (_, peer):
        assert (await peer.call("calc", "consume_or_not", now=True))["data"] == "now"
        peer.begin_call("calc", "consume_or_not", now=False)
        assert await peer.rest() == []


async def test_calls_of_one_session_run_in_order_and_one_at_a_time() -> None:
    service = Calculator()
    async with serving(service) as daemon:
        peer, other = await daemon.connect(), await daemon.connect()
        slow = peer.begin_call("calc", "slow_sum", a=1, b=2)
        quick = peer.begin_call("calc", "quick")
        await until(lambda: service.order == ["slow begins"])
        assert (await other.call("calc", "quick"))["data"] == "quick"  # another session goes on
        service.order.clear()
        service.gate.set()
        answers = [(await peer.read())["message"] for _ in range(2)]
        assert [answer["callId"] for answer in answers] == [slow, quick]
        assert service.order == ["slow ends", "quick"]


async def test_a_waiting_asynchronous_command_does_not_hold_back_the_next_call() -> None:
    async with calculator() as (_, peer):
        peer.begin_call("calc", "consume")
        assert (await peer.call("calc", "quick"))["data"] == "quick"


async def test_a_reply_to_a_client_that_left_meanwhile_goes_nowhere() -> None:
    service = Calculator()
    async with serving(service) as daemon:
        peer = await daemon.connect()
        peer.begin_call("calc", "consume")
        await peer.rest()
        await peer.close()
        other = await daemon.connect()
        assert (await other.call("calc", "produce", item=1))["data"] is None


async def test_a_command_goes_on_when_its_client_leaves() -> None:
    service = Calculator()
    async with serving(service) as daemon:
        peer = await daemon.connect()
        peer.begin_call("calc", "slow_sum", a=1, b=2)
        peer.begin_call("calc", "quick")
        await until(lambda: service.order)
        await peer.close()
        service.gate.set()
        await until(lambda: service.order == ["slow begins", "slow ends"])
    assert len(service.order) == 2, "what was not begun is dropped"


class Nobody(Client):
    def tell(self, event: Any) -> None: ...


def request(command: str, params: Any, call_id: Any = None) -> Request:
    return Request(Calculator(), Nobody(), Command("calc", command, params, call_id))


def test_a_request_shows_what_was_called(caplog: pytest.LogCaptureFixture) -> None:
    req = request("sum", {"b": 2, "a": 1}, 7)
    assert (req.command, req.call_id, dict(req.params)) == ("sum", 7, {"a": 1, "b": 2})
    assert req.service.name == "calc"
    assert not req.resolved
    for level, debug in ((logging.INFO, False), (logging.DEBUG, True)):
        with caplog.at_level(level, "syncserver.rpc"):
            assert req.debug is debug


def test_s10_a_call_is_shown_on_one_line_of_bounded_length() -> None:
    assert request("log", {"name": "Ñandú"}).format_call() == 'log({"name":"Ñandú"})'
    assert format_call("log", {"value": None}) == 'log({"value":null})'
    assert "\n" not in format_call("log", {"text": "a\nb"})
    long = format_call("log", {"text": "x" * 200})
    assert long.startswith('log({"text":"xxx')
    assert long.endswith("xxx...)")
    assert len(long) == len("log()") + 100


def test_s10_the_params_of_a_shown_call_are_sorted() -> None:
    assert format_call("f", {"b": 1, "a": 2}) == 'f({"a":2,"b":1})'


@pytest.mark.parametrize(
    ("text", "cut"), [("", ""), ("abcde", "abcde"), ("abcdef", "ab..."), ("ññññññ", "ññ...")]
)
def test_s10_an_ellipsis_counts_in_the_length(text: str, cut: str) -> None:
    assert ellipsis(text, 5) == cut


class Labels(RPCService):
    """Has a command that is called as an attribute of every service."""

    @rpc_command
    def name(self, req: Request) -> str:
        return "a label"


async def test_a_command_may_be_called_as_an_attribute_of_the_service() -> None:
    async with serving(Labels("labels")) as daemon:
        peer = await daemon.connect()
        assert (await peer.call("labels", "name"))["data"] == "a label"
