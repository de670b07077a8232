"""API keys: read from where the settings say, and made where none was set."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from syncserver.config import Secret
from syncserver.errors import ConfigError

MIN_KEY_CHARACTERS = 32
MAX_KEY_CHARACTERS = 1024
MAKE_A_KEY = """make one with "python -c 'import secrets; print(secrets.token_urlsafe(32))'\""""


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
