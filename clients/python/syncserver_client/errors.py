"""What can go wrong on the way to the daemon, one class for each thing one would do about it."""

from __future__ import annotations

from typing import ClassVar


class BackendError(Exception):
    """Any failure of a call."""


class EncodingError(BackendError, ValueError):
    """The call cannot be written as JSON; the message says what in it cannot. Nothing was sent."""


class TransportError(BackendError):
    """No answer came. The command may have been carried out or not."""


class ConnectionFailed(TransportError):
    """The connection could not be made, or broke."""


class Timeout(TransportError):
    """The daemon did not take the connection, or did not answer, in time."""


class InvalidResponse(BackendError):
    """An answer came that is none of a syncserver: wrong URL, or a proxy between."""


class HTTPError(BackendError):
    """The daemon refused the request as such.

    :ivar status: the HTTP status.
    :ivar code: stable name of the refusal, or None where the answer has none.
    :ivar message: what the answer says, for a person.
    """

    hint: ClassVar[str] = ""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(f"{status} {message}{self.hint}")
        self.status = status
        self.message = message
        self.code = code


class BadRequest(HTTPError):
    """400: the body is refused, or names no service that the daemon has."""


class Unauthorized(HTTPError):
    """401, or 429 ``too_many_wrong_keys``: the key is none that the daemon knows."""

    hint = " (is the key one of the daemon's backend.api_keys?)"


class Forbidden(HTTPError):
    """403: the key is good, but not for this command."""

    hint = " (see the operations of the key in the daemon's backend.api_keys)"


class WrongAddress(HTTPError):
    """404 or 405: nothing takes calls at this URL."""

    hint = " (is the URL that of the daemon's backend, as in http://HOST:5801/backend?)"


class IdempotencyConflict(HTTPError):
    """409: the idempotency key was used before with another body."""


class TooLarge(HTTPError):
    """413: the body is larger than the daemon takes."""

    hint = " (publish fewer deltas in one call, or raise limits.max_body_bytes)"


class TooManyRequests(HTTPError):
    """429: too many calls, also after all retries."""


class Unavailable(HTTPError):
    """502, 503, 504, also after all retries. The command may have been carried out."""


class CallError(BackendError):
    """The command answered with an error.

    :ivar code: stable name of the error (docs/reference/codes).
    :ivar message: what is wrong, for a person.
    :ivar index: number of the faulty item in the list that was sent, if it is one item's fault.
    :ivar field: dotted path of the faulty field inside that item, if it is one field's fault.
    :ivar reason: why, where a code has several reasons.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        index: int | None = None,
        field: str | None = None,
        reason: str | None = None,
    ) -> None:
        where = [f"item {index}"] if index is not None else []
        where += [f"field {field}"] if field is not None else []
        super().__init__(f"{message} [{', '.join([code, *where])}]")
        self.code = code
        self.message = message
        self.index = index
        self.field = field
        self.reason = reason
