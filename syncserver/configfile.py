"""The configuration file, checked whole: every refusal names file, key and mend in one line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

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
)
from syncserver.configtable import Table, settings_of, shown
from syncserver.errors import ConfigError
from syncserver.keys import ensure_key_file, read_api_keys, read_key_file
from syncserver.overrides import override
from syncserver.tls import make_context

Door = TypeVar("Door", Frontend, Backend)

_LARGEST = 2**53


def load(
    path: str | None,
    environ: Mapping[str, str],
    known: Known | None = None,
    *,
    assignments: Iterable[str] = (),
) -> Config:
    """Return the settings of a file (else of SYNCSERVER_CONFIG, else the defaults).

    Variables of the environment named ``SYNCSERVER_SECTION__KEY`` go before the file, and
    ``assignments``, each ``SECTION.KEY=VALUE``, before these. Raises ConfigError; may make the
    file of the daemon's own key.
    """
    known = known or Known()
    source = path if path is not None else environ.get("SYNCSERVER_CONFIG") or None
    content = {} if source is None else _parsed(source)
    root = Table(source or "settings", content, override(content, environ, assignments))
    root.only(settings_of(Config))
    insecure = root.get("insecure", bool, False)
    directory = Path(source or "").parent
    frontend = _frontend(root.table("frontend"), insecure, directory)
    return Config(
        engine=_engine(root, known),
        insecure=insecure,
        frontend=frontend,
        limits=_limits(root.table("limits")),
        models=MappingProxyType({name: _model(table) for name, table in root.tables("models")}),
        services=_services(root, known),
        source=source,
        given=tuple(content),
        # Last, as it may make a file.
        backend=_backend(root.table("backend"), frontend, environ, directory),
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


def _engine(root: Table, known: Known) -> str:
    text = root.name("engine", "memory")
    try:
        return check_engine(text, known)
    except ConfigError as error:
        raise root.error("engine", str(error)) from None


def _frontend(table: Table, insecure: bool, directory: Path) -> Frontend:
    frontend = _door(table, Frontend(), directory)
    if "allowed_origins" not in table.content:
        return frontend
    origins = table.each("allowed_origins", lambda text: check_origin(text, insecure=insecure))
    return replace(frontend, allowed_origins=origins)


def _backend(
    table: Table, frontend: Frontend, environ: Mapping[str, str], directory: Path
) -> Backend:
    backend = _door(table, Backend(), directory)
    if backend.port and (backend.address, backend.port) == (frontend.address, frontend.port):
        raise table.error("port", "the frontend has the same; give each its own")
    if "api_keys" not in table.content:
        path = ensure_key_file(environ)
        return replace(
            backend, api_keys=(replace(read_key_file(path), id="own"),), key_file=str(path)
        )
    return replace(backend, api_keys=read_api_keys(table, environ, directory))


def _door(table: Table, default: Door, directory: Path) -> Door:
    """Return ``default`` with the address, port and certificate that a table sets."""
    table.only(settings_of(type(default)))
    port = table.get("port", int, default.port)
    if not 0 <= port <= 65535:
        raise table.error("port", "out of range; 1 to 65535, or 0 for any free port")
    door = replace(default, address=table.name("address", default.address), port=port)
    files: dict[str, Any] = {
        name: str(directory / table.name(name))
        for name in ("tls_cert", "tls_key")
        if name in table.content
    }
    if files:
        if "tls_cert" not in files:
            raise table.error("tls_key", "without tls_cert; name the certificate too")
        try:
            make_context(*files.values())
        except ConfigError as error:
            raise table.error("tls_cert", str(error)) from error
    return replace(door, **files)


def _limits(table: Table) -> Limits:
    table.only(settings_of(Limits))
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
    table.only(settings_of(Model))
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
            raise root.table("services").error(shown(name), what)
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
