"""SockJS beyond its protocol suite: bounds, origins, what is lost and what is not."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from syncserver.admission.addresses import Addresses
from syncserver.config import Limits
from syncserver.handlers import sockjs_framing as framing
from syncserver.protocols.base import Frame
from tests.support.daemon import SECONDS, serving, settings, until
from tests.support.sockjs import BUSY, FORM, OPEN, Answer, Line, Site, polling, read, site

INTERRUPTED = b'c[1002,"Connection interrupted"]\n'
LISTED = ["https://good.example", "http://localhost:*"]


def put(place: Site, text: bytes) -> None:
    """Have the server say something to all clients."""
    for session in tuple(place.registry.sessions):
        session.put(Frame((text,)))


async def closed(place: Site, path: str) -> list[Any]:
    """Poll to the end and return its code and reason; what comes before is dropped."""
    async with asyncio.timeout(SECONDS):
        while not (frame := await place.poll(path)).startswith(b"c"):
            pass
    found: list[Any] = json.loads(frame[1:])
    return found


async def beheaded(place: Site, path: str, method: str = "POST") -> tuple[Line, Answer]:
    """Begin a request on a connection that takes little, and read no more than its head."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", place.port))
    line = Line(*await asyncio.open_connection(sock=plain, limit=4096))
    place._lines.append(line)
    return line, await line.request(method, path)


# The frames.


@given(st.lists(st.text(st.characters(codec=None))))
def test_any_text_goes_there_and_back(texts: list[str]) -> None:
    sent = json.dumps(texts)
    found = framing.read(sent)
    frame = framing.array(framing.listed(tuple(found)))
    assert json.loads(frame[1:]) == json.loads(sent)
    assert json.loads(json.loads(framing.in_script(frame))[1:]) == json.loads(sent)


@given(st.text(st.characters(codec=None)))
def test_no_frame_has_what_would_end_it_early(text: str) -> None:
    [message] = framing.read(json.dumps([text]))
    frame = framing.array(framing.listed((message,)))
    assert not {*"\r\n\0\x7f\x85\u2028\u2029"} & set(frame.decode())
    assert b"<" not in framing.in_script(frame)


def test_a_frame_begins_with_its_letter_whatever_is_in_it() -> None:
    for text in (b"o", b"h", b'c[3000,"x"]', b'"],c[', b"a[", b"\\"):
        frame = framing.array(framing.listed((text,)))
        assert frame.startswith(b'a["')
        assert json.loads(frame[1:]) == [text.decode()]


