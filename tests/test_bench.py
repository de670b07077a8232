"""The benchmark measures what it says."""

from __future__ import annotations

import contextlib
import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from docutils.core import publish_string

from bench import crowds, docs, fanout, ingest, load, matches, matching, plots, report
from bench.build import PROGRAMS, Missing, program
from bench.engines import Measured, node, rate
from bench.engines import report as engines_report
from bench.figures import Figures, Spread, merged, quantile
from bench.peers import KINDS, TEXT_BYTES, Kind, added, row, text
from bench.product import NAME
from bench.stage import FULL, QUICK, Stage
from bench.targets import TARGETS, Target

TINY = replace(QUICK, rounds=1, seconds=0.01, fan_out=(10,), paced=10, paced_seconds=0.1)


def test_quantiles_are_of_all_that_was_counted() -> None:
    histogram = merged([[(1, 50), (3, 49)], [(9, 1)], []])
    assert [quantile(histogram, part) for part in (0.5, 0.51, 0.99, 0.999)] == [1, 3, 3, 9]


def test_ratios_are_taken_within_a_round_and_told_by_their_median(tmp_path: Path) -> None:
    figures = Figures()
    for own, other in ((2, 4), (1, 3), (10, 100)):
        figures.add("s", "c", "own", cpu_us=own)
        figures.add("s", "c", "other", cpu_us=other)
    figures.note("once")
    figures.note("once")
    figures.write(tmp_path / "r" / "figures.json")
    again = Figures.read(tmp_path / "r" / "figures.json")
    for each in (figures, again):
        over, under = ("s", "c", "other", "cpu_us"), ("s", "c", "own", "cpu_us")
        assert each.ratios(over, under) == Spread(3, 2, 10)
        assert each.ratios(over, ("s", "c", "nobody", "cpu_us")) is None
        assert each.notes == ["once"]


def test_runs_of_different_loads_are_shown_together() -> None:
    one, other = Figures(), Figures()
    for number, figures in enumerate((one, other)):
        figures.about = {"date": f"day {number}", "versions": {f"v{number}": "1"}}
        figures.add("both", "c", "s", cpu_us=number)
        figures.add(f"only {number}", "c", "s", cpu_us=number)
    one.add("both", "c", "not measured again", cpu_us=0)
    one.join(other)
    assert {(series.scenario, series.server): series.values for series in one} == {
        ("only 0", "s"): [0],
        ("only 1", "s"): [1],
        ("both", "s"): [1],
    }
    assert one.about == {"date": "day 0", "versions": {"v0": "1", "v1": "1"}}


@pytest.mark.parametrize(
    ("median", "verdict"), [(2, "both"), (4, "yes"), (6, "no"), (None, "not measured")]
)
def test_a_target_is_met_by_the_median(median: float | None, verdict: str) -> None:
    target = Target("what", 5, 3, lambda figures: None, at_most=True)
    assert target.verdict(None if median is None else Spread(median, 0, 9)) == verdict


def as_a_full_run_has_it() -> Figures:
    """Return figures with the names that a full run gives them."""
    figures = Figures()
    servers = [NAME, *KINDS]
    for server in servers:
        for clients in FULL.fan_out:
            for mode in (fanout.ALONE, fanout.SIXTEEN):
                figures.add(fanout.SCENARIO, fanout.case(clients, mode), server, cpu_us=1)
        case = fanout.case(FULL.paced, fanout.PACED)
        figures.add(fanout.SCENARIO, case, server, cpu_us=1, p99_ms=1)
        for case in (ingest.SINGLE, ingest.BATCHED):
            figures.add(ingest.SCENARIO, case, server, cpu_us=1)
        figures.add(crowds.IDLE, f"{FULL.idle} clients", server, rss_bytes=1)
    for name in matching.MAKERS:
        for size in FULL.matching:
            case = matches.matching_case(name, size)
            figures.add(matches.MATCHING, case, NAME, us_per_delta=1, each_us=1)
    case = f"memory, {matches.MATCHING_MEMORY} filters"
    figures.add(matches.MATCHING, case, NAME, distinct_bytes=1, repeated_bytes=1)
    return figures


def test_a_full_run_measures_every_target_and_every_picture_of_the_documentation() -> None:
    figures = as_a_full_run_has_it()
    unmeasured = [target.what for target in TARGETS if target.reached(figures) is None]
    assert unmeasured == []
    drawn = {name for name, _, _ in plots.pictures(figures)}
    assert {plots.slug(shown) for shown in plots.SHOWN} <= drawn


