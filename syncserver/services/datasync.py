"""Row sync: browsers acquire what the web app authorised; the web app publishes deltas.

The wire form of all commands is in docs/reference/wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from syncserver.client import Client
from syncserver.config import Limits
from syncserver.counters import Activity, Standing
from syncserver.dealers.base import Dealer
from syncserver.dealers.group import GroupDealer
from syncserver.delta import Delta, InvalidDelta
from syncserver.engines.base import Engine, Grant
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import InvalidQuery, NoSuchSubscription, Refetch, RefetchReason, RPCError
from syncserver.position import Position
from syncserver.protocols.base import Acquired
from syncserver.rowsync import entries
from syncserver.rowsync.grants import GrantBody, ItemSpec, new_token
from syncserver.rowsync.reorder import Reorder
from syncserver.rowsync.subscriptions import Subscriptions
from syncserver.rowsync.tickets import Tickets
from syncserver.rowsync.views import Views
from syncserver.services.base import Request, RPCService, operation, rpc_command, session_of
from syncserver.session import Session

__all__ = ["DataSyncBackend", "DataSyncService"]

_PLAIN = object()
"""Stands for a position that was not given: Snorky's way to acquire."""


class DataSyncService(RPCService):
    """The browsers' half: acquire and cancel subscriptions.

    :param dealers: classes or instances; more by ``register_dealer``.
    :param engine: where the log and the grants are; by default a memory engine of its own.
    :param key_of: the field that is the key of a model's rows; by default ``id``.
    """

    def __init__(
        self,
        name: str,
        dealers: Iterable[Dealer | type[Dealer]] = (),
        *,
        engine: Engine | None = None,
        limits: Limits | None = None,
        key_of: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__(name)
        self.limits = limits or Limits()
        self.engine: Engine = engine or MemoryEngine(self.limits)
        self.activity: Activity = Activity(has_grants=True)
        self.views = Views()
        reorder = Reorder(
            key_of or _id, seconds=self.limits.reorder_seconds, max_bytes=self.limits.tail_bytes
        )
        self.subscriptions = Subscriptions(
            name, self.views, self.engine, self.limits, self.activity, settle=reorder.settle
        )
        self.tickets = Tickets(name, self.engine, self.limits)
        for dealer in dealers:
            self.register_dealer(dealer)

    def register_dealer(self, dealer: Dealer | type[Dealer]) -> Dealer:
        """Let subscriptions name a dealer; RuntimeError if its name is taken."""
        instance = dealer() if isinstance(dealer, type) else dealer
        self.views.add_dealer(instance)
        return instance

    def unregister_dealer(self, dealer: Dealer) -> None:
        """Forget a dealer; who has items of it is told to fetch again."""
        orphans = self.views.discard_dealer(dealer)
        self.subscriptions.end_views(orphans, RefetchReason.FILTER_CHANGED)

    def group_dealer(self) -> GroupDealer:
        """Return the dealer of groups; RPCError if there is none."""
        for dealer in self.views.dealers.values():
            if isinstance(dealer, GroupDealer):
                return dealer
        raise RPCError("No dealer of type group", code="no_such_dealer")

    def views_of(self, session: Session, token: str) -> tuple[tuple[str, str | None], ...] | None:
        """Return model and tag of what a session sees by a token; None: it has not acquired it."""
        held = self.subscriptions.peers.get(session).subscriptions.get(token)
        return None if held is None else held.named_views

    @rpc_command
    async def acquireSubscription(self, req: Request, token: Any, position: Any = _PLAIN) -> None:
        """Make a granted subscription live on this session."""
        check_token(token)
        session, resumable = session_of(req), position is not _PLAIN
        start = parse_position(position) if resumable else None
        counted = self.activity.resumes if start is not None else self.activity.acquires
        try:
            with counted.outcome():
                reached = await self.subscriptions.acquire(
                    session, token, start, resumable=resumable
                )
        except Refetch as error:
            self.activity.refetches.add(str(error.reason))
            raise
        told = str(reached) if resumable else None
        views = self.views_of(session, token) or ()
        req.answer(Acquired(self.name, req.call_id, token, told, views))

    @rpc_command
    async def cancelSubscription(self, req: Request, token: Any) -> None:
        """End a subscription of this session."""
        check_token(token)
        await self.subscriptions.cancel(session_of(req), token)

    def client_disconnected(self, client: Client) -> None:
        """Keep the session's resumable subscriptions for a while, drop the others."""
        if isinstance(client, Session):
            self.subscriptions.disconnected(client)

    def standing(self) -> Standing:
        """Return how many there are of what is held, and how far the log was followed."""
        peers, stream = self.subscriptions.peers, self.subscriptions.stream
        views, items = self.views.counts
        return Standing(
            clients=len(peers),
            subscriptions=len(peers.tokens()),
            views=views,
            items=items,
            offset=stream.cursor.offset,
            tail_bytes=stream.tail.size,
            stale=stream.stale,
            waiting_grants=self.engine.waiting_grants(),
        )

    async def open(self) -> None:
        """Follow the log."""
        await self.subscriptions.open()

    async def close(self) -> None:
        """Stop following the log."""
        await self.subscriptions.close()


class DataSyncBackend(RPCService):
    """The trusted half: authorise, revoke, publish, ask for refetches."""

    def __init__(self, name: str, frontend: DataSyncService) -> None:
        super().__init__(name)
        self._views = frontend.views
        self._engine = frontend.engine
        self._limits = frontend.limits
        self._stream = frontend.subscriptions.stream
        self._publisher = frontend.subscriptions.publisher
        self._activity = frontend.activity
        self._open = frontend.open
        self._group_dealer = frontend.group_dealer

    @rpc_command
    @operation("authorize")
    async def authorizeSubscription(self, req: Request, items: Any, identity: Any = None) -> str:
        """Make a grant of ``items`` from here on and return its token."""
        specs = self._parse_items(items)
        await self._open()
        body = GrantBody(specs, identity).encode()
        grant = Grant(self._stream.name, self._stream.cursor, body)
        token = new_token()
        await self._engine.put_grant(token, grant, self._limits.grant_seconds)
        self._activity.grants += 1
        return token

    @rpc_command
    @operation("revoke")
    async def revokeSubscription(self, req: Request, token: Any) -> bool:
        """End a subscription wherever it is."""
        check_token(token)
        return await self._engine.revoke_grant(token, self._limits.resume_seconds)

    @rpc_command
    @operation("publish")
    async def publishDeltas(self, req: Request, deltas: Any) -> None:
        """Append a batch to the log, whole or not at all."""
        with self._activity.publishes.outcome():
            parsed = self._parse_deltas(deltas)
            data = entries.encode_batch(parsed)
            await self._publisher.publish(data, idempotency_key=_key(req), deltas=len(parsed))

    @rpc_command
    @operation("publish")
    async def publish(self, req: Request, deltas: Any) -> None:
        """Do what ``publishDeltas`` does, under the name that Snorky's manual has for it."""
        await self.publishDeltas(req, deltas)

    @rpc_command
    @operation("publish")
    async def requestRefetch(self, req: Request, items: Any = None, model: Any = None) -> None:
        """Tell those who hold one of ``items``, or any item of ``model``, to fetch again."""
        if (items is None) == (model is None):
            raise RPCError("Give either items or model", code="invalid_params")
        if model is not None and not (isinstance(model, str) and self._views.dealers_of(model)):
            raise RPCError("Unknown model", code="unknown_model", field="model")
        pairs = [spec[:2] for spec in self._parse_items(items)] if items is not None else []
        data = entries.encode_refetch_request(model=model, items=pairs)
        await self._engine.append(self._stream.name, data, idempotency_key=_key(req))

    @rpc_command
    @operation("publish")
    async def notify(self, req: Request, group: Any, type: Any, object: Any = None) -> None:  # noqa: A002
        """Tell a group that an object was created, updated or deleted."""
        data = entries.encode_batch([self._group_dealer().delta(group, type, object)])
        await self._engine.append(self._stream.name, data, idempotency_key=_key(req))

    def _parse_items(self, items: Any) -> list[ItemSpec]:
        if not isinstance(items, list) or not items:
            raise RPCError("items must be a list of at least one item", code="invalid_item")
        if len(items) > self._limits.max_items:
            raise RPCError("Too many items", code="too_many", index=self._limits.max_items)
        specs = [_parse_item(item, index) for index, item in enumerate(items)]
        for index, spec in enumerate(specs):
            try:
                self._views.close(self._views.open([spec]))
            except InvalidQuery as error:
                error.index = index
                raise
        return specs

    def _parse_deltas(self, deltas: Any) -> list[Delta]:
        if not isinstance(deltas, list):
            raise InvalidDelta("deltas must be a list")
        if len(deltas) > self._limits.max_deltas:
            raise InvalidDelta("Too many deltas", code="too_many", index=self._limits.max_deltas)
        parsed = []
        for index, wire in enumerate(deltas):
            try:
                delta = Delta.parse(wire)
                self._check_delta(delta)
            except InvalidDelta as error:
                error.index = index
                raise
            parsed.append(delta)
        return parsed

    def _check_delta(self, delta: Delta) -> None:
        dealers = self._views.dealers_of(delta.model)
        if not dealers:
            raise InvalidDelta("Unknown model", code="unknown_model", field="model")
        for dealer in dealers:
            missing = dealer.missing_field(delta)
            if missing is not None:
                text = f"Missing field '{missing}', which dealer {dealer.name} needs"
                raise InvalidDelta(text, field=missing)


def _parse_item(item: Any, index: int) -> ItemSpec:
    def refuse(message: str, field: str) -> RPCError:
        return RPCError(message, code="invalid_item", index=index, field=field)

    if not isinstance(item, Mapping):
        raise RPCError("item must be object", code="invalid_item", index=index)
    for field in ("dealer", "query"):
        if field not in item:
            raise refuse(f"Missing field '{field}'", field)
    if not isinstance(item["dealer"], str):
        raise refuse("dealer should be a dealer name", "dealer")
    tag = item.get("tag")
    if tag is not None and not isinstance(tag, str):
        raise refuse("tag must be string", "tag")
    unknown = item.keys() - {"dealer", "query", "tag"}
    if unknown:
        raise refuse("Unknown field", min(unknown))
    return ItemSpec(item["dealer"], item["query"], tag)


def parse_position(position: Any) -> Position | None:
    """Read the position that a client gives; RPCError if it is none."""
    if position is None:
        return None
    try:
        return Position.parse(position)
    except ValueError:
        text = "position must be null or one that the server sent"
        raise RPCError(text, code="invalid_position", field="position") from None


def check_token(token: Any) -> None:
    """Raise RPCError on what cannot be a token."""
    if not isinstance(token, str):
        raise RPCError("token must be string", code="invalid_token", field="token")
    if ":" in token:  # the engine keeps tickets there
        raise NoSuchSubscription


def _id(_model: str) -> str:
    return "id"


def _key(req: Request) -> str | None:
    return req.client.idempotency_key
