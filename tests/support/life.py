"""Pages over real connections in memory, one step at a time, beside a model of what each must have.

The web app commits and publishes; the model keeps what was published at each place of the log. A
page applies what comes as the client library does: what it gathered, when a position tells it to.
Whatever was done to its connection, at a position it has had exactly the changes up to there, in
order and each once; and when all is at rest, all that there are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from syncserver.config import Limits
from syncserver.delta import Delta
from syncserver.engines.memory import MemoryEngine
from syncserver.errors import CloseCode
from syncserver.handlers import frames
from syncserver.handlers.connection import Terms
from syncserver.position import Position
from syncserver.protocols.native import NativeProtocol
from syncserver.registry import ServiceRegistry
from syncserver.services.datasync import DataSyncBackend, DataSyncService
from syncserver.timers import Wheel
from tests.fuzz import oracles
from tests.fuzz.client_frames import client_frame
from tests.support.calls import backend_call, turns
from tests.support.memory_socket import MemoryConnection
from tests.support.world import ITEMS, Row, dealers

RETAINED = 25
OUTBOX = 3_000
LIMITS = Limits(
    max_outbox_bytes=OUTBOX,
    retention_entries=RETAINED,
    tail_bytes=2_000,
    messages_per_second=1_000_000,
    max_message_burst=1_000_000,
    first_message_seconds=1_000_000,  # a page that has nothing to ask for may be silent
)
_LOOK_SECONDS = 5
_UNNOTICED_SECONDS = LIMITS.ping_seconds + LIMITS.pong_seconds + 10  # of the tick of a wheel


@dataclass
class Subscription:
    """What a page knows of one, and what it has had of it.

    :ivar place: up to where in the log it has applied.
    :ivar lost_at: when it had no connection any more, or never had one.
    :ivar asked_at: when it was last asked for; the answer may be read long after.
    :ivar endings: why it is to end, by the web app or the page.
    """

    token: str
    name: str
    tag: str
    resumable: bool
    place: int
    lost_at: float
    asked_at: float = 0.0
    position: str | None = None
    live: bool = False
    taken: bool = False
    endings: set[str] = field(default_factory=set)
    gathered: list[Any] = field(default_factory=list)


class Page:
    """A browser's page: a connection or none, and its subscriptions by tag.

    :ivar let_go_at: when the daemon ended its session, which one that does not read hears later.
    """

    def __init__(self, life: Life) -> None:
        self.life = life
        self.connection: MemoryConnection | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.calls: dict[int, tuple[str, Subscription]] = {}
        self.may_close: set[int] = set()
        self.let_go_at: float | None = None
        self._number = 0
        self._read = 0

    def connect(self) -> None:
        """Open a connection."""
        self.connection = MemoryConnection(self.life.terms)
        self.may_close = set()
        self.let_go_at = None
        self._read = 0

    def disconnected(self) -> None:
        """Have no connection any more; what was gathered and not applied is forgotten."""
        self.connection = None
        self.calls = {}
        for tag, one in list(self.subscriptions.items()):
            if one.taken and not one.resumable:
                del self.subscriptions[tag]
            if one.live or one.taken:
                since = self.life.now if self.let_go_at is None else self.let_go_at
                one.lost_at = max(one.lost_at, since)  # it may be younger than the last call
            one.live, one.gathered = False, []

    def call(self, command: str, one: Subscription, **params: Any) -> None:
        """Call without waiting for the answer."""
        assert self.connection is not None
        self._number += 1
        self.calls[self._number] = command, one
        message = {
            "command": command,
            "params": {"token": one.token, **params},
            "callId": self._number,
        }
        text = json.dumps({"service": "datasync", "message": message})
        self.connection.feed(client_frame(0x81, text.encode()))

    def acquire(self, one: Subscription) -> None:
        """Acquire a subscription, or resume it."""
        assert self.connection is not None
        one.taken = one.taken or self.connection.session.open  # a page that stalls may not know
        one.asked_at = self.life.now
        self.call(
            "acquireSubscription", one, **({"position": one.position} if one.resumable else {})
        )

    def read(self) -> bool:
        """Read what has come; tell whether there was anything."""
        connection = self.connection
        if connection is None:
            return False
        came = oracles.server_frames(bytes(connection.sent))
        new, self._read = came[self._read :], len(came)
        for opcode, payload in new:
            match opcode:
                case frames.TEXT:
                    self.hear(json.loads(payload)["message"])
                case frames.PING:
                    connection.feed(client_frame(0x8A, payload))
                case frames.CLOSE:
                    code = int.from_bytes(payload[:2], "big")
                    assert code in self.may_close, f"closed with {code}"
                    connection.feed(client_frame(0x88, payload[:2]))
                    self.disconnected()
        return bool(new)

    def covered(self) -> list[Subscription]:
        """Return those that a position is about: what is live, or a replay before all else is."""
        live = [one for one in self.subscriptions.values() if one.resumable and one.live]
        acquired = (one for name, one in self.calls.values() if name == "acquireSubscription")
        return live or [one for one in acquired if one.resumable][:1]

    def hear(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "delta", "delta": {"tag": tag} as delta}:
                one = self.subscriptions[tag]
                assert one.taken, "a delta before it was asked for"
                one.gathered.append(_without_tag(delta))
            case {"type": "position", "position": position}:
                for one in self.covered():
                    self.life.reached(one, position)
            case {"type": "response", "callId": number, "data": data}:
                command, one = self.calls.pop(number)
                if command == "cancelSubscription":
                    self.subscriptions.pop(one.tag, None)
                else:
                    one.live = True
                    self.life.check_acquired(one)
                    if one.resumable:
                        self.life.reached(one, data["position"])
            case {"type": "error", "callId": number, "code": code}:
                command, one = self.calls.pop(number)
                self.life.check_refused(command, one, code, message.get("reason"))
                self.subscriptions.pop(one.tag, None)
            case {"type": "refetch", "token": token, "reason": reason}:
                [one] = [one for one in self.subscriptions.values() if one.token == token]
                assert reason in one.endings, f"told {reason}, though {one.endings}"
                del self.subscriptions[one.tag]
            case _:
                raise AssertionError(message)


class Life:
    """A service, its log and its pages.

    :ivar log: what was published, with its place.
    :ivar largest: how long the longest batch was.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.engine = MemoryEngine(LIMITS, clock=loop.time)
        self.service = DataSyncService("datasync", dealers(), engine=self.engine, limits=LIMITS)
        self.frontend = ServiceRegistry([self.service], limits=LIMITS)
        self.backend = ServiceRegistry([DataSyncBackend("backend", self.service)], limits=LIMITS)
        self.wheel = Wheel()
        self.terms = Terms(self.frontend, NativeProtocol, self.wheel, LIMITS.ping_seconds)
        self.pages = [Page(self), Page(self)]
        self.ghosts: list[MemoryConnection] = []
        self.rows: dict[int, Row] = {}
        self.log: list[tuple[int, Delta]] = []
        self.place = self.largest = 0
        self._numbers = 0

    @property
    def now(self) -> float:
        """Return the time, which is virtual."""
        return self._loop.time()

    def number(self) -> int:
        """Return a number that was never used."""
        self._numbers += 1
        return self._numbers

    # What the web app does.

    async def ask(self, command: str, **params: Any) -> Any:
        """Make a call that is fine."""
        answer = await backend_call(self.backend, "backend", command, **params)
        assert answer["type"] == "response", answer
        return answer["data"]

    async def publish(self, *batches: list[tuple[int, int, int]]) -> None:
        """Commit writes of (id, group, size) and publish their batches; size -1 deletes.

        All at once, so that they may come in one turn of the loop.
        """
        wires = [list(self.commit(batch)) for batch in batches]
        lengths = [len(json.dumps(deltas)) + 200 * len(deltas) for deltas in wires]
        self.largest = max(self.largest, *lengths)
        await asyncio.gather(*(self.ask("publishDeltas", deltas=deltas) for deltas in wires))
        await self.look()
        for place, deltas in enumerate(wires, self.place - len(wires) + 1):
            self.log += [(place, Delta.parse(wire)) for wire in deltas]

    def commit(self, batch: list[tuple[int, int, int]]) -> Iterator[dict[str, Any]]:
        """Change rows and give the deltas."""
        for key, group, size in batch:
            old = self.rows.pop(key, None)
            new = {"id": key, "group": group, "n": self.number(), "pad": "x" * size}
            if size >= 0:
                self.rows[key] = new
            if old is not None and size >= 0:
                yield {"type": "update", "model": "Row", "oldData": old, "newData": new}
            elif size >= 0:
                yield {"type": "insert", "model": "Row", "data": new}
            elif old is not None:
                yield {"type": "delete", "model": "Row", "data": old}

    async def authorize(self, page: Page, name: str, *, resumable: bool) -> None:
        """Give a page a token."""
        tag = f"tag {self.number()}"
        token = await self.ask("authorizeSubscription", items=[{**ITEMS[name][0], "tag": tag}])
        page.subscriptions[tag] = Subscription(token, name, tag, resumable, self.place, self.now)

    async def look(self) -> None:
        """Note how far the log is."""
        self.place = (await self.engine.head("datasync")).offset

    # What happens to connections.

    def drain(self) -> None:
        """Send all pages elsewhere, as a server does that ends."""
        for page in self.pages:
            page.may_close.add(CloseCode.DRAIN)
        for session in list(self.frontend.sessions):
            session.close(CloseCode.DRAIN, '{"retry_after": 0}')

    def stall(self, page: Page) -> None:
        """Let a page read nothing for a while."""
        assert page.connection is not None
        page.connection.stalled = True
        page.may_close |= {CloseCode.SLOW, CloseCode.NO_PONG}

    async def wait(self, seconds: int) -> None:
        """Let time pass."""
        for _ in range(0, seconds, _LOOK_SECONDS):
            await asyncio.sleep(_LOOK_SECONDS)
            await self.rest()

    async def rest(self) -> None:
        """Let all happen that can, and check."""
        await turns(30)
        for page in self.pages:
            connection = page.connection
            if connection is not None and not connection.session.open and page.let_go_at is None:
                page.let_go_at = self.now
        while sum(page.read() for page in self.pages):
            await turns(30)
        await self.look()
        self.check()

    # What must be.

    def narrowed(self, one: Subscription, upto: int) -> list[Any]:
        """Return what a subscription should be told between its place and another."""
        sees = ITEMS[one.name][1]
        told = []
        for place, delta in self.log:
            if not one.place < place <= upto:
                continue
            before = delta.old is not None and sees(dict(delta.old))
            after = delta.new is not None and sees(dict(delta.new))
            if before or after:
                kind = "update" if before and after else "insert" if after else "delete"
                told.append(delta.narrowed(kind).for_json())
        return told

    def reached(self, one: Subscription, position: str) -> None:
        """Hear that a page has all up to a position, and check that it has."""
        place = Position.parse(position).offset
        assert place >= one.place, "a position that goes back"
        assert one.gathered == self.narrowed(one, place), f"{one.name} {one.place} to {place}"
        one.place, one.position, one.gathered = place, position, []

    def check_acquired(self, one: Subscription) -> None:
        """A subscription that is over cannot be acquired, unless its cancel was never read."""
        gone_for = one.asked_at - one.lost_at
        assert one.endings <= {"cancelled"}, f"acquired though {one.endings}"
        one.endings.clear()
        assert gone_for < LIMITS.resume_seconds + _UNNOTICED_SECONDS, "acquired though expired"

    def check_refused(self, command: str, one: Subscription, code: str, reason: str | None) -> None:
        """A subscription is refused only for a reason that there is."""
        may = set()
        if one.endings:
            may |= {("refetch", "expired"), ("no_such_subscription", None)}
            may |= {("refetch", reason) for reason in one.endings}
        if self.now - one.lost_at >= LIMITS.resume_seconds - _LOOK_SECONDS:
            may |= {("refetch", "expired"), ("no_such_subscription", None)}
        if self.place - one.place > RETAINED:
            may.add(("refetch", "trimmed"))
        assert (code, reason) in may, f"{command}: {code} {reason}, though {one}"

    def check(self) -> None:
        """Whoever reads has all; nobody costs more than is allowed."""
        connections = [page.connection for page in self.pages if page.connection is not None]
        held = [one for one in (*connections, *self.ghosts) if not one.gone]
        assert self.frontend.sockets == len(held)
        for page in self.pages:
            connection = page.connection
            if connection is None:
                continue
            entry = self.largest * len(page.subscriptions)  # which is taken whole
            assert connection.session.pending <= 2 * OUTBOX + entry
            if connection.stalled:
                continue
            assert not connection.gone, "closed without a word"
            assert not page.calls, f"without an answer: {page.calls}"
            for one in page.subscriptions.values():
                if one.live:
                    assert not one.endings, f"not told that {one.endings}"
                    assert one.gathered == ([] if one.resumable else self.narrowed(one, self.place))
                    assert not (one.resumable and self.narrowed(one, self.place)), "not told all"

    async def close(self) -> None:
        """Let all go; nothing is left of them."""
        for connection in (*self.ghosts, *(page.connection for page in self.pages)):
            if connection is not None:
                connection.cut()
        await turns(60)
        assert not self.frontend.sockets
        assert not self.frontend.sessions
        assert not len(self.service.subscriptions.peers)
        assert self.service.views.counts == (0, 0)
        self.wheel.close()
        await self.service.close()
        await self.engine.close()


def _without_tag(delta: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in delta.items() if name != "tag"}
