"""The cases of the SockJS 0.3.3 protocol suite, one test for each, in words of our own.

Every test is tied to its case by ``@case``; docs/explanation/sockjs has the table of
all 68. One has no test: it is about a draft of WebSocket (hixie-76) that no browser speaks.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from tests.support.daemon import ROOT
from tests.support.sockjs import AWAY, BUSY, FORM, OPEN, PRELUDE, Answer, Line, Site, read, site

CASES: dict[str, str] = {}
DEAD = {"WebsocketHixie76.test_haproxy"}
INTERRUPTED = b'c[1002,"Connection interrupted"]\n'
NEVER = "no-store, no-cache, must-revalidate, max-age=0"
GREETING = b"Welcome to SockJS!\n"
KEY, ACCEPT = "x3JJHMbDL1EzLkh9GBhXDw==", "HSmrc0sMlYUkAGmm5OPpG2HaGWk="

Test = Callable[..., Any]


def case(name: str) -> Callable[[Test], Test]:
    """Say which case of the suite a test stands for."""

    def note(test: Test) -> Test:
        assert name not in CASES
        CASES[name] = test.__name__
        return test

    return note


def kind(answer: Answer) -> str:
    return answer.headers["Content-Type"].replace(" ", "")


def is_readable(answer: Answer, origin: str = "*") -> None:
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"


def is_not_cached(answer: Answer) -> None:
    assert answer.headers["Cache-Control"] == NEVER
    assert not {"Expires", "Last-Modified"} & set(answer.headers)


def is_cached_for_long(answer: Answer) -> None:
    assert "public" in answer.headers["Cache-Control"]
    assert re.search(r"max-age=[1-9]\d{6}", answer.headers["Cache-Control"])
    assert answer.headers["Expires"]


async def is_preflight(place: Site, path: str, methods: str) -> None:
    for origin in (None, "test", "null"):
        headers = {"Origin": origin} if origin else {}
        answer = await place.request("OPTIONS", path, headers=headers)
        assert answer.status == 204
        is_cached_for_long(answer)
        assert int(answer.headers["Access-Control-Max-Age"]) > 1_000_000
        assert answer.headers["Access-Control-Allow-Methods"] == methods
        is_readable(answer, origin if origin == "test" else "*")
        assert "Content-Length" not in answer.headers


# The place itself.


@case("BaseUrlGreeting.test_greeting")
async def test_the_place_greets_with_and_without_a_slash() -> None:
    async with site() as place:
        for path in ("/echo", "/echo/"):
            answer = await place.get(path)
            assert (answer.status, kind(answer)) == (200, "text/plain;charset=UTF-8")
            assert await answer.body() == GREETING
            assert "Set-Cookie" not in answer.headers


@case("BaseUrlGreeting.test_notFound")
async def test_paths_that_are_nothing_are_not_found() -> None:
    async with site() as place:
        for path in ("/a", "/a.html", "//", "///", "/a/a", "/a/a/", "/a/"):
            assert (await place.get(f"/echo{path}")).status == 404, path


async def is_iframe(place: Site, path: str) -> None:
    """See that a page does what the client needs of it; its markup is our own."""
    answer = await place.get(path)
    assert (answer.status, kind(answer)) == (200, "text/html;charset=UTF-8"), path
    is_cached_for_long(answer)
    assert answer.headers["Etag"]
    assert not {"Last-Modified", "Set-Cookie"} & set(answer.headers)
    page = (await answer.body()).decode()
    assert page.startswith("<!DOCTYPE html>")
    bootstrap, client = re.findall(r"<script(.*?)</script>", page, re.DOTALL)
    assert re.search(r"_sockjs_onload = .*SockJS\.bootstrap_iframe\(\)", bootstrap)
    assert ' src="https://cdn.example/sockjs.min.js"' in client


@case("IframePage.test_simpleUrl")
async def test_there_is_a_page_for_iframes() -> None:
    async with site() as place:
        await is_iframe(place, "/echo/iframe.html")


@case("IframePage.test_versionedUrl")
async def test_the_page_for_iframes_may_be_asked_for_by_version() -> None:
    async with site() as place:
        for version in ("a", "", "0.1.2", "0.1.2abc-dirty.2144"):
            await is_iframe(place, f"/echo/iframe-{version}.html")


@case("IframePage.test_queriedUrl")
async def test_the_page_for_iframes_may_be_asked_for_past_every_cache() -> None:
    async with site() as place:
        for path in ("a.html?t=1234", "0.1.2.html?t=123414", "0.1.2abc-dirty.2144.html?t=qweqweq1"):
            await is_iframe(place, f"/echo/iframe-{path}")


@case("IframePage.test_invalidUrl")
async def test_what_is_only_like_the_page_for_iframes_is_not_found() -> None:
    async with site() as place:
        for path in ("iframe.htm", "iframe", "IFRAME.HTML", "IFRAME", "iframe.HTML", "iframe.xml"):
            assert (await place.get(f"/echo/{path}")).status == 404, path
        assert (await place.get("/echo/iframe-/.html")).status == 404


@case("IframePage.test_cacheability")
async def test_who_has_the_page_for_iframes_is_not_sent_it_again() -> None:
    async with site() as place:
        tags = [(await place.get("/echo/iframe.html")).headers["Etag"] for _ in range(2)]
        assert tags[0] == tags[1]
        answer = await place.get("/echo/iframe.html", If_None_Match=tags[0])
        assert answer.status == 304
        assert "Content-Type" not in answer.headers


@case("InfoTest.test_basic")
async def test_info_says_what_may_be_tried() -> None:
    async with site() as place:
        answer = await place.get("/echo/info")
        assert (answer.status, kind(answer)) == (200, "application/json;charset=UTF-8")
        is_not_cached(answer)
        is_readable(answer)
        assert "Set-Cookie" not in answer.headers
        info = json.loads(await answer.body())
        assert type(info.pop("entropy")) is int
        assert info == {"websocket": True, "cookie_needed": False, "origins": ["*:*"]}


@case("InfoTest.test_entropy")
async def test_info_has_other_chance_each_time() -> None:
    async with site() as place:
        found = [json.loads(await (await place.get("/echo/info")).body()) for _ in range(2)]
        assert found[0]["entropy"] != found[1]["entropy"]
        assert all(0 <= one["entropy"] < 2**32 for one in found)


@case("InfoTest.test_options")
async def test_info_answers_a_preflight() -> None:
    async with site() as place:
        await is_preflight(place, "/echo/info", "OPTIONS, GET")


@case("InfoTest.test_options_null_origin")
async def test_a_page_without_an_origin_is_answered_with_a_star() -> None:
    async with site() as place:
        answer = await place.request("OPTIONS", "/echo/info", headers={"Origin": "null"})
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


@case("InfoTest.test_disabled_websocket")
async def test_info_says_where_there_is_no_websocket() -> None:
    async with site() as place:
        answer = await place.get("/plain/info")
        assert json.loads(await answer.body())["websocket"] is False


# Sessions.


@case("SessionURLs.test_anyValue")
async def test_server_and_session_may_be_any_words() -> None:
    async with site() as place:
        for words in ("/a/a", "/_/_", "/1/1", "/abcdefgh_i-j%20/abcdefg_i-j%20"):
            assert await place.poll(f"/echo{words}") == OPEN


@case("SessionURLs.test_invalidPaths")
async def test_server_and_session_are_neither_empty_nor_have_they_dots() -> None:
    async with site() as place:
        for words in ("//", "/a./a", "/a/a.", "/./.", "/", "///"):
            for method in ("GET", "POST"):
                answer = await place.request(method, f"/echo{words}/xhr")
                assert answer.status == 404, words


@case("SessionURLs.test_ignoringServerId")
async def test_the_word_for_the_server_is_for_balancers_alone() -> None:
    async with site() as place:
        assert await place.poll("/echo/000/one") == OPEN
        await place.say("/echo/000/one", "a")
        assert await place.poll("/echo/999/one") == b'a["a"]\n'


@case("Protocol.test_simpleSession")
async def test_a_session_opens_carries_messages_and_has_one_receiver() -> None:
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        await place.say(path, "a")
        assert await place.poll(path) == b'a["a"]\n'
        assert (await place.post("/echo/000/bad_session/xhr_send", '["a"]')).status == 404
        waiting = await place.line()
        waiting.send("POST", f"{path}/xhr")
        await until_busy(place, path)


async def until_busy(place: Site, path: str) -> None:
    """See that a second receiver is turned away, now that the first is there."""
    await asyncio.sleep(0)
    assert await place.poll(path) == BUSY


@case("Protocol.test_closeSession")
async def test_a_closed_session_says_so_each_time() -> None:
    async with site() as place:
        path = place.session("/close")
        assert [await place.poll(path) for _ in range(3)] == [OPEN, AWAY, AWAY]


# WebSocket.


@case("WebsocketHttpErrors.test_httpMethod")
async def test_a_plain_request_for_a_websocket_is_refused() -> None:
    async with site() as place:
        answer = await place.get("/echo/0/0/websocket")
        assert answer.status == 400
        assert b'Can "Upgrade" only to "WebSocket".' in await answer.body()


@case("WebsocketHttpErrors.test_invalidConnectionHeader")
async def test_an_upgrade_without_its_connection_header_is_refused() -> None:
    async with site() as place:
        answer = await place.get("/echo/0/0/websocket", Upgrade="WebSocket", Connection="close")
        assert answer.status == 400
        assert b'"Connection" must be "Upgrade".' in await answer.body()


@case("WebsocketHttpErrors.test_invalidMethod")
async def test_a_websocket_begins_with_a_get() -> None:
    async with site() as place:
        for headers in ({"Upgrade": "WebSocket", "Connection": "Upgrade"}, {}):
            answer = await place.post("/echo/0/0/websocket", **headers)
            assert (answer.status, answer.headers["Allow"]) == (405, "GET")
            assert "Content-Type" not in answer.headers
            assert await answer.body() == b""


@case("WebsocketHixie76.test_transport")
async def test_a_websocket_opens_and_carries_messages() -> None:
    async with site() as place:
        socket = await place.websocket(f"{place.session()}/websocket")
        assert await read(socket) == "o"
        await socket.write_message('["a"]')
        assert await read(socket) == 'a["a"]'


@case("WebsocketHixie76.test_close")
async def test_a_closed_websocket_says_why_and_ends() -> None:
    async with site() as place:
        socket = await place.websocket(f"{place.session('/close')}/websocket")
        assert [await read(socket) for _ in range(3)] == ["o", 'c[3000,"Go away!"]', None]


@case("WebsocketHixie76.test_empty_frame")
async def test_an_empty_message_is_ignored() -> None:
    async with site() as place:
        socket = await place.websocket(f"{place.session()}/websocket")
        assert await read(socket) == "o"
        await socket.write_message("")
        await socket.write_message('["a"]')
        assert await read(socket) == 'a["a"]'


@case("WebsocketHixie76.test_reuseSessionId")
async def test_websockets_may_share_the_id_of_a_session() -> None:
    async with site() as place:
        path = f"{place.session()}/websocket"
        first, second = await place.websocket(path), await place.websocket(path)
        assert [await read(first), await read(second)] == ["o", "o"]
        await first.write_message('["a"]')
        await second.write_message('["b"]')
        assert [await read(first), await read(second)] == ['a["a"]', 'a["b"]']
        first.close()
        second.close()
        third = await place.websocket(path)
        assert await read(third) == "o"


async def broken(place: Site, text: str) -> None:
    socket = await place.websocket(f"{place.session()}/websocket")
    assert await read(socket) == "o"
    await socket.write_message(text)
    assert await read(socket) is None


@case("WebsocketHixie76.test_broken_json")
async def test_broken_json_ends_a_websocket() -> None:
    async with site() as place:
        await broken(place, '["a')


@case("WebsocketHybi10.test_transport")
async def test_a_websocket_ignores_what_is_empty_before_what_is_not() -> None:
    async with site() as place:
        socket = await place.websocket(f"{place.session()}/websocket")
        assert await read(socket) == "o"
        for text in ("", "", '["a"]', '"b"'):
            await socket.write_message(text)
        assert [await read(socket), await read(socket)] == ['a["a"]', 'a["b"]']


@case("WebsocketHybi10.test_close")
async def test_a_websocket_is_closed_with_the_code_that_was_said() -> None:
    async with site() as place:
        socket = await place.websocket(f"{place.session('/close')}/websocket")
        assert [await read(socket) for _ in range(3)] == ["o", 'c[3000,"Go away!"]', None]
        assert (socket.close_code, socket.close_reason) == (3000, "Go away!")


async def upgraded(place: Site, version: str, connection: str = "Upgrade") -> Answer:
    return await place.request(
        "GET",
        f"{place.session()}/websocket",
        headers={
            "Upgrade": "websocket",
            "Connection": connection,
            "Sec-WebSocket-Version": version,
            "Sec-WebSocket-Origin": "http://asd",
            "Sec-WebSocket-Key": KEY,
        },
    )


@case("WebsocketHybi10.test_headersSanity")
async def test_three_versions_of_websocket_are_spoken() -> None:
    async with site() as place:
        for version in ("7", "8", "13"):
            answer = await upgraded(place, version)
            assert answer.status == 101
            assert answer.headers["Sec-WebSocket-Accept"] == ACCEPT
            assert answer.headers["Connection"].lower() == "upgrade"
            assert answer.headers["Upgrade"].lower() == "websocket"
            assert "Content-Length" not in answer.headers


@case("WebsocketHybi10.test_broken_json")
async def test_what_is_no_array_of_strings_ends_a_websocket() -> None:
    async with site() as place:
        for text in ('["a', "{}", "5", '[["a"]]', "[" * 100_000):
            await broken(place, text)


@case("WebsocketHybi10.test_firefox_602_connection_header")
async def test_an_upgrade_may_stand_beside_keep_alive() -> None:
    async with site() as place:
        assert (await upgraded(place, "7", "keep-alive, Upgrade")).status == 101


# XHR.


@case("XhrPolling.test_options")
async def test_polling_and_sending_answer_a_preflight() -> None:
    async with site() as place:
        for name in ("xhr", "xhr_send"):
            await is_preflight(place, f"/echo/abc/abc/{name}", "OPTIONS, POST")


@case("XhrPolling.test_transport")
async def test_polling_carries_messages() -> None:
    async with site() as place:
        path = place.session()
        answer = await place.post(f"{path}/xhr")
        assert (answer.status, kind(answer)) == (200, "application/javascript;charset=UTF-8")
        is_readable(answer)
        is_not_cached(answer)
        assert await answer.body() == OPEN
        answer = await place.post(f"{path}/xhr_send", '["x"]')
        assert (answer.status, kind(answer)) == (204, "text/plain;charset=UTF-8")
        is_readable(answer)
        is_not_cached(answer)
        assert await place.poll(path) == b'a["x"]\n'


@case("XhrPolling.test_invalid_session")
async def test_sending_opens_no_session() -> None:
    async with site() as place:
        assert (await place.post(f"{place.session()}/xhr_send", '["x"]')).status == 404


@case("XhrPolling.test_invalid_json")
async def test_a_broken_body_is_refused_and_the_session_lives() -> None:
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        for body, text in (('["x', b"Broken JSON encoding."), ("", b"Payload expected.")):
            answer = await place.post(f"{path}/xhr_send", body)
            assert answer.status == 500
            assert text in await answer.body()
        await place.say(path, "a")
        assert await place.poll(path) == b'a["a"]\n'


@case("XhrPolling.test_content_types")
async def test_a_body_is_read_whatever_it_is_called() -> None:
    kinds = ["text/plain", "T", "application/json", "application/xml", "", "text/xml"]
    kinds += ["application/json; charset=utf-8", "text/xml; charset=utf-8"]
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        for name in kinds:
            await place.say(path, "a", Content_Type=name)
        found = b""
        while found.count(b'"a"') < len(kinds):
            found += await place.poll(path)


@case("XhrPolling.test_request_headers_cors")
async def test_headers_that_a_page_asks_for_are_allowed() -> None:
    async with site() as place:
        for asked, allowed in (("a, b, c", "a, b, c"), ("", None), (None, None)):
            headers = {} if asked is None else {"Access_Control_Request_Headers": asked}
            answer = await place.post(f"{place.session()}/xhr", **headers)
            is_readable(answer)
            assert answer.headers.get("Access-Control-Allow-Headers") == allowed


@case("XhrStreaming.test_options")
async def test_streaming_answers_a_preflight() -> None:
    async with site() as place:
        await is_preflight(place, "/echo/abc/abc/xhr_streaming", "OPTIONS, POST")


@case("XhrStreaming.test_transport")
async def test_streaming_carries_messages() -> None:
    async with site() as place:
        path = place.session()
        answer = await place.post(f"{path}/xhr_streaming")
        assert (answer.status, kind(answer)) == (200, "application/javascript;charset=UTF-8")
        is_readable(answer)
        is_not_cached(answer)
        await answer.take(PRELUDE + OPEN)
        await place.say(path, "x")
        await answer.take(b'a["x"]\n')


@case("XhrStreaming.test_response_limit")
async def test_a_streaming_response_ends_after_so_many_bytes() -> None:
    async with site() as place:
        path = place.session()
        answer = await place.streaming(path)
        await answer.take(OPEN)
        for _ in range(31):
            await place.say(path, "x" * 128)
            await answer.take(b'a["%s"]\n' % (b"x" * 128))
        await answer.ends()


# EventSource.


@case("EventSource.test_transport")
async def test_events_carry_messages() -> None:
    async with site() as place:
        path = place.session()
        answer = await place.get(f"{path}/eventsource")
        assert (answer.status, kind(answer)) == (200, "text/event-stream;charset=UTF-8")
        is_not_cached(answer)
        await answer.take(b"\r\ndata: o\r\n\r\n")
        await place.say(path, "x")
        await answer.take(b'data: a["x"]\r\n\r\n')
        await place.say(path, "  \0\n\r ")
        await answer.take(b'data: a["  \\u0000\\n\\r "]\r\n\r\n')


@case("EventSource.test_response_limit")
async def test_a_response_of_events_ends_after_so_many_bytes() -> None:
    async with site() as place:
        path = place.session()
        answer = await place.get(f"{path}/eventsource")
        await answer.take(b"\r\ndata: o\r\n\r\n")
        await place.say(path, "x" * 4096)
        await answer.take(b'data: a["%s"]\r\n\r\n' % (b"x" * 4096))
        await answer.ends()


# HtmlFile.


async def html_page(place: Site, path: str) -> Answer:
    """Begin a page and read its head, which is our own and does what the client needs."""
    answer = await place.get(f"{path}/htmlfile?c=%63allback")
    assert (answer.status, kind(answer)) == (200, "text/html;charset=UTF-8")
    head = (await answer.chunk()).decode()
    assert len(head) > 1024
    assert head.startswith("<!doctype html>")
    for needed in ("parent.callback", "c.start()", "c.message(frame)", "c.stop()"):
        assert needed in head
    await answer.take(b'<script>\np("o");\n</script>\r\n')
    return answer


@case("HtmlFile.test_transport")
async def test_a_page_carries_messages() -> None:
    async with site() as place:
        path = place.session()
        answer = await html_page(place, path)
        is_not_cached(answer)
        await place.say(path, "x")
        await answer.take(b'<script>\np("a[\\"x\\"]");\n</script>\r\n')


@case("HtmlFile.test_no_callback")
async def test_a_page_needs_the_name_of_a_function() -> None:
    async with site() as place:
        answer = await place.get("/echo/a/a/htmlfile")
        assert answer.status == 500
        assert b'"callback" parameter required' in await answer.body()


@case("HtmlFile.test_response_limit")
async def test_a_page_ends_after_so_many_bytes() -> None:
    async with site() as place:
        path = place.session()
        answer = await html_page(place, path)
        await place.say(path, "x" * 4096)
        await answer.take(b'<script>\np("a[\\"%s\\"]");\n</script>\r\n' % (b"x" * 4096))
        await answer.ends()


# JSONP.


async def script(place: Site, path: str) -> bytes:
    answer = await place.get(f"{path}/jsonp?c=x")
    assert answer.status == 200
    return await answer.body()


async def submit(place: Site, path: str, body: str, **headers: str) -> tuple[int, bytes]:
    answer = await place.request("POST", f"{path}/jsonp_send", body, headers or FORM)
    return answer.status, await answer.body()


@case("JsonPolling.test_transport")
async def test_scripts_carry_messages() -> None:
    async with site() as place:
        path = place.session()
        answer = await place.get(f"{path}/jsonp?c=%63allback")
        assert (answer.status, kind(answer)) == (200, "application/javascript;charset=UTF-8")
        is_not_cached(answer)
        assert await answer.body() == b'callback("o");\r\n'
        answer = await place.request("POST", f"{path}/jsonp_send", "d=%5B%22x%22%5D", FORM)
        assert (answer.status, kind(answer)) == (200, "text/plain;charset=UTF-8")
        is_not_cached(answer)
        assert await answer.body() == b"ok"
        assert await script(place, path) == b'x("a[\\"x\\"]");\r\n'


@case("JsonPolling.test_no_callback")
async def test_a_script_needs_the_name_of_a_function() -> None:
    async with site() as place:
        answer = await place.get("/echo/a/a/jsonp")
        assert answer.status == 500
        assert b'"callback" parameter required' in await answer.body()


@case("JsonPolling.test_invalid_json")
async def test_a_broken_form_is_refused_and_the_session_lives() -> None:
    async with site() as place:
        path = place.session()
        assert await script(place, path) == b'x("o");\r\n'
        status, text = await submit(place, path, "d=%5B%22x")
        assert (status, b"Broken JSON encoding." in text) == (500, True)
        for body in ("", "d=", "p=p"):
            status, text = await submit(place, path, body)
            assert (status, b"Payload expected." in text) == (500, True), body
        assert await submit(place, path, "d=%5B%22b%22%5D") == (200, b"ok")
        assert await script(place, path) == b'x("a[\\"b\\"]");\r\n'


@case("JsonPolling.test_content_types")
async def test_messages_come_in_a_form_or_as_they_are() -> None:
    async with site() as place:
        path = place.session()
        assert await script(place, path) == b'x("o");\r\n'
        assert await submit(place, path, "d=%5B%22abc%22%5D") == (200, b"ok")
        assert await script(place, path) == b'x("a[\\"abc\\"]");\r\n'
        kinds = {"Content-Type": "text/plain"}
        assert await submit(place, path, '["%61bc"]', **kinds) == (200, b"ok")
        assert await script(place, path) == b'x("a[\\"%61bc\\"]");\r\n'


@case("JsonPolling.test_close")
async def test_a_script_says_each_time_that_the_session_is_closed() -> None:
    async with site() as place:
        path = place.session("/close")
        away = b'x("c[3000,\\"Go away!\\"]");\r\n'
        assert [await script(place, path) for _ in range(3)] == [b'x("o");\r\n', away, away]


# Cookies.


def has_cookie(answer: Answer, value: str = "dummy") -> None:
    name, path, *_ = answer.headers["Set-Cookie"].split(";")
    assert (name.strip(), path.strip().lower()) == (f"JSESSIONID={value}", "path=/")


@case("JsessionidCookie.test_basic")
async def test_info_says_where_cookies_are_needed() -> None:
    async with site() as place:
        answer = await place.get("/cookie/info")
        assert "Set-Cookie" not in answer.headers
        assert json.loads(await answer.body())["cookie_needed"] is True


@case("JsessionidCookie.test_xhr")
async def test_a_cookie_is_set_and_kept() -> None:
    async with site() as place:
        has_cookie(await place.post(f"{place.session('/cookie')}/xhr"))
        path = f"{place.session('/cookie')}/xhr"
        has_cookie(await place.post(path, Cookie="JSESSIONID=abcdef"), "abcdef")


@case("JsessionidCookie.test_xhr_streaming")
async def test_streaming_sets_the_cookie() -> None:
    async with site() as place:
        has_cookie(await place.post(f"{place.session('/cookie')}/xhr_streaming"))


@case("JsessionidCookie.test_eventsource")
async def test_events_set_the_cookie() -> None:
    async with site() as place:
        has_cookie(await place.get(f"{place.session('/cookie')}/eventsource"))


@case("JsessionidCookie.test_htmlfile")
async def test_a_page_sets_the_cookie() -> None:
    async with site() as place:
        has_cookie(await place.get(f"{place.session('/cookie')}/htmlfile?c=callback"))


@case("JsessionidCookie.test_jsonp")
async def test_scripts_and_forms_set_the_cookie() -> None:
    async with site() as place:
        path = place.session("/cookie")
        has_cookie(await place.get(f"{path}/jsonp?c=callback"))
        has_cookie(await place.request("POST", f"{path}/jsonp_send", "d=%5B%22x%22%5D", FORM))


# A WebSocket without frames.


@case("RawWebsocket.test_transport")
async def test_a_raw_websocket_carries_texts_as_they_are() -> None:
    async with site() as place:
        socket = await place.websocket("/echo/websocket")
        await socket.write_message("Hello world!\uffff")
        assert await read(socket) == "Hello world!\uffff"


@case("RawWebsocket.test_close")
async def test_a_raw_websocket_is_closed_as_websockets_are() -> None:
    async with site() as place:
        socket = await place.websocket("/close/websocket")
        assert await read(socket) is None
        assert (socket.close_code, socket.close_reason) == (3000, "Go away!")


# Characters.

FRAGILE = [*range(0x200C, 0x2010), *range(0x2028, 0x2030), *range(0x2060, 0x2070)]
FRAGILE += range(0xFFF0, 0x10000)
MANGLED = [*range(0x20), *range(0x7F, 0xA0), 0xAD, *range(0x600, 0x605), *range(0x2000, 0x2100)]
MANGLED += [0x22, 0x5C, 0x70F, 0x17B4, 0xFEFF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, *FRAGILE]


@case("JSONEncoding.test_xhr_server_encodes")
async def test_characters_that_browsers_lose_are_sent_as_escapes() -> None:
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        text = "".join(map(chr, FRAGILE))
        await place.post(f"{path}/xhr_send", f'["{text}"]')
        escaped = "".join(f"\\u{code:04x}" for code in FRAGILE)
        assert await place.poll(path) == f'a["{escaped}"]\n'.encode()


@case("JSONEncoding.test_xhr_server_decodes")
async def test_characters_that_come_as_escapes_are_read() -> None:
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        escaped = "".join(f"\\u{code:04x}" for code in MANGLED)
        await place.post(f"{path}/xhr_send", f'["{escaped}"]')
        found = json.loads((await place.poll(path))[1:])
        assert found == json.loads(f'["{escaped}"]')


# Closing.


@case("HandlingClose.test_close_frame")
async def test_who_comes_after_the_end_is_told_the_end() -> None:
    async with site() as place:
        path = place.session("/close")
        first = await place.streaming(path)
        await first.take(OPEN + AWAY)
        second = await place.streaming(path)
        await second.take(AWAY)
        await first.ends()
        await second.ends()


@case("HandlingClose.test_close_request")
async def test_the_second_of_two_streams_is_turned_away_and_ended() -> None:
    async with site() as place:
        path = place.session()
        first = await place.streaming(path)
        await first.take(OPEN)
        second = await place.streaming(path)
        await second.take(BUSY)
        await second.ends()
        await place.say(path, "still here")
        await first.take(b'a["still here"]\n')


async def told_of_the_break(place: Site, again: Callable[[], Any]) -> None:
    """Ask until the break was noticed, which takes the server a moment."""
    async with asyncio.timeout(5):
        while (found := await again()) == BUSY:
            pass
    assert found in (OPEN, INTERRUPTED)


@case("HandlingClose.test_abort_xhr_streaming")
async def test_a_broken_stream_ends_the_session() -> None:
    async with site() as place:
        path = place.session()
        first = await place.streaming(path)
        await first.take(OPEN)
        second = await place.streaming(path)
        await second.take(BUSY)
        first.abort()

        async def again() -> bytes:
            answer = await place.streaming(path)
            found = await answer.chunk()
            answer.abort()
            return found

        await told_of_the_break(place, again)


@case("HandlingClose.test_abort_xhr_polling")
async def test_a_broken_poll_ends_the_session() -> None:
    async with site() as place:
        path = place.session()
        assert await place.poll(path) == OPEN
        line: Line = await place.line()
        line.send("POST", f"{path}/xhr")
        await until_busy(place, path)
        line.writer.transport.abort()
        await told_of_the_break(place, lambda: place.poll(path))


# HTTP.


@case("Http10.test_synchronous")
async def test_http_1_0_gets_a_length_or_a_close() -> None:
    async with site() as place:
        line = await place.line()
        for _ in range(2):
            answer = await line.request(
                "GET", "/echo", headers={"Connection": "Keep-Alive"}, version="1.0"
            )
            assert answer.status == 200
            assert "Transfer-Encoding" not in answer.headers
            assert answer.headers["Connection"].lower() == "keep-alive"
            await answer.take(GREETING)


@case("Http10.test_streaming")
async def test_http_1_0_gets_a_stream_that_ends_with_the_connection() -> None:
    async with site() as place:
        for method, name in (("POST", "xhr_streaming"), ("GET", "eventsource")):
            answer = await (await place.line()).request(
                method,
                f"{place.session('/close')}/{name}",
                headers={"Connection": "Keep-Alive"},
                version="1.0",
            )
            assert answer.status == 200
            assert not {"Transfer-Encoding", "Content-Length"} & set(answer.headers)
            if method == "POST":
                await answer.take(PRELUDE + OPEN + AWAY)
                await answer.ends()
            else:
                assert b"Go away!" in await answer.body()


@case("Http11.test_synchronous")
async def test_http_1_1_gets_a_length_and_another_answer() -> None:
    async with site() as place:
        line = await place.line()
        for _ in range(2):
            answer = await line.request("GET", "/echo", headers={"Connection": "Keep-Alive"})
            assert (answer.status, answer.version) == (200, "1.1")
            assert answer.headers.get("Connection", "keep-alive").lower() == "keep-alive"
            assert answer.headers["Content-Length"] == str(len(GREETING))
            await answer.take(GREETING)


@case("Http11.test_streaming")
async def test_http_1_1_gets_a_stream_in_chunks() -> None:
    async with site() as place:
        answer = await place.post(f"{place.session('/close')}/xhr_streaming")
        assert answer.headers["Transfer-Encoding"].lower() == "chunked"
        assert "Content-Length" not in answer.headers
        chunks = [await answer.chunk() for _ in range(4)]
        assert chunks == [PRELUDE, OPEN, AWAY, b""]


def test_every_case_but_the_dead_one_has_its_test() -> None:
    page = (ROOT / "docs" / "explanation" / "sockjs.rst").read_text("utf-8")
    rows = re.findall(r"^(\w+)\s+``(test_\w+)``\s+(yes|dead)", page, re.MULTILINE)
    said = {f"{group}.{name}": word for group, name, word in rows}
    assert len(said) == 68
    assert {name for name, word in said.items() if word == "yes"} == set(CASES)
    assert {name for name, word in said.items() if word == "dead"} == DEAD
    assert len(CASES) == 67
