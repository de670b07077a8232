"""Who may come in: so many connections at once, from one address, and each second.

The bound on connections stays below that on descriptors, so that there are some left for the
log, the engine and the web app: a daemon at its limit of descriptors can do nothing for those
it has. Who is refused is told so (503) without a handshake, or just closed under TLS.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Any

from syncserver.admission.addresses import Addresses, counted_as, is_public
from syncserver.admission.bucket import Bucket
from syncserver.config import Limits
from syncserver.counters import Tally

logger = logging.getLogger("syncserver.server")

_RESERVE = 64
_RESERVED_PART = 8
_OWN = 32

_REASONS = {
    "connections": "there are too many",
    "address": "too many of this address (a proxy? then name it in trusted_proxies)",
}

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)


def descriptors(limits: Limits) -> int:
    """Return how many descriptors a daemon has that has raised its soft limit; -1: any number.

    It is raised as far as its connections need, or as the hard limit lets it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = limits.max_connections
    needed = most + max(_RESERVE, most // (_RESERVED_PART - 1) + 1)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return soft
    return needed if hard == resource.RLIM_INFINITY else min(needed, hard)


def raise_descriptors(limits: Limits) -> None:
    """Raise the soft limit of this process, and of those it will start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors(limits)
    if wanted == soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        logger.warning("%s descriptors are all, for %s were refused: %s", soft, wanted, error)


def places(limits: Limits, among: int | None = None) -> tuple[int, int]:
    """Return how many connections browsers may have, and how many the web app.

    :param among: descriptors; those of this process if it is left out.
    """
    if among is None:
        among, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if among == resource.RLIM_INFINITY:
        return limits.max_connections, limits.max_connections
    reserve = min(max(_RESERVE, among // _RESERVED_PART), among // 2)
    return min(limits.max_connections, among - reserve), max(1, reserve - _OWN)


class Seats:
    """So many connections at once, of all who share them: doors, and what is passed on."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    @property
    def are_taken(self) -> bool:
        """Tell whether there is none left."""
        return self.taken >= self.most


class Gate:
    """Counts the connections of one door.

    :param seats: how many there may be at once.
    :param is_proxy: tells the addresses that are nobody's own; these are not counted.
    :param refused: counts who is refused, as too many ``connections`` or of one ``address``.
    """

    def __init__(
        self,
        limits: Limits,
        seats: Seats,
        is_proxy: Callable[[str], bool],
        refused: Tally | None = None,
    ) -> None:
        self.seats = seats
        self.open = 0
        self.refused = Tally() if refused is None else refused
        self.pace = Bucket(limits.accepts_per_second, limits.accepts_per_second)
        self._addresses = Addresses(limits)
        self._is_proxy = is_proxy
        self._is_full = False

    def admit(self, connection: socket.socket, address: Any) -> socket.socket | None:
        """Return a connection that is counted until it is closed; None: it was refused."""
        key = self._key(address)
        reason = self._refusal(key)
        if reason is not None:
            self.refused.add(reason)
            logger.info("Refused %s: %s", key or "a connection", _REASONS[reason])
            return None
        self._is_full = False
        self.open += 1
        self.seats.taken += 1
        if key:
            self._addresses.enter(key)
        return _counted(connection, self, key)

    def left(self, key: str) -> None:
        """Hear that a connection was closed."""
        self.open -= 1
        self.seats.taken -= 1
        if key:
            self._addresses.leave(key)

    def _refusal(self, key: str) -> str | None:
        if self.seats.are_taken:
            if not self._is_full:
                self._is_full = True
                mend = "limits.max_connections, and the limit of descriptors"
                logger.warning("Refusing connections, %s are the most (%s)", self.seats.taken, mend)
            return "connections"
        if key and not self._addresses.admits(key):
            return "address"
        return None

    def _key(self, address: Any) -> str:
        """Return what a peer counts as; empty: it is not counted."""
        host = address[0] if isinstance(address, tuple) else ""
        return counted_as(host) if is_public(host) and not self._is_proxy(host) else ""


class CountedSocket(socket.socket):
    """A connection that tells its gate when it is closed."""

    __slots__ = ("gate", "key")

    gate: Gate | None
    key: str

    def close(self) -> None:
        """Close it."""
        super().close()
        _leave(self)

    def detach(self) -> int:
        """Give the descriptor away, and its place to whoever has it."""
        self.gate = None
        return super().detach()


class CountedTLSSocket(ssl.SSLSocket):
    """The same under TLS."""

    gate: Gate | None = None
    key: str = ""

    def close(self) -> None:
        """Close it."""
        super().close()
        _leave(self)


def refuse(connection: socket.socket, *, secure: bool) -> None:
    """Close a connection that was not admitted; without TLS it is told to come again."""
    with contextlib.suppress(OSError), connection:
        if not secure:
            connection.send(BUSY)
            connection.shutdown(socket.SHUT_WR)


def wrapped(context: ssl.SSLContext, connection: socket.socket) -> ssl.SSLSocket:
    """Return a connection under TLS that has the place of the plain one; OSError: it is gone."""
    gate, key = getattr(connection, "gate", None), getattr(connection, "key", "")
    context.sslsocket_class = CountedTLSSocket
    try:
        secure = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    except OSError:
        given_away = getattr(connection, "gate", None) is None
        connection.close()
        if gate is not None and given_away:
            gate.left(key)
        raise
    if isinstance(secure, CountedTLSSocket):
        secure.gate, secure.key = gate, key
    return secure


def _counted(connection: socket.socket, gate: Gate, key: str) -> socket.socket:
    counted = CountedSocket(
        connection.family, connection.type, connection.proto, fileno=connection.detach()
    )
    counted.gate, counted.key = gate, key
    counted.setblocking(False)
    return counted


def _leave(connection: CountedSocket | CountedTLSSocket) -> None:
    gate, connection.gate = connection.gate, None
    if gate is not None:
        gate.left(connection.key)
