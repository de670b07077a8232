"""HTTP that is malformed, oversized, or asks for what is not there."""

from __future__ import annotations

import json
import zlib

import pytest

from tests.support.attacked import UPGRADE, Target, key_header, nonce

LINE = b"GET /syncserver.js HTTP/1.1\r\n"
POST = f"POST /backend HTTP/1.1\r\n{key_header()}".encode()


def status_of(target: Target, request: bytes, door: str = "frontend") -> int | None:
    with target.ask(request, door) as wire:
        return wire.status()


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"Content-Length: +2\r\n\r\n{}",
        b"Content-Length: 0_2\r\n\r\n{}",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: 0x2\r\n\r\n{}",
        b"Content-Length: 99999999999999999999999\r\n\r\n",
        b"Content-Length: \xb2\r\n\r\n{}",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: identity\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}X\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_a_body_whose_length_is_no_length_is_refused(target: Target, lines: bytes) -> None:
    assert status_of(target, POST + lines, "backend") in (None, 400, 413)


@pytest.mark.parametrize(
    "lines",
    [
        b"\r\n",
        b"Host: a\r\nHost: b\r\n\r\n",
        b"Host : a\r\n\r\n",
        b"Host: a\r\nX: a\x00b\r\n\r\n",
        b"Host: a\r\nX\x00: b\r\n\r\n",
        b"Host: a\r\n: b\r\n\r\n",
        b"Host: a\r\nno colon\r\n\r\n",
        b" Host: a\r\n\r\n",
        b"Host: a\r\nX: a\rb\r\n\r\n",
        b"Host: a b\r\n\r\n",
    ],
)
def test_a_head_that_is_none_is_refused(target: Target, lines: bytes) -> None:
    assert status_of(target, LINE + lines) in (None, 400)


@pytest.mark.parametrize(
    "line",
    [
        b"GET\r\n",
        b"GET /ws\r\n",
        b"GET /ws HTTP/9.9\r\n",
        b"GET /ws HTTP/1.1 x\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n",
        b"\x00" * 1000 + b"\r\n",
    ],
)
def test_a_first_line_that_is_none_is_refused(target: Target, line: bytes) -> None:
    assert status_of(target, line + b"Host: a\r\n\r\n") in (None, 400, 404, 405)


@pytest.mark.parametrize(
    "request_",
    [
        LINE + b"Host: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        LINE + b"Host: a\r\n" + b"X: a\r\n" * 5_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"A" * 100_000 + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_a_head_that_is_too_long_is_refused(target: Target, request_: bytes) -> None:
    assert status_of(target, request_) in (None, 400, 414, 431)


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "//etc/passwd",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/syncserver.js/../../config.py",
        "/syncserver.js%00",
        "/syncserver.js;x",
        "/syncserver_js",
        "/" + "a" * 8_000,
        "http://other.example/syncserver.js/x",
        "/?" + "&".join(f"a{number}=1" for number in range(1_200)),
    ],
)
def test_a_path_that_leads_elsewhere_is_not_found(target: Target, path: str) -> None:
    assert status_of(target, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()) in (400, 404)


@pytest.mark.parametrize(
    "path", ["/backend", "/live", "/ready", "/metrics", "/admin", "/api", "/config", "/debug", "/"]
)
def test_what_is_not_for_browsers_is_not_at_their_door(target: Target, path: str) -> None:
    for method in ("GET", "POST"):
        request = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
        assert status_of(target, request.encode()) == 404


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "get", "FOO", "OPTIONS"])
@pytest.mark.parametrize(
    ("door", "path"), [("backend", "/backend"), ("backend", "/live"), ("frontend", "/ws")]
)
def test_a_method_that_nobody_has_is_refused(
    target: Target, door: str, path: str, method: str
) -> None:
    request = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode()
    assert status_of(target, request, door) in (400, 405)


def test_a_form_of_a_page_is_no_call(target: Target) -> None:
    """What a page of any site may post without being asked before."""
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ):
        body = json.dumps({"service": "datasync_backend", "message": {}})
        assert target.request(body, **{"Content-Type": kind})[0] == 415
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="a%d"\r\n\r\n1\r\n' % n for n in range(1_000)
    )
    many = {"Content-Type": "multipart/form-data; boundary=x"}
    assert target.request(parts + b"--x--\r\n", **many)[0] == 415


def test_what_is_compressed_is_not_unpacked(target: Target) -> None:
    bomb = zlib.compress(b"[" * 50_000_000, 9)
    assert len(bomb) < 60_000
    assert target.request(bomb, **{"Content-Encoding": "deflate"})[0] == 415


@pytest.mark.parametrize("path", ["/events", "/ws/sockjs/info", "/ws/sockjs/0/a/xhr"])
def test_a_page_of_another_site_gets_no_leave_to_read(target: Target, path: str) -> None:
    for method in ("OPTIONS", "POST", "GET"):
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\n"
            "Access-Control-Request-Method: POST\r\nContent-Length: 0\r\n\r\n"
        )
        with target.ask(request.encode()) as wire:
            head = wire.head().lower()
        assert b"access-control-allow-origin" not in head
        assert b"access-control-allow-credentials" not in head


