"""The composition root: settings become engines, services, registries and doors.

A new engine, dealer, service or wire protocol is one file and one row in a
table here; a row is imported only when it is chosen.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from syncserver.config import Config, DealerConfig, Known, Model, ServiceConfig, spoken_paths
from syncserver.dealers.base import Dealer
from syncserver.doors import UnixPlace
from syncserver.engines.base import Engine
from syncserver.errors import ConfigError
from syncserver.protocols.base import Protocol
from syncserver.registry import ServiceRegistry
from syncserver.server import BACKEND_PATHS, EVENTS_PATH, Registries, Server
from syncserver.siblings import Siblings

logger = logging.getLogger("syncserver.app")

# Each row but the first is the scheme of a URL, which its class is given after the limits.
ENGINES = {
    "memory": "syncserver.engines.memory:MemoryEngine",
    "redis": "syncserver.engines.redis:RedisEngine",
    "rediss": "syncserver.engines.redis:RedisEngine",
    "unix": "syncserver.engines.redis:RedisEngine",
    "sqlite": "syncserver.engines.sqlite:SQLiteEngine",
}
EXTRAS = ("redis",)
DEALERS = {
    "broadcast": "syncserver.dealers.broadcast:BroadcastDealer",
    "keyed": "syncserver.dealers.keyed:KeyedDealer",
    "filter": "syncserver.dealers.filter:FilterDealer",
    "group": "syncserver.dealers.group:GroupDealer",
}
# The first is always spoken, the others where the settings have them.
PROTOCOLS = {
    "native": ("/ws", "syncserver.protocols.native:NativeProtocol"),
    "rohrpost": ("/rohrpost/", "syncserver.protocols.rohrpost:RohrpostProtocol"),
}
# Prefixes of SockJS, and which protocol is spoken below them.
SOCKJS = {"/ws/sockjs": "native"}

# What processes of one store have to agree on.
_SHARED_LIMITS = (
    "grant_seconds",
    "idempotency_seconds",
    "max_grants",
    "max_grants_bytes",
    "reorder_seconds",
    "resume_seconds",
    "retention_bytes",
    "retention_entries",
    "retention_seconds",
)
# Other routes, some of them of the backend, which may stand behind the same door.
_TAKEN = (EVENTS_PATH, *BACKEND_PATHS)

# What --app makes itself.
_OF_SERVICES = ("engine", "limits", "models", "services")

KNOWN = Known(
    engines=tuple(ENGINES),
    protocols={name: path for name, (path, _) in PROTOCOLS.items()},
    taken=(*_TAKEN, *SOCKJS),
)


def client_files() -> Mapping[str, Path]:
    """Return the files of the browser library: in the wheel, or beside a checkout."""
    package = Path(__file__).parent
    packed = package / "static"
    folder = packed if packed.is_dir() else package.parent / "clients" / "javascript"
    return {name: folder / name for name in ("syncserver.js", "syncserver.d.ts")}


def make_engine(config: Config) -> Engine:
    """Return the engine that a configuration names."""
    make, address = engine_class(config), [config.engine] if ":" in config.engine else []
    engine: Engine = make(config.limits, *address)
    return engine


def shared_settings(config: Config) -> str:
    """Return a digest of what has to be the same for all processes of one store."""
    services = [
        (name, one.type, one.client_publish, sorted(one.dealers.items()))
        for name, one in sorted(config.services.items())
    ]
    models = [(name, one.key) for name, one in sorted(config.models.items()) if one != Model()]
    limits = [float(getattr(config.limits, name)) for name in _SHARED_LIMITS]
    text = repr((services, models, limits))
    return hashlib.sha256(text.encode()).hexdigest()


def engine_class(config: Config) -> Any:
    """Return the class of the engine that a configuration names; ConfigError: it is not here."""
    kind = config.engine.partition(":")[0]
    try:
        return _load(ENGINES[kind])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        mend = f"pip install 'syncserver[{package}]'"
        raise ConfigError(f"engine {kind}: the package {package} is missing; {mend}") from None


def build(config: Config) -> tuple[Registries, Engine]:
    """Return the frontend and backend registries that a configuration describes."""
    engine = make_engine(config)
    frontend, backend = (ServiceRegistry(limits=config.limits) for _ in range(2))
    for name, settings in config.services.items():
        SERVICES[settings.type](name, settings, config, engine, (frontend, backend))
    return (frontend, backend), engine


def make_server(
    config: Config,
    registries: Registries,
    engine: Engine | None = None,
    *,
    reuse_port: bool = False,
    places: Mapping[str, UnixPlace] = MappingProxyType({}),
    siblings: Siblings | None = None,
) -> Server:
    """Return a server that speaks the chosen wire protocols and has the browser library."""
    return Server(
        config,
        registries,
        engine,
        protocols=_protocols(config),
        sockjs={prefix: _load(PROTOCOLS[name][1]) for prefix, name in SOCKJS.items()},
        files=client_files(),
        reuse_port=reuse_port,
        places=places,
        siblings=siblings,
    )


def _protocols(config: Config) -> dict[str, type[Protocol]]:
    """Return the wire protocols by path; ConfigError if something else is there."""
    paths = spoken_paths(config.protocols, KNOWN)
    return {path: _load(PROTOCOLS[name][1]) for name, path in paths.items()}


def load_registries(reference: str, config: Config) -> Registries:
    """Return the pair of registries at ``module:attribute``, or that a function there returns.

    A function that takes an argument is given the settings. What else is not used of
    them is said in the log, as is what the application raises.
    """
    try:
        found = _application(reference)
        if takes_settings := callable(found) and _takes_an_argument(found):
            pair = found(config)
        else:
            pair = found() if callable(found) else found
    except ConfigError:
        raise
    except Exception as error:
        logger.exception("The application cannot be made")
        what = f"raises {type(error).__name__}; see above, and mend it there"
        raise ConfigError(f"--app {reference}: {what}") from error
    match pair:
        case (ServiceRegistry() as frontend, ServiceRegistry() as backend):
            pass
        case _:
            raise ConfigError(
                f"--app {reference}: not a pair of ServiceRegistry; make it (frontend, backend)"
            )
    for registry in (frontend, backend):
        registry.assume_limits(config.limits)
    unused = [name for name in config.given if name in _OF_SERVICES]
    if unused and not takes_settings:
        logger.warning(
            "--app %s makes the services: not used of the settings: %s (of limits, those of"
            " connections are used); let its function take them as an argument",
            reference,
            ", ".join(unused),
        )
    return frontend, backend


def _application(reference: str) -> Any:
    """Return what stands at ``module:attribute``; ConfigError if there is no such thing."""
    name, _, attribute = reference.partition(":")
    if not name.strip(".") or not attribute:
        raise ConfigError(f"--app {reference}: give MODULE:ATTRIBUTE")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # it is there, and imports another
            raise
        raise ConfigError(f"--app {reference}: {error}; give MODULE:ATTRIBUTE") from None
    if not hasattr(module, attribute):
        raise ConfigError(f"--app {reference}: {name} has no {attribute}; give MODULE:ATTRIBUTE")
    return getattr(module, attribute)


def _takes_an_argument(function: Callable[..., Any]) -> bool:
    """Tell whether a function cannot be called without an argument."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:  # it is written in C and does not say
        return False
    return False


