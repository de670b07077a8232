"""What README, tutorial and how-to pages show is run: against a real daemon, on other ports.

The scripts of pages run in Node, where ``STAGE`` stands for the browser's document.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from syncserver_client import Backend, CallError
from tornado.websocket import websocket_connect

from tests.support.daemon import ROOT, DaemonProcess, Peer, process, serving

README = ROOT / "README.rst"
DOCS = ROOT / "docs"
CODE = DOCS / "tutorial" / "code"
NODE = (20, 10)
SECONDS = 20

STAGE = """
import { createInterface } from "node:readline";

class Element {
  children = [];
  listeners = {};
  elements = { title: { value: "" } };
  textContent = "";
  constructor(name) { this.name = name; }
  append(...children) { this.children.push(...children); }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  reset() {}
  replaceChildren(...children) {
    this.children = children;
    console.log(JSON.stringify(children.map(shown)));
  }
}

function shown(node) {
  if (typeof node === "string") return node;
  if (node.type === "checkbox") return node.checked ? "[x]" : "[ ]";
  const text = node.textContent + node.children.map(shown).join("");
  return node.name === "button" ? "" : text.trim();
}

const found = {};
globalThis.document = {
  querySelector: (selector) => (found[selector] ??= new Element(selector)),
  createElement: (name) => new Element(name),
};
globalThis.location = new URL(process.argv[2]);
const fetchPlainly = globalThis.fetch;
globalThis.fetch = (url, options) => fetchPlainly(new URL(url, location), options);

// Node 20 tells of a connection that failed by `error` alone; browsers and Node 22 by `close` too.
globalThis.WebSocket = class extends globalThis.WebSocket {
  constructor(url) {
    super(url);
    let isClosed = false;
    this.addEventListener("close", () => { isClosed = true; });
    this.addEventListener("error", () => setTimeout(() => {
      if (!isClosed) this.onclose?.({ code: 1006, reason: "" });
    }));
  }
};

const acts = {
  add(title) {
    found.form.elements.title.value = title;
    return found.form.listeners.submit({ preventDefault() {} });
  },
  tick: (n) => found.ul.children[n].children[0].listeners.change(),
  remove: (n) => found.ul.children[n].children[2].listeners.click(),
};
createInterface({ input: process.stdin }).on("line", async (line) => {
  const [name, argument] = JSON.parse(line);
  await acts[name](argument);
});
"""


def blocks(path: Path, language: str | None = None) -> list[str]:
    """Return the code blocks of a page in a language, or its literal blocks."""
    begin = rf"\.\. code-block:: {language}\n" if language else r"[^\n]*(?<!\.\. )::\n"
    found = re.findall(rf"^{begin}\n((?: +\S.*\n|\n)+)", path.read_text("utf-8"), re.MULTILINE)
    return [dedent(block).strip() + "\n" for block in found]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def node() -> str:
    """Return the path of Node; skip where there is none, or an old one."""
    path = shutil.which("node")
    if path is not None:
        version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        if tuple(map(int, version.strip().lstrip("v").split(".")[:2])) >= NODE:
            return path
    pytest.skip("needs Node.js {}.{} or newer: https://nodejs.org".format(*NODE))


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        text: str = response.read().decode()
        return text


class Place:
    """A home directory with a daemon, and texts with its ports in place of the usual ones."""

    def __init__(self, home: Path, running: DaemonProcess) -> None:
        self.home = home
        self.running = running
        self.frontend = running.line("frontend").rpartition(":")[2].partition("/")[0]
        self.backend = running.line("backend").rpartition(":")[2].partition("/")[0]
        self.web = str(free_port())
        self._numbers = itertools.count(1)

    @property
    def environ(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        modules = os.pathsep.join(map(str, [ROOT, ROOT / "clients" / "python"]))
        return {"HOME": str(self.home), "PATH": path, "PYTHONPATH": modules}

    def moved(self, text: str) -> str:
        """Return a text with the ports of this place."""
        ports = {"5800": self.frontend, "5801": self.backend, "8000": self.web}
        return re.sub(r"\b(5800|5801|8000)\b", lambda found: ports[found[0]], text)

    def bash(self, block: str) -> str:
        """Run a block to its end and return what it says."""
        done = subprocess.run(
            ["bash", "-euc", self.moved(block)],
            cwd=self.home,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @asynccontextmanager
    async def program(self, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a program until the end of the block."""
        child = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.home,
            env=self.environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.communicate()

    @asynccontextmanager
    async def web_app(self, command: str) -> AsyncIterator[str]:
        """Run a web app and give its address, once it answers."""
        async with self.program("bash", "-c", f"exec {self.moved(command)}"):
            url = f"http://127.0.0.1:{self.web}/"
            async with asyncio.timeout(SECONDS):
                while True:
                    with contextlib.suppress(OSError):
                        get(url)
                        break
                    await asyncio.sleep(0.02)
            yield url

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        """Open a page: run its script."""
        (script,) = re.findall(r'<script type="module">\n(.*?)</script>', get(url), re.DOTALL)
        async with self.script(script, url) as page:
            yield page

    @asynccontextmanager
    async def script(self, script: str, url: str) -> AsyncIterator[Page]:
        """Run a script as that of the page at ``url``, with the library that the daemon serves."""
        library = self.home / "syncserver.mjs"
        source = f"http://127.0.0.1:{self.frontend}/syncserver.js"
        library.write_text(get(source), "utf-8")
        stage, file = self.home / "stage.mjs", self.home / f"page{next(self._numbers)}.mjs"
        stage.write_text(STAGE, "utf-8")
        file.write_text(script.replace(source, library.as_uri()), "utf-8")
        flags = ["--experimental-websocket", "--no-warnings", "--import", stage.as_uri()]
        async with self.program(node(), *flags, str(file), url) as child:
            yield Page(child)


