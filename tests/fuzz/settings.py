"""The parsers of what the operator writes: files, variables, flags, keys, addresses, origins."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from syncserver import app
from syncserver.apikeys import ApiKey, KeyRing
from syncserver.config import Config, check_engine, check_origin, check_script_url
from syncserver.configuration import keys
from syncserver.configuration.doors import check_proxy
from syncserver.configuration.file import load
from syncserver.engines.redis import RedisEngine
from syncserver.errors import ConfigError
from syncserver.handlers.base import origin_allowed
from syncserver.handlers.proxied import Proxies, parse_address
from tests.fuzz import grammar_settings as grammar
from tests.fuzz.grammar_settings import KEY as _KEY
from tests.fuzz.mutation import MAX_BYTES, bytes_like, json_like
from tests.fuzz.parsers import texts
from tests.fuzz.target import Source, Target

_KNOWN = app.KNOWN


@cache
def _directory() -> Path:
    in_memory = Path("/dev/shm")  # a file is written for each input
    path = Path(tempfile.mkdtemp("", "syncserver-fuzz-", in_memory if in_memory.is_dir() else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    (path / "key").write_text(_KEY + "\n")
    (path / "key").chmod(0o600)
    keys.ensure_key_file({"HOME": str(path)})
    return path


def _refused(error: ConfigError) -> str:
    """Every refusal is a line, with the line where it stands."""
    for one in (error, *error.others):
        assert str(one)
        assert "\n" not in one.located(), "a refusal of several lines"
    return "\n".join(one.located() for one in (error, *error.others))


def _loaded(path: str | None, environ: dict[str, str], assignments: list[str]) -> str | Config:
    environ = {"HOME": str(_directory()), "A_KEY": _KEY, **environ}
    try:
        config = load(path, environ, _KNOWN, assignments=assignments, make_key=False)
    except ConfigError as error:
        return _refused(error)
    assert isinstance(config, Config)
    assert "secret@" not in config.shown_engine
    assert _KEY not in repr(config)
    app.engine_class(config)
    if config.engine == "memory":  # others would be connected to, or opened
        registries, _ = app.build(config)
        app.make_server(config, registries)
    return config


def check_config(data: bytes) -> str:
    """Any file is refused with ConfigError, or is settings."""
    path = _directory() / "fuzz.toml"
    path.write_bytes(data)
    found = _loaded(str(path), {}, [])
    if isinstance(found, Config):
        _check_given(found, tomllib.loads(data.decode()))
    return repr(found)


def _check_given(config: Config, given: dict[str, Any]) -> None:
    """What a file sets is what was taken."""
    for group, name in grammar.SETTINGS:
        value = given.get(group, {}).get(name)
        if isinstance(value, bool | int | float):
            taken = getattr(getattr(config, group), name)
            assert (type(taken), taken) == (type(value), value), (group, name)


def check_overrides(data: bytes) -> str:
    """Any variables and flags are refused with ConfigError, or are settings."""
    try:
        environ, assignments = json.loads(data)
        given = {f"SYNCSERVER_{name}": _text(value) for name, value in environ.items()}
        flags = [_text(one) for one in assignments]
    except (ValueError, TypeError, AttributeError, RecursionError):
        given, flags = {}, [data.decode("utf-8", "surrogateescape")]
    for name in ("SYNCSERVER_CONFIG", "SYNCSERVER_STATE_DIR"):
        given.pop(name, None)
    return repr(_loaded(None, given, flags))


def _text(value: Any) -> str:
    """Return what the system can have in a variable: any bytes but zeros."""
    text = value if isinstance(value, str) else json.dumps(value)
    raw = text.encode("utf-8", "surrogatepass").replace(b"\0", b"")
    return raw.decode("utf-8", "surrogateescape")


def check_engine_url(data: bytes) -> str:
    """Any engine is refused with ConfigError, or can be made."""
    text = data.decode("utf-8", "replace")
    try:
        check_engine(text, _KNOWN)
        known = True
    except ConfigError as error:
        known = _refused(error) == ""
    try:
        RedisEngine(None, text)
    except ConfigError as error:
        return _refused(error)
    if not known:
        return "refused before"
    shown = Config(engine=text).shown_engine
    scheme, _, address = text.partition("://")
    assert scheme in _KNOWN.engines
    assert "secret" not in shown or "secret" not in address.rpartition("@")[0]
    return shown


def check_key(data: bytes) -> str:
    """Any text is refused with ConfigError, or is a key that is found and not shown."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        key = keys.find_key(text, {"A_KEY": _KEY, "": "short"}, _directory())
    except ConfigError as error:
        assert text not in str(error) or len(text) < 32 or text.startswith(("env:", "file:"))
        return _refused(error)
    assert isinstance(key, ApiKey)
    assert _KEY not in repr(key)
    ring = KeyRing([key])
    if key.secret is not None:
        assert ring.find(key.secret.reveal()) is key
    assert ring.find(data + b"x") is None
    return repr(key)


_ALLOWED = ["https://app.example.org", "http://localhost:*", "http://[::1]:*", "https://a.b:8443"]
_PROXIES = Proxies(["10.0.0.0/8", "::1", "unix"])


def check_address(data: bytes) -> str:
    """Origins, proxies and addresses: refused with ConfigError, or as they are compared."""
    text = data.decode("latin-1")
    found: list[Any] = [origin_allowed(text, _ALLOWED), str(parse_address(text))]
    assert not origin_allowed(text, [])
    client = _PROXIES.client_of(text.split("\n"))
    assert client is None or str(parse_address(client)) == client
    for check in (check_origin, check_proxy, check_script_url):
        try:
            meant = check(text)
        except ConfigError as error:
            _refused(error)
            continue
        assert check(meant) == meant
        if check is check_origin and "[" not in meant:  # not each is the address of anybody
            assert origin_allowed(meant.replace(":*", ":1"), [meant])
        found.append(meant)
    return repr((client, found))


