"""Metrics: what a scrape says, who may ask, and that rules and boards ask for what there is."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import parser
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.websocket import websocket_connect

from syncserver.apikeys import ApiKey
from syncserver.app import PROTOCOLS, SOCKJS, _load
from syncserver.config import Config
from syncserver.counters import Tally
from syncserver.errors import CloseCode
from syncserver.handlers import websocket
from syncserver.metrics import gathering as metrics
from syncserver.metrics.looplag import LoopLag
from syncserver.metrics.measures import METRICS, PREFIX, REFUSALS, Sample
from syncserver.process.pressure import Pressure
from syncserver.registry import ServiceRegistry
from syncserver.siblings import Siblings
from tests.conftest import ExpectedLog
from tests.support.daemon import KEY, Daemon, serving, settings, until
from tests.test_doors import read
from tests.test_events import ids_of, open_name, opened
from tests.test_workers import page, post, workers

DEPLOY = Path(__file__).parents[1] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
BOARD = DEPLOY / "grafana" / "syncserver.json"

# A metric in an expression, with its matchers if it has any.
SELECTOR = re.compile(rf"({PREFIX}\w+)(?:\{{([^}}]*)\}})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\bby \(([^)]*)\)")
FROM_OUTSIDE = {"instance", "job", "le", "worker"}


def insert(number: int) -> dict[str, Any]:
    return {"type": "insert", "model": "Task", "data": {"id": number}}


async def scrape(daemon: Daemon, **headers: str) -> HTTPResponse:
    return await daemon.request("/metrics", method="GET", headers={"X-Backend-Key": "", **headers})


def families(response: HTTPResponse) -> dict[str, Family]:
    """Return the families of a scrape by the names that they have in the table, prefix and all."""
    assert response.code == 200
    found = {}
    for family in parser.text_string_to_metric_families(response.body.decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert name not in found, "the samples of a metric stand together"
        found[name] = family
    return found


def value(found: Mapping[str, Family], name: str, **labels: str) -> float:
    """Return the one sample with these labels."""
    bare = name.removesuffix("_count").removesuffix("_sum")
    family = found[PREFIX + (bare if bare in METRICS else name)]
    samples = [one for one in family.samples if one.name == PREFIX + name]
    [sample] = [one for one in samples if labels.items() <= one.labels.items()]
    return float(sample.value)


async def traffic(daemon: Daemon) -> None:
    """Do a bit of everything."""
    peer = await daemon.connect()
    token = await daemon.authorize(("AllTasks", None))
    await peer.call("datasync", "acquireSubscription", token=token, position=None)
    await daemon.publish(insert(1), insert(2))
    await peer.notice("delta")
    await peer.rest()  # an error
    await peer.call("pubsub", "subscribe", channel="c")
    await daemon.post("pubsub_backend", "publish", channel="c", message="m")
    url = f"http://127.0.0.1:{daemon.server.frontend_port}/ws"
    await daemon._client.fetch(url, raise_error=False)
    other = await daemon.connect()
    await other.close()
    await daemon.authorize(("AllTasks", None))  # which nobody acquires
    lag = daemon.frontend.registered_services["datasync"].activity
    assert lag is not None
    await until(lambda: bool(lag.lag_seconds.cumulative()[-1]))
    await until(lambda: len(daemon.frontend.sessions) == 1)


async def test_a_scrape_has_every_metric_of_the_table_and_no_other() -> None:
    async with serving() as daemon:
        await traffic(daemon)
        found = families(await scrape(daemon))
        assert set(found) == {PREFIX + name for name in METRICS}
        for name, metric in METRICS.items():
            family = found[PREFIX + name]
            assert (family.type, family.documentation) == (metric.kind, metric.help)
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(metric.labels), sample


async def test_a_scrape_says_what_happened() -> None:
    async with serving() as daemon:
        await traffic(daemon)
        found = families(await scrape(daemon))
    assert value(found, "sessions", transport="websocket", protocol="native") == 1
    assert value(found, "sessions_opened_total", transport="websocket") == 2
    assert value(found, "sessions_closed_total", code="", reason="peer") == 1
    assert value(found, "connections_accepted_total", door="frontend") == 3
    assert value(found, "connections", door="frontend") >= 1
    assert value(found, "connections_limit", door="backend") > 1
    assert value(found, "connections_refused_total", reason="handshake") == 1
    assert value(found, "errors_total", door="frontend", code="unknown_service") == 1
    assert value(found, "publishes_total", service="datasync", result="ok") == 1
    assert value(found, "published_deltas_total", service="datasync") == 2
    assert value(found, "publish_seconds_count", service="datasync") == 1
    assert value(found, "deliveries_total", service="datasync") == 1
    assert value(found, "deliveries_total", service="pubsub") == 1
    assert value(found, "delivery_lag_seconds_count", service="datasync") == 1
    assert value(found, "subscriptions", service="datasync") == 1
    assert value(found, "subscriptions", service="pubsub") == 1
    assert value(found, "stream_offset", service="datasync") == 1
    assert value(found, "engine_stale", service="datasync") == 0
    assert value(found, "grants_waiting", service="datasync") == 1
    assert value(found, "outbox_bytes") == 0
    assert value(found, "build_info", engine="memory") == 1
    assert 0 < value(found, "open_fds") < value(found, "max_fds")
    assert value(found, "resident_memory_bytes") > 1e6
    assert value(found, "frames_sent_total") >= value(found, "writes_total") > 0


async def test_each_way_to_come_is_counted_under_its_name() -> None:
    async with serving() as daemon:
        sessions = daemon.server._sessions
        port = daemon.server.frontend_port
        plain = await daemon.connect()
        url = f"http://127.0.0.1:{port}/ws/sockjs/000/polling/xhr"
        opening = await daemon._client.fetch(url, method="POST", body="")
        assert opening.body == b"o\n"
        over = await websocket_connect(f"ws://127.0.0.1:{port}/ws/sockjs/000/over/websocket")
        assert await over.read_message() == "o"
        stream = await open_name(daemon, await daemon.authorize(("AllTasks", None)))
        async with opened(daemon, stream) as events:
            await plain.rest()
            await daemon.publish(insert(1))
            assert await ids_of(events, 1) == [1]
            found = families(await scrape(daemon))
            samples = found[f"{PREFIX}sessions"].samples
            assert {
                (one.labels["transport"], one.labels["protocol"], one.value) for one in samples
            } == {
                ("websocket", "native", 1),
                ("sockjs_websocket", "native", 1),
                ("sockjs_http", "native", 1),
                ("events", "events", 1),
            }
        over.close()
        while await over.read_message() is not None:
            pass
        await until(lambda: len(daemon.frontend.sessions) == 2)
        (closed,) = (
            one
            for one in families(await scrape(daemon))[f"{PREFIX}sessions_closed_total"].samples
            if one.labels["reason"] == "peer"
        )
        assert closed.value == 2
        for polling in sessions:  # which nobody polls any more
            polling.close()


async def test_whoever_asks_for_openmetrics_gets_it() -> None:
    async with serving() as daemon:
        await traffic(daemon)
        response = await scrape(daemon, Accept="application/openmetrics-text; version=1.0.0")
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        found = list(openmetrics.text_string_to_metric_families(response.body.decode()))
        assert len(found) == len(METRICS)


async def test_the_outboxes_are_looked_at_when_somebody_asks() -> None:
    async with serving() as daemon:
        first, second = [await daemon.connect() for _ in range(2)]
        await first.rest()
        await second.rest()
        one, two = daemon.frontend.sessions
        one.pending, two.pending = 300, 500
        found = families(await scrape(daemon))
        one.pending = two.pending = 0
        assert (value(found, "outbox_bytes"), value(found, "outbox_max_bytes")) == (800, 500)


async def test_known_labels_are_there_before_they_are_counted() -> None:
    async with serving() as daemon:
        found = families(await scrape(daemon))
        assert value(found, "publishes_total", service="datasync", result="unavailable") == 0
        assert value(found, "errors_total", door="backend", code="unauthorized") == 0
        assert value(found, "connections_refused_total", reason="origin") == 0
        kinds = [sample.labels for sample in found[f"{PREFIX}sessions"].samples]
        ways = {kind["transport"] for kind in kinds}
        assert ways == {"websocket", "sockjs_websocket", "sockjs_http", "events"}
        assert {kind["protocol"] for kind in kinds} == {"native", "events"}
        assert value(found, "sessions_closed_total", code="4008", reason="slow") == 0
        closed = found[f"{PREFIX}sessions_closed_total"].samples
        assert len(closed) == len(CloseCode) + 1
        assert value(found, "refetches_total", service="datasync", reason="trimmed") == 0
        assert not any(
            sample.labels.get("service") == "pubsub"
            for sample in found[f"{PREFIX}refetches_total"].samples
        ), "what has no tokens has no metrics of them"


def test_refusals_are_counted_by_a_known_reason() -> None:
    sources = (DEPLOY.parent / "syncserver").rglob("*.py")
    said = re.findall(r'refused\.add\("(\w+)"\)', "".join(path.read_text() for path in sources))
    assert said
    registry = ServiceRegistry()
    registry.scarce = True
    said.append(registry.refusal or "")
    registry.draining = True
    said.append(registry.refusal or "")
    assert {*said, *websocket._REASONS.values()} <= set(REFUSALS)


async def test_a_close_code_of_an_application_has_its_number() -> None:
    async with serving() as daemon:
        peer = await daemon.connect()
        await peer.rest()
        next(iter(daemon.frontend.sessions)).close(4999)
        await peer.end()
        found = families(await scrape(daemon))
        assert value(found, "sessions_closed_total", code="4999", reason="application") == 1


@pytest.mark.parametrize("name", [*PROTOCOLS, *SOCKJS.values()])
def test_protocols_are_called_in_metrics_what_they_are_in_the_table(name: str) -> None:
    assert _load(PROTOCOLS[name][1]).name == name


# Who may ask.


async def test_without_the_package_a_scrape_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "syncserver.metrics.exposition", raising=False)
    async with serving() as daemon:
        response = await scrape(daemon)
        assert response.code == 501
        assert "pip install 'syncserver[metrics]'" in response.body.decode()
        await daemon.publish(insert(1))


def guarded(*keys: ApiKey, **backend: Any) -> Config:
    config = settings()
    given = replace(config.backend, api_keys=(*config.backend.api_keys, *keys), **backend)
    return replace(config, backend=given)


async def test_a_key_can_be_asked_for_which_may_be_a_bearer_token() -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    inspecting = replace(ApiKey.of("i" * 32), operations=frozenset({"inspect"}))
    publishing = replace(ApiKey.of("p" * 32), operations=frozenset({"publish"}))
    over = replace(ApiKey.of("o" * 32), expires=past)
    config = guarded(inspecting, publishing, over, metrics_need_key=True)
    async with serving(config=config) as daemon:
        for headers, status in (
            ({}, 401),
            ({"X-Backend-Key": "wrong"}, 401),
            ({"Authorization": f"Basic {KEY}"}, 401),
            ({"Authorization": f"Bearer {'o' * 32}"}, 401),
            ({"Authorization": f"Bearer {'p' * 32}"}, 403),
            ({"Authorization": f"bearer {'i' * 32}"}, 200),
            ({"X-Backend-Key": KEY}, 200),
        ):
            response = await scrape(daemon, **headers)
            assert response.code == status, headers
            assert (response.headers.get("WWW-Authenticate") == "Bearer") == (status == 401)
        counted = dict(daemon.backend.traffic.errors.items())
        assert counted == {"unauthorized": 4, "forbidden": 1}


async def test_who_guesses_at_metrics_guesses_at_the_backend_too() -> None:
    config = guarded(metrics_need_key=True)
    config = replace(config, limits=replace(config.limits, wrong_keys_per_minute=1))
    async with serving(config=config) as daemon:
        guesses = [scrape(daemon, **{"X-Backend-Key": "wrong"}) for _ in range(4)]
        answers = await asyncio.gather(*guesses)
        assert {answer.code for answer in answers} == {401, 429}
        for answer in answers:
            assert ("Retry-After" in answer.headers) == (answer.code == 429)
        assert (await scrape(daemon, **{"X-Backend-Key": KEY})).code == 200
        answer = await daemon.request(headers={"X-Backend-Key": "wrong"})
        assert answer.code == 429
        assert daemon.backend.traffic.errors["too_many_wrong_keys"] >= 3


def test_that_a_key_is_needed_is_read_from_the_settings(tmp_path: Path) -> None:
    assert not read(tmp_path, "").backend.metrics_need_key
    assert read(tmp_path, "[backend]\nmetrics_need_key = true").backend.metrics_need_key


async def test_where_browsers_are_a_key_is_always_asked_for() -> None:
    async with serving(config=guarded(on_frontend=True)) as daemon:
        assert (await scrape(daemon)).code == 401
        found = families(await scrape(daemon, **{"X-Backend-Key": KEY}))
        doors = found[f"{PREFIX}connections_accepted_total"].samples
        assert [sample.labels["door"] for sample in doors] == ["frontend"], "it is one door"


async def test_there_is_nothing_of_it_where_browsers_are() -> None:
    async with serving() as daemon:
        for path in ("/metrics", "/measures"):
            url = f"http://127.0.0.1:{daemon.server.frontend_port}{path}"
            assert (await daemon._client.fetch(url, raise_error=False)).code == 404


async def test_a_failed_scrape_is_told_to_the_log_alone(
    monkeypatch: pytest.MonkeyPatch, expected_log: ExpectedLog
) -> None:
    async with serving() as daemon:
        monkeypatch.setattr(
            daemon.server.metrics._measures.__class__, "read", lambda self: [Sample("no", {}, 1)]
        )
        with expected_log("syncserver.backend", "A scrape failed"):
            response = await scrape(daemon)
        assert (response.code, response.body) == (500, b"Internal Server Error\n")


# Several processes.


@pytest.mark.seconds(60)
async def test_whichever_process_is_asked_answers_for_all(tmp_path: Path) -> None:
    async with workers(tmp_path) as daemon:
        peers = [await page(daemon) for _ in range(8)]
        await post(daemon, "publishDeltas", deltas=[insert(1)])
        for peer in peers:
            await peer.notice("delta")
        url = daemon.line("backend").removesuffix("/backend") + "/metrics"
        request = HTTPRequest(url, headers={"Connection": "close"})
        for _ in range(6):  # some to each
            found = families(await AsyncHTTPClient().fetch(request))
            assert [value(found, "worker_up", worker=number) for number in "01"] == [1, 1]
            assert value(found, "build_info", engine="redis", worker="0") == 1
            delivered = [
                value(found, "deliveries_total", service="datasync", worker=n) for n in "01"
            ]
            assert sum(delivered) == 8
            offsets = [value(found, "stream_offset", service="datasync", worker=n) for n in "01"]
            assert offsets == [1, 1]
            published = found[f"{PREFIX}published_deltas_total"].samples
            assert sum(sample.value for sample in published) == 1
            assert all("worker" in one.labels for all_ in found.values() for one in all_.samples)
        for peer in peers:
            await peer.close()


@pytest.mark.parametrize("listens", [False, True])
async def test_a_process_that_does_not_answer_is_not_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    monkeypatch.setattr(metrics, "_SIBLING_SECONDS", 0.05)
    siblings = Siblings(tmp_path, 1, 2)
    registries = (ServiceRegistry(), ServiceRegistry())
    asked = metrics.Metrics(registries, "redis", {}, Pressure(None), siblings)
    with socket.socket(socket.AF_UNIX) as silent:
        if listens:
            silent.bind(siblings.path(0))
            silent.listen()
        text, _ = await asked.scrape("")
    assert b'syncserver_worker_up{worker="0"} 0.0' in text
    assert b'syncserver_worker_up{worker="1"} 1.0' in text
    assert b'syncserver_draining{worker="0"}' not in text


# The loop.


async def test_a_loop_that_is_held_up_is_seen() -> None:
    lag = LoopLag(tick_seconds=0.01)
    lag.start()
    held_up = time.monotonic() + 0.06
    while time.monotonic() < held_up:
        pass
    await until(lambda: bool(lag.histogram.cumulative()[-1]))
    lag.stop()
    assert lag.histogram.seconds >= 0.03
    assert lag._timer is not None
    assert lag._timer.cancelled()
    LoopLag().stop()


# Labels have a bound.


async def test_labels_do_not_grow_with_what_is_sent() -> None:
    async with serving() as daemon:
        for registry in (daemon.frontend, daemon.backend):
            registry.traffic.errors = Tally()
            for number in range(300):
                registry.traffic.errors.add(f"code_{number}")
                daemon.frontend.traffic.refused.add(f"reason_{number}")
        found = families(await scrape(daemon))
        codes = [one.labels["code"] for one in found[f"{PREFIX}errors_total"].samples]
        known = {"internal_error", "unauthorized", "too_many_wrong_keys"}
        assert len(codes) == 2 * 101 + len(known) + 1
        for door in ("frontend", "backend"):
            assert value(found, "errors_total", door=door, code="other") == 200
        assert value(found, "connections_refused_total", reason="other") == 400


# Rules for alerts, and the board.


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text("utf-8"))
    return found


def expressions() -> dict[str, str]:
    """Return all expressions by where they stand."""
    of_rules = {f"alert {rule['alert']}": rule["expr"] for rule in rules()}
    of_board = {
        f"panel {panel['title']} {number}": target["expr"]
        for panel in board()["panels"]
        for number, target in enumerate(panel.get("targets", ()))
    }
    variables = {
        f"variable {one['name']}": one["definition"]
        for one in board()["templating"]["list"]
        if "definition" in one
    }
    return of_rules | of_board | variables


def missing(expression: str, exposed: Iterable[Any]) -> list[str]:
    """Return what an expression asks for that a scrape does not have."""
    by_name: dict[str, list[Mapping[str, str]]] = {}
    for sample in exposed:
        by_name.setdefault(sample.name, []).append(sample.labels)
    wrong = []
    labels: set[str] = set(FROM_OUTSIDE)
    for name, matchers in SELECTOR.findall(expression):
        if name not in by_name:
            wrong.append(name)
            continue
        known = set(by_name[name][0])
        labels |= known
        for label, operator, wanted in MATCHER.findall(matchers):
            if label not in known | FROM_OUTSIDE:
                wrong.append(f"{name}{{{label}}}")
            elif operator == "=" and not any(one[label] == wanted for one in by_name[name]):
                wrong.append(f'{name}{{{label}="{wanted}"}}')
    for group in GROUPING.findall(expression):
        wrong += [f"by ({word})" for word in re.findall(r"\w+", group) if word not in labels]
    return wrong


async def test_alerts_and_board_ask_for_what_a_daemon_says() -> None:
    async with serving() as daemon:
        await traffic(daemon)
        found = families(await scrape(daemon))
    exposed = [sample for family in found.values() for sample in family.samples]
    asked = expressions()
    assert {place: wrong for place, one in asked.items() if (wrong := missing(one, exposed))} == {}
    assert sum(bool(SELECTOR.search(expression)) for expression in asked.values()) > 40


def test_the_board_shows_every_metric() -> None:
    shown = {
        re.sub("_bucket$", "", name)
        for place, expression in expressions().items()
        if place.startswith("panel ")
        for name, _ in SELECTOR.findall(expression)
    }
    assert {PREFIX + name for name in METRICS} == shown


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        (f"{PREFIX}a > 1", []),
        (f"{PREFIX}b > 1", [f"{PREFIX}b"]),
        (f'rate({PREFIX}a{{x="1", instance=~"$i"}}[5m])', []),
        (f'{PREFIX}a{{y="1"}}', [f"{PREFIX}a{{y}}"]),
        (f'{PREFIX}a{{x="2"}}', [f'{PREFIX}a{{x="2"}}']),
        (f"sum by (instance, x) ({PREFIX}a)", []),
        (f"sum by (y) ({PREFIX}a)", ["by (y)"]),
    ],
)
def test_what_is_not_there_is_found_in_an_expression(expression: str, wrong: list[str]) -> None:
    samples = [Sample(f"{PREFIX}a", {"x": "1"}, 1)]
    assert missing(expression, samples) == wrong


def test_an_alert_says_what_is_wrong_and_for_whom() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert re.fullmatch("Syncserver[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in board()["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]
        assert panel["type"] == "row" or panel["description"].endswith(".")
    ids = [panel["id"] for panel in board()["panels"]]
    assert len(set(ids)) == len(ids)


def unit_of(expression: str) -> str:
    """Return the unit, by Grafana's name, of what an expression gives."""
    for found, unit in (
        (r"histogram_quantile|time\(\) -", "s"),
        (r"rate\(\w+_bytes_total", "Bps"),
        (r"_bytes\b", "bytes"),
        (r"cpu_seconds", "short"),
        (r"rate\(", "ops"),
    ):
        if re.search(found, expression):
            return unit
    return "short"


