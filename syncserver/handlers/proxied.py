"""Where a request comes from, when it comes by way of a proxy.

``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed from proxies that the settings
trust, and from nobody else: anybody may write them. The list of addresses is read from
its end, where the nearest proxy has written, up to the first address that is no trusted
proxy: that is the client.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Iterable
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from syncserver.handlers.paced import Pace, Paced

UNIX = "unix"
_SCHEMES = ("http", "https")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """The proxies that are trusted.

    :param names: addresses and networks, and ``unix`` for whoever reaches a Unix socket.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        given = tuple(names)
        self.unix = UNIX in given
        self._networks = [ipaddress.ip_network(name) for name in given if name != UNIX]

    def __bool__(self) -> bool:
        return self.unix or bool(self._networks)

    def client_of(self, forwarded: Iterable[str]) -> str | None:
        """Return the client that ``X-Forwarded-For`` names; None: it names none."""
        client = None
        for text in reversed([part for line in forwarded for part in line.split(",")]):
            address = parse_address(text.strip())
            if address is None:
                break
            client = str(address)
            if not self.trusts(address):
                break
        return client

    def trusts(self, address: Address | None) -> bool:
        """Tell whether an address is one of them."""
        return address is not None and any(address in network for network in self._networks)

    def is_one(self, context: Any) -> bool:
        """Tell whether the peer of a connection, as Tornado knows it, is one of them."""
        if context.address_family == getattr(socket, "AF_UNIX", None):
            return self.unix
        return self.trusts(parse_address(context.remote_ip))


def parse_address(text: str) -> Address | None:
    """Return an address, IPv4 also where it is written as IPv6; None: it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if "%" in text:  # a zone is this machine's affair, and any text
        return None
    return getattr(address, "ipv4_mapped", None) or address


class ProxiedServer(HTTPServer):
    """An HTTP server whose requests name the client that a trusted proxy names.

    Where there is a ``pace``, there may be too many of them. Once it ``is_closing``, none begins.
    """

    proxies = Proxies()
    pace: Pace | None = None
    is_closing = False

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Begin a request; Tornado calls it."""
        if self.is_closing:
            return _Unheard(request_conn)
        delegate = super().start_request(server_conn, request_conn)
        is_proxy = bool(self.proxies) and self.proxies.is_one(
            getattr(request_conn, "context", None)
        )
        if self.pace is not None:
            delegate = Paced(delegate, request_conn, self.pace, proxy=is_proxy)
        return _Proxied(delegate, request_conn, self.proxies) if is_proxy else delegate


class _Unheard(HTTPMessageDelegate):
    """Ends a connection that is closed; Tornado would go on with what was sent before."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        self._connection.detach().close()


class _Proxied(HTTPMessageDelegate):
    """Changes what a connection says of its peer, for the time of one request."""

    def __init__(
        self, delegate: HTTPMessageDelegate, connection: HTTPConnection, proxies: Proxies
    ) -> None:
        self._delegate = delegate
        context: Any = getattr(connection, "context", None)
        self._context = context
        self._proxies = proxies
        self._own = (context.remote_ip, context.protocol)

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        context = self._context
        client = self._proxies.client_of(headers.get_list("X-Forwarded-For"))
        context.remote_ip = client or context.remote_ip
        scheme = headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip()
        context.protocol = scheme if scheme in _SCHEMES else context.protocol
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()
        self._restore()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()
        self._restore()

    def _restore(self) -> None:
        self._context.remote_ip, self._context.protocol = self._own
