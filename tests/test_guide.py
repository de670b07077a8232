"""The programs of Snorky's guide, in our own words, run after changing their imports.

Nothing here opens a registry or starts a ``Server``: services stand in a Tornado application
that the program makes for itself, and work as they stand.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler
from tornado.websocket import websocket_connect

from syncserver import ServiceRegistry
from syncserver.canonical import key
from syncserver.dealers import BroadcastDealer, Dealer, FilterDealer, SimpleDealer
from syncserver.handlers.backend import BackendHTTPHandler
from syncserver.handlers.websocket import WebSocketHandler
from syncserver.services.base import (
    RPCError,
    RPCService,
    Service,
    rpc_asynchronous,
    rpc_command,
)
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from syncserver.services.pubsub import PubSubBackend, PubSubService
from tests.conftest import ExpectedLog
from tests.support.daemon import Peer, call_body, until


@asynccontextmanager
async def listening(application: Application, *services: Service) -> AsyncIterator[int]:
    """Serve an application on a free port; close its services at the end."""
    server = HTTPServer(application)
    server.listen(0, "127.0.0.1")
    [sock] = server._sockets.values()
    try:
        yield sock.getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()
        for service in services:
            await service.close()
        for engine in {getattr(service, "engine", None) for service in services} - {None}:
            await engine.close()


@asynccontextmanager
async def browser(port: int, path: str = "/ws") -> AsyncIterator[Peer]:
    peer = Peer(await websocket_connect(f"ws://127.0.0.1:{port}{path}"))
    try:
        yield peer
    finally:
        await peer.close()


async def post(port: int, service: str, command: str, **params: Any) -> dict[str, Any]:
    """Make a call with the key of the guide."""
    client = AsyncHTTPClient(force_instance=True)
    try:
        response = await client.fetch(
            f"http://127.0.0.1:{port}/backend",
            method="POST",
            headers={"X-Backend-Key": "swordfish", "Content-Type": "application/json"},
            body=call_body(service, command, params),
        )
    finally:
        client.close()
    message: dict[str, Any] = json.loads(response.body)["message"]
    return message


# A service that echoes.


class EchoService(Service):
    def process_message_from(self, client, msg):
        self.send_message_to(client, msg)


async def test_the_echo_service_echoes() -> None:
    registry = ServiceRegistry()
    registry.register_service(EchoService("echo"))
    application = Application([WebSocketHandler.get_route(registry, "/ws")])
    async with listening(application) as port, browser(port) as peer:
        peer.send("echo", {"Hello": ["World"]})
        assert await peer.read() == {"service": "echo", "message": {"Hello": ["World"]}}


async def test_a_handler_stands_at_the_root_unless_it_is_told_otherwise() -> None:
    class Page(RequestHandler):
        def get(self):
            self.write("a page of the app")

    registry = ServiceRegistry([EchoService("echo")])
    routes = [("/page", Page), WebSocketHandler.get_route(registry)]
    async with listening(Application(routes)) as port, browser(port, "/") as peer:
        peer.send("echo", 1)
        assert (await peer.read())["message"] == 1
        client = AsyncHTTPClient(force_instance=True)
        page = await client.fetch(f"http://127.0.0.1:{port}/page")
        assert page.body == b"a page of the app"
        client.close()


async def test_two_handlers_may_serve_one_registry() -> None:
    registry = ServiceRegistry([EchoService("echo")])
    routes = [
        WebSocketHandler.get_route(registry, "/ws"),
        WebSocketHandler.get_route(registry, "/old", ping_pong_interval=5),
    ]
    async with (
        listening(Application(routes)) as port,
        browser(port, "/ws") as one,
        browser(port, "/old") as other,
    ):
        for peer in (one, other):
            peer.send("echo", 1)
            assert (await peer.read())["message"] == 1
        assert len(registry.sessions) == 2


# A calculator.


class CalculatorService(RPCService):
    @rpc_command
    def sum(self, req, number1, number2):
        return number1 + number2

    @rpc_command
    def log(self, req, number, base=math.e):
        if number <= 0:
            raise RPCError("Only positive numbers have a logarithm")
        return math.log(number, base)


async def test_the_calculator_calculates(expected_log: ExpectedLog) -> None:
    registry = ServiceRegistry([CalculatorService("calculator")])
    application = Application([WebSocketHandler.get_route(registry, "/ws")])
    async with listening(application) as port, browser(port) as peer:
        assert (await peer.call("calculator", "sum", number1=2, number2=3))["data"] == 5
        assert (await peer.call("calculator", "log", number=1))["data"] == 0
        answer = await peer.call("calculator", "log", number=8, base=2)
        assert answer["data"] == pytest.approx(3)
        answer = await peer.call("calculator", "log", number=-1)
        assert answer["message"] == "Only positive numbers have a logarithm"
        assert (await peer.call("calculator", "sum", number1=2))["message"] == "Invalid params"
        assert (await peer.call("calculator", "divide"))["message"] == "Unknown command"
        with expected_log("syncserver.rpc", "Unhandled exception"):
            answer = await peer.call("calculator", "sum", number1=2, number2="3")
        assert answer["message"] == "Internal error"


# A command that answers later.


class QueueService(RPCService):
    def __init__(self, name):
        super().__init__(name)
        self.waiting = []

    @rpc_command
    @rpc_asynchronous
    def pop(self, req):
        self.waiting.append(req)

    @rpc_command
    def push(self, req, item):
        if not self.waiting:
            raise RPCError("Nobody waits")
        self.waiting.pop(0).reply(item)


async def test_a_queue_keeps_its_consumers_waiting() -> None:
    registry = ServiceRegistry([QueueService("queue")])
    application = Application([WebSocketHandler.get_route(registry, "/ws")])
    async with listening(application) as port, browser(port) as one, browser(port) as other:
        assert (await other.call("queue", "push", item=1))["message"] == "Nobody waits"
        waiting = one.begin_call("queue", "pop")
        await one.rest()
        assert (await other.call("queue", "push", item="Hello"))["data"] is None
        assert (await one.answer(waiting))["data"] == "Hello"


# A publish-subscribe service from scratch.


class MinimalPubSub(RPCService):
    def __init__(self, name):
        RPCService.__init__(self, name)
        self.subscribers = {}

    @rpc_command
    def subscribe(self, req, channel):
        # A channel may be a list or an object, which Python cannot hash.
        self.subscribers.setdefault(key(channel), set()).add(req.client)

    @rpc_command
    def publish(self, req, channel, message):
        for client in self.subscribers.get(key(channel), ()):
            self.send_message_to(client, {"type": "message", "channel": channel, "data": message})

    def client_disconnected(self, client):
        for subscribers in self.subscribers.values():
            subscribers.discard(client)


@pytest.mark.parametrize("channel", ["news", {"room": [1]}])
async def test_the_minimal_pubsub_publishes_and_forgets_who_left(channel: Any) -> None:
    service = MinimalPubSub("pubsub")
    registry = ServiceRegistry([service])
    application = Application([WebSocketHandler.get_route(registry, "/ws")])
    async with listening(application) as port, browser(port) as writer:
        async with browser(port) as reader:
            await reader.call("pubsub", "subscribe", channel=channel)
            await writer.call("pubsub", "publish", channel=channel, message="Hello")
            assert await reader.rest() == [{"type": "message", "channel": channel, "data": "Hello"}]
        await until(lambda: service.subscribers == {key(channel): set()})
        answer = await writer.call("pubsub", "publish", channel=channel, message="again")
        assert answer["type"] == "response"


# Private publish-subscribe: browsers read, the app writes.


class PrivatePubSub(PubSubService):
    def can_publish(self, client, channel):
        return False


async def test_the_private_pubsub_is_written_by_the_backend_alone() -> None:
    frontend_service = PrivatePubSub("pubsub")
    frontend = ServiceRegistry([frontend_service])
    backend = ServiceRegistry([PubSubBackend("pubsub_backend", frontend_service)])
    for_browsers = Application([WebSocketHandler.get_route(frontend, "/ws")])
    for_the_app = Application(
        [BackendHTTPHandler.get_route(backend, "/backend", api_key="swordfish")]
    )
    async with (
        listening(for_browsers, frontend_service) as front,
        listening(for_the_app) as back,
        browser(front) as peer,
    ):
        await peer.call("pubsub", "subscribe", channel="news")
        answer = await peer.call("pubsub", "publish", channel="news", message="forged")
        assert answer["message"] == "Not authorized"
        answer = await post(back, "pubsub_backend", "publish", channel="news", message="Hello")
        assert answer == {"type": "response", "data": None}
        assert await peer.rest() == [{"type": "message", "channel": "news", "message": "Hello"}]


@pytest.mark.parametrize("key", [{}, {"api_key": ""}, {"api_key": None}, {"api_keys": [b""]}])
async def test_a_backend_handler_without_a_key_lets_nobody_in(
    key: dict[str, Any], expected_log: ExpectedLog
) -> None:
    registry = ServiceRegistry([CalculatorService("calculator")])
    with pytest.raises(ValueError, match="needs an api_key"):
        BackendHTTPHandler.get_route(registry, "/backend", **key)
    options = {"service_registry": registry, **key}
    async with listening(Application([("/backend", BackendHTTPHandler, options)])) as port:
        with (
            expected_log("tornado.application", "Uncaught exception"),
            pytest.raises(HTTPClientError, match="closed"),
        ):
            await post(port, "calculator", "sum", number1=1, number2=2)


async def test_another_way_to_check_who_calls_may_be_written() -> None:
    from tornado.web import HTTPError

    class ByAddress(BackendHTTPHandler):
        def check_api_key(self):
            if self.request.headers.get("X-Backend-Key") != "swordfish":
                raise HTTPError(401)

    registry = ServiceRegistry([CalculatorService("calculator")])
    options = {"service_registry": registry, "api_key": "another one"}
    async with listening(Application([("/backend", ByAddress, options)])) as port:
        assert (await post(port, "calculator", "sum", number1=1, number2=2))["data"] == 3


# Data sync.


class AllTasks(BroadcastDealer):
    name = "AllTasks"
    model = "Task"


class CommentsByBlogEntry(SimpleDealer):
    name = "CommentsByBlogEntry"
    model = "Comment"

    def get_key_for_model(self, model):
        return model["entryId"]


class FilteredTasks(FilterDealer):
    model = "Task"


class TasksNear(Dealer):
    """A dealer of one's own: whoever asks for (x, y, r) sees the tasks in that circle."""

    name = "TasksNear"
    model = "Task"

    def __init__(self):
        self.circles = set()

    def add_subscription_item(self, item):
        self.circles.add(item)

    def remove_subscription_item(self, item):
        self.circles.remove(item)

    def get_subscription_items_for_model(self, model):
        for item in self.circles:
            x, y, r = item.query
            if math.hypot(model["x"] - x, model["y"] - y) <= r:
                yield item