@pytest.mark.parametrize(
    "text", ["", "[", "{}", '"abc"', "5", "null", "[1]", '["a",[]]', "[" * 9999]
)
def test_only_an_array_of_strings_is_read(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # any
        framing.read(text)


async def test_emoji_and_halves_of_them_arrive_as_they_were_sent() -> None:
    texts = ["\U0001f9c0 \u2028\u2029 \u00e9\u4e16", "\ud83e", "\udd80x", "\ud83e\udd80"[::-1]]
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        await place.say(path, *texts)
        found: list[str] = []
        while len(found) < len(texts):
            found += json.loads((await place.poll(path))[1:])
        assert found == texts
        wire = await place.websocket(f"{path}/websocket")
        assert await read(wire) == "o"
        await wire.write_message(json.dumps(texts))
        answers = [await read(wire) for _ in texts]
        assert [json.loads(str(answer)[1:])[0] for answer in answers] == texts


# What is bounded.


async def test_what_a_broken_response_had_taken_goes_to_the_next_one() -> None:
    text = b"x" * (16 * 1024 * 1024)  # more than the kernel takes
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        put(place, text)
        line, answer = await beheaded(place, f"{path}/xhr")
        assert answer.status == 200
        put(place, b"and after it")
        line.writer.transport.abort()
        await until(lambda: not place.registry.sessions)
        rest = b""
        while not rest.endswith(b'"and after it"]\n'):
            piece = await place.poll(path)
            assert piece.startswith(b"a["), piece
            rest += piece
        assert rest.startswith(b'a["' + text + b'"')
        assert await place.poll(path) == INTERRUPTED


async def test_a_client_that_does_not_poll_is_cut_off_as_slow() -> None:
    async with site(max_outbox_bytes=10_000) as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        for _ in range(20):
            put(place, b"x" * 1000)
            await asyncio.sleep(0)
        await until(lambda: not place.registry.sessions)
        assert (await place.poll(path)).startswith(b'a["xxx')
        assert await closed(place, path) == [4008, ""]


async def test_what_was_polled_counts_no_more() -> None:
    async with site(max_outbox_bytes=10_000) as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        for _ in range(20):
            put(place, b"x" * 5000)
            assert len(await place.poll(path)) > 5000
        [session] = place.registry.sessions
        await until(lambda: session.pending == 0)


@pytest.mark.parametrize("kind", ["xhr_streaming", "eventsource"])
async def test_a_stream_that_is_not_read_is_cut_off_as_slow(kind: str) -> None:
    method = "POST" if kind == "xhr_streaming" else "GET"
    async with site(disconnect_seconds=0.5, max_response_bytes=2**40) as place:
        line, _ = await beheaded(place, f"{place.session()}/{kind}", method)
        while place.registry.sessions:
            put(place, b"x" * 500_000)
            await asyncio.sleep(0)
        await until(lambda: not len(place.sessions))
        async with asyncio.timeout(SECONDS):
            while await line.reader.read(65536):
                pass  # the connection was cut, so this ends


async def test_a_stream_whose_bytes_do_not_move_is_cut_off() -> None:
    async with site(ping_seconds=0.2) as place:
        await beheaded(place, f"{place.session()}/xhr_streaming")
        put(place, b"x" * (16 * 1024 * 1024))
        await until(lambda: not place.registry.sessions)


async def test_a_client_that_went_away_is_forgotten() -> None:
    async with site(disconnect_seconds=0.1) as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        await until(lambda: not len(place.sessions))
        assert not place.registry.sessions
        assert not place.registry.sockets
        assert (await place.post(f"{path}/xhr_send", '["x"]')).status == 404


async def test_a_closed_session_is_forgotten_even_if_it_is_asked_for_all_the_time() -> None:
    async with site(disconnect_seconds=1) as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        [session] = place.registry.sessions
        session.close(3001, "over")
        async with asyncio.timeout(SECONDS):
            while (found := await place.poll(path)) != OPEN:
                assert found == b'c[3001,"over"]\n'


async def test_so_many_sessions_may_poll_and_no_more() -> None:
    async with site(max_polling_sessions=2) as place:
        paths = [place.session() for _ in range(3)]
        assert [await place.poll(path) for path in paths[:2]] == [OPEN, OPEN]
        answer = await place.post(f"{paths[2]}/xhr")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert place.registry.traffic.refused["connections"] == 1
        assert await read(await place.websocket(f"{paths[2]}/websocket")) == "o"
        place.sessions.close()
        assert await place.poll(paths[2]) == OPEN


async def test_too_many_messages_at_once_end_a_session() -> None:
    async with site(max_inbox_messages=10) as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        await place.say(path, *[""] * 11)
        assert await closed(place, path) == [4013, '{"retry_after": 1000}']
        wire = await place.websocket(f"{place.session()}/websocket")
        assert await read(wire) == "o"
        await wire.write_message(json.dumps([""] * 11))
        assert str(await read(wire)).startswith("c[4013,")


async def test_a_message_that_is_too_large_ends_a_session() -> None:
    async with site(max_message_bytes=100) as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        await place.say(path, "\u00e9" * 51)
        assert await closed(place, path) == [1009, ""]


@pytest.mark.parametrize("name", ["xhr_send", "jsonp_send"])
async def test_a_body_that_is_too_large_is_refused(name: str) -> None:
    async with site(max_inbox_bytes=1000) as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        answer = await place.post(f"{path}/{name}", json.dumps(["x" * 1000]))
        assert answer.status == 413
        await place.say(path, "fine")
        assert await place.poll(path) == b'a["fine"]\n'


async def test_a_form_with_many_fields_is_refused() -> None:
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        body = "a=1&" * 50_000 + "d=[]"
        assert (await place.request("POST", f"{path}/jsonp_send", body, FORM)).status == 500


# Heartbeats.


async def test_heartbeats_come_over_every_transport() -> None:
    async with site(ping_seconds=0.5, max_response_bytes=2**30) as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        stream = await place.streaming(place.session())
        wire = await place.websocket(f"{place.session()}/websocket")
        assert [await place.poll(path) for _ in range(2)] == [b"h\n", b"h\n"]
        await stream.take(OPEN + b"h\nh\n")
        assert [await read(wire) for _ in range(3)] == ["o", "h", "h"]


async def test_a_heartbeat_does_not_end_a_stream_of_which_little_is_read() -> None:
    async with site(ping_seconds=0.05) as place:
        path = place.session()
        stream = await place.streaming(path)
        await stream.take(OPEN + b"h\n" * 5)
        await place.say(path, "still here")
        while b"still here" not in (await stream.chunk()):
            pass


# Origins.

SESSION_REQUESTS = [
    ("POST", "xhr"),
    ("POST", "xhr_streaming"),
    ("POST", "xhr_send"),
    ("GET", "eventsource"),
    ("GET", "htmlfile?c=x"),
    ("GET", "jsonp?c=x"),
    ("POST", "jsonp_send"),
    ("OPTIONS", "xhr"),
    ("OPTIONS", "xhr_send"),
]
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "https://good.example.evil.example"},
    {"Origin": "http://good.example"},
    {"Origin": "null"},
    {"Origin": "https://evil.example", "Referer": "https://good.example/page"},
    {"Referer": "https://evil.example/https://good.example"},
    {"Referer": "http://[", "Origin": ""},
]


