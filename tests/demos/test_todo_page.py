"""The to-do demo as its users see it, in a real browser."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.demos.chromium import Page, chromium, find
from tests.demos.running import App, attached, dead_url, running

pytestmark = [pytest.mark.seconds(120)]

LIVE = "document.querySelector('#status').dataset.state === 'live'"
FETCHES = (
    "performance.getEntriesByType('resource').filter((e) => e.name.includes('/tasks?')).length"
)
RECONNECT_SECONDS = 40.0


@pytest.fixture(autouse=True)
def browser_is_here() -> None:
    find()


@asynccontextmanager
async def two_windows(database: Path, *titles: str) -> AsyncIterator[tuple[App, Page, Page]]:
    """Give the demo with some tasks and two live windows; nothing may have gone wrong in them."""
    async with running("--database", database) as app, chromium() as browser:
        for title in titles:
            await app.tasks("POST", body={"title": title})
        pages = [await browser.open(app.page) for _ in range(2)]
        for page in pages:
            await page.until(LIVE)
            await shows(page, all=[(title, False) for title in titles], open=titles)
        yield app, pages[0], pages[1]
        assert [page.errors for page in pages] == [[], []]


def rows_of(view: str) -> str:
    """Return JavaScript for what a list shows: titles, and whether each is ticked."""
    return f"""[...document.querySelectorAll("#{view} li:not(.leaving)")].map((item) =>
        [item.querySelector(".title").textContent, item.querySelector("input").checked])"""


async def shows(page: Page, **lists: Any) -> None:
    """Wait until both lists show these rows, in this order."""
    wanted = [
        [list(row) if isinstance(row, tuple) else [row, False] for row in lists[view]]
        for view in ("all", "open")
    ]
    text = json.dumps(json.dumps(wanted))
    shown = f"JSON.stringify([{rows_of('all')}, {rows_of('open')}])"
    await page.until(f"{shown} === JSON.stringify(JSON.parse({text}))", RECONNECT_SECONDS)


async def add(page: Page, title: str) -> None:
    await page.click("#title")
    await page.type(title)
    await page.press("Enter", 13)


def row(view: str, title: str, part: str) -> str:
    """Return a selector for a part of a row; parts are labelled with the title."""
    return f'#{view} [aria-label="{part}: {title}"]'


async def log_lines(page: Page, kind: str) -> list[str]:
    found = await page.value(
        f"[...document.querySelectorAll('#events .{kind} span')].map((line) => line.textContent)"
    )
    return list(found)


async def test_two_windows_stay_in_step(tmp_path: Path) -> None:
    async with two_windows(tmp_path / "todo.sqlite") as (_, left, right):
        await add(left, "Milk")
        for page in (left, right):
            await shows(page, all=["Milk"], open=["Milk"])
        await add(right, "Bread")
        for page in (left, right):
            await shows(page, all=["Milk", "Bread"], open=["Milk", "Bread"])
        await left.click("#all li:first-child .title", count=2)
        await left.type("Oat milk")  # in place of the title, which is selected
        await left.press("Enter", 13)
        for page in (left, right):
            await shows(page, all=["Oat milk", "Bread"], open=["Oat milk", "Bread"])
        await right.click(row("open", "Oat milk", "Delete"))
        for page in (left, right):
            await shows(page, all=["Bread"], open=["Bread"])


async def test_a_ticked_task_leaves_the_filtered_list_in_both_windows_and_comes_back(
    tmp_path: Path,
) -> None:
    async with two_windows(tmp_path / "todo.sqlite", "Milk", "Bread") as (_, left, right):
        for page in (left, right):  # the row stays in sight on its way out
            await page.value("""void (window.leaving = new Promise((resolve) => {
                new MutationObserver(() => {
                    const item = document.querySelector("#open li.leaving.done");
                    if (item && item.offsetHeight > 0) resolve(item.innerText);
                }).observe(document.querySelector("#open"), { subtree: true, attributes: true });
            }))""")
        await left.click(row("open", "Milk", "Done"))
        for page in (left, right):
            assert await page.value("window.leaving") == "Milk"
            await shows(page, all=[("Milk", True), "Bread"], open=["Bread"])
            await page.until("document.querySelectorAll('#open li').length === 1")
        await right.click(row("all", "Milk", "Done"))
        for page in (left, right):
            await shows(page, all=["Milk", "Bread"], open=["Milk", "Bread"])


async def test_titles_are_text_whatever_is_in_them(tmp_path: Path) -> None:
    title = """<img src=x onerror="throw 1"> & {{ 7 * 7 }} \u202e ü 🧀"""
    async with two_windows(tmp_path / "todo.sqlite") as (_, left, right):
        await add(left, title)
        for page in (left, right):
            await shows(page, all=[title], open=[title])
            assert await page.value("document.querySelectorAll('img').length") == 0


async def test_all_can_be_done_with_the_keyboard(tmp_path: Path) -> None:
    async with two_windows(tmp_path / "todo.sqlite", "Milk") as (_, left, right):
        await left.value("document.querySelector('#open .title').focus()")
        await left.press("Enter", 13)
        await left.type("Oat milk")
        await left.press("Enter", 13)
        await shows(right, all=["Oat milk"], open=["Oat milk"])
        assert await left.value("document.activeElement.className") == "title"
        await left.value("document.querySelector('#all .delete').focus()")
        await left.press("Enter", 13)
        await shows(right, all=[], open=[])


async def test_escape_leaves_the_title_as_it_was(tmp_path: Path) -> None:
    async with two_windows(tmp_path / "todo.sqlite", "Milk") as (app, left, right):
        await left.click("#all .title", count=2)
        await left.type("Wine")
        await left.press("Escape", 27)
        await add(left, "Bread")
        await shows(right, all=["Milk", "Bread"], open=["Milk", "Bread"])
        assert [found["version"] for found in (await app.tasks("GET"))["all"]] == [1, 1]


async def test_after_a_cut_what_was_missed_is_replayed_and_no_rows_are_fetched(
    tmp_path: Path,
) -> None:
    async with two_windows(tmp_path / "todo.sqlite", "Milk", "Bread", "Eggs") as (_, left, right):
        await left.click("#cut")
        await left.until("document.querySelector('#status').dataset.state === 'waiting'")
        await add(right, "Butter")
        await right.click(row("open", "Milk", "Done"))
        await right.click(row("all", "Eggs", "Delete"))
        after = {"all": [("Milk", True), "Bread", "Butter"], "open": ["Bread", "Butter"]}
        await shows(right, **after)
        assert await left.value(rows_of("open")) == [[t, False] for t in ("Milk", "Bread", "Eggs")]
        await left.until(LIVE, RECONNECT_SECONDS)
        await shows(left, **after)
        assert await left.value(FETCHES) == 1
        assert len(await log_lines(left, "cut")) == 2
        assert "reconnecting in " in (await log_lines(left, "reconnecting"))[0]
        resumed = await log_lines(left, "resumed")
        assert len(resumed) == 1
        assert "6 deltas replayed, no rows fetched" in resumed[0]


async def test_one_need_not_wait_for_the_reconnect(tmp_path: Path) -> None:
    async with two_windows(tmp_path / "todo.sqlite", "Milk") as (_, left, _right):
        await left.click("#cut")
        await left.until("document.querySelector('#cut').textContent === 'Reconnect now'")
        await left.click("#cut")
        await left.until(LIVE)
        assert "0 deltas replayed" in (await log_lines(left, "resumed"))[0]


async def test_after_a_restart_of_the_daemon_the_pages_fetch_their_rows_anew(
    tmp_path: Path,
) -> None:
    async with two_windows(tmp_path / "todo.sqlite", "Milk", "Bread") as (app, left, right):
        os.kill(app.daemon, signal.SIGKILL)
        await app.tasks("PATCH", "/1", {"done": True})
        await app.tasks("POST", body={"title": "Butter"})
        await app.until_said("daemon", times=2)
        for page in (left, right):
            await page.until(f"{FETCHES} === 2", RECONNECT_SECONDS)
            await page.until(LIVE, RECONNECT_SECONDS)
            after = {"all": [("Milk", True), "Bread", "Butter"], "open": ["Bread", "Butter"]}
            await shows(page, **after)
            assert await log_lines(page, "refetch") == ["no resume (epoch): fetching the rows anew"]
        await left.click(row("open", "Bread", "Done"))
        for page in (left, right):
            await shows(page, all=[("Milk", True), ("Bread", True), "Butter"], open=["Butter"])


async def test_a_page_without_a_daemon_says_so(tmp_path: Path) -> None:
    dead = dead_url()
    frontend = dead.replace("http", "ws").replace("/backend", "/ws")
    arguments = attached(frontend, dead, tmp_path / "todo.sqlite")
    async with running(*arguments, SYNCSERVER_API_KEY="k" * 40) as app, chromium() as browser:
        page = await browser.open(app.page)
        await page.until("document.querySelector('#status').dataset.state === 'ended'")
        assert "did not load" in (await log_lines(page, "problem"))[0]


async def test_what_the_app_refuses_is_told_to_the_user(tmp_path: Path) -> None:
    async with two_windows(tmp_path / "todo.sqlite", "Milk") as (app, left, _right):
        await left.click("#cut")
        await left.until("document.querySelector('#status').dataset.state === 'waiting'")
        await app.tasks("DELETE", "/1")
        await left.click(row("all", "Milk", "Done"))
        await left.until("!document.querySelector('#problem').hidden")
        told = await left.value("document.querySelector('#problem').textContent")
        assert told == "Not saved: there is no task 1"
        assert await left.value(rows_of("all")) == [["Milk", False]]
        await shows(left, all=[], open=[])
