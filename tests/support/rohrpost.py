"""A daemon that speaks rohrpost, with the application that the vectors ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from syncserver.config import ProtocolConfig
from syncserver.dealers import BroadcastDealer, Dealer, GroupDealer, KeyedDealer
from syncserver.errors import RPCError
from syncserver.protocols.rohrpost import send_error, send_message, send_success
from syncserver.services.application import ApplicationService, Handlers
from syncserver.services.base import Request
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from tests.support.daemon import Daemon, serving, settings

PATH = "/rohrpost/"


def dealers() -> list[Dealer]:
    return [
        BroadcastDealer(name="AllTasks", model="Task"),
        KeyedDealer(name="TasksByList", model="Task", key="list"),
        GroupDealer(name="Groups"),
    ]


def table() -> Handlers:
    """Return the application of the vectors."""
    handlers = Handlers()

    @handlers.handler(["add-one", "one-more"])
    def add_one(req: Request, data: Any) -> Any:
        return {"number": data["number"] + 1}

    @handlers.handler()
    async def echo(req: Request, data: Any) -> Any:
        return data

    @handlers.handler("by-hand")
    def by_hand(req: Request, data: Any) -> None:
        send_message(req, handler="by-hand-first", message_id=None, data=data)
        send_success(req, data={"sent": True})

    @handlers.handler("refuse")
    def refuse(req: Request, data: Any) -> None:
        if data == "by hand":
            send_error(req, "no", data={"why": 1})
        raise RPCError("not today")

    @handlers.subscription
    def who_may(req: Request, data: Any) -> str | None:
        if req.params["message"].get("auth_jwt") != "good" or not isinstance(data, dict):
            return None
        return f"{data.get('type')}-{data.get('id')}"

    return handlers


@asynccontextmanager
async def rohrpost(handlers: Handlers | None = None, **limits: Any) -> AsyncIterator[Daemon]:
    """Run the daemon."""
    config = replace(settings(**limits), protocols={"rohrpost": ProtocolConfig()})
    datasync = DataSyncService("datasync", dealers(), limits=config.limits)
    application = ApplicationService(handlers or table(), datasync)
    backend = DataSyncBackend("datasync_backend", datasync)
    async with serving(datasync, application, backend=[backend], config=config) as daemon:
        try:
            yield daemon
        finally:
            await datasync.engine.close()
