"""The real Prometheus: it scrapes a daemon, takes the rules, and answers what the board asks."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httputil import url_concat

from tests.support.daemon import serving
from tests.support.fronts import SECONDS, free_port, is_open, needs, replaced, running
from tests.test_metrics import ALERTS, DEPLOY, expressions, rules, traffic

CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
# What Grafana puts in the place of its variables.
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}


class Prometheus:
    """A server that runs."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def get(self, path: str, **parameters: str) -> Any:
        url = url_concat(f"http://127.0.0.1:{self._port}/api/v1/{path}", parameters)
        answer = await AsyncHTTPClient().fetch(url, raise_error=False)
        told = json.loads(answer.body)
        assert told["status"] == "success", told
        return told["data"]

    async def value(self, expression: str) -> list[Any]:
        """Return the samples that an expression has now."""
        found: list[Any] = (await self.get("query", query=expression))["result"]
        return found


@asynccontextmanager
async def prometheus(folder: Path, target: int) -> AsyncIterator[Prometheus]:
    """Run Prometheus with the how-to's files, asking often."""
    program, port = needs("prometheus"), free_port()
    (folder / ALERTS.name).write_text(ALERTS.read_text("utf-8"))
    often = {
        "scrape_interval: 15s": "scrape_interval: 250ms",
        "evaluation_interval: 15s": "evaluation_interval: 250ms",
        "127.0.0.1:5801": f"127.0.0.1:{target}",
    }
    (folder / CONFIG.name).write_text(replaced("prometheus/prometheus.yml", often))
    command = [
        program,
        f"--config.file={folder / CONFIG.name}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    async with running(command, folder / "log", lambda: is_open(port)):
        await answering(f"http://127.0.0.1:{port}/-/ready")
        yield Prometheus(port)


async def answering(url: str) -> None:
    """Wait until an address answers with 200."""
    async with asyncio.timeout(SECONDS):
        while (await AsyncHTTPClient().fetch(url, raise_error=False)).code != 200:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "command",
    [("check", "config", CONFIG), ("test", "rules", Path(__file__).with_name("alerts.yml"))],
    ids=["are read", "do what is said of them"],
)
def test_the_rules_by_prometheus_own_judgement(command: tuple[str | Path, ...]) -> None:
    program = needs("promtool", "prometheus")
    done = subprocess.run([program, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.seconds(60)
async def test_prometheus_has_an_answer_for_every_panel_and_for_every_rule(tmp_path: Path) -> None:
    async with serving() as daemon:
        await traffic(daemon)
        await daemon.post("datasync_backend", "publishDeltas", deltas=[{"type": "no delta"}])
        async with prometheus(tmp_path, daemon.server.backend_port) as server:
            await scraped(server, times=4)
            for place, text in asked().items():
                assert await server.value(text), place
            (group,) = (await server.get("rules"))["groups"]
            found = {rule["name"]: rule["health"] for rule in group["rules"]}
            assert found == {rule["alert"]: "ok" for rule in rules()}


async def scraped(server: Prometheus, times: int) -> None:
    """Wait until the target has been asked some times, and the rules evaluated."""
    async with asyncio.timeout(3 * SECONDS):  # it begins after five seconds
        while True:
            count = await server.value("count_over_time(up[1m])")
            groups = (await server.get("rules"))["groups"]
            is_known = all(rule["health"] != "unknown" for one in groups for rule in one["rules"])
            if count and int(count[0]["value"][1]) >= times and groups and is_known:
                return
            await asyncio.sleep(0.1)


def asked() -> dict[str, str]:
    """Return what the board asks for, and both sides of what the alerts compare."""
    found = {}
    for place, expression in expressions().items():
        text = " ".join(expression.split())
        if place.startswith("panel "):
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            assert "$" not in text, place
            found[place] = text
        elif place.startswith("alert "):
            sides = re.fullmatch(r"(.+) (?:>|<|==) (.+)", text)
            assert sides, place
            found |= {f"{place}, {side}": side for side in sides.groups()}
    return found