def _datasync(
    name: str, settings: ServiceConfig, config: Config, engine: Engine, registries: Registries
) -> None:
    module = importlib.import_module("syncserver.services.datasync")
    dealers = [_dealer(key, dealer, config) for key, dealer in settings.dealers.items()]
    service = module.DataSyncService(
        name,
        dealers,
        engine=engine,
        limits=config.limits,
        key_of=lambda model: config.model(model).key,
    )
    registries[0].register_service(service)
    registries[1].register_service(module.DataSyncBackend(f"{name}_backend", service))


def _pubsub(
    name: str, settings: ServiceConfig, config: Config, engine: Engine, registries: Registries
) -> None:
    module = importlib.import_module("syncserver.services.pubsub")
    service = module.PubSubService(
        name, engine=engine, limits=config.limits, client_publish=settings.client_publish
    )
    registries[0].register_service(service)
    registries[1].register_service(module.PubSubBackend(f"{name}_backend", service))


def _dealer(name: str, settings: DealerConfig, config: Config) -> Dealer:
    options: dict[str, Any] = {"name": name, "model": settings.model}
    if settings.key is not None:
        options["key"] = settings.key
    if settings.type == "filter":
        limits = config.limits
        options |= {
            "max_nodes": limits.max_filter_nodes,
            "max_depth": limits.max_filter_depth,
            "max_linear": limits.max_linear_filters,
        }
    dealer: Dealer = _load(DEALERS[settings.type])(**options)
    return dealer


def _load(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


SERVICES = {"datasync": _datasync, "pubsub": _pubsub}
