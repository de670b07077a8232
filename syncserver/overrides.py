"""What goes before the configuration file: variables of the environment."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from syncserver.config import Backend, Frontend, Limits, suggest
from syncserver.configtable import settings_of
from syncserver.errors import ConfigError

_SECTIONS = {"frontend": Frontend, "backend": Backend, "limits": Limits}


def override(content: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Put the variables of the environment into ``content``; return which key has which."""
    settable = {f"SYNCSERVER_{name.upper()}": name for name in ("engine", "insecure")}
    for section, settings in _SECTIONS.items():
        for key in settings_of(settings):
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