@pytest.mark.parametrize("path", ["/ws/sockjs/info", "/ws/sockjs/0/a/xhr", "/events?stream=a.b"])
def test_an_answer_is_kept_by_no_cache(target: Target, path: str) -> None:
    method = "POST" if path.endswith("xhr") else "GET"
    request = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    with target.ask(request.encode()) as wire:
        assert b"no-store" in wire.head()


def test_a_page_that_may_ask_may_read_what_is_refused(target: Target) -> None:
    head = "GET /events?stream=a.b HTTP/1.1\r\nHost: a\r\nOrigin: http://localhost:1\r\n\r\n"
    with target.ask(head.encode()) as wire:
        said = wire.head()
    assert said.startswith(b"HTTP/1.1 404")
    assert b"Access-Control-Allow-Origin: http://localhost:1\r\n" in said


# The handshake.


@pytest.mark.parametrize(
    "lines",
    [
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=7",
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=abc",
        "Sec-WebSocket-Extensions: permessage-deflate; permessage-deflate; a; a",
        "Sec-WebSocket-Extensions: " + "," * 8_000,
        "Sec-WebSocket-Extensions: permessage-deflate" + '; a="' * 1_000,
        "Sec-WebSocket-Extensions: permessage-deflate" + ";" * 8_000,
        "Sec-WebSocket-Protocol: " + ",".join(f"p{number}" for number in range(2_000)),
        "Sec-WebSocket-Protocol: " + "a" + " " * 8_000 + "b",
        "Sec-WebSocket-Protocol: \u00e9, ,, \x7f",
        "Cookie: " + "a=b; " * 1_500,
        "Connection: " + "keep-alive, " * 600 + "Upgrade",
    ],
)
def test_what_a_handshake_offers_besides_is_left_alone(target: Target, lines: str) -> None:
    head = UPGRADE.format(path="/ws")
    if lines.startswith("Connection"):
        head = head.replace("Connection: Upgrade\r\n", "")
    request = head[:-2] + lines + "\r\n\r\n"
    with target.ask(request.encode("latin-1")) as wire:
        said = wire.head().lower()
    assert said.startswith((b"http/1.1 101", b"http/1.1 400")) or not said
    assert b"sec-websocket-extensions" not in said
    assert b"sec-websocket-protocol" not in said


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("Upgrade: websocket\r\n", "", 400),
        ("Upgrade: websocket", "Upgrade: h2c", 400),
        ("Connection: Upgrade", "Connection: close", 400),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8", 426),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13, 8", 426),
        ("Sec-WebSocket-Version: 13\r\n", "", 426),
        ("AAAAAAAAAAAAAAAAAAAAAA==", "AAAA", 400),
        ("AAAAAAAAAAAAAAAAAAAAAA==", "A" * 24, 400),
        ("AAAAAAAAAAAAAAAAAAAAAA==", "", 400),
        ("AAAAAAAAAAAAAAAAAAAAAA==", "\u00e9" * 24, 400),
        ("GET", "POST", 405),
        ("HTTP/1.1", "HTTP/1.0", 400),
        ("Host: localhost", "Host: localhost\r\nOrigin: https://evil.example", 403),
        ("Host: localhost", "Host: localhost\r\nOrigin: null", 403),
        ("Host: localhost", "Host: localhost\r\nOrigin: http://localhost.evil.example", 403),
        ("Host: localhost", "Host: localhost\r\nOrigin: http://a\r\nOrigin: http://localhost", 403),
    ],
)
def test_a_handshake_that_is_none_is_refused(
    target: Target, old: str, new: str, status: int
) -> None:
    request = UPGRADE.format(path="/ws").replace(old, new)
    assert request != UPGRADE.format(path="/ws")
    assert status_of(target, request.encode("latin-1")) == status


def test_control_characters_in_a_head_do_not_reach_the_log(target: Target) -> None:
    for text in (b"\x1b[31mred", b"a\tERROR fake", b"\xe2\x80\xa8ERROR fake", b"\xff"):
        request = UPGRADE.format(path="/ws").encode()[:-2]
        assert status_of(target, request + b"Origin: http://" + text + b"\r\n\r\n") in (400, 403)
        status_of(target, b"GET /" + text + b" HTTP/1.1\r\nHost: " + text + b"\r\n\r\n")
    target.canary.catch_up()
    log = target.log.read_bytes()
    assert b"\x1b" not in log
    assert b"\n" + b"ERROR" not in log


def test_upgrades_are_answered_in_any_number(target: Target) -> None:
    for _ in range(50):
        request = UPGRADE.format(path="/ws").replace("A" * 22 + "==", nonce())
        assert status_of(target, request.encode()) == 101


def test_the_same_header_twice_counts_as_none(target: Target) -> None:
    body = json.dumps({"service": "x", "message": None}).encode()
    twice = POST + key_header().encode().partition(b"\r\n")[2]
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    assert status_of(target, twice + length + body, "backend") == 401
