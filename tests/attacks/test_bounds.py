"""Bounds that are small here, so that an attack reaches them; a daemon of its own, and a canary."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.attacked import Target, attacked, envelope, key_header

MOST_GRANTS = 50


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    limits = {"max_grants": MOST_GRANTS, "grant_seconds": 1}
    given = {f"limits__{name}": str(value) for name, value in limits.items()}
    with attacked(tmp_path_factory.mktemp("bounded"), **given) as target:
        yield target


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
