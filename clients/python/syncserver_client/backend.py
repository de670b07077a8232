"""Calls to the daemon's backend port: one POST each, sent again where that can help."""

from __future__ import annotations

import json
import logging
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import requests
from requests.auth import AuthBase

from syncserver_client import errors
from syncserver_client.encoding import Default, encode, json_default
from syncserver_client.version import __version__

log = logging.getLogger("syncserver_client")

DATASYNC = "datasync_backend"
PUBSUB = "pubsub_backend"

FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0
MAX_RETRY_AFTER_SECONDS = 30.0
LOGGED_CHARACTERS = 200

HTTP_ERRORS: dict[int, type[errors.HTTPError]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.WrongAddress,
    405: errors.WrongAddress,
    409: errors.IdempotencyConflict,
    413: errors.TooLarge,
    429: errors.TooManyRequests,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
}
WORTH_A_RETRY = frozenset({429, 502, 503, 504})
WRONG_KEY = "too_many_wrong_keys"

_VISIBLE_ASCII = re.compile(r"[!-~]+")
_ABSENT: Any = object()


class _KeyHeader(AuthBase):
    """Puts the key on a request, and keeps it out of every other place."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["X-Backend-Key"] = self._key
        return request


class _TryAgain(Exception):  # it never leaves this module
    """A failure that may be over the next time."""

    def __init__(self, error: errors.BackendError, after_seconds: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_seconds = after_seconds


class Backend:
    """The daemon, seen from the web app.

    A call that finds no answer, or 429, 502, 503 or 504, is sent again up to
    ``retries`` times, always with the same idempotency key, so that a publish
    counts once. A command of one's own that must not run twice by any chance
    wants a Backend with ``retries=0``, which sends no such key of its own
    making: a proxy may take one for the leave to repeat the call.

    requests does not promise that threads may share a Session: give each
    thread (and each forked process) its own Backend.

    :param url: where the daemon takes calls, ``http://127.0.0.1:5801/backend``.
    :param key: one of the daemon's ``backend.api_keys``.
    :param session: a requests.Session to use; it is left open by close().
    :param timeout: seconds for the connection and for each wait for bytes, as in requests.
    :param retries: how often a call is sent again; each may take the whole timeout.
    :param json_encoder: called with a value that JSON does not know; returns one that it knows.
    :param sleep: waits between two tries; a cooperative framework may give its own.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        session: requests.Session | None = None,
        timeout: float | tuple[float, float] = (3.05, 10),
        retries: int = 3,
        json_encoder: Default = json_default,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, not {url!r}")
        if not _VISIBLE_ASCII.fullmatch(key):
            raise ValueError("key must be visible ASCII characters, at least one")
        self.url = url
        self._auth = _KeyHeader(key)
        self._session = session if session is not None else requests.Session()
        self._owns_session = session is None
        self._timeout = timeout
        self._retries = retries
        self._json_encoder = json_encoder
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"Backend({self.url!r}, ...)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the kept connections, unless the session was given."""
        if self._owns_session:
            self._session.close()

    def call(self, service: str, command: str, /, **params: Any) -> Any:
        """Run a command of a backend service and return what it answers.

        :raises BackendError: one of its subclasses, see the module ``errors``.
        """
        return self._call(service, command, params)

    def publish(
        self,
        deltas: Iterable[Mapping[str, Any]],
        *,
        service: str = DATASYNC,
        idempotency_key: str | None = None,
    ) -> None:
        """Publish a batch of changes, all or none of them; call it after the commit.

        :param idempotency_key: a name for this batch that outlives this process (the id of an
            outbox row), so that sending it again after a crash counts once.
        """
        params = {"deltas": [dict(delta) for delta in deltas]}
        self._call(service, "publishDeltas", params, idempotency_key)

    def authorize(
        self,
        items: Iterable[Mapping[str, Any]],
        *,
        identity: Any = _ABSENT,
        service: str = DATASYNC,
    ) -> str:
        """Return a token for the browser; read the rows that go with it *after* this call.

        :param items: ``{"dealer": NAME, "query": ANY}``, with a ``"tag"`` where one is wanted.
        :param identity: any JSON; becomes the identity of the session that uses the token.
        """
        params: dict[str, Any] = {"items": [dict(item) for item in items]}
        if identity is not _ABSENT:
            params["identity"] = identity
        token = self._call(service, "authorizeSubscription", params)
        if not isinstance(token, str):
            raise errors.InvalidResponse(f"{service} answered no token")
        return token

    def revoke(self, token: str, *, service: str = DATASYNC) -> bool:
        """End a subscription wherever it is; False: there was none."""
        return self._call(service, "revokeSubscription", {"token": token}) is True

    def request_refetch(
        self,
        items: Iterable[Mapping[str, Any]] | None = None,
        model: str | None = None,
        *,
        service: str = DATASYNC,
    ) -> None:
        """Have those who hold one of the items, or any item of the model, read their rows again."""
        if (items is None) == (model is None):
            raise TypeError("request_refetch takes either items or model")
        if items is not None:
            self._call(service, "requestRefetch", {"items": [dict(item) for item in items]})
        else:
            self._call(service, "requestRefetch", {"model": model})

    def publish_message(
        self,
        channel: Any,
        message: Any,
        service: str = PUBSUB,
        *,
        idempotency_key: str | None = None,
    ) -> None:
        """Send a message to everybody who subscribed to the channel (any JSON value)."""
        params = {"channel": channel, "message": message}
        self._call(service, "publish", params, idempotency_key)

    def notify(
        self,
        group: str,
        type: str,  # noqa: A002  # as it is called on the wire
        object: Any = None,  # noqa: A002
        *,
        service: str = DATASYNC,
        idempotency_key: str | None = None,
    ) -> None:
        """Tell everybody in a group of an object.

        :param type: ``"create"``, ``"update"`` or ``"delete"``.
        :param object: what is told of it, any JSON.
        """
        params = {"group": group, "type": type, "object": object}
        self._call(service, "notify", params, idempotency_key)

    def _call(
        self,
        service: str,
        command: str,
        params: Mapping[str, Any],
        idempotency_key: str | None = None,
    ) -> Any:
        key = idempotency_key
        if key is None:
            key = str(uuid.uuid4()) if self._retries > 0 else None
        elif len(key) > 128 or not _VISIBLE_ASCII.fullmatch(key):
            raise ValueError("idempotency_key must be 1 to 128 visible ASCII characters")
        message = {"command": command, "params": params}
        body = encode({"service": service, "message": message}, self._json_encoder)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s.%s(%s)", service, command, _shown(params, self._json_encoder))
        started = time.perf_counter()
        try:
            return self._with_retries(body, key)
        finally:
            log.debug("%s.%s: %.1f ms", service, command, 1000 * (time.perf_counter() - started))

    def _with_retries(self, body: bytes, key: str | None) -> Any:
        """Post until there is an answer or the retries are used up."""
        attempt = 0
        while True:
            try:
                return _answer(self._post(body, key))
            except _TryAgain as failure:
                if attempt >= self._retries:
                    raise failure.error from failure.__cause__
                wait = failure.after_seconds + _backoff_seconds(attempt)
                log.debug("%s; once more in %.2f s", failure, wait)
            self._sleep(wait)
            attempt += 1

    def _post(self, body: bytes, key: str | None) -> requests.Response:
        """Post once; what requests raises becomes an error of ours here."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"syncserver-client/{__version__}",
        }
        if key is not None:
            headers["Idempotency-Key"] = key
        try:
            return self._session.post(
                self.url,
                data=body,
                headers=headers,
                auth=self._auth,
                timeout=self._timeout,
                allow_redirects=False,  # a redirect would carry the key elsewhere
            )
        except requests.Timeout as error:
            raise _TryAgain(errors.Timeout(f"no answer in time: {error}")) from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise _TryAgain(errors.ConnectionFailed(f"no connection: {error}")) from error
        except requests.RequestException as error:
            raise errors.TransportError(str(error)) from error


def _answer(response: requests.Response) -> Any:
    """Return the data of a response, or raise the error that stands in its place."""
    if response.status_code != 200:
        raise _refusal(response)
    message = _message(response)
    match message:
        case {"type": "response"}:
            return message.get("data")
        case {"type": "error", "message": str(text)}:
            place = {name: message.get(name) for name in ("index", "field", "reason")}
            raise errors.CallError(str(message.get("code", "error")), text, **place)
    raise errors.InvalidResponse(f"not an answer of syncserver: {response.text[:100]!r}")


def _refusal(response: requests.Response) -> errors.HTTPError | _TryAgain:
    """Return the error of an HTTP status, wrapped where it is worth a retry."""
    status, code = response.status_code, None
    text = response.reason or "no reason given"
    match _message(response):
        case {"type": "error", "message": str(told), "code": str(name)}:
            text, code = told, name
    if code == WRONG_KEY:  # waiting does not make the key a good one
        return errors.Unauthorized(status, text, code=code)
    error = HTTP_ERRORS.get(status, errors.HTTPError)(status, text, code=code)
    if status not in WORTH_A_RETRY:
        return error
    return _TryAgain(error, _retry_after_seconds(response.headers.get("Retry-After")))


def _message(response: requests.Response) -> Any:
    """Return the message in the envelope of a body; None: there is none."""
    try:
        envelope = json.loads(response.content)
    except ValueError:
        return None
    return envelope.get("message") if isinstance(envelope, dict) else None


def _backoff_seconds(attempt: int) -> float:
    """Return a wait drawn from all below a doubling bound, so that clients do not return as one."""
    bound = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**attempt)
    return random.uniform(0, bound)  # noqa: S311  no secret


def _retry_after_seconds(header: str | None) -> float:
    """Read Retry-After, a number of seconds or a date, up to what one should wait in a request."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        seconds = float(header)
    else:
        try:
            moment = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def _shown(params: Mapping[str, Any], default: Default) -> str:
    """Return the params for the log: cut, and without the token that stands for a permission."""
    shown = {name: "..." if name == "token" else value for name, value in params.items()}
    text = encode(shown, default).decode()
    return text if len(text) <= LOGGED_CHARACTERS else text[: LOGGED_CHARACTERS - 3] + "..."
