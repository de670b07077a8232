"""What the daemon tells of itself, over HTTP: to a scraper, and to its other processes."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import HTTPError

from syncserver import strict_json
from syncserver.apikeys import KeyRing
from syncserver.errors import TooManyWrongKeys
from syncserver.handlers.base import CalmHandler, given_key, hold_guess
from syncserver.registry import ServiceRegistry

MEASURES_PATH = "/measures"

_OPERATION = "inspect"
_MISSING = "Metrics need the package prometheus-client: pip install 'syncserver[metrics]'\n"
_MOST_BYTES = 4 * 1024 * 1024

logger = logging.getLogger("syncserver.backend")

_CODES = {401: "unauthorized", 403: "forbidden", 429: "too_many_wrong_keys"}

Scrape = Callable[[str], Awaitable[tuple[bytes, str]]]


class MetricsHandler(CalmHandler):
    """``GET``: the metrics of all processes of the daemon.

    :param scrape: returns text and content type for an ``Accept``; None: it is not installed.
    :param keys: one of these must be given, that may ``inspect``; None: whoever asks may.
    :param registry: counts who has no good key, by the codes of a call, and bounds guesses.
    """

    def initialize(
        self, scrape: Scrape | None, keys: KeyRing | None, registry: ServiceRegistry
    ) -> None:
        """Take the options of the route."""
        self._scrape = scrape
        self._keys = keys
        self._registry = registry
        self._retry_after_seconds = 0

    async def get(self) -> None:
        """Answer a scrape."""
        try:
            self._check_key()
        except TooManyWrongKeys as error:
            await hold_guess(self.request)
            self._retry_after_seconds = error.retry_after_seconds
            self._refuse(error.http_status, error.message)
        if self._scrape is None:
            raise HTTPError(501)
        text, content_type = await self._scrape(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "no-store")
        self.finish(text)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say in a line what is wrong."""
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        if status_code == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        if self._retry_after_seconds:
            self.set_header("Retry-After", str(self._retry_after_seconds))
        self.finish(_MISSING if status_code == 501 else f"{self._reason}\n")

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log a key that is refused in a line, and what went wrong here in full."""
        if not isinstance(value, HTTPError):
            logger.error("A scrape failed", exc_info=value)
        elif value.status_code in _CODES:
            logger.info("Refused a key from %s: %s", self.request.remote_ip, value)

    def _check_key(self) -> None:
        if self._keys is None:
            return
        given = given_key(self.request.headers)
        key = self._keys.find(given)
        if key is None and given:
            self._registry.guesses.wrong(self.request.remote_ip or "")
        if key is None or key.expired():
            self._refuse(401, "Invalid API key")
        elif not key.allows(_OPERATION):
            self._refuse(403, "The API key is not for metrics")

    def _refuse(self, status: int, why: str) -> NoReturn:
        self._registry.traffic.errors.add(_CODES[status])
        raise HTTPError(status, why)


class MeasuresHandler(CalmHandler):
    """``GET``: the samples of this process as JSON, at a door that only processes of ours reach."""

    def initialize(self, read: Callable[[], Sequence[Any]]) -> None:
        """Take the option of the route."""
        self._read = read

    def get(self) -> None:
        """Answer another process."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(strict_json.encode_trusted(self._read()))


class _Answer(HTTPMessageDelegate):
    def __init__(self) -> None:
        self.body = bytearray()
        self.is_whole = False

    def data_received(self, chunk: bytes) -> None:
        self.body += chunk

    def finish(self) -> None:
        self.is_whole = True


async def ask(path: str, seconds: float) -> Any:
    """Return what ``MeasuresHandler`` says at a Unix socket; None if nobody does in time."""
    stream = IOStream(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    answer = _Answer()
    try:
        async with asyncio.timeout(seconds):
            await stream.connect(path)
            parameters = HTTP1ConnectionParameters(no_keep_alive=True, max_body_size=_MOST_BYTES)
            connection = HTTP1Connection(stream, True, parameters)
            start = RequestStartLine("GET", MEASURES_PATH, "")
            await connection.write_headers(start, HTTPHeaders({"Host": "sibling"}))
            connection.finish()
            await connection.read_response(answer)
    except (StreamClosedError, TimeoutError):
        return None
    finally:
        stream.close()
    return strict_json.decode_trusted(bytes(answer.body)) if answer.is_whole else None
