"""A session: calls one at a time, an outbox with a bound, and one end."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from syncserver.config import Limits
from syncserver.errors import CloseCode
from syncserver.flusher import Flusher
from syncserver.protocols.base import Command, Event, Frame, Message, Notification, Run
from syncserver.protocols.native import NativeProtocol
from syncserver.session import Client, Session
from tests.conftest import ExpectedLog
from tests.support.calls import turns
from tests.support.toy import ToyProtocol
from tests.support.virtual import on_virtual_time

LIMITS = Limits(
    max_outbox_bytes=1_000, max_inbox_bytes=1_000, max_inbox_messages=10, stall_seconds=10
)
SMALL = Frame((b"x" * 84,))  # counts 100


class Pipe:
    """A transport in memory.

    :param stalled: takes what it is given, and says that it has not left.
    """

    def __init__(self, *, stalled: bool = False) -> None:
        self.writes: list[list[bytes]] = []
        self.closes: list[tuple[int, str]] = []
        self.stalled = stalled
        self.broken = False

    def write(self, run: Run) -> bool:
        if self.broken:
            raise OSError("broken pipe")
        self.writes.append([text for frame in run for text in frame.texts])
        return not self.stalled

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))

    @property
    def texts(self) -> list[bytes]:
        return [text for texts in self.writes for text in texts]


class Peer:
    """A session with all that is around it."""

    def __init__(
        self,
        dispatch: Callable[[Client, Message | Command], Awaitable[None] | None] | None = None,
        *,
        flusher: Flusher | None = None,
        stalled: bool = False,
        limits: Limits = LIMITS,
    ) -> None:
        self.pipe = Pipe(stalled=stalled)
        self.handled: list[Any] = []
        self.ends: list[Session] = []
        self.session = Session(
            NativeProtocol(),
            self.pipe,
            flusher or Flusher(),
            dispatch=dispatch or self.handle,
            on_end=self.ends.append,
            limits=limits,
            remote_address="peer",
        )

    def handle(self, client: Client, message: Message | Command) -> None:
        assert isinstance(message, Message)
        self.handled.append(message.payload)

    def drain(self) -> None:
        self.pipe.stalled = False
        self.session.drained()


def text(payload: Any) -> str:
    return f'{{"service":"s","message":{payload}}}'


# In.


async def test_messages_are_handled_at_once_and_in_order_as_long_as_nothing_suspends() -> None:
    peer = Peer()
    for number in range(100):
        peer.session.receive(text(number))
        assert peer.handled == list(range(number + 1))
    assert peer.session.open


async def test_a_message_that_suspends_holds_back_the_next_and_nothing_else() -> None:
    gate, log = asyncio.Event(), list[str]()

    async def handle(client: Client, message: Message | Command) -> None:
        assert isinstance(message, Message)
        log.append(f"begin {message.payload}")
        await gate.wait()
        log.append(f"end {message.payload}")

    peer = Peer(handle)
    for number in range(3):
        peer.session.receive(text(number))
    await turns()
    assert log == ["begin 0"]
    peer.session.put(SMALL)
    await turns()
    assert peer.pipe.texts == list(SMALL.texts)
    gate.set()
    await turns()
    assert log == ["begin 0", "end 0", "begin 1", "end 1", "begin 2", "end 2"]


async def test_what_cannot_be_read_is_answered_in_its_turn() -> None:
    gate = asyncio.Event()

    async def handle(client: Client, message: Message | Command) -> None:
        await gate.wait()
        client.send({"service": "s", "message": "first"})

    peer = Peer(handle)
    peer.session.receive(text(1))
    peer.session.receive("{")
    peer.session.receive(b"\xff")
    await turns()
    assert peer.pipe.texts == []
    gate.set()
    await turns()
    assert b"first" in peer.pipe.texts[0]
    assert [b"invalid_json" in answer for answer in peer.pipe.texts[1:]] == [True, True]
    assert peer.session.open


async def test_a_message_that_fails_is_logged_and_the_next_one_is_handled(
    expected_log: ExpectedLog,
) -> None:
    handled = list[Any]()

    async def handle(client: Client, message: Message | Command) -> None:
        assert isinstance(message, Message)
        handled.append(message.payload)
        await asyncio.sleep(0)
        if message.payload == 0:
            raise LookupError("nobody caught it")

    peer = Peer(handle)
    with expected_log("syncserver.session", "A message was not handled"):
        peer.session.receive(text(0))
        peer.session.receive(text(1))
        await turns()
    assert handled == [0, 1]
    assert peer.session.open


@pytest.mark.parametrize(("payload", "count"), [("1", 11), ('"%s"' % ("x" * 300), 4)])
async def test_an_inbox_over_its_bound_ends_the_session_and_says_when_to_come_again(
    payload: str, count: int
) -> None:
    gate = asyncio.Event()

    async def handle(client: Client, message: Message | Command) -> None:
        await gate.wait()

    peer = Peer(handle)
    peer.session.receive(text(0))
    for _ in range(count - 1):
        peer.session.receive(text(payload))
    assert peer.session.open
    peer.session.receive(text(payload))
    assert not peer.session.open
    await turns()
    assert peer.pipe.closes == [(CloseCode.RATE, '{"retry_after": 1000}')]
    assert peer.ends == [peer.session]
    gate.set()


async def test_nothing_is_handled_after_the_end() -> None:
    handled = list[Any]()
    gate = asyncio.Event()

    async def handle(client: Client, message: Message | Command) -> None:
        assert isinstance(message, Message)
        handled.append(message.payload)
        await gate.wait()

    peer = Peer(handle)
    for number in range(3):
        peer.session.receive(text(number))
    await turns()
    peer.session.close(CloseCode.DRAIN)
    peer.session.receive(text(4))
    gate.set()
    await turns()
    assert handled == [0]


async def test_a_message_that_ends_the_session_is_the_last_one_handled() -> None:
    handled = list[Any]()
    gate = asyncio.Event()

    def handle(client: Client, message: Message | Command) -> Awaitable[None] | None:
        assert isinstance(message, Message)
        handled.append(message.payload)
        if message.payload == 0:
            return gate.wait()  # type: ignore[return-value]
        peer.session.close(CloseCode.IDENTITY_REVOKED)
        return None

    peer = Peer(handle)
    for number in range(4):
        peer.session.receive(text(number))
    gate.set()
    await turns()
    assert handled == [0, 1]


# Out.


async def test_what_a_turn_gathered_leaves_in_one_write() -> None:
    peer = Peer()
    for number in range(5):
        peer.session.put(Frame((b"%d" % number,)))
    assert peer.pipe.writes == [], "put wrote by itself"
    await turns()
    assert peer.pipe.writes == [[b"0", b"1", b"2", b"3", b"4"]]
    assert peer.session.pending == 0


async def test_what_comes_while_a_write_is_under_way_waits_and_is_joined() -> None:
    peer = Peer(stalled=True)
    for number in range(4):
        peer.session.put(Frame((b"%d" % number,)))
        await turns()
    assert peer.pipe.writes == [[b"0"]]
    peer.drain()
    await turns()
    assert peer.pipe.writes == [[b"0"], [b"1", b"2", b"3"]]
    assert peer.session.pending == 0


async def test_an_outbox_over_its_bound_ends_the_session_once_and_nobody_waits() -> None:
    flusher = Flusher()
    slow, other = Peer(flusher=flusher, stalled=True), Peer(flusher=flusher)
    slow.session.put(SMALL)
    await turns()
    for _ in range(9):
        slow.session.put(SMALL)
    assert slow.session.open
    assert slow.session.pending == LIMITS.max_outbox_bytes
    for _ in range(5):
        slow.session.put(SMALL)
        other.session.put(SMALL)
    assert not slow.session.open
    assert slow.ends == [], "the end was told in the middle of a fan-out"
    await turns()
    assert slow.pipe.closes == [(CloseCode.SLOW, "")]
    assert slow.pipe.texts == list(SMALL.texts), "what waits is given up, so that memory returns"
    assert slow.ends == [slow.session]
    assert len(other.pipe.texts) == 5


async def test_what_is_under_way_counts_for_the_bound() -> None:
    peer = Peer(stalled=True)
    for _ in range(6):
        peer.session.put(SMALL)
    await turns()
    for _ in range(4):
        peer.session.put(SMALL)
    assert peer.session.open
    peer.session.put(SMALL)
    assert not peer.session.open


async def test_a_frame_larger_than_the_bound_goes_into_an_empty_outbox_alone() -> None:
    huge = Frame((b"x" * 5_000,))
    peer = Peer(stalled=True)
    peer.session.put(huge)
    await turns()
    assert peer.session.open
    peer.drain()
    await turns()
    peer.session.put(huge)
    await turns()
    assert len(peer.pipe.texts) == 2
    peer.session.put(SMALL)
    assert peer.session.open, "the huge one has left"
    peer.pipe.stalled = True
    peer.session.put(huge)
    assert not peer.session.open


async def test_who_reads_is_not_slow_however_much_comes_in_one_turn_of_the_loop() -> None:
    peer = Peer()
    numbered = [Frame((b"%04d" % number + b"x" * 80,)) for number in range(1_000)]
    for frame in numbered:
        peer.session.put(frame)
        assert peer.session.pending <= LIMITS.max_outbox_bytes
    await turns()
    assert peer.session.open
    assert peer.pipe.texts == [text for frame in numbered for text in frame.texts]
    assert len(peer.pipe.writes) == 100, "ten at a time, as many as may wait"


async def test_a_peer_that_stops_reading_in_the_midst_of_much_is_slow() -> None:
    peer = Peer()
    for _ in range(25):
        peer.session.put(SMALL)
    peer.pipe.stalled = True
    for _ in range(16):
        peer.session.put(SMALL)
    assert not peer.session.open
    await turns()
    assert peer.pipe.closes == [(CloseCode.SLOW, "")]
    assert peer.ends == [peer.session]


async def test_what_the_kernel_did_not_take_in_this_turn_is_no_sign_of_a_slow_peer() -> None:
    """Its buffer is bounded too; a peer has not had a chance to read when it is full."""
    peer, six_hundred = Peer(stalled=True), Frame((b"x" * 584,))
    for _ in range(3):
        peer.session.put(six_hundred)
    assert peer.session.open
    await turns()
    peer.drain()
    await turns()
    assert len(peer.pipe.texts) == 3
    assert peer.session.open


async def test_no_more_than_twice_the_bound_waits_even_in_one_turn() -> None:
    peer = Peer(stalled=True)
    for _ in range(20):
        peer.session.put(SMALL)
    assert peer.session.open
    peer.session.put(SMALL)
    assert not peer.session.open


async def test_what_is_handed_over_early_stands_in_line_once() -> None:
    flusher = Flusher()
    peer, told = Peer(flusher=flusher), list[int]()
    for _ in range(100):
        peer.session.put(SMALL)
    flusher.after(lambda: told.append(len(peer.pipe.texts)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == [100]
    assert len(flusher._due) == 0


async def test_a_peer_that_did_not_take_what_it_was_given_in_a_turn_before_is_slow() -> None:
    peer = Peer(stalled=True)
    peer.session.put(SMALL)
    await turns()
    for _ in range(9):
        peer.session.put(SMALL)
    assert peer.session.open
    peer.session.put(SMALL)
    assert not peer.session.open


async def test_a_transport_that_breaks_as_much_comes_ends_its_session_alone(
    expected_log: ExpectedLog,
) -> None:
    flusher = Flusher()
    broken, other = Peer(flusher=flusher), Peer(flusher=flusher)
    broken.pipe.broken = True
    with expected_log("syncserver.session", "Cannot write to"):
        for _ in range(30):
            broken.session.put(SMALL)
            other.session.put(SMALL)
        assert not broken.session.open
        await turns()
    assert broken.pipe.closes == [(CloseCode.INTERNAL, "")]
    assert len(other.pipe.texts) == 30


async def test_a_put_in_a_fan_out_never_calls_back() -> None:
    peers: dict[Session, None] = {}
    ended = list[Session]()

    def end(session: Session) -> None:
        ended.append(session)
        del peers[session]

    for _ in range(5):
        flusher = Flusher()
        session = Session(
            NativeProtocol(), Pipe(stalled=True), flusher,
            dispatch=lambda *_: None, on_end=end, limits=LIMITS,
        )  # fmt: skip
        peers[session] = None
    for session in peers:  # a callback would change what is iterated
        for _ in range(21):
            session.put(SMALL)
    await turns()
    assert len(ended) == 5
    assert not peers


async def test_events_are_encoded_by_the_session_s_own_protocol() -> None:
    pipe = Pipe()
    session = Session(
        ToyProtocol(), pipe, Flusher(),
        dispatch=lambda *_: None, on_end=lambda _: None, limits=LIMITS,
    )  # fmt: skip
    session.tell(Notification("s", 1))
    session.tell(Notification("s", 2))
    await turns()
    assert pipe.writes == [[b'1|{"service":"s","message":1}', b'2|{"service":"s","message":2}']]


async def test_what_json_cannot_carry_is_refused_and_puts_nothing() -> None:
    peer = Peer()
    with pytest.raises(ValueError, match="no JSON"):
        peer.session.send({"service": "s", "message": {1, 2}})
    await turns()
    assert peer.pipe.texts == []
    assert peer.session.open


# Waiting for room.


@on_virtual_time
async def test_an_outbox_that_is_half_empty_is_writable_at_once() -> None:
    peer = Peer(stalled=True)
    assert await peer.session.writable()
    for _ in range(5):
        peer.session.put(SMALL)
    assert await peer.session.writable()


@on_virtual_time
async def test_a_full_outbox_is_writable_when_it_has_left() -> None:
    peer = Peer(stalled=True)
    for _ in range(9):
        peer.session.put(SMALL)
    waiting = [asyncio.ensure_future(peer.session.writable()) for _ in range(3)]
    await asyncio.sleep(LIMITS.stall_seconds - 1)
    assert not any(future.done() for future in waiting)
    peer.drain()
    assert await asyncio.gather(*waiting) == [True, True, True]
    await asyncio.sleep(LIMITS.stall_seconds * 2)
    assert peer.session.open


@on_virtual_time
async def test_a_full_outbox_that_leaves_at_once_is_writable_after_the_flush() -> None:
    peer = Peer()
    for _ in range(9):
        peer.session.put(SMALL)
    assert await peer.session.writable()
    assert len(peer.pipe.texts) == 9


@on_virtual_time
async def test_a_peer_that_stalls_is_cut_off_and_waiting_ends() -> None:
    peer = Peer(stalled=True)
    for _ in range(9):
        peer.session.put(SMALL)
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert await peer.session.writable() is False
    assert loop.time() - start == pytest.approx(LIMITS.stall_seconds)
    await turns()
    assert peer.pipe.closes == [(CloseCode.SLOW, "")]
    assert peer.ends == [peer.session]


@pytest.mark.parametrize("end", ["close", "abort", "connection_lost"])
@on_virtual_time
async def test_waiting_for_room_ends_with_the_session(end: str) -> None:
    peer = Peer(stalled=True)
    for _ in range(9):
        peer.session.put(SMALL)
    waiting = asyncio.ensure_future(peer.session.writable())
    await turns()
    finish(peer, end)
    assert await waiting is False
    assert asyncio.get_running_loop().time() == 0


@on_virtual_time
async def test_a_cancelled_wait_leaves_the_session_as_it_was() -> None:
    peer = Peer(stalled=True)
    for _ in range(9):
        peer.session.put(SMALL)
    first, second = (asyncio.ensure_future(peer.session.writable()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    assert not second.done()
    peer.drain()
    assert await second


# The flusher.


async def test_a_turn_of_the_loop_flushes_a_slice_of_the_sessions() -> None:
    flusher = Flusher()
    peers = [Peer(flusher=flusher) for _ in range(600)]
    for peer in peers:
        peer.session.put(SMALL)
    served = []
    for _ in range(4):
        await asyncio.sleep(0)
        served.append(sum(bool(peer.pipe.writes) for peer in peers))
    assert served == [256, 512, 600, 600]
    assert all(peer.pipe.writes for peer in peers[:600])


async def test_a_session_is_flushed_once_in_a_turn_however_much_it_is_sent() -> None:
    peer = Peer(limits=Limits())
    for _ in range(1_000):
        peer.session.put(SMALL)
    await turns()
    assert len(peer.pipe.writes) == 1


async def test_what_is_put_while_others_are_flushed_leaves_too() -> None:
    flusher = Flusher()
    peers = [Peer(flusher=flusher) for _ in range(300)]
    for peer in peers:
        peer.session.put(SMALL)
    await asyncio.sleep(0)
    for peer in peers:
        peer.session.put(SMALL)
    await turns()
    assert {len(peer.pipe.texts) for peer in peers} == {2}


async def test_a_transport_that_fails_ends_its_session_and_no_other(
    expected_log: ExpectedLog,
) -> None:
    flusher = Flusher()
    peers = [Peer(flusher=flusher) for _ in range(3)]
    peers[1].pipe.broken = True
    with expected_log("syncserver.session", "Cannot write to peer"):
        for peer in peers:
            peer.session.put(SMALL)
        await turns()
    assert [peer.session.open for peer in peers] == [True, False, True]
    assert peers[1].pipe.closes == [(CloseCode.INTERNAL, "")]
    assert peers[1].ends == [peers[1].session]
    for peer in peers:
        peer.session.put(SMALL)
    await turns()
    assert [len(peer.pipe.texts) for peer in peers] == [2, 0, 2]


async def test_a_transport_that_fails_at_the_last_write_is_closed_all_the_same(
    expected_log: ExpectedLog,
) -> None:
    peer = Peer()
    peer.pipe.broken = True
    with expected_log("syncserver.session", "Cannot write to peer"):
        peer.session.put(SMALL)
        peer.session.close(CloseCode.DRAIN)
        await turns()
    assert peer.pipe.closes == [(CloseCode.DRAIN, "")]
    assert peer.ends == [peer.session]


# The end.


def finish(peer: Peer, how: str) -> None:
    match how:
        case "close":
            peer.session.close(CloseCode.DRAIN, "r")
        case "abort":
            peer.session.abort(CloseCode.NO_PONG)
        case "slow":
            peer.pipe.stalled = True
            for _ in range(20):
                peer.session.put(SMALL)
        case _:
            peer.session.connection_lost()


async def test_closing_writes_what_waits_and_then_closes() -> None:
    peer = Peer()
    peer.session.put(Frame((b"one",)))
    peer.session.put(Frame((b"two",)))
    peer.session.close(CloseCode.DRAIN, "r")
    peer.session.put(Frame((b"too late",)))
    await turns()
    assert peer.pipe.writes == [[b"one", b"two"]]
    assert peer.pipe.closes == [(CloseCode.DRAIN, "r")]


async def test_closing_writes_what_waits_behind_a_write_that_is_under_way() -> None:
    peer = Peer(stalled=True)
    peer.session.put(Frame((b"one",)))
    await turns()
    peer.session.put(Frame((b"two",)))
    peer.session.close(CloseCode.DRAIN, "r")
    await turns()
    assert peer.pipe.writes == [[b"one"], [b"two"]]
    assert peer.pipe.closes == [(CloseCode.DRAIN, "r")]
    peer.drain()
    await turns()
    assert len(peer.pipe.writes) == 2


async def test_aborting_forgets_what_waits() -> None:
    peer = Peer()
    peer.session.put(SMALL)
    peer.session.abort(CloseCode.NO_PONG)
    await turns()
    assert peer.pipe.writes == []
    assert peer.pipe.closes == [(CloseCode.NO_PONG, "")]


async def test_a_lost_connection_is_neither_written_to_nor_closed() -> None:
    peer = Peer()
    peer.session.put(SMALL)
    peer.session.connection_lost()
    assert peer.ends == [peer.session]
    await turns()
    assert peer.pipe.writes == peer.pipe.closes == []
    assert peer.session.pending == 0


ENDS = ("close", "abort", "slow", "connection_lost")


@pytest.mark.parametrize("between", [0, 1, 5])
@pytest.mark.parametrize("stalled", [True, False])
async def test_a_session_ends_once_however_often_it_is_ended(stalled: bool, between: int) -> None:
    for ends in itertools.product(ENDS, repeat=3):
        await end_again_and_again(ends, stalled, between)


async def end_again_and_again(ends: Sequence[str], stalled: bool, between: int) -> None:
    peer = Peer(stalled=stalled)
    peer.session.put(SMALL)
    for how in ends:
        finish(peer, how)
        assert not peer.session.open
        await turns(between)
    peer.session.connection_lost()
    peer.session.drained()
    await turns()
    assert peer.ends == [peer.session]
    assert len(peer.pipe.closes) <= 1
    written = len(peer.pipe.texts)
    peer.session.put(SMALL)
    peer.session.tell(Notification("s", 1))
    peer.session.receive(text(1))
    await turns()
    assert len(peer.pipe.texts) == written
    assert peer.handled == []


# What is shared.


class Keeping(Pipe):
    """Keeps the runs themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def write(self, run: Run) -> bool:
        self.runs.append(run)
        return True