FILES = [
    b"""engine = "redis://u:secret@h:1/0?prefix=p"
[frontend]
port = 5800
allowed_origins = ["https://app.example.org", "http://localhost:*"]
trusted_proxies = ["10.0.0.0/8", "unix"]
[limits]
max_items = 64
grant_seconds = 1.5
""",
    b"""[backend]
address = "127.0.0.1"
api_keys = [
 "env:A_KEY",
 "file:key",
 { id = "a", key = "sha256:%s", operations = ["publish"], expires = 2030-01-01 },
]
[log]
level = "info"
"""
    % (b"0f" * 32),
    b"""[services.datasync]
type = "datasync"
[services.datasync.dealers."All Tasks"]
type = "keyed"
model = "Task"
key = "id"
[services.chat]
type = "pubsub"
client_publish = true
[models.Task]
key = "id"
""",
    b"""insecure = true
frontend.unix_socket = "s"
frontend.unix_socket_mode = "0660"
frontend.sockjs_client_url = "https://h/s.js"
backend.on_frontend = true
protocols.rohrpost.path = "/r"
protocols.native = {}
""",
    b"",
]
OVERRIDES = texts(
    [
        [{"FRONTEND__PORT": "1", "LIMITS__MAX_ITEMS": "0x10"}, ["frontend.port=2"]],
        [{"BACKEND__API_KEYS": "env:A_KEY, x"}, ["backend.api_keys=env:A_KEY,file:key"]],
        [{"ENGINE": "redis://:secret@h"}, ["engine=sqlite:///x", "insecure=true"]],
        [{"FRONTEND__ALLOWED_ORIGINS": "http://a,*"}, ["log.level=info", "limits.max_items=[1]"]],
        [{"FRONTEND__UNIX_SOCKET": "/x"}, ["frontend.trusted_proxies=unix,::1"]],
    ]
)
ENGINES = [
    b"memory",
    b"redis://user:secret@h:6379/1?prefix=p&timeout_seconds=1.5&ssl_cert_reqs=none",
    b"rediss://[::1]:6379?db=3&ssl_ca_certs=/x",
    b"unix:///run/redis.sock?db=2",
    b"sqlite:///var/lib/x.db",
]
KEYS = [_KEY.encode(), b"env:A_KEY", b"env:", b"file:key", b"file:/", b"sha256:" + b"0f" * 32]
ADDRESSES = [
    b"https://app.example.org",
    b"http://localhost:8000",
    b"HTTP://[::1]:*",
    b"null",
    b"10.1.2.3, ::ffff:10.0.0.1, 192.0.2.1",
    b"10.0.0.0/8",
    b"fe80::1%eth0",
    b"https://cdn.example.org/sockjs.min.js",
]
_TOML = [b"[", b"]]\n", b" = ", b'"""', b"'", b"\\u0000", b"[a.b]\n", b"2030-13-01", b"inf", b"nan"]
_TOML += [b'["x[y"]\n', b"['\"x']\n", b"[" * 900, b'"file:\\u0000"', b"1" * 5_000]

_VALUES = [
    *(b"0", b"-1", b"1.5", b"1e400", b"inf", b"nan", b"true", b'""', b"[]", b"{}", b"2030-01-01"),
    *(
        b"0x10",
        b"1_0",
        b'"\\u0000"',
        b'"\\t"',
        b'"*"',
        b"['x']",
        b"[[1], 'x']",
        b"[{}]",
        b"07:32:00",
    ),
    *(
        b'"env:A_KEY"',
        b'["file:/"]',
        b"{ a = { b = 1 } }",
        b'"redis://["',
        b'"unix:///x"',
        b"9" * 400,
    ),
    *(b"0001-01-01T00:00:00+23:59", b"9999-12-31T23:59:59-23:59", b'"%s"' % (b"a/" * 100)),
]
_changed_file = bytes_like(*_TOML)


def mutate_file(rng: Random, pool: Sequence[bytes]) -> bytes:
    """Return a file whose keys have other values, or whose lines stand elsewhere."""
    if rng.random() < 0.4:
        return _changed_file(rng, pool)
    lines = rng.choice(pool).split(b"\n")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        key, equals, _ = lines[at].partition(b" = ")
        match rng.randrange(6):
            case 0:
                del lines[at : at + rng.randint(1, 3)]
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[at])
            case 2:
                lines[at:at] = rng.choice(pool).split(b"\n")
            case _ if equals:
                lines[at] = key + equals + rng.choice(_VALUES)
            case _:
                lines[at] += rng.choice(_TOML)
        lines = lines or [b""]
    return b"\n".join(lines)[:MAX_BYTES]


TARGETS = [
    Target(Source("config", FILES, grammar.FILES, mutate_file, share=20), check_config, 1_000),
    Target(Source("overrides", OVERRIDES, grammar.OVERRIDES, json_like()), check_overrides, 3_000),
    Target(Source("engines", ENGINES, grammar.ENGINES, bytes_like()), check_engine_url, 5_000),
    Target(Source("keys", KEYS, grammar.KEYS, bytes_like()), check_key, 14_000),
    Target(Source("addresses", ADDRESSES, grammar.ADDRESSES, bytes_like()), check_address, 12_000),
]