@asynccontextmanager
async def data_sync() -> AsyncIterator[tuple[int, int, DataSyncService]]:
    datasync = DataSyncService("datasync", [AllTasks, CommentsByBlogEntry])
    datasync.register_dealer(FilteredTasks)
    near = datasync.register_dealer(TasksNear())
    assert isinstance(near, TasksNear)
    frontend = ServiceRegistry([datasync])
    backend = ServiceRegistry([DataSyncBackend("datasync_backend", datasync)])
    options = {"service_registry": backend, "api_key": "swordfish"}
    async with (
        listening(Application([WebSocketHandler.get_route(frontend, "/ws")]), datasync) as front,
        listening(Application([("/backend", BackendHTTPHandler, options)])) as back,
    ):
        yield front, back, datasync


def task(number: int, x: int, y: int = 0) -> dict[str, Any]:
    return {"id": number, "title": "a task", "x": x, "y": y}


@pytest.mark.parametrize(
    ("dealer", "query"),
    [
        ("AllTasks", None),
        ("FilteredTasks", ["and", [">=", "x", 0], ["<", "x", 10]]),
        ("TasksNear", [5, 0, 5]),
    ],
)
async def test_what_the_app_publishes_reaches_who_may_see_it(dealer: str, query: Any) -> None:
    async with data_sync() as (front, back, _), browser(front) as peer:
        answer = await post(
            back,
            "datasync_backend",
            "authorizeSubscription",
            items=[{"dealer": dealer, "query": query}],
        )
        answer = await peer.call("datasync", "acquireSubscription", token=answer["data"])
        assert answer["data"] is None
        deltas = [
            {"type": "insert", "model": "Task", "data": task(1, 1)},
            {"type": "update", "model": "Task", "newData": task(1, 3), "oldData": task(1, 1)},
            {"type": "delete", "model": "Task", "data": task(1, 3)},
        ]
        await post(back, "datasync_backend", "publishDeltas", deltas=deltas)
        assert await peer.rest() == [{"type": "delta", "delta": delta} for delta in deltas]
        if query is not None:
            far = {"type": "insert", "model": "Task", "data": task(2, 50)}
            await post(back, "datasync_backend", "publish", deltas=[far])
            near = {**far, "type": "update", "newData": task(2, 5), "oldData": task(2, 50)}
            del near["data"]
            await post(back, "datasync_backend", "publish", deltas=[near])
            [seen] = await peer.rest()
            assert seen["delta"] == {"type": "insert", "model": "Task", "data": task(2, 5)}


