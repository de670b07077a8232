"""Frozen settings: what the daemon may be told, and what it assumes untold.

``syncserver.configuration.file`` makes them from a file; a program may make its own.
The end of this file checks engines and origins; ``syncserver.configuration.keys`` reads keys.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from syncserver.apikeys import ApiKey
from syncserver.delta import GROUP_MODEL
from syncserver.errors import ConfigError

MEMORY = "memory"
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])"
    r"(:(?P<port>[1-9][0-9]{0,4}|\*))?"
)
_SCRIPT_URL = re.compile(r"https?://[^\s\"'<>;,]+")
_PORTS = {"http": "80", "https": "443"}

LOCAL_ORIGINS = tuple(
    f"{scheme}://{host}:*"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "[::1]")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """Where browsers connect, and the pages that may.

    An origin ends in ``:*`` when any port (or none) will do; ``*`` alone is any origin.
    ``sockjs_client_url`` is where SockJS's pages for iframes get their script.
    """

    address: str = "127.0.0.1"
    port: int = 5800
    allowed_origins: tuple[str, ...] = LOCAL_ORIGINS
    unix_socket: str | None = None
    unix_socket_mode: str = "0660"
    trusted_proxies: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    sockjs_client_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where the web app posts, and the keys that it may use.

    ``on_frontend`` puts it behind the door of the browsers, instead of one of its own.
    ``key_file`` names the file of a key that the daemon made for itself.
    """

    address: str = "127.0.0.1"
    port: int = 5801
    on_frontend: bool = False
    api_keys: tuple[ApiKey, ...] = ()
    key_file: str | None = None
    unix_socket: str | None = None
    unix_socket_mode: str = "0660"
    trusted_proxies: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    metrics_need_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is known of the rows of one model."""

    key: str = "id"


@dataclass(frozen=True, slots=True, kw_only=True)
class DealerConfig:
    """One dealer of a datasync service; ``key`` is the field of a keyed one."""

    type: str
    model: str
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolConfig:
    """A wire protocol that is spoken; ``path`` is where, or None for its own place."""

    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """One service; a browser may publish to everybody only where ``client_publish`` says so."""

    type: str
    dealers: Mapping[str, DealerConfig] = field(default_factory=lambda: MappingProxyType({}))
    client_publish: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of the daemon, with its default; sizes in bytes, times in seconds.

    Without ``max_process_bytes`` it is four fifths of what the system allows, if it bounds it.
    """

    grant_seconds: float = 120
    resume_seconds: float = 120
    retention_seconds: float = 300
    retention_entries: int = 200_000
    retention_bytes: int = 64 * 1024 * 1024
    tail_bytes: int = 16 * 1024 * 1024
    resume_max_entries: int = 10_000
    position_seconds: float = 25
    idempotency_seconds: float = 600
    reorder_seconds: float = 60
    refetch_per_second: int = 500
    ping_seconds: float = 25
    pong_seconds: float = 10
    stall_seconds: float = 30
    disconnect_seconds: float = 5
    call_seconds: float = 30
    drain_seconds: float = 10
    header_seconds: float = 15
    body_seconds: float = 15
    message_seconds: float = 60
    first_message_seconds: float = 300
    max_connections: int = 100_000
    max_connections_per_address: int = 1_000
    accepts_per_second: int = 2_000
    accepts_per_second_per_address: int = 50
    requests_per_second: int = 1_000
    wrong_keys_per_minute: int = 30
    messages_per_second: int = 100
    max_message_burst: int = 1_000
    max_message_bytes: int = 64 * 1024
    max_body_bytes: int = 1024 * 1024
    max_inbox_bytes: int = 256 * 1024
    max_inbox_messages: int = 256
    max_outbox_bytes: int = 1024 * 1024
    max_outboxes_bytes: int = 256 * 1024 * 1024
    max_process_bytes: int | None = None
    max_send_buffer_bytes: int = 256 * 1024
    max_response_bytes: int = 128 * 1024
    max_polling_sessions: int = 10_000
    max_calls: int = 1_000
    max_calls_bytes: int = 64 * 1024 * 1024
    max_grants: int = 100_000
    max_grants_bytes: int = 64 * 1024 * 1024
    max_deltas: int = 1_000
    max_items: int = 64
    max_subscriptions: int = 128
    max_filter_nodes: int = 64
    max_filter_depth: int = 8
    max_linear_filters: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is written on standard error, and how."""

    format: str = "text"
    level: str = "info"


def default_services() -> Mapping[str, ServiceConfig]:
    """Return the services of a daemon that was told of none: one dealer of each kind to try."""
    dealers = {
        "AllTasks": DealerConfig(type="broadcast", model="Task"),
        "CommentsByBlogEntry": DealerConfig(type="keyed", model="Comment", key="entryId"),
        "FilteredTasks": DealerConfig(type="filter", model="Task"),
    }
    return MappingProxyType(
        {
            "datasync": ServiceConfig(type="datasync", dealers=MappingProxyType(dealers)),
            "pubsub": ServiceConfig(type="pubsub"),
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that was set; ``source`` is the file it came from, if one was read.

    ``given`` are the sections, and the settings outside of one, that were set at all.

    ``engine`` is ``memory`` or a URL, which may hold a password: show ``shown_engine``.
    """

    engine: str = field(default=MEMORY, repr=False)
    insecure: bool = False
    frontend: Frontend = field(default_factory=Frontend)
    backend: Backend = field(default_factory=Backend)
    limits: Limits = field(default_factory=Limits)
    log: Log = field(default_factory=Log)
    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    services: Mapping[str, ServiceConfig] = field(default_factory=default_services)
    protocols: Mapping[str, ProtocolConfig] = field(default_factory=lambda: MappingProxyType({}))
    source: str | None = None
    given: tuple[str, ...] = ()

    def model(self, name: str) -> Model:
        """Return what is known of a model, declared or not."""
        return self.models.get(name, Model())

    @property
    def shown_engine(self) -> str:
        """Return the engine without what is between ``://`` and ``@``, or after ``?``."""
        scheme, separator, rest = self.engine.partition("?")[0].partition("://")
        return scheme + separator + rest.rpartition("@")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The type names that a file may use; ``syncserver.app`` derives them from its name tables.

    An engine other than ``memory`` is the scheme of a URL. A service type stands
    with the keys of its table, a dealer type with the keys that its table must
    have, ``type`` and ``model`` aside; those in ``fixed_models`` have no ``model``. A protocol
    stands with its own path, the first is always spoken; ``taken`` are paths of other routes.
    """

    engines: tuple[str, ...] = (MEMORY,)
    services: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"datasync": ("dealers",), "pubsub": ("client_publish",)}
    )
    dealers: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"broadcast": (), "keyed": ("key",), "filter": (), "group": ()}
    )
    fixed_models: Mapping[str, str] = field(default_factory=lambda: {"group": GROUP_MODEL})
    protocols: Mapping[str, str] = field(default_factory=lambda: {"native": "/ws"})
    taken: tuple[str, ...] = ()


def suggest(word: str, names: Iterable[str]) -> str:
    """Return which of ``names`` was meant, or else all of them, for the end of a refusal."""
    near = difflib.get_close_matches(word, names := list(names), 1)
    return f'did you mean "{near[0]}"?' if near else f"known: {', '.join(names)}"


def spoken_paths(protocols: Mapping[str, ProtocolConfig], known: Known) -> dict[str, str]:
    """Return the path of each protocol that is spoken, or raise ConfigError: it is taken."""
    paths: dict[str, str] = {}
    for name in dict.fromkeys([next(iter(known.protocols)), *protocols]):
        path = (protocols[name].path if name in protocols else None) or known.protocols[name]
        others = [*paths.values(), *known.taken]
        if path in others or path.startswith(tuple(f"{one}/" for one in known.taken)):
            raise ConfigError(f"the path of {name}, {path}, is taken; choose another")
        paths[name] = path
    return paths


def check_engine(text: str, known: Known) -> str:
    """Return ``memory``, or a URL whose scheme is an engine, or raise ConfigError.

    A refusal shows the scheme alone: what follows it may hold a password.
    """
    name = text.partition(":")[0]
    address = text.removeprefix(f"{name}://")
    if name not in known.engines:
        raise ConfigError(f"unknown engine {json.dumps(name)}; {suggest(name, known.engines)}")
    if name == MEMORY and text != MEMORY:
        raise ConfigError(f'"{MEMORY}" has no address; write "{MEMORY}" alone')
    if name != MEMORY and address in ("", text):
        raise ConfigError(f'"{name}" needs an address; write "{name}://" and where it is')
    return text


def check_origin(text: str, *, insecure: bool = False) -> str:
    """Return an origin as browsers write it, or raise ConfigError."""
    if text == "*":
        if insecure:
            return text
        raise ConfigError('"*" lets every page in; name the origins, or set insecure = true')
    parts = _ORIGIN.fullmatch(text.lower())
    if parts is None or int((parts["port"] or "*").replace("*", "0")) > 65535:
        mend = 'as in "https://app.example.org", with :PORT, or with :* for any port'
        raise ConfigError(f"{text!a} is no origin; write scheme://host {mend}")
    scheme, host, port = parts["scheme"], parts["host"], parts["port"]
    return f"{scheme}://{host}" + (f":{port}" if port and port != _PORTS.get(scheme) else "")


def check_script_url(text: str) -> str:
    """Return the URL of a script that a page may name, or raise ConfigError."""
    if not _SCRIPT_URL.fullmatch(text):
        raise ConfigError(f"{text!a} is no URL of a script; write https://HOST/PATH")
    return text
