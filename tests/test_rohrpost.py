"""rohrpost: the table of handlers, the hook, and what its clients must never be sent."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from syncserver_client import Backend
from tornado.httpclient import HTTPClientError

from syncserver.app import KNOWN, make_server
from syncserver.config import Config, ProtocolConfig
from syncserver.configuration.file import load
from syncserver.dealers import GroupDealer, SubscriptionItem
from syncserver.errors import ConfigError, ProtocolError
from syncserver.protocols.base import Freshness, Notification, PositionReached
from syncserver.protocols.rohrpost import RohrpostProtocol, send_message, send_success
from syncserver.registry import ServiceRegistry
from syncserver.services.application import Handlers
from syncserver.services.base import Request, Service
from syncserver.session import Client
from tests.conftest import ExpectedLog
from tests.support.daemon import KEY, Daemon, Peer, serving, settings, until
from tests.support.rohrpost import PATH, rohrpost


async def connected(daemon: Daemon) -> Peer:
    return await daemon.connect(path=PATH)


async def ask(peer: Peer, **message: Any) -> Any:
    """Send one request and return the next message."""
    peer.send_text(json.dumps(message))
    return await peer.read()


async def is_silent(peer: Peer) -> bool:
    return bool(await ask(peer, id="marker", type="ping") == {"id": "marker", "type": "pong"})


# The table.


@pytest.mark.core
def test_a_handler_is_registered_under_a_name_a_list_or_its_own() -> None:
    handlers = Handlers()

    @handlers.handler("one")
    def by_name(req: Request, data: Any) -> None: ...

    @handlers.handler(["two", "three"])
    def by_list(req: Request, data: Any) -> None: ...

    @handlers.handler()
    def by_itself(req: Request, data: Any) -> None: ...

    assert [handlers.get(name) for name in ("one", "two", "three", "by_itself")] == [
        by_name, by_list, by_list, by_itself,
    ]  # fmt: skip
    assert handlers.get("by_name") is None


@pytest.mark.core
@pytest.mark.parametrize("name", ["taken", "ping", "subscribe", "unsubscribe"])
def test_a_name_that_is_taken_is_refused_and_none_of_the_list_registered(name: str) -> None:
    handlers = Handlers()
    handlers.handler("taken")(lambda req, data: 1)
    with pytest.raises(RuntimeError, match=f'^Handler for "{name}" is already defined.$'):
        handlers.handler(["free", name])(lambda req, data: 2)
    assert handlers.get("free") is None


@pytest.mark.core
def test_a_second_hook_is_refused() -> None:
    handlers = Handlers()
    handlers.subscription(lambda req, data: "a")
    with pytest.raises(RuntimeError, match="already defined"):
        handlers.subscription(lambda req, data: "b")


@pytest.mark.core
def test_two_applications_have_tables_of_their_own() -> None:
    one, other = Handlers(), Handlers()
    one.handler("x")(lambda req, data: 1)
    assert other.get("x") is None


async def test_a_handler_that_fails_is_answered_without_its_text(
    expected_log: ExpectedLog,
) -> None:
    async with rohrpost() as daemon:
        peer = await connected(daemon)
        with expected_log("syncserver.rpc", "Unhandled exception"):
            answer = await ask(peer, id=0, type="add-one", data="secret")
        assert answer == {"id": 0, "type": "add-one", "error": "Internal error"}
        assert await is_silent(peer)


async def test_an_answer_that_is_no_json_is_an_error(expected_log: ExpectedLog) -> None:
    handlers = Handlers()
    handlers.handler("set")(lambda req, data: {1})
    async with rohrpost(handlers) as daemon:
        peer = await connected(daemon)
        with expected_log("syncserver.rpc", "Unhandled exception"):
            answer = await ask(peer, id=1, type="set")
        assert answer == {"id": 1, "type": "set", "error": "Internal error"}


async def test_an_empty_message_and_a_success_without_id_or_handler_are_refused() -> None:
    seen: list[str] = []
    handlers = Handlers()

    @handlers.handler("guards")
    def guards(req: Request, data: Any) -> str:
        for bad in (
            lambda: send_message(req, handler=None, message_id=None),
            lambda: send_success(req, handler=None),
            lambda: send_success(req, handler=""),
            lambda: send_success(req, message_id=None),
        ):
            with pytest.raises(ValueError) as caught:  # noqa: PT011  # its text is looked at
                bad()
            seen.append(str(caught.value))
        return "done"

    async with rohrpost(handlers) as daemon:
        peer = await connected(daemon)
        assert (await ask(peer, id=None, type="guards"))["data"] == "done"
    guard = "You have to provide a message ID and handler on success messages."
    assert seen == ["Cannot send an empty message.", guard, guard, guard]


async def test_a_handler_may_answer_under_another_id_and_type() -> None:
    handlers = Handlers()

    @handlers.handler("other")
    def other(req: Request, data: Any) -> None:
        send_message(req, handler="else", message_id=77, error="why", data=[])

    async with rohrpost(handlers) as daemon:
        peer = await connected(daemon)
        first = await ask(peer, id=1, type="other")
        assert first == {"id": 77, "type": "else", "error": "why", "data": []}
        assert await peer.read() == {"id": 1, "type": "other"}


async def test_calls_are_answered_in_the_order_in_which_they_came() -> None:
    handlers = Handlers()
    free = asyncio.Event()

    @handlers.handler("slow")
    async def slow(req: Request, data: Any) -> None:
        await free.wait()

    async with rohrpost(handlers) as daemon:
        peer = await connected(daemon)
        peer.send_text('{"id": 1, "type": "slow"}')
        peer.send_text('{"id": 2, "type": "ping"}')
        asyncio.get_running_loop().call_later(0.01, free.set)
        assert [(await peer.read())["id"] for _ in range(2)] == [1, 2]


# The hook.


async def test_a_hook_may_return_groups_and_items() -> None:
    handlers = Handlers()

    @handlers.subscription
    async def allow(req: Request, data: Any) -> list[Any]:
        return ["news", {"dealer": "TasksByList", "query": data, "tag": "tasks"}]

    async with rohrpost(handlers) as daemon:
        peer = await connected(daemon)
        answer = await ask(peer, id=1, type="subscribe", data=5)
        assert answer["data"] == {"group": "news", "groups": ["news", "tasks"]}
        await daemon.publish({"type": "insert", "model": "Task", "data": {"id": 1, "list": 5}})
        assert (await peer.read())["data"]["group"] == "tasks"


@pytest.mark.parametrize("granted", [None, "", []])
async def test_a_hook_that_returns_nothing_denies(granted: Any) -> None:
    handlers = Handlers()
    handlers.subscription(lambda req, data: granted)
    async with rohrpost(handlers) as daemon:
        answer = await ask(await connected(daemon), id=1, type="subscribe", data={})
        assert answer == {"id": 1, "type": "subscribe", "error": "ACCESS_DENIED"}


async def test_without_a_hook_only_tokens_are_subscribed_to() -> None:
    async with rohrpost(Handlers()) as daemon:
        peer = await connected(daemon)
        assert (await ask(peer, id=1, type="subscribe"))["error"] == "ACCESS_DENIED"
        token = await daemon.authorize(("AllTasks", None))
        answer = await ask(peer, id=2, type="subscribe", data={"token": token})
        assert answer["data"] == {"group": "Task"}


async def test_a_group_that_is_none_is_refused_and_may_be_tried_again() -> None:
    names = ["", "x" * 201, "a\nb", "fine"]
    handlers = Handlers()
    handlers.subscription(lambda req, data: [names.pop(0)])
    async with rohrpost(handlers) as daemon:
        peer = await connected(daemon)
        for _ in range(3):
            answer = await ask(peer, id=1, type="subscribe", data=1)
            assert "printable characters" in answer["error"]
        assert (await ask(peer, id=1, type="subscribe", data=1))["data"] == {"group": "fine"}


async def test_nothing_is_kept_of_a_client_that_is_gone() -> None:
    async with rohrpost() as daemon:
        peer = await connected(daemon)
        data = {"type": "a", "id": 1}
        await ask(peer, id=1, type="subscribe", auth_jwt="good", data=data)
        application: Any = daemon.frontend.registered_services["application"]
        datasync: Any = daemon.frontend.registered_services["datasync"]
        assert application._held
        peer.connection.close()
        await until(lambda: not daemon.frontend.sessions)
        assert not application._held
        assert not datasync.subscriptions.peers.subscriptions()


async def test_no_more_groups_than_subscriptions_are_allowed() -> None:
    async with rohrpost(max_subscriptions=2) as daemon:
        peer = await connected(daemon)
        answers = [
            await ask(peer, id=n, type="subscribe", auth_jwt="good", data={"type": "a", "id": n})
            for n in range(3)
        ]
        assert answers[2] == {"id": 2, "type": "subscribe", "error": "Too many subscriptions"}
        application: Any = daemon.frontend.registered_services["application"]
        [held] = application._held.values()
        assert len(held) == 2
        datasync: Any = daemon.frontend.registered_services["datasync"]
        assert datasync.engine.waiting_grants() == 0, "a token for nobody is left"


async def test_what_was_subscribed_with_is_not_kept_and_nothing_of_what_was_revoked() -> None:
    async with rohrpost() as daemon:
        peer = await connected(daemon)
        datasync: Any = daemon.frontend.registered_services["datasync"]
        application: Any = daemon.frontend.registered_services["application"]
        for n in range(3):
            data = {"type": "a", "id": n, "more": "x" * 10_000}
            answer = await ask(peer, id=n, type="subscribe", auth_jwt="good", data=data)
            assert answer["data"] == {"group": f"a-{n}"}
            [held] = application._held.values()
            assert [len(key) for key in held] == [32]
            for token in held.values():
                await daemon.post("datasync_backend", "revokeSubscription", token=token)
            await until(lambda: not datasync.subscriptions.peers.subscriptions())
            assert (await peer.read())["type"] == "subscription-update"


async def test_native_clients_call_the_same_handlers_and_the_same_hook() -> None:
    async with rohrpost() as daemon:
        peer = await daemon.connect()
        assert (await peer.call("application", "add-one", data={"number": 4}))["data"] == {
            "number": 5
        }
        data = {"type": "a", "id": 1}
        assert (await peer.call("application", "subscribe", data=data))["message"] == (
            "ACCESS_DENIED"
        )
        message = {"auth_jwt": "good"}
        answer = await peer.call("application", "subscribe", data=data, message=message)
        assert answer["type"] == "response"
        await daemon.post("datasync_backend", "notify", group="a-1", type="create")
        assert (await peer.notice("delta"))["delta"]["data"] == {"group": "a-1", "object": None}
        assert (await peer.call("application", "zz"))["code"] == "unknown_command"


# What is never sent.


@pytest.mark.core
def test_what_its_clients_have_no_word_for_is_not_told() -> None:
    protocol = RohrpostProtocol()
    unasked = [
        PositionReached("datasync", "e.1.m"),
        Freshness("datasync", stale=True),
        Freshness("datasync", stale=False),
        Notification("pubsub", {"type": "message", "channel": 1, "message": 2}),
        Notification("chat", "rohrpost"),
    ]
    assert [protocol.encode(event) for event in unasked] == [()] * len(unasked)


class Greeter(Service):
    """Tells every client something, asked or not."""

    def process_message_from(self, client: Client, msg: Any) -> None: ...

    def client_connected(self, client: Client) -> None:
        self.send_message_to(client, {"type": "welcome"})


async def test_services_that_speak_unasked_do_not_disturb_its_clients() -> None:
    config = replace(settings(), protocols={"rohrpost": ProtocolConfig()})
    async with serving(Greeter("greeter"), config=config) as daemon:
        native = await daemon.connect()
        assert (await native.read())["message"] == {"type": "welcome"}
        peer = await connected(daemon)
        assert await is_silent(peer)
        answer = await ask(peer, id=1, type="greet")
        assert answer == {"id": 1, "type": "greet", "error": "Unknown message type 'greet'."}


async def test_a_log_that_is_away_and_back_is_not_told() -> None:
    async with rohrpost() as daemon:
        peer = await connected(daemon)
        token = await daemon.authorize(("AllTasks", None))
        await ask(peer, id=1, type="subscribe", data={"token": token})
        datasync: Any = daemon.frontend.registered_services["datasync"]
        datasync.subscriptions.stream.went_stale()
        datasync.subscriptions.stream.came_fresh()
        assert await is_silent(peer)


# Texts that are no requests.


@pytest.mark.parametrize(
    "text",
    ['{"id":1,"type":"ping","data":NaN}', "{", "[" * 100, '{"a":1,"a":2}', b"\xff", " ", "\0"],
    ids=repr,
)
async def test_what_is_no_json_is_answered_and_the_connection_lives(text: str | bytes) -> None:
    async with rohrpost() as daemon:
        peer = await connected(daemon)
        peer.send_text(text)
        answer = await peer.read()
        assert set(answer) == {"error"}
        assert answer["error"].startswith("Could not decode JSON message. Error: ")
        assert await is_silent(peer)


@pytest.mark.parametrize("depth", [61, 62, 63])
async def test_a_ping_is_answered_however_deep_its_data_is(depth: int) -> None:
    async with rohrpost() as daemon:
        peer = await connected(daemon)
        data: Any = "x"
        for _ in range(depth):
            data = [data]
        answer = await ask(peer, id=1, type="ping", data=data)
        assert answer == {"id": 1, "type": "pong", "data": {"data": data}}
        assert await is_silent(peer)


@pytest.mark.core
def test_a_large_ping_gives_an_answer_of_its_size() -> None:
    text = json.dumps({"id": 1, "type": "ping", "data": "x" * 60_000})
    [pong] = RohrpostProtocol().receive(text)
    assert isinstance(pong, object)
    [answer] = RohrpostProtocol().encode(pong)  # type: ignore[arg-type]
    assert len(answer) < len(text) + 100


@pytest.mark.core
def test_any_json_is_an_id_in_an_error_too() -> None:
    for id_ in (0, "", False, None, [], {}, {"a": [1]}):
        with pytest.raises(ProtocolError) as caught:
            RohrpostProtocol().receive(json.dumps({"id": id_}))
        assert caught.value.call_id.id == (id_,)  # type: ignore[attr-defined]


# The settings.


def at(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "daemon.toml"
    path.write_text(text)
    return load(str(path), {"SYNCSERVER_STATE_DIR": str(tmp_path)}, KNOWN)


def paths(config: Config) -> list[str]:
    server = make_server(config, (ServiceRegistry(), ServiceRegistry()))
    return list(server._protocols)


def test_a_protocol_is_spoken_where_the_settings_have_it(tmp_path: Path) -> None:
    assert paths(at(tmp_path, "")) == ["/ws"]
    assert paths(at(tmp_path, "[protocols.rohrpost]")) == ["/ws", "/rohrpost/"]
    both = '[protocols.rohrpost]\npath = "/r"\n[protocols.native]\npath = "/socket"'
    assert paths(at(tmp_path, both)) == ["/socket", "/r"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[protocols.rohrpots]", '[protocols] rohrpots: unknown key; did you mean "rohrpost"?'),
        ('[protocols.rohrpost]\npath = "x"', "[protocols.rohrpost] path: no path; "),
        ('[protocols.rohrpost]\npath = "/(x)"', "[protocols.rohrpost] path: no path; "),
        ("[protocols.rohrpost]\non = true", "[protocols.rohrpost] on: unknown key; "),
        (
            '[protocols.rohrpost]\npath = "/ws"',
            "daemon.toml: protocols: the path of rohrpost, /ws, is taken; ",
        ),
        ('[protocols.native]\npath = "/events"', "the path of native, /events, is taken; "),
        ('[protocols.rohrpost]\npath = "/ready"', "the path of rohrpost, /ready, is taken; "),
        ('[protocols.rohrpost]\npath = "/metrics"', "the path of rohrpost, /metrics, is taken"),
        (
            '[protocols.rohrpost]\npath = "/ws/sockjs/x"',
            "the path of rohrpost, /ws/sockjs/x, is taken; ",
        ),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        paths(at(tmp_path, text))


def test_a_group_dealer_has_its_own_model(tmp_path: Path) -> None:
    text = '[services.s]\ntype = "datasync"\n[services.s.dealers.G]\ntype = "group"\n'
    assert at(tmp_path, text).services["s"].dealers["G"].model == "$group"
    with pytest.raises(ConfigError, match='model: does not go with type "group"'):
        at(tmp_path, text + 'model = "M"')


async def test_it_is_not_spoken_unless_it_is_asked_for() -> None:
    async with serving() as daemon:
        with pytest.raises(HTTPClientError, match="404"):
            await connected(daemon)


async def test_a_group_is_told_by_the_python_connector() -> None:
    async with rohrpost() as daemon:
        peer = await connected(daemon)
        data = {"type": "a", "id": 1}
        await ask(peer, id=1, type="subscribe", auth_jwt="good", data=data)
        backend = Backend(f"{daemon.http_url}/backend", KEY)
        with backend:
            await asyncio.to_thread(backend.notify, "a-1", "update", {"id": 1})
        told = {"type": "update", "group": "a-1", "object": {"id": 1}}
        assert (await peer.read())["data"] == told


async def test_a_native_client_hears_a_group_as_deltas_of_its_model() -> None:
    async with rohrpost() as daemon:
        token = await daemon.authorize(("Groups", "news", "tag"))
        peer = await daemon.connect()
        await peer.call("datasync", "acquireSubscription", token=token)
        for type_ in ("create", "update", "delete"):
            await daemon.post("datasync_backend", "notify", group="news", type=type_, object=[1])
        told = [(await peer.notice("delta"))["delta"] for _ in range(3)]
        row, common = {"group": "news", "object": [1]}, {"model": "$group", "tag": "tag"}
        assert told == [
            {"type": "insert", "data": row, **common},
            {"type": "update", "newData": row, "oldData": {"group": "news"}, **common},
            {"type": "delete", "data": row, **common},
        ]


@pytest.mark.core
@pytest.mark.parametrize("name", ["*", "{}", ".", "é", "a b", "x" * 200])
def test_a_group_is_an_exact_name(name: str) -> None:
    dealer = GroupDealer(name="Groups")
    items = [SubscriptionItem("Groups", one, one) for one in (name, name[:-1] + "y")]
    for item in items:
        dealer.parse_query(item.query)
        dealer.add_subscription_item(item)
    delta = dealer.delta(name, "create", None)
    assert dealer.get_subscription_items_for_model(delta.new or {}) == items[:1]


async def test_without_a_group_dealer_there_is_nothing_to_notify() -> None:
    async with serving() as daemon:
        answer = await daemon.post("datasync_backend", "notify", group="a", type="create")
        assert answer["code"] == "no_such_dealer"