def test_panels_have_the_unit_of_what_they_show_and_the_variables_that_there_are() -> None:
    found = board()
    assert found["schemaVersion"] >= 36, "a data source is an object"
    variables = {one["name"] for one in found["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(found))) == {
        *variables,
        "__rate_interval",
        "__all",
    }
    for panel in found["panels"]:
        targets = panel.get("targets", ())
        assert len({target["refId"] for target in targets}) == len(targets), panel["title"]
        for target in targets:
            unit = panel["fieldConfig"]["defaults"]["unit"]
            assert unit == unit_of(target["expr"]), panel["title"]


def test_the_configuration_names_the_rules_and_the_door() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    assert config["rule_files"] == [ALERTS.name]
    (job,) = config["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"127.0.0.1:{Config().backend.port}"]
    assert f'up{{job="{job["job_name"]}"}}' in rules()[0]["expr"]


def test_the_tests_of_rules_raise_each_alert() -> None:
    text = Path(__file__).with_name("alerts.yml").read_text("utf-8")
    tests = [case for one in yaml.safe_load(text)["tests"] for case in one["alert_rule_test"]]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in tests} <= names
    assert {case["alertname"] for case in tests if case.get("exp_alerts")} == names
    series = set(re.findall(rf"'{PREFIX}(\w+?)(?:_bucket)?{{", text))
    assert series <= set(METRICS)
