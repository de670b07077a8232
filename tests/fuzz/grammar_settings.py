"""The grammars of what an operator writes: TOML with the daemon's own keys, URLs, keys, origins."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from syncserver.config import Backend, Frontend, Limits, Log
from tests.fuzz.grammar import Inputs, Texts, as_bytes, one

KEY = "k" * 40
_GROUPS: dict[str, Any] = {"frontend": Frontend, "backend": Backend, "limits": Limits, "log": Log}

# Values, as TOML and as a variable or a flag has them.

_WHOLE = one(*["1", "64", "5800", "65535", "0"] * 4, *("-1", "65536", "0x10", "1_0", "9" * 20))
_NUMBERS = one(
    *["1", "1.5", "0.25", "3600"] * 4, "0", "-1.5", "inf", "nan", "1e400", "1e308", "1e-9"
)
_BOOLS = one(*["true", "false"] * 4, "1", '"true"')
_WRONG = one(
    *('""', '"\\t"', '"\\u0000"', "[]", "[[1], 'x']", "{}", "{ a = { b = 1 } }", "2030-01-01"),
    *("07:32:00", "0001-01-01T00:00:00+23:59", "'", "", "nan", '"é\u2028"', "[1,", '"""a\nb"""'),
)
_NAMED: dict[str, Texts] = {
    "address": one('"127.0.0.1"', '"::1"', '"0.0.0.0"', '"nowhere"'),
    "allowed_origins": one(
        '["https://app.example.org"]', '["http://localhost:*", "http://[::1]"]', '["*"]', '["x"]'
    ),
    "api_keys": one(
        '["env:A_KEY"]',
        '["env:A_KEY", "file:key"]',
        '[{ id = "a", key = "env:A_KEY", operations = ["publish"], expires = 2030-01-01 }]',
        '[{ id = "a", key = "sha256:%s" }, { id = "a", key = "env:A_KEY" }]' % ("0f" * 32),
        '[{ key = "env:A_KEY", expires = 9999-12-31T23:59:59-23:59 }, "env:B"]',
    ),
    "trusted_proxies": one('["10.0.0.0/8", "unix"]', '["::1"]', '["10.0.0.1/8"]', '["fe80::1%a"]'),
    "unix_socket": one('"s"', '"/tmp/s"', '"%s"' % ("a" * 120)),
    "unix_socket_mode": one('"0660"', '"600"', '"0990"', '"7"'),
    "tls_cert": one('"/nowhere"', '"key"'),
    "tls_key": one('"/nowhere"', '"key"'),
    "sockjs_client_url": one('"https://h/s.js"', '"http://h/<"'),
    "format": one('"text"', '"json"', '"xml"'),
    "level": one('"info"', '"debug"', '"loud"'),
}
_KINDS: dict[str, Texts] = {"int": _WHOLE, "float": _NUMBERS, "bool": _BOOLS}
_NOT_GIVEN = ("key_file",)
SETTINGS: dict[tuple[str, str], Texts] = {
    (group, one_field.name): {**_KINDS, **_NAMED}[
        one_field.name if one_field.name in _NAMED else str(one_field.type).split(" ")[0]
    ]
    for group, of in _GROUPS.items()
    for one_field in fields(of)
    if one_field.name not in _NOT_GIVEN
}
_OTHERS = [
    ("limits", "max_item"),
    ("frontend", "é"),
    ("log", ""),
    ("nothing", "x"),
    ("limits", '"'),
]
_CHOICES = [(group, [name for of, name in SETTINGS if of == group]) for group in _GROUPS]


@st.composite
def _settings(draw: DrawFn) -> tuple[str, str, str]:
    """Return a section, a key and a value that mostly may be there."""
    group, names = draw(st.sampled_from(_CHOICES))
    name = draw(st.sampled_from(names))
    value = draw(_WRONG if draw(one(*[False] * 12, True)) else SETTINGS[group, name])
    if draw(one(*[False] * 16, True)):
        group, name = draw(st.sampled_from(_OTHERS))
    return group, name, value


# Files.

_NAMES = one("datasync", "Task", "a b", "é", "", "x[y", '"x', "native", "rohrpost")
_SERVICES = one(
    ('type = "pubsub"', "client_publish = true"),
    ('type = "datasync"', "dealers.All = { type = 'broadcast', model = 'Task' }"),
    ('type = "datasync"', 'dealers."a b" = { type = "keyed", model = "T", key = "id" }'),
    ('type = "datasync"', "dealers.F = { type = 'filter', model = 'T' }"),
    ('type = "datasync"', "dealers.G = { type = 'group' }", "dealers.H = { type = 'group' }"),
    ('type = "datasync"', "dealers.G = { type = 'group', model = 'T' }"),
    ('type = "datasync"', "dealers = []"),
    ('type = "chat"',),
    ("dealers = {}",),
)
_TABLES = st.one_of(
    st.tuples(st.just("services"), _NAMES, _SERVICES),
    st.tuples(st.just("models"), _NAMES, one(('key = "id"',), ('key = ""',), ("x = 1",), ())),
    st.tuples(
        st.just("protocols"),
        _NAMES,
        one((), ('path = "/r"',), ('path = "/ws"',), ('path = "r"',), ('path = "/backend/x"',)),
    ),
)
_ALONE = one(
    *('engine = "memory"', 'engine = "redis://u:secret@h:1/0"', 'engine = "sqlite:///x"'),
    *('engine = "nothing"', "insecure = true", "insecure = 0", "x = 1", "a.b.c = 1", "# \u2028"),
)


def _name(text: str) -> str:
    return text if text.isascii() and text.isalpha() else json.dumps(text)


@st.composite
def _files(draw: DrawFn) -> str:
    """Return a file whose settings stand in tables, with dots, or within braces."""
    lines = draw(st.lists(_ALONE, max_size=2, unique=True))
    tables: dict[str, list[str]] = {}
    for group, name, value in draw(st.lists(_settings(), max_size=5)):
        line = f"{_name(name) if name.isalnum() else name} = {value}"
        match draw(one("table", "table", "table", "dots", "braces")):
            case "table":
                tables.setdefault(group, []).append(line)
            case "dots":
                lines.append(f"{group}.{line}")
            case _:
                lines.append(f"{group} = {{ {line} }}")
    for kind, name, inner in draw(st.lists(_TABLES, max_size=2)):
        tables.setdefault(f"{kind}.{_name(name)}", []).extend(inner)
    for table, inner in tables.items():
        lines += [f"[{table}]", *inner]
    return draw(one(*["\n"] * 12, "\r\n", "\r")).join(lines) + "\n"


FILES: Inputs = as_bytes(_files())

# Variables and flags.


@st.composite
def _overrides(draw: DrawFn) -> str:
    variables = {
        f"{group}__{name}".upper(): value.strip("\"'")
        for group, name, value in draw(st.lists(_settings(), max_size=3))
    }
    flags = [
        f"{group}.{name}={value}" if draw(one(True, True, True, False)) else value
        for group, name, value in draw(st.lists(_settings(), max_size=3))
    ]
    return json.dumps([variables, flags])


OVERRIDES: Inputs = as_bytes(_overrides())

# What is short, out of parts.


@st.composite
def _joined(draw: DrawFn, *parts: Texts) -> str:
    return "".join([draw(part) for part in parts])


ENGINES: Inputs = as_bytes(
    _joined(
        one("redis", "rediss", "unix", "sqlite", "memory", "Redis", "", "http"),
        one("://", "://", "://", ":/", ":", ""),
        one("", "", "user:secret@", ":secret@", "u@", "a@b:secret@", ":sec%72et@", "@"),
        one("h", "[::1]", "127.0.0.1", "/run/x.sock", "", "[", "é", "h h", "/var/lib/x.db"),
        one("", "", ":6379", ":0", ":65536", ":-1", ":x", ":"),
        one("", "", "/0", "/15", "/x", "/-1", "/0/1", "//"),
        one(
            *(
                "",
                "",
                "?prefix=p",
                "?timeout_seconds=1.5",
                "?timeout_seconds=nan",
                "?db=2",
                "?db=x",
            ),
            *("?prefix=a&prefix=b", "?x=1", "?", "?ssl_cert_reqs=none", "?synchronous=off", "#x"),
            *("?socket_timeout=1", "?protocol=9", "?max_connections=-1", "?timeout_seconds=0"),
        ),
    )
)
KEYS: Inputs = as_bytes(
    _joined(
        one("env:", "file:", "sha256:", "", "ENV:", " env:"),
        one("A_KEY", "key", "0f" * 32, KEY, "", "short", "/", "..", "a\0b", "é" * 20, "/nowhere"),
        one(*[""] * 6, "\n", " ", "x", "=", ":"),
    )
)
_PORTS = one("", "", ":8000", ":*", ":0", ":65535", ":65536", ":08", ":", ":x")
ADDRESSES: Inputs = as_bytes(
    st.one_of(
        _joined(
            one("https://", "http://", "HTTP://", "null", "", "ftp://", "https:/", "a+b.c-d://"),
            one(
                "app.example.org",
                "localhost",
                "[::1]",
                "[::ffff:1.2.3.4]",
                "[",
                "é",
                "A_B",
                "*",
                "",
            ),
            _PORTS,
            one(*[""] * 4, "/", "/s.js", "?", "#", " ", "\n", "@h", "/<x>", "/a'b"),
        ),
        _joined(
            one("10.1.2.3", "10.0.0.0", "::1", "::ffff:10.0.0.1", "fe80::1", "unix", "010.1.1.1"),
            one("", "", "/8", "/32", "/33", "/-1", "/255.0.0.0", "%eth0", "%", "%\n"),
            one("", "", ", 10.0.0.1", ",", "\n", ", unix", " ", ":80"),
            _PORTS,
        ),
    )
)
