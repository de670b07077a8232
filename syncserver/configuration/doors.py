"""The doors in a configuration file: where they are, their certificates, and their proxies."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from syncserver.config import Backend, Frontend
from syncserver.configuration.table import Table, settings_of
from syncserver.errors import ConfigError
from syncserver.tls import make_context

UNIX = "unix"

Door = TypeVar("Door", Frontend, Backend)

_MODE = re.compile("0?[0-7]{3}")
_WITH_ADDRESS = ("address", "port")
_MAX_UNIX_PATH = 107  # what the kernel takes


def read_door(table: Table, default: Door, directory: Path) -> Door:
    """Return ``default`` with what a table sets of a door; of keys and origins nothing."""
    table.only(settings_of(type(default)))
    none: tuple[str, ...] = ()
    values: dict[str, Any] = {
        "address": table.attempt(lambda: table.name("address", default.address), default.address),
        "port": table.attempt(lambda: _port(table, default.port), default.port),
        "trusted_proxies": table.attempt(lambda: table.each("trusted_proxies", check_proxy), none),
        **table.attempt(lambda: _unix_socket(table, directory), {}),
        **table.attempt(lambda: _certificate(table, directory), {}),
    }
    return replace(default, **values)


def check_apart(table: Table, frontend: Frontend, backend: Backend) -> None:
    """Refuse a backend that stands where the frontend does without having been told to."""
    if backend.on_frontend:
        own = {field.name for field in fields(Backend)} - {"on_frontend", "api_keys", "key_file"}
        for name in table.content:
            if name in own:
                raise table.error(name, "does not go with on_frontend; take it out")
    elif backend.unix_socket is not None or frontend.unix_socket is not None:
        if backend.unix_socket == frontend.unix_socket:
            raise table.error("unix_socket", "the frontend has the same; give each its own")
    elif backend.port and (backend.address, backend.port) == (frontend.address, frontend.port):
        what = "the frontend has the same; give each its own, or set backend.on_frontend"
        raise table.error("port", what)


def check_proxy(text: str) -> str:
    """Return an address or network as it is compared, or ``unix``, or raise ConfigError."""
    if text == UNIX:
        return text
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        what = str(error) if text.isprintable() else f"{text!a} is none"
        mend = 'write an address, a network as in "10.0.0.0/8", or "unix"'
        raise ConfigError(f"{what}; {mend}") from None


def _port(table: Table, default: int) -> int:
    port = table.get("port", int, default)
    if not 0 <= port <= 65535:
        raise table.error("port", "out of range; 1 to 65535, or 0 for any free port")
    return port


def _unix_socket(table: Table, directory: Path) -> dict[str, str]:
    if "unix_socket" not in table.content:
        if "unix_socket_mode" in table.content:
            raise table.error("unix_socket_mode", "without unix_socket; name the socket too")
        return {}
    path = str(directory / table.name("unix_socket"))
    if len(path.encode()) > _MAX_UNIX_PATH:
        raise table.error("unix_socket", f"longer than {_MAX_UNIX_PATH} bytes; choose another")
    for name in _WITH_ADDRESS:
        if name in table.content:
            raise table.error(name, "does not go with unix_socket; take one of them out")
    mode = table.name("unix_socket_mode", Frontend().unix_socket_mode)
    if not _MODE.fullmatch(mode):
        raise table.error("unix_socket_mode", 'must be three octal digits, as in "0660"')
    return {"unix_socket": path, "unix_socket_mode": mode}


def _certificate(table: Table, directory: Path) -> dict[str, str]:
    files = {
        name: str(directory / table.name(name))
        for name in ("tls_cert", "tls_key")
        if name in table.content
    }
    if files:
        if "tls_cert" not in files:
            raise table.error("tls_key", "without tls_cert; name the certificate too")
        try:
            make_context(files["tls_cert"], files.get("tls_key"))
        except ConfigError as error:
            raise table.error("tls_cert", str(error)) from error
    return files
