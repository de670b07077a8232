"""The configuration file, checked whole: every refusal names file, key and mend in one line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from syncserver.config import (
    Backend,
    Config,
    DealerConfig,
    Frontend,
    Known,
    Limits,
    Model,
    ServiceConfig,
    check_engine,
    check_origin,
    default_services,
    suggest,
)
from syncserver.errors import ConfigError
from syncserver.keys import ensure_key_file, find_key, read_key_file

T = TypeVar("T")
Door = TypeVar("Door", Frontend, Backend)

_KINDS = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}
_LARGEST = 2**53
_SECTIONS = {"frontend": Frontend, "backend": Backend, "limits": Limits}


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the file: hands out checked values and knows where each of them stands."""

    source: str
    content: Mapping[str, Any]
    overrides: Mapping[str, str]
    path: tuple[str, ...] = ()

    def error(self, key: str, what: str) -> ConfigError:
        """Return a refusal of the value of ``key``, whether it came from file or environment."""
        name, *index = re.split(r"(?=\[)", key, maxsplit=1)
        if variable := self.overrides.get(".".join((*self.path, name))):
            return ConfigError(f"{variable}{''.join(index)}: {what}")
        table = f"[{'.'.join(map(_shown, self.path))}] " if self.path else ""
        return ConfigError(f"{self.source}: {table}{key}: {what}")

    def only(self, names: Sequence[str]) -> None:
        """Refuse keys that are none of ``names``."""
        for key in self.content:
            if key not in names:
                raise self.error(_shown(key), f"unknown key; {suggest(key, names)}")

    def get(self, key: str, kind: type[T], default: T) -> T:
        """Return the value of a key that may be left out."""
        value = self.content.get(key, default)
        if type(value) not in ((int, float) if kind is float else (kind,)):
            raise self.error(key, f"must be {_KINDS[kind]}, not {_kind_of(value)}")
        return cast(T, value)

    def name(self, key: str, default: str = "", hint: str = "it has no default") -> str:
        """Return a text that cannot be empty; without a default it cannot be left out."""
        text = self.get(key, str, default)
        if key not in self.content and not default:
            raise self.error(key, f"missing; {hint}")
        if not text or not text.isprintable():
            raise self.error(key, "must be a text without control characters, and not empty")
        return text

    def choice(self, key: str, names: Iterable[str], default: str = "") -> str:
        """Return one of ``names``."""
        value = self.name(key, default, suggest("", names))
        if value not in names:
            raise self.error(key, f"unknown {key} {json.dumps(value)}; {suggest(value, names)}")
        return value

    def each(self, key: str, check: Callable[[str], T]) -> tuple[T, ...]:
        """Return what ``check`` makes of every string of a list."""
        checked = []
        for index, value in enumerate(self.get(key, list, [])):
            place = f"{key}[{index}]"
            if type(value) is not str:
                raise self.error(place, f"must be a string, not {_kind_of(value)}")
            try:
                checked.append(check(value))
            except ConfigError as error:
                raise self.error(place, str(error)) from error
        return tuple(checked)

    def table(self, key: str) -> Table:
        """Return the table under a key, empty where it is left out."""
        content = self.get(key, dict, {})
        return replace(self, content=content, path=(*self.path, key))

    def tables(self, key: str) -> Iterator[tuple[str, Table]]:
        """Yield the named tables under a key."""
        parent = self.table(key)
        for name in parent.content:
            if not name or not name.isprintable():
                raise parent.error(_shown(name), "no name; give it letters and digits")
            yield name, parent.table(name)


def load(path: str | None, environ: Mapping[str, str], known: Known | None = None) -> Config:
    """Return the settings of a file (else of SYNCSERVER_CONFIG, else the defaults).

    Variables of the environment named ``SYNCSERVER_SECTION__KEY`` go before the
    file. Raises ConfigError; may make the file of the daemon's own key.
    """
    known = known or Known()
    source = path if path is not None else environ.get("SYNCSERVER_CONFIG") or None
    content = {} if source is None else _parsed(source)
    root = Table(source or "settings", content, _override(content, environ))
    root.only(_settings(Config))
    insecure = root.get("insecure", bool, False)
    frontend = _frontend(root.table("frontend"), insecure)
    return Config(
        engine=_engine(root, known),
        insecure=insecure,
        frontend=frontend,
        limits=_limits(root.table("limits")),
        models=MappingProxyType({name: _model(table) for name, table in root.tables("models")}),
        services=_services(root, known),
        source=source,
        # Last, as it may make a file.
        backend=_backend(root.table("backend"), frontend, environ, Path(source or "").parent),
    )


def _parsed(source: str) -> dict[str, Any]:
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error
    try:
        return tomllib.loads(content.decode())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}: not UTF-8 (at line {line}); save it as UTF-8") from error


