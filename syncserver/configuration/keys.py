"""API keys: read from where the settings say, and made where none was set.

In ``[backend] api_keys`` a key is a string, or a table that says more of it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

from syncserver.apikeys import HASH_PREFIX, OPERATIONS, ApiKey
from syncserver.config import suggest
from syncserver.configuration.table import Table
from syncserver.errors import ConfigError

MIN_KEY_CHARACTERS = 32
MAX_KEY_CHARACTERS = 1024
MAKE_A_KEY = "make one with 'syncserver generate-key --id NAME'"

_HASH = re.compile("[0-9a-f]{64}")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def read_api_keys(table: Table, environ: Mapping[str, str], directory: Path) -> tuple[ApiKey, ...]:
    """Return the keys of the list ``api_keys`` of a table."""

    def find(text: str) -> ApiKey:
        return find_key(text, environ, directory)

    keys: list[ApiKey] = []
    for index, value in enumerate(table.get("api_keys", list, [])):
        place = f"api_keys[{index}]"
        key = table.attempt(functools.partial(_read_key, table, place, value, find), None)
        if key is None:
            continue
        for other in keys:
            _check_pair(table, place, key, other)
        keys.append(key)
    if not table.content["api_keys"]:
        raise table.error("api_keys", "no key in the list; add one, or leave the list out")
    if keys and all(key.expired() for key in keys):
        raise table.error("api_keys", "every key has expired; add one that has not")
    return tuple(keys)


def _read_key(table: Table, place: str, value: object, find: Callable[[str], ApiKey]) -> ApiKey:
    if isinstance(value, dict):
        return _read_entry(table.entry(place, value), find)
    return table.checked(place, value, find)


def _read_entry(entry: Table, find: Callable[[str], ApiKey]) -> ApiKey:
    entry.only(("id", "key", "operations", "expires"))
    name = entry.name("id", hint='name the key, as in id = "reporting"')
    if not _ID.fullmatch(name):
        raise entry.error("id", "must be 1 to 64 letters, digits, dots, dashes or underscores")
    key = entry.checked("key", entry.name("key", hint="write the key, env:NAME or file:PATH"), find)
    operations: tuple[str, ...] = OPERATIONS
    if "operations" in entry.content:
        operations = entry.each("operations", _check_operation)
    if not operations:
        raise entry.error("operations", f"empty; known: {', '.join(OPERATIONS)}")
    expires = _moment(entry, "expires") if "expires" in entry.content else None
    return replace(key, id=name, operations=frozenset(operations), expires=expires)


def _check_operation(text: str) -> str:
    if text not in OPERATIONS:
        raise ConfigError(f"unknown operation {json.dumps(text)}; {suggest(text, OPERATIONS)}")
    return text


def _moment(entry: Table, name: str) -> datetime:
    match entry.content[name]:
        case datetime(tzinfo=zone) as moment if zone is not None:
            return moment
        case datetime():
            raise entry.error(name, "has no time zone; end it with Z, for UTC")
        case date(year=year, month=month, day=day):
            return datetime(year, month, day, tzinfo=UTC)
    raise entry.error(name, "must be a date, or a date and time, without quotes")


def _check_pair(table: Table, place: str, key: ApiKey, other: ApiKey) -> None:
    """Refuse what would leave open which of two keys a caller has."""
    if key.digest == other.digest:
        if (key.operations, key.expires) != (other.operations, other.expires):
            raise table.error(place, f"the same key as {other.id}, with other rights; make another")
    elif key.id == other.id:
        raise table.error(place, f"the id {json.dumps(key.id)} is taken; choose another")


def check_key(text: str) -> ApiKey:
    """Return a key that cannot be guessed and fits an HTTP header, or raise ConfigError."""
    if text.startswith(HASH_PREFIX):
        return _hashed(text.removeprefix(HASH_PREFIX).lower())
    if not text:
        raise ConfigError(f"empty; {MAKE_A_KEY}")
    if len(text) < MIN_KEY_CHARACTERS:
        raise ConfigError(f"shorter than {MIN_KEY_CHARACTERS} characters; {MAKE_A_KEY}")
    if len(text) > MAX_KEY_CHARACTERS:
        raise ConfigError(f"longer than {MAX_KEY_CHARACTERS} characters; {MAKE_A_KEY}")
    if not all("!" <= character <= "~" for character in text):
        raise ConfigError(f"holds characters other than visible ASCII; {MAKE_A_KEY}")
    return ApiKey.of(text)


def _hashed(digits: str) -> ApiKey:
    if not _HASH.fullmatch(digits):
        raise ConfigError(f"{HASH_PREFIX} must be followed by 64 hexadecimal digits; {MAKE_A_KEY}")
    return ApiKey.hashed(bytes.fromhex(digits))


def find_key(text: str, environ: Mapping[str, str], directory: Path) -> ApiKey:
    """Return the key that ``text`` is or names: ``env:NAME``, ``file:PATH`` from ``directory``."""
    kind, _, rest = text.partition(":")
    if kind in {"file", "env"} and not os.fsencode(rest).decode("utf-8", "replace").isprintable():
        raise ConfigError(f"the name after {kind}: has control characters; take them out")
    if kind == "file":
        return replace(read_key_file(directory / rest), id=text)
    if kind != "env":
        return check_key(text)
    if rest not in environ:
        raise ConfigError(f"{rest} is not set in the environment; set it, or take the key out")
    try:
        return replace(check_key(environ[rest].strip()), id=text)
    except ConfigError as error:
        raise ConfigError(f"{rest} is refused: {error}") from error


def read_key_file(path: Path) -> ApiKey:
    """Return the key that a file holds, or raise ConfigError; nobody else may read the file."""
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            content = stream.read(MAX_KEY_CHARACTERS + 2)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if status.st_mode & 0o077 and not _is_credential(status):
        raise ConfigError(f"{path} is open to other users; chmod 600 it")
    try:
        return check_key(content.decode("ascii", "replace").strip())
    except ConfigError as error:
        raise ConfigError(f"{path} is refused: {error}") from error


def _is_credential(status: os.stat_result) -> bool:
    """Tell a file as systemd gives it: root's, read by one more user, whom an ACL names.

    Where there are no ACLs the file is that user's, with mode 0400.
    """
    return status.st_mode & 0o777 == 0o440 and status.st_uid == status.st_gid == 0


def find_key_file(environ: Mapping[str, str]) -> Path:
    """Return where the daemon's own key is kept, or would be."""
    return _state_directory(environ) / "api-key"


def ensure_key_file(environ: Mapping[str, str]) -> Path:
    """Return the file of the daemon's own key, made at the first start; the starts agree on it."""
    path = find_key_file(environ)
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
