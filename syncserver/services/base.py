"""Services, and the remote procedure calls of those that have commands.

A command is a method: plain, ``async def``, or ``rpc_asynchronous`` (it answers
later, by ``Request.reply`` or ``Request.error``). The calls of one session run one
at a time, in the order in which they came; an ``rpc_asynchronous`` method lets the
next one run when it returns.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, TypeVar

from syncserver import canonical
from syncserver.client import Client
from syncserver.counters import Activity, Standing
from syncserver.engines.base import Engine
from syncserver.errors import (
    Forbidden,
    InternalError,
    InvalidParams,
    ProtocolError,
    RPCError,
    Unavailable,
    UnknownCommand,
)
from syncserver.protocols.base import Command, Event, Failure, Notification, Reply
from syncserver.protocols.native import read_call
from syncserver.session import Session

__all__ = [
    "RPCError",
    "RPCService",
    "Request",
    "Service",
    "ellipsis",
    "format_call",
    "operation",
    "rpc_asynchronous",
    "rpc_command",
    "session_of",
]

logger = logging.getLogger("syncserver.rpc")

_LOGGED_CHARACTERS = 100
_LONGEST_NAME = 64

Method = TypeVar("Method", bound=Callable[..., Any])


class Service(ABC):
    """What clients of one registry reach under ``name``."""

    engine: Engine | None = None
    """Where the service keeps what other processes must know, if it does."""
    activity: Activity | None = None
    """What the service has done, if it is in metrics."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def process_message_from(self, client: Client, msg: Any) -> Awaitable[None] | None:
        """Handle one message (any JSON) of a client; may be ``async def``."""

    def send_message_to(self, client: Client, msg: Any) -> None:
        """Send a message (any JSON) to a client; ValueError if JSON cannot carry it."""
        client.tell(Notification(self.name, msg))

    def client_connected(self, client: Client) -> None:  # noqa: B027  # a hook
        """Hear of a new client; never called for the calls of a backend."""

    def client_disconnected(self, client: Client) -> None:  # noqa: B027  # a hook
        """Hear, once, that a client is gone; never called for the calls of a backend."""

    def standing(self) -> Standing | None:
        """Return how the service stands now, if it is in metrics."""
        return None

    async def open(self) -> None:  # noqa: B027  # a hook
        """Get ready to serve, if the application opens its registries."""

    async def close(self) -> None:  # noqa: B027  # a hook
        """Let go of what the service holds."""


def rpc_command(method: Method) -> Method:
    """Make a method a command: ``def name(self, req, param, ...)``."""
    method.__rpc_command__ = True  # type: ignore[attr-defined]
    return method


def rpc_asynchronous(method: Method) -> Method:
    """Let a command that returns None be answered later, through its request."""
    method.__rpc_asynchronous__ = True  # type: ignore[attr-defined]
    return method


def operation(name: str) -> Callable[[Method], Method]:
    """Let a command be called with API keys that have this operation (``apikeys.OPERATIONS``).

    A command without one wants a key for all operations. Browsers have no key and are not asked.
    """

    def mark(method: Method) -> Method:
        method.__operation__ = name  # type: ignore[attr-defined]
        return method

    return mark


class Request:
    """One call of a command, to be resolved once."""

    def __init__(self, service: Service, client: Client, call: Command) -> None:
        self.service = service
        self.client = client
        self.command = call.command
        self.call_id = call.call_id
        self.params = call.params
        self.resolved = False

    @property
    def debug(self) -> bool:
        """Tell whether calls are logged."""
        return logger.isEnabledFor(logging.DEBUG)

    def reply(self, data: Any) -> None:
        """Answer with a result (any JSON); ValueError if JSON cannot carry it."""
        self.answer(Reply(self.service.name, self.call_id, data))

    def answer(self, event: Event) -> None:
        """Answer with an event that says more than a result; ValueError as for ``reply``."""
        self._resolve()
        try:
            self.client.tell(event)
        except ValueError:
            self.resolved = False
            raise

    def error(self, message: str | RPCError) -> None:
        """Answer with an error."""
        self._resolve()
        error = message if isinstance(message, RPCError) else RPCError(message)
        self.client.tell(Failure(self.service.name, self.call_id, error))

    def format_call(self) -> str:
        """Return the call for a log: at most 100 characters of its params."""
        return format_call(self.command, self.params)

    def _resolve(self) -> None:
        if self.resolved:
            raise RuntimeError("This request has already been resolved")
        self.resolved = True


