"""Connections that are silent for 70 seconds, through nginx and Caddy, with no time made shorter.

``make idle`` runs it, and .ci/run beside the tests.

nginx closes what was silent for its ``proxy_read_timeout``, 60 seconds in the how-to's file.
With the default settings the daemon's pings keep a WebSocket, a stream of events and one of SockJS.
That it is they who do is shown beside a daemon without: its WebSocket is cut.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trustme

from syncserver.config import Limits
from tests.support.daemon import Daemon, serving, settings
from tests.support.fronts import PROXIES, Front, needs

IDLE_SECONDS = 70
TIMEOUT_SECONDS = 60  # of nginx, by default and in the file
EARLIEST_SECONDS = 0.9 * TIMEOUT_SECONDS
ALL = ("AllTasks", None)

Check = Callable[[], Awaitable[object]]


@asynccontextmanager
async def websocket(daemon: Daemon, front: Front) -> AsyncIterator[Check]:
    peer = await front.connect()
    token = await daemon.authorize(ALL)
    await peer.call("datasync", "acquireSubscription", token=token, position=None)
    yield lambda: peer.notice("delta")
    await peer.close()


@asynccontextmanager
async def events(daemon: Daemon, front: Front) -> AsyncIterator[Check]:
    token = json.dumps({"token": await daemon.authorize(ALL)})
    opened = await front.request("/events", token, Content_Type="application/json")
    async with front.stream(f"/events?stream={json.loads(opened.body)['stream']}") as stream:
        await stream.until("event: position")
        yield lambda: stream.until('"newly"')


@asynccontextmanager
async def sockjs(daemon: Daemon, front: Front) -> AsyncIterator[Check]:
    place = f"/ws/sockjs/000/{front.port}"
    params = {"token": await daemon.authorize(ALL), "position": None}
    call = {"command": "acquireSubscription", "params": params, "callId": 1}
    text = json.dumps([json.dumps({"service": "datasync", "message": call})])
    async with front.stream(f"{place}/xhr_streaming", "--request", "POST") as stream:
        await stream.until("o\n")
        assert (await front.request(f"{place}/xhr_send", text)).code == 204
        await stream.until("response")
        yield lambda: stream.until('\\"newly\\"')


@asynccontextmanager
async def without_pings(daemon: Daemon, front: Front) -> AsyncIterator[Check]:
    """Give a check that a connection was cut, and not before nginx's time was over."""
    peer, loop = await front.connect(), asyncio.get_running_loop()
    began, ended = loop.time(), loop.create_future()

    async def watch() -> None:
        while await peer.connection.read_message() is not None:
            pass
        ended.set_result(loop.time() - began)

    async def check() -> None:
        assert ended.done(), f"it is open after {IDLE_SECONDS} s"
        assert ended.result() > EARLIEST_SECONDS, f"it was cut after {ended.result():.1f} s"

    watching = asyncio.ensure_future(watch())
    try:
        yield check
    finally:
        watching.cancel()
        peer.connection.close()


KINDS = {"WebSocket": websocket, "events": events, "SockJS": sockjs}


async def opened(held: AsyncExitStack, folder: Path) -> tuple[Daemon, Mapping[str, Check]]:
    """Open everything; return the daemon and what to expect of each connection later."""
    authority = trustme.CA()
    checks: dict[str, Check] = {}
    pinging, silent = [
        await held.enter_async_context(serving(config=settings(ping_seconds=seconds)))
        for seconds in (Limits().ping_seconds, 10 * IDLE_SECONDS)
    ]

    async def front(name: str, kind: str, daemon: Daemon) -> Front:
        place = folder / kind
        place.mkdir()
        upstream = f"127.0.0.1:{daemon.server.frontend_port}"
        return await held.enter_async_context(PROXIES[name](place, authority, upstream))

    for name in PROXIES:
        door = await front(name, name, pinging)
        for kind, connected in KINDS.items():
            check = await held.enter_async_context(connected(pinging, door))
            checks[f"{kind} through {name} is open"] = check
    door = await front("nginx", "silent", silent)
    check = await held.enter_async_context(without_pings(silent, door))
    checks["a WebSocket without pings through nginx was cut in its time"] = check
    return pinging, checks


async def run(idle_seconds: float = IDLE_SECONDS) -> int:
    """Open all connections, be silent, publish; return how many did not do what they should."""
    failed = 0
    async with AsyncExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        daemon, checks = await opened(held, folder)
        say(f"{len(checks)} connections are idle for {idle_seconds:g} s")
        await asyncio.sleep(idle_seconds)  # it is what is tested
        data = {"id": 1, "title": "newly"}
        await daemon.publish({"type": "insert", "model": "Task", "data": data})
        for name, check in checks.items():
            try:
                await check()
            except (AssertionError, EOFError, OSError) as error:  # a TimeoutError is one
                failed += 1
                say(f"FAILED: {name}: {type(error).__name__} {error}")
            else:
                say(f"passed: {name}")
    say(f"{len(checks) - failed} passed, {failed} failed")
    return failed


async def run_until_told() -> int:
    """Run it; SIGTERM ends it, with all that it has started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run it; return the exit code."""
    logging.basicConfig(level=logging.WARNING)
    try:
        for program in ("nginx", "caddy", "curl"):
            needs(program)
    except pytest.skip.Exception as reason:
        say(f"skipped: {reason}")
        return 0
    except pytest.fail.Exception as reason:
        say(f"FAILED: {reason}")
        return 1
    return 1 if asyncio.run(run_until_told()) else 0


if __name__ == "__main__":
    sys.exit(main())
