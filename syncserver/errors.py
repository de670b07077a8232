"""One tree of errors with stable codes, and the close codes of connections.

The ``code`` of an error is part of the protocol (docs/reference/codes); its
message is for people and may change.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class SyncError(Exception):
    """Any failure that is answered to a peer; its message never holds internals."""

    code: str = "error"
    http_status: ClassVar[int] = 200


class RPCError(SyncError):
    """A command refuses: raise it with the text that the caller shall read.

    :param code: stable name of the refusal, snake_case.
    :param index: number of the faulty item in a list that was sent.
    :param field: dotted path of the faulty field inside that item.
    :param reason: why, where a code has several reasons (``refetch``).
    """

    def __init__(
        self,
        message: str = "Exception",
        *,
        code: str | None = None,
        index: int | None = None,
        field: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.index = index
        self.field = field
        self.reason = reason


class UnknownCommand(RPCError):
    """The service has no such command."""

    code = "unknown_command"

    def __init__(self) -> None:
        super().__init__("Unknown command")


class InvalidParams(RPCError):
    """The params do not fit the command's signature."""

    code = "invalid_params"

    def __init__(self, field: str | None = None) -> None:
        super().__init__("Invalid params", field=field)


class Forbidden(RPCError):
    """The API key is good, and not for this command."""

    code = "forbidden"
    http_status = 403

    def __init__(self, operation: str | None) -> None:
        wanted = f'one with the operation "{operation}"' if operation else "one for all operations"
        super().__init__(f"The API key is not for this command; use {wanted}")


class TooManyWrongKeys(RPCError):
    """An address gave API keys that are none, more often than it may."""

    code = "too_many_wrong_keys"
    http_status = 429

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__("Too many wrong API keys from this address")
        self.retry_after_seconds = retry_after_seconds


class InternalError(RPCError):
    """The command failed in a way that is only told to the log."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("Internal error")


class NoSuchSubscription(RPCError):
    """The token stands for nothing that this caller may have."""

    code = "no_such_subscription"

    def __init__(self) -> None:
        super().__init__("No such subscription")


class NoSuchTicket(RPCError):
    """The name of a stream was used before, expired, or never was one."""

    code = "no_such_stream"
    http_status = 404

    def __init__(self) -> None:
        super().__init__("No such stream; ask for another")


class AlreadyAcquired(RPCError):
    """The token was acquired before and cannot be taken over."""

    code = "already_acquired"

    def __init__(self) -> None:
        super().__init__("Subscription already acquired")


class TakenOver(RPCError):
    """Another acquire took the token while this one was under way."""

    code = "taken_over"

    def __init__(self) -> None:
        super().__init__("Taken over by another connection", reason="taken_over")


class RefetchReason(enum.StrEnum):
    """Why rows must be read again (docs/reference/wire)."""

    EPOCH = "epoch"
    ROLLBACK = "rollback"
    FORK = "fork"
    TRIMMED = "trimmed"
    TOO_FAR = "too_far"
    REVOKED = "revoked"
    EXPIRED = "expired"
    FILTER_CHANGED = "filter_changed"
    FILTER_FAILED = "filter_failed"
    REQUESTED = "requested"


class Refetch(RPCError):
    """The subscription cannot go on without a hole; its rows are to be read again."""

    code = "refetch"

    def __init__(self, reason: RefetchReason) -> None:
        super().__init__("Fetch again", reason=str(reason))


class InvalidQuery(RPCError):
    """A dealer refuses a query; the message says what is wrong with it."""

    code = "invalid_query"


class ProtocolError(SyncError):
    """Text from a peer that is no message of its protocol; it is answered, the connection lives.

    :param service: the service that the message named, where one could be read.
    :param call_id: the call id, where one could be read.
    """

    code = "malformed"
    http_status = 400

    def __init__(self, message: str, *, service: str | None = None, call_id: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.service = service
        self.call_id = call_id


class InvalidCallParams(ProtocolError):
    """The params of a call are no object."""

    code = "invalid_params"


class InvalidJSON(ProtocolError):
    """Not strict JSON (docs/reference/wire); ``code`` says in which way."""

    def __init__(self, message: str, *, code: str = "invalid_json") -> None:
        super().__init__(message)
        self.code = code


class UnknownService(ProtocolError):
    """The envelope names a service that this registry does not have."""

    code = "unknown_service"


class EngineError(RPCError):
    """The log refuses or fails."""


class Unavailable(EngineError):
    """The log is out of reach; what was being written may be there, so try again with its key."""

    code = "unavailable"
    http_status = 503

    def __init__(self, message: str = "Try again later", *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TooManyGrants(EngineError):
    """More grants wait to be acquired than may."""

    code = "too_many_grants"
    http_status = 429
    retry_after_seconds: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__("Too many tokens wait to be acquired; try again later")


class IdempotencyConflict(EngineError):
    """The idempotency key was used before with another body."""

    code = "idempotency_conflict"
    http_status = 409

    def __init__(self) -> None:
        super().__init__("This idempotency key was used with another body")


class CommandTimeout(RPCError):
    """An asynchronous command did not answer in time."""

    code = "timeout"
    http_status = 504

    def __init__(self) -> None:
        super().__init__("The command did not answer in time")


class PositionLost(Exception):
    """An engine cannot give what follows a position without a hole."""

    def __init__(self, reason: RefetchReason) -> None:
        super().__init__(str(reason))
        self.reason = reason


class ConfigError(Exception):
    """The configuration is refused; the message names file, key and mend.

    :ivar source: the file that the message begins with, where the line is known.
    :ivar others: what else is refused, in the order in which it was found.
    """

    def __init__(self, message: str, *, source: str = "", line: int | None = None) -> None:
        super().__init__(message)
        self.others: tuple[ConfigError, ...] = ()
        self.source = source
        self.line = line

    def located(self) -> str:
        """Return the message with the line after the file: ``FILE:LINE: ...``."""
        message = str(self)
        if self.line is None:
            return message
        return f"{self.source}:{self.line}{message.removeprefix(self.source)}"

    def in_one_line(self) -> str:
        """Return the message with its place, and how many more there are."""
        more = f" (and {len(self.others)} more: syncserver check-config)" if self.others else ""
        return self.located() + more


class CloseCode(enum.IntEnum):
    """Why the server ends a connection; 40xx: reconnect, 45xx: do not (docs/reference/codes)."""

    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_TEXT = 1007
    MESSAGE_TOO_BIG = 1009
    INTERNAL = 1011
    DRAIN = 4001
    CONNECTION_TOKEN_EXPIRED = 4005
    SLOW = 4008
    TIMEOUT = 4009
    NO_PONG = 4012
    RATE = 4013
    BAD_CONNECTION_TOKEN = 4500
    BAD_PROTOCOL = 4501
    IDENTITY_REVOKED = 4503
    CONNECTION_LIMIT = 4504
    SUBSCRIPTION_LIMIT = 4505
