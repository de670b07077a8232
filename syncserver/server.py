"""The daemon: two doors with the routes behind them, opened, drained and closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from syncserver.admission.addresses import Addresses
from syncserver.admission.gate import Seats, places
from syncserver.apikeys import KeyRing
from syncserver.config import Backend, Config, Frontend
from syncserver.doors import Door, UnixPlace
from syncserver.engines.base import Engine
from syncserver.errors import Unavailable
from syncserver.handlers.backend import BackendHTTPHandler
from syncserver.handlers.events import EventsHandler
from syncserver.handlers.files import ClientFileHandler
from syncserver.handlers.health import HealthHandler, SharedCheck
from syncserver.handlers.paced import Pace
from syncserver.handlers.sockjs import SockJSHandler
from syncserver.handlers.sockjs_table import Sessions
from syncserver.handlers.websocket import WebSocketHandler
from syncserver.metrics.gathering import METRICS_PATH, Metrics
from syncserver.process.draining import Drain
from syncserver.process.pressure import Pressure, relieve
from syncserver.process.summary import summary
from syncserver.protocols.base import Protocol
from syncserver.registry import ServiceRegistry
from syncserver.siblings import Siblings
from syncserver.timers import Wheel

logger = logging.getLogger("syncserver.server")

Registries = tuple[ServiceRegistry, ServiceRegistry]

EVENTS_PATH = "/events"
BACKEND_PATH, LIVE_PATH, READY_PATH = "/backend", "/live", "/ready"
BACKEND_PATHS = (BACKEND_PATH, LIVE_PATH, READY_PATH, METRICS_PATH)

_KEEP_ALIVE_SECONDS = 300.0
_RELIEF_SECONDS = 1.0


class Server:
    """The daemon: two doors, and the registries behind them.

    :param registries: for browsers, and for the web app.
    :param protocols: paths and the wire protocols that are spoken there.
    :param sockjs: prefixes and the wire protocols that are spoken below them over SockJS.
    :param files: names and places of the browser library's files.
    :param reuse_port: share the addresses with other processes.
    :param siblings: the processes that share the addresses, if there are others.
    :param places: the Unix sockets of doors that other processes listen on too.
    """

    def __init__(
        self,
        config: Config,
        registries: Registries,
        engine: Engine | None = None,
        *,
        protocols: Mapping[str, type[Protocol]],
        sockjs: Mapping[str, type[Protocol]],
        files: Mapping[str, Path],
        reuse_port: bool = False,
        places: Mapping[str, UnixPlace] = MappingProxyType({}),
        siblings: Siblings | None = None,
    ) -> None:
        self.config = config
        self._protocols = protocols
        self._sockjs = sockjs
        self._files = files
        self._reuse_port = reuse_port
        self._places = places
        self._siblings = siblings
        self.frontend, self.backend = registries
        if config.frontend.trusted_proxies:
            self.frontend.addresses = Addresses(config.limits)
        self._engine = engine
        self._engine_check = SharedCheck(self._without_engine)
        self._keys = KeyRing(config.backend.api_keys)
        self._origins = list(config.frontend.allowed_origins)
        self._wheel = Wheel()
        self._doors: dict[str, Door] = {}
        self._sessions: list[Sessions] = []
        self.frontend_port = self.backend_port = 0
        engine_name = type(engine).__name__.removesuffix("Engine").lower() if engine else "own"
        number, count = (siblings.number, siblings.count) if siblings else (0, 1)
        self.pressure = Pressure.of(config.limits, count, tells=number == 0)
        self.metrics = Metrics(registries, engine_name, self._doors, self.pressure, siblings)
        self.metrics.expect(protocols.values(), sockjs.values())

    async def start(self) -> None:
        """Get the services ready and open both doors; OSError if an address is taken."""
        await self.frontend.open()
        await self.backend.open()
        frontend, backend = self.config.frontend, self.config.backend
        routes = self._frontend_routes()
        header_seconds = self.config.limits.header_seconds
        of_browsers, of_the_app = map(Seats, places(self.config.limits))
        if self._siblings is not None:  # before anybody can be passed on to them
            self._siblings.open()
            private = self._siblings.path(self._siblings.number)
            self._siblings.seats = of_browsers
            place = Frontend(
                unix_socket=private, unix_socket_mode="0600", trusted_proxies=("unix",)
            )
            private_routes = [*routes, self.metrics.private_route()]
            self._doors["siblings"] = self._open(
                "siblings", place, private_routes, header_seconds, of_browsers
            )
        if backend.on_frontend:
            routes = routes + self._backend_routes()
        self._doors["frontend"] = self._open(
            "frontend", frontend, routes, header_seconds, of_browsers
        )
        if backend.on_frontend:
            self._doors["backend"] = self._doors["frontend"]
        else:
            self._doors["backend"] = self._open(
                "backend", backend, self._backend_routes(), _KEEP_ALIVE_SECONDS, of_the_app
            )
        self.frontend_port = self._doors["frontend"].port
        self.backend_port = self._doors["backend"].port
        self._relieve()
        self.metrics.start()

    def renew(self, config: Config) -> None:
        """Take keys, origins and certificates of other settings, for whoever comes from now on.

        ConfigError if the files of a certificate have changed since the settings were read.
        """
        self.config = config
        self._keys.replace(config.backend.api_keys)
        self._origins[:] = config.frontend.allowed_origins
        self._doors["frontend"].renew_certificate(config.frontend)
        if not config.backend.on_frontend:
            self._doors["backend"].renew_certificate(config.backend)

    async def drain(self) -> None:
        """Finish what is under way, send all clients elsewhere, and close within bounds."""
        door, siblings = self._doors["frontend"], self._siblings
        ending = Drain(self.frontend, self.backend, door, self._sessions, siblings)
        await ending.run(self.config.limits.drain_seconds)
        await self.stop()

    async def stop(self) -> None:
        """Close everything at once."""
        for door in self._doors.values():
            door.stop()
        for sessions in self._sessions:
            sessions.close()
        doors = set(self._doors.values())
        if self.backend.calls_under_way:
            doors.discard(self._doors["backend"])  # calls are answered, that they were broken off
        await asyncio.gather(*(door.close_all_connections() for door in doors))
        self._engine_check.close()
        await self.frontend.close()
        await self.backend.close()
        if self._engine is not None:
            await self._engine.close()
        if self._siblings is not None:
            self._siblings.close()
        self._wheel.close()
        self.metrics.stop()

    async def not_ready(self) -> list[str]:
        """Return why the daemon should get no new work; nothing if it should."""
        reasons = ["draining"] if self.backend.draining else []
        if self.pressure.is_high:
            reasons.append("memory: more is used than limits.max_process_bytes")
        return reasons + await self._engine_check.reasons()

    async def not_alive(self) -> list[str]:
        """Return nothing: whoever answers is alive."""
        return []

    def summary(self) -> str:
        """Return what was started, for a person at a terminal."""
        native, *others = self._protocols
        return summary(
            self.config,
            frontend=", ".join([self._doors["frontend"].url("ws", native), *others]),
            backend=self._doors["backend"].url("http", "/backend"),
            services=[*self.frontend.registered_services, *self.backend.registered_services],
            has_engine=self._engine is not None,
        )

    async def _without_engine(self) -> list[str]:
        if self._engine is not None:
            try:
                await self._engine.check()
            except Unavailable as error:
                return [f"engine: {error}"]
        return []

    def _open(
        self,
        name: str,
        settings: Frontend | Backend,
        routes: list[Any],
        idle_seconds: float,
        seats: Seats,
    ) -> Door:
        door = Door(
            settings,
            routes,
            limits=self.config.limits,
            idle_seconds=idle_seconds,
            seats=seats,
            refused=(self.backend if name == "backend" else self.frontend).traffic.refused,
            reuse_port=self._reuse_port,
            place=self._places.get(name),
            pace=self._pace() if name == "frontend" else None,
        )
        door.open()
        return door

    def _pace(self) -> Pace:
        free = BACKEND_PATHS if self.config.backend.on_frontend else ()
        return Pace(self.config.limits, self.frontend.traffic.refused, free, self._keys)

    def _frontend_routes(self) -> list[Any]:
        routes: list[Any] = [
            WebSocketHandler.get_route(
                self.frontend,
                path,
                protocol=protocol,
                allowed_origins=self._origins,
                wheel=self._wheel,
            )
            for path, protocol in self._protocols.items()
        ]
        routes.append(
            EventsHandler.get_route(
                self.frontend,
                EVENTS_PATH,
                allowed_origins=self._origins,
                wheel=self._wheel,
            )
        )
        for prefix, protocol in self._sockjs.items():
            routes += self._sockjs_routes(prefix, protocol)
        for name, path in self._files.items():
            routes.append((f"/{name.replace('.', '[.]')}", ClientFileHandler, {"path": path}))
        return routes

    def _sockjs_routes(self, prefix: str, protocol: type[Protocol]) -> list[Any]:
        sessions = Sessions(self.frontend, protocol, self._wheel)
        self._sessions.append(sessions)
        return SockJSHandler.get_routes(
            self.frontend,
            prefix,
            protocol=protocol,
            allowed_origins=self._origins,
            wheel=self._wheel,
            sessions=sessions,
            client_url=self.config.frontend.sockjs_client_url,
            siblings=self._siblings,
        )

    def _backend_routes(self) -> list[Any]:
        backend = self.config.backend
        needs_key = backend.metrics_need_key or backend.on_frontend
        return [
            BackendHTTPHandler.get_route(self.backend, BACKEND_PATH, keys=self._keys),
            self.metrics.route(self._keys if needs_key else None),
            (LIVE_PATH, HealthHandler, {"check": self.not_alive}),
            (READY_PATH, HealthHandler, {"check": self.not_ready}),
        ]

    def _relieve(self) -> None:
        relieve(self.frontend.sessions, self.config.limits)
        self.pressure.look(self.frontend.sessions)
        self.frontend.scarce = self.backend.scarce = self.pressure.is_high
        self._wheel.call_later(_RELIEF_SECONDS, self._relieve)