@pytest.mark.parametrize(("method", "name"), SESSION_REQUESTS)
async def test_pages_of_other_origins_are_refused_and_may_read_nothing(
    method: str, name: str
) -> None:
    async with site(origins=LISTED) as place:
        for headers in FOREIGN:
            for path in (f"{place.session()}/{name}", "/echo/info"):
                way = ("OPTIONS" if method == "OPTIONS" else "GET") if "info" in path else method
                answer = await place.request(way, path, headers=headers)
                assert answer.status == 403, headers
                assert not [name for name in answer.headers if name.startswith("Access-Control")]
        assert not len(place.sessions)
        assert place.registry.traffic.refused["origin"] == 2 * len(FOREIGN)


async def test_one_address_may_open_so_many_sessions() -> None:
    async with site() as place:
        place.registry.addresses = Addresses(Limits(max_connections_per_address=2))
        paths = [place.session() for _ in range(3)]
        assert [await place.poll(path) for path in paths[:2]] == [OPEN, OPEN]
        answer = await place.post(f"{paths[2]}/xhr")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert place.registry.traffic.refused["address"] == 1


@pytest.mark.parametrize("origin", ["https://good.example", "http://localhost:8000"])
async def test_pages_of_allowed_origins_may_read_with_credentials(origin: str) -> None:
    async with site(origins=LISTED) as place:
        for method, path in (("GET", "/echo/info"), ("POST", f"{place.session()}/xhr")):
            answer = await place.request(method, path, headers={"Origin": origin})
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert answer.headers["Vary"] == "Origin"


async def test_a_client_that_names_no_origin_may_connect_and_is_no_page() -> None:
    async with site(origins=LISTED) as place:
        path = place.session()
        answer = await place.post(f"{path}/xhr")
        assert await answer.body() == OPEN
        assert "Access-Control-Allow-Origin" not in answer.headers
        await place.say(path, "x")


@pytest.mark.parametrize("name", ["jsonp?c=x", "htmlfile?c=x"])
async def test_what_only_browsers_have_needs_a_named_origin(name: str) -> None:
    async with site(origins=LISTED) as place:
        assert (await place.get(f"{place.session()}/{name}")).status == 403
        path = f"{place.session()}/{name}"
        assert (await place.get(path, Referer="https://good.example/a?b")).status == 200


async def test_a_session_of_a_page_is_not_found_by_a_page_of_another_origin() -> None:
    first, second = {"Origin": "https://good.example"}, {"Origin": "http://localhost:1"}
    async with site(origins=LISTED) as place:
        path = place.session()
        assert await place.poll(path, **first) == OPEN
        assert (await place.post(f"{path}/xhr_send", '["x"]', **second)).status == 404
        assert (await place.post(f"{path}/xhr", **second)).status == 404
        await place.say(path, "mine", **first)
        assert await place.poll(path, **first) == b'a["mine"]\n'