async def test_a_simple_dealer_shows_rows_by_their_key() -> None:
    async with data_sync() as (front, back, _), browser(front) as peer:
        answer = await post(
            back,
            "datasync_backend",
            "authorizeSubscription",
            items=[{"dealer": "CommentsByBlogEntry", "query": 7}],
        )
        await peer.call("datasync", "acquireSubscription", token=answer["data"])
        comments = [
            {"type": "insert", "model": "Comment", "data": {"id": n, "entryId": n}}
            for n in (6, 7, 8)
        ]
        await post(back, "datasync_backend", "publishDeltas", deltas=comments)
        assert await peer.rest() == [{"type": "delta", "delta": comments[1]}]
        ended = await peer.call("datasync", "cancelSubscription", token=answer["data"])
        assert (ended["type"], ended["data"]) == ("response", None)
        await post(back, "datasync_backend", "publishDeltas", deltas=comments)
        assert await peer.rest() == []


async def test_a_dealer_of_ones_own_forgets_what_nobody_holds() -> None:
    async with data_sync() as (front, back, datasync):
        near = datasync.views.dealers["TasksNear"]
        assert isinstance(near, TasksNear)
        async with browser(front) as peer:
            answer = await post(
                back,
                "datasync_backend",
                "authorizeSubscription",
                items=[{"dealer": "TasksNear", "query": [0, 0, 1]}],
            )
            await peer.call("datasync", "acquireSubscription", token=answer["data"])
            assert len(near.circles) == 1
        await until(lambda: not near.circles)


def test_the_names_of_the_guide_are_where_it_says() -> None:
    from syncserver.dealers import KeyedDealer
    from syncserver.services.base import Request

    assert SimpleDealer is KeyedDealer
    assert {"reply", "error"} <= set(dir(Request))
    assert CalculatorService.rpc_commands == {"sum", "log"}
