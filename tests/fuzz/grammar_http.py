"""The grammar of HTTP requests: lines, headers, bodies in one or in pieces, in a row."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.fuzz.grammar import Inputs, Texts, one
from tests.support.daemon import KEY

LONG = "9" * 5_000
HEADERS = [
    *(f"Content-Length: {one}" for one in ("0", "-1", "+5", "5, 5", "5,6", "0x5", "٣", LONG, "")),
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
_HEADERS: Texts = st.sampled_from(HEADERS)
_VERSIONS = one(*["HTTP/1.1"] * 20, "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", "http/1.1", "")
_BREAKS = one(*[b"\r\n"] * 20, b"\n", b"\r", b"\r\n\r\n", b"\r\n ")
_FRAMINGS = one("length", "length", "length", "chunks", "none", "both", "less", "more")
_SIZES = one(*["{:x}"] * 12, "{:X};a=b", "0{:x}", "{:x} ", "+{:x}", "0x{:x}", "-{:x}", "{:x}0")


@st.composite
def _chunked(draw: DrawFn, body: bytes) -> bytes:
    """Return a body in chunks, of whatever lengths."""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if a < b]
    data = b""
    for part in (*parts, b""):
        data += draw(_SIZES).format(len(part)).encode() + b"\r\n" + part + draw(_BREAKS)
    return data


@st.composite
def requests(
    draw: DrawFn, targets: Sequence[tuple[str, str, Sequence[str]]], bodies: Inputs
) -> bytes:
    """Return a request to one of (method, path, headers)."""
    method, path, known = draw(st.sampled_from(targets))
    if draw(one(*[False] * 10, True)):
        method = draw(one("GET", "POST", "OPTIONS", "HEAD", "PUT", "DELETE", "get", "PRI", ""))
    path += draw(one(*[""] * 12, "?", "?a=%ff", "/", "/x", "%00", "?" + "q" * 2_000, "#x"))
    headers = ["Host: 127.0.0.1", *known, *draw(st.lists(_HEADERS, max_size=3))]
    body = draw(bodies) if method == "POST" or draw(one(False, False, False, True)) else b""
    framing = draw(_FRAMINGS) if body else "none"
    off = {"less": -1, "more": 1}.get(framing, 0)
    if framing in ("length", "both", "less", "more"):
        headers.append(f"Content-Length: {len(body) + off}")
    if framing in ("chunks", "both"):
        headers.append("Transfer-Encoding: chunked")
        body = draw(_chunked(body))
    if draw(one(*[False] * 8, True)):
        headers = draw(st.permutations(headers))
    encoding = draw(one("latin-1", "latin-1", "utf-8"))
    lines = [f"{method} {path} {draw(_VERSIONS)}", *headers]
    end = draw(_BREAKS)
    head = b"".join(line.encode(encoding, "replace") + b"\r\n" for line in lines[:-1])
    return head + lines[-1].encode(encoding, "replace") + end + b"\r\n" + body


@st.composite
def pipelined(
    draw: DrawFn, targets: Sequence[tuple[str, str, Sequence[str]]], bodies: Inputs
) -> bytes:
    """Return a request or two on one connection."""
    count = draw(one(1, 1, 1, 2, 3))
    return b"".join(draw(requests(targets, bodies)) for _ in range(count))
