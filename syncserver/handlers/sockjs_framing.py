"""The texts of SockJS 0.3.3 between client and server. Pure.

To the client: ``o`` opens, ``h`` is a heartbeat, ``a[...]`` has messages as JSON
strings, ``c[code,"reason"]`` closes. To the server: an array of JSON strings.

A message is UTF-8, with lone surrogates let through (``surrogatepass``): JavaScript
has them, and it is for the protocol inside to refuse what it cannot carry.
"""

from __future__ import annotations

import json
import re

OPEN = b"o"
HEARTBEAT = b"h"

# What browsers and proxies are known to change or drop on the way.
_ESCAPED = re.compile(
    "[\x7f-\x9f\u00ad\u200c-\u200f\u2028-\u202f\u2060-\u206f\ufff0-\uffff\ud800-\udfff]"
)


def listed(texts: tuple[bytes, ...]) -> bytes:
    """Return texts as JSON strings, each with a comma after it."""
    return b"".join([_quoted(text) + b"," for text in texts])


def array(*lists: bytes) -> bytes:
    """Return the ``a`` frame of what ``listed`` made."""
    return b"a[" + b"".join(lists).removesuffix(b",") + b"]"


def closing(code: int, reason: str) -> bytes:
    """Return the frame that says why the session is over."""
    return b"c[%d,%s]" % (code, _quoted(reason.encode()))


def in_script(frame: bytes) -> bytes:
    """Return a frame as a JavaScript string that may stand in a page."""
    return json.dumps(frame.decode()).replace("<", "\\u003c").encode()


def read(data: str | bytes, *, single: bool = False) -> list[bytes]:
    """Return the messages of a text of the client; ValueError if it is none.

    :param single: whether one string may stand without an array.
    """
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if single and isinstance(found, str):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError("not an array of strings")
    return [text.encode("utf-8", "surrogatepass") for text in found]


def _quoted(text: bytes) -> bytes:
    quoted = json.dumps(text.decode("utf-8", "surrogatepass"), ensure_ascii=False)
    if not quoted.isascii() or "\x7f" in quoted:
        quoted = _ESCAPED.sub(_escape, quoted)
    return quoted.encode()


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
