"""An operator's first hour, from the wheel on: the commands of the page, under load.

Everything runs from the wheels, in a place without the source.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from syncserver_client import Backend, Unauthorized
from tornado.httpclient import HTTPClientError

from tests.support import valkey
from tests.support.daemon import DaemonProcess, process
from tests.support.fronts import Front, needs, nginx, nginx_of_nodes
from tests.support.operating import (
    SECONDS,
    Library,
    Page,
    Program,
    built,
    check_nothing_is_missing,
    environment,
    free_ports,
    lend_dependencies,
    publishing,
)
from tests.test_fronts import authority
from tests.test_reload import hang_up

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "operate.rst"
ALL = [{"dealer": "AllTasks", "query": None}]
AGAIN = "waiting for a restart: nothing"

__all__ = ["authority"]


def blocks(language: str) -> list[str]:
    """Return the blocks of the page in a language."""
    found = re.findall(rf"\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)", PAGE.read_text())
    return [re.sub(r"^   ", "", block, flags=re.MULTILINE).strip() + "\n" for block in found]


INSTALL, MAKE_KEY, LOOK, SERVE, TAIL, PUBLISH, ADD_KEY, TAKE_KEY_OUT, WAIT = blocks("bash")
(CONFIG,) = blocks("toml")
(PROCESS,) = re.findall(r"``DAEMON=\$\((.*)\)``", PAGE.read_text())


class Machine:
    """A place of its own for what stands on the page at /opt, /etc and /var/lib."""

    def __init__(self, folder: Path, installed: Path) -> None:
        self.folder = folder
        self.installed = installed
        self.frontend, self.backend = free_ports(2)
        self.environ = environment(folder, installed)
        self.config = folder / "etc" / "syncserver.toml"

    def here(self, text: str) -> str:
        """Return what the page has, with the paths and ports of this place."""
        for found, put in (
            ("/opt/syncserver", self.installed),
            ("/etc/syncserver", self.folder / "etc"),
            ("/var/lib/syncserver", self.folder / "lib"),
            ("port = 5800", f"port = {self.frontend}"),
            ("port = 5801", f"port = {self.backend}"),
        ):
            text = text.replace(found, str(put))
        return text

    def start_shell(self, block: str, **environ: str) -> asyncio.Future[asyncio.subprocess.Process]:
        command = ["sh", "-euc", self.here(block)]
        return asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *command,
                cwd=self.folder,
                env={**self.environ, **environ},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        )

    async def run(self, block: str, *, expected: int = 0, **environ: str) -> str:
        """Run a block in a shell and return what it says."""
        child = await self.start_shell(block, **environ)
        async with asyncio.timeout(SECONDS):
            said, _ = await child.communicate()
        assert child.returncode == expected, said.decode()
        return said.decode()

    async def set_up(self, **changed: str) -> None:
        """Make key and configuration as the page does."""
        await self.run(MAKE_KEY)
        text = self.here(CONFIG)
        for found, put in changed.items():
            text = text.replace(found, put)
        self.config.write_text(text)
        self.environ["SYNCSERVER_CONFIG"] = str(self.config)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[DaemonProcess]:
        program = (str(self.installed / "bin" / "syncserver"),)
        environ = {**self.environ, "PYTHONPATH": ""}
        async with process("serve", program=program, environ=environ, cwd=self.folder) as daemon:
            await daemon.started()
            yield daemon

    def key(self, name: str = "web") -> str:
        return (self.folder / "etc" / "keys" / name).read_text().strip()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.backend}/backend"

    @property
    def door(self) -> str:
        return f"ws://127.0.0.1:{self.frontend}/ws"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the block that installs, once for all tests."""
    folder = tmp_path_factory.mktemp("opt")
    machine = Machine(folder, folder / "syncserver")

    async def install() -> None:
        make, pip = INSTALL.splitlines()
        wheels, _ = await asyncio.gather(asyncio.to_thread(built, folder), machine.run(make))
        for wheel in wheels.iterdir():
            shutil.copy(wheel, folder)
        lend_dependencies(machine.installed)
        await machine.run(pip)

    asyncio.run(install())
    return machine.installed