class Page:
    """An open page; ``lists`` is what its list has shown, or what its script has printed."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.lists: list[Any] = []

    async def shows(self, *items: str) -> None:
        """Wait until the list shows these items."""
        await self.prints(list(items))

    async def prints(self, value: Any) -> None:
        """Wait until the last line that it printed is this value."""
        assert self.child.stdout is not None
        try:
            async with asyncio.timeout(SECONDS):
                while not self.lists or self.lists[-1] != value:
                    line = await self.child.stdout.readline()
                    assert line, f"the script ended; it printed {self.lists}"
                    self.lists.append(json.loads(line))
        except TimeoutError:
            pytest.fail(f"it never printed {value}, but {self.lists}")

    def act(self, name: str, argument: Any) -> None:
        """Use the form or a button."""
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps([name, argument]).encode() + b"\n")


@asynccontextmanager
async def place(
    home: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Place]:
    """Run a daemon whose home is ``home``, on free ports unless ``environ`` says otherwise."""
    ports = {"SYNCSERVER_FRONTEND__PORT": "0", "SYNCSERVER_BACKEND__PORT": "0"}
    settings = {"HOME": str(home), **ports, **(environ or {})}
    async with process("serve", *arguments, environ=settings, cwd=home) as running:
        await running.started()
        yield Place(home, running)


# The README.


async def test_the_daemon_says_at_start_what_the_readme_shows(tmp_path: Path) -> None:
    (shown,) = [block for block in blocks(README) if block.startswith("syncserver 0")]
    async with place(tmp_path) as here:
        said = "\n".join(here.running.lines) + "\n"
        said = re.sub(r"(?<= at most): \d+ open files are too few for 100000", "", said)
        said = re.sub(r"(?m)^connections \d+", "connections 100000", said)  # on a smaller machine
        assert said == here.moved(shown).replace("/home/you", str(tmp_path))


async def test_the_smallest_use_of_the_readme_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (page,), (ask,), (serve, publish) = (
        blocks(README, language) for language in ("html", "python", "bash")
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    async with place(tmp_path) as here:
        (tmp_path / "page.html").write_text(here.moved(page), "utf-8")
        async with here.web_app(serve):
            exec(here.moved(ask), {})
            url = capsys.readouterr().out.strip()
            answer = json.loads(here.bash(publish))
            assert answer == {
                "service": "datasync_backend",
                "message": {"type": "response", "data": None},
            }
            async with here.page(url) as opened:
                await opened.shows("Buy milk")
                here.bash(publish.replace('"id": 1', '"id": 2').replace("milk", "bread"))
                await opened.shows("Buy milk", "Buy bread")


async def test_the_configuration_of_the_readme_is_served(tmp_path: Path) -> None:
    (configuration,) = blocks(README, "toml")
    (tmp_path / "syncserver.toml").write_text(configuration, "utf-8")
    key = tmp_path / "keys" / "reporting"
    key.parent.mkdir()
    key.touch(0o600)
    key.write_text("k" * 32)
    environ = {"SYNCSERVER_API_KEY": "e" * 32}
    async with place(tmp_path, "--config", "syncserver.toml", environ=environ) as here:
        assert here.running.line("api key") == "env:SYNCSERVER_API_KEY, file:keys/reporting"
        assert here.running.line("services").startswith("datasync, pubsub")
        assert here.running.line("origins") == "https://app.example.org"


def test_the_files_that_the_readme_names_are_there() -> None:
    named = re.findall(r"<(docs/[^>]+)>`_", README.read_text("utf-8"))
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_is_plain_restructured_text() -> None:
    publish_string = pytest.importorskip("docutils.core").publish_string
    text = README.read_text("utf-8")
    publish_string(text, writer="null", settings_overrides={"halt_level": 2, "report_level": 5})
    assert not re.search(r":(doc|ref|term|class|func|option):`", text)


# The tutorial.


def set_up(here: Place) -> None:
    """Put the programs of the tutorial into the home of a place."""
    for path in CODE.iterdir():
        if path.suffix in (".py", ".html"):
            (here.home / path.name).write_text(here.moved(path.read_text("utf-8")), "utf-8")


async def test_the_first_app_of_the_tutorial_keeps_a_list(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        set_up(here)
        async with here.web_app("python app1.py") as url, here.page(url) as page:
            await page.shows()
            page.act("add", "Milk")
            await page.shows("[ ] Milk")
            page.act("tick", 0)
            await page.shows("[x] Milk")
            page.act("remove", 0)
            await page.shows()


async def test_the_live_app_of_the_tutorial_keeps_two_windows_in_step(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        set_up(here)
        async with (
            here.web_app("python app2.py") as url,
            here.page(url) as page,
            here.page(url) as other,
        ):
            await page.shows()
            page.act("add", "Milk")
            await other.shows("[ ] Milk")
            other.act("tick", 0)
            await page.shows("[x] Milk")
            page.act("add", "Bread")
            await other.shows("[x] Milk", "[ ] Bread")
            other.act("remove", 0)
            await page.shows("[ ] Bread")


@pytest.mark.seconds(60)
async def test_the_pages_of_the_tutorial_read_anew_after_a_restart(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        ports = {
            "SYNCSERVER_FRONTEND__PORT": here.frontend,
            "SYNCSERVER_BACKEND__PORT": here.backend,
        }
        set_up(here)
        async with here.web_app("python app2.py") as url, here.page(url) as page:
            await page.shows()
            page.act("add", "Milk")
            await page.shows("[ ] Milk")
            here.running.child.terminate()
            assert await here.running.ended() == 0
            with contextlib.closing(sqlite3.connect(tmp_path / "tasks.db")) as db, db:
                db.execute("update task set done = 1, version = 2")  # while nobody is told
            async with place(tmp_path, environ=ports):
                await page.shows("[x] Milk")
                page.act("add", "Bread")
                await page.shows("[x] Milk", "[ ] Bread")


async def test_a_ticked_task_leaves_the_filtered_list_of_the_tutorial(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        set_up(here)
        async with (
            here.web_app("python app3.py") as url,
            here.page(url) as all_tasks,
            here.page(f"{url}?open") as open_tasks,
        ):
            await all_tasks.shows()
            all_tasks.act("add", "Milk")
            await open_tasks.shows("[ ] Milk")
            all_tasks.act("add", "Bread")
            await open_tasks.shows("[ ] Milk", "[ ] Bread")
            open_tasks.act("tick", 0)
            await open_tasks.shows("[ ] Bread")
            await all_tasks.shows("[x] Milk", "[ ] Bread")
            all_tasks.act("tick", 0)
            await open_tasks.shows("[ ] Bread", "[ ] Milk")


def test_the_tutorial_shows_all_programs_that_are_tested() -> None:
    text = (DOCS / "tutorial" / "first-list.rst").read_text("utf-8")
    shown = re.findall(r"literalinclude:: code/(\S+)", text)
    assert sorted(shown) == sorted(p.name for p in CODE.iterdir() if p.suffix in (".py", ".html"))


# The how-to pages.


def howto(name: str, language: str) -> list[str]:
    return blocks(DOCS / "howto" / f"{name}.rst", language)


def connect(here: Place) -> Backend:
    key = Path(here.running.line("api key").removeprefix("in ")).read_text().strip()
    return Backend(f"http://127.0.0.1:{here.backend}/backend", key)


async def test_what_publish_shows_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curl, python = howto("publish", "bash"), howto("publish", "python")
    monkeypatch.setenv("HOME", str(tmp_path))
    async with place(tmp_path) as here:
        assert json.loads(here.bash(curl[0]))["message"] == {"type": "response", "data": None}
        names: dict[str, Any] = {}
        for block in python:
            exec(here.moved(block), names)
        (module,) = howto("publish", "javascript")
        call = f'await publish([{{}}], "{names["key"]}").catch((error) => '
        script = f"{here.moved(module)}\n{call}console.log(JSON.stringify(error.field)));"
        async with here.script(script, "http://127.0.0.1/") as page:
            await page.prints("model")
        names["backend"].close()


async def test_the_outbox_of_publish_loses_nothing_and_sets_aside_what_is_refused(
    tmp_path: Path,
) -> None:
    names: dict[str, Any] = {}
    exec(next(block for block in howto("publish", "python") if "OUTBOX" in block), names)
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute(names["OUTBOX"])
        for model in ("Task", "no such model", "Task"):
            names["enqueue"](db, [{"type": "insert", "model": model, "data": {"id": 1}}])
        db.commit()
        async with place(tmp_path) as here:
            with connect(here) as backend:
                names["relay"](db, backend)
                (left,) = db.execute("select id, refused from outbox")
                assert left[0] == 2
                assert "Unknown model" in left[1]
                backend._retries = 0
                here.running.child.terminate()
                await here.running.ended()
                names["enqueue"](db, [{"type": "insert", "model": "Task", "data": {"id": 4}}])
                names["relay"](db, backend)
                assert db.execute("select id from outbox").fetchall() == [(2,), (4,)]


async def test_what_subscribe_shows_keeps_lists(tmp_path: Path) -> None:
    (ask, by_tag), (page, lists) = (howto("subscribe", name) for name in ("python", "javascript"))
    async with place(tmp_path) as here:
        with connect(here) as backend, contextlib.closing(sqlite3.connect(":memory:")) as db:
            db.row_factory = sqlite3.Row
            db.execute("create table task (id integer, owner text, version integer)")
            db.execute("insert into task values (1, 'Ada', 1)")
            names: dict[str, Any] = {"backend": backend}
            exec(ask, names)
            (tmp_path / "tasks").write_text(json.dumps(names["tasks_of"]("Ada", backend, db)))
            exec(by_tag, names)
            show = (
                "globalThis.render = (rows) => console.log(JSON.stringify(rows.map((r) => r.id)));"
            )
            tagged = f"""
            datasync.processor = byTag;
            lists.done.on("change", () => {{
              console.log(JSON.stringify([lists.open.size, lists.done.size]));
            }});
            await datasync.acquire("{names["token"]}");
            """
            async with here.web_app("python3 -m http.server --bind 127.0.0.1 8000") as url:
                script = show + here.moved(page) + lists + tagged
                async with here.script(script, url) as opened:
                    await opened.prints([1])
                    row = {"id": 2, "owner": "Ada", "done": False, "version": 1}
                    task = {"model": "Task", "version": 1}
                    backend.publish([{**task, "type": "insert", "data": row}])
                    await opened.prints([1, 2])
                    ticked = {**row, "done": True}
                    update = {"type": "update", "newData": ticked, "oldData": row}
                    backend.publish([{**task, **update, "version": 2}])
                    await opened.prints([0, 1])


async def test_what_pubsub_shows_reaches_the_page(tmp_path: Path) -> None:
    (publish, restricted), (page,) = (howto("pubsub", name) for name in ("python", "javascript"))
    exec(restricted, {})
    async with place(tmp_path) as here:
        with connect(here) as backend:
            show = "globalThis.show = (message) => console.log(JSON.stringify(message));\n"
            script = f'{show}{here.moved(page)}\nconsole.log("true");'
            async with here.script(script, "http://127.0.0.1/") as opened:
                await opened.prints(True)
                exec(publish, {"backend": backend})
                await opened.prints({"title": "We open at nine"})


async def test_the_program_of_dealers_is_served(tmp_path: Path) -> None:
    python, (serve,) = howto("dealers", "python"), howto("dealers", "bash")
    (tmp_path / "tasks.py").write_text(python[0], "utf-8")
    (tmp_path / "own.py").write_text(
        "\n".join(
            [*python, "import sys", "asyncio.run(serve(sys.argv[1], *map(int, sys.argv[2:])))"]
        ),
        "utf-8",
    )
    delta = {"type": "insert", "model": "Task", "data": {"id": 1, "labels": ["red"]}}
    async with place(tmp_path, *serve.split()[2:]) as here:
        with connect(here) as backend:
            assert len(backend.authorize([{"dealer": "TasksByLabel", "query": "red"}])) == 32
            with pytest.raises(CallError, match="the query must be a label"):
                backend.authorize([{"dealer": "TasksByLabel", "query": 7}])
            with pytest.raises(CallError, match=r"data\.labels"):
                backend.publish([{**delta, "data": {"id": 1}}])
            browser = Peer(await websocket_connect(f"ws://127.0.0.1:{here.frontend}/ws"))
            token = backend.authorize([{"dealer": "TasksByLabel", "query": "red"}])
            await browser.call("datasync", "acquireSubscription", token=token, position=None)
            backend.publish([delta])
            assert (await browser.notice("delta"))["delta"] == delta
            await browser.close()
        ports = [str(free_port()), str(free_port())]
        async with here.program(sys.executable, "own.py", "k" * 32, *ports):
            with Backend(f"http://127.0.0.1:{ports[1]}/backend", "k" * 32, retries=8) as own:
                await asyncio.to_thread(own.publish, [delta])


async def test_the_programs_of_services_are_served(tmp_path: Path) -> None:
    python, (page,) = howto("services", "python"), howto("services", "javascript")
    (tmp_path / "calculator.py").write_text(python[0], "utf-8")
    (serve,) = howto("services", "bash")
    async with (
        place(tmp_path, *serve.split()[2:]) as here,
        here.script(here.moved(page), "http://127.0.0.1/") as opened,
    ):
        await opened.prints(3)
    names: dict[str, Any] = {}
    for block in python:
        exec(block, names)
    services = [names[name](name.lower()) for name in ("Handover", "Presence", "Account")]
    async with serving(*services) as daemon:
        one, two = await daemon.connect(), await daemon.connect()
        waiting = one.begin_call("handover", "consume")
        await one.call("presence", "enter")
        await two.call("presence", "enter")
        assert two.take() == [{"type": "present", "count": 2}]
        await two.call("handover", "produce", message="a key")
        assert (await one.answer(waiting))["data"] == "a key"
        assert (await one.call("account", "who_am_i"))["code"] == "not_authenticated"


@pytest.mark.parametrize("name", ["dealers", "configure"])
def test_the_configurations_of_the_pages_are_toml(name: str) -> None:
    found = howto(name, "toml")
    assert found
    for block in found:
        assert "datasync" in tomllib.loads(block)["services"]


def test_the_imports_from_snorky_s_page_are_there() -> None:
    (imports,) = howto("from-snorky", "python")
    exec(imports, {})


@pytest.mark.parametrize("name", ["guarantees", "engines"])
def test_the_tests_that_a_page_of_promises_names_are_there(name: str) -> None:
    text = (DOCS / f"explanation/{name}.rst").read_text("utf-8")
    named = re.findall(r"``(test_\w+)``", text)
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []
