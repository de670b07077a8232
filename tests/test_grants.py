"""Tokens cannot be guessed, and a grant comes back from its bytes as it was."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncserver.rowsync.grants import GrantBody, ItemSpec, new_token

pytestmark = pytest.mark.core

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text("ab\0é", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=8,
)
specs = st.builds(ItemSpec, st.text("ab"), values, st.none() | st.text("ab"))


@given(items=st.lists(specs, max_size=4), identity=values)
def test_a_grant_comes_back_as_it_was(items: list[ItemSpec], identity: Any) -> None:
    body = GrantBody(items, identity)
    assert GrantBody.decode(body.encode()) == body


def test_items_come_back_as_items() -> None:
    (item,) = GrantBody.decode(GrantBody([ItemSpec("D", [1], "tag")]).encode()).items
    assert (item.dealer, item.query, item.tag) == ("D", [1], "tag")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff", b"{}", b"[]", b"null", b"[" * 5_000, b'{"items":[]}'),
        *(b'{"items":%b,"identity":1}' % items for items in (b"[[]]", b'"D"', b"[null]")),
        *(b'{"items":[%b],"identity":1}' % item for item in (b'[1,2,"t"]', b'["D",2,3]', b'"Dqt"')),
    ],
)
def test_what_is_no_grant_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        GrantBody.decode(data)


def test_tokens_are_long_random_and_of_plain_characters() -> None:
    tokens = {new_token() for _ in range(1_000)}
    assert len(tokens) == 1_000
    assert all(re.fullmatch("[a-z0-9]{32}", token) for token in tokens)
    assert len({character for token in tokens for character in token}) == 36