async def test_without_a_list_only_pages_of_this_very_host_may_connect() -> None:
    async with site(origins=None) as place:
        for origin, status in (("http://localhost", 200), ("http://localhost:1", 403)):
            answer = await place.post(f"{place.session()}/xhr", Origin=origin)
            assert answer.status == status, origin


@pytest.mark.parametrize("path", ["/echo/0/0/websocket", "/echo/websocket"])
async def test_websockets_of_other_origins_are_refused(path: str) -> None:
    async with site(origins=LISTED) as place:
        url = f"ws://127.0.0.1:{place.port}{path}"
        for name in ("Origin", "Sec-WebSocket-Origin"):
            headers = {name: "https://evil.example"}
            if name != "Origin":
                headers["Sec-WebSocket-Version"] = "8"
                key = {"Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="}
                upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
                answer = await place.request("GET", path, headers=headers | key | upgrade)
                assert answer.status == 403
            else:
                with pytest.raises(HTTPClientError, match="403"):
                    await websocket_connect(HTTPRequest(url, headers=headers))


# What does not fit.


@pytest.mark.parametrize(
    "words", ["a/" + "x" * 8000, "a/..", "a/%2e%2e", "a/%00", "a/b.c", "a/b%2Fc.d", "/x", "a/"]
)
async def test_an_id_that_cannot_be_one_is_not_found(words: str) -> None:
    async with site() as place:
        assert (await place.post(f"/echo/{words}/xhr")).status == 404
        assert not len(place.sessions)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/echo/%ff/%fe/xhr"),
        ("GET", "/echo/a/a/jsonp?c=%ff"),
        ("GET", "/echo/a/a/htmlfile?c=%e2%82"),
        ("GET", "/echo/%c3/websocket"),
        ("GET", "/echo/a/%ff/websocket"),
    ],
)
async def test_what_is_no_utf_8_is_refused_without_noise(method: str, path: str) -> None:
    async with site() as place:
        assert (await place.request(method, path)).status in {400, 404}
        assert not len(place.sessions)


async def test_an_upgrade_where_there_is_no_websocket_harms_nobody() -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    async with site() as place:
        for path in ("", "/", "/info", "/0/0/xhr", "/0/0/websocket/", "/websocket/", "/0/0/"):
            answer = await place.request("GET", f"/echo{path}", headers=upgrade)
            assert answer.status in {200, 404, 405}, path
        assert (await place.get("/echo/0/0/websocket", **upgrade)).status == 400


@pytest.mark.parametrize(
    "name", ["alert(1)", "a;b", "a b", "<script>", "\u00fc", "a" * 65, "a[0]", "%00", "a%0a", "a-b"]
)
@pytest.mark.parametrize("transport", ["jsonp", "htmlfile"])
async def test_a_function_has_a_plain_name(name: str, transport: str) -> None:
    async with site() as place:
        quoted = name if name.startswith("%") else "".join(f"%{b:02x}" for b in name.encode())
        answer = await place.get(f"{place.session()}/{transport}?c={quoted}")
        assert answer.status == 500
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not len(place.sessions)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
async def test_other_methods_are_refused(method: str) -> None:
    async with site() as place:
        answer = await place.request(method, f"{place.session()}/xhr")
        assert (answer.status, answer.headers["Allow"]) == (405, "OPTIONS, POST")


async def test_the_page_for_iframes_stands_in_pages_of_allowed_origins_alone() -> None:
    async with site(origins=LISTED) as place:
        policy = (await place.get("/echo/iframe.html")).headers["Content-Security-Policy"]
        assert "frame-ancestors https://good.example http://localhost:*" in policy
        assert "script-src 'sha256-" in policy


# The daemon.


PATH = "/ws/sockjs/000/mine"


def call(command: str, **params: Any) -> str:
    message = {"command": command, "params": params, "callId": 1}
    return json.dumps({"service": "datasync", "message": message})


async def told(place: Site, count: int, path: str = PATH) -> list[Any]:
    """Poll until so many messages have come."""
    found: list[Any] = []
    while len(found) < count:
        found += [json.loads(text)["message"] for text in json.loads((await place.poll(path))[1:])]
    return found


