"""The life of a daemon: started, told of signals, drained; alone or as several processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from syncserver import app
from syncserver.admission.gate import raise_descriptors
from syncserver.config import Backend, Config, Frontend
from syncserver.doors import UnixPlace
from syncserver.engines.base import Engine
from syncserver.errors import ConfigError
from syncserver.process.notify import notify, watchdog_seconds
from syncserver.process.pulse import Life
from syncserver.process.summary import show
from syncserver.process.workers import reserved, supervise
from syncserver.server import Registries, Server
from syncserver.siblings import Siblings

logger = logging.getLogger("syncserver.app")

_FOUND = ("source", "given")  # not settings, but where they were found

_COLLECTIONS = (10_000, 20, 50)


class Settings:
    """The settings of a daemon that runs, parts of which can be read again.

    :param config: what it runs with; it may say more than what was read (a port for 0).
    :param read: reads all settings where they were read first.
    """

    def __init__(
        self, config: Config, first: Config, read: Callable[[], Config] | None = None
    ) -> None:
        self.config = config
        self._first = first
        self._read = read
        self._has_terminal = sys.stderr.isatty()

    def hung_up(self, level: int = logging.INFO) -> signal.Signals | None:
        """Hear SIGHUP; return the signal that it means, if it is to be acted upon.

        Its first meaning is that the terminal was closed: then the daemon ends.
        """
        if self._has_terminal and not sys.stderr.isatty():
            return signal.SIGTERM
        return signal.SIGHUP if self.renew(level) else None

    def renew(self, level: int = logging.INFO) -> bool:
        """Read keys, origins and certificates again; if they are refused keep those there are."""
        if self._read is None:
            return False
        try:
            read = self._read()
        except ConfigError as error:
            text = "The settings stay as they were: %s"
            logger.error(text, error.in_one_line())  # noqa: TRY400
            return False
        self.config = with_renewable(self.config, read)
        waiting = ", ".join(differences(with_renewable(self._first, read), read)) or "nothing"
        keys = ", ".join(key.id for key in read.backend.api_keys)
        text = "Read keys (%s), origins and certificates again; waiting for a restart: %s"
        logger.log(level, text, keys, waiting)
        return True


def with_renewable(config: Config, read: Config) -> Config:
    """Return settings with what of ``read`` can be taken while the daemon runs."""
    frontend, backend = read.frontend, read.backend
    return replace(
        config,
        frontend=replace(
            config.frontend,
            allowed_origins=frontend.allowed_origins,
            **_certificate(config.frontend, frontend),
        ),
        backend=replace(
            config.backend,
            api_keys=backend.api_keys,
            key_file=backend.key_file,
            **_certificate(config.backend, backend),
        ),
    )


def _certificate(door: Frontend | Backend, read: Frontend | Backend) -> dict[str, Any]:
    """Return another certificate; TLS itself is not begun or left while a door is open."""
    if door.tls_cert is None or read.tls_cert is None:
        return {}
    return {"tls_cert": read.tls_cert, "tls_key": read.tls_key}


def differences(config: Config, read: Config) -> list[str]:
    """Return the names of settings that are not the same."""
    doors = ("frontend", "backend")
    found = [
        f"{door}.{field.name}"
        for door in doors
        for field in fields(getattr(config, door))
        if getattr(getattr(config, door), field.name) != getattr(getattr(read, door), field.name)
    ]
    others = (field.name for field in fields(Config) if field.name not in {*doors, *_FOUND})
    return found + [name for name in others if getattr(config, name) != getattr(read, name)]


def run(
    config: Config,
    *,
    application: str | None = None,
    workers: int = 1,
    read: Callable[[], Config] | None = None,
) -> int:
    """Serve until a signal comes; return the exit code of the process.

    The first SIGTERM or SIGINT drains (0), the second ends at once (1). SIGHUP has keys,
    origins and certificates ``read`` again. Several workers share the ports, and need
    engines that they can share.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # until somebody listens for it
    raise_descriptors(config.limits)
    watchdog, first = watchdog_seconds(), config
    config, registries, engine = _build(config, application, workers)
    if workers == 1:
        return asyncio.run(
            _serve(Settings(config, first, read), registries, engine, Life(notify, watchdog))
        )
    with contextlib.ExitStack() as held:
        placed, places = _hold(config, held)
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="syncserver-"))
        settings = Settings(placed, first, read)
        return supervise(
            workers,
            lambda number, pulse: asyncio.run(
                _serve(
                    settings,
                    registries,
                    engine,
                    Life(lambda _: pulse.beat(number), watchdog),
                    siblings=Siblings(folder, number, workers),
                    places=places,
                )
            ),
            on_hangup=settings.hung_up,
            watchdog_seconds=watchdog,
            on_end=lambda: _hand_over(places),
        )


