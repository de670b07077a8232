"""The clients: a process of its own that opens WebSockets, counts frames and times them.

It is ``load.c``, compiled on the spot, or ``lean.py`` where there is no compiler. Both take the
same commands, which stand at the top of ``load.c``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.build import BENCH, BUILD, ROOT, Missing, program
from bench.figures import merged, quantile
from bench.server import cpu_micros

LEAN = (sys.executable, "-m", "bench.lean")


@dataclass(frozen=True)
class Answer:
    """What the generator counted since its last answer; times in microseconds."""

    ready: int
    failed: int
    frames: int
    others: int
    bytes: int
    lost: int
    micros: int
    position: str
    latency: Sequence[tuple[float, int]]
    last: Sequence[tuple[int, float]]

    def quantile(self, part: float) -> float:
        """Return a quantile of the latencies."""
        return quantile(merged([self.latency]), part)


def command(folder: Path = BUILD) -> tuple[Sequence[str], str]:
    """Return how to start the generator, and what there is to say about it."""
    try:
        return (str(program(BENCH / "load.c", folder)),), "C"
    except Missing as why:
        return LEAN, f"Python, which may be the bottleneck: {why}"


class Generator:
    """The generator's process, spoken to in lines."""

    def __init__(self, start: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            start, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def connect(
        self,
        port: int,
        path: str,
        count: int,
        *,
        dialect: str = "plain",
        texts: Path | None = None,
        mark: str = "",
        window: int = 100,
        seconds: int = 120,
    ) -> Answer:
        """Open clients, each of which sends its texts; return when all are ready."""
        line = f"connect {port} {path} {count} {window} {seconds} {dialect}"
        return self._ask(f"{line} {texts} {mark}" if texts else line)

    def wait(self, frames: int, seconds: float) -> Answer:
        """Return when so many frames came since the last answer, or so many seconds passed."""
        return self._ask(f"await {frames} {seconds}")

    def drop(self) -> Answer:
        """Close all clients at once, without a word."""
        return self._ask("close")

    def cpu_micros(self) -> float:
        """Return the processor time that it has used."""
        return cpu_micros(self._process.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: stopped, none of its clients reads."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """End it."""
        self._process.communicate()

    def _ask(self, line: str) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError(f"the load generator ended at: {line}")
        found: Mapping[str, object] = json.loads(said)
        return Answer(**found)  # type: ignore[arg-type]
