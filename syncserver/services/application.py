"""What an application answers itself, whatever wire protocol asks: calls, and who may see what.

The application owns a table (``Handlers``) and fills it; a service serves it. Protocols whose
clients call by a plain name (rohrpost) reach it under the name ``application``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from syncserver import canonical
from syncserver.client import Client
from syncserver.errors import NoSuchSubscription, RPCError
from syncserver.protocols.base import Acquired
from syncserver.services.base import Request, RPCService, rpc_command, session_of
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from syncserver.session import Session

__all__ = ["ApplicationService", "Handlers"]

Handler = Callable[[Request, Any], Any]
Granted = str | Sequence[str | dict[str, Any]] | None
Hook = Callable[[Request, Any], Awaitable[Granted] | Granted]

HandlerT = TypeVar("HandlerT", bound=Handler)
HookT = TypeVar("HookT", bound=Hook)

_RESERVED = ("ping", "subscribe", "unsubscribe")


class Handlers:
    """The table: what is answered by which function.

    A handler is given the request and the data that came with it. What it returns is the
    answer; it may be ``async def``. ``request.params["message"]`` is the message as it came.
    """

    def __init__(self) -> None:
        self.hook: Hook | None = None
        self._handlers: dict[str, Handler] = {}

    def handler(self, names: str | Iterable[str] = ()) -> Callable[[HandlerT], HandlerT]:
        """Let a function answer to a name or several; to its own where none is given.

        RuntimeError if a name has a handler, or is one of the protocol.
        """

        def register(function: HandlerT) -> HandlerT:
            taken = [names] if isinstance(names, str) else list(names)
            taken = taken or [getattr(function, "__name__", "")]
            for name in taken:
                if name in self._handlers or name in _RESERVED:
                    raise RuntimeError(f'Handler for "{name}" is already defined.')
            self._handlers.update(dict.fromkeys(taken, function))
            return function

        return register

    def subscription(self, function: HookT) -> HookT:
        """Let a function decide what a ``subscribe`` stands for; RuntimeError if one does.

        It is given the request and its data and returns a group, or several, or items as the
        web app authorises them; nothing, or an RPCError, denies.
        """
        if self.hook is not None:
            raise RuntimeError("A subscription hook is already defined.")
        self.hook = function
        return function

    def get(self, name: str) -> Handler | None:
        """Return who answers to a name."""
        return self._handlers.get(name)


class ApplicationService(RPCService):
    """Serves the table of an application.

    :param datasync: carries the subscriptions that the hook allows.
    """

    def __init__(
        self,
        handlers: Handlers,
        datasync: DataSyncService | None = None,
        *,
        name: str = "application",
    ) -> None:
        super().__init__(name)
        self._handlers = handlers
        self._datasync = datasync
        self._held: dict[Session, dict[bytes, str]] = {}

    @rpc_command
    async def subscribe(self, req: Request, data: Any = None, message: Any = None) -> None:
        """Subscribe to what the hook makes of the data; once, however often it is asked for."""
        datasync, session = self._carrier(), session_of(req)
        held, key = self._held.setdefault(session, {}), _digest(data)
        views = datasync.views_of(session, held.get(key, ""))
        if views is not None:
            req.answer(Acquired(datasync.name, req.call_id, held[key], None, views))
            return
        datasync.subscriptions.check_room(session)  # before a token is made that nobody would take
        items = self._items(await self._ask(req, data), datasync)
        trusted = DataSyncBackend(f"{self.name}_backend", datasync)
        token = await trusted.authorizeSubscription(req, items)
        await datasync.acquireSubscription(req, token)
        for other in [one for one in held if datasync.views_of(session, held[one]) is None]:
            del held[other]  # it was ended otherwise
        held[key] = token

    @rpc_command
    async def unsubscribe(self, req: Request, data: Any = None, message: Any = None) -> None:
        """End what was subscribed to with the same data."""
        token = self._held.get(session_of(req), {}).pop(_digest(data), None)
        if token is None:
            raise NoSuchSubscription
        await self._carrier().cancelSubscription(req, token)

    def process_request(self, request: Request) -> Awaitable[None] | None:
        """Run a handler, or one of the commands; there is always a message, if an empty one."""
        request.params = {"message": {}, **request.params}
        return super().process_request(request)

    def client_disconnected(self, client: Client) -> None:
        """Forget what a session has subscribed to."""
        if isinstance(client, Session):
            self._held.pop(client, None)

    def _carrier(self) -> DataSyncService:
        if self._datasync is None or self._handlers.hook is None:
            raise _denied()
        return self._datasync

    async def _ask(self, req: Request, data: Any) -> Granted:
        assert self._handlers.hook is not None  # noqa: S101  # seen by _carrier
        granted = self._handlers.hook(req, data)
        return await granted if isinstance(granted, Awaitable) else granted

    def _items(self, granted: Granted, datasync: DataSyncService) -> list[dict[str, Any]]:
        if not granted:
            raise _denied()
        names = [granted] if isinstance(granted, str) else granted
        return [
            item if isinstance(item, dict) else datasync.group_dealer().item(item) for item in names
        ]

    def _bind(self, request: Request) -> Callable[..., Any]:
        handler = self._handlers.get(request.command)
        if handler is None:
            return super()._bind(request)

        def call(_service: Any, req: Request, **params: Any) -> Any:
            return handler(req, params.get("data"))

        return call


def _digest(data: Any) -> bytes:
    return hashlib.sha256(canonical.key(data)).digest()


def _denied() -> RPCError:
    return RPCError("ACCESS_DENIED", code="not_authorized")