def _build(
    config: Config, application: str | None, workers: int
) -> tuple[Config, Registries, Engine | None]:
    """Return what is to be served, with the engine if there is one for all of it."""
    if application is None:
        _check_shared([app.engine_class(config)], workers)
        return config, *app.build(config)
    sys.path.insert(0, "")
    registries = app.load_registries(application, config)
    config = replace(config, services={}, models={})  # the application has its own
    services = [one for some in registries for one in some.registered_services.values()]
    engines = {one.engine for one in services if one.engine is not None}
    _check_shared(engines, workers)
    if len(engines) != 1:
        return config, registries, None
    engine = engines.pop()
    return replace(config, engine=type(engine).__name__), registries, engine  # as it is shown


def _hold(config: Config, held: contextlib.ExitStack) -> tuple[Config, dict[str, UnixPlace]]:
    """Hold the addresses of the doors for processes that will share them."""
    places = {}
    for name in ("frontend", "backend"):
        door = getattr(config, name)
        if door.unix_socket is not None:
            places[name] = place = UnixPlace(door.unix_socket, door.unix_socket_mode)
            place.listen().close()
            held.callback(place.leave)
        elif name == "frontend" or not config.backend.on_frontend:
            port = held.enter_context(reserved(door.address, door.port))
            config = replace(config, **{name: replace(door, port=port)})
    return config, places


def _hand_over(places: Mapping[str, UnixPlace]) -> None:
    """Let who comes be refused as soon as no worker listens, and not wait for the end."""
    for place in places.values():
        place.hand_over()


def _check_shared(engines: Iterable[Engine | type[Engine]], workers: int) -> None:
    if workers > 1 and not all(engine.shared for engine in engines):
        raise ConfigError(
            f"--workers {workers}: this engine serves one process;"
            ' set engine = "redis://HOST", or leave --workers out'
        )


async def _serve(
    settings: Settings,
    registries: Registries,
    engine: Engine | None,
    life: Life,
    *,
    siblings: Siblings | None = None,
    places: Mapping[str, UnixPlace] = MappingProxyType({}),
) -> int:
    if engine is not None:
        await engine.open()
        if siblings is None or siblings.number == 0:  # all workers have the same
            engine.compare(app.shared_settings(settings.config))
    server = app.make_server(
        settings.config,
        registries,
        engine,
        reuse_port=siblings is not None,
        places=places,
        siblings=siblings,
    )
    await server.start()
    _settle_collector()
    signals: asyncio.Queue[int] = asyncio.Queue()

    def hang_up() -> None:
        meant = settings.hung_up(logging.INFO if siblings is None else logging.DEBUG)
        if meant == signal.SIGTERM:
            signals.put_nowait(meant)
        elif meant == signal.SIGHUP:
            try:
                server.renew(settings.config)
            except ConfigError as error:
                logger.error("The certificate stays as it was: %s", error)  # noqa: TRY400

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    if siblings is None or siblings.number == 0:
        show(server.summary())  # from here on a signal drains
    life.begin()
    first = await signals.get()
    if siblings is not None and first == signal.SIGINT:
        return 1  # the parent's word for at once, which may overtake its SIGTERM
    life.end()
    return await _drained(server, signals, None if siblings is None else signal.SIGTERM)


async def _drained(server: Server, signals: asyncio.Queue[int], repeated: int | None) -> int:
    """Drain a server unless a second signal comes, but not this one; return the exit code."""
    logger.info("Draining; a second signal ends at once")
    began, clients = time.monotonic(), len(server.frontend.sessions)
    drain = asyncio.ensure_future(server.drain())
    second = asyncio.ensure_future(_other(signals, repeated))
    await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
    second.cancel()
    if drain.done():
        drain.result()
        seconds = time.monotonic() - began
        logger.info("Drained in %.1f s; %d clients were sent elsewhere", seconds, clients)
        return 0
    drain.cancel()
    return 1


async def _other(signals: asyncio.Queue[int], repeated: int | None) -> None:
    """Wait for a signal that is not ``repeated``."""
    while await signals.get() == repeated:
        pass


def _settle_collector() -> None:
    """Let the collector of cycles look seldom, and not at what is there for good.

    Sessions leave no cycles behind (docs/explanation/performance has what was measured).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)
