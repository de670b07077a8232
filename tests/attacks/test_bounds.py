"""Bounds that are small here, so that an attack reaches them; a daemon of its own, and a canary."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.attacked import KEY, LATENCY_SECONDS, Target, attacked, envelope, key_header

MOST_GRANTS = 50
MOST_GUESSES = 20
MOST_REQUESTS = 10


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    limits = {
        "max_grants": MOST_GRANTS,
        "grant_seconds": 1,
        "wrong_keys_per_minute": MOST_GUESSES,
        "requests_per_second": MOST_REQUESTS,
    }
    given = {f"limits__{name}": str(value) for name, value in limits.items()}
    given["frontend__trusted_proxies"] = "127.0.0.1"
    with attacked(tmp_path_factory.mktemp("bounded"), **given) as target:
        yield target


def test_guesses_without_end_are_429_and_a_right_key_of_the_same_address_passes_at_once(
    target: Target,
) -> None:
    guess = f"POST /backend HTTP/1.1\r\n{key_header().replace(KEY, 'x' * 40)}".encode()
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(target.connect("backend")) for _ in range(20)]
        for wire in wires:
            wire.send(4 * (guess + b"Content-Length: 2\r\n\r\n{}"))
        for _ in range(20):  # the canary has one too
            answer = target.post("publishDeltas", deltas=[])
            assert answer["type"] == "response"
        heads = []
        for wire in wires:
            for _ in range(4):
                head = wire.head().lower()
                wire.exactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
                heads.append(head)
    refused = [head for head in heads if head.startswith(b"http/1.1 429")]
    assert len(heads) - len(refused) in range(MOST_GUESSES, 2 * MOST_GUESSES + 3)
    assert all(b"\r\nretry-after: " in head for head in refused)


@pytest.mark.parametrize("named", [False, True])
def test_requests_without_end_are_429_by_connection_or_by_the_address_that_a_proxy_names(
    target: Target, named: bool
) -> None:
    lines = "X-Forwarded-For: 8.8.8.8\r\n" if named else ""
    one = f"GET /ws/sockjs HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()
    good = 0
    with target.connect() as wire:
        wire.send(one * 20 * MOST_REQUESTS)
        while (head := wire.head()).startswith(b"HTTP/1.1 200"):
            wire.exactly(len("Welcome to SockJS!\n"))
            good += 1
        assert head.startswith(b"HTTP/1.1 429")
        assert b"\r\nRetry-After: 1" in head
        assert good >= 5 * MOST_REQUESTS
        with target.ask(one * 4 * MOST_REQUESTS) as other:
            heads = []
            while len(heads) < 4 * MOST_REQUESTS and b" 429 " not in (head := other.head()):
                other.exactly(len("Welcome to SockJS!\n"))
                heads.append(head)
        assert (len(heads) < 4 * MOST_REQUESTS) == named


def test_tokens_without_end_are_429_until_some_expire(target: Target) -> None:
    items = [{"dealer": "AllTasks", "query": None}]
    body = json.dumps(envelope("datasync_backend", "authorizeSubscription", {"items": items}))
    post = f"POST /backend HTTP/1.1\r\n{key_header()}Content-Length: {len(body)}\r\n\r\n{body}"
    heads = []
    with target.connect("backend") as wire:
        while len(heads) < 10 * MOST_GRANTS:
            wire.send(post.encode())
            head = wire.head().lower()
            wire.exactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
            heads.append(head)
    good = [head for head in heads if head.startswith(b"http/1.1 200")]
    assert all(b"\r\nretry-after: 1" in head for head in heads if head not in good)
    assert len(good) >= MOST_GRANTS - 1  # there may be the canary's
    assert len(good) < len(heads)
    while target.request(body)[0] == 429:
        target.canary.catch_up()


def test_readers_that_use_up_the_memory_are_closed_and_then_all_is_as_before(
    tmp_path: Path,
) -> None:
    most, readers = 160 << 20, 60
    limits = {"max_process_bytes": most, "max_outbox_bytes": 8 << 20, "max_outboxes_bytes": 1 << 30}
    given = {f"limits__{name}": str(value) for name, value in limits.items()}
    with attacked(tmp_path, **given) as target, contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(target.websocket(buffer=4096)) for _ in range(readers)]
        for number, wire in enumerate(stalled):  # what one waits for, no other does
            item = {"dealer": "AllTasks", "query": None, "tag": str(number)}
            token = target.post("authorizeSubscription", items=[item])["data"]
            target.secrets.append(token)
            wire.call("acquireSubscription", token=token, position=None)
        row = {"id": 1, "text": "x" * 20_000}
        delta = {"type": "insert", "model": "Task", "data": row}
        while is_ready(target):
            target.post("publishDeltas", deltas=[delta])
            assert target.memory < 3 * most  # it looks once a second
        item = {"dealer": "AllTasks", "query": None}
        answer = target.post("authorizeSubscription", items=[item])
        assert answer["code"] == "unavailable"
        while not is_ready(target):
            target.canary.catch_up()
            assert target.memory < 3 * most  # it looks once a second
        target.canary.catch_up()
        assert max(target.canary.latencies) < LATENCY_SECONDS
        assert target.memory < most
        target.websocket().close()
    assert "slow sessions: memory is scarce" in target.log.read_text("utf-8")


def is_ready(target: Target) -> bool:
    """Tell whether the daemon wants more to do."""
    with target.ask(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n", "backend") as wire:
        return wire.status() == 200
