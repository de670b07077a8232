"""What the configuration may say, and how it is refused: with file, key and mend in one line."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import pickle
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from syncserver.apikeys import OPERATIONS, ApiKey, Secret
from syncserver.app import KNOWN, make_engine, shared_settings
from syncserver.config import (
    Backend,
    Config,
    DealerConfig,
    Frontend,
    Known,
    Limits,
    Model,
    ServiceConfig,
    check_origin,
)
from syncserver.configuration.file import load
from syncserver.errors import ConfigError

ROOT = Path(__file__).parents[1]
KEY = "a-key-that-is-long-enough-for-use"
MAKE_ONE = "make one with 'syncserver generate-key --id NAME'"

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes syncserver.toml here and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("syncserver.toml").write_text(text, "utf-8")
        return "syncserver.toml"

    return write


def plain(key: ApiKey) -> str:
    assert key.secret is not None
    return key.secret.reveal().decode()


def named(name: str, key: str = KEY) -> ApiKey:
    return replace(ApiKey.of(key), id=name)


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"SYNCSERVER_STATE_DIR": str(tmp_path / "state"), **more}


def refusal(path: str | None, env: dict[str, str], known: Known | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, env, known)
    message = str(caught.value)
    assert "\n" not in message
    return message


def example() -> str:
    """Return the file of the how-to."""
    page = (ROOT / "docs/howto/configure.rst").read_text("utf-8")
    block = re.search(r"code-block:: toml\n\n((?:   .*\n|\n)+)", page)
    assert block is not None
    return re.sub(r"(?m)^   ", "", block[1])


# What is read


def test_without_a_file_the_defaults_serve_this_machine_only(tmp_path: Path) -> None:
    config = load(None, environ(tmp_path))
    assert config.frontend == Frontend()
    assert (config.frontend.address, config.frontend.port) == ("127.0.0.1", 5800)
    assert (config.backend.address, config.backend.port) == ("127.0.0.1", 5801)
    assert config.limits == Limits()
    assert config.engine == "memory"
    assert config.source is None
    assert not config.insecure


def test_without_services_there_is_one_dealer_of_each_kind_to_try(
    tmp_path: Path, write: Write
) -> None:
    for config in (load(None, environ(tmp_path)), load(write(""), environ(tmp_path)), Config()):
        assert config.services == {
            "datasync": ServiceConfig(
                type="datasync",
                dealers={
                    "AllTasks": DealerConfig(type="broadcast", model="Task"),
                    "CommentsByBlogEntry": DealerConfig(
                        type="keyed", model="Comment", key="entryId"
                    ),
                    "FilteredTasks": DealerConfig(type="filter", model="Task"),
                },
            ),
            "pubsub": ServiceConfig(type="pubsub"),
        }


def test_browsers_may_not_publish_to_everybody_unless_the_file_says_so(
    tmp_path: Path, write: Write
) -> None:
    text = '[services.a]\ntype = "pubsub"\n[services.b]\ntype = "pubsub"\nclient_publish = true\n'
    services = load(write(text), environ(tmp_path)).services
    assert {name: service.client_publish for name, service in services.items()} == {
        "a": False,
        "b": True,
    }


def test_the_file_of_the_how_to_is_read_as_it_stands(write: Write) -> None:
    path = write(example())
    keys = Path("keys")
    keys.mkdir()
    (keys / "web").write_text(KEY + "\n")
    (keys / "web").chmod(0o600)
    config = load(path, {})
    assert config.source == "syncserver.toml"
    assert config.frontend == Frontend(
        address="0.0.0.0", port=5800, allowed_origins=("https://app.example.org",)
    )
    assert [plain(key) for key in config.backend.api_keys] == [KEY]
    assert config.backend.key_file is None
    assert config.limits == Limits(grant_seconds=120, max_deltas=2000)
    assert config.models == {"Task": Model(key="id")}
    assert list(config.services) == ["datasync", "pubsub"]
    assert config.services["datasync"].dealers["CommentsByBlogEntry"].key == "entryId"


def test_key_files_are_found_from_the_directory_of_the_file(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "key").write_text(KEY)
    (folder / "key").chmod(0o400)
    (folder / "s.toml").write_text('[backend]\napi_keys = ["file:key"]')
    assert load(str(folder / "s.toml"), {}).backend.api_keys == (named("file:key"),)


def test_the_environment_names_the_file_unless_the_caller_does(
    tmp_path: Path, write: Write
) -> None:
    (tmp_path / "other.toml").write_text("[frontend]\nport = 1")
    env = environ(tmp_path, SYNCSERVER_CONFIG=write("[frontend]\nport = 2"))
    assert load(None, env).frontend.port == 2
    assert load("other.toml", env).frontend.port == 1
    assert load(None, env | {"SYNCSERVER_CONFIG": ""}).source is None


def test_every_limit_can_be_set(tmp_path: Path, write: Write) -> None:
    wanted = {name: (value or 0) + 1 for name, value in asdict(Limits()).items()}
    lines = "".join(f"{name} = {value}\n" for name, value in wanted.items())
    assert asdict(load(write("[limits]\n" + lines), environ(tmp_path)).limits) == wanted


def test_seconds_may_have_fractions(tmp_path: Path, write: Write) -> None:
    limits = load(write("[limits]\nping_seconds = 0.5"), environ(tmp_path)).limits
    assert limits.ping_seconds == 0.5


def test_the_environment_goes_before_the_file(tmp_path: Path, write: Write) -> None:
    path = write('[frontend]\nport = 1\naddress = "::1"\n[limits]\nping_seconds = 9')
    env = environ(
        tmp_path,
        SYNCSERVER_INSECURE="true",
        SYNCSERVER_ENGINE="memory",
        SYNCSERVER_FRONTEND__PORT="0",
        SYNCSERVER_FRONTEND__ALLOWED_ORIGINS="https://a.example, *",
        SYNCSERVER_BACKEND__ADDRESS="::1",
        SYNCSERVER_BACKEND__API_KEYS=f"{KEY},env:OTHER",
        SYNCSERVER_LIMITS__GRANT_SECONDS="1.5",
        OTHER=KEY * 2,
    )
    config = load(path, env)
    assert config.insecure
    assert config.frontend == Frontend(
        address="::1", port=0, allowed_origins=("https://a.example", "*")
    )
    assert config.backend == Backend(
        address="::1", api_keys=(ApiKey.of(KEY), named("env:OTHER", KEY * 2))
    )
    assert config.limits == Limits(grant_seconds=1.5, ping_seconds=9)


def test_an_assignment_goes_before_the_environment_and_the_file(
    tmp_path: Path, write: Write
) -> None:
    path = write("[frontend]\nport = 1\n[backend]\nport = 2\n[limits]\nmax_items = 3")
    env = environ(tmp_path, SYNCSERVER_FRONTEND__PORT="4", SYNCSERVER_BACKEND__PORT="5")
    config = load(path, env, assignments=["frontend.port=6", "frontend.allowed_origins="])
    assert (config.frontend.port, config.backend.port, config.limits.max_items) == (6, 5, 3)
    assert config.frontend.allowed_origins == ()
    assert config.given == ("frontend", "backend", "limits")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("frontend.port", ": no value; write SECTION.KEY=VALUE"),
        ("frontend.prot=1", ': unknown setting; did you mean "frontend.port"?'),
        ("services.x.type=pubsub", ": unknown setting; known: engine, insecure, frontend.addr"),
        ("frontend.port=x", ": must be a whole number, not a string"),
        (f"backend.api_keys={KEY}", ": others see the command line; write env:NAME or file:PATH"),
        ("engine=redis://:x@h", ": others see the command line; give a password in SYNCSERVER_E"),
    ],
)
def test_a_refused_assignment_is_named(tmp_path: Path, assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, environ(tmp_path), KNOWN, assignments=[assignment])
    setting = assignment.partition("=")[0]
    assert str(caught.value).startswith(f"--set {setting}{message}")
    assert KEY not in str(caught.value)


def test_variables_that_docker_and_kubernetes_make_are_let_be(tmp_path: Path) -> None:
    env = environ(tmp_path, SYNCSERVER_PORT="tcp://10.0.0.1:5800", SYNCSERVER_FRONTEND_PORT="x")
    assert load(None, env).frontend == Frontend()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://app.example.org", "https://app.example.org"),
        ("https://app.example.org:8443", "https://app.example.org:8443"),
        ("http://localhost:*", "http://localhost:*"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("HTTPS://App.Example.ORG", "https://app.example.org"),
        ("https://app.example.org:443", "https://app.example.org"),
        ("http://app.example.org:80", "http://app.example.org"),
        ("http://app.example.org:443", "http://app.example.org:443"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(written: str, meant: str) -> None:
    assert check_origin(written) == meant


def test_any_origin_may_come_where_the_file_says_insecure(tmp_path: Path, write: Write) -> None:
    path = write('insecure = true\n[frontend]\nallowed_origins = ["*"]')
    assert load(path, environ(tmp_path)).frontend.allowed_origins == ("*",)


def test_the_script_of_the_pages_for_iframes_is_a_url(tmp_path: Path, write: Write) -> None:
    url = "https://cdn.example/sockjs.min.js?v=1"
    path = write(f'[frontend]\nsockjs_client_url = "{url}"')
    assert load(path, environ(tmp_path)).frontend.sockjs_client_url == url
    given = {"SYNCSERVER_FRONTEND__SOCKJS_CLIENT_URL": url}
    assert load(None, environ(tmp_path) | given).frontend.sockjs_client_url == url


@pytest.mark.parametrize("url", ["sockjs.js", "https://a/x y", "https://a/';x", "javascript:x"])
def test_what_is_no_url_of_a_script_is_refused(tmp_path: Path, write: Write, url: str) -> None:
    path = write(f'[frontend]\nsockjs_client_url = "{url}"')
    with pytest.raises(ConfigError, match=r"sockjs_client_url: .* is no URL of a script"):
        load(path, environ(tmp_path))


def test_a_model_that_is_not_declared_has_the_default_key(tmp_path: Path, write: Write) -> None:
    config = load(write('[models.Task]\nkey = "uuid"'), environ(tmp_path))
    assert (config.model("Task").key, config.model("Comment").key) == ("uuid", "id")


def test_a_new_engine_dealer_or_service_is_a_row_in_the_tables(
    tmp_path: Path, write: Write
) -> None:
    known = Known(
        engines=("memory", "sqlite"), services={"chat": ("dealers",)}, dealers={"near": ()}
    )
    text = 'engine = "sqlite://x"\n[services.c]\ntype = "chat"\n'
    text += '[services.c.dealers.D]\ntype = "near"\nmodel = "M"'
    config = load(write(text), environ(tmp_path), known)
    assert config.engine == "sqlite://x"
    assert config.services["c"].dealers == {"D": DealerConfig(type="near", model="M")}


@pytest.mark.parametrize(
    ("engine", "shown"),
    [
        ("memory", "memory"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("rediss://user:secret@h:1/2?ssl_cert=secret", "rediss://h:1/2"),
        ("unix://:se%2Fcret@/run/redis.sock?password=secret", "unix:///run/redis.sock"),
        ("redis://:se@cret@h", "redis://h"),
    ],
)
def test_an_engine_is_shown_without_its_password(
    tmp_path: Path, write: Write, engine: str, shown: str
) -> None:
    config = load(write(f'engine = "{engine}"'), environ(tmp_path), KNOWN)
    assert config.engine == engine
    assert config.shown_engine == shown
    assert "cret" not in repr(config).replace("Secret", "")


def test_the_variable_of_the_engine_may_hold_its_password(tmp_path: Path) -> None:
    env = environ(tmp_path, SYNCSERVER_ENGINE="redis://:secret@h/0")
    assert load(None, env, KNOWN).engine == "redis://:secret@h/0"


def test_an_engine_whose_package_is_missing_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("syncserver.engines.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError) as caught:
        make_engine(Config(engine="redis://:secret@h"))
    assert str(caught.value) == (
        "engine redis: the package redis is missing; pip install 'syncserver[redis]'"
    )


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    config = load(None, environ(tmp_path))
    with pytest.raises(FrozenInstanceError):
        config.engine = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.services["x"] = ServiceConfig(type="pubsub")  # type: ignore[index]


# What is refused

DEALER = '[services.s]\ntype = "datasync"\n[services.s.dealers.D]\n'
IN_DEALER = "[services.s.dealers.D]"
LARGEST = 2**53


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "port = 1",
            "port: unknown key; known: engine, insecure, frontend, backend, limits, log, models,",
        ),
        ('"a\\nb" = 1\nengine = 2', r'"a\nb": unknown key; known: engine, insecure, frontend,'),
        ('engine = "memroy"', 'engine: unknown engine "memroy"; did you mean "memory"?'),
        (
            'engine = "rediss//h"',
            'engine: unknown engine "rediss//h"; did you mean "rediss"?',
        ),
        ('engine = "redis"', 'engine: "redis" needs an address; write "redis://" and where it is'),
        ('engine = "redis:x"', 'engine: "redis" needs an address; write "redis://" and where it'),
        ('engine = "redis:u://h"', 'engine: "redis" needs an address; write "redis://" and where'),
        ('engine = "redis://"', 'engine: "redis" needs an address; write "redis://" and where it'),
        ('engine = "memory://x"', 'engine: "memory" has no address; write "memory" alone'),
        (
            'engine = "redsi://:secret@h"',
            'engine: unknown engine "redsi"; did you mean "redis"?',
        ),
        ("engine = 1", "engine: must be a string, not a whole number"),
        ("engine = 2020-01-01", "engine: must be a string, not a date or time"),
        ("insecure = 1", "insecure: must be true or false, not a whole number"),
        ("frontend = 1", "frontend: must be a table, not a whole number"),
        ("[frontend]\nprot = 1", '[frontend] prot: unknown key; did you mean "port"?'),
        ("[frontend]\nport = true", "[frontend] port: must be a whole number, not true or false"),
        ('[frontend]\nport = "1"', "[frontend] port: must be a whole number, not a string"),
        (
            "[frontend]\nport = 65536",
            "[frontend] port: out of range; 1 to 65535, or 0 for any free port",
        ),
        (
            "[backend]\nport = -1",
            "[backend] port: out of range; 1 to 65535, or 0 for any free port",
        ),
        (
            "[backend]\nport = 5800",
            "[backend] port: the frontend has the same; give each its own",
        ),
        (
            '[frontend]\naddress = ""',
            "[frontend] address: must be a text without control characters, and not empty",
        ),
        (
            '[frontend]\nallowed_origins = "https://a.example"',
            "[frontend] allowed_origins: must be a list, not a string",
        ),
        (
            '[frontend]\nallowed_origins = ["https://a.example", 3]',
            "[frontend] allowed_origins[1]: must be a string, not a whole number",
        ),
        (
            '[frontend]\nallowed_origins = ["*"]',
            '[frontend] allowed_origins[0]: "*" lets every page in; name the origins, or set insec',
        ),
        (
            "[backend]\napi_keys = []",
            "[backend] api_keys: no key in the list; add one, or leave the list out",
        ),
        ('[backend]\nkey_file = "x"', "[backend] key_file: unknown key; known: address, port,"),
        (
            "[limits]\ngrant_second = 1",
            '[limits] grant_second: unknown key; did you mean "grant_seconds"?',
        ),
        (
            "[limits]\nmax_items = 1.5",
            "[limits] max_items: must be a whole number, not a number with a point",
        ),
        (
            "[limits]\nmax_items = true",
            "[limits] max_items: must be a whole number, not true or false",
        ),
        (
            "[limits]\nping_seconds = true",
            "[limits] ping_seconds: must be a number, not true or false",
        ),
        *(
            (
                f"[limits]\n{setting}",
                f"[limits] {setting.split()[0]}: out of range; more than 0, at most {LARGEST}",
            )
            for setting in (
                "max_items = 0",
                "max_items = -1",
                "ping_seconds = 0",
                "ping_seconds = nan",
                "ping_seconds = inf",
                f"ping_seconds = 1{'0' * 400}",
            )
        ),
        (
            "[limits]\nmax_message_bytes = 300_000",
            "[limits] max_inbox_bytes: smaller than one message of max_message_bytes",
        ),
        ('[log]\nformat = "jsno"', '[log] format: unknown format "jsno"; did you mean "json"?'),
        ("[models]\nTask = 1", "[models] Task: must be a table, not a whole number"),
        ('[models.Task]\nkye = "id"', '[models.Task] kye: unknown key; did you mean "key"?'),
        ('[models."a.b"]\nkey = 1', '[models."a.b"] key: must be a string, not a whole number'),
        ('[models.""]', '[models] "": no name; give it letters and digits'),
        (
            "[services]",
            "services: empty; add [services.NAME], or leave it out for the defaults",
        ),
        ("[services.s]", "[services.s] type: missing; known: datasync, pubsub"),
        (
            '[services.s]\ntype = "pubsup"',
            '[services.s] type: unknown type "pubsup"; did you mean "pubsub"?',
        ),
        ('[services.s]\ntpye = "pubsub"', '[services.s] tpye: unknown key; did you mean "type"?'),
        (
            '[services.s_backend]\ntype = "pubsub"',
            "[services] s_backend: names in _backend are for the trusted halves; choose another",
        ),
        (
            '[services.s]\ntype = "datasync"\nclient_publish = true',
            '[services.s] client_publish: does not go with type "datasync"; take it out',
        ),
        (
            '[services.s]\ntype = "pubsub"\nclient_publish = "no"',
            "[services.s] client_publish: must be true or false, not a string",
        ),
        (
            '[services.s]\ntype = "pubsub"\n[services.s.dealers.D]\ntype = "filter"',
            '[services.s] dealers: does not go with type "pubsub"; take it out',
        ),
        (
            f'{DEALER}type = "filter"',
            f'{IN_DEALER} model: missing; name the rows that it shows, as in model = "Task"',
        ),
        (f'{DEALER}model = "M"', f"{IN_DEALER} type: missing; known: broadcast, keyed, filter"),
        (
            f'{DEALER}type = "keyd"\nmodel = "M"',
            f'{IN_DEALER} type: unknown type "keyd"; did you mean "keyed"?',
        ),
        (
            f'{DEALER}type = "keyed"\nmodel = "M"',
            f"{IN_DEALER} key: missing; name the field of its rows",
        ),
        (
            f'{DEALER}type = "broadcast"\nmodel = "M"\nkey = "k"',
            f'{IN_DEALER} key: does not go with type "broadcast"; take it out',
        ),
    ],
)
def test_a_refusal_names_file_key_and_mend(
    tmp_path: Path, write: Write, text: str, message: str
) -> None:
    refused = refusal(write(text), environ(tmp_path), KNOWN)
    assert refused.startswith(f"syncserver.toml: {message}")
    assert "secret" not in refused
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "origin",
    [
        "app.example.org",
        "https://app.example.org/",
        "https://app.example.org/path",
        "https://*.example.org",
        "https://*",
        "https://user@app.example.org",
        "https://app.example.org:0",
        "https://app.example.org:65536",
        "https://app.example.org:",
        "https://app.example.org\n",
        "https://bücher.example",
        "null",
        "",
    ],
)
def test_what_is_no_origin_is_refused(tmp_path: Path, write: Write, origin: str) -> None:
    env = environ(tmp_path)
    path = write(f'[frontend]\nallowed_origins = ["{origin}"]'.replace('\n"', '\\n"'))
    assert refusal(path, env) == (
        f"syncserver.toml: [frontend] allowed_origins[0]: {origin!a} is no origin; write"
        ' scheme://host as in "https://app.example.org", with :PORT, or with :* for any port'
    )


def test_two_dealers_of_one_name_are_refused_with_the_line(tmp_path: Path, write: Write) -> None:
    path = write(f'{DEALER}type = "filter"\nmodel = "M"\n[services.s.dealers.D]\n')
    message = refusal(path, environ(tmp_path))
    assert message.startswith("syncserver.toml: not TOML: ")
    assert "(at line 6, " in message


def test_a_broken_file_is_refused_with_the_line(tmp_path: Path, write: Write) -> None:
    message = refusal(write('[frontend]\nport = 1\naddress "x"\n'), environ(tmp_path))
    assert message.startswith("syncserver.toml: not TOML: ")
    assert "(at line 3, " in message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a = " + "[" * 900 + "]" * 900, ": not TOML for settings: nested deeper than 32"),
        (".".join("a" * 900) + " = 1", ": not TOML for settings: nested deeper than 32"),
        ("[limits]\nmax_items = " + "1" * 4_301, ": not TOML: a number has too many digits"),
        ('[services."x[y"]\n[services."x[y".z]', '[services."x[y"] z: unknown key'),
        ("[services.'\"x']\n[services.'\"x'.z]", '[services."\\"x"] z: unknown key'),
        ('[backend]\napi_keys = ["file:\\u0000"]', "the name after file: has control characters"),
    ],
)
def test_a_file_that_is_odd_in_whatever_way_is_refused_in_one_line(
    write: Write, text: str, what: str
) -> None:
    assert what in refusal(write(text), {})


def test_a_line_ends_where_an_editor_says(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write("# a separator: \u2028\n[limits]\nmax_item = 1\n"), {})
    assert caught.value.line == 3


@pytest.mark.parametrize("text", ["1" * 4_301, "[" * 900])
def test_a_variable_that_is_odd_is_refused_in_one_line(text: str) -> None:
    message = refusal(None, {"SYNCSERVER_LIMITS__MAX_ITEMS": text})
    assert message == "SYNCSERVER_LIMITS__MAX_ITEMS: must be a whole number, not a string"


def test_a_file_that_is_not_utf_8_is_refused_with_the_line(tmp_path: Path, write: Write) -> None:
    path = write("")
    Path(path).write_bytes(b"a = 1\n\n# \xe4\n")
    assert refusal(path, environ(tmp_path)) == (
        "syncserver.toml: not UTF-8 (at line 3); save it as UTF-8"
    )


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    assert refusal(path, environ(tmp_path)) == (
        f"{path}: cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SYNCSERVER_FRONTEND__PORT", "x", ": must be a whole number, not a string"),
        ("SYNCSERVER_FRONTEND__PORT", "", ": must be a whole number, not a string"),
        (
            "SYNCSERVER_FRONTEND__PROT",
            "1",
            ': unknown setting; did you mean "SYNCSERVER_FRONTEND__PORT"?',
        ),
        ("SYNCSERVER_INSECURE", "yes", ": must be true or false, not a string"),
        ("SYNCSERVER_ENGINE", "memroy", ': unknown engine "memroy"; did you mean "memory"?'),
        (
            "SYNCSERVER_BACKEND__API_KEYS",
            f"{KEY},x",
            f"[1]: shorter than 32 characters; {MAKE_ONE}",
        ),
        (
            "SYNCSERVER_BACKEND__API_KEYS",
            "",
            ": no key in the list; add one, or leave the list out",
        ),
        ("SYNCSERVER_LIMITS__MAX_ITEMS", "0", f": out of range; more than 0, at most {LARGEST}"),
    ],
)
def test_a_refusal_of_the_environment_names_the_variable(
    tmp_path: Path, variable: str, value: str, message: str
) -> None:
    assert refusal(None, environ(tmp_path, **{variable: value})) == variable + message


# Keys

KEY_0 = "syncserver.toml: [backend] api_keys[0]: "


def key_file(text: str, mode: int = 0o600) -> None:
    Path("key").write_text(text)
    Path("key").chmod(mode)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", f"empty; {MAKE_ONE}"),
        ("x" * 31, f"shorter than 32 characters; {MAKE_ONE}"),
        ("x" * 1025, f"longer than 1024 characters; {MAKE_ONE}"),
        ("x" * 32 + " ", f"holds characters other than visible ASCII; {MAKE_ONE}"),
        ("ü" * 32, f"holds characters other than visible ASCII; {MAKE_ONE}"),
        ("env:NONE", "NONE is not set in the environment; set it, or take the key out"),
        ("env:SHORT", f"SHORT is refused: shorter than 32 characters; {MAKE_ONE}"),
        ("env:EMPTY", f"EMPTY is refused: empty; {MAKE_ONE}"),
        ("file:none", "none cannot be read: No such file or directory"),
        ("file:.", ". cannot be read: Is a directory"),
    ],
)
def test_a_weak_or_missing_key_is_refused(write: Write, key: str, message: str) -> None:
    path = write(f'[backend]\napi_keys = ["{key}"]')
    assert refusal(path, {"SHORT": "x", "EMPTY": ""}) == KEY_0 + message


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("", 0o600, f"key is refused: empty; {MAKE_ONE}"),
        ("\n", 0o600, f"key is refused: empty; {MAKE_ONE}"),
        ("short\n", 0o600, f"key is refused: shorter than 32 characters; {MAKE_ONE}"),
        ("x" * 2000, 0o600, f"key is refused: longer than 1024 characters; {MAKE_ONE}"),
        (f"{KEY}\n{KEY}", 0o600, "key is refused: holds characters other than visible ASCII;"),
        (KEY, 0o644, "key is open to other users; chmod 600 it"),
        (KEY, 0o640, "key is open to other users; chmod 600 it"),
        (KEY, 0o602, "key is open to other users; chmod 600 it"),
    ],
)
def test_a_key_file_is_private_and_holds_one_key(
    write: Write, text: str, mode: int, message: str
) -> None:
    path = write('[backend]\napi_keys = ["file:key"]')
    key_file(text, mode)
    assert refusal(path, {}).startswith(KEY_0 + message)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of root")
@pytest.mark.parametrize(
    ("mode", "owner", "group", "is_taken"),
    [
        (0o440, 0, 0, True),  # as systemd gives it, with an ACL for the daemon's user
        (0o440, 0, 1, False),
        (0o440, 1, 0, False),
        (0o444, 0, 0, False),
        (0o640, 0, 0, False),
    ],
)
def test_a_credential_of_systemd_is_private(
    write: Write, mode: int, owner: int, group: int, is_taken: bool
) -> None:
    path = write('[backend]\napi_keys = ["file:key"]')
    key_file(KEY, mode)
    os.chown("key", owner, group)
    if is_taken:
        (key,) = load(path, {}).backend.api_keys
        assert key.id == "file:key"
    else:
        assert "key is open to other users; chmod 600 it" in refusal(path, {})


def test_a_key_shows_itself_only_when_asked(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    config = load(write(f'[backend]\napi_keys = ["{KEY}"]'), {})
    (key,) = config.backend.api_keys
    logging.getLogger("test").warning("%s %r %s", key, key, config)
    shown = f"{config} {config!r} {key} {[key]} {asdict(config.backend)} {caplog.text}"
    assert KEY not in shown
    assert plain(key) == KEY


def test_a_key_is_equal_to_itself_and_to_copies(write: Write) -> None:
    key = Secret(KEY)
    assert key == Secret(KEY) == copy.deepcopy(key) == pickle.loads(pickle.dumps(key))
    assert key not in {Secret(KEY + "x"), KEY, KEY.encode()}


def test_no_refusal_holds_the_key(write: Write) -> None:
    secret = "hunter2-hunter2"
    key_file(secret)
    for text in (secret, "file:key", "env:K"):
        message = refusal(write(f'[backend]\napi_keys = ["{text}"]'), {"K": secret})
        assert secret not in message


HASH = hashlib.sha256(KEY.encode()).hexdigest()


def test_a_key_may_be_a_table_that_says_what_it_is_for(write: Write) -> None:
    path = write(f"""