async def test_sessions_that_are_put_the_same_frames_share_one_run() -> None:
    flusher = Flusher()
    peers = [Peer(flusher=flusher) for _ in range(5)]
    pipes = [Keeping() for _ in peers]
    for peer, pipe in zip(peers, pipes, strict=True):
        peer.session._transport = pipe
    first, second, other = (Frame((b"%d" % number,)) for number in range(3))
    for peer in peers:
        peer.session.put(first)
    peers[2].session.put(other)
    for peer in peers:
        peer.session.put(second)
    await turns()
    [shared] = {pipe.runs[0] for pipe in pipes if pipe is not pipes[2]}
    assert list(shared) == [first, second]
    assert list(pipes[2].runs[0]) == [first, other, second]
    assert not flusher.extended, "nothing is kept after the round"


async def test_a_turn_hands_over_a_bounded_number_of_bytes() -> None:
    flusher = Flusher()
    limits = Limits(max_outbox_bytes=100 * 2**20)
    peers = [Peer(flusher=flusher, limits=limits) for _ in range(5)]
    huge = Frame((bytes(5 * 2**20),))
    for peer in peers:
        peer.session.put(huge)
    written = []
    while len(written) < 4:
        await asyncio.sleep(0)
        written.append(sum(bool(peer.pipe.writes) for peer in peers))
    assert written == [2, 4, 5, 5]


