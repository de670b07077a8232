"""Certificates of the doors: read, checked, and read again while a door is open."""

from __future__ import annotations

import ssl
from pathlib import Path

from syncserver.errors import ConfigError


def make_context(certificate: str, key: str | None = None) -> ssl.SSLContext:
    """Return what a door needs for TLS (1.2 and newer), or raise ConfigError.

    :param certificate: PEM file with the certificate, and those of its issuers after it.
    :param key: PEM file of its key, unless it stands in the first file too.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in filter(None, (certificate, key)):
        _check_readable(Path(path))
    if _is_open_to_all(Path(key or certificate)):
        raise ConfigError(f"{key or certificate} is open to all users; chmod 640 it")
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        pair = f"{certificate} with {key}" if key else certificate
        raise ConfigError(f"{pair} is no certificate with its key, in PEM: {reason}") from None
    return context


def _check_readable(path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _is_open_to_all(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o007)
