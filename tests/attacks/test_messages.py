"""What a client may say in good frames: JSON that is none, calls that make no sense, too much."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

import pytest

from tests.support.attacked import Target, Wire, masked

GOOD_POSITION = "aaaaaaaaaaaaaaaa.1.bbbbbbbb"

NO_JSON = {
    "nested": ("[" * 30_000 + "]" * 30_000, "too_deep"),
    "nested objects": ('{"a":' * 10_000 + "1" + "}" * 10_000, "too_deep"),
    "never closed": ("[" * 60_000, "too_deep"),
    "many empty lists": ("[" + "[]," * 20_000 + "[]]", "malformed"),
    "many numbers": ("[" + "1," * 30_000 + "1]", "malformed"),
    "4,300 digits": ('{"service":' + "9" * 4_300 + "}", "bad_number"),
    "60,000 digits": ("9" * 60_000, "bad_number"),
    "2^53": ('{"service":"x","message":9007199254740992}', "bad_number"),
    "-2^53": ('{"service":"x","message":-9007199254740992}', "bad_number"),
    "2^64": ('{"service":"x","message":18446744073709551616}', "bad_number"),
    "1e400": ('{"service":"x","message":1e400}', "bad_number"),
    "a long exponent": ('{"service":"x","message":1e' + "9" * 5_000 + "}", "bad_number"),
    "NaN": ('{"service":"x","message":NaN}', "invalid_json"),
    "Infinity": ('{"service":"x","message":-Infinity}', "invalid_json"),
    "a key twice": ('{"service":"x","service":"y","message":1}', "duplicate_key"),
    "a key twice, escaped": ('{"service":"x","serv\\u0069ce":"y","message":1}', "duplicate_key"),
    "a key twice, deep": ('{"service":"x","message":[{"a":1,"a":2}]}', "duplicate_key"),
    "half a pair": ('{"service":"x","message":"\\ud800"}', "invalid_json"),
    "the other half": ('{"service":"x","message":"\\udc00\\ud800"}', "invalid_json"),
    "NUL": ('{"service":"x\u0000","message":1}', "invalid_json"),
    "a mark of byte order": ('\ufeff{"service":"x","message":1}', "invalid_json"),
    "a list": ("[]", "malformed"),
    "a number": ("1", "malformed"),
    "null": ("null", "malformed"),
    "a string": ('"service"', "malformed"),
    "two values": ('{"service":"x","message":1}{}', "invalid_json"),
    "a comma at the end": ('{"service":"x","message":1,}', "invalid_json"),
    "quotes of one": ("{'service':'x','message':1}", "invalid_json"),
    "nothing": ("", "invalid_json"),
    "blanks": (" " * 60_000, "invalid_json"),
    "quotes": ('"' * 60_000, None),
    "backslashes": ('"' + "\\" * 60_000, "invalid_json"),
    "no message": ('{"service":"x"}', "malformed"),
    "no service": ('{"message":1}', "malformed"),
    "a service that is a list": ('{"service":[],"message":1}', "malformed"),
    "a service of 60,000 characters": (
        '{"service":"' + "x" * 60_000 + '","message":1}',
        "unknown_service",
    ),
    "the service of the backend": (
        '{"service":"datasync_backend","message":{"command":"publishDeltas","params":{}}}',
        "unknown_service",
    ),
    "__proto__": ('{"service":"__proto__","message":{"__proto__":1}}', "unknown_service"),
}


@pytest.mark.parametrize("what", NO_JSON)
def test_what_is_no_message_is_answered_and_not_echoed(target: Target, what: str) -> None:
    text, code = NO_JSON[what]
    with target.websocket() as wire:
        for first in (0x81, 0x82):
            wire.send(masked(first, text.encode()))
            opcode, payload = wire.frame()
            assert opcode == 0x81
            assert len(payload) < 300
            message = json.loads(payload)["message"]
            assert message["type"] == "error"
            assert code in (None, message["code"])


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "command",
        {},
        {"command": 1, "params": {}},
        {"command": None, "params": {}},
        {"command": ["acquireSubscription"], "params": {}},
        {"command": "acquireSubscription"},
        {"command": "acquireSubscription", "params": []},
        {"command": "acquireSubscription", "params": None},
        {"command": "acquireSubscription", "params": {}},
        {"command": "acquireSubscription", "params": {"token": "x", "else": 1}},
        {"command": "acquireSubscription", "params": {"req": 1, "self": 2, "token": "x"}},
        {"command": "__init__", "params": {}},
        {"command": "__class__", "params": {}},
        {"command": "process_message_from", "params": {}},
        {"command": "close", "params": {}},
        {"command": "subscriptions", "params": {}},
        {"command": "publishDeltas", "params": {"deltas": []}},
        {"command": "authorizeSubscription", "params": {"items": []}},
        {"command": "x" * 50_000, "params": {}},
        {"command": "a\u0000b", "params": {}},
    ],
)
def test_a_call_that_makes_no_sense_is_answered(target: Target, message: Any) -> None:
    with target.websocket() as wire:
        wire.say(json.dumps({"service": "datasync", "message": message}))
        answer = wire.read()
        assert answer["type"] == "error"
        assert answer["code"] in ("malformed", "invalid_params", "unknown_command")
        assert len(json.dumps(answer)) < 300
        assert "Traceback" not in answer["message"]


@pytest.mark.parametrize(
    "call_id", [0, False, "", None, [], {}, [[["deep"]]], "x" * 30_000, 1.5, "\u2028", {"a": [1]}]
)
def test_a_call_id_is_whatever_json_there_is(target: Target, call_id: Any) -> None:
    call = {"command": "none", "params": {}, "callId": call_id}
    with target.websocket() as wire:
        for _ in range(2):  # the same again is no concern of ours
            wire.say(json.dumps({"service": "datasync", "message": call}))
            assert wire.read()["callId"] == call_id


TOKENS: list[Any] = [
    None, 0, True, [], {}, "", "x", "x" * 32, "x" * 50_000, "../../etc/passwd", "a b", "\u0000",
    "'--", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.",
    "eyJhbGciOiJIUzI1NiIsImtpZCI6Ii4uLy4uL2tleSJ9.e30.x", "ticket:0000000000000000",
    "\ud83d\ude00" * 100, "%s%s%n", "{0.__class__}",
]  # fmt: skip


def test_a_token_that_is_none_opens_nothing(target: Target) -> None:
    with target.websocket() as wire:
        for token in TOKENS:
            for command in ("acquireSubscription", "cancelSubscription"):
                answer = wire.call(command, token=token)
                assert answer["code"] in ("invalid_token", "no_such_subscription"), token
        assert wire.call("acquireSubscription", token=target.authorize())["type"] == "response"


POSITIONS: list[Any] = [
    0, -1, [], {}, True, "", "0", "latest", "a.1", "a.-1.b",
    "a." + "9" * 30 + ".b", "x" * 50_000, "a.1.b\n", "\u0661", "a.1.b'; drop", GOOD_POSITION * 3,
]  # fmt: skip


def test_a_position_that_no_daemon_gave_is_refused_and_costs_nothing(target: Target) -> None:
    token = target.authorize()
    with target.websocket() as wire:
        for position in POSITIONS:
            answer = wire.call("acquireSubscription", token=token, position=position)
            assert answer["code"] == "invalid_position", position
        assert wire.call("acquireSubscription", token=token, position=None)["type"] == "response"


def test_a_position_that_was_made_up_gives_no_data(target: Target) -> None:
    with target.websocket() as wire:
        real = wire.call("acquireSubscription", token=target.authorize(), position=None)
        epoch, offset, mark = real["data"]["position"].split(".")
        made_up = {
            GOOD_POSITION: "epoch",
            f"{epoch}.{int(offset) + 10**6}.{mark}": "rollback",
            f"{epoch}.{offset}.{mark[::-1]}x": "fork",
            f"{epoch}.0.aaaaaaaa": "trimmed",
        }
        for position in made_up:
            token = target.authorize()
            answer = wire.call("acquireSubscription", token=token, position=position)
            assert answer["code"] in ("refetch", "invalid_position"), answer


def test_a_position_opens_nothing_without_its_token(target: Target) -> None:
    with target.websocket() as owner, target.websocket() as thief:
        token = target.authorize("CommentsByBlogEntry", 7)
        position = owner.call("acquireSubscription", token=token, position=None)["data"]["position"]
        for stolen in ("x" * 32, position):
            answer = thief.call("acquireSubscription", token=stolen, position=position)
            assert answer["type"] == "error"
        other = target.authorize("CommentsByBlogEntry", "nothing")
        answer = thief.call("acquireSubscription", token=other, position=position)
        assert answer["type"] == "response"
        thief.plain.settimeout(0.1)
        told: set[str] = set()
        with contextlib.suppress(TimeoutError):
            while True:
                told.add(thief.read()["type"])
        assert told <= {"position"}, "what the token is not for is told"


def test_more_subscriptions_than_allowed_are_refused_and_the_others_live(target: Target) -> None:
    with target.websocket() as wire:
        answers = [wire.call("acquireSubscription", token=target.authorize()) for _ in range(12)]
        assert [answer["type"] for answer in answers] == ["response"] * 8 + ["error"] * 4
        assert {answer.get("code") for answer in answers[8:]} == {"subscription_limit"}
        row = {"id": 1}
        target.post("publishDeltas", deltas=[{"type": "insert", "model": "Task", "data": row}])
        assert wire.read()["delta"]["data"] == row


def test_a_token_is_acquired_once_however_many_try(target: Target) -> None:
    token = target.authorize()
    answers: list[Any] = []

    def acquire() -> None:
        with target.websocket() as wire:
            answers.append(wire.call("acquireSubscription", token=token))

    threads = [threading.Thread(target=acquire) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer["type"] for answer in answers].count("response") == 1


def test_subscribing_and_leaving_in_every_order_leaves_nothing_behind(target: Target) -> None:
    before = target.sockets
    for number in range(100):
        token = target.authorize()
        wire = target.websocket()
        wire.begin("acquireSubscription", token=token, position=None)
        if number % 3:
            wire.begin("cancelSubscription", token=token)
        if number % 2:
            wire.begin("acquireSubscription", token=token, position=None)
        (wire.reset if number % 5 else wire.close)()
    assert target.settles(before)


def test_channels_without_end_are_refused(target: Target) -> None:
    with target.websocket() as wire:
        codes = [channel_call(wire, number) for number in range(20)]
    assert codes[:8] == [None] * 8
    assert set(codes[8:]) == {"subscription_limit"}


def channel_call(wire: Wire, channel: Any) -> str | None:
    call = {"command": "subscribe", "params": {"channel": channel}, "callId": 1}
    wire.say(json.dumps({"service": "pubsub", "message": call}))
    code: str | None = wire.read().get("code")
    return code


def test_messages_that_take_long_to_read_end_with_4013(target: Target) -> None:
    inside = ",".join('{"a":[]}' for _ in range(6_500))
    with target.websocket() as wire:
        for _ in range(200):
            wire.say('{"service":"none","message":[' + inside + "]}")
        assert wire.close_code() in (4013, None)


def test_what_javascript_trips_over_is_data(target: Target) -> None:
    row = {"__proto__": {"x": 1}, "constructor": 1, "$where": "1", "toString": None, "id": 1}
    with target.websocket() as wire:
        wire.call("acquireSubscription", token=target.authorize())
        delta = {"type": "insert", "model": "Task", "data": row}
        assert target.post("publishDeltas", deltas=[delta])["type"] == "response"
        assert wire.read()["delta"]["data"] == row


def test_keys_that_collide_cost_what_others_cost(target: Target) -> None:
    modulus = (1 << 61) - 1  # of Python's hash of integers
    colliding = [{"dealer": "CommentsByBlogEntry", "query": n} for n in (0, modulus // 512, -1, -2)]
    assert target.post("authorizeSubscription", items=colliding)["type"] == "response"
    text = "[" + ",".join(str(n * 4_096) for n in range(6_000)) + "]"
    with target.websocket() as wire:
        wire.say('{"service":"none","message":' + text + "}")
        assert wire.read()["code"] in ("unknown_service", "too_many_elements")
