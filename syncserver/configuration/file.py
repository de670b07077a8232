"""The configuration file, checked whole: every refusal names file, key and mend in one line."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from syncserver.config import (
    LOG_FORMATS,
    LOG_LEVELS,
    MEMORY,
    Backend,
    Config,
    DealerConfig,
    Frontend,
    Known,
    Limits,
    Log,
    Model,
    ProtocolConfig,
    ServiceConfig,
    check_engine,
    check_origin,
    check_script_url,
    default_services,
    spoken_paths,
)
from syncserver.configuration.doors import check_apart, read_door
from syncserver.configuration.keys import (
    ensure_key_file,
    find_key_file,
    read_api_keys,
    read_key_file,
)
from syncserver.configuration.overrides import override
from syncserver.configuration.table import Table, settings_of, shown
from syncserver.configuration.toml import parse
from syncserver.errors import ConfigError

_LARGEST = 2**53
_PATH = re.compile(r"/[A-Za-z0-9_~/-]*")


def load(
    path: str | None,
    environ: Mapping[str, str],
    known: Known | None = None,
    *,
    assignments: Iterable[str] = (),
    make_key: bool = True,
) -> Config:
    """Return the settings of a file (else of SYNCSERVER_CONFIG, else the defaults).

    Variables of the environment named ``SYNCSERVER_SECTION__KEY`` go before the file, and
    ``assignments``, each ``SECTION.KEY=VALUE``, before these. Raises the first ConfigError, which
    has the others; makes the file of the daemon's own key unless ``make_key`` is false.
    """
    known = known or Known()
    source = path if path is not None else environ.get("SYNCSERVER_CONFIG") or None
    text = "" if source is None else _read(source)
    content = _parsed(source or "", text)
    overrides = override(content, environ, assignments)
    root = Table(source or "settings", content, overrides, text)
    directory = Path(source or "").parent
    root.only(settings_of(Config))
    insecure = root.attempt(lambda: root.get("insecure", bool, False), False)
    frontend = root.attempt(
        lambda: _frontend(root.table("frontend"), insecure, directory), Frontend()
    )
    config = Config(
        engine=root.attempt(lambda: _engine(root, known), MEMORY),
        insecure=insecure,
        frontend=frontend,
        limits=root.attempt(lambda: _limits(root.table("limits")), Limits()),
        log=root.attempt(lambda: _log(root.table("log")), Log()),
        models=MappingProxyType(root.attempt(lambda: root.each_table("models", _model), {})),
        services=root.attempt(lambda: _services(root, known), default_services()),
        protocols=root.attempt(lambda: _protocols(root, known), MappingProxyType({})),
        source=source,
        given=tuple(content),
        backend=root.attempt(
            lambda: _backend(root.table("backend"), frontend, environ, directory), Backend()
        ),
    )
    if not (config.backend.api_keys or root.problems):
        config = root.attempt(lambda: _with_own_key(config, environ, make_key=make_key), config)
    if root.problems:
        first, *others = root.problems
        first.others = tuple(others)
        raise first
    return config


def _with_own_key(config: Config, environ: Mapping[str, str], *, make_key: bool) -> Config:
    """Return the settings with the daemon's own key, if it is there or may be made."""
    path = ensure_key_file(environ) if make_key else find_key_file(environ)
    keys = (replace(read_key_file(path), id="own"),) if path.exists() else ()
    return replace(config, backend=replace(config.backend, api_keys=keys, key_file=str(path)))


def _read(source: str) -> str:
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}: not UTF-8 (at line {line}); save it as UTF-8") from error


def _parsed(source: str, text: str) -> dict[str, Any]:
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _engine(root: Table, known: Known) -> str:
    text = root.name("engine", "memory")
    try:
        return check_engine(text, known)
    except ConfigError as error:
        raise root.error("engine", str(error)) from None


def _frontend(table: Table, insecure: bool, directory: Path) -> Frontend:
    frontend = read_door(table, Frontend(), directory)
    if url := table.get("sockjs_client_url", str, ""):
        frontend = replace(frontend, sockjs_client_url=_checked_url(table, url))
    if "allowed_origins" not in table.content:
        return frontend
    origins = table.each("allowed_origins", lambda text: check_origin(text, insecure=insecure))
    return replace(frontend, allowed_origins=origins)


def _checked_url(table: Table, url: str) -> str:
    try:
        return check_script_url(url)
    except ConfigError as error:
        raise table.error("sockjs_client_url", str(error)) from None


