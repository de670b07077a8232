"""API keys: what each may do and for how long, and how a caller's is found among them.

What is kept is the SHA-256 of a key: keys are random and long, so that no slower hash
is needed, and all comparisons are of 32 bytes, in constant time, with every key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

OPERATIONS = ("publish", "authorize", "revoke", "inspect")
HASH_PREFIX = "sha256:"

_SHOWN_DIGITS = 8


class Secret:
    """A key that shows itself only when asked, so that no log line or traceback holds it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value.encode()

    def reveal(self) -> bytes:
        """Return the key itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key: ``id`` is its name in the log, ``secret`` the key itself where it is known.

    Without ``operations`` it may do everything, the commands of one's own services too.
    """

    id: str
    digest: bytes = field(repr=False)
    secret: Secret | None = field(default=None, repr=False)
    operations: frozenset[str] = frozenset(OPERATIONS)
    expires: datetime | None = None

    @classmethod
    def of(cls, key: str | bytes) -> ApiKey:
        """Return a key that may do everything, named by its hash."""
        raw = key.encode() if isinstance(key, str) else key
        secret = Secret(key) if isinstance(key, str) else None
        return cls.hashed(hashlib.sha256(raw).digest(), secret)

    @classmethod
    def hashed(cls, digest: bytes, secret: Secret | None = None) -> ApiKey:
        """Return the key that has this SHA-256."""
        return cls(id=HASH_PREFIX + digest.hex()[:_SHOWN_DIGITS], digest=digest, secret=secret)

    def allows(self, operation: str | None) -> bool:
        """Tell whether the key is for an operation; None is what only a key for all may do."""
        if operation is None:
            return self.operations.issuperset(OPERATIONS)
        return operation in self.operations

    def expired(self, now: datetime | None = None) -> bool:
        """Tell whether its time is over."""
        return self.expires is not None and (now or datetime.now(UTC)) >= self.expires


class KeyRing:
    """The keys of a door, which may be replaced while it is open; never without any."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys: tuple[ApiKey, ...] = ()
        self.replace(keys)

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Take these keys from now on; ValueError if there are none."""
        given = tuple(keys)
        if not given:
            raise ValueError("at least one API key is needed")
        self._keys = given

    def find(self, given: bytes) -> ApiKey | None:
        """Return the key that a caller has given, expired or not."""
        digest = hashlib.sha256(given).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found
