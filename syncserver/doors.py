"""A door of the daemon: an address that HTTP is spoken on, opened and shut."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from pathlib import Path
from typing import Any

from tornado.httputil import HTTPInputError
from tornado.iostream import IOStream, SSLIOStream
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.web import Application, RequestHandler

from syncserver.admission.accepting import BACKLOG, Acceptor
from syncserver.admission.gate import Gate, Seats, refuse, wrapped
from syncserver.config import Backend, Frontend, Limits
from syncserver.counters import Tally
from syncserver.handlers.base import NothingHandler
from syncserver.handlers.paced import Pace
from syncserver.handlers.proxied import ProxiedServer, Proxies, parse_address
from syncserver.tls import make_context

logger = logging.getLogger("syncserver.server")

_HEADER_BYTES = 16 * 1024
_DROPPED_BODIES = 4
_CLOSE_SECONDS = 2.0


class UnixPlace:
    """A Unix socket in the file system, which forked processes may listen on together.

    The process that made it removes it, when it leaves; it may stop to listen before the
    others do. A socket that nobody listens on is replaced.
    """

    def __init__(self, path: str, mode: str) -> None:
        self.path = path
        self._mode = int(mode, 8)
        self._socket: socket.socket | None = None
        self._owner = os.getpid()
        self._inode = 0

    def listen(self) -> socket.socket:
        """Return a listening socket; OSError if another daemon listens there."""
        if self._socket is None:
            if _is_listened_on(self.path):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            self._socket = bind_unix_socket(self.path, self._mode, BACKLOG)
            self._inode = Path(self.path).stat().st_ino
        return self._socket.dup()

    def hand_over(self) -> None:
        """Leave listening to the others: when they stop, whoever comes is refused."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def leave(self) -> None:
        """Remove the socket, unless another daemon has put its own there."""
        self.hand_over()
        with contextlib.suppress(FileNotFoundError):
            if os.getpid() == self._owner and Path(self.path).stat().st_ino == self._inode:
                Path(self.path).unlink()
        self._inode = 0


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


class Door:
    """One address and the routes behind it.

    :param idle_seconds: how long a connection may stay without a request.
    :param seats: how many connections it may have, with those it shares them with.
    :param refused: counts those that it did not take.
    :param reuse_port: share the address with other processes.
    :param place: the Unix socket to listen on, where other processes do too.
    :param pace: how often requests may come.
    """

    def __init__(
        self,
        settings: Frontend | Backend,
        routes: list[Any],
        *,
        limits: Limits,
        idle_seconds: float,
        seats: Seats,
        refused: Tally | None = None,
        reuse_port: bool = False,
        place: UnixPlace | None = None,
        pace: Pace | None = None,
    ) -> None:
        logging.getLogger("tornado.general").addFilter(_leave_out_what_was_sent)
        self._settings = settings
        self._reuse_port = reuse_port
        self._tls = None
        if settings.tls_cert is not None:
            self._tls = make_context(settings.tls_cert, settings.tls_key)
        self._server = ProxiedServer(
            Application(
                routes,
                default_handler_class=NothingHandler,
                log_function=_log_request,
                compress_response=False,
            ),
            idle_connection_timeout=idle_seconds,
            body_timeout=limits.body_seconds,
            max_header_size=_HEADER_BYTES,
            max_body_size=_DROPPED_BODIES * limits.max_body_bytes,
        )
        self._server.proxies = proxies = Proxies(settings.trusted_proxies)
        self._server.pace = pace
        self.gate = Gate(
            limits, seats, lambda address: proxies.trusts(parse_address(address)), refused
        )
        self._place = place
        self._acceptors: list[Acceptor] = []
        self.accepted = 0
        self.port = 0

    @property
    def failures(self) -> int:
        """Return how often a connection could not be taken."""
        return sum(acceptor.failures for acceptor in self._acceptors)

    def open(self) -> None:
        """Listen; OSError if the address is taken or is none of this machine."""
        settings = self._settings
        if settings.unix_socket is not None:
            self._place = self._place or UnixPlace(settings.unix_socket, settings.unix_socket_mode)
            self._acceptors = [self._acceptor(self._place.listen())]
            return
        sockets = bind_sockets(
            settings.port, settings.address, backlog=BACKLOG, reuse_port=self._reuse_port
        )
        self._acceptors = [self._acceptor(one) for one in sockets]
        self.port = sockets[0].getsockname()[1]

    def renew_certificate(self, settings: Frontend | Backend) -> None:
        """Show the certificate of these settings to those who connect from now on.

        ConfigError if it is none; the one before is shown on then: a context that has refused
        a certificate has none left.
        """
        if self._tls is not None and settings.tls_cert is not None:
            self._tls = make_context(settings.tls_cert, settings.tls_key)

    def stop(self) -> None:
        """Take no new connections."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        if self._place is not None:
            self._place.leave()

    async def close_all_connections(self) -> None:
        """Close those that are open, all at once; what is still done there soon is broken off.

        Tornado closes one after the other, and waits for what each is at.
        """
        server = self._server
        server.is_closing = True
        if server.pace is not None:
            server.pace.release()
        connections = getattr(server, "_connections", None)
        if connections is None:
            closing = [asyncio.ensure_future(server.close_all_connections())]
        else:
            closing = [asyncio.ensure_future(one.close()) for one in connections]
        try:
            if closing:
                await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
        finally:
            for one in closing:
                one.cancel()

    def url(self, scheme: str, path: str) -> str:
        """Return where the door is, for a person; with TLS the scheme ends in ``s``."""
        scheme += "s" if self._tls else ""
        if self._settings.unix_socket is not None:
            return f"{scheme}://unix:{self._settings.unix_socket}:{path}"
        address = self._settings.address
        host = f"[{address}]" if ":" in address else address
        return f"{scheme}://{host}:{self.port}{path}"

    def _acceptor(self, listening: socket.socket) -> Acceptor:
        return Acceptor(listening, self._take, self.gate.pace)

    def _take(self, connection: socket.socket, address: Any) -> None:
        counted = self.gate.admit(connection, address)
        if counted is None:
            refuse(connection, secure=self._tls is not None)
            return
        self.accepted += 1
        if self._tls is None:
            self._server.handle_stream(IOStream(counted), address)
        else:
            try:
                secure = wrapped(self._tls, counted)
            except OSError:  # the peer is gone already
                return
            self._server.handle_stream(SSLIOStream(secure), address)


def _leave_out_what_was_sent(record: logging.LogRecord) -> bool:
    """Cut short what Tornado says of a broken request: it quotes, and that may be a key."""
    match record.args:
        case (connection, HTTPInputError() as error):
            record.args = (connection, " ".join(str(error).split()[:2]))
    return True


def _log_request(handler: RequestHandler) -> None:
    request = handler.request
    logger.debug("%s %s %s", handler.get_status(), request.method, request.path)
