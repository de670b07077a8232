"""HTTP requests and what is said after a handshake: good ones, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.fuzz.mutation import WORDS, Make, bytes_like, json_like
from tests.fuzz.parsers import ENVELOPES, FRAME_SEEDS, REQUESTS, SOCKJS, client_frame, random_frames
from tests.support.daemon import KEY

_LONG = "9" * 5_000
_HEADERS = [
    *(f"Content-Length: {one}" for one in ("0", "-1", "+5", "5, 5", "5,6", "0x5", "٣", _LONG, "")),
    *(f"Transfer-Encoding: {one}" for one in ("chunked", "gzip, chunked", "identity", "\tchunked")),
    *(f"Expect: {one}" for one in ("100-continue", "200-ok")),
    *(f"Content-Encoding: {one}" for one in ("gzip", "identity")),
    *(f"Idempotency-Key: {one}" for one in ("", "a", "a" * 129, "a b", "é", "a\tb", "\x7f")),
    *(
        f"Last-Event-ID: {one}"
        for one in ("", "/t", "a.1.b/t", "a.1.b", "é/", "a.1.b/" + "t" * 200)
    ),
    *(f"Origin: {one}" for one in ("null", "", "http://a\tb", "http://[", "http://localhost:\t80")),
    *(f"Access-Control-Request-Headers: {one}" for one in ("x-a, x-b", "a\tb", "é", "\x80")),
    *(f"Referer: {one}" for one in ("http://[", "http://a/b", "é", "//")),
    *(f"Cookie: JSESSIONID={one}" for one in ('"a', "a\tb", "é", "=" * 50, '"\\141"', "a;b;;=c")),
    *(f"X-Forwarded-For: {one}" for one in ("1.2.3.4", "é", ", , ,")),
    *(f"X-Backend-Key: {one}" for one in (KEY, "é", "", KEY + "\t")),
    *(f"Content-Type: {one}" for one in ("application/json", "text/plain", "é", ";;", "\x80/")),
    "Content-Type: application/x-www-form-urlencoded",
    "Content-Type: multipart/form-data; boundary=",
    'Content-Type: multipart/form-data; boundary="x"',
    *(
        "Connection: close",
        "Connection: Upgrade",
        "Connection: keep-alive, ,",
        "Host: é",
        "Host: a,b",
    ),
    *("Upgrade: h2c", "Upgrade: websocket", "Sec-WebSocket-Version: 8", "Sec-WebSocket-Key: é"),
    *(
        "If-None-Match: *",
        'If-None-Match: "x',
        "Range: bytes=0-",
        "X: " + "y" * 9_000,
        ": x",
        "x",
        "\tx",
    ),
    *("Accept-Language: é", "X-Http-Method-Override: GET", "a b: c", "Folded: a\r\n b", "Zero: \0"),
]
_METHODS = [b"GET", b"POST", b"OPTIONS", b"HEAD", b"PUT", b"get", b"PRI", b"CONNECT", b"G\tT", b""]
_PATHS = [
    b"/%ff",
    b"/%00",
    b"//",
    b"*",
    b"http://a/b",
    b"/..%2f..",
    b"/?a=%ff",
    b"/\xff",
    b"?",
    b"/a b",
]
_VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1 ", b"http/1.1", b""]


def request(method: str, path: str, headers: Sequence[str] = (), body: bytes = b"") -> bytes:
    """Return a request as it should be."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def requests_like(seeds: Sequence[bytes], bodies: Make) -> Make:
    """Return what makes requests out of good ones, by line, by header, by body, by byte."""
    as_bytes = bytes_like(seeds, [b"\r\n\r\n", b": ", b"chunked", b"0\r\n\r\n", b"HTTP/1.1"])

    def make(rng: Random) -> bytes:
        if rng.random() < 0.25:
            return as_bytes(rng)
        head, _, body = rng.choice(seeds).partition(b"\r\n\r\n")
        first, *headers = head.split(b"\r\n")
        parts = (*first.split(b" ", 2), b"", b"")[:3]
        for _ in range(rng.choice((1, 1, 2, 3))):
            parts, body = _changed(parts, headers, body, bodies, rng)
        if rng.random() < 0.7:
            headers = [one for one in headers if not one.startswith(b"Content-Length: ")]
            headers.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join((b" ".join(parts), *headers)) + b"\r\n\r\n" + body

    return make


