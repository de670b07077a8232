"""Channels: what is published on one reaches all who are subscribed to it then.

A channel is any JSON value. Messages go through the engine, in a stream of their
own, and every node sends what it reads there; there is no history.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from syncserver import canonical, strict_json
from syncserver.announcing import announce
from syncserver.client import Client
from syncserver.config import Limits
from syncserver.counters import Activity, Standing
from syncserver.engines.base import Engine
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import RefetchReason, RPCError
from syncserver.protocols.base import Frame, Freshness, Notification, Protocol
from syncserver.publishing import Publisher
from syncserver.services.base import Request, RPCService, operation, rpc_command, session_of
from syncserver.session import Session
from syncserver.stream import Stream
from syncserver.tail import Record

__all__ = ["PubSubBackend", "PubSubService"]

logger = logging.getLogger("syncserver.pubsub")

_DELIVERY_SECONDS = 5.0


class _Published(NamedTuple):
    channel: Any
    message: Any


class PubSubService(RPCService):
    """The browsers' half: subscribe, unsubscribe, and publish where ``can_publish`` allows.

    :param engine: carries the messages between nodes; by default a memory engine of its own.
    :param client_publish: what ``can_publish`` answers unless it is overridden.
    """

    def __init__(
        self,
        name: str,
        *,
        engine: Engine | None = None,
        limits: Limits | None = None,
        client_publish: bool = True,
    ) -> None:
        super().__init__(name)
        self.limits = limits or Limits()
        self.engine: Engine = engine or MemoryEngine(self.limits)
        self._client_publish = client_publish
        self._stream: Stream[_Published | None] = Stream(
            self.engine, name, self, decode=_decode, tail_bytes=0
        )
        self.activity: Activity = Activity()
        self._publisher = Publisher(self.engine, self._stream, self.activity)
        self._subscribers: dict[bytes, dict[Session, None]] = {}
        self._channels: dict[Session, set[bytes]] = {}

    def can_publish(self, client: Client, channel: Any) -> bool:
        """Tell whether a browser may publish on a channel; override it."""
        return self._client_publish

    def can_subscribe(self, client: Client, channel: Any) -> bool:
        """Tell whether a browser may hear a channel; override it."""
        return True

    @rpc_command
    async def subscribe(self, req: Request, channel: Any) -> None:
        """Send this session what is published on a channel from now on."""
        await self.open()
        key, client = canonical.key(channel), session_of(req)
        if not self.can_subscribe(client, channel):
            raise RPCError("Not authorized", code="not_authorized")
        channels = self._channels.get(client, set())
        if key in channels:
            raise RPCError("Already subscribed", code="already_subscribed")
        if len(channels) >= self.limits.max_subscriptions:
            raise RPCError("Too many subscriptions", code="subscription_limit")
        if client.open:
            self._channels.setdefault(client, channels).add(key)
            self._subscribers.setdefault(key, {})[client] = None

    @rpc_command
    def unsubscribe(self, req: Request, channel: Any) -> None:
        """Send this session no more of a channel."""
        key, client = canonical.key(channel), session_of(req)
        channels = self._channels.get(client, set())
        if key not in channels:
            raise RPCError("Not subscribed", code="not_subscribed")
        self._discard(client, key)
        channels.discard(key)
        if not channels:
            del self._channels[client]

    @rpc_command
    async def join(self, req: Request, channel: Any) -> None:
        """Do what ``subscribe`` does; Snorky's overview calls it so."""
        await self.subscribe(req, channel)

    @rpc_command
    def leave(self, req: Request, channel: Any) -> None:
        """Do what ``unsubscribe`` does; Snorky's overview calls it so."""
        self.unsubscribe(req, channel)

    @rpc_command
    async def publish(self, req: Request, channel: Any, message: Any) -> None:
        """Publish for a browser; its own notification, if any, comes before the answer."""
        if not self.can_publish(req.client, channel):
            raise RPCError("Not authorized", code="not_authorized")
        await self.do_publish(channel, message)

    async def do_publish(
        self, channel: Any, message: Any, *, idempotency_key: str | None = None
    ) -> None:
        """Publish, and wait a while until this node has sent it."""
        await self.open()
        data = strict_json.encode({"channel": channel, "message": message})
        with self.activity.publishes.outcome():
            position = await self._publisher.publish(
                data, idempotency_key=idempotency_key, deltas=1
            )
        await self._stream.reached(position, _DELIVERY_SECONDS)

    def client_disconnected(self, client: Client) -> None:
        """Forget the subscriptions of a session."""
        if isinstance(client, Session):
            for key in self._channels.pop(client, ()):
                self._discard(client, key)

    def standing(self) -> Standing:
        """Return how many there are of what is held; a view is a channel that somebody hears."""
        channels = len(self._subscribers)
        return Standing(
            clients=len(self._channels),
            subscriptions=sum(map(len, self._channels.values())),
            views=channels,
            items=channels,
            offset=self._stream.cursor.offset,
            tail_bytes=self._stream.tail.size,
            stale=self._stream.stale,
        )

    async def open(self) -> None:
        """Follow the log."""
        await self._stream.open()

    async def close(self) -> None:
        """Stop following the log."""
        await self._stream.close()

    # Called by the stream, as its follower.

    def deliver(self, record: Record[_Published | None]) -> None:
        """Send one message to all who are subscribed to its channel."""
        self.activity.entries += 1
        if record.value is None:
            return
        self.activity.deltas += 1
        subscribers = self._subscribers.get(canonical.key(record.value.channel))
        if not subscribers:
            return
        notice = {"type": "message", **record.value._asdict()}
        event = Notification(self.name, notice)
        frames: dict[type[Protocol], Frame] = {}
        for session in subscribers:
            if not session.protocol.shared:
                announce(session, event)
                continue
            frame = frames.get(type(session.protocol))
            if frame is None:
                frame = frames[type(session.protocol)] = Frame(session.protocol.encode(event))
            session.put(frame)
        self.activity.deliveries += len(subscribers)
        self._publisher.flusher = next(iter(subscribers)).flusher

    def turn_ended(self) -> None:
        """Note that this is when all that came was put; there are no positions to tell."""
        self._publisher.arrived()

    def lost(self, reason: RefetchReason) -> None:
        """Tell subscribers that they may have missed messages: stale, then fresh."""
        self._publisher.forget()
        self.freshness(stale=True)
        self.freshness(stale=False)

    def freshness(self, *, stale: bool) -> None:
        """Tell all subscribers that the log is out of reach, or back."""
        for session in tuple(self._channels):
            announce(session, Freshness(self.name, stale))

    def _discard(self, client: Session, key: bytes) -> None:
        subscribers = self._subscribers[key]
        del subscribers[client]
        if not subscribers:
            del self._subscribers[key]


class PubSubBackend(RPCService):
    """The trusted half: publish on any channel."""

    def __init__(self, name: str, frontend: PubSubService) -> None:
        super().__init__(name)
        self._frontend = frontend

    @rpc_command
    @operation("publish")
    async def publish(self, req: Request, channel: Any, message: Any) -> None:
        """Publish, whatever browsers may."""
        await self._frontend.do_publish(
            channel, message, idempotency_key=req.client.idempotency_key
        )


def _decode(data: bytes) -> _Published | None:
    try:
        return _Published(**strict_json.decode_trusted(data))
    except (ValueError, TypeError, RecursionError):
        logger.exception("An entry of %s bytes is not one of ours", len(data))
        return None
