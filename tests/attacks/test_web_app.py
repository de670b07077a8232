"""What the web app may be made to post: batches, tokens and filters that make no sense."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.support.attacked import KEY, Target, envelope, key_header

ROW = {"id": 1, "text": "x"}
INSERT = {"type": "insert", "model": "Task", "data": ROW}


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        "x",
        KEY[:-1],
        KEY + "x",
        KEY.upper(),
        KEY * 30,
        "\u00e9" * 40,
        "null",
        "*",
        f'"{KEY}"',
    ],
)
def test_a_key_that_is_none_is_refused(target: Target, key: str) -> None:
    body = json.dumps(envelope("datasync_backend", "publishDeltas", {"deltas": [INSERT]}))
    status, message = target.request(body, **{"X-Backend-Key": key})
    assert (status, message["code"]) == (401, "unauthorized")
    assert KEY not in json.dumps(message)


def test_guesses_in_any_number_are_refused_alike(target: Target) -> None:
    with target.connect("backend") as wire:
        body = b"{}"
        head = f"POST /backend HTTP/1.1\r\n{key_header().replace(KEY, 'x' * 40)}"
        one = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        for _ in range(500):
            wire.send(one)
            assert wire.status() == 401
            wire._read = b""


BATCHES: dict[str, tuple[Any, str]] = {
    "no list": ({}, "invalid_delta"),
    "null": (None, "invalid_delta"),
    "a text": ("insert", "invalid_delta"),
    "a text inside": (["insert"], "invalid_delta"),
    "the last is wrong": ([INSERT] * 999 + [{**INSERT, "model": "none"}], "unknown_model"),
    "one too many": ([INSERT] * 1_001, "too_many"),
    "empty ones": ([{}] * 1_000, "invalid_delta"),
    "no model": ([{"type": "insert", "data": ROW}], "invalid_delta"),
    "a model that is a list": ([{**INSERT, "model": ["Task"]}], "invalid_delta"),
    "another type": ([{**INSERT, "type": "upsert"}], "invalid_delta"),
    "no row": ([{"type": "insert", "model": "Task"}], "invalid_delta"),
    "a row that is a list": ([{**INSERT, "data": [1]}], "invalid_delta"),
    "an update without the old row": (
        [{"type": "update", "model": "Task", "newData": ROW}],
        "invalid_delta",
    ),
    "an update whose old row lacks a field": (
        [{"type": "update", "model": "Task", "newData": ROW, "oldData": {"id": 1}}],
        "invalid_delta",
    ),
    "a version that is a text": ([{**INSERT, "version": "1"}], "invalid_delta"),
    "a field too many": ([{**INSERT, "else": 1}], "invalid_delta"),
    "no key": ([{"type": "insert", "model": "Comment", "data": {"id": 1}}], "invalid_delta"),
}


@pytest.mark.parametrize("what", BATCHES)
def test_a_batch_that_is_wrong_anywhere_applies_nothing(target: Target, what: str) -> None:
    deltas, code = BATCHES[what]
    with target.websocket() as wire:
        wire.call("acquireSubscription", token=target.authorize())
        answer = target.post("publishDeltas", deltas=deltas)
        assert answer["code"] == code
        assert len(json.dumps(answer)) < 300
        if what == "the last is wrong":
            assert answer["index"] == 999
        last = {**ROW, "id": "last"}
        assert target.post("publishDeltas", deltas=[{**INSERT, "data": last}])["type"] == "response"
        assert wire.read()["delta"]["data"] == last


@pytest.mark.parametrize("size", [2_000_000, 5_000_000, 50_000_000])
def test_a_body_of_any_size_is_413(target: Target, size: int) -> None:
    head = f"POST /backend HTTP/1.1\r\n{key_header()}Content-Length: {size}\r\n\r\n"
    with target.ask(head.encode() + b" " * min(size, 3_000_000), "backend") as wire:
        assert wire.status() == 413


def test_a_million_deltas_are_refused_before_they_are_read(target: Target) -> None:
    status, message = target.request('{"a":[' + "1," * 500_000 + "1]}")
    assert (status, message["code"]) == (400, "too_many_elements")


def test_models_without_end_are_unknown(target: Target) -> None:
    for number in range(100):
        answer = target.post("publishDeltas", deltas=[{**INSERT, "model": f"model {number}"}])
        assert answer["code"] == "unknown_model"


def test_tokens_that_nobody_acquires_cost_little(target: Target) -> None:
    items = [{"dealer": "AllTasks", "query": None}]
    body = json.dumps(envelope("datasync_backend", "authorizeSubscription", {"items": items}))
    post = f"POST /backend HTTP/1.1\r\n{key_header()}Content-Length: {len(body)}\r\n\r\n{body}"
    with target.connect("backend") as wire:
        for _ in range(1_000):
            wire.send(post.encode())
            head = wire.head()
            assert head.startswith(b"HTTP/1.1 200")
            wire.exactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))


def test_an_item_that_is_wrong_registers_none(target: Target) -> None:
    good = {"dealer": "AllTasks", "query": None}
    for bad, code in (
        ({}, "invalid_item"),
        (None, "invalid_item"),
        ({"dealer": "none", "query": 1}, "no_such_dealer"),
        ({"dealer": "__class__", "query": 1}, "no_such_dealer"),
        ({"dealer": ["AllTasks"], "query": 1}, "invalid_item"),
        ({"dealer": "FilteredTasks", "query": ["bad"]}, "invalid_query"),
        ({**good, "tag": 5}, "invalid_item"),
        ({**good, "else": 5}, "invalid_item"),
    ):
        answer = target.post("authorizeSubscription", items=[good, bad])
        assert (answer["code"], answer["index"]) == (code, 1)
    assert target.post("authorizeSubscription", items=[good] * 65)["code"] == "too_many"


def deep(depth: int) -> Any:
    expression: Any = ["==", "a", 1]
    for _ in range(depth):
        expression = ["not", expression]
    return expression


FILTERS: dict[str, Any] = {
    "many nodes": ["or", *[["==", "a", n] for n in range(10_000)]],
    "65 nodes": ["or", *[["==", "a", n] for n in range(65)]],
    "deep": deep(9),
    "very deep": deep(50),
    "an unknown operator": ["regex", "a", "(a+)+$"],
    "another": ["match", "a", ".*"],
    "code": ["eval", "a", "__import__('os')"],
    "an operator that is a list": [["=="], "a", 1],
    "nothing": [],
    "no operands": ["and"],
    "an operand too few": ["==", "a"],
    "an operand too many": ["==", "a", 1, 2],
    "not twice": ["not", ["==", "a", 1], ["==", "a", 2]],
    "a field that is a number": ["==", 1, 1],
    "an empty field": ["==", "", 1],
    "empty steps": ["==", "a..b", 1],
    "null": None,
    "a text": "a == 1",
    "an object": {"a": 1},
    "in of no list": ["in", "a", 1],
}


@pytest.mark.parametrize("what", FILTERS)
def test_a_filter_that_is_none_is_refused_when_a_token_is_asked_for(
    target: Target, what: str
) -> None:
    items = [{"dealer": "FilteredTasks", "query": FILTERS[what]}]
    answer = target.post("authorizeSubscription", items=items)
    assert answer["code"] == "invalid_query"
    assert len(answer["message"]) < 300


@pytest.mark.parametrize("path", ["__class__", "__class__.__init__", "a.0", "x" * 10_000, "$where"])
def test_a_path_is_looked_up_in_the_row_alone(target: Target, path: str) -> None:
    token = target.authorize("FilteredTasks", ["exists", path])
    with target.websocket() as wire:
        wire.call("acquireSubscription", token=token)
        for row in ({"id": 1, "a": [1]}, {"id": 2, **nested(path)}):
            target.post("publishDeltas", deltas=[{**INSERT, "data": row}])
        assert wire.read()["delta"]["data"]["id"] == 2


def nested(path: str) -> Any:
    value: Any = 1
    for step in reversed(path.split(".")):
        value = {step: value}
    return value


def test_many_different_filters_cost_the_others_nothing(target: Target) -> None:
    tokens = [target.authorize("FilteredTasks", [">", "n", number]) for number in range(64)]
    wires = [target.websocket() for _ in range(8)]
    try:
        for number, token in enumerate(tokens):
            wires[number % 8].call("acquireSubscription", token=token)
        for number in range(50):
            deltas = [{**INSERT, "data": {"id": number, "n": number}}]
            assert target.post("publishDeltas", deltas=deltas)["type"] == "response"
    finally:
        for wire in wires:
            wire.close()


def test_publishing_without_pause_slows_the_publishers_alone(target: Target) -> None:
    with target.websocket(buffer=4096) as slow:
        slow.call("acquireSubscription", token=target.authorize())
        deltas = [{**INSERT, "data": {"id": number, "text": "x" * 500}} for number in range(100)]

        def publish() -> None:
            for _ in range(25):
                assert target.post("publishDeltas", deltas=deltas)["type"] == "response"

        threads = [threading.Thread(target=publish) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_the_same_idempotency_key_from_many_at_once_counts_once(target: Target) -> None:
    body = json.dumps(envelope("datasync_backend", "publishDeltas", {"deltas": [INSERT]}))
    with target.websocket() as wire:
        wire.call("acquireSubscription", token=target.authorize())
        threads = [
            threading.Thread(target=target.request, args=(body,), kwargs={"Idempotency-Key": "k1"})
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other = json.dumps(envelope("datasync_backend", "publishDeltas", {"deltas": [INSERT] * 2}))
        assert target.request(other, **{"Idempotency-Key": "k1"})[0] == 409
        last = {**ROW, "id": "last"}
        target.post("publishDeltas", deltas=[{**INSERT, "data": last}])
        seen = [wire.read()["delta"]["data"] for _ in range(2)]
        assert seen == [ROW, last]
