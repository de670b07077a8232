"""The grammars of what browsers and web apps say: calls, requests, filters, deltas, positions."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzz.grammar import (
    NAMES,
    STRINGS,
    VALUES,
    Inputs,
    Texts,
    as_bytes,
    consts,
    lists,
    objects,
    one,
    quoted,
)
from tests.support.expressions import EXPRESSIONS, FIELDS, ROWS
from tests.support.expressions import VALUES as FILTER_VALUES

TOKEN = "@token".ljust(32, "@")
"""Stands for a token that a daemon makes."""

JSON: Inputs = as_bytes(VALUES)

# Filters.

_OPERATORS = one(
    *("==", "!=", "<", "<=", ">", ">=", "between", "in", "prefix", "contains", "exists"),
    *("and", "or", "not", "xor", "", "__class__", 1, None, []),
)
_PATHS = FIELDS | one("", ".", "a.", ".a", "a..b", 0, None, ["a"], "é", "a.b.c.d.e.f")
_BROKEN = st.recursive(
    st.tuples(_OPERATORS, _PATHS, st.lists(FILTER_VALUES, max_size=3)).map(
        lambda parts: [parts[0], parts[1], *parts[2]]
    ),
    lambda inner: st.tuples(_OPERATORS, st.lists(inner | EXPRESSIONS, max_size=3)).map(
        lambda parts: [parts[0], *parts[1]]
    ),
    max_leaves=5,
)


@st.composite
def _deep(draw: DrawFn) -> Any:
    """Return a filter near the bounds of depth or of size."""
    inner = draw(EXPRESSIONS)
    if draw(st.booleans()):
        for _ in range(draw(st.integers(4, 9))):
            inner = [draw(one("not", "and", "or")), inner]
        return inner
    return [draw(one("and", "or"))] + [inner] * draw(st.integers(6, 70))


_FILTERS = [EXPRESSIONS, EXPRESSIONS, _BROKEN, _deep()]
FILTER_TEXTS: Texts = st.one_of(*(one.map(json.dumps) for one in _FILTERS), VALUES)
FILTERS: Inputs = as_bytes(FILTER_TEXTS)

# Deltas, items.

_ROWS: Texts = st.one_of(
    ROWS.map(json.dumps), objects(id=consts(1, "x", None), a=VALUES, entryId=consts(7, 8))
)
_MODELS = consts("Task", "Comment", "$group", "", "é")
_VERSIONS = consts(0, 1, 7, 2**53 - 1, None, -1, 1.0)


@st.composite
def _deltas(draw: DrawFn) -> str:
    kind = draw(one("insert", "update", "delete"))
    rows = {"oldData": _ROWS, "newData": _ROWS} if kind == "update" else {"data": _ROWS}
    version = {"version": _VERSIONS} if draw(st.booleans()) else {}
    return draw(objects(type=consts(kind), model=_MODELS, **rows, **version))


DELTA_TEXTS: Texts = _deltas()
DELTAS: Inputs = as_bytes(DELTA_TEXTS)
_DEALERS = consts("AllTasks", "CommentsByBlogEntry", "FilteredTasks", "Other", "")
_TAGS = consts("t", "", None, "é\0")
ITEM_TEXTS: Texts = st.one_of(
    objects(dealer=_DEALERS, query=FILTER_TEXTS | consts(None, 7)),
    objects(dealer=_DEALERS, query=VALUES, tag=_TAGS),
)
ITEMS: Inputs = as_bytes(ITEM_TEXTS)

# Positions, and what else is short.

_EPOCHS = one("a", "0f", "abc123", "z" * 24, "z" * 25, "", "A", "é")
_OFFSETS = one(
    "0", "1", "42", "9007199254740991", "9" * 16, "9" * 17, "01", "-1", "+1", "1_0", "٣", ""
)
_MARKS = one("0", "ff00ff00", "z" * 16, "z" * 17, "", "F", "x\n")
_DOTS = one(*["."] * 12, "", "..", "/")


@st.composite
def _positions(draw: DrawFn) -> str:
    return draw(_DOTS).join([draw(_EPOCHS), draw(_OFFSETS), draw(_MARKS)])


_TOKENS = one("t", "q1w2e3r4t5z6u7i8o9p0a1s2d3f4g5h6", "Token_-1", "", "a:b", "a/b", "é", "x" * 300)
POSITION_TEXTS: Texts = _positions()
POSITIONS: Inputs = as_bytes(
    st.one_of(
        POSITION_TEXTS,
        st.builds("{}/{}".format, POSITION_TEXTS | st.just(""), _TOKENS),
        _TOKENS,
        st.text(max_size=20),
    )
)

# Calls.

_GIVEN_TOKENS = consts(TOKEN, TOKEN, "t", "a:b", 1, None)
_GIVEN_POSITIONS = consts(None, None, "abc.1.ff", "") | POSITION_TEXTS.map(quoted)
_CHANNELS = st.one_of(consts("a", "b", {"c": [1]}), VALUES)
_IDS = st.one_of(consts(1, 0, "x", None, {"a": [1]}), VALUES)


def _called(name: str, **params: Texts) -> SearchStrategy[tuple[str, Texts]]:
    return st.just((name, objects(**params)))


_FRONTEND = {
    "datasync": st.one_of(
        _called("acquireSubscription", token=_GIVEN_TOKENS),
        _called("acquireSubscription", token=_GIVEN_TOKENS, position=_GIVEN_POSITIONS),
        _called("cancelSubscription", token=_GIVEN_TOKENS),
    ),
    "pubsub": st.one_of(
        _called("subscribe", channel=_CHANNELS),
        _called("unsubscribe", channel=_CHANNELS),
        _called("publish", channel=_CHANNELS, message=VALUES),
    ),
    "none": _called("subscribe", channel=_CHANNELS),
}
_BACKEND = {
    "datasync_backend": st.one_of(
        _called("authorizeSubscription", items=lists(ITEM_TEXTS), identity=VALUES),
        _called("publishDeltas", deltas=lists(DELTA_TEXTS)),
        _called("publish", deltas=lists(DELTA_TEXTS)),
        _called("requestRefetch", items=lists(ITEM_TEXTS)),
        _called("requestRefetch", model=_MODELS),
        _called("revokeSubscription", token=_GIVEN_TOKENS),
        _called("notify", group=NAMES.map(quoted), type=consts("create", "delete"), object=VALUES),
    ),
    "pubsub_backend": _called("publish", channel=_CHANNELS, message=VALUES),
}


@st.composite
def _calls(draw: DrawFn, services: dict[str, Any]) -> str:
    service = draw(st.sampled_from(list(services)))
    name, params = draw(services[service])
    fields = {"command": consts(name), "params": params}
    if draw(one(True, True, True, False)):
        fields["callId"] = _IDS
    return draw(objects(service=consts(service), message=objects(**fields)))


CALL_TEXTS: Texts = _calls(_FRONTEND)
CALLS: Inputs = as_bytes(CALL_TEXTS)
POSTS: Inputs = as_bytes(_calls(_BACKEND))

# Rohrpost, and the bodies of SockJS.

_TYPES = consts("ping", "subscribe", "unsubscribe", "ping ", "none", "")
REQUEST_TEXTS: Texts = st.one_of(
    objects(id=_IDS, type=consts("ping"), data=VALUES),
    objects(id=_IDS, type=_TYPES, data=objects(token=_GIVEN_TOKENS)),
    objects(id=_IDS, type=_TYPES),
)
REQUESTS: Inputs = as_bytes(REQUEST_TEXTS)
_STYLES = one(0, 1, 2)
_SENT: Texts = st.one_of(STRINGS, st.builds(quoted, CALL_TEXTS | REQUEST_TEXTS, _STYLES))
BODY_TEXTS: Texts = st.one_of(lists(_SENT), lists(_SENT), lists(_SENT | VALUES), _SENT)
BODIES: Inputs = as_bytes(BODY_TEXTS)
POLLED: Inputs = as_bytes(lists(st.builds(quoted, CALL_TEXTS, _STYLES)) | BODY_TEXTS)
