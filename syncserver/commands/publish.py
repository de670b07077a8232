"""``syncserver publish``: deltas from a file or standard input, in batches that count once.

The idempotency key of a batch is made of its content, its number and ``--run``: the same
input again, while the daemon remembers it (``limits.idempotency_seconds``), adds only
what is not there yet.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from syncserver import strict_json
from syncserver.commands import base
from syncserver.errors import ProtocolError

_BATCH = 500
_MAX_BATCH = 100_000
_BATCH_BYTES = 512 * 1024
_BAR = 30


def add(commands: base.Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "publish",
        help="publish deltas from a file or standard input",
        description="Publish deltas to a running daemon: a JSON array of them, or JSON lines (one"
        " on each line). They go in batches, each of which counts whole or not at all. After a"
        " failure run it again with the same input: what was taken is not taken twice.",
        epilog="Ends with 65 if a delta is refused (what stood in earlier batches is published),"
        " 66 if the input cannot be read, 69 if the daemon is not there, 77 if it refuses the"
        " key. Example: syncserver publish changes.jsonl",
        allow_abbrev=False,
    )
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="the deltas; - is standard input"
    )
    parser.add_argument(
        "--service",
        metavar="NAME",
        default="datasync_backend",
        help="the trusted half of the service (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=_count,
        default=_BATCH,
        help="deltas in one batch, at most limits.max_deltas of the daemon (default: %(default)s)",
    )
    parser.add_argument(
        "--run",
        metavar="NAME",
        dest="run_name",
        default="",
        help="a name for this run; with another name the same input counts anew",
    )
    base.add_daemon(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class _Delta:
    """A delta, its place in the input, for a person, and the bytes of the input read so far."""

    value: Any
    place: str
    size: int
    read: int


def run(options: argparse.Namespace) -> int:
    """Publish all there is."""
    daemon = base.find_daemon(options)
    try:
        import syncserver_client as client
    except ModuleNotFoundError:
        raise base.Failed(base.REFUSED, "the package syncserver-client is missing") from None
    total = 0
    with (
        _opened(options.file) as stream,
        client.Backend(daemon.url, daemon.key.reveal().decode()) as backend,
    ):
        bar = _Bar(_size(options.file))
        for number, batch in enumerate(_batches(_deltas(stream), options.batch)):
            key = _idempotency_key(options, number, batch)
            try:
                backend.publish(
                    [one.value for one in batch], service=options.service, idempotency_key=key
                )
            except client.BackendError as error:
                bar.end()
                raise _failure(error, batch, total, daemon.url, client) from error
            total += len(batch)
            bar.show(total, batch[-1].read)
        bar.end()
    print(f"{total} published")
    return 0


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= _MAX_BATCH:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {_MAX_BATCH}")
    return int(text)


def _opened(name: str) -> AbstractContextManager[IO[bytes]]:
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise base.Failed(base.NO_INPUT, f"{name}: {error.strerror}") from error


def _size(name: str) -> int:
    """Return how much there is to read; 0: nobody knows."""
    return Path(name).stat().st_size if name != "-" else 0


def _deltas(stream: IO[bytes]) -> Iterator[_Delta]:
    """Read a JSON array, or JSON lines as they come."""
    read, begun = 0, False
    for number, line in enumerate(stream, 1):
        read += len(line)
        if not line.strip():
            continue
        if not begun and line.lstrip().startswith(b"["):
            yield from _elements(line + stream.read())
            return
        begun = True
        place = f"line {number}"
        yield _Delta(_decoded(strict_json.decode, line.strip(), place), place, len(line), read)


def _elements(text: bytes) -> Iterator[_Delta]:
    read = 0
    for index, element in enumerate(_decoded(strict_json.split_array, text, "the array")):
        read += len(element)
        place = f"delta {index}"
        yield _Delta(_decoded(strict_json.decode, element, place), place, len(element), read)


def _decoded(decode: Callable[[bytes], Any], text: bytes, place: str) -> Any:
    try:
        return decode(text)
    except ProtocolError as error:
        raise base.Failed(base.BAD_DATA, f"{place}: {error}") from error


def _batches(deltas: Iterable[_Delta], count: int) -> Iterator[list[_Delta]]:
    """Cut what is read into batches, bounded in number and in bytes."""
    batch: list[_Delta] = []
    size = 0
    for delta in deltas:
        if batch and (len(batch) >= count or size + delta.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(delta)
        size += delta.size
    if batch:
        yield batch


def _idempotency_key(options: argparse.Namespace, number: int, batch: list[_Delta]) -> str:
    named = [options.run_name, options.service, number, [one.value for one in batch]]
    return hashlib.sha256(strict_json.encode(named)).hexdigest()


def _failure(error: Any, batch: list[_Delta], total: int, url: str, client: Any) -> base.Failed:
    code, text = base.BAD_DATA, str(error)
    match error:
        case client.CallError(index=int(index)) if index < len(batch):
            text = f"{batch[index].place}: {error}"
        case client.Unauthorized() | client.Forbidden():
            code = base.NOT_ALLOWED
        case client.TransportError():
            code, text = base.UNAVAILABLE, f"no daemon answers at {url}"
        case client.Unavailable() | client.TooManyRequests():
            code = base.UNAVAILABLE
    return base.Failed(code, f"{text}; {total} published before it")


class _Bar:
    """How far it is, on a terminal, once it is more than one batch."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._shown = False
        self._wanted = sys.stderr.isatty()
        self._batches = 0

    def show(self, total: int, read: int) -> None:
        """Say how many were published, and how much of the input that was."""
        self._batches += 1
        if not self._wanted or self._batches == 1:
            return
        bar = ""
        if self._size:
            done = min(_BAR, _BAR * read // self._size)
            bar = f"[{'#' * done}{' ' * (_BAR - done)}] "
        sys.stderr.write(f"\r{bar}{total} published")
        sys.stderr.flush()
        self._shown = True

    def end(self) -> None:
        """Leave the line of the bar."""
        if self._shown:
            sys.stderr.write("\n")
