"""The services that one audience may reach, and the sessions of that audience."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Iterable
from typing import Any

from syncserver.admission.addresses import Addresses, Guesses, counted_as
from syncserver.client import Client
from syncserver.config import Limits
from syncserver.counters import Traffic
from syncserver.errors import Forbidden, InternalError, ProtocolError, UnknownService
from syncserver.flusher import Flusher
from syncserver.protocols.base import Command, Failure, Message, Protocol
from syncserver.protocols.native import NativeProtocol
from syncserver.services.base import RPCService, Service
from syncserver.session import Session
from syncserver.transport import Transport

logger = logging.getLogger("syncserver.registry")


class ServiceRegistry:
    """Names services; hands them messages and tells them who comes and goes.

    A trusted command is reached only through the registry that it stands in: give browsers and
    backends a registry each.

    :param limits: bounds of the sessions that are opened here.
    """

    def __init__(
        self, services: Iterable[Service] | None = None, *, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._has_limits = limits is not None
        self.registered_services: dict[str, Service] = {}
        self.sessions: dict[Session, tuple[str, str]] = {}
        self.traffic = Traffic()
        self.draining = self.scarce = False
        self.calls_under_way = self.bytes_under_way = 0
        self.addresses: Addresses | None = None
        self.sockets = 0
        self._flusher = Flusher(self.traffic)
        self._dispatch, self._on_end = self.dispatch, self.client_disconnected  # for all sessions
        for service in services or ():
            self.register_service(service)

    def register_service(self, service: Service) -> None:
        """Let messages name a service; RuntimeError if its name is taken by another."""
        known = self.registered_services.setdefault(service.name, service)
        if known is not service:
            raise RuntimeError(f"Service with name '{service.name}' already is registered.")

    def unregister_service(self, service: Service) -> None:
        """Let messages name a service no more."""
        del self.registered_services[service.name]

    def assume_limits(self, limits: Limits) -> None:
        """Take these limits, unless the registry was given some when it was made."""
        if not self._has_limits:
            self.limits = limits

    async def open(self) -> None:
        """Get all services ready."""
        for service in self.registered_services.values():
            await service.open()

    async def close(self) -> None:
        """Let go of all that the services hold."""
        for service in self.registered_services.values():
            await service.close()

    @functools.cached_property
    def guesses(self) -> Guesses:
        """Return what bounds wrong API keys, by the limits of when it is asked for first."""
        return Guesses(self.limits)

    @property
    def refusal(self) -> str | None:
        """Return in a word why nobody new is let in now; None: somebody is."""
        if self.draining:
            return "draining"
        return "memory" if self.scarce else None

    def admits(self, remote_address: str) -> bool:
        """Tell whether one more session of an address may be opened now."""
        return self.addresses is None or self.addresses.admits(counted_as(remote_address))

    def connect(
        self,
        protocol: Protocol,
        transport: Transport,
        *,
        remote_address: str = "",
        via: str = "other",
    ) -> Session:
        """Open a session for a peer that has connected; metrics say ``via`` what."""
        session = Session(
            protocol,
            transport,
            self._flusher,
            dispatch=self._dispatch,
            on_end=self._on_end,
            limits=self.limits,
            remote_address=remote_address,
        )
        self.client_connected(session, via)
        return session

    def client_connected(self, client: Session, via: str = "other") -> None:
        """Tell all services of a new client."""
        self.sessions[client] = kind = (via, client.protocol.name)
        self.traffic.opened[kind] += 1
        if self.addresses is not None:
            self.addresses.enter(counted_as(client.remote_address))
        for service in tuple(self.registered_services.values()):
            try:
                service.client_connected(client)
            except Exception:
                logger.exception('Service "%s" failed on a connect', service.name)

    def client_disconnected(self, client: Session) -> None:
        """Tell all services that a client is gone."""
        known = self.sessions.pop(client, None) is not None
        if self.addresses is not None and known:
            self.addresses.leave(counted_as(client.remote_address))
        for service in tuple(self.registered_services.values()):
            try:
                service.client_disconnected(client)
            except Exception:
                logger.exception('Service "%s" failed on a disconnect', service.name)

    def dispatch(self, client: Client, message: Message | Command) -> Awaitable[None] | None:
        """Hand one message to its service; a client is always answered, whatever fails."""
        service = self.registered_services.get(message.service)
        call_id = _call_id(message)
        if service is None:
            logger.info("Message for an unknown service from client %s", client)
            unknown = UnknownService("Unknown service")
            client.tell(Failure(message.service, call_id, unknown))
            return None
        if not isinstance(service, RPCService) and not client.may(None):
            client.tell(Failure(message.service, call_id, Forbidden(None)))
            return None
        try:
            if isinstance(message, Message):
                pending = service.process_message_from(client, message.payload)
            elif isinstance(service, RPCService):
                pending = service.process_command_from(client, message)
            else:
                raise TypeError("a command for a service that has none")
        except Exception as error:  # noqa: BLE001  # logged there, and answered
            self._failed(client, service, call_id, error)
            return None
        if inspect.isawaitable(pending):
            return self._finish(client, service, call_id, pending)
        return None

    def process_message_from(self, client: Client, msg: Any) -> Awaitable[None] | None:
        """Handle an envelope that was decoded already."""
        return self.dispatch(client, Message(msg["service"], msg["message"]))

    def process_message_raw(self, client: Client, text: str | bytes) -> Awaitable[None] | None:
        """Handle the text of an envelope; what is none is answered."""
        try:
            [message] = NativeProtocol().receive(text)
        except ProtocolError as error:
            client.tell(Failure(error.service, error.call_id, error))
            return None
        return self.dispatch(client, message)

    async def _finish(
        self, client: Client, service: Service, call_id: Any, pending: Awaitable[None]
    ) -> None:
        try:
            await pending
        except Exception as error:  # noqa: BLE001  # logged there, and answered
            self._failed(client, service, call_id, error)

    def _failed(self, client: Client, service: Service, call_id: Any, error: Exception) -> None:
        logger.error('Service "%s" failed on a message', service.name, exc_info=error)
        client.tell(Failure(service.name, call_id, InternalError()))


def _call_id(message: Message | Command) -> Any:
    if isinstance(message, Command):
        return message.call_id
    return message.payload.get("callId") if isinstance(message.payload, dict) else None
