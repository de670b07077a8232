"""How many come from one address, and how fast.

A network of IPv6 that is given to one customer (/64) counts as one address. Where many stand
behind one address that is no proxy of ours, the bounds are theirs together.
"""

from __future__ import annotations

import ipaddress

from syncserver.bucket import Bucket
from syncserver.config import Limits

_PREFIX = 64
_BURST_SECONDS = 5
_REMEMBERED = 10_000


class Addresses:
    """Counts who is there, by address."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._there: dict[str, int] = {}
        self._buckets: dict[str, Bucket] = {}

    def admits(self, key: str) -> bool:
        """Tell whether one more may come from an address now; that it asks is counted."""
        if self._there.get(key, 0) >= self._limits.max_connections_per_address:
            return False
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= _REMEMBERED:
                self._forget()
            rate = self._limits.accepts_per_second_per_address
            bucket = self._buckets[key] = Bucket(rate, _BURST_SECONDS * rate)
        return bucket.take()

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

    def _forget(self) -> None:
        """Forget those who have not asked for a while, or the oldest half if all have."""
        buckets = self._buckets
        self._buckets = {key: one for key, one in buckets.items() if not one.is_full}
        if len(self._buckets) >= _REMEMBERED:
            self._buckets = dict(list(self._buckets.items())[_REMEMBERED // 2 :])


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
