"""How many come from one address, and how often it does something.

A network of IPv6 that is given to one customer (/64) counts as one address. Where many stand
behind one address that is no proxy of ours, the bounds are theirs together.
"""

from __future__ import annotations

import ipaddress
import math

from syncserver.admission.bucket import Bucket
from syncserver.config import Limits
from syncserver.errors import TooManyWrongKeys

_PREFIX = 64
_BURST_SECONDS = 5
_REMEMBERED = 10_000

GUESS_SECONDS = 1.0
"""How long the answer waits, on its connection alone, to a key that is one too many."""


class Rates:
    """How often each address does something, of so many that were here last.

    :param per_second: how often in the long run, ``burst`` how often at once.
    """

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: dict[str, Bucket] = {}

    def wait_seconds(self, key: str, count: int = 1) -> float:
        """Count so many more of an address; 0, or when they may come, and nothing is counted."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= _REMEMBERED:
                self._forget()
            bucket = self._buckets[key] = Bucket(self._per_second, self._burst)
        return bucket.wait_for(count)

    def _forget(self) -> None:
        """Forget those who did nothing for a while, or the oldest half if none of them has."""
        buckets = self._buckets
        self._buckets = {key: one for key, one in buckets.items() if not one.is_full}
        if len(self._buckets) >= _REMEMBERED:
            self._buckets = dict(list(self._buckets.items())[_REMEMBERED // 2 :])


class Addresses:
    """Counts who is there, by address."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.max_connections_per_address
        self._there: dict[str, int] = {}
        rate = limits.accepts_per_second_per_address
        self._rates = Rates(rate, _BURST_SECONDS * rate)

    def admits(self, key: str) -> bool:
        """Tell whether one more may come from an address now; that it asks is counted."""
        return self._there.get(key, 0) < self._most and not self._rates.wait_seconds(key)

    def enter(self, key: str) -> None:
        """Count one who has come."""
        self._there[key] = self._there.get(key, 0) + 1

    def leave(self, key: str) -> None:
        """Count one who has gone."""
        left = self._there[key] - 1
        if left:
            self._there[key] = left
        else:
            del self._there[key]


class Guesses:
    """How often an address may give an API key that is none."""

    def __init__(self, limits: Limits) -> None:
        self._rates = Rates(limits.wrong_keys_per_minute / 60, limits.wrong_keys_per_minute)

    def wrong(self, address: str) -> None:
        """Count one more; TooManyWrongKeys if it is one too many."""
        seconds = self._rates.wait_seconds(counted_as(address))
        if seconds:
            raise TooManyWrongKeys(math.ceil(seconds))


def counted_as(address: str) -> str:
    """Return what an address counts as: itself, or the network that its owner has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _PREFIX), strict=False))


def is_public(address: str) -> bool:
    """Tell whether an address is one of the Internet: those of one's own network are proxies'."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_global