# What a protocol does by itself.


class Porter(NativeProtocol):
    """Answers ``knock`` by itself, and ends the session after ``leave``."""

    def receive(self, text: str | bytes) -> Sequence[Message | Command | Event]:
        if text == "knock":
            return [Notification("door", "who is there")]
        return [Command("door", str(text), {}), Notification("door", text)]

    def encode(self, event: Event) -> tuple[bytes, ...]:
        if event == Notification("door", "leave"):
            self.closing = CloseCode.BAD_PROTOCOL
        return super().encode(event)


async def test_what_a_protocol_answers_by_itself_comes_in_its_turn() -> None:
    free = asyncio.Event()

    async def handle(client: Client, message: Message | Command) -> None:
        await free.wait()

    peer = Peer(handle)
    peer.session.protocol = Porter()
    peer.session.receive("wait")
    peer.session.receive("knock")
    await turns()
    assert peer.pipe.texts == []
    free.set()
    await turns()
    assert [json.loads(text)["message"] for text in peer.pipe.texts] == ["wait", "who is there"]


async def test_a_protocol_ends_its_session_after_what_it_last_said() -> None:
    peer = Peer(lambda client, message: None)
    peer.session.protocol = Porter()
    peer.session.receive("leave")
    peer.session.receive("knock")
    await turns()
    assert [json.loads(text)["message"] for text in peer.pipe.texts] == ["leave"]
    assert peer.pipe.closes == [(CloseCode.BAD_PROTOCOL, "")]
    assert peer.ends == [peer.session]


