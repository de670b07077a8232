"""HTTP for the web app: one call in, its answer out.

Status codes are in docs/reference/wire; what a service refuses is 200, with the
error in the body.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import sys
from collections.abc import Awaitable, Iterable
from typing import Any

from tornado.web import HTTPError, stream_request_body

from syncserver.apikeys import ApiKey, KeyRing
from syncserver.errors import CommandTimeout, ProtocolError, RPCError, TooManyWrongKeys
from syncserver.handlers.base import CalmHandler, hold_guess
from syncserver.handlers.caller import BackendClient
from syncserver.protocols.base import Command, Event, Failure, Message
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry

__all__ = ["BackendClient", "BackendHTTPHandler"]

logger = logging.getLogger("syncserver.backend")

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_DRAIN_RETRY_SECONDS = 1
_DROPPED_BODIES = 4
_MOST_DIGITS = 18  # Python makes no number of thousands of them


@stream_request_body
class BackendHTTPHandler(CalmHandler):
    """``POST`` of one envelope with the header ``X-Backend-Key``.

    :param api_key: the key that callers must have; ``api_keys`` for several, ``keys`` for
        keys with rights of their own.
    """

    @classmethod
    def get_route(
        cls,
        service_registry: ServiceRegistry,
        path: str = "/backend",
        *,
        keys: KeyRing | None = None,
        **options: Any,
    ) -> tuple[str, type[BackendHTTPHandler], dict[str, Any]]:
        """Return the route that serves ``service_registry`` at ``path``.

        ValueError here, not at the first call, if no key is given.
        """
        keys = keys or _key_ring(**options)
        return (path, cls, {"service_registry": service_registry, "keys": keys})

    def initialize(
        self,
        service_registry: ServiceRegistry,
        api_key: str | bytes | None = None,
        api_keys: Iterable[bytes] = (),
        keys: KeyRing | None = None,
    ) -> None:
        """Take the options of the route; ValueError without any key."""
        self._registry = service_registry
        self._limits = service_registry.limits
        self._keys = keys or _key_ring(api_key, api_keys)
        self._key: ApiKey | None = None
        self._body = bytearray()
        self._received = 0
        self._kept = 0
        self._refused: HTTPError | TooManyWrongKeys | None = None
        self._deadline: asyncio.Timeout | None = None
        self._patience: asyncio.TimerHandle | None = None

    def check_api_key(self) -> None:
        """Raise HTTPError 401 unless the caller has a key; override it for another way.

        TooManyWrongKeys from an address that guesses: a right key is not held up by that.
        """
        given = self.request.headers.get_list("X-Backend-Key")
        if len(given) != 1:
            raise HTTPError(401, "Missing X-Backend-Key header")
        key = self._keys.find(given[0].encode("utf-8", "surrogateescape"))
        if key is None:
            self._registry.guesses.wrong(self.request.remote_ip or "")
            raise HTTPError(401, "Invalid API key")
        if key.expired():
            raise HTTPError(401, "API key %s has expired", key.id)
        self._key = key

    def prepare(self) -> Awaitable[None] | None:
        """Refuse what can be refused by its head; its body is dropped, not kept.

        It is read all the same, up to a few times of what is allowed: who is still sending may
        not read an answer before the connection is reset.
        """
        connection: Any = self.request.connection
        connection.set_max_body_size(sys.maxsize)  # the bounds are kept here, where they answer
        connection.set_body_timeout(None)  # Tornado's costs a tenth of a call
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(self._limits.body_seconds, self._hang_up)
        try:
            self._check_head()
        except (HTTPError, TooManyWrongKeys) as error:
            self._refused = error
        if self._refused and (self._is_far_too_large(self._length()) or self._waits_for_go()):
            return self._refuse(self._refused)
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep a piece of the body, as far as it may go."""
        self._received += len(chunk)
        if self._refused is None:
            self._keep(chunk)
        if self._refused is not None:
            self._let_go()
            if self._is_far_too_large(self._received) and not self._finished:
                return self._refuse(self._refused)
        return None

    async def post(self, *args: str, **kwargs: str) -> None:
        """Run one call and send its answer."""
        if self._patience is not None:
            self._patience.cancel()
        if self._finished:
            return
        if isinstance(self._refused, TooManyWrongKeys):
            await hold_guess(self.request)
        if self._refused is not None:
            raise self._refused
        messages = NativeProtocol().receive(bytes(self._body))
        remote_address = self.request.remote_ip or ""
        key = self._idempotency_key()
        scarce = self._registry.scarce
        client = BackendClient(remote_address, key, self._key, self._reply, scarce=scarce)
        await self._call(client, messages[0])

    def on_finish(self) -> None:
        """Let go of the body, and let the connection be for its next call."""
        self._let_go()
        if self._patience is not None:
            self._patience.cancel()

    def on_connection_close(self) -> None:
        """Wait no longer for a body whose sender is gone."""
        super().on_connection_close()
        self._let_go()
        if self._patience is not None:
            self._patience.cancel()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send an error envelope instead of a page."""
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if not isinstance(error, ProtocolError | RPCError):
            reason = self._reason if status_code < 500 else "Internal error"
            error = RPCError(reason, code=_code_of(status_code))
            if status_code == 405:
                self.set_header("Allow", "POST")
        else:
            self._set_error_status(error)
        self._registry.traffic.errors.add(error.code)
        service = getattr(error, "service", None)
        call_id = getattr(error, "call_id", None)
        self._send_json(NativeProtocol().encode(Failure(service, call_id, error))[0])

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log what a caller did wrong in a line, and what went wrong here in full."""
        if getattr(value, "status_code", 0) == 401 or isinstance(value, TooManyWrongKeys):
            logger.info("Refused a key from %s: %s", self.request.remote_ip, value)
        elif isinstance(value, ProtocolError | HTTPError | RPCError):
            logger.info("Refused a call from %s: %s", self.request.remote_ip, value)
        else:
            logger.error("A call failed", exc_info=value)

    async def _call(self, client: BackendClient, message: Message | Command) -> None:
        """Run one call; its answer leaves as soon as it is there, even if the call goes on."""
        self._registry.calls_under_way += 1
        try:
            async with asyncio.timeout(self._limits.call_seconds) as self._deadline:
                pending = self._registry.dispatch(client, message)
                if inspect.isawaitable(pending):
                    await pending
                await client.answer
        except TimeoutError:
            client.answer.cancel()
            raise CommandTimeout from None
        finally:
            self._registry.calls_under_way -= 1

    def _reply(self, event: Event, body: bytes) -> None:
        if self._deadline is not None:
            if self._deadline.expired():
                return
            self._deadline.reschedule(None)
        if isinstance(event, Failure):
            self._registry.traffic.errors.add(event.error.code)
            self._set_error_status(event.error)
        self._send_json(body)

    async def _refuse(self, error: HTTPError | TooManyWrongKeys) -> None:
        if isinstance(error, TooManyWrongKeys):
            await hold_guess(self.request)
        status = error.status_code if isinstance(error, HTTPError) else error.http_status
        self.send_error(status, exc_info=(type(error), error, None))

    def _hang_up(self) -> None:
        logger.info("The body of a call from %s came too slowly", self.request.remote_ip)
        connection: Any = self.request.connection
        if connection.stream is not None:
            connection.stream.close()

    def _check_head(self) -> None:
        if self.request.method != "POST":
            raise HTTPError(405)
        self.check_api_key()
        if self._registry.draining:
            raise HTTPError(503)
        if self._registry.calls_under_way >= self._limits.max_calls:
            raise HTTPError(429)
        content_type = self.request.headers.get("Content-Type", "").partition(";")[0]
        if content_type.strip().lower() != "application/json":
            raise HTTPError(415)
        if "Content-Encoding" in self.request.headers:
            raise HTTPError(415)
        if self._length() > self._limits.max_body_bytes:
            raise HTTPError(413)

    def _keep(self, chunk: bytes) -> None:
        self._body += chunk
        self._kept += len(chunk)
        self._registry.bytes_under_way += len(chunk)
        if self._received > self._limits.max_body_bytes:
            self._refused = HTTPError(413)
        elif self._registry.bytes_under_way > self._limits.max_calls_bytes:
            self._refused = HTTPError(429)

    def _let_go(self) -> None:
        self._body.clear()
        self._registry.bytes_under_way -= self._kept
        self._kept = 0

    def _length(self) -> int:
        """Return how long the body says it is; Tornado refuses what is no number."""
        text = self.request.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdecimal()):
            return 0
        return int(text) if len(text) <= _MOST_DIGITS else sys.maxsize

    def _is_far_too_large(self, length: int) -> bool:
        return length > _DROPPED_BODIES * self._limits.max_body_bytes

    def _waits_for_go(self) -> bool:
        return self.request.headers.get("Expect", "").lower() == "100-continue"

    def _idempotency_key(self) -> str | None:
        given = self.request.headers.get_list("Idempotency-Key")
        if not given:
            return None
        if len(given) != 1 or not _IDEMPOTENCY_KEY.fullmatch(given[0]):
            raise ProtocolError("Idempotency-Key must be 1 to 128 visible ASCII characters")
        return given[0]

    def _set_error_status(self, error: RPCError | ProtocolError) -> None:
        self.set_status(error.http_status)
        seconds = getattr(error, "retry_after_seconds", None)
        if seconds is not None:
            self.set_header("Retry-After", str(seconds))

    def _send_json(self, body: bytes) -> None:
        if self.get_status() in (429, 503) and "Retry-After" not in self._headers:
            self.set_header("Retry-After", str(_DRAIN_RETRY_SECONDS))
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.set_header("Cache-Control", "no-store")
        self.finish(body)


_CODES = {
    401: "unauthorized",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    429: "too_many_calls",
    503: "unavailable",
}


def _key_ring(api_key: str | bytes | None = None, api_keys: Iterable[bytes] = ()) -> KeyRing:
    given = (*((api_key,) if api_key is not None else ()), *api_keys)
    if not given or not all(given):
        raise ValueError("BackendHTTPHandler needs an api_key")
    return KeyRing(map(ApiKey.of, given))


def _code_of(status: int) -> str:
    return _CODES.get(status, "malformed" if status < 500 else "internal_error")