class RPCService(Service):
    """A service whose messages are calls of its ``rpc_command`` methods."""

    rpc_commands: ClassVar[frozenset[str]] = frozenset()
    _signatures: ClassVar[Mapping[str, inspect.Signature]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        commands = {
            name: inspect.signature(method)
            for name, method in inspect.getmembers(cls, inspect.isfunction)
            if getattr(method, "__rpc_command__", False)
        }
        cls.rpc_commands = frozenset(commands)
        cls._signatures = commands

    def process_message_from(self, client: Client, msg: Any) -> Awaitable[None] | None:
        """Read one call and run it."""
        try:
            call = read_call(self.name, msg)
        except ProtocolError as error:
            logger.info('Invalid format in RPC service "%s" from %s: %s', self.name, client, error)
            client.tell(Failure(self.name, error.call_id, error))
            return None
        return self.process_command_from(client, call)

    def process_command_from(self, client: Client, call: Command) -> Awaitable[None] | None:
        """Run one call."""
        return self.process_request(Request(self, client, call))

    def process_request(self, request: Request) -> Awaitable[None] | None:
        """Run the command of a request; what it raises becomes the answer."""
        try:
            method = self._bind(request)
            result = method(self, request, **request.params)
            if inspect.isawaitable(result):
                return self._finish(request, method, result)
            self._answer(request, method, result)
        except Exception as error:  # noqa: BLE001  # logged there, and answered
            self._refuse(request, error)
        return None

    def _bind(self, request: Request) -> Callable[..., Any]:
        if request.command not in self.rpc_commands:
            raise UnknownCommand  # not logged: what is no name may be a token
        logger.debug("%s.%s", self.name, request.command)
        # Of the class: an attribute of the instance, such as ``name``, may be called the same.
        method: Callable[..., Any] = getattr(type(self), request.command)
        wanted = getattr(method, "__operation__", None)
        if not request.client.may(wanted):
            raise Forbidden(wanted)
        signature = self._signatures[request.command]
        try:
            signature.bind(self, request, **request.params)
        except TypeError:
            logger.info(
                'Invalid params in RPC service "%s": %s from %s',
                self.name,
                request.command,
                request.client,
            )
            raise InvalidParams(_misfit(signature, request.params)) from None
        return method

    async def _finish(
        self, request: Request, method: Callable[..., Any], result: Awaitable[Any]
    ) -> None:
        try:
            self._answer(request, method, await result)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # it awaited what was cancelled
                self._refuse(request, error)
                return
            logger.info("%s.%s was broken off", self.name, request.command)
            self._refuse(request, Unavailable("The command was broken off; try again"))
            raise
        except Exception as error:  # noqa: BLE001  # logged there, and answered
            self._refuse(request, error)

    def _answer(self, request: Request, method: Callable[..., Any], result: Any) -> None:
        later = getattr(method, "__rpc_asynchronous__", False)
        if not request.resolved and not (later and result is None):
            request.reply(result)

    def _refuse(self, request: Request, error: BaseException) -> None:
        if not isinstance(error, RPCError):
            logger.error(
                'Unhandled exception in RPC service "%s": %s from %s',
                self.name,
                request.command,
                request.client,
                exc_info=error,
            )
            error = InternalError()
        if not request.resolved:
            request.error(error)


def session_of(request: Request) -> Session:
    """Return who calls, if it is a connected session that can be told things later."""
    if not isinstance(request.client, Session):
        raise RPCError("Only a connected client can do this", code="not_connected")
    return request.client


def _misfit(signature: inspect.Signature, params: Mapping[str, Any]) -> str | None:
    """Return the name of a param that a command does not take, or else of one that it lacks."""
    taken = list(signature.parameters.values())[2:]  # but for self and req
    unknown = params.keys() - {one.name for one in taken}
    if unknown and all(one.kind is not one.VAR_KEYWORD for one in taken):
        name = min(unknown)
        return name if len(name) <= _LONGEST_NAME else None
    named = (one for one in taken if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY))
    lacks = (one.name for one in named if one.default is one.empty and one.name not in params)
    return next(lacks, None)


def format_call(command: str, params: Any) -> str:
    """Return ``command(params)`` with the params as sorted JSON, cut to 100 characters."""
    text = canonical.key(params).decode()
    return f"{command}({ellipsis(text, _LOGGED_CHARACTERS)})"


def ellipsis(text: str, length: int) -> str:
    """Cut a text to ``length`` characters, the last three of which are dots then."""
    return text if len(text) <= length else text[: length - 3] + "..."