async def test_what_belongs_to_one_entry_is_taken_whole_into_an_empty_outbox() -> None:
    large = Frame((b"x" * 900,))
    peer = Peer(stalled=True)
    for _ in range(3):
        peer.session.put(large, 7)
    assert peer.session.open
    peer.session.put(SMALL, 8)
    assert peer.session.open, "what is small after it"
    for _ in range(3):
        peer.session.put(large, 8)
    assert not peer.session.open


async def test_an_entry_that_began_behind_another_is_not_taken_beyond_the_bound() -> None:
    peer = Peer(stalled=True)
    peer.session.put(SMALL, 1)
    for _ in range(3):
        peer.session.put(Frame((b"x" * 600,)), 2)
        assert peer.session.open, "not twice as much yet, and all in one turn of the loop"
    peer.session.put(Frame((b"x" * 600,)), 2)
    assert not peer.session.open


async def test_a_replay_goes_on_when_little_waits_however_large_the_outbox() -> None:
    peer = Peer(stalled=True, limits=Limits(max_outbox_bytes=2**20))
    peer.session.put(Frame((bytes(100_000),)))
    await turns()
    waiting = asyncio.ensure_future(peer.session.writable(10))
    await turns()
    assert not waiting.done()
    peer.drain()
    assert await waiting
