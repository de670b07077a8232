"""The frames of one published batch, each made once for all views and sessions that get it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from syncserver.delta import Delta, Kind
from syncserver.protocols.base import Change, Frame, Protocol
from syncserver.rowsync.views import Seen

_numbers = itertools.count(1)


class BatchFrames:
    """The frames of one batch.

    :ivar number: tells the batches of this process apart.
    """

    def __init__(self, service: str, deltas: Sequence[Delta]) -> None:
        self.number = next(_numbers)
        self._service = service
        self._deltas = deltas
        self._texts: dict[tuple[type[Protocol], str | None, int, Kind], tuple[bytes, ...]] = {}
        self._frames: dict[tuple[type[Protocol], str | None, Seen], Frame] = {}

    def frame(self, protocol: Protocol, tag: str | None, seen: Seen) -> Frame:
        """Return the frame that tells ``seen`` under ``tag``; shared unless the protocol is not."""
        if not protocol.shared:
            return Frame(tuple(self._encoded(protocol, tag, seen)))
        key = (type(protocol), tag, seen)
        frame = self._frames.get(key)
        if frame is None:
            texts = [self._text(protocol, tag, index, kind) for index, kind in seen]
            frame = self._frames[key] = Frame(tuple(text for some in texts for text in some))
        return frame

    def of_view(self, tag: str | None, seen: Seen) -> Callable[[Protocol], Frame]:
        """Return ``frame`` for one view; it costs a look-up by type for each session."""
        frames: dict[type[Protocol], Frame] = {}

        def frame_for(protocol: Protocol) -> Frame:
            frame = frames.get(type(protocol))
            if frame is None:
                frame = self.frame(protocol, tag, seen)
                if protocol.shared:
                    frames[type(protocol)] = frame
            return frame

        return frame_for

    def _text(
        self, protocol: Protocol, tag: str | None, index: int, kind: Kind
    ) -> tuple[bytes, ...]:
        key = (type(protocol), tag, index, kind)
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = protocol.encode(self._change(tag, index, kind))
        return text

    def _encoded(self, protocol: Protocol, tag: str | None, seen: Seen) -> Iterable[bytes]:
        for index, kind in seen:
            yield from protocol.encode(self._change(tag, index, kind))

    def _change(self, tag: str | None, index: int, kind: Kind) -> Change:
        return Change(self._service, self._deltas[index].narrowed(kind), tag)
