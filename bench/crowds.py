"""Many clients at once: they connect, they resume after a cut, they idle."""

from __future__ import annotations

from bench.build import Missing, say
from bench.fanout import WAIT_SECONDS
from bench.load import Answer
from bench.peers import Peer, now_micros, publish, row
from bench.product import NAME, Product
from bench.stage import Stage, settle

CONNECT = "connect storm"
RESUME = "resume storm"
IDLE = "idle memory"
MISSED = 10
WARM = 50


def connect(stage: Stage) -> None:
    """Let clients connect, a hundred of them under way at a time; syncserver's subscribe too."""
    count = stage.plan.storm
    with stage.all(0) as peers:
        for peer in peers:
            peer.connect(WARM)
        for _ in stage.rounds(CONNECT):
            for peer in list(peers):
                with stage.trying(peers, peer, CONNECT):
                    _add(stage, CONNECT, peer, *_connected(peer, count))
                    peer.generator.drop()
                    settle(peer.server)


def _connected(peer: Peer, count: int) -> tuple[Answer, float]:
    start = peer.prepare(count)
    settle(peer.server)
    before = peer.server.cpu_micros()
    answer = start()
    return answer, peer.server.cpu_micros() - before


def resume(stage: Stage) -> None:
    """Cut all clients of syncserver, publish, and let them come back with their position."""
    count = stage.plan.storm
    if NAME not in stage.names:
        return
    peer = stage.product()
    try:
        peer.connect(count)
        for _ in stage.rounds(RESUME):
            answer, used = _resumed(peer, count)
            _add(stage, RESUME, peer, answer, used)
            share = answer.frames / (count * MISSED)
            stage.figures.add(RESUME, f"{count} clients", NAME, delivered=share)
    finally:
        peer.stop()


def _resumed(peer: Product, count: int) -> tuple[Answer, float]:
    with peer.poster() as poster:
        publish(peer, poster, [row(0, now_micros())])
        position = peer.generator.wait(count, WAIT_SECONDS).position
        # The position follows the frames, perhaps after the answer; what came before it is
        # replayed, so it has to be the newest.
        position = peer.generator.wait(1, 0.5).position or position
        peer.generator.drop()
        settle(peer.server)
        for number in range(MISSED):
            publish(peer, poster, [row(number, now_micros())])
    start = peer.acquiring(position, count)
    settle(peer.server)
    before = peer.server.cpu_micros()
    answer = start()
    return answer, peer.server.cpu_micros() - before


def _add(stage: Stage, scenario: str, peer: Peer, answer: Answer, used: float) -> None:
    if answer.failed:
        stage.figures.note(f"{peer.name}, {scenario}: {answer.failed} clients failed.")
    stage.figures.add(
        scenario,
        f"{answer.ready + answer.failed} clients",
        peer.name,
        cpu_us=used / max(answer.ready, 1),
        seconds=answer.micros / 1_000_000,
        p99_ms=answer.quantile(0.99) / 1000,
    )


def idle(stage: Stage) -> None:
    """Measure what a connected client holds of the server's memory; each server once."""
    for name in list(stage.names):
        count = stage.plan.idle // 10 if stage.is_slow(name) else stage.plan.idle
        say(f"{IDLE}: {name} with {count:,} clients")
        with stage.one(name) as peer:
            if peer is None:
                continue
            try:
                peer.connect(WARM)
                peer.generator.drop()
                settle(peer.server)
                before = peer.server.resident_bytes()
                peer.connect(count)
            except Missing as why:
                stage.figures.note(f"{name}, {IDLE}: {why}.")
                continue
            settle(peer.server)
            each = (peer.server.resident_bytes() - before) / count
            stage.figures.add(IDLE, f"{stage.plan.idle} clients", name, rss_bytes=each)
            if count != stage.plan.idle:
                stage.figures.note(f"{name}, {IDLE}: with {count:,} clients.")
