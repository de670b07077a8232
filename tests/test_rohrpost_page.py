"""What the how-to page of rohrpost shows is run."""

from __future__ import annotations

import json
from pathlib import Path

from syncserver_client import Backend

from syncserver.protocols.rohrpost import RohrpostProtocol
from syncserver.registry import ServiceRegistry
from syncserver.services.application import ApplicationService, Handlers
from tests.support.calls import MemoryPeer, turns
from tests.test_readme import blocks, howto, place

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "rohrpost.rst"


async def test_the_program_of_rohrpost_is_served(tmp_path: Path) -> None:
    (settings,), python = howto("rohrpost", "toml"), howto("rohrpost", "python")
    (program,) = [block for block in python if "def registries" in block]
    (script,), (serve,) = howto("rohrpost", "javascript"), howto("rohrpost", "bash")
    (printed,) = [block for block in blocks(PAGE) if '"who-am-i"' in block]
    (tmp_path / "rohrpost.toml").write_text(settings, "utf-8")
    (tmp_path / "collections_app.py").write_text(program, "utf-8")
    async with (
        place(tmp_path, *serve.split()[2:]) as here,
        here.script(here.moved(script), "http://127.0.0.1/") as opened,
    ):
        lines = [json.loads(line) for line in printed.splitlines()]
        await opened.prints(lines[-1])
        assert opened.lists == lines
        key = (tmp_path / ".local/state/syncserver/api-key").read_text().strip()
        with Backend(here.moved("http://127.0.0.1:5801/backend"), key) as backend:
            backend.notify("collection-52", "create", {"id": 1})
        data = {"type": "create", "group": "collection-52", "object": {"id": 1}}
        await opened.prints({"type": "subscription-update", "data": data})


async def test_tokens_need_no_program(tmp_path: Path) -> None:
    (settings,), python = howto("rohrpost", "toml"), howto("rohrpost", "python")
    authorize, notify = python[0], python[1]
    (tmp_path / "rohrpost.toml").write_text(settings, "utf-8")
    async with place(tmp_path, "--config", "rohrpost.toml") as here:
        key = (tmp_path / ".local/state/syncserver/api-key").read_text().strip()
        with Backend(here.moved("http://127.0.0.1:5801/backend"), key) as backend:
            names = {"backend": backend}
            exec(authorize, names)
            request = {"id": 1, "type": "subscribe", "data": {"token": names["token"]}}
            script = f"""
                const socket = new WebSocket("ws://127.0.0.1:5800/rohrpost/");
                socket.onopen = () => socket.send('{json.dumps(request)}');
                socket.onmessage = (event) => console.log(event.data);
            """
            async with here.script(here.moved(script), "http://127.0.0.1/") as opened:
                await opened.prints({"id": 1, "type": "subscribe", "data": {"group": "list-52"}})
                exec(notify, names)
                told = {"id": 52, "title": "Groceries"}
                data = {"type": "update", "group": "list-52", "object": told}
                await opened.prints({"type": "subscription-update", "data": data})


async def test_a_handler_that_answers_itself_is_as_the_page_says() -> None:
    names: dict[str, object] = {}
    exec(howto("rohrpost", "python")[-1], names)
    handlers = Handlers()
    handlers.handler("halve")(names["halve"])  # type: ignore[type-var]
    peer = MemoryPeer(ServiceRegistry([ApplicationService(handlers)]), RohrpostProtocol)
    for number in (5, 6):
        text = json.dumps({"id": number, "type": "halve", "data": {"number": number}})
        peer.session.receive(text)
    await turns()
    assert [json.loads(text) for text in peer.texts] == [
        {"id": 5, "type": "halve", "error": "odd", "data": {"number": 5}},
        {"type": "progress", "data": {"percent": 50}},
        {"id": 6, "type": "halve", "data": {"number": 3}},
    ]
    peer.session.connection_lost()
