"""Server-sent events: one stream, what opens it, what brings it back, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.web import Application

from syncserver.dealers import BroadcastDealer
from syncserver.errors import CloseCode, Unavailable
from syncserver.handlers.events import EventsHandler
from syncserver.registry import ServiceRegistry
from syncserver.services.base import Service
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from syncserver.session import Client
from tests.support.calls import backend_call
from tests.support.daemon import Daemon, call_body, serving, settings, until
from tests.support.events import Source, Told, source

ALL = ("AllTasks", None)
PAGE = "https://app.example.org"


def insert(number: int, **more: Any) -> dict[str, Any]:
    return {"type": "insert", "model": "Task", "data": {"id": number, **more}}


async def fetch(
    daemon: Daemon,
    body: Any = None,
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    path: str = "/events",
) -> HTTPResponse:
    """Ask the frontend for something that is no stream."""
    client = AsyncHTTPClient(force_instance=True)
    try:
        return await client.fetch(
            HTTPRequest(
                f"http://127.0.0.1:{daemon.server.frontend_port}{path}",
                method=method,
                body=json.dumps(body) if method == "POST" else None,
                headers={"Content-Type": "application/json", **(headers or {})},
            ),
            raise_error=False,
        )
    finally:
        client.close()


async def open_name(daemon: Daemon, token: str, position: str | None = None) -> str:
    """Return the name of a stream."""
    response = await fetch(daemon, {"token": token, "position": position})
    assert response.code == 200, response.body
    name: str = json.loads(response.body)["stream"]
    return name


def opened(daemon: Daemon, name: str, last_id: str = "", **options: Any) -> Any:
    return source(daemon.server.frontend_port, name, last_id, **options)


async def read_whole(daemon: Daemon, name: str) -> tuple[list[Told], str, int]:
    """Return the events of a stream that ends, and what a browser keeps of it."""
    async with opened(daemon, name) as stream:
        seen = await stream.end()
        return seen, stream.last_id, stream.retry


async def ids_of(stream: Source, count: int) -> list[int]:
    """Return the ids of the next rows, positions aside."""
    found: list[int] = []
    while len(found) < count:
        event = await stream.event()
        if event.type == "delta":
            found.append(event.data["delta"]["data"]["id"])
    return found


async def test_a_stream_tells_what_came_since_the_token_and_what_comes() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        await daemon.publish(insert(1), insert(2))
        name = await open_name(daemon, token)
        assert token not in name
        async with opened(daemon, name) as stream:
            assert stream.status == 200
            assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert stream.headers["cache-control"] == "no-store, no-transform"
            assert stream.headers["x-accel-buffering"] == "no"
            assert "content-encoding" not in stream.headers
            first, second, third = await stream.until("position")
            assert first.data == {"type": "delta", "delta": insert(1)}
            assert (second.type, second.data["delta"]) == ("delta", insert(2))
            assert third.data["type"] == "position"
            await daemon.publish(insert(3))
            delta, position = await stream.until("position")
            assert delta.data["delta"] == insert(3)
            assert position.data["position"] != third.data["position"]
            assert stream.retry >= 1000


async def test_an_id_stands_at_positions_alone_and_names_position_and_token() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        async with opened(daemon, await open_name(daemon, token)) as stream:
            [start] = await stream.until("position")
            assert start.id == f"{start.data['position']}/{token}"
            await daemon.publish(insert(1), insert(2))
            one, two, end = await stream.until("position")
            assert one.id == two.id == start.id, "inside the batch it is that of before"
            assert end.id == f"{end.data['position']}/{token}"


async def test_who_comes_again_with_the_last_id_gets_the_rest_and_nothing_twice() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        name = await open_name(daemon, token)
        async with opened(daemon, name) as stream:
            await stream.until("position")
            await daemon.publish(insert(1))
            await stream.until("position")
            last = stream.last_id
        await daemon.publish(insert(2), insert(3))
        async with opened(daemon, name, last) as again:
            assert await ids_of(again, 2) == [2, 3]
            await daemon.publish(insert(4))
            assert await ids_of(again, 1) == [4]


@pytest.mark.parametrize("seed", range(3))
async def test_a_page_that_is_cut_at_any_moment_applies_each_change_once_and_in_order(
    seed: int,
) -> None:
    rng = random.Random(seed)
    applied: list[int] = []
    last_id, longest = "", 6
    async with serving() as daemon:
        name = await open_name(daemon, await daemon.authorize(ALL))

        async def publish() -> None:
            for number in range(0, 90, 3):
                await daemon.publish(*map(insert, range(number, number + 3)))

        publishing = asyncio.ensure_future(publish())
        while len(applied) < 90:
            async with opened(daemon, name, last_id) as stream:
                gathered: list[int] = []
                longest += 2  # a replay has one position, at its end
                for _ in range(rng.randrange(1, longest)):
                    event = await stream.event()
                    if event.type == "delta":
                        gathered.append(event.data["delta"]["data"]["id"])
                    else:
                        assert event.type == "position"
                        assert len(gathered) % 3 == 0, "a batch is whole"
                        applied += gathered
                        gathered = []
                        if len(applied) == 90:
                            break
                last_id = stream.last_id
        await publishing
    assert applied == list(range(90))


class Greeter(Service):
    """Tells every client something."""

    def process_message_from(self, client: Client, msg: Any) -> None: ...

    def client_connected(self, client: Client) -> None:
        self.send_message_to(client, {"type": "welcome"})


async def test_what_other_services_say_is_not_in_the_stream() -> None:
    datasync = DataSyncService("datasync", [BroadcastDealer(name="AllTasks", model="Task")])
    backend = DataSyncBackend("datasync_backend", datasync)
    async with serving(Greeter("greeter"), datasync, backend=[backend]) as daemon:
        name = await open_name(daemon, await daemon.authorize(ALL))
        async with opened(daemon, name) as stream:
            assert (await stream.event()).type == "position"
    await datasync.engine.close()


async def test_who_was_cut_before_the_first_position_begins_anew() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        await daemon.publish(insert(1))
        name = await open_name(daemon, token)
        async with opened(daemon, name, "/" + token) as again:
            assert await ids_of(again, 1) == [1]


async def test_a_name_opens_a_stream_once() -> None:
    async with serving() as daemon:
        name = await open_name(daemon, await daemon.authorize(ALL))
        async with opened(daemon, name) as stream:
            await stream.until("position")
            async with opened(daemon, name) as thief:
                assert thief.status == 404
                assert (await thief.body())["code"] == "no_such_stream"
            await daemon.publish(insert(1))
            assert await ids_of(stream, 1) == [1], "the first is not disturbed"


@pytest.mark.parametrize("stream", ["", "datasync", "datasync.", "datasync.x", "nobody.x", "a.b.c"])
async def test_what_is_no_name_of_a_stream_is_404(stream: str) -> None:
    async with serving() as daemon, opened(daemon, stream) as refused:
        assert refused.status == 404
        assert await refused.body() == {
            "type": "error", "code": "no_such_stream", "message": "No such stream; ask for another",
        }  # fmt: skip


@pytest.mark.parametrize("last", ["x", "a.1.b", "a.1.b/", "a.1.b/t/u", "A B/t"])
async def test_an_id_that_no_daemon_gave_is_404(last: str) -> None:
    async with serving() as daemon, opened(daemon, "datasync.x", last) as refused:
        assert refused.status == 404


async def test_a_name_that_is_guessed_at_opens_nothing_and_is_spent() -> None:
    async with serving() as daemon:
        name = await open_name(daemon, await daemon.authorize(ALL))
        for guess in (name[:-1] + "!", name):
            async with opened(daemon, guess) as refused:
                assert refused.status == 404


async def test_a_token_has_one_name_the_latest() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        first, second = await open_name(daemon, token), await open_name(daemon, token)
        async with opened(daemon, second) as stream:
            await stream.until("position")
        async with opened(daemon, first) as refused:
            assert refused.status == 404


async def test_a_name_is_no_token() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        name = await open_name(daemon, token)
        peer = await daemon.connect()
        secret = name.partition(".")[2]
        for guess in (name, secret, f"ticket:{secret}", f"ticket:{secret[:16]}"):
            answer = await peer.call("datasync", "acquireSubscription", token=guess, position=None)
            assert answer["code"] == "no_such_subscription"
        async with opened(daemon, name) as stream:
            await stream.until("position")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"token": "unknown"}, 200, "no_such_subscription"),
        ({"token": 5}, 200, "invalid_token"),
        ({}, 200, "invalid_token"),
        ({"token": "t", "position": "x"}, 200, "invalid_position"),
        ({"token": "t", "service": "nobody"}, 404, "no_such_stream"),
        ({"token": "t", "service": "pubsub"}, 404, "no_such_stream"),
        ({"token": "t", "service": 5}, 400, "malformed"),
        ({"token": "t", "more": 1}, 400, "malformed"),
        ([], 400, "malformed"),
        ({"token": "t" * 5_000}, 413, "too_large"),
    ],
)
async def test_a_post_that_asks_for_no_stream_is_told_why(
    body: Any, status: int, code: str
) -> None:
    async with serving() as daemon:
        response = await fetch(daemon, body)
        assert response.code == status
        answer = json.loads(response.body)
        assert (answer["type"], answer["code"]) == ("error", code)


async def test_a_post_hears_at_once_that_its_rows_are_to_be_fetched_again() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        await daemon.post("datasync_backend", "revokeSubscription", token=token)
        answer = json.loads((await fetch(daemon, {"token": token})).body)
        assert (answer["code"], answer["reason"]) == ("refetch", "revoked")


async def test_a_post_that_is_no_json_is_refused() -> None:
    async with serving() as daemon:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await fetch(daemon, {"token": "t"}, headers=form)).code == 415


# Origins.


async def test_pages_of_other_origins_are_refused_and_those_of_the_list_may_read() -> None:
    async with serving(config=settings(origins=[PAGE])) as daemon:
        token = await daemon.authorize(ALL)
        for method in ("POST", "OPTIONS"):
            foreign = await fetch(
                daemon, {"token": token}, method=method, headers={"Origin": "https://evil.example"}
            )
            assert foreign.code == 403
            assert "Access-Control-Allow-Origin" not in foreign.headers
        asked = await fetch(daemon, method="OPTIONS", headers={"Origin": PAGE})
        assert asked.code == 204
        assert asked.headers["Access-Control-Allow-Origin"] == PAGE
        assert "POST" in asked.headers["Access-Control-Allow-Methods"]
        assert asked.headers["Access-Control-Allow-Headers"] == "Content-Type"
        posted = await fetch(daemon, {"token": token}, headers={"Origin": PAGE})
        assert posted.headers["Access-Control-Allow-Origin"] == PAGE
        assert posted.headers["Vary"] == "Origin"
        name = json.loads(posted.body)["stream"]
        async with opened(daemon, name, headers={"Origin": "https://evil.example"}) as refused:
            assert refused.status == 403
        async with opened(daemon, name, headers={"Origin": PAGE}) as stream:
            assert stream.headers["access-control-allow-origin"] == PAGE
            await stream.until("position")


# How it ends.


async def test_a_revoked_stream_says_so_and_ends_and_cannot_come_again() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        name = await open_name(daemon, token)
        async with opened(daemon, name) as stream:
            await stream.until("position")
            await daemon.post("datasync_backend", "revokeSubscription", token=token)
            [told] = await stream.end()
            notice = {"type": "refetch", "token": token, "reason": "revoked"}
            assert (told.type, told.data, told.id) == ("refetch", notice, "")
        async with opened(daemon, name, stream.last_id) as again:
            assert again.status == 404, "a browser asks no more then"


async def test_who_comes_back_too_late_is_told_to_fetch_again() -> None:
    async with serving(retention_entries=2) as daemon:
        token = await daemon.authorize(ALL)
        name = await open_name(daemon, token)
        async with opened(daemon, name) as stream:
            await stream.until("position")
            last = stream.last_id
        for number in range(5):
            await daemon.publish(insert(number))
        daemon.server._engine.sweep()  # type: ignore[union-attr]  # the memory engine's
        await until(lambda: not daemon.frontend.sockets)
        subscriptions = daemon.frontend.registered_services["datasync"].subscriptions  # type: ignore[attr-defined]
        subscriptions.stream.tail.begin(subscriptions.stream.cursor)
        async with opened(daemon, name, last) as again:
            [told] = await again.end()
            assert (told.type, told.data["reason"]) == ("refetch", "trimmed")


async def test_another_stream_of_the_token_ends_the_first() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        async with opened(daemon, await open_name(daemon, token)) as first:
            await first.until("position")
            async with opened(daemon, await open_name(daemon, token)) as second:
                await second.until("position")
                [told] = await first.end()
                assert (told.type, told.data["reason"]) == ("ended", "taken_over")


async def test_a_token_that_was_acquired_for_good_gives_no_stream() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        peer = await daemon.connect()
        await peer.call("datasync", "acquireSubscription", token=token)
        answer = json.loads((await fetch(daemon, {"token": token})).body)
        assert answer["code"] == "already_acquired"


async def test_a_refusal_is_an_event_whose_name_is_not_the_browsers_own() -> None:
    async with serving() as daemon:
        async with opened(daemon, "datasync.x", "/nosuchtoken") as stream:
            [told] = await stream.end()
        assert (told.type, told.data["code"], told.id) == ("refused", "no_such_subscription", "")


async def test_a_daemon_that_drains_sends_its_streams_elsewhere() -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        name = await open_name(daemon, token)
        async with opened(daemon, name) as stream:
            await stream.until("position")
            drain = asyncio.ensure_future(daemon.server.drain())
            assert await stream.end() == []
            assert stream.last_id.endswith(token), "it may come again"
            assert stream.retry < 1000
            await drain


async def test_over_drains_under_load_a_stream_comes_again_and_misses_nothing(
    tmp_path: Path,
) -> None:
    config = replace(settings(), engine=f"sqlite://{tmp_path}/log.db")
    name, last, published = "", "", 0
    seen: list[int] = []
    for _ in range(3):
        async with serving(config=config) as daemon:
            name = name or await open_name(daemon, await daemon.authorize(ALL))
            async with opened(daemon, name, last) as stream:
                reading = asyncio.ensure_future(stream.end())
                publishing = asyncio.ensure_future(publish_until_refused(daemon, published))
                await until(lambda: daemon.frontend.traffic.frames > 20)
                await daemon.server.drain()
                seen += applied(await reading)
                published, last = await publishing, stream.last_id
                assert stream.retry < 1000
    async with serving(config=config) as daemon, opened(daemon, name, last) as stream:
        while len(seen) < published:
            seen += applied(await stream.until("position"))
    assert seen == list(range(published))


async def publish_until_refused(daemon: Daemon, number: int) -> int:
    """Publish rows from this number on; return the first that was not taken."""
    while True:
        body = call_body("datasync_backend", "publishDeltas", {"deltas": [insert(number)]})
        try:
            answer = await daemon.request(body=body)
        except OSError:  # it is closed by now
            return number
        if answer.code == 503:
            return number
        assert answer.code == 200
        number += 1


def applied(told: list[Told]) -> list[int]:
    """Return the rows that a page has when it takes them with their positions."""
    rows: list[int] = []
    whole = 0
    for event in told:
        if event.type == "delta":
            rows.append(event.data["delta"]["data"]["id"])
        else:
            assert event.type == "position"
            whole = len(rows)
    return rows[:whole]


async def test_who_comes_while_it_drains_is_asked_to_come_again() -> None:
    async with serving() as daemon:
        name = await open_name(daemon, await daemon.authorize(ALL))
        daemon.frontend.draining = True
        async with opened(daemon, name) as stream:
            assert stream.status == 200, "anything else and a browser gives up"
            assert await stream.end() == []
            assert stream.retry == 1000
        assert (await fetch(daemon, {"token": "t"})).code == 503
        daemon.frontend.draining = False
        async with opened(daemon, name) as stream:
            await stream.until("position")


async def test_a_drain_that_begins_while_a_stream_opens_ends_it_too(monkeypatch: Any) -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        name = await open_name(daemon, token)
        service = daemon.frontend.registered_services["datasync"]
        asked, gate = asyncio.Event(), asyncio.Event()
        take = service.engine.take_grant  # type: ignore[union-attr]

        async def late(*args: Any, **kwargs: Any) -> Any:
            asked.set()
            await gate.wait()
            return await take(*args, **kwargs)

        monkeypatch.setattr(service.engine, "take_grant", late)
        daemon.frontend.sockets += 1  # a peer that takes its time
        reading = asyncio.ensure_future(read_whole(daemon, name))
        await asked.wait()
        drain = asyncio.ensure_future(daemon.server.drain())
        await until(lambda: daemon.frontend.draining)
        gate.set()
        assert await reading == ([], f"/{token}", 1000), "it may come again"
        assert not drain.done()
        daemon.frontend.sockets -= 1
        await drain


async def test_a_log_out_of_reach_ends_the_stream_which_comes_again(monkeypatch: Any) -> None:
    async with serving() as daemon:
        token = await daemon.authorize(ALL)
        name = await open_name(daemon, token)
        service = daemon.frontend.registered_services["datasync"]
        take = service.engine.take_grant  # type: ignore[union-attr]

        async def fail(*args: Any, **kwargs: Any) -> None:
            raise Unavailable

        monkeypatch.setattr(service.engine, "take_grant", fail)
        async with opened(daemon, name) as refused:
            assert refused.status == 503
        async with opened(daemon, name, f"/{token}") as stream:
            await stream.end()
            assert stream.last_id == f"/{token}"
        assert (await fetch(daemon, {"token": token})).code == 503
        monkeypatch.setattr(service.engine, "take_grant", take)
        async with opened(daemon, name, stream.last_id) as stream:
            await stream.until("position")


async def test_a_stream_that_runs_is_told_that_the_log_is_away_and_back() -> None:
    async with serving() as daemon:
        name = await open_name(daemon, await daemon.authorize(ALL))
        async with opened(daemon, name) as stream:
            [position] = await stream.until("position")
            datasync: Any = daemon.frontend.registered_services["datasync"]
            datasync.subscriptions.stream.went_stale()
            datasync.subscriptions.stream.came_fresh()
            told = await stream.until("fresh")
            assert [event.data for event in told] == [{"type": "stale"}, {"type": "fresh"}]
            assert stream.last_id == position.id


async def test_a_slow_reader_is_cut_off_alone_and_may_resume() -> None:
    limits = {"max_outbox_bytes": 50_000, "max_send_buffer_bytes": 4_096}
    async with serving(**limits) as daemon:
        slow_token, token = await daemon.authorize(ALL), await daemon.authorize(ALL)
        name = await open_name(daemon, slow_token)
        quick_name = await open_name(daemon, token)
        async with (
            opened(daemon, name, buffer=4_096) as slow,
            opened(daemon, quick_name) as quick,
        ):
            await slow.until("position")
            await quick.until("position")
            last = slow.last_id
            count = 0
            while daemon.frontend.sockets == 2:
                await daemon.publish(insert(count, text="x" * 10_000))
                count += 1
                assert await ids_of(quick, 1) == [count - 1]
        async with opened(daemon, name, last) as again:
            assert await ids_of(again, count) == list(range(count))


async def test_a_peer_that_takes_nothing_from_one_comment_to_the_next_is_cut_off() -> None:
    limits = {"max_send_buffer_bytes": 4_096, "ping_seconds": 0.2}
    async with serving(**limits) as daemon:
        name = await open_name(daemon, await daemon.authorize(ALL))
        async with opened(daemon, name, buffer=4_096) as stream:
            await stream.until("position")
            await daemon.publish(*[insert(n, text="x" * 10_000) for n in range(60)])
            await until(lambda: not daemon.frontend.sockets)


async def test_comments_keep_a_quiet_stream_alive() -> None:
    async with serving(ping_seconds=0.05) as daemon:
        name = await open_name(daemon, await daemon.authorize(ALL))
        async with opened(daemon, name) as stream:
            await stream.until("position")
            await stream.comment()
            await daemon.publish(insert(1))
            assert await ids_of(stream, 1) == [1]


async def test_an_old_proxy_gets_a_stream_without_chunks() -> None:
    async with serving() as daemon:
        name = await open_name(daemon, await daemon.authorize(ALL))
        async with opened(daemon, name, version="1.0") as stream:
            assert "transfer-encoding" not in stream.headers
            await stream.until("position")
            await daemon.publish(insert(1))
            assert await ids_of(stream, 1) == [1]


async def test_the_log_has_neither_tokens_nor_what_opens_a_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with serving() as daemon:
            token = await daemon.authorize(ALL)
            name = await open_name(daemon, token)
            for last in ("", f"/{token}"):
                async with opened(daemon, name, last) as stream:
                    await stream.until("position")
            async with opened(daemon, name):
                pass
    assert "/events" in caplog.text
    assert token not in caplog.text
    assert name.partition(".")[2][16:] not in caplog.text


# In an application of one's own.


async def test_a_handler_in_an_application_of_ones_own_serves_pages_of_its_host() -> None:
    datasync = DataSyncService("sync", [BroadcastDealer(name="All", model="Task")])
    registry = ServiceRegistry([datasync])
    backend = ServiceRegistry([DataSyncBackend("backend", datasync)])
    server = HTTPServer(Application([EventsHandler.get_route(registry, "/live")]))
    server.listen(0, "127.0.0.1")
    [sock] = server._sockets.values()
    host = f"127.0.0.1:{sock.getsockname()[1]}"
    client = AsyncHTTPClient(force_instance=True)

    async def post(origin: str) -> HTTPResponse:
        items = [{"dealer": "All", "query": None}]
        answer = await backend_call(backend, "backend", "authorizeSubscription", items=items)
        return await client.fetch(
            f"http://{host}/live",
            method="POST",
            body=json.dumps({"token": answer["data"], "service": "sync"}),
            headers={"Content-Type": "application/json", "Origin": origin},
            raise_error=False,
        )

    try:
        assert (await post("http://elsewhere.example")).code == 403
        posted = await post(f"http://{host}")
        name = json.loads(posted.body)["stream"]
        assert name.startswith("sync.")
        seen = asyncio.get_running_loop().create_future()
        request = HTTPRequest(
            f"http://{host}/live?stream={name}",
            streaming_callback=lambda data: seen.done() or seen.set_result(data),
        )
        streaming = asyncio.ensure_future(client.fetch(request, raise_error=False))
        assert (await asyncio.wait_for(seen, 5)).startswith(b"retry: ")
        [session] = registry.sessions
        session.close(CloseCode.GOING_AWAY)
        await streaming
    finally:
        client.close()
        server.stop()
        await server.close_all_connections()
        await datasync.close()
        await datasync.engine.close()


async def test_a_peer_that_was_gone_before_its_request_was_read_leaves_no_session() -> None:
    async with serving(ping_seconds=0.2) as daemon:
        token = await daemon.authorize(("AllTasks", None))
        request = (
            f"GET /events?stream=datasync.x HTTP/1.1\r\nHost: x\r\nLast-Event-ID: /{token}\r\n\r\n"
        )
        with socket.socket() as plain:
            plain.connect(("127.0.0.1", daemon.server.frontend_port))
            # The second is read when the answer to the first has found the connection reset.
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + request.encode())
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(daemon.frontend.traffic.opened.total)
        await until(lambda: not daemon.frontend.sockets and not daemon.frontend.sessions)
