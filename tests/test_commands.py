"""The commands beside ``serve``, as an operator runs them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from syncserver import cli
from syncserver.commands import publish
from syncserver.configuration.file import load
from syncserver.configuration.lines import line_of
from tests.support import valkey
from tests.support.daemon import KEY, Daemon, process, serving

ROOT = Path(__file__).parents[1]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command here and gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNCSERVER_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


# check-config


def test_everything_that_is_wrong_is_said_with_its_line(run: Run) -> None:
    Path("s.toml").write_text(
        """engine = "memroy"
[frontend]
prot = 1  # a typing error
allowed_origins = [
  "https://a.example",
  "b.example",
]
[limits]
max_items = 0
[services."my tasks"]
type = "datasync"
[services."my tasks".dealers.D]
type = "keyed"
model = "Task"
[[backend.api_keys]]
id = "a"
key = "short"
[[backend.api_keys]]
id = "b"
key = "env:NOT_SET_ANYWHERE"
""",
        "utf-8",
    )
    code, out, err = run("check-config", "--config", "s.toml")
    assert (code, out) == (78, "")
    begins = [line.split(";")[0] for line in err.splitlines()]
    assert begins == [
        's.toml:1: engine: unknown engine "memroy"',
        "s.toml:3: [frontend] prot: unknown key",
        "s.toml:4: [frontend] allowed_origins[1]: 'b.example' is no origin",
        "s.toml:9: [limits] max_items: out of range",
        's.toml:12: [services."my tasks".dealers.D] key: missing',
        "s.toml:17: [backend.api_keys[0]] key: shorter than 32 characters",
        "s.toml:20: [backend.api_keys[1]] key: NOT_SET_ANYWHERE is not set in the environment",
    ]
    code, _, err = run("serve", "--config", "s.toml")
    assert code == 78
    assert err.startswith("syncserver: s.toml:")
    assert err.endswith("(and 6 more: syncserver check-config)\n")
    assert err.count("\n") == 1


def test_a_sound_configuration_is_called_so_and_nothing_is_made(run: Run, tmp_path: Path) -> None:
    Path("s.toml").write_text("[frontend]\nport = 1\n")
    assert run("check-config", "--config", "s.toml") == (0, "s.toml: nothing is wrong\n", "")
    assert run("check-config") == (0, "the defaults: nothing is wrong\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]
    code, _, err = run("check-config", "--set", "frontend.port=x")
    assert (code, err) == (78, "--set frontend.port: must be a whole number, not a string\n")


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\nb = 2", ("b",), 2),
        ("# first\n\na.b.c = 1", ("a", "b", "c"), 3),
        ("a = [\n1,\n2]\nb = 3", ("a", 1), 1),
        ("a = [\n1,\n2]\nb = 3", ("b",), 4),
        ('a = """\nb = 1\n"""\nb = 2', ("b",), 4),
        ("[x.y]\nz = 1", ("x", "y", "not there"), 1),
        ("[[k]]\ni = 1\n[[k]]\ni = 2", ("k", 1, "i"), 4),
        ("a = 1", ("b",), None),
        ("", ("a",), None),
    ],
)
def test_the_line_of_a_setting_is_found(
    text: str, path: tuple[str | int, ...], line: int | None
) -> None:
    assert line_of(text, path) == line


# generate-key


def test_a_key_is_shown_once_with_the_entry_that_knows_it(run: Run) -> None:
    code, out, err = run("generate-key", "--id", "web")
    assert code == 0
    key, entry = out.splitlines()
    assert len(key) > 40
    assert key not in entry + err
    assert hashlib.sha256(key.encode()).hexdigest() in entry
    Path("s.toml").write_text(f"[backend]\napi_keys = [\n{entry}\n]\n")
    (read,) = load("s.toml", {}).backend.api_keys
    assert (read.id, read.secret) == ("web", None)
    assert run("generate-key", "--id", "web")[1] != out


def test_a_key_may_be_made_for_some_operations_and_until_a_day(run: Run) -> None:
    arguments = ("--id", "a.b-c_1", "--operations", "publish,revoke", "--expires", "2999-01-31")
    _, out, _ = run("generate-key", *arguments)
    entry = tomllib.loads(f"x = [{out.splitlines()[1]}]")["x"][0]
    assert entry["operations"] == ["publish", "revoke"]
    assert str(entry["expires"]) == "2999-01-31"


@pytest.mark.parametrize(
    "arguments",
    [(), ("--id", "a b"), ("--id", "a", "--operations", "x"), ("--id", "a", "--expires", "soon")],
)
def test_a_key_that_makes_no_sense_is_not_made(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, _ = run("generate-key", *arguments)
    assert (code, out) == (2, "")


# publish


class Shell:
    """A directory with a key, where commands are run against a daemon."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.folder = folder
        self.daemon = daemon
        (folder / "key").write_text(KEY)
        (folder / "key").chmod(0o600)

    def arguments(self, command: str, *more: str) -> list[str]:
        url = f"{self.daemon.http_url}/backend"
        return [command, *more, "--url", url, "--key", "file:key"]

    async def start(self, arguments: list[str], **streams: Any) -> asyncio.subprocess.Process:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "clients/python")])
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "syncserver",
            *arguments,
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": paths, "HOME": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **streams,
        )

    async def publish(self, *more: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        child = await self.start(
            self.arguments("publish", *more),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        )
        async with asyncio.timeout(20):
            out, err = await child.communicate(stdin)
        assert child.returncode is not None
        return child.returncode, out.decode(), err.decode()

    @asynccontextmanager
    async def tail(self, *more: str, ws_url: str | None = None) -> AsyncIterator[Tail]:
        where = ["--ws-url", ws_url or self.daemon.ws_url]
        child = await self.start(self.arguments("tail", *more, *where))
        try:
            yield Tail(child)
        finally:
            if child.returncode is None:
                child.kill()
            await child.communicate()


class Tail:
    """A tail that runs."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child

    async def says(self, text: str) -> str:
        """Wait for a line on standard error."""
        assert self.child.stderr is not None
        async with asyncio.timeout(15):
            while True:
                line = (await self.child.stderr.readline()).decode()
                assert line, f"it ended without {text!r}"
                if text in line:
                    return line

    async def delta(self) -> Any:
        assert self.child.stdout is not None
        async with asyncio.timeout(15):
            return json.loads(await self.child.stdout.readline())


@asynccontextmanager
async def shell(folder: Path, **limits: Any) -> AsyncIterator[Shell]:
    async with serving(**limits) as daemon:
        yield Shell(folder, daemon)


def insert(number: int) -> dict[str, Any]:
    return {"type": "insert", "model": "Task", "data": {"id": number, "title": "ä" * 3}}


def lines(count: int) -> bytes:
    return b"".join(json.dumps(insert(number)).encode() + b"\n" for number in range(count))


async def seen(shell: Shell, token: str) -> list[int]:
    """Return the ids that a browser with this token is sent now."""
    peer = await shell.daemon.connect()
    answer = await peer.call("datasync", "acquireSubscription", token=token, position=None)
    assert answer["type"] == "response"
    taken = [notice["delta"]["data"]["id"] for notice in peer.take() if notice["type"] == "delta"]
    await peer.close()
    return taken


async def test_json_lines_are_published_in_batches_and_count_once(tmp_path: Path) -> None:
    async with shell(tmp_path) as here:
        (tmp_path / "deltas.jsonl").write_bytes(b"\n" + lines(25) + b"\n")
        token = await here.daemon.authorize(("AllTasks", None))
        again = await here.daemon.authorize(("AllTasks", None))
        for _ in range(2):  # the second time adds nothing
            done = await here.publish("deltas.jsonl", "--batch", "10")
            assert done == (0, "25 published\n", "")
        assert await seen(here, token) == list(range(25))
        await here.publish("deltas.jsonl", "--batch", "10", "--run", "second")
        assert await seen(here, again) == [*range(25), *range(25)]


async def test_an_array_is_published_from_standard_input(tmp_path: Path) -> None:
    async with shell(tmp_path) as here:
        token = await here.daemon.authorize(("AllTasks", None))
        text = json.dumps([insert(number) for number in range(3)], indent=2).encode()
        assert await here.publish(stdin=text) == (0, "3 published\n", "")
        assert await here.publish(stdin=b"[]") == (0, "0 published\n", "")
        assert await seen(here, token) == [0, 1, 2]


async def test_a_delta_that_is_refused_is_named_by_its_line(tmp_path: Path) -> None:
    async with shell(tmp_path) as here:
        text = lines(5) + b'{"type": "insert", "model": "Nothing", "data": {}}\n'
        code, _, err = await here.publish("--batch", "4", stdin=text)
        assert code == 65
        assert err.startswith("syncserver: line 6: ")
        assert "Unknown model" in err
        assert err.endswith("; 4 published before it\n")
        code, _, err = await here.publish(stdin=lines(2) + b"{no json\n")
        assert (code, err.split(":")[1]) == (65, " line 3")
        code, _, err = await here.publish(stdin=b"[1, 2")
        assert (code, err.split(":")[1]) == (65, " the array")


async def test_a_file_that_is_not_there_or_a_wrong_key_has_its_own_exit_code(
    tmp_path: Path,
) -> None:
    async with shell(tmp_path) as here:
        assert (await here.publish("none.json"))[0] == 66
        (tmp_path / "key").write_text(KEY[::-1])
        code, _, err = await here.publish(stdin=lines(1))
        assert code == 77
        assert KEY not in err
        assert KEY[::-1] not in err


def test_without_a_daemon_publish_and_tail_end_with_69(run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/backend"
        Path("deltas").write_bytes(lines(1))
        Path("key").write_text(KEY)
        Path("key").chmod(0o600)
        where = ("--url", url, "--key", "file:key")
        for command in (("publish", "deltas"), ("tail", "AllTasks")):
            code, _, err = run(*command, *where)
            assert code == 69
            assert f"no daemon answers at {url}" in err
            assert err.count("\n") == 1


@pytest.mark.parametrize("key", [KEY, ""])
def test_a_key_on_the_command_line_is_refused_and_not_said(run: Run, key: str) -> None:
    code, _, err = run("publish", "--key", key)
    assert code == 78
    assert KEY not in err


def test_a_hash_is_no_key_to_publish_with(run: Run) -> None:
    Path("s.toml").write_text(f'[backend]\napi_keys = ["sha256:{"0" * 64}"]')
    code, _, err = run("publish", "--config", "s.toml")
    assert code == 78
    assert "no API key is known here; give --key" in err


def test_the_bar_grows_with_what_was_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = publish._Bar(100)
    for total in (10, 20, 40):
        bar.show(total, total)
    bar.end()
    assert capsys.readouterr().err == (
        f"\r[{'#' * 6}{' ' * 24}] 20 published\r[{'#' * 12}{' ' * 18}] 40 published\n"
    )


# tail


async def test_tail_prints_what_a_browser_would_see(tmp_path: Path) -> None:
    async with (
        shell(tmp_path) as here,
        here.tail("FilteredTasks", '["==", "id", 2]', "--count", "2") as tail,
    ):
        await tail.says("live")
        await here.daemon.publish(insert(1), insert(2))
        assert await tail.delta() == insert(2)
        old = insert(2)["data"]
        update = {"type": "update", "model": "Task", "newData": {"id": 3}, "oldData": old}
        await here.daemon.publish({**update, "newData": {**old, "id": 3}})
        assert (await tail.delta())["type"] == "delete"
        assert await tail.child.wait() == 0


async def test_tail_goes_on_where_it_was_after_a_lost_connection(tmp_path: Path) -> None:
    async with shell(tmp_path) as here, here.tail("AllTasks") as tail:
        await tail.says("live")
        await here.daemon.publish(insert(1))
        assert await tail.delta() == insert(1)
        for session in tuple(here.daemon.frontend.sessions):
            session.close(4001, '{"retry_after": 1}')
        await here.daemon.publish(insert(2))
        await tail.says("connecting again")
        await tail.says("live again")
        assert await tail.delta() == insert(2)


async def test_tail_starts_anew_when_it_is_told_to_fetch_again(tmp_path: Path) -> None:
    async with shell(tmp_path) as here, here.tail("AllTasks") as tail:
        await tail.says("live")
        await here.daemon.post("datasync_backend", "requestRefetch", model="Task")
        assert "requested" in await tail.says("starting anew")
        await tail.says("live")
        await here.daemon.publish(insert(1))
        assert await tail.delta() == insert(1)


async def test_tail_says_what_is_refused(tmp_path: Path) -> None:
    async with shell(tmp_path) as here, here.tail("Nobody") as tail:
        assert "dealer" in (await tail.says("syncserver: ")).lower()
        assert await tail.child.wait() == 65


async def test_ctrl_c_ends_tail_without_a_traceback(tmp_path: Path) -> None:
    async with shell(tmp_path) as here, here.tail("AllTasks") as tail:
        await tail.says("live")
        tail.child.send_signal(signal.SIGINT)
        _, err = await tail.child.communicate()
        assert (tail.child.returncode, err) == (130, b"")


# What all have in common


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["generate-key", "--id", "web"], ["check-config"]])
def test_output_that_nobody_reads_ends_a_command_without_a_traceback(
    tmp_path: Path, arguments: list[str], unbuffered: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environ = os.environ | {"SYNCSERVER_STATE_DIR": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}
    with os.fdopen(writing, "w") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "syncserver", *arguments],
            stdout=output, stderr=subprocess.PIPE, env=environ, cwd=ROOT, text=True,
        )  # fmt: skip
    assert ended.returncode == 141
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


# doctor


def test_the_doctor_says_ok_of_what_is_well(run: Run) -> None:
    ports = ("--set", "frontend.port=0", "--set", "backend.port=0")
    code, out, _ = run("doctor", *ports)
    assert code == 0
    found = dict(line[5:].split(": ", 1) for line in out.splitlines())
    assert {
        "open files",
        "memory",
        "clock",
        "engine",
        "frontend",
        "backend",
        "api key",
    } <= found.keys()
    assert "FAIL" not in out
    assert not Path("state").exists()


def test_the_doctor_names_what_must_be_mended_and_ends_with_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _what: (256, 256))
    Path("s.toml").write_text(
        f'insecure = true\n[frontend]\naddress = "0.0.0.0"\nport = 0\n'
        f'[backend]\naddress = "0.0.0.0"\napi_keys = ["{KEY}"]\n'
    )
    Path("s.toml").chmod(0o644)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        code, out, _ = run("doctor", "--config", "s.toml", "--set", f"backend.port={port}")
    assert code == 1
    assert "warn open files: 256 may be open, so about 192 connections; for more," in out
    assert f"FAIL backend: 0.0.0.0 port {port}: Address already in use; end what listens" in out
    assert "FAIL api key: s.toml holds a key and all users may read it; chmod 640 it" in out
    assert "warn insecure: " in out
    assert "warn origins: only pages of localhost may connect" in out
    assert "warn backend: keys cross the network in clear text" in out
    assert KEY not in out


def test_the_doctor_sees_an_engine_that_is_not_there(run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        engine = f"redis://127.0.0.1:{unused.getsockname()[1]}"
        ports = ("--set", "frontend.port=0", "--set", "backend.port=0")
        code, out, _ = run("doctor", "--set", f"engine={engine}", *ports)
    assert code == 1
    assert f"FAIL engine: {engine}: " in out


def test_the_doctor_counts_with_the_descriptors_that_the_daemon_will_take(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _what: (256, 524288))
    ports = ("--set", "frontend.port=0", "--set", "backend.port=0")
    _, out, _ = run("doctor", *ports)
    text = "114286 may be open (256, which 'serve' raises), so about 100000 connections"
    assert f"ok   open files: {text}\n" in out


@pytest.mark.parametrize(
    ("allowed", "given", "said"),
    [
        (None, (), "ok   memory: nothing bounds it"),
        (
            1 << 30,
            (),
            "ok   memory: 819 MiB, which --workers share; it bounds no more of them than ",
        ),
        (1 << 27, (), "warn memory: not bounded, as four fifths of 128 MiB are 102 MiB for each "),
        (
            1 << 27,
            ("--set", "limits.max_process_bytes=1"),
            "warn memory: limits.max_process_bytes ",
        ),
        (None, ("--set", "limits.max_process_bytes=4294967296"), "ok   memory: 4096 MiB for each"),
    ],
)
def test_the_doctor_says_what_memory_a_daemon_may_have(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    allowed: int | None,
    given: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr("syncserver.process.memory.allowed_bytes", lambda: allowed)
    monkeypatch.setattr("syncserver.commands.doctor.resident_bytes", lambda: 30 << 20)
    _, out, _ = run("doctor", *given, "--set", "frontend.port=0", "--set", "backend.port=0")
    assert f"\n{said}" in out


@pytest.mark.parametrize(("ahead", "level"), [(0.0, "ok  "), (7.0, "warn"), (-7.0, "warn")])
def test_the_doctor_compares_the_clock_of_a_store_that_has_its_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, ahead: float, level: str
) -> None:
    now = time.time
    with valkey.running() as server:
        monkeypatch.setattr("time.time", lambda: now() - ahead)
        ports = ("--set", "frontend.port=0", "--set", "backend.port=0")
        code, out, _ = run("doctor", "--set", f"engine={server.url}", *ports)
    assert code == 0
    (line,) = (line for line in out.splitlines() if " engine clock: " in line)
    assert line.startswith(level)
    if ahead:
        assert ("ahead of" if ahead > 0 else "behind") in line
        assert line.endswith("one of the two is wrong: run an NTP client on both")


async def test_the_doctor_knows_a_daemon_that_runs(tmp_path: Path) -> None:
    environ = {
        "SYNCSERVER_STATE_DIR": str(tmp_path / "state"),
        "SYNCSERVER_FRONTEND__PORT": "0",
        "SYNCSERVER_BACKEND__PORT": "0",
    }
    async with process("serve", environ=environ) as daemon:
        await daemon.started()
        for door in ("frontend", "backend"):
            port = daemon.line(door).rpartition(":")[2].partition("/")[0]
            environ[f"SYNCSERVER_{door.upper()}__PORT"] = port
        async with process("doctor", environ=environ) as doctor:
            assert doctor.child.stdout is not None
            out = (await doctor.child.stdout.read()).decode()
            assert await doctor.ended() == 0
    assert out.count("a daemon is running there") == 2


# The how-to.


async def test_the_steps_of_the_how_to_lead_to_a_daemon_that_knows_its_keys(
    tmp_path: Path,
) -> None:
    page = (ROOT / "docs" / "howto" / "configure.rst").read_text("utf-8")
    changes = {"/etc/syncserver": str(tmp_path / "etc"), "0.0.0.0": "127.0.0.1"}
    for found, put in {**changes, "port = 5800": "port = 0", "port = 5801": "port = 0"}.items():
        assert found in page
        page = page.replace(found, put)
    make_key, check, serve, another_key = blocks(page, "bash")
    (config,) = blocks(page, "toml")
    line = next(block for block in blocks(page, "text") if "reporting" in block)
    (tmp_path / "syncserver").write_text(f'#!/bin/sh\nexec {sys.executable} -m syncserver "$@"\n')
    (tmp_path / "syncserver").chmod(0o700)
    environ = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "clients/python")]),
    }

    async def run(block: str) -> str:
        child = await asyncio.create_subprocess_exec(
            *("sh", "-euc", block), env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        async with asyncio.timeout(60):
            said, _ = await child.communicate()
        assert child.returncode == 0, said.decode()
        return said.decode()

    file = tmp_path / "etc" / "syncserver.toml"
    await run(make_key)
    file.write_text(config)
    assert "nothing is wrong" in await run(check)
    program, *arguments = serve.split()
    assert program == "syncserver"
    async with process(*arguments, environ=environ, cwd=tmp_path) as daemon:
        await daemon.started()
        assert daemon.line("api key") == "file:keys/web"
        assert daemon.child.stderr is not None
        await run(another_key)
        file.write_text(re.sub(r"api_keys = .*\n", line, config))
        daemon.child.send_signal(signal.SIGHUP)
        async with asyncio.timeout(15):
            while "file:keys/reporting" not in (await daemon.child.stderr.readline()).decode():
                assert daemon.child.returncode is None


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a page in a language."""
    found = re.findall(rf"\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)", page)
    return [re.sub(r"(?m)^   ", "", block).strip() + "\n" for block in found]