def _backend(
    table: Table, frontend: Frontend, environ: Mapping[str, str], directory: Path
) -> Backend:
    backend = read_door(table, Backend(), directory)
    backend = replace(
        backend,
        on_frontend=table.get("on_frontend", bool, False),
        metrics_need_key=table.get("metrics_need_key", bool, False),
    )
    check_apart(table, frontend, backend)
    if "api_keys" not in table.content:
        return backend
    return replace(backend, api_keys=read_api_keys(table, environ, directory))


def _limits(table: Table) -> Limits:
    table.only(settings_of(Limits))
    values = {
        name: table.attempt(functools.partial(_limit, table, name, default), default)
        for name, default in asdict(Limits()).items()
    }
    limits = Limits(**values)
    if limits.max_message_bytes > limits.max_inbox_bytes:
        raise table.error("max_inbox_bytes", "smaller than one message of max_message_bytes")
    if limits.max_body_bytes > limits.max_calls_bytes:
        raise table.error("max_calls_bytes", "smaller than one body of max_body_bytes")
    return limits


def _log(table: Table) -> Log:
    table.only(settings_of(Log))
    return Log(
        format=table.choice("format", LOG_FORMATS, Log().format),
        level=table.choice("level", LOG_LEVELS, Log().level),
    )


def _limit(table: Table, name: str, default: float | None) -> Any:
    if default is None and name not in table.content:
        return None
    value = table.get(name, float if name.endswith("_seconds") else int, default or 0)
    if not 0 < value <= _LARGEST:
        raise table.error(name, f"out of range; more than 0, at most {_LARGEST}")
    return value


def _model(table: Table) -> Model:
    table.only(settings_of(Model))
    return Model(key=table.name("key", Model().key))


def _services(root: Table, known: Known) -> Mapping[str, ServiceConfig]:
    if "services" not in root.content:
        return default_services()
    services = root.each_table("services", lambda table: _service(table, known))
    if not root.content["services"]:
        raise root.error("services", "empty; add [services.NAME], or leave it out for the defaults")
    for name in services:
        if name.endswith("_backend"):
            what = "names in _backend are for the trusted halves; choose another"
            raise root.table("services").error(shown(name), what)
    return MappingProxyType(services)


def _service(table: Table, known: Known) -> ServiceConfig:
    type_ = _type(table, known.services, ("type",))
    dealers = table.each_table("dealers", lambda dealer: _dealer(dealer, known))
    return ServiceConfig(
        type=type_,
        dealers=MappingProxyType(dealers),
        client_publish=table.get("client_publish", bool, False),
    )


_A_FIELD = 'name the field of its rows that a query gives, as in key = "entryId"'
_A_MODEL = 'name the rows that it shows, as in model = "Task"'


def _dealer(table: Table, known: Known) -> DealerConfig:
    type_ = _type(table, known.dealers, ("type", "model"))
    needs_key = "key" in known.dealers[type_]
    key = table.name("key", hint=_A_FIELD) if needs_key else None
    if type_ not in known.fixed_models:
        return DealerConfig(type=type_, model=table.name("model", hint=_A_MODEL), key=key)
    if "model" in table.content:
        raise table.error("model", f'does not go with type "{type_}"; take it out')
    return DealerConfig(type=type_, model=known.fixed_models[type_], key=key)


def _protocols(root: Table, known: Known) -> Mapping[str, ProtocolConfig]:
    root.table("protocols").only(list(known.protocols))
    protocols = root.each_table("protocols", _protocol)
    try:
        spoken_paths(
            {name: protocols[name] for name in protocols if name in known.protocols}, known
        )
    except ConfigError as error:
        raise root.error("protocols", str(error)) from None
    return MappingProxyType(protocols)


def _protocol(table: Table) -> ProtocolConfig:
    table.only(settings_of(ProtocolConfig))
    path = table.name("path") if "path" in table.content else None
    if path is not None and not _PATH.fullmatch(path):
        raise table.error("path", "no path; begin it with / and use letters and digits")
    return ProtocolConfig(path=path)


def _type(table: Table, options: Mapping[str, Iterable[str]], always: tuple[str, ...]) -> str:
    """Return the type that a table names, having seen that its other keys go with it."""
    table.only([*always, *dict.fromkeys(chain.from_iterable(options.values()))])
    type_ = table.choice("type", options)
    for key in table.content:
        if key not in always and key not in options[type_]:
            raise table.error(key, f'does not go with type "{type_}"; take it out')
    return type_
