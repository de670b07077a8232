"""The to-do demo without a browser: its endpoints, its outbox, its crashes, its end."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from syncserver_client import Backend

from demos.todo.daemon import free_port
from demos.todo.database import BATCH_DELTAS, Database, NoSuchTask
from demos.todo.web import ITEMS
from tests.demos.running import (
    attached,
    dead_url,
    gate_to,
    listening,
    request,
    running,
    running_daemon,
)

SUBSCRIBE = {"X-Snorky": "Subscribe"}


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "todo.sqlite")


def outbox(database: Database) -> list[dict[str, Any]]:
    with sqlite3.connect(database.path) as db:
        found = [json.loads(delta) for (delta,) in db.execute("SELECT delta FROM outbox")]
    db.close()
    return found


def execute(database: Database, statement: str, *values: object) -> None:
    with sqlite3.connect(database.path) as db:
        db.execute(statement, values)
    db.close()


async def token_of(backend: Backend, *views: str) -> str:
    return await asyncio.to_thread(backend.authorize, [ITEMS[view] for view in views])


def seen(deltas: list[dict[str, Any]]) -> list[tuple[str, str, str, int]]:
    """Return type, tag, title and version of each delta."""
    return [
        (d["type"], d["tag"], d.get("newData", d.get("data"))["title"], d["version"])
        for d in deltas
    ]


# The database


def test_each_change_raises_the_version_and_a_deletion_counts(database: Database) -> None:
    key = database.add("Milk")["id"]
    database.change(key, {"done": True})
    database.change(key, {"done": True})  # as it was: no change
    database.change(key, {"title": "Oat milk"})
    database.delete(key)
    found = outbox(database)
    assert [(d["type"], d["version"]) for d in found] == [
        ("insert", 1),
        ("update", 2),
        ("update", 3),
        ("delete", 4),
    ]
    for before, after in itertools.pairwise(found):
        assert after.get("oldData", after.get("data")) == before.get("newData", before.get("data"))


def test_an_id_never_comes_again(database: Database) -> None:
    first = database.add("Milk")["id"]
    database.delete(first)
    assert database.add("Bread")["id"] > first


def test_there_is_no_change_without_its_delta(database: Database) -> None:
    key = database.add("Milk")["id"]
    execute(
        database, "CREATE TRIGGER t BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'full'); END"
    )
    for change in (
        lambda: database.add("Bread"),
        lambda: database.change(key, {"done": True}),
        lambda: database.delete(key),
    ):
        with pytest.raises(sqlite3.IntegrityError, match="full"):
            change()
    assert [(row["title"], row["version"]) for row in database.rows(["all"])["all"]] == [
        ("Milk", 1)
    ]


def test_a_change_of_no_task_leaves_nothing(database: Database) -> None:
    with pytest.raises(NoSuchTask):
        database.change(7, {"done": True})
    with pytest.raises(NoSuchTask):
        database.delete(7)
    assert outbox(database) == []


def test_a_batch_stays_what_it_is_until_it_is_forgotten(database: Database) -> None:
    database.add("Milk")
    first = database.next_batch()
    database.add("Bread")
    assert first is not None
    assert Database(database.path).next_batch() == first  # as after a crash
    database.forget(first)
    second = database.next_batch()
    assert second is not None
    assert second.key != first.key
    assert [delta["data"]["title"] for delta in second.deltas] == ["Bread"]
    database.forget(second)
    assert database.next_batch() is None


def test_a_long_outbox_is_posted_in_pieces_and_in_order(database: Database) -> None:
    for number in range(BATCH_DELTAS + 1):
        database.add(str(number))
    titles = []
    while batch := database.next_batch():
        titles.append([delta["data"]["title"] for delta in batch.deltas])
        database.forget(batch)
    assert titles == [[str(number) for number in range(BATCH_DELTAS)], [str(BATCH_DELTAS)]]


def test_keys_of_two_databases_differ(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b"):
        database = Database(tmp_path / name)
        database.add("Milk")
        batch = database.next_batch()
        assert batch is not None
        keys.add(batch.key)
    assert len(keys) == 2


# The web app


async def test_tasks_are_made_changed_and_deleted(tmp_path: Path) -> None:
    async with running("--database", tmp_path / "todo.sqlite") as app:
        milk = await app.tasks("POST", body={"title": "  Milk \n and honey "})
        assert milk == {"id": 1, "title": "Milk and honey", "done": False, "version": 1}
        done = await app.tasks("PATCH", "/1", {"done": True})
        assert done == milk | {"done": True, "version": 2}
        bread = await app.tasks("POST", body={"title": "Bread"})
        assert await app.tasks("GET") == {"all": [done, bread]}
        assert await app.tasks("GET", "?view=open") == {"open": [bread]}
        assert await app.tasks("GET", "?view=all&view=open") == {
            "all": [done, bread],
            "open": [bread],
        }
        assert await app.tasks("DELETE", "/1") is None
        assert await app.tasks("GET") == {"all": [bread]}


REFUSED = [
    ("POST", "", {"title": "  "}, {}, 400),
    ("POST", "", {"title": "x" * 201}, {}, 400),
    ("POST", "", {"title": "\ud800"}, {}, 400),
    ("POST", "", {"title": 7}, {}, 400),
    ("POST", "", {}, {}, 400),
    ("POST", "", ["Milk"], {}, 400),
    ("POST", "", {"title": "Milk", "done": True}, {}, 400),
    ("POST", "", b"{", {}, 400),
    ("POST", "", b"[" * 9000, {}, 400),
    ("POST", "", b"title=Milk", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ("PATCH", "/1", {"done": 1}, {}, 400),
    ("PATCH", "/1", {"id": 2}, {}, 400),
    ("PATCH", "/99", {"done": True}, {}, 404),
    ("DELETE", "/99", None, {}, 404),
    ("GET", "?view=secret", None, {}, 400),
]


async def test_what_makes_no_sense_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with running("--database", tmp_path / "todo.sqlite") as app:
        milk = await app.tasks("POST", body={"title": "Milk"})
        for method, path, body, headers, status in REFUSED:
            response = await request(method, f"{app.page}tasks{path}", body, headers)
            assert response.code == status, (method, path, body)
            assert json.loads(response.body)["error"]
        assert await app.tasks("GET") == {"all": [milk]}


async def test_the_page_may_load_scripts_from_the_app_and_the_daemon_only(tmp_path: Path) -> None:
    async with running() as app:
        page = await request("GET", app.page)
        policy = page.headers["Content-Security-Policy"]
        door = app.said("frontend")[0].removeprefix("ws://").removesuffix("/ws")
        assert f"script-src 'self' http://{door};" in policy
        assert f"connect-src 'self' ws://{door}/ws;" in policy
        for name in ("page.js", "page.css"):
            assert (await request("GET", app.page + name)).code == 200
        for name in ("web.py", "page.html", "../todo/web.py"):
            assert (await request("GET", app.page + name)).code == 404


async def test_the_token_is_had_before_the_rows_are_read(
    tmp_path: Path, database: Database
) -> None:
    """What is committed while the token is made is in the rows, and comes as a delta too."""
    async with running_daemon(tmp_path) as daemon, gate_to(daemon.backend) as gate:
        key = {"SYNCSERVER_API_KEY": daemon.key}

        async def commit(command: str) -> None:
            if command == "authorizeSubscription":
                await asyncio.to_thread(database.add, "Meanwhile")

        gate.before_answer = commit
        async with running(*attached(daemon.frontend, gate.url, database.path), **key) as app:
            url = f"{app.page}tasks?view=all&view=open"
            response = await request("GET", url, headers=SUBSCRIBE)
            rows = json.loads(response.body)
            assert [row["title"] for row in rows["all"]] == ["Meanwhile"]
            token = response.headers["X-Subscription-Token"]
            async with listening(daemon.frontend, token) as peer:
                await peer.until(lambda: len(peer.deltas) == 2)
            assert seen(peer.deltas) == [
                ("insert", "all", "Meanwhile", 1),
                ("insert", "open", "Meanwhile", 1),
            ]


async def test_ticking_is_an_update_of_all_tasks_and_a_deletion_from_the_open_ones(
    database: Database,
) -> None:
    async with running("--database", database.path) as app:
        response = await request("GET", f"{app.page}tasks?view=all&view=open", headers=SUBSCRIBE)
        token = response.headers["X-Subscription-Token"]
        async with listening(app.said("frontend")[0], token) as peer:
            await app.tasks("POST", body={"title": "Milk"})
            await app.tasks("PATCH", "/1", {"done": True})
            await app.tasks("PATCH", "/1", {"done": False})
            await peer.until(lambda: len(peer.deltas) == 6)
    by_tag = {tag: [d for d in peer.deltas if d["tag"] == tag] for tag in ("all", "open")}
    assert [(d["type"], d["version"]) for d in by_tag["all"]] == [
        ("insert", 1),
        ("update", 2),
        ("update", 3),
    ]
    assert [(d["type"], d["version"]) for d in by_tag["open"]] == [
        ("insert", 1),
        ("delete", 2),
        ("insert", 3),
    ]


async def test_without_a_daemon_the_app_works_and_gives_no_token(database: Database) -> None:
    dead = attached("ws://127.0.0.1:9/ws", dead_url(), database.path)
    async with running(*dead, SYNCSERVER_API_KEY="k" * 40) as app:
        await app.tasks("POST", body={"title": "Milk"})
        response = await request("GET", f"{app.page}tasks", headers=SUBSCRIBE)
        assert [row["title"] for row in json.loads(response.body)["all"]] == ["Milk"]
        assert "X-Subscription-Token" not in response.headers
        code, errors = await app.end()
    assert code == 0
    assert "changes wait in the outbox" in errors
    assert len(outbox(database)) == 1


# The outbox


async def test_what_was_committed_before_a_crash_is_published_after_it(
    tmp_path: Path, database: Database
) -> None:
    """SIGKILL between commit and POST: the delta is on disk, and the next process posts it."""
    async with running_daemon(tmp_path) as daemon:
        # What a killed app leaves in its temporary directory goes with the test's own.
        key = {"SYNCSERVER_API_KEY": daemon.key, "TMPDIR": str(tmp_path)}
        with Backend(daemon.backend, daemon.key) as backend:
            token = await token_of(backend, "all")
        async with listening(daemon.frontend, token) as peer:
            no_way = attached(daemon.frontend, dead_url(), database.path)
            async with running(*no_way, **key) as app:
                await app.tasks("POST", body={"title": "Milk"})
                await app.kill()
            assert [delta["type"] for delta in outbox(database)] == ["insert"]
            async with running(*attached(daemon.frontend, daemon.backend, database.path), **key):
                await peer.until(lambda: bool(peer.deltas))
            assert seen(peer.deltas) == [("insert", "all", "Milk", 1)]
        assert outbox(database) == []


async def test_a_crash_after_the_post_repeats_nothing(tmp_path: Path, database: Database) -> None:
    """SIGKILL between POST and answer: the next process posts the same batch, which counts once."""
    async with running_daemon(tmp_path) as daemon, gate_to(daemon.backend) as gate:
        key = {"SYNCSERVER_API_KEY": daemon.key, "TMPDIR": str(tmp_path)}
        arguments = attached(daemon.frontend, gate.url, database.path)
        with Backend(daemon.backend, daemon.key) as backend:
            token = await token_of(backend, "all")
        posted, released = asyncio.Event(), asyncio.Event()

        async def hold(command: str) -> None:
            posted.set()
            await released.wait()

        gate.before_answer = hold
        async with listening(daemon.frontend, token) as peer:
            async with running(*arguments, **key) as app:
                await app.tasks("POST", body={"title": "Milk"})
                await posted.wait()
                await app.tasks("POST", body={"title": "Bread"})
                await app.kill()
            assert len(outbox(database)) == 2
            released.set()
            gate.before_answer = None
            async with running(*arguments, **key):
                await peer.until(lambda: len(peer.deltas) == 2)
        assert seen(peer.deltas) == [("insert", "all", "Milk", 1), ("insert", "all", "Bread", 1)]
        first, again, second = gate.keys
        assert first == again != second
        assert outbox(database) == []


async def test_a_batch_that_is_refused_stops_nothing_and_pages_fetch_again(
    tmp_path: Path, database: Database
) -> None:
    async with running_daemon(tmp_path) as daemon:
        execute(database, "INSERT INTO outbox (delta) VALUES (?)", '{"type": "nonsense"}')
        with Backend(daemon.backend, daemon.key) as backend:
            token = await token_of(backend, "all")
        arguments = attached(daemon.frontend, daemon.backend, database.path)
        async with (
            listening(daemon.frontend, token) as peer,
            running(*arguments, SYNCSERVER_API_KEY=daemon.key) as app,
        ):
            await peer.until(lambda: peer.over == ["requested"])
            await app.tasks("POST", body={"title": "Milk"})
            code, errors = await app.end()
        assert code == 0
        assert "The daemon refuses batch 1" in errors
        assert outbox(database) == []


# The program


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_app_and_its_daemon(number: int) -> None:
    async with running() as app:
        directory = Path(app.said("database")[0]).parent
        assert directory.exists()
        code, errors = await app.end(number)
    assert (code, errors) == (0, "")
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(app.daemon, 0)


async def test_a_daemon_that_dies_is_started_again_on_the_same_ports() -> None:
    async with running() as app:
        first = app.daemon
        os.kill(first, signal.SIGKILL)
        await app.until_said("daemon", times=2)
        assert app.daemon != first
        response = await request("GET", f"{app.page}tasks", headers=SUBSCRIBE)
        async with listening(
            app.said("frontend")[0], response.headers["X-Subscription-Token"]
        ) as peer:
            await app.tasks("POST", body={"title": "Milk"})
            await peer.until(lambda: any(d["data"]["title"] == "Milk" for d in peer.deltas))


async def test_a_port_that_was_asked_for_and_is_taken_is_refused_with_a_mend() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) == 0
        with pytest.raises(AssertionError, match=f"cannot listen on port {port}.*--port N"):
            async with running("--port", port):
                pass


async def test_a_file_that_is_no_database_is_refused_with_a_mend(tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear Sir or Madam, " * 100)
    with pytest.raises(AssertionError, match="not a database; give another file: --database"):
        async with running("--database", file):
            pass
