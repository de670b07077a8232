"""The command line: what it says, and what its exit codes mean."""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from syncserver import cli, logs, running
from syncserver.commands import base
from syncserver.version import __version__

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m syncserver`` as a user does, and never let it serve for long."""
    around = {name: text for name, text in os.environ.items() if not name.startswith("SYNCSERVER")}
    return subprocess.run(
        [sys.executable, "-m", "syncserver", *arguments],
        env=around | {"PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_help_lists_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert re.search(r"(?m)^    serve  ", done.stdout)
    assert re.search(r"(?m)^    client  ", done.stdout)


@pytest.mark.parametrize(
    ("command", "flags"),
    [("serve", ("--config", "--app", "--set", "--log-level")), ("client", ("--out",))],
)
def test_help_of_a_command_lists_its_flags(
    capsys: pytest.CaptureFixture[str], command: str, flags: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in flags)


def test_help_does_not_wait_for_tornado() -> None:
    program = (
        "import sys\n"
        "from syncserver.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('syncserver.app' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == f"syncserver {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [("srve",), ("serve", "--cnofig", "x"), ("serve", "--log-level", "loud"), ("client",)],
)
def test_a_wrong_command_line_ends_with_2_and_the_usage(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: syncserver")


@pytest.mark.parametrize("command", [("serve", "--config"), ("--config",)])
def test_a_refused_configuration_ends_with_78_and_one_line(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[frontend]\nprot = 1")
    done = run(*command, str(path))
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr == (
        f'syncserver: {path}:2: [frontend] prot: unknown key; did you mean "port"?\n'
    )


def test_without_a_command_it_serves_with_the_file_of_the_environment() -> None:
    done = run(SYNCSERVER_CONFIG="/nowhere.toml")
    assert done.returncode == 78
    assert done.stderr == ("syncserver: /nowhere.toml: cannot be read: No such file or directory\n")


def test_a_refusal_stays_on_one_line_whatever_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('["a\\n\\u009b[2J"]\nx = 1')
    done = run("serve", "--config", str(path))
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "\x9b" not in done.stderr
    assert r'"a\n\u009b[2J": unknown key' in done.stderr


@pytest.mark.parametrize(
    "reference", ["no_such_module:app", "json.no_such:app", "json", "json:", ":app", "json:nothing"]
)
def test_an_app_that_cannot_be_had_is_refused(tmp_path: Path, reference: str) -> None:
    done = run("serve", "--app", reference, SYNCSERVER_STATE_DIR=str(tmp_path))
    assert done.returncode == 78
    assert done.stderr.startswith(f"syncserver: --app {reference}: ")
    assert done.stderr.endswith("give MODULE:ATTRIBUTE\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("def (", "SyntaxError"),
        ("import not_installed", "ModuleNotFoundError"),
        ("import json\njson.nothing", "AttributeError"),
        ("def app():\n    raise ValueError('no database')", "ValueError"),
        ("def app(config):\n    return config.nothing", "AttributeError"),
    ],
)
def test_an_app_that_fails_is_shown_where_and_not_called_our_fault(
    tmp_path: Path, program: str, name: str
) -> None:
    (tmp_path / "its_app.py").write_text(program)
    environ = {"SYNCSERVER_STATE_DIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = run("serve", "--app", "its_app:app", **environ)
    assert done.returncode == 78
    assert 'its_app.py", line ' in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"syncserver: --app its_app:app: raises {name}; see above, and mend it there"
    )
    assert "please report it" not in done.stderr


def test_what_an_app_refuses_of_the_settings_is_told_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "its_app.py").write_text(
        "from syncserver.errors import ConfigError\n"
        "def app(config):\n    raise ConfigError('its.toml: no tenants; name one')\n"
    )
    environ = {"SYNCSERVER_STATE_DIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = run("serve", "--app", "its_app:app", **environ)
    assert (done.returncode, done.stderr) == (78, "syncserver: its.toml: no tenants; name one\n")


def test_a_taken_port_ends_with_69_and_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(
            "serve",
            SYNCSERVER_STATE_DIR=str(tmp_path),
            SYNCSERVER_FRONTEND__PORT=str(port),
            SYNCSERVER_BACKEND__PORT="0",
        )
    assert done.returncode == 69
    assert done.stderr.startswith(f"syncserver: cannot listen on 127.0.0.1 port {port} or ")
    assert "Address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_address_of_another_machine_ends_with_69_and_one_line(tmp_path: Path) -> None:
    done = run(
        "serve",
        SYNCSERVER_STATE_DIR=str(tmp_path),
        SYNCSERVER_FRONTEND__ADDRESS="192.0.2.1",
    )
    assert done.returncode == 69
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", ["RuntimeError", "BrokenPipeError"])
def test_an_error_of_its_own_ends_with_70_and_is_logged(tmp_path: Path, error: str) -> None:
    (tmp_path / "broken.py").write_text(
        "from syncserver import ServiceRegistry\n"
        "class Broken(ServiceRegistry):\n"
        "    async def open(self):\n"
        f"        raise {error}('of my own')\n"
        "app = Broken(), ServiceRegistry()\n"
    )
    done = run(
        "serve",
        "--app",
        "broken:app",
        SYNCSERVER_STATE_DIR=str(tmp_path / "state"),
        SYNCSERVER_FRONTEND__PORT="0",
        SYNCSERVER_BACKEND__PORT="0",
        PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}",
    )
    assert done.returncode == 70
    assert "ERROR syncserver.cli: " in done.stderr
    assert f"{error}: of my own" in done.stderr


@pytest.mark.parametrize("closed", ["at once", "by the reader"])
def test_a_daemon_whose_output_nobody_reads_serves_until_it_is_told_to_end(
    tmp_path: Path, closed: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "syncserver", "serve"]
    if closed == "at once":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    environ = {"SYNCSERVER_STATE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environ |= {f"SYNCSERVER_{door}__PORT": "0" for door in ("FRONTEND", "BACKEND")}
    daemon = subprocess.Popen(
        command, env=os.environ | environ, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert daemon.stderr is not None
    with daemon:
        log = ""
        for line in daemon.stderr:
            log += line
            if "Serving; standard output is closed: syncserver " in line:
                daemon.terminate()
        assert daemon.wait(30) == 0, log
    assert "Drained in" in log


def test_the_browser_library_is_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "web" / "lib"
    for _ in range(2):
        assert cli.main(["client", "--out", str(out)]) == 0
        names = [out / "syncserver.js", out / "syncserver.d.ts"]
        assert capsys.readouterr().out == "".join(f"{name}\n" for name in names)
    assert sorted(out.iterdir()) == sorted(names)
    assert all(name.stat().st_size for name in names)


def test_a_library_that_cannot_be_written_ends_with_73_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "web").write_text("a file")
    assert cli.main(["client", "--out", str(tmp_path / "web")]) == 73
    assert capsys.readouterr().err == f"syncserver: {tmp_path}/web: File exists\n"


def test_text_from_outside_cannot_begin_a_log_line_of_its_own() -> None:
    text = "a\r\n2026 ERROR forged: \x1b[31m\x9b31m\u2028 b\tc"
    record = logging.LogRecord("syncserver.x", logging.INFO, "", 1, "origin %s", (text,), None)
    line = logs.LineFormatter().format(record)
    assert line.endswith(
        r" INFO syncserver.x: origin a\x0d\x0a2026 ERROR forged: \x1b[31m\x9b31m\u2028 b" + "\tc"
    )


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.LogRecord("s", logging.ERROR, "", 1, "m", (), sys.exc_info())
    assert logs.LineFormatter().format(record).endswith("\nValueError: x")


def test_the_reference_names_every_exit_code() -> None:
    page = (ROOT / "docs/reference/commands.rst").read_text("utf-8")
    codes = {int(code) for code in re.findall(r"(?m)^(\d+) +\w", page)}
    own = {value for name, value in vars(base).items() if name.isupper() and name != "CONTROLS"}
    assert codes == {0, 2} | own


def test_a_daemon_has_the_collector_look_seldom() -> None:
    before = gc.get_threshold()
    try:
        running._settle_collector()
        assert gc.get_threshold() == running._COLLECTIONS
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
