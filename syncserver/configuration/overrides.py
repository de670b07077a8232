"""What goes before the configuration file: the environment, and before it the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from syncserver.apikeys import HASH_PREFIX
from syncserver.config import Backend, Frontend, Limits, Log, suggest
from syncserver.configuration.table import settings_of
from syncserver.configuration.toml import parse
from syncserver.errors import ConfigError

_SECTIONS = {"frontend": Frontend, "backend": Backend, "limits": Limits, "log": Log}

# What is a text whatever it looks like.
_TEXTS = {
    "engine",
    "address",
    "format",
    "level",
    "sockjs_client_url",
    "tls_cert",
    "tls_key",
    "unix_socket",
    "unix_socket_mode",
}


def override(
    content: dict[str, Any], environ: Mapping[str, str], assignments: Iterable[str] = ()
) -> dict[str, str]:
    """Lay variables of the environment over ``content``, then assignments of the command line.

    Return what each setting that was laid over was given by, for refusals.
    """
    settings = ["engine", "insecure"]
    for section, kind in _SECTIONS.items():
        settings += [f"{section}.{key}" for key in settings_of(kind)]
    overrides: dict[str, str] = {}
    for setting, text, place in (
        *_from_environment(environ, settings),
        *_from_command_line(assignments, settings),
    ):
        section, _, key = setting.rpartition(".")
        table = content.setdefault(section, {}) if section else content
        if isinstance(table, dict):
            table[key] = _meant(text, key)
            overrides[setting] = place
    return overrides


def _from_environment(
    environ: Mapping[str, str], settings: Iterable[str]
) -> Iterator[tuple[str, str, str]]:
    settable = {f"SYNCSERVER_{name.replace('.', '__')}".upper(): name for name in settings}
    for variable in sorted(name for name in environ if name.startswith("SYNCSERVER_")):
        if setting := settable.get(variable):
            yield setting, environ[variable], variable
        elif "__" in variable:
            raise ConfigError(
                f"{_printable(variable)}: unknown setting; {suggest(variable, settable)}"
            )


def _from_command_line(
    assignments: Iterable[str], settings: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    for assignment in assignments:
        setting, equals, text = assignment.partition("=")
        place = f"--set {_printable(setting)}"
        if not equals:
            raise ConfigError(f"{place}: no value; write SECTION.KEY=VALUE")
        if setting not in settings:
            raise ConfigError(f"{place}: unknown setting; {suggest(setting, settings)}")
        if setting == "backend.api_keys" and not all(map(_is_no_secret, _parts(text))):
            raise ConfigError(f"{place}: others see the command line; write env:NAME or file:PATH")
        if setting == "engine" and "@" in text:
            raise ConfigError(
                f"{place}: others see the command line; give a password in SYNCSERVER_ENGINE"
            )
        yield setting, text, place


def _printable(name: str) -> str:
    return name if name.isprintable() else json.dumps(name)


def _is_no_secret(key: str) -> bool:
    return key.startswith(("env:", "file:", HASH_PREFIX))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _meant(text: str, key: str) -> object:
    """Return a text as the value that a file would have: ``5800``, ``true``, a list."""
    if key in {"api_keys", "allowed_origins", "trusted_proxies"}:
        return _parts(text)
    if key in _TEXTS:
        return text
    try:
        return parse(f"value = {text}")["value"]
    except ConfigError:
        return text