def test_every_frame_is_as_long_as_every_other() -> None:
    assert {len(text(row(n, s, o))) for n in (0, 10**6) for s in (1, 10**12) for o in (0, 99)} == {
        TEXT_BYTES
    }


def made(start: Sequence[str], limit: Kind) -> Figures:
    stage = Stage(TINY, start, [NAME, "epoll", "absent"], {"epoll": limit, "absent": _absent()})
    stage.figures.about = {"date": "a day", "machine": "m", "python": "p", "rounds": 1}
    stage.figures.about["generator"] = "C"
    fanout.run(stage)
    return stage.figures


def _absent() -> Kind:
    def command() -> Sequence[str]:
        raise Missing("it is not to be had")

    return Kind(command)


def test_a_fan_out_reaches_everybody_and_what_is_missing_is_named(
    tmp_path: Path,
) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (on Debian and Ubuntu: apt install gcc libc6-dev)")
    limit = str(program(PROGRAMS / "limit.c", tmp_path))
    figures = made(load.command(tmp_path)[0], Kind(lambda: (limit,)))
    for mode in (fanout.ALONE, fanout.SIXTEEN, fanout.BURST, fanout.PACED):
        for server in (NAME, "epoll"):
            case = fanout.case(10, mode)
            assert figures.get(fanout.SCENARIO, case, server, "delivered") == [1]
            assert figures.get(fanout.SCENARIO, case, server, "cpu_us")[0] > 0
    assert figures.missing == {"absent": "it is not to be had"}
    assert "missing: absent: it is not to be had" in report.whole(figures)
    docs.write(figures, tmp_path)
    page = (tmp_path / docs.PAGE).read_text("utf-8")
    publish_string(page, writer="null", settings_overrides={"halt_level": 2, "report_level": 5})
    assert "Missing: absent: it is not to be had." in page
    assert all(target.what in page for target in TARGETS)


def test_a_picture_is_well_formed_and_has_a_bar_for_each_server() -> None:
    bars = [("<own>", Spread(2, 1, 3)), ("other", Spread(1, 1, 1))]
    picture = ET.fromstring(plots.svg("a & b", bars, "x"))
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 2


def test_a_server_can_be_added_on_the_command_line() -> None:
    name, kind = added("mine=./serve --port 0")
    assert (name, kind.command()) == ("mine", ["./serve", "--port", "0"])
    with pytest.raises(SystemExit, match="NAME=COMMAND"):
        added("mine")


def test_what_does_not_start_is_missing_with_its_last_words() -> None:
    stage = Stage(
        TINY, load.LEAN, ["broken"], {"broken": Kind(lambda: ("sh", "-c", "echo no >&2"))}
    )
    with stage.all(1) as peers:
        assert peers == []
    assert stage.figures.missing == {"broken": "it did not start; no"}


def test_every_server_of_the_table_has_its_program_and_its_package() -> None:
    wanted = (PROGRAMS / "requirements.txt").read_text() + (PROGRAMS / "package.json").read_text()
    for name in KINDS.keys() - {"nchan", "epoll"}:
        assert name in wanted
    assert json.loads((PROGRAMS / "package.json").read_text())["private"]


def test_the_report_has_medians_and_their_ratios_to_the_first_engine() -> None:
    results = {
        "memory": Measured(single=[10, 1000, 20], batched=[100, 200, 300]),
        "other": Measured(single=[5, 10, 2000], batched=[50, 50, 1]),
    }
    _, memory, other = engines_report(results).splitlines()
    assert memory.split() == ["memory", "20", "(1.00x)", "200", "(1.00x)"]
    assert other.split() == ["other", "10", "(0.50x)", "50", "(0.25x)"]


def test_matching_is_measured_with_figures_for_json() -> None:
    results = matching.run((50, 100), rounds=2, names=("equality", "contains"))
    assert [(one["name"], one["size"]) for one in results] == [
        (name, size) for name in ("equality", "contains") for size in (50, 100)
    ]
    for one in json.loads(json.dumps(results)):
        assert 1 < one["matches"] <= one["candidates"] < 50
        assert min(one["us_per_delta"], one["insert_us"], one["remove_us"], one["ratio"]) > 0
    assert len(matching.report(results).splitlines()) == 5
    repeated = matching.memory(matching.MAKERS["equality"], 1000, holders=100)
    assert 0 < repeated < matching.memory(matching.MAKERS["equality"], 1000) < 2000


async def test_a_rate_is_of_deltas_that_reached_every_node() -> None:
    async with contextlib.AsyncExitStack() as held:
        nodes = [await held.enter_async_context(node("memory"))]
        assert await rate(nodes, 10, 0.2) > 0
        assert nodes[0].counted
        assert not nodes[0].counted % 10
