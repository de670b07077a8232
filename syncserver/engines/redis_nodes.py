"""Whether all nodes of a Redis have the same settings.

Each of them leaves a digest of its own every while, and looks for others that were left since it
began itself: one that was ended to be started with other settings is no other.
"""

from __future__ import annotations

import asyncio
import logging

from syncserver.engines.redis_flights import Calls
from syncserver.engines.redis_scripts import MEET
from syncserver.errors import Unavailable

logger = logging.getLogger("syncserver.engine")

_LOOK_SECONDS = 30.0
_REMEMBERED_LOOKS = 3


class Nodes:
    """Warns, once until it is over, that another node has other settings.

    :param key: where all nodes leave their digests.
    """

    def __init__(self, calls: Calls, key: str) -> None:
        self._calls = calls
        self._key = key
        self._looking: asyncio.Task[None] | None = None

    def start(self, settings: str) -> None:
        """Leave this digest, and look for others, from now on."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look_on(settings))

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look_on(self, settings: str) -> None:
        begun, differ = "", False
        while True:
            remembered_ms = round(_REMEMBERED_LOOKS * _LOOK_SECONDS * 1000)
            try:
                answer = await self._calls.call(MEET, [self._key], settings, begun, remembered_ms)
            except Unavailable as error:
                logger.debug("Cannot compare the settings: %s", error)  # others say so loudly
                answer = None
            match answer:
                case [bytes() as at, int() as others]:
                    begun = at.decode("ascii", "replace")
                    if others and not differ:
                        logger.warning(
                            "Another daemon of this Redis has other settings: its services, its"
                            " models, or limits of what they share"
                        )
                    differ = bool(others)
            await asyncio.sleep(_LOOK_SECONDS)
