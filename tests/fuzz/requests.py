"""HTTP requests and what is said after a handshake: good ones, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import grammar_wire as wire
from tests.fuzz.client_frames import FRAME_SEEDS, client_frame
from tests.fuzz.grammar import Inputs
from tests.fuzz.grammar_frames import streams
from tests.fuzz.grammar_http import HEADERS, LONG, pipelined
from tests.fuzz.mutation import WORDS, Mutate, bytes_like, json_like
from tests.fuzz.parsers import ENVELOPES, REQUESTS, SOCKJS
from tests.fuzz.target import Source
from tests.support.daemon import KEY

Bodies = Callable[[Random], bytes]

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


def requests_like(bodies: Bodies) -> Mutate:
    """Return what makes requests out of others, by line, by header, by body, by byte."""
    as_bytes = bytes_like(b"\r\n\r\n", b": ", b"chunked", b"0\r\n\r\n", b"HTTP/1.1")

    def mutate(rng: Random, pool: Sequence[bytes]) -> bytes:
        if rng.random() < 0.25:
            return as_bytes(rng, pool)
        head, _, body = rng.choice(pool).partition(b"\r\n\r\n")
        first, *headers = head.split(b"\r\n")
        parts = (*first.split(b" ", 2), b"", b"")[:3]
        for _ in range(rng.choice((1, 1, 2, 3))):
            parts, body = _changed(parts, headers, body, bodies, rng)
        if rng.random() < 0.7:
            headers = [one for one in headers if not one.startswith(b"Content-Length: ")]
            headers.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join((b" ".join(parts), *headers)) + b"\r\n\r\n" + body

    return mutate


def _changed(
    parts: Sequence[bytes],
    headers: list[bytes],
    body: bytes,
    bodies: Callable[[Random], bytes],
    rng: Random,
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
            headers.append(rng.choice(HEADERS).encode("utf-8"))
        case 7:
            headers.append(rng.choice(HEADERS).encode("latin-1", "replace"))
        case _:
            body = bodies(rng)
    return (method, path, version), body


STREAM = b"@stream"
"""Stands for the name of a stream of events."""

_TOKEN, TOKEN = wire.TOKEN, wire.TOKEN.encode()


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
KEYED = [*_JSON_HEADERS, f"X-Backend-Key: {KEY}"]
BACKEND = [
    *(request("POST", "/backend", KEYED, body) for body in POSTS[:3]),
    request("POST", "/backend", [*KEYED, "Idempotency-Key: k1"], POSTS[1]),
    request("POST", "/backend", _JSON_HEADERS, POSTS[1]),
    request("POST", "/backend", [*KEYED, f"Content-Length: {LONG}"]),
    request("GET", "/health"),
    request("POST", "/backend", [*KEYED, "Transfer-Encoding: chunked"])
    + b"5\r\nabcde\r\n0\r\n\r\n",
    request("POST", "/backend", KEYED, POSTS[1]) * 2,
]
_SESSION = "/ws/sockjs/000/fuzz1"
_ORIGIN = ["Origin: http://localhost:8000"]
_FORM = "Content-Type: application/x-www-form-urlencoded"
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
        [*_ORIGIN, _FORM],
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

_POSTS_LIKE, _CALLS_LIKE, _TEXTS_LIKE = json_like(), json_like(b'"callId":'), json_like()
POLLED = [json.dumps([one.decode()]).encode() for one in CALLS] + [b"[]", b'["","{}","\\ud800"]']


def polled_like(rng: Random, pool: Sequence[bytes]) -> bytes:
    """Return an array of texts, or nearly, or one of a text that is nearly a call."""
    if rng.random() < 0.4:
        return _TEXTS_LIKE(rng, pool)
    return json.dumps([_CALLS_LIKE(rng, CALLS).decode("utf-8", "replace")]).encode()


def frames_of(texts: Mutate, seeds: Sequence[bytes]) -> Mutate:
    """Return what makes the bytes of a client after its handshake; some are whole frames."""
    as_bytes = bytes_like()

    def mutate(rng: Random, pool: Sequence[bytes]) -> bytes:
        if rng.random() < 0.5:
            return as_bytes(rng, pool)
        firsts = (0x81, 0x81, 0x82)
        return b"".join(
            client_frame(rng.choice(firsts), texts(rng, seeds), bytes(4)) for _ in range(3)
        )

    return mutate


def _source(name: str, seeds: Sequence[bytes], grammar: Inputs, mutate: Mutate) -> Source:
    return Source(name, seeds, grammar, mutate, share=_SHARE)


def _framed(name: str, contents: Inputs, texts: Mutate, seeds: Sequence[bytes]) -> Source:
    return _source(name, FRAME_SEEDS, streams(contents), frames_of(texts, seeds))


_SHARE = 12
_FORMS = [_EVENTS, b"d=%5B%22a%22%5D"]
_BACKEND_PLACES = [
    *[("POST", "/backend", KEYED)] * 4,
    ("POST", "/backend", [*KEYED, "Idempotency-Key: k1"]),
    ("POST", "/backend", _JSON_HEADERS),
    *[("GET", path, ()) for path in ("/live", "/ready", "/metrics", "/nowhere")],
]
_FRONTEND_PLACES = [
    *[("GET", path, _UPGRADE) for path in ("/ws", "/rohrpost/", f"{_SESSION}/websocket")],
    *[("POST", f"{_SESSION}/{end}", _ORIGIN) for end in ("xhr", "xhr_send", "xhr_streaming")],
    *[
        ("GET", f"{_SESSION}/{end}", _ORIGIN)
        for end in ("jsonp?c=a", "eventsource", "htmlfile?c=a")
    ],
    *[("POST", f"{_SESSION}/jsonp_send", [*_ORIGIN, one]) for one in (_FORM, "Content-Type: x/y")],
    *[("GET", f"/ws/sockjs{end}", _ORIGIN) for end in ("", "/info", "/iframe.html", "/a/b/c")],
    ("OPTIONS", "/ws/sockjs/info", _ORIGIN),
    ("POST", "/events", [*_JSON_HEADERS, *_ORIGIN]),
    ("GET", "/events?stream=@stream", _ORIGIN),
    ("GET", "/syncserver.js", ()),
]
_FRONTEND_BODIES = st.one_of(wire.BODIES, st.sampled_from(_FORMS))
SOURCES = {
    one.name: one
    for one in (
        _source(
            "backend",
            BACKEND,
            pipelined(_BACKEND_PLACES, wire.POSTS),
            requests_like(lambda rng: _POSTS_LIKE(rng, POSTS)),
        ),
        _source(
            "frontend",
            FRONTEND,
            pipelined(_FRONTEND_PLACES, _FRONTEND_BODIES),
            requests_like(lambda rng: bytes_like()(rng, [*SOCKJS, *_FORMS])),
        ),
        _framed("websocket", wire.CALLS, _CALLS_LIKE, CALLS),
        _framed("rohrpost-ws", wire.REQUESTS, json_like(), REQUESTS),
        _framed("sockjs-ws", wire.BODIES, bytes_like(), SOCKJS),
        _source("calls", CALLS, wire.CALLS, _CALLS_LIKE),
        _source("posts", POSTS, wire.POSTS, _POSTS_LIKE),
        _source("polls", POLLED, wire.POLLED, polled_like),
    )
}


def handshake(path: str) -> bytes:
    """Return what a browser says first."""
    return request("GET", path, _UPGRADE)