def _override(content: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Put the variables of the environment into ``content``; return which key has which."""
    settable = {f"SYNCSERVER_{name.upper()}": name for name in ("engine", "insecure")}
    for section, settings in _SECTIONS.items():
        for key in _settings(settings):
            settable[f"SYNCSERVER_{section}__{key}".upper()] = f"{section}.{key}"
    overrides = {}
    for variable in sorted(name for name in environ if name.startswith("SYNCSERVER_")):
        if setting := settable.get(variable):
            section, _, key = setting.rpartition(".")
            table = content.setdefault(section, {}) if section else content
            if isinstance(table, dict):
                table[key] = _meant(environ[variable], key)
                overrides[setting] = variable
        elif "__" in variable:
            raise ConfigError(f"{variable}: unknown setting; {suggest(variable, settable)}")
    return overrides


def _meant(text: str, key: str) -> object:
    """Return a variable's text as the value that a file would have: ``5800``, ``true``, a list."""
    if key in {"api_keys", "allowed_origins"}:
        return [part.strip() for part in text.split(",") if part.strip()]
    if key in {"engine", "address"}:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _engine(root: Table, known: Known) -> str:
    text = root.name("engine", "memory")
    try:
        return check_engine(text, known)
    except ConfigError as error:
        raise root.error("engine", str(error)) from None


def _frontend(table: Table, insecure: bool) -> Frontend:
    frontend = _door(table, Frontend())
    if "allowed_origins" not in table.content:
        return frontend
    origins = table.each("allowed_origins", lambda text: check_origin(text, insecure=insecure))
    return replace(frontend, allowed_origins=origins)


def _backend(
    table: Table, frontend: Frontend, environ: Mapping[str, str], directory: Path
) -> Backend:
    backend = _door(table, Backend())
    if backend.port and (backend.address, backend.port) == (frontend.address, frontend.port):
        raise table.error("port", "the frontend has the same; give each its own")
    if "api_keys" not in table.content:
        path = ensure_key_file(environ)
        return replace(backend, api_keys=(read_key_file(path),), key_file=str(path))
    keys = table.each("api_keys", lambda text: find_key(text, environ, directory))
    if not keys:
        raise table.error("api_keys", "no key in the list; add one, or leave the list out")
    return replace(backend, api_keys=keys)


def _door(table: Table, default: Door) -> Door:
    """Return ``default`` with the address and port that a table sets."""
    table.only(_settings(type(default)))
    port = table.get("port", int, default.port)
    if not 0 <= port <= 65535:
        raise table.error("port", "out of range; 1 to 65535, or 0 for any free port")
    return replace(default, address=table.name("address", default.address), port=port)


def _limits(table: Table) -> Limits:
    table.only(_settings(Limits))
    values: dict[str, Any] = {}
    for name, default in asdict(Limits()).items():
        value = table.get(name, float if name.endswith("_seconds") else int, default)
        if not 0 < value <= _LARGEST:
            raise table.error(name, f"out of range; more than 0, at most {_LARGEST}")
        values[name] = value
    limits = Limits(**values)
    if limits.max_message_bytes > limits.max_inbox_bytes:
        raise table.error("max_inbox_bytes", "smaller than one message of max_message_bytes")
    return limits


def _model(table: Table) -> Model:
    table.only(_settings(Model))
    return Model(key=table.name("key", Model().key))


def _services(root: Table, known: Known) -> Mapping[str, ServiceConfig]:
    if "services" not in root.content:
        return default_services()
    services = {name: _service(table, known) for name, table in root.tables("services")}
    if not services:
        raise root.error("services", "empty; add [services.NAME], or leave it out for the defaults")
    for name in services:
        if name.endswith("_backend"):
            what = "names in _backend are for the trusted halves; choose another"
            raise root.table("services").error(_shown(name), what)
    return MappingProxyType(services)


def _service(table: Table, known: Known) -> ServiceConfig:
    type_ = _type(table, known.services, ("type",))
    dealers = {name: _dealer(dealer, known) for name, dealer in table.tables("dealers")}
    return ServiceConfig(
        type=type_,
        dealers=MappingProxyType(dealers),
        client_publish=table.get("client_publish", bool, False),
    )


def _dealer(table: Table, known: Known) -> DealerConfig:
    type_ = _type(table, known.dealers, ("type", "model"))
    key = table.name("key") if "key" in known.dealers[type_] else None
    return DealerConfig(type=type_, model=table.name("model"), key=key)


def _type(table: Table, options: Mapping[str, Iterable[str]], always: tuple[str, ...]) -> str:
    """Return the type that a table names, having seen that its other keys go with it."""
    table.only([*always, *dict.fromkeys(chain.from_iterable(options.values()))])
    type_ = table.choice("type", options)
    for key in table.content:
        if key not in always and key not in options[type_]:
            raise table.error(key, f'does not go with type "{type_}"; take it out')
    return type_


def _settings(settings: type) -> list[str]:
    """Return the names that a file may use for the fields of a dataclass."""
    return [field.name for field in fields(settings) if field.name not in {"source", "key_file"}]


def _kind_of(value: object) -> str:
    return _KINDS.get(type(value), "a date or time")


def _shown(key: str) -> str:
    """Return a key as a file would have it, on one line whatever it holds."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
