"""Several processes on one port: started, told of signals, and replaced when they fall.

Each is a whole daemon with its own sockets on the shared address (SO_REUSEPORT);
they have nothing in common but the store of their engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from syncserver.errors import Unavailable
from syncserver.process.notify import ALIVE, READY, STOPPING, notify
from syncserver.process.pulse import Pulse

logger = logging.getLogger("syncserver.workers")

_SETTLED_SECONDS = 5.0
_CANNOT_SERVE = 69
_BROKEN = 70
_PASSED_ON = (signal.SIGTERM, signal.SIGINT)
_HEARD = (*_PASSED_ON, signal.SIGHUP)


@contextlib.contextmanager
def reserved(address: str, port: int) -> Iterator[int]:
    """Hold an address for sockets that will share it; give its port, a free one for 0."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((address, port))
        yield holder.getsockname()[1]


def supervise(
    count: int,
    serve: Callable[[int, Pulse], int],
    *,
    watchdog_seconds: float | None = None,
    settled_seconds: float = _SETTLED_SECONDS,
    on_hangup: Callable[[], signal.Signals | None] = lambda: None,
    on_end: Callable[[], None] = lambda: None,
) -> int:
    """Run ``serve(number, pulse)`` in so many processes; return the exit code for this one.

    Systemd is told that the daemon is ready when each has given its first sign of life, and from
    then on that this process goes on. With ``watchdog_seconds`` a worker that is silent
    for so long is ended, and one that does not come to listen.
    The first SIGTERM or SIGINT is passed on as SIGTERM, after ``on_end``; it ends when all have
    ended. Others are passed on as SIGINT: who stops a service may send SIGTERM to all its
    processes, so that a worker may get it twice. For SIGHUP, what ``on_hangup`` makes of it is
    passed on. A process that falls is replaced; one that falls before it has settled ends
    them all, with its code.
    """
    pulse = Pulse(watchdog_seconds)
    return _Workers(serve, pulse, settled_seconds, on_hangup, on_end).run(count)


class _Workers:
    def __init__(
        self,
        serve: Callable[[int, Pulse], int],
        pulse: Pulse,
        settled_seconds: float,
        on_hangup: Callable[[], signal.Signals | None],
        on_end: Callable[[], None],
    ) -> None:
        self._serve = serve
        self._pulse = pulse
        self._is_ready = False
        self._settled_seconds = settled_seconds
        self._on_hangup = on_hangup
        self._on_end = on_end
        self._running: dict[int, tuple[int, float]] = {}
        self._ending = False
        self._code = 0
        self._lifeline = os.pipe()

    def run(self, count: int) -> int:
        for name in _PASSED_ON:
            signal.signal(name, self._pass_on)
        signal.signal(signal.SIGHUP, self._hang_up)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it only has to end the waiting
        self._pulse.attend()
        for number in range(count):
            self._start(number)
        while self._running:
            self._pulse.wait()
            self._reap()
            self._look(count)
        return self._code

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            worker = self._running.pop(pid, None)
            if worker is None:
                continue  # process 1 of a container gets the children of others too
            number, started = worker
            self._pulse.forget(number)
            self._ended(number, os.waitstatus_to_exitcode(status), time.monotonic() - started)

    def _look(self, count: int) -> None:
        """Tell systemd how the workers are, and end those that are not heard of any more."""
        if not self._is_ready and self._pulse.listening() == count:
            self._is_ready = True
            notify(READY)
        if self._pulse.seconds is not None:
            notify(ALIVE)
        silent = set() if self._ending else set(self._pulse.silent())
        for pid, (number, _) in tuple(self._running.items()):
            if number in silent:
                logger.error("Worker %s gives no sign of life; it is ended", number)
                for name in (signal.SIGABRT, signal.SIGCONT):  # one that is stopped hears it too
                    os.kill(pid, name)
                self._pulse.forget(number)

    def _start(self, number: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        if self._ending:  # nobody would tell this one
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
            return
        pid = os.fork()
        if pid:
            self._running[pid] = (number, time.monotonic())
            self._pulse.expect(number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        else:
            self._work(number)

    def _work(self, number: int) -> NoReturn:
        """Be a worker: a signal that comes before ``serve`` listens for it ends the process.

        But SIGHUP, which waits until then: ``serve`` lets it in.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the parent alone, which passes it on once
        for name in _PASSED_ON:
            signal.signal(name, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        code = _BROKEN
        try:
            self._end_with_parent()
            code = self._serve(number, self._pulse)
        except (OSError, Unavailable) as error:
            logger.error("Worker %s cannot start: %s", number, error)  # noqa: TRY400
            code = _CANNOT_SERVE
        except BaseException:
            logger.exception("Worker %s failed", number)
        finally:
            sys.stdout.flush()
            logging.shutdown()  # which tells what was counted and not written
            os._exit(code)

    def _end_with_parent(self) -> None:
        """Drain this worker when the parent is gone, however it went: its end of a pipe closes."""
        reading, writing = self._lifeline
        os.close(writing)
        main = threading.get_ident()

        def wait() -> None:
            os.read(reading, 1)
            signal.pthread_kill(main, signal.SIGTERM)

        threading.Thread(target=wait, name="parent", daemon=True).start()

    def _ended(self, number: int, code: int, lived_seconds: float) -> None:
        if self._ending:
            if -code not in _PASSED_ON:  # that one was told before it listened: nothing to drain
                self._code = self._code or (code if code >= 0 else _BROKEN)
        elif lived_seconds < self._settled_seconds:
            logger.error("Worker %s ended as it started (%s); ending all", number, code)
            self._code = code if code > 0 else _BROKEN
            self._end()
        else:
            logger.error("Worker %s ended (%s) and is replaced", number, code)
            self._start(number)

    def _hang_up(self, number: int, frame: object) -> None:
        meant = self._on_hangup()
        if meant == signal.SIGHUP:
            self._send(meant)
        elif meant is not None:
            self._pass_on(meant, None)

    def _pass_on(self, number: int, frame: object) -> None:
        if self._ending:
            self._send(signal.SIGINT)
        else:
            self._end()

    def _end(self) -> None:
        self._ending = True
        notify(STOPPING)
        self._on_end()
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for pid in tuple(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
