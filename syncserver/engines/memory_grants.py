"""The grants of the memory engine, and a bound on those that nobody has acquired."""

from __future__ import annotations

from dataclasses import dataclass

from syncserver.config import Limits
from syncserver.engines.base import Grant, cost_of
from syncserver.errors import TooManyGrants


@dataclass(slots=True)
class HeldGrant:
    """A grant, and what became of it."""

    grant: Grant
    takes: int = 0
    held: bool = False
    resumable: bool = False
    revoked: bool = False
    deadline: float = 0.0


class Waiting:
    """The grants that were never acquired: who has them made can do so without end."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sizes: dict[str, int] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, token: str, grant: Grant) -> None:
        """Count one more; TooManyGrants if there are as many as may be."""
        self.discard(token)
        size = cost_of(grant)
        limits = self._limits
        if len(self._sizes) >= limits.max_grants or self._bytes + size > limits.max_grants_bytes:
            raise TooManyGrants
        self._sizes[token] = size
        self._bytes += size

    def discard(self, token: str) -> None:
        """Count one less: it was acquired, or is over."""
        self._bytes -= self._sizes.pop(token, 0)