[[backend.api_keys]]
id = "reporting"
key = "sha256:{HASH}"
operations = ["publish", "revoke"]
expires = 2999-01-01T00:00:00Z
[[backend.api_keys]]
id = "web"
key = "env:WEB"
expires = 2999-01-01
""")
    reporting, web = load(path, {"WEB": KEY * 2}).backend.api_keys
    assert reporting == ApiKey(
        id="reporting",
        digest=bytes.fromhex(HASH),
        operations=frozenset({"publish", "revoke"}),
        expires=datetime(2999, 1, 1, tzinfo=UTC),
    )
    assert web == replace(named("web", KEY * 2), expires=reporting.expires)


def test_a_key_without_a_name_is_called_after_where_it_stands(write: Write) -> None:
    path = write(f'[backend]\napi_keys = ["{KEY * 2}", "sha256:{HASH}", "env:K", "file:key"]')
    key_file(KEY * 3)
    keys = load(path, {"K": KEY * 4}).backend.api_keys
    two = hashlib.sha256((KEY * 2).encode()).hexdigest()
    assert [key.id for key in keys] == [
        f"sha256:{two[:8]}",
        f"sha256:{HASH[:8]}",
        "env:K",
        "file:key",
    ]
    assert all(key.operations == frozenset(OPERATIONS) for key in keys)


def test_one_key_in_two_places_is_one_key(write: Write) -> None:
    path = write('[backend]\napi_keys = ["env:OLD", "env:NEW"]')
    assert len(load(path, {"OLD": KEY, "NEW": KEY}).backend.api_keys) == 2


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("3", "api_keys[0]: must be a string, not a whole number"),
        ('"sha256:abc"', "api_keys[0]: sha256: must be followed by 64 hexadecimal digits; make"),
        ('{key = "file:key"}', "[backend.api_keys[0]] id: missing; name the key"),
        ('{id = "a"}', "[backend.api_keys[0]] key: missing; write the key, env:NAME or file:PATH"),
        ('{id = "a b", key = "file:key"}', "[backend.api_keys[0]] id: must be 1 to 64 letters"),
        ('{id = "a", key = "x"}', "[backend.api_keys[0]] key: shorter than 32 characters; make"),
        ('{id = "a", kye = "x"}', '[backend.api_keys[0]] kye: unknown key; did you mean "key"?'),
        (
            '{id = "a", key = "file:key", operations = ["publsh"]}',
            '[backend.api_keys[0]] operations[0]: unknown operation "publsh"; did you mean',
        ),
        (
            '{id = "a", key = "file:key", operations = []}',
            "[backend.api_keys[0]] operations: empty; known: publish, authorize, revoke, inspect",
        ),
        (
            '{id = "a", key = "file:key", expires = "2030-01-01"}',
            "[backend.api_keys[0]] expires: must be a date, or a date and time, without quotes",
        ),
        (
            '{id = "a", key = "file:key", expires = 2030-01-01T00:00:00}',
            "[backend.api_keys[0]] expires: has no time zone; end it with Z, for UTC",
        ),
        (
            '{id = "a", key = "file:key", expires = 2000-01-01}',
            "api_keys: every key has expired; add one that has not",
        ),
        (
            '{id = "a", key = "file:key"}, {id = "a", key = "env:K"}',
            'api_keys[1]: the id "a" is taken; choose another',
        ),
        (
            '{id = "a", key = "file:key"}, {id = "b", key = "file:key", operations = ["revoke"]}',
            "api_keys[1]: the same key as a, with other rights; make another",
        ),
    ],
)
def test_a_refusal_of_a_key_names_its_place(write: Write, entries: str, message: str) -> None:
    path = write(f"[backend]\napi_keys = [{entries}]")
    key_file(KEY)
    section = "" if message.startswith("[") else "[backend] "
    assert refusal(path, {"K": KEY * 2}).startswith(f"syncserver.toml: {section}{message}")


# Certificates


def certificate(name: str = "door") -> None:
    """Write door.pem and door.key here."""
    made = trustme.CA().issue_cert("localhost")
    made.cert_chain_pems[0].write_to_path(f"{name}.pem")
    made.private_key_pem.write_to_path(f"{name}.key")
    Path(f"{name}.key").chmod(0o640)


def test_a_certificate_is_found_from_the_directory_of_the_file(write: Write) -> None:
    path = write('[frontend]\ntls_cert = "door.pem"\ntls_key = "door.key"\n' + KEYS)
    certificate()
    frontend = load(path, {"K": KEY}).frontend
    assert (frontend.tls_cert, frontend.tls_key) == ("door.pem", "door.key")
    Path("both.pem").write_text(Path("door.key").read_text() + Path("door.pem").read_text())
    Path("both.pem").chmod(0o600)
    path = write('[backend]\ntls_cert = "both.pem"\napi_keys = ["env:K"]')
    assert load(path, {"K": KEY}).backend.tls_cert == "both.pem"


KEYS = '[backend]\napi_keys = ["env:K"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('tls_key = "door.key"', "tls_key: without tls_cert; name the certificate too"),
        ('tls_cert = "none.pem"', "tls_cert: none.pem cannot be read: No such file or directory"),
        ('tls_cert = "open.pem"\ntls_key = "open.key"', "tls_cert: open.key is open to all users;"),
        (
            'tls_cert = "door.pem"\ntls_key = "other.key"',
            "tls_cert: door.pem with other.key is no certificate with its key, in PEM: KEY_VAL",
        ),
        ('tls_cert = "s.pem"', "tls_cert: s.pem is no certificate with its key, in PEM:"),
    ],
)
def test_a_certificate_that_cannot_be_shown_is_refused(
    write: Write, text: str, message: str
) -> None:
    for name in ("door", "other", "open"):
        certificate(name)
    Path("open.key").chmod(0o644)
    Path("s.pem").write_text("x")
    Path("s.pem").chmod(0o600)
    path = write(f"[frontend]\n{text}\n{KEYS}")
    assert refusal(path, {"K": KEY}).startswith(f"syncserver.toml: [frontend] {message}")


# The daemon's own key


def test_a_key_is_made_once_and_kept_in_a_private_file(tmp_path: Path, write: Write) -> None:
    first = load(None, environ(tmp_path)).backend
    path = tmp_path / "state" / "api-key"
    assert first.key_file == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [plain(key) for key in first.api_keys] == [path.read_text().strip()]
    assert load(write("[frontend]\nport = 0"), environ(tmp_path)).backend == first
    assert list(path.parent.iterdir()) == [path]


def test_two_installations_have_different_keys(tmp_path: Path) -> None:
    keys = {load(None, environ(tmp_path / name)).backend.api_keys for name in "ab"}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"SYNCSERVER_STATE_DIR": "own", "XDG_STATE_HOME": "xdg", "HOME": "home"}, "own"),
        ({"SYNCSERVER_STATE_DIR": "", "XDG_STATE_HOME": "xdg", "HOME": "home"}, "xdg/syncserver"),
        ({"HOME": "home"}, "home/.local/state/syncserver"),
    ],
)
def test_the_key_is_kept_where_the_environment_says(
    tmp_path: Path, variables: dict[str, str], place: str
) -> None:
    env = {name: str(tmp_path / value) if value else "" for name, value in variables.items()}
    assert load(None, env).backend.key_file == str(tmp_path / place / "api-key")


def test_a_relative_xdg_directory_is_passed_over_as_its_specification_says(tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": "state", "HOME": str(tmp_path)}
    place = tmp_path / ".local/state/syncserver/api-key"
    assert load(None, env).backend.key_file == str(place)


def test_without_a_place_for_the_key_the_start_is_refused() -> None:
    assert refusal(None, {}) == (
        "environment: HOME is not set, so a key cannot be kept; set SYNCSERVER_STATE_DIR or"
        " backend.api_keys"
    )


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    assert refusal(None, environ(tmp_path)) == (
        f"{tmp_path}/state/api-key: a key cannot be kept here: File exists; set"
        " backend.api_keys, or SYNCSERVER_STATE_DIR to a directory of your own"
    )


def test_a_place_where_others_may_put_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    assert refusal(None, environ(tmp_path)) == (
        f"{tmp_path}/state: other users could put a key here; chmod 700 it"
    )


def test_a_kept_key_that_was_opened_to_others_is_refused(tmp_path: Path) -> None:
    load(None, environ(tmp_path))
    (tmp_path / "state" / "api-key").chmod(0o644)
    assert refusal(None, environ(tmp_path)) == (
        f"{tmp_path}/state/api-key is open to other users; chmod 600 it"
    )


def test_a_wide_umask_does_not_open_the_key(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load(None, environ(tmp_path))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state" / "api-key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


RACER = """
import os, sys
from syncserver.configuration.file import load
print("ready", flush=True)
sys.stdin.readline()
print(load(None, os.environ).backend.api_keys[0].secret.reveal().decode())
"""


def test_starts_at_the_same_time_agree_on_one_key(tmp_path: Path) -> None:
    env = os.environ | environ(tmp_path) | {"PYTHONPATH": str(ROOT)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    keys = {racer.communicate(timeout=30)[0].strip() for racer in racers}
    path = tmp_path / "state" / "api-key"
    assert keys == {path.read_text().strip()}
    assert list(path.parent.iterdir()) == [path]


# The how-to


def test_the_example_of_the_how_to_is_whole() -> None:
    assert set(tomllib.loads(example())) == {"frontend", "backend", "limits", "models", "services"}


def test_what_nodes_must_have_alike_is_compared_and_nothing_else(
    tmp_path: Path, write: Write
) -> None:
    dealers = '[services.d]\ntype = "datasync"\n'
    a = '[services.d.dealers.A]\ntype = "broadcast"\nmodel = "Task"\n'
    b = '[services.d.dealers.B]\ntype = "keyed"\nmodel = "Task"\nkey = "x"\n'

    def digest(text: str) -> str:
        return shared_settings(load(write(text), environ(tmp_path)))

    first = digest(dealers + a + b)
    of_its_own = "[limits]\nmax_connections = 5\n[log]\nlevel = 'debug'"
    assert digest(dealers + b + a + of_its_own) == first
    as_untold = "[limits]\ngrant_seconds = 120.0\n[models.Task]\n[models.Note]\nkey = 'id'"
    assert digest(dealers + a + b + as_untold) == first
    others = [
        dealers + a,
        dealers + a + b.replace('"x"', '"y"'),
        dealers + a + b + "[limits]\nretention_seconds = 5",
        dealers + a + b + '[models.Task]\nkey = "pk"',
    ]
    assert len({first, *map(digest, others)}) == 1 + len(others)
