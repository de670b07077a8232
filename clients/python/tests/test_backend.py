"""The connector against a real HTTP server, which answers what each test tells it to."""

from __future__ import annotations

import datetime
import json
import logging
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import requests
from syncserver_client import (
    Backend,
    BackendError,
    BadRequest,
    CallError,
    ConnectionFailed,
    EncodingError,
    Forbidden,
    HTTPError,
    IdempotencyConflict,
    InvalidResponse,
    Timeout,
    TooLarge,
    TooManyRequests,
    TransportError,
    Unauthorized,
    Unavailable,
    WrongAddress,
)

KEY = "k" * 32


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer: tuple[str, int]

    @property
    def message(self) -> Any:
        return json.loads(self.body)["message"]


Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Daemon:
    """A server that gives the answers of a list, and afterwards the last of them again."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.requests.append(
            Request(
                handler.command,
                handler.path,
                dict(handler.headers.items()),
                body,
                handler.client_address,
            )
        )
        number = min(len(self.requests), len(self.answers)) - 1
        self.answers[number](handler)


def text(status: int, body: str, **headers: str) -> Answer:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body.encode())))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return send


def enveloped(status: int, message: object, **headers: str) -> Answer:
    return text(status, json.dumps({"service": "s", "message": message}), **headers)


def data(value: object) -> Answer:
    return enveloped(200, {"type": "response", "data": value})


def error(status: int, code: str, **extra: Any) -> Answer:
    return enveloped(status, {"type": "error", "message": "No.", "code": code, **extra})


def status(number: int, **headers: str) -> Answer:
    return text(number, "<html>", **headers)


def cut(handler: BaseHTTPRequestHandler) -> None:
    """Reset the connection without an answer."""
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True


def cut_in_the_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            daemon.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the peer hung up: the tests of time-outs want that

    server = Server(("127.0.0.1", 0), Handler)
    daemon.url = f"http://127.0.0.1:{server.server_address[1]}/backend"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield daemon
    finally:
        daemon.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def backend(daemon: Daemon, slept: list[float]) -> Iterator[Backend]:
    with Backend(daemon.url, KEY, sleep=slept.append) as backend:
        yield backend


def test_a_call_is_an_envelope_with_the_key_in_a_header(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [data(3)]
    assert backend.call("calc", "sum", a=1, b=2) == 3
    (request,) = daemon.requests
    assert (request.method, request.path) == ("POST", "/backend")
    assert json.loads(request.body) == {
        "service": "calc",
        "message": {"command": "sum", "params": {"a": 1, "b": 2}},
    }
    assert request.headers["X-Backend-Key"] == KEY
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Idempotency-Key"]


def test_params_may_have_any_name(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [data(None)]
    backend.call("s", "c", service=1, command=2, self=3)
    assert daemon.requests[0].message["params"] == {"service": 1, "command": 2, "self": 3}


@pytest.mark.parametrize(
    ("call", "service", "command", "params"),
    [
        (
            lambda b: b.publish(iter([{"type": "insert", "model": "M", "data": {}}])),
            "datasync_backend",
            "publishDeltas",
            {"deltas": [{"type": "insert", "model": "M", "data": {}}]},
        ),
        (
            lambda b: b.request_refetch(model="M"),
            "datasync_backend",
            "requestRefetch",
            {"model": "M"},
        ),
        (
            lambda b: b.request_refetch([{"dealer": "D", "query": 1}], service="other_backend"),
            "other_backend",
            "requestRefetch",
            {"items": [{"dealer": "D", "query": 1}]},
        ),
        (
            lambda b: b.notify("a-1", "update", {"id": 1}),
            "datasync_backend",
            "notify",
            {"group": "a-1", "type": "update", "object": {"id": 1}},
        ),
        (
            lambda b: b.publish_message(["room", 1], {"text": "é"}),
            "pubsub_backend",
            "publish",
            {"channel": ["room", 1], "message": {"text": "é"}},
        ),
    ],
)
def test_each_method_sends_its_command(
    daemon: Daemon,
    backend: Backend,
    call: Callable[[Backend], None],
    service: str,
    command: str,
    params: object,
) -> None:
    daemon.answers = [data(None)]
    call(backend)
    (request,) = daemon.requests
    assert json.loads(request.body)["service"] == service
    assert request.message == {"command": command, "params": params}


def test_authorize_answers_the_token(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [data("t" * 32)]
    item = {"dealer": "D", "query": None, "tag": "all"}
    assert backend.authorize([item]) == "t" * 32
    backend.authorize([item], identity=None)
    backend.authorize([item], identity={"user": 7})
    assert [request.message["params"] for request in daemon.requests] == [
        {"items": [item]},
        {"items": [item], "identity": None},
        {"items": [item], "identity": {"user": 7}},
    ]


def test_authorize_refuses_what_is_no_token(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [data(None)]
    with pytest.raises(InvalidResponse, match="datasync_backend"):
        backend.authorize([])


def test_revoke_says_whether_there_was_one(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [data(True), data(False)]
    assert backend.revoke("t") is True
    assert backend.revoke("t") is False
    assert daemon.requests[0].message == {
        "command": "revokeSubscription",
        "params": {"token": "t"},
    }


@pytest.mark.parametrize("wrong", [{}, {"items": [], "model": "M"}])
def test_request_refetch_takes_items_or_a_model(backend: Backend, wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="either items or model"):
        backend.request_refetch(**wrong)


def test_connections_are_kept(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [data(None), error(200, "refused"), status(400), data(None)]
    backend.call("s", "c")
    for _ in range(2):
        with pytest.raises(BackendError):
            backend.call("s", "c")
    backend.call("s", "c")
    assert len(daemon.requests) == 4
    assert len({request.peer for request in daemon.requests}) == 1


def test_a_given_session_is_used_and_left_open_and_as_it_was(daemon: Daemon) -> None:
    daemon.answers = [data(None)]

    class Session(requests.Session):
        closed = False

        def close(self) -> None:
            self.closed = True
            super().close()

    with Session() as session:
        session.headers["X-Trace"] = "7"
        headers = dict(session.headers)
        with Backend(daemon.url, KEY, session=session) as backend:
            backend.call("s", "c")
        assert not session.closed
        assert dict(session.headers) == headers
    assert daemon.requests[0].headers["X-Trace"] == "7"


@pytest.mark.parametrize("failure", [cut, cut_in_the_body, *map(status, (429, 502, 503, 504))])
def test_what_may_pass_is_tried_again_with_the_same_key(
    daemon: Daemon, backend: Backend, slept: list[float], failure: Answer
) -> None:
    daemon.answers = [failure, failure, failure, data("done")]
    assert backend.call("s", "c") == "done"
    first, *again = daemon.requests
    assert len(again) == 3
    for request in again:
        assert request.headers["Idempotency-Key"] == first.headers["Idempotency-Key"]
        assert request.body == first.body
    assert all(0 <= wait <= bound for wait, bound in zip(slept, (0.1, 0.2, 0.4), strict=True))


def test_each_call_has_a_key_of_its_own(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [data(None)]
    backend.call("s", "c")
    backend.call("s", "c")
    assert len({request.headers["Idempotency-Key"] for request in daemon.requests}) == 2


def test_a_publish_may_bring_its_own_key(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [status(503), data(None)]
    backend.publish([], idempotency_key="outbox-17")
    assert [r.headers["Idempotency-Key"] for r in daemon.requests] == ["outbox-17", "outbox-17"]


def test_without_retries_only_a_key_that_was_given_is_sent(daemon: Daemon) -> None:
    daemon.answers = [data(None)]
    with Backend(daemon.url, KEY, retries=0) as backend:
        backend.call("s", "c")
        backend.publish([])
        backend.publish([], idempotency_key="outbox-17")
    sent = [request.headers.get("Idempotency-Key") for request in daemon.requests]
    assert sent == [None, None, "outbox-17"]


@pytest.mark.parametrize("key", ["", "two words", "x" * 129, "ключ", "a\nb"])
def test_a_key_that_fits_no_header_is_refused(backend: Backend, key: str) -> None:
    with pytest.raises(ValueError, match="idempotency_key"):
        backend.publish([], idempotency_key=key)


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (cut, ConnectionFailed, None),
        (cut_in_the_body, ConnectionFailed, None),
        (status(502), Unavailable, None),
        (error(503, "unavailable"), Unavailable, "unavailable"),
        (error(504, "timeout"), Unavailable, "timeout"),
        (error(429, "rate"), TooManyRequests, "rate"),
    ],
)
def test_when_the_retries_are_used_up_the_last_failure_is_raised(
    daemon: Daemon, backend: Backend, answer: Answer, kind: type[BackendError], code: str | None
) -> None:
    daemon.answers = [answer]
    with pytest.raises(kind) as caught:
        backend.call("s", "c")
    assert len(daemon.requests) == 4
    assert getattr(caught.value, "code", None) == code
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "kind", "number"),
    [
        (error(400, "invalid_json"), BadRequest, 400),
        (status(401), Unauthorized, 401),
        (status(403), Forbidden, 403),
        (status(404), WrongAddress, 404),
        (status(405), WrongAddress, 405),
        (error(409, "idempotency_conflict"), IdempotencyConflict, 409),
        (status(413), TooLarge, 413),
        (error(429, "too_many_wrong_keys"), Unauthorized, 429),
        (status(415), HTTPError, 415),
        (status(500), HTTPError, 500),
        (status(204), HTTPError, 204),
    ],
)
def test_a_refusal_is_not_tried_again(
    daemon: Daemon,
    backend: Backend,
    slept: list[float],
    answer: Answer,
    kind: type[HTTPError],
    number: int,
) -> None:
    daemon.answers = [answer]
    with pytest.raises(HTTPError, match=str(number)) as caught:
        backend.call("s", "c")
    assert type(caught.value) is kind
    assert caught.value.status == number
    assert len(daemon.requests) == 1
    assert slept == []


def test_a_refusal_says_what_the_daemon_said(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [error(400, "duplicate_key")]
    with pytest.raises(BadRequest, match="400 No") as caught:
        backend.call("s", "c")
    assert (caught.value.message, caught.value.code) == ("No.", "duplicate_key")


def test_a_url_that_is_no_backend_s_is_told_what_one_looks_like(
    daemon: Daemon, backend: Backend
) -> None:
    daemon.answers = [status(404)]
    with pytest.raises(WrongAddress, match=r"404 .*http://HOST:5801/backend"):
        backend.publish([])


def test_an_error_of_the_service_names_code_index_and_field(
    daemon: Daemon, backend: Backend
) -> None:
    daemon.answers = [error(200, "invalid_delta", index=7, field="data.id", reason="why")]
    with pytest.raises(CallError, match=r"No\. \[invalid_delta, item 7, field data.id\]") as caught:
        backend.publish([])
    one = caught.value
    assert (one.code, one.message, one.index, one.field, one.reason) == (
        "invalid_delta",
        "No.",
        7,
        "data.id",
        "why",
    )
    assert len(daemon.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        text(200, "<html>welcome"),
        text(200, ""),
        text(200, "[]"),
        text(200, '{"message": 1}'),
        enveloped(200, {"type": "notification"}),
    ],
)
def test_a_body_that_is_no_answer_is_said_to_be_none(
    daemon: Daemon, backend: Backend, answer: Answer
) -> None:
    daemon.answers = [answer]
    with pytest.raises(InvalidResponse, match="not an answer of syncserver"):
        backend.call("s", "c")
    assert len(daemon.requests) == 1


def test_a_redirect_is_not_followed_with_the_key(daemon: Daemon, backend: Backend) -> None:
    daemon.answers = [status(302, Location="/elsewhere"), data(None)]
    with pytest.raises(HTTPError, match="302"):
        backend.call("s", "c")
    assert len(daemon.requests) == 1


def test_a_silent_server_is_a_timeout(daemon: Daemon, slept: list[float]) -> None:
    daemon.answers = [lambda handler: daemon.released.wait() and None]
    with (
        Backend(daemon.url, KEY, timeout=(3, 0.05), retries=1, sleep=slept.append) as backend,
        pytest.raises(Timeout),
    ):
        backend.call("s", "c")
    assert len(slept) == 1
    assert len({request.headers["Idempotency-Key"] for request in daemon.requests}) == 1


def test_nobody_there_is_a_failed_connection(slept: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    url = f"http://127.0.0.1:{port}/backend"
    with (
        Backend(url, KEY, retries=2, sleep=slept.append) as backend,
        pytest.raises(ConnectionFailed, match=str(port)) as caught,
    ):
        backend.call("s", "c")
    assert isinstance(caught.value, TransportError)
    assert len(slept) == 2


def test_what_no_retry_can_mend_is_not_retried(slept: list[float]) -> None:
    with (
        Backend("http://", KEY, sleep=slept.append) as backend,
        pytest.raises(TransportError),
    ):
        backend.call("s", "c")
    assert slept == []


def test_without_retries_there_is_one_try(daemon: Daemon) -> None:
    daemon.answers = [status(503), data(None)]
    with Backend(daemon.url, KEY, retries=0) as backend, pytest.raises(Unavailable):
        backend.call("s", "c")
    assert len(daemon.requests) == 1


def http_date(seconds: float) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return format_datetime(moment, usegmt=True)


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        (lambda: "2", 2, 2.1),
        (lambda: "0", 0, 0.1),
        (lambda: "86400", 30, 30.1),
        (lambda: http_date(20), 15, 20.1),
        (lambda: http_date(-60), 0, 0.1),
        (lambda: http_date(7200), 30, 30.1),
        (lambda: "soon", 0, 0.1),
    ],
    ids=["seconds", "none", "a-day", "date", "date-past", "date-far", "no-date"],
)
def test_retry_after_is_waited_for_within_reason(
    daemon: Daemon,
    backend: Backend,
    slept: list[float],
    header: Callable[[], str],
    low: float,
    high: float,
) -> None:
    daemon.answers = [status(503, Retry_After=header()), data(None)]
    backend.call("s", "c")
    (wait,) = slept
    assert low <= wait <= high


@pytest.mark.parametrize(
    ("url", "key"),
    [("127.0.0.1:5801", KEY), ("ftp://host/", KEY)],
)
def test_a_url_of_another_kind_is_refused(url: str, key: str) -> None:
    with pytest.raises(ValueError, match="http"):
        Backend(url, key)


@pytest.mark.parametrize("key", ["", "sec ret", "sec\nret", "ключ"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        Backend("http://host/", key)
    assert not key or key not in str(caught.value)


def test_the_repr_hides_the_key() -> None:
    with Backend("http://host/backend", KEY) as backend:
        assert repr(backend) == "Backend('http://host/backend', ...)"


def test_what_is_no_json_is_not_sent(daemon: Daemon, backend: Backend) -> None:
    with pytest.raises(EncodingError, match=r"deltas\[0\]\.data\.price: nan"):
        backend.publish([{"type": "insert", "model": "M", "data": {"price": float("nan")}}])
    assert daemon.requests == []


def test_an_encoder_of_ones_own_is_asked(daemon: Daemon) -> None:
    daemon.answers = [data(None)]
    with Backend(daemon.url, KEY, json_encoder=sorted) as backend:
        backend.call("s", "c", ids={3, 1})
    assert daemon.requests[0].message["params"] == {"ids": [1, 3]}


def test_the_log_has_calls_and_times_and_neither_key_nor_token(
    daemon: Daemon, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.answers = [data("t0ken"), status(503), data(None)]
    with caplog.at_level(logging.DEBUG, "syncserver_client"):
        backend.authorize([{"dealer": "D", "query": "x" * 1000}])
        backend.revoke("t0ken")
    lines = [r.getMessage() for r in caplog.records if r.name == "syncserver_client"]
    assert lines[0].startswith('datasync_backend.authorizeSubscription({"items":[{"dealer":"D"')
    assert len(lines[0]) < 300
    assert "datasync_backend.authorizeSubscription: " in lines[1]
    assert lines[1].endswith(" ms")
    assert any("once more in" in line for line in lines)
    assert not any(KEY in line or "t0ken" in line for line in lines)
    assert {
        record.levelname for record in caplog.records if record.name == "syncserver_client"
    } == {"DEBUG"}


def test_the_examples_of_the_readme_run(daemon: Daemon) -> None:
    readme = Path(__file__).parents[1] / "README.rst"
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", readme.read_text("utf-8"))
    examples = [dedent(block) for block in blocks if "import" in block]
    daemon.answers = [data(None), data("t" * 32)]
    names: dict[str, Any] = {"key": KEY, "url": daemon.url}
    for example in examples:
        exec(example.replace("http://127.0.0.1:5801/backend", daemon.url), names)
    names["backend"].close()
    assert [request.message["command"] for request in daemon.requests] == [
        "publishDeltas",
        "authorizeSubscription",
    ]
    assert len(examples) == 2