def _changed(
    parts: Sequence[bytes], headers: list[bytes], body: bytes, bodies: Make, rng: Random
) -> tuple[Sequence[bytes], bytes]:
    method, path, version = parts
    match rng.randrange(9):
        case 0:
            method = rng.choice(_METHODS)
        case 1:
            at = rng.randint(0, len(path))
            path = path[:at] + rng.choice((*_PATHS, *WORDS)) + path[at:]
        case 2:
            version = rng.choice(_VERSIONS)
        case 3 if headers:
            del headers[rng.randrange(len(headers))]
        case 4 if headers:
            headers.append(rng.choice(headers))
        case 5 | 6:
            headers.append(rng.choice(_HEADERS).encode("utf-8"))
        case 7:
            headers.append(rng.choice(_HEADERS).encode("latin-1", "replace"))
        case _:
            body = bodies(rng)
    return (method, path, version), body


def frames_of(seeds: Sequence[bytes], texts: Make) -> Make:
    """Return what makes the bytes of a client after its handshake."""
    as_bytes = bytes_like(seeds)

    def make(rng: Random) -> bytes:
        kind = rng.random()
        if kind < 0.3:
            return as_bytes(rng)
        if kind < 0.5:
            return random_frames(rng)
        firsts = (0x81, 0x81, 0x82)
        return b"".join(client_frame(rng.choice(firsts), texts(rng), bytes(4)) for _ in range(3))

    return make


TOKEN, STREAM = b"@token".ljust(32, b"@"), b"@stream"
"""Stand for what a daemon makes; a token is as long."""

_TOKEN = TOKEN.decode()


def call(service: str, command: str, **params: Any) -> bytes:
    """Return the envelope of a call."""
    message = {"command": command, "params": params, "callId": 1}
    return json.dumps({"service": service, "message": message}).encode()