@asynccontextmanager
async def following(pages: Sequence[Page | Library]) -> AsyncIterator[None]:
    """Let pages be connected, all of them live at the beginning."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(page.run()) for page in pages]
        try:
            await until(lambda: all(page.live for page in pages))
            yield
        finally:
            for task in tasks:
                task.cancel()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def all_arrived(pages: Sequence[Page | Library], programs: Sequence[Program]) -> None:
    """End the programs, and wait until every page has as many rows as were taken."""
    for program in programs:
        program.end()
    for program in programs:
        await program.ended()
    taken = sum(program.taken for program in programs)
    with contextlib.suppress(TimeoutError):  # what is missing is told by the comparison
        await until(lambda: all(len(page.rows) >= taken for page in pages))
    check_nothing_is_missing(pages, programs)


async def grown(programs: Sequence[Program], by: int = 20) -> None:
    """Wait until each program has published some more."""
    wanted = [program.taken + by for program in programs]
    await until(lambda: all(p.taken >= n for p, n in zip(programs, wanted, strict=True)))


@pytest.mark.seconds(300)
async def test_the_page_leads_from_the_wheel_to_a_change_over_tls(
    installed: Path, authority: trustme.CA, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, installed)
    where = await machine.run("python -c 'import syncserver; print(syncserver.__file__)'")
    assert where.startswith(str(installed))
    await machine.set_up()
    said = await machine.run(LOOK)
    assert f"{machine.config}: nothing is wrong\n" in said
    assert "FAIL" not in said
    assert SERVE == "syncserver serve\n"
    (tmp_path / "nginx").mkdir()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trust = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    upstream = f"127.0.0.1:{machine.frontend}"
    async with machine.serving() as daemon, nginx(tmp_path / "nginx", authority, upstream) as front:
        assert "FAIL" not in await machine.run(LOOK), "not for a daemon that runs"
        tail = TAIL.replace("app.example.org", f"localhost:{front.port}")
        child = await machine.start_shell(tail.replace("AllTasks", "AllTasks --count 1"), **trust)
        assert child.stdout is not None
        async with asyncio.timeout(SECONDS):
            assert await child.stdout.readline() == b"live\n"
            assert await machine.run(PUBLISH) == "1 published\n"
            delta = json.loads(await child.stdout.readline())
            assert await child.wait() == 0
        assert (delta["type"], delta["data"]["title"]) == ("insert", "Buy milk")
        await a_page_is_served_and_a_page_elsewhere_is_not(machine, front)
        daemon.child.send_signal(signal.SIGTERM)
        assert await daemon.ended() == 0


async def a_page_is_served_and_a_page_elsewhere_is_not(machine: Machine, front: Front) -> None:
    """Connect as browsers do, with the origin of the page."""
    with Backend(machine.url, machine.key()) as backend:
        token = backend.authorize(ALL)
    assert (await front.request("/syncserver.js")).code == 200
    peer = await front.connect(Origin="https://app.example.org")
    answer = await peer.call("datasync", "acquireSubscription", token=token, position=None)
    assert answer["type"] == "response"
    assert await machine.run(PUBLISH.replace('"id": 1', '"id": 2')) == "1 published\n"
    assert (await peer.notice("delta"))["delta"]["data"]["id"] == 2
    await peer.close()
    with pytest.raises(HTTPClientError, match="403"):
        await front.connect(Origin="https://elsewhere.example")


@pytest.mark.seconds(300)
async def test_a_key_is_changed_while_programs_publish_and_none_is_refused_once(
    installed: Path, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, installed)
    await machine.set_up()
    async with machine.serving() as daemon:
        old = machine.key()
        with Backend(machine.url, old) as backend:
            page = Page([machine.door], backend.authorize(ALL))
        programs = [Program(name, [machine.url], old) for name in ("a", "b", "c")]
        shell = {"DAEMON": str(daemon.child.pid)}
        everybody = PROCESS.replace("pgrep -o", "pgrep")  # others of this machine may be older
        assert shell["DAEMON"] in (await machine.run(everybody)).split()
        async with following([page]):
            with publishing(programs):
                await grown(programs)
                sound = machine.config.read_text()
                machine.config.write_text(sound.replace("api_keys", "api_kyes"))
                await hang_up(daemon, "The settings stay as they were")
                await grown(programs)
                machine.config.write_text(sound)
                await change(machine, daemon, ADD_KEY, "web-2", **shell)
                for program in programs:
                    await grown(programs, 5)
                    program.key = machine.key("web-2")
                await grown(programs)
                await change(machine, daemon, TAKE_KEY_OUT, "web-2", **shell)
                await grown(programs)
                with Backend(machine.url, old) as backend, pytest.raises(Unauthorized):
                    backend.publish([])
                await all_arrived([page], programs)
        assert [program.refused for program in programs] == [{}, {}, {}]
        assert not page.ends, "the page was connected all the time"


async def change(
    machine: Machine, daemon: DaemonProcess, block: str, known: str, **environ: str
) -> None:
    """Run a block that ends in a SIGHUP, and wait until the daemon has read its file again."""
    await machine.run(block, **environ)
    assert daemon.child.stderr is not None
    async with asyncio.timeout(SECONDS):
        while AGAIN not in (line := (await daemon.child.stderr.readline()).decode()):
            assert line, "it ended"
    assert known in line


@pytest.mark.seconds(300)
@pytest.mark.parametrize("engine", ["sqlite", "redis"])
async def test_nodes_are_drained_under_load_and_nobody_misses_or_repeats_a_delta(
    installed: Path, tmp_path: Path, engine: str
) -> None:
    async with contextlib.AsyncExitStack() as held:
        if engine == "redis":
            url = held.enter_context(valkey.running()).url
            machines = await two(tmp_path, installed, url)
            daemons = [await held.enter_async_context(one.serving()) for one in machines]
        else:
            machines = [Machine(tmp_path, installed)]
            await machines[0].set_up()
            daemons = [await held.enter_async_context(machines[0].serving())]
        urls, doors = [one.url for one in machines], [one.door for one in machines]
        with Backend(urls[0], machines[0].key()) as backend:
            pages = [Page(doors[::step], backend.authorize(ALL)) for step in (1, -1) * 4]
        programs = [Program(n, urls, machines[0].key()) for n in ("a", "b")]
        async with following(pages):
            with publishing(programs):
                for machine, daemon in zip(machines, daemons, strict=True):
                    await grown(programs)
                    daemon.child.send_signal(signal.SIGTERM)
                    assert await daemon.ended() == 0
                    assert re.search(r"Drained in .* s; [1-9] clients were sent", daemon.log)
                    await held.enter_async_context(machine.serving())
                    await until(lambda: all(page.live for page in pages))
                    await grown(programs)
                await all_arrived(pages, programs)
        assert all(set(page.ends) == {4001} for page in pages), [page.ends for page in pages]


@pytest.mark.seconds(300)
@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "killed"])
async def test_behind_nginx_one_node_after_the_other_goes_and_nobody_is_refused(
    installed: Path, authority: trustme.CA, tmp_path: Path, way: signal.Signals
) -> None:
    needs("curl")
    async with contextlib.AsyncExitStack() as held:
        url = held.enter_context(valkey.running()).url
        machines = await two(tmp_path, installed, url)
        daemons = [await held.enter_async_context(one.serving()) for one in machines]
        (tmp_path / "nginx").mkdir()
        ports = [(one.frontend, one.backend) for one in machines]
        proxy = nginx_of_nodes(tmp_path / "nginx", authority, ports)
        front, door = await held.enter_async_context(proxy)
        with Backend(door, machines[0].key()) as backend:
            tokens = [backend.authorize(ALL) for _ in range(8)]
        socket_door, sockjs_door = front.url("/ws", "wss"), front.url("/ws/sockjs")
        pages: list[Page | Library] = [Page([socket_door], t, front.context) for t in tokens[:-2]]
        for transport, token in zip(("websocket", "xhr-polling"), tokens[-2:], strict=True):
            pages.append(Library(sockjs_door, transport, token, front.authority))
        programs = [Program(n, [door], machines[0].key()) for n in ("a", "b")]
        async with following(pages):
            with publishing(programs):
                for machine, daemon in zip(machines, daemons, strict=True):
                    await grown(programs)
                    daemon.child.send_signal(way)
                    await daemon.ended()
                    await grown(programs)
                    await held.enter_async_context(machine.serving())
                    await machine.run(WAIT.replace("10.0.0.1:5801", f"127.0.0.1:{machine.backend}"))
                    await until(lambda: all(page.live for page in pages))
                await all_arrived(pages, programs)
        assert [program.refused for program in programs] == [{}, {}]
        assert all(page.ends and not page.refused for page in pages)
        if way == signal.SIGTERM:
            told = {code for page in pages if isinstance(page, Page) for code in page.ends}
            assert told == {4001}, "a poll may meet a node that does not know it, too"


async def two(folder: Path, installed: Path, engine: str) -> list[Machine]:
    """Set up two machines with the same key and store."""
    machines = []
    for name in ("one", "other"):
        (folder / name).mkdir()
        machine = Machine(folder / name, installed)
        store = f"sqlite://{folder / name / 'lib'}/log.db"
        await machine.set_up(**{store: engine})
        machines.append(machine)
    shutil.copy(folder / "one/etc/keys/web", folder / "other/etc/keys/web")
    return machines


# A machine on which much is wrong.


def without_overriding(command: str) -> str:
    """Return a command for a user whom the modes of files bind, as they do not root."""
    return f"setpriv --bounding-set=-dac_override {command}" if os.geteuid() == 0 else command


async def findings(machine: Machine, command: str, expected: int = 1) -> Mapping[str, str]:
    """Return what the doctor says of each thing, with its level."""
    said = await machine.run(command, expected=expected)
    found = [line.partition(": ") for line in said.splitlines()]
    return {name[5:]: f"{name[:4].strip()}: {text}" for name, _, text in found}


async def test_the_doctor_says_of_a_bad_machine_what_to_change(
    installed: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, as root: apt-get install util-linux")
    machine = Machine(tmp_path, installed)
    await machine.set_up()
    (tmp_path / "lib").chmod(0o500)
    with socket.create_server(("127.0.0.1", machine.frontend)):
        doctor = without_overriding("syncserver doctor")
        found = await findings(machine, f"ulimit -n 200\n{doctor}")
    assert found["open files"].startswith("warn: 200 may be open, so about 136 connections; for")
    assert "LimitNOFILE= in the unit, or ulimit -Hn" in found["open files"]
    assert found["engine"].startswith("FAIL: ")
    assert found["store directory"] == (
        f"FAIL: {tmp_path / 'lib'} cannot be written by this user; chown or chmod it"
    )
    assert found["frontend"] == (
        f"FAIL: 127.0.0.1 port {machine.frontend}: Address already in use;"
        " end what listens there, or set frontend.port"
    )
    assert found["backend"].startswith("ok: ")


async def test_the_doctor_says_of_a_store_that_is_not_there_what_to_do(
    installed: Path, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, installed)
    await machine.set_up()
    (tmp_path / "lib").rmdir()
    found = await findings(machine, "syncserver doctor")
    assert found["store directory"] == (
        f"FAIL: {tmp_path / 'lib'} does not exist; make it, for the daemon's user"
    )
    assert "its directory must be there" in found["engine"]
    (tmp_path / "lib").write_text("")
    assert "is no directory" in (await findings(machine, "syncserver doctor"))["store directory"]
    (port,) = free_ports(1)
    redis = f"syncserver doctor --set engine=redis://127.0.0.1:{port}"
    found = await findings(machine, redis)
    assert found["engine"].startswith(f"FAIL: redis://127.0.0.1:{port}: ")
    assert found["engine"].endswith("; mend or start it, or change engine")


async def test_a_key_that_all_may_read_and_a_clock_that_is_wrong_are_told(
    installed: Path, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, installed)
    await machine.set_up()
    (program,) = installed.glob("lib/*/site-packages/syncserver/commands/doctor.py")
    made = program.stat().st_mtime
    os.utime(program, (made, made + 10 * 365 * 86_400))
    try:
        found = await findings(machine, "syncserver doctor")
    finally:
        os.utime(program, (made, made))
    assert found["clock"].startswith("FAIL: ")
    assert "run an NTP client" in found["clock"]
    key = tmp_path / "etc" / "keys" / "web"
    key.chmod(0o644)
    for command in ("check-config", "doctor", "serve"):
        said = await machine.run(f"syncserver {command}", expected=78)
        assert f"{key} is open to other users; chmod 600 it" in said
        assert said.count("\n") == 1
    assert key.read_text().strip() not in said