async def test_the_native_protocol_is_spoken_over_polling() -> None:
    async with serving() as daemon, polling(daemon) as place:
        token = await daemon.authorize(("AllTasks", None))
        assert await place.poll(PATH) == OPEN
        await place.say(PATH, call("acquireSubscription", token=token, position=None))
        assert [message["type"] for message in await told(place, 1)] == ["response"]
        delta = {"type": "insert", "model": "Task", "data": {"id": 1, "title": "\U0001f9c0"}}
        await daemon.publish(delta)
        [first, position] = await told(place, 2)
        assert first == {"type": "delta", "delta": delta}
        assert position["type"] == "position"


async def test_after_a_broken_poll_a_new_session_resumes_where_the_old_one_was() -> None:
    async with serving() as daemon, polling(daemon) as place:
        token = await daemon.authorize(("AllTasks", None))
        assert await place.poll(PATH) == OPEN
        await place.say(PATH, call("acquireSubscription", token=token, position=None))
        position = (await told(place, 1))[0]["data"]["position"]
        line = await place.line()
        line.send("POST", f"{PATH}/xhr")
        while await place.poll(PATH) != BUSY:
            pass
        line.writer.transport.abort()
        await until(lambda: not daemon.frontend.sessions)
        delta = {"type": "insert", "model": "Task", "data": {"id": 1}}
        await daemon.publish(delta)
        new = place.session("/ws/sockjs")
        assert await place.poll(new) == OPEN
        await place.say(new, call("acquireSubscription", token=token, position=position))
        found = await told(place, 2, new)
        assert [message["type"] for message in found] == ["delta", "response"]


async def test_a_half_character_in_a_message_is_answered_and_the_session_lives() -> None:
    async with serving() as daemon, polling(daemon) as place:
        assert await place.poll(PATH) == OPEN
        await place.say(PATH, '{"service": "\ud83e", "message": 1}')
        [refusal] = await told(place, 1)
        assert (refusal["type"], refusal["code"]) == ("error", "invalid_json")
        await place.say(PATH, call("nothing"))
        assert (await told(place, 1))[0]["code"] == "unknown_command"


async def test_a_drain_sends_polling_clients_elsewhere() -> None:
    async with serving(disconnect_seconds=2, drain_seconds=9) as daemon, polling(daemon) as place:
        waiting = await place.line()
        idle = place.session("/ws/sockjs")
        assert await place.poll(idle) == OPEN
        assert await (await waiting.request("POST", f"{PATH}/xhr")).body() == OPEN
        waiting.send("POST", f"{PATH}/xhr")
        while await place.poll(PATH) != BUSY:
            pass
        spare = await place.line()
        await (await spare.request("GET", "/ws/sockjs")).body()
        draining = asyncio.ensure_future(daemon.server.drain())
        frame = await (await waiting.head()).body()
        code, reason = json.loads(frame[1:])
        assert code == 4001
        assert "retry_after" in json.loads(reason)
        answer = await spare.request("POST", f"{place.session('/ws/sockjs')}/xhr")
        assert answer.status == 503
        await draining
        assert not daemon.frontend.sockets


async def test_what_is_answered_500_is_in_the_log_but_for_what_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        with caplog.at_level("INFO"):
            for body in ("", '["secret'):
                assert (await place.post(f"{path}/xhr_send", body)).status == 500
            for query in ("", "?c=%3Csecret"):
                assert (await place.get(f"{path}/jsonp{query}")).status == 500
    for text in (
        "Payload expected.",
        "Broken JSON encoding.",
        '"callback" parameter required',
        '"callback" parameter must be a plain name',
    ):
        assert f"Refused a request from 127.0.0.1 with 500: {text}" in caplog.messages
    assert "secret" not in caplog.text


async def test_the_daemon_has_no_page_for_iframes_unless_it_is_told_of_a_client() -> None:
    client = AsyncHTTPClient()
    async with serving(config=settings()) as daemon:
        url = f"http://127.0.0.1:{daemon.server.frontend_port}/ws/sockjs/iframe.html"
        assert (await client.fetch(url, raise_error=False)).code == 404