_ITEMS = [
    {"dealer": "AllTasks", "query": None},
    {"dealer": "CommentsByBlogEntry", "query": 7, "tag": "t"},
    {"dealer": "FilteredTasks", "query": ["and", ["==", "a", 1], ["in", "b", [1, "x"]]]},
]
_DELTAS = [
    {"type": "insert", "model": "Task", "data": {"id": 1, "a": 1, "b": "x"}, "version": 1},
    {"type": "update", "model": "Task", "oldData": {"id": 1}, "newData": {"id": 1}},
    {"type": "delete", "model": "Comment", "data": {"id": 5, "entryId": 7}},
]
POSTS = [
    call("datasync_backend", "authorizeSubscription", items=_ITEMS, identity={"u": 1}),
    call("datasync_backend", "publishDeltas", deltas=_DELTAS),
    call("datasync_backend", "publish", deltas=_DELTAS[:1]),
    call("datasync_backend", "requestRefetch", items=_ITEMS[:2]),
    call("datasync_backend", "requestRefetch", model="Task"),
    call("datasync_backend", "revokeSubscription", token=_TOKEN),
    call("datasync_backend", "notify", group="g", type="create", object={"id": 1}),
    call("pubsub_backend", "publish", channel={"c": [1]}, message=[None]),
]
CALLS = [
    *ENVELOPES,
    call("pubsub", "subscribe", channel="a"),
    call("pubsub", "unsubscribe", channel="a"),
    call("pubsub", "publish", channel="a", message={"m": 1}),
    call("datasync", "acquireSubscription", token="t", position="abc.1.ff"),
    call("datasync", "acquireSubscription", token=_TOKEN),
    call("datasync", "acquireSubscription", token=_TOKEN, position=None),
    call("datasync", "cancelSubscription", token=_TOKEN),
]
_JSON_HEADERS = ["Content-Type: application/json"]
_KEYED = [*_JSON_HEADERS, f"X-Backend-Key: {KEY}"]
BACKEND = [
    *(request("POST", "/backend", _KEYED, body) for body in POSTS[:3]),
    request("POST", "/backend", [*_KEYED, "Idempotency-Key: k1"], POSTS[1]),
    request("POST", "/backend", _JSON_HEADERS, POSTS[1]),
    request("POST", "/backend", [*_KEYED, f"Content-Length: {_LONG}"]),
    request("GET", "/health"),
    request("POST", "/backend", [*_KEYED, "Transfer-Encoding: chunked"])
    + b"5\r\nabcde\r\n0\r\n\r\n",
    request("POST", "/backend", _KEYED, POSTS[1]) * 2,
]
_SESSION = "/ws/sockjs/000/fuzz1"
_ORIGIN = ["Origin: http://localhost:8000"]
_UPGRADE = [
    *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
]
_EVENTS = b'{"token":"%b","position":null,"service":"datasync"}' % TOKEN
FRONTEND = [
    request("GET", "/ws", _UPGRADE),
    request("GET", "/ws/sockjs/websocket", [*_UPGRADE, "Sec-WebSocket-Version: 8"]),
    request("GET", f"{_SESSION}/websocket", _UPGRADE),
    request("GET", "/rohrpost/", [*_UPGRADE, *_ORIGIN]),
    request("GET", "/ws/sockjs/info", _ORIGIN),
    request("OPTIONS", "/ws/sockjs/info", [*_ORIGIN, "Access-Control-Request-Headers: x-a"]),
    request("GET", "/ws/sockjs/iframe.html", ["If-None-Match: *"]),
    request("GET", "/ws/sockjs"),
    request("POST", f"{_SESSION}/xhr", _ORIGIN),
    request("POST", f"{_SESSION}/xhr") * 2,
    request("POST", f"{_SESSION}/xhr_send", _ORIGIN, b'["{}"]'),
    request("POST", f"{_SESSION}/xhr_streaming", _ORIGIN),
    request("GET", f"{_SESSION}/eventsource", _ORIGIN),
    request("GET", f"{_SESSION}/htmlfile?c=a.b", _ORIGIN),
    request("GET", f"{_SESSION}/jsonp?c=a%2eb", _ORIGIN),
    request(
        "POST",
        f"{_SESSION}/jsonp_send",
        [*_ORIGIN, "Content-Type: application/x-www-form-urlencoded"],
        b"d=%5B%22a%22%5D",
    ),
    request("POST", "/events", [*_JSON_HEADERS, *_ORIGIN], _EVENTS),
    request("OPTIONS", "/events", _ORIGIN),
    request("GET", "/events?stream=datasync.abc", [*_ORIGIN, "Last-Event-ID: a.1.ff/token"]),
    request("GET", "/events?stream=@stream", _ORIGIN),
    request("GET", "/events?stream=datasync.abc", [*_ORIGIN, f"Last-Event-ID: /{_TOKEN}"]),
    request("GET", "/syncserver.js"),
    request("GET", "/health"),
]

POST_LIKE = json_like(POSTS)
CALL_LIKE = json_like(CALLS, [b'"callId":'])
POLLED = [json.dumps([one.decode()]).encode() for one in CALLS] + [b"[]", b'["","{}","\\ud800"]']
_texts_like = json_like(POLLED)


def polled_like(rng: Random) -> bytes:
    """Return an array of texts, or nearly, or one of a text that is nearly a call."""
    if rng.random() < 0.4:
        return _texts_like(rng)
    return json.dumps([CALL_LIKE(rng).decode("utf-8", "replace")]).encode()


BACKEND_LIKE = requests_like(BACKEND, POST_LIKE)
FRONTEND_LIKE = requests_like(FRONTEND, bytes_like([*SOCKJS, _EVENTS, b"d=%5B%22a%22%5D"]))
NATIVE_LIKE = frames_of(FRAME_SEEDS, CALL_LIKE)
ROHRPOST_LIKE = frames_of(FRAME_SEEDS, json_like(REQUESTS))
FRAMED_LIKE = frames_of(FRAME_SEEDS, bytes_like(SOCKJS))


def handshake(path: str) -> bytes:
    """Return what a browser says first."""
    return request("GET", path, _UPGRADE)
