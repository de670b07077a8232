"""Fan-out: one delta to everybody; alone, sixteen at once, as fast as it can, and at a pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from bench.figures import merged, quantiles
from bench.load import Answer
from bench.peers import Peer, Row, now_micros, publish, row
from bench.stage import Stage, settle

SCENARIO = "fan-out"
JOINED = 16
PER_SECOND = 20
WAIT_SECONDS = 30
MOST_POSTS = 2000
# A server that needs more than this share of a core for the pace is not asked to keep it.
BUSY = 0.85
# A server that takes more than this many times the time of a measurement has one round.
MOST_TIMES = 20

ALONE = "one by one"
SIXTEEN = f"{JOINED} at once"
BURST = "burst"
PACED = f"{PER_SECOND} a second"
Metrics = Mapping[str, float]


def case(clients: int, mode: str) -> str:
    """Return the name of one load."""
    return f"N={clients} {mode}"


def run(stage: Stage) -> None:
    """Measure all servers with each number of clients."""
    for clients in stage.plan.fan_out:
        with stage.all(clients) as peers:
            modes = _modes(stage, with_pace=clients == stage.plan.paced)
            for peer in list(peers):
                with stage.trying(peers, peer, "the first frames"):
                    modes[ALONE](peer)  # for those that compile what runs often
            for number in stage.rounds(f"{SCENARIO} N={clients:,}"):
                for mode, measure in modes.items():
                    for peer in list(peers):
                        load = case(clients, mode)
                        if number and _is_too_long(stage, load, peer):
                            continue
                        began = time.monotonic()
                        with stage.trying(peers, peer, load):
                            metrics = {**measure(peer), "took_s": time.monotonic() - began}
                            stage.figures.add(SCENARIO, load, peer.name, **metrics)


def _modes(stage: Stage, *, with_pace: bool) -> Mapping[str, Callable[[Peer], Metrics]]:
    seconds = stage.plan.seconds
    modes: dict[str, Callable[[Peer], Metrics]] = {
        ALONE: lambda peer: one_by_one(peer, 1, seconds),
        SIXTEEN: lambda peer: one_by_one(peer, JOINED, seconds),
    }
    if with_pace:
        modes[BURST] = lambda peer: burst(peer, seconds)
        modes[PACED] = lambda peer: _paced_if_it_can(stage, peer)
    return modes


def _is_too_long(stage: Stage, load: str, peer: Peer) -> bool:
    """Tell whether a server took so long for a load that one round has to do."""
    took = stage.figures.get(SCENARIO, load, peer.name, "took_s")[:1]
    if not took or took[0] < MOST_TIMES * stage.plan.seconds + stage.plan.paced_seconds:
        return False
    stage.figures.note(
        f"{peer.name}, {SCENARIO} {load}: one round only, which took {took[0]:.0f} s."
    )
    return True


class Meter:
    """Counts the processor time of a server, and that of its clients, from now on."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._server = peer.server.cpu_micros()
        self._clients = peer.generator.cpu_micros()

    def metrics(self, answers: Iterable[Answer], expected: int) -> Metrics:
        """Return what each of the frames took that the clients have counted."""
        answers = list(answers)
        server = self._peer.server.cpu_micros() - self._server
        clients = self._peer.generator.cpu_micros() - self._clients
        frames = sum(answer.frames for answer in answers)
        return {
            "cpu_us": server / max(frames, 1),
            "clients_us": clients / max(frames, 1),
            **quantiles(merged(answer.latency for answer in answers)),
            "delivered": frames / expected,
        }


def one_by_one(
    peer: Peer, at_once: int, seconds: float, make: Callable[[int, int], Row] = row
) -> Metrics:
    """Publish when everybody has what was published before.

    :param make: makes a row from a number and the time.
    """
    with peer.poster() as poster:

        def step(number: int) -> Answer:
            sent = now_micros()
            rows = [make(number, sent) for _ in range(at_once)]
            publish(peer, poster, rows)
            return peer.generator.wait(peer.clients * at_once, WAIT_SECONDS)

        began = time.monotonic()
        step(0)
        count = _posts(seconds, time.monotonic() - began)
        meter = Meter(peer)
        answers = [step(number) for number in range(count)]
        return meter.metrics(answers, count * at_once * peer.clients)


def burst(peer: Peer, seconds: float) -> Metrics:
    """Publish one after the other as fast as POSTs are answered, then wait for all."""
    with peer.poster() as poster:

        def post(number: int) -> None:
            publish(peer, poster, [row(number, now_micros())])

        began = time.monotonic()
        post(0)
        peer.generator.wait(peer.clients, WAIT_SECONDS)
        count = _posts(seconds, time.monotonic() - began)
        meter = Meter(peer)
        for number in range(count):
            post(number)
        answer = peer.generator.wait(count * peer.clients, WAIT_SECONDS + seconds)
        return meter.metrics([answer], count * peer.clients)


def paced(
    peer: Peer,
    seconds: float,
    make: Callable[[int, int], Row] = row,
    reached: Callable[[int], int] | None = None,
) -> tuple[Metrics, Answer]:
    """Publish at a pace; latency counts from when a delta was due, not from when it was sent.

    :param make: makes the row from a number and the time.
    :param reached: tells from the number how many clients get it; all, if not given.
    """
    count = int(seconds * PER_SECOND)
    expected = sum(reached(n) if reached else peer.clients for n in range(count))
    with peer.poster() as poster:
        meter, start = Meter(peer), now_micros() + 20_000
        for number in range(count):
            due = start + number * 1_000_000 // PER_SECOND
            time.sleep(max(0, due - now_micros()) / 1_000_000)
            publish(peer, poster, [make(number, due)])
        answer = peer.generator.wait(expected, WAIT_SECONDS)
        return meter.metrics([answer], expected), answer


def _paced_if_it_can(stage: Stage, peer: Peer) -> Metrics:
    costs = stage.figures.get(SCENARIO, case(peer.clients, ALONE), peer.name, "cpu_us")
    share = costs[-1] * peer.clients * PER_SECOND / 1_000_000
    if share > BUSY:
        stage.figures.note(
            f"{peer.name}: not paced; {PER_SECOND} a second to {peer.clients:,} clients"
            " is more than it can send."
        )
        return {}
    metrics, answer = paced(peer, stage.plan.paced_seconds)
    settle(peer.server)
    last = merged([[(micros, 1) for _, micros in answer.last]])
    return {**metrics, "last_p50_ms": quantiles(last)["p50_ms"]}


def _posts(seconds: float, each: float) -> int:
    return max(1, min(MOST_POSTS, int(seconds / each)))
