"""Frozen settings: what the daemon may be told, and what it assumes untold.

``syncserver.configfile`` makes them from a file; a program may make its own.
The end of this file checks origins and reads keys; it makes a key where none was set.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from syncserver.errors import ConfigError

MIN_KEY_CHARACTERS = 32
MAX_KEY_CHARACTERS = 1024
MAKE_A_KEY = """make one with "python -c 'import secrets; print(secrets.token_urlsafe(32))'\""""

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])"
    r"(:(?P<port>[1-9][0-9]{0,4}|\*))?"
)
_PORTS = {"http": "80", "https": "443"}

LOCAL_ORIGINS = tuple(
    f"{scheme}://{host}:*"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "[::1]")
)


class Secret:
    """A key that shows itself only when asked, so that no log line or traceback holds it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value.encode()

    def reveal(self) -> bytes:
        """Return the key itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """Where browsers connect, and the pages that may.

    An origin ends in ``:*`` when any port (or none) will do; ``*`` alone is any origin.
    """

    address: str = "127.0.0.1"
    port: int = 5800
    allowed_origins: tuple[str, ...] = LOCAL_ORIGINS


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where the web app posts, and the keys that it may use.

    ``key_file`` names the file of a key that the daemon made for itself.
    """

    address: str = "127.0.0.1"
    port: int = 5801
    api_keys: tuple[Secret, ...] = ()
    key_file: str | None = None


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
class ServiceConfig:
    """One service; a browser may publish to everybody only where ``client_publish`` says so."""

    type: str
    dealers: Mapping[str, DealerConfig] = field(default_factory=lambda: MappingProxyType({}))
    client_publish: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of the daemon, with its default; sizes in bytes, times in seconds."""

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
    stall_seconds: float = 10
    call_seconds: float = 30
    drain_seconds: float = 10
    max_message_bytes: int = 64 * 1024
    max_body_bytes: int = 1024 * 1024
    max_inbox_bytes: int = 256 * 1024
    max_inbox_messages: int = 256
    max_outbox_bytes: int = 1024 * 1024
    max_send_buffer_bytes: int = 256 * 1024
    max_deltas: int = 1_000
    max_items: int = 64
    max_subscriptions: int = 128
    max_filter_nodes: int = 64
    max_filter_depth: int = 8


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
    """Everything that was set; ``source`` is the file it came from, if one was read."""

    engine: str = "memory"
    insecure: bool = False
    frontend: Frontend = field(default_factory=Frontend)
    backend: Backend = field(default_factory=Backend)
    limits: Limits = field(default_factory=Limits)
    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    services: Mapping[str, ServiceConfig] = field(default_factory=default_services)
    source: str | None = None

    def model(self, name: str) -> Model:
        """Return what is known of a model, declared or not."""
        return self.models.get(name, Model())


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The type names that a file may use; ``syncserver.app`` derives them from its name tables.

    A service type stands with the keys of its table, a dealer type with the
    keys that its table must have, ``type`` and ``model`` aside.
    """

    engines: tuple[str, ...] = ("memory",)
    services: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"datasync": ("dealers",), "pubsub": ("client_publish",)}
    )
    dealers: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"broadcast": (), "keyed": ("key",), "filter": ()}
    )


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


def check_key(text: str) -> Secret:
    """Return a key that cannot be guessed and fits an HTTP header, or raise ConfigError."""
    if not text:
        raise ConfigError(f"empty; {MAKE_A_KEY}")
    if len(text) < MIN_KEY_CHARACTERS:
        raise ConfigError(f"shorter than {MIN_KEY_CHARACTERS} characters; {MAKE_A_KEY}")
    if len(text) > MAX_KEY_CHARACTERS:
        raise ConfigError(f"longer than {MAX_KEY_CHARACTERS} characters; {MAKE_A_KEY}")
    if not all("!" <= character <= "~" for character in text):
        raise ConfigError(f"holds characters other than visible ASCII; {MAKE_A_KEY}")
    return Secret(text)


def find_key(text: str, environ: Mapping[str, str], directory: Path) -> Secret:
    """Return the key that ``text`` is or names: ``env:NAME``, ``file:PATH`` from ``directory``."""
    kind, _, rest = text.partition(":")
    if kind == "file":
        return read_key_file(directory / rest)
    if kind != "env":
        return check_key(text)
    if rest not in environ:
        raise ConfigError(f"{rest} is not set in the environment; set it, or take the key out")
    try:
        return check_key(environ[rest].strip())
    except ConfigError as error:
        raise ConfigError(f"{rest} is refused: {error}") from error


def read_key_file(path: Path) -> Secret:
    """Return the key that a file holds, or raise ConfigError; nobody else may read the file."""
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(MAX_KEY_CHARACTERS + 2)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"{path} is open to other users; chmod 600 it")
    try:
        return check_key(content.decode("ascii", "replace").strip())
    except ConfigError as error:
        raise ConfigError(f"{path} is refused: {error}") from error


def ensure_key_file(environ: Mapping[str, str]) -> Path:
    """Return the file of the daemon's own key, made at the first start; the starts agree on it."""
    path = _state_directory(environ) / "api-key"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shared = path.parent.stat().st_mode & 0o022
        if not shared and not path.exists():
            _create_whole(path, secrets.token_urlsafe(32) + "\n")
    except OSError as error:
        raise ConfigError(
            f"{path}: a key cannot be kept here: {error.strerror}; set backend.api_keys,"
            " or SYNCSERVER_STATE_DIR to a directory of your own"
        ) from error
    if shared:
        raise ConfigError(f"{path.parent}: other users could put a key here; chmod 700 it")
    return path


def _state_directory(environ: Mapping[str, str]) -> Path:
    if own := environ.get("SYNCSERVER_STATE_DIR"):
        return Path(own)
    if (state := environ.get("XDG_STATE_HOME", "")).startswith("/"):
        return Path(state, "syncserver")
    if home := environ.get("HOME"):
        return Path(home, ".local", "state", "syncserver")
    raise ConfigError(
        "environment: HOME is not set, so a key cannot be kept; set SYNCSERVER_STATE_DIR or"
        " backend.api_keys"
    )


def _create_whole(path: Path, text: str) -> None:
    """Put a private file in place with all its text, unless another start was first."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        Path(draft).unlink()
