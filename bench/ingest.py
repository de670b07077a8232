"""Ingest: what a POST costs the server with nobody listening, alone and with a hundred deltas."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.peers import Peer, Row, now_micros, row
from bench.server import Poster
from bench.stage import Stage, settle

SCENARIO = "ingest"
SINGLE = "a delta in a POST"
BATCH = 100
BATCHED = f"{BATCH} deltas in a POST"


def run(stage: Stage) -> None:
    """Measure all servers, without clients."""
    with stage.all(0) as peers:
        for _ in stage.rounds(SCENARIO):
            for case, deltas in ((SINGLE, 1), (BATCHED, BATCH)):
                for peer in list(peers):
                    rows = [row(number, now_micros()) for number in range(deltas)]
                    if len(peer.bodies(rows)) > 1:
                        continue
                    with stage.trying(peers, peer, f"{SCENARIO}, {case}"):
                        cost = _cost(peer, rows, stage.plan.seconds)
                        stage.figures.add(SCENARIO, case, peer.name, cpu_us=cost)


def _cost(peer: Peer, rows: Sequence[Row], seconds: float) -> float:
    (body,) = peer.bodies(rows)
    with peer.poster() as poster:
        _post_for(seconds / 2, poster, body)  # for those that compile what runs often
        settle(peer.server)
        before = peer.server.cpu_micros()
        posts = _post_for(seconds, poster, body)
        return (peer.server.cpu_micros() - before) / (posts * len(rows))


def _post_for(seconds: float, poster: Poster, body: bytes) -> int:
    """Post one after the other for so long; return how many there were."""
    posts, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        poster.post(body)
        posts += 1
    return posts
