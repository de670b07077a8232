"""Bounds that are small here, so that an attack reaches them; a daemon of its own, and a canary."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.support.attacked import KEY, Target, attacked, envelope, key_header

MOST_GRANTS = 50
MOST_GUESSES = 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    limits = {"max_grants": MOST_GRANTS, "grant_seconds": 1, "wrong_keys_per_minute": MOST_GUESSES}
    given = {f"limits__{name}": str(value) for name, value in limits.items()}
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
