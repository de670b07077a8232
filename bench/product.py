"""syncserver as it is run: the daemon with a file, tokens over HTTP, native clients that resume."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from bench.load import Answer, Generator
from bench.peers import Peer, Row, insert
from bench.server import Poster, Server, posting
from syncserver.version import __version__

NAME = "syncserver"
KEY = "benchmark-key-0123456789-0123456789"
# The pings of idle clients would be counted for whoever is measured at that moment; the other
# servers are told not to ping either. Tokens of thousands of clients are made before the first
# connects.
CONFIG = f"""
[frontend]
port = 0
[backend]
port = 0
api_keys = ["{KEY}"]
[limits]
ping_seconds = 3600
grant_seconds = 1200
resume_seconds = 1200
"""
EVERYTHING: Row = {"dealer": "AllTasks", "query": None}
Items = Callable[[int], Sequence[Row]]


def everything(_number: int) -> Sequence[Row]:
    """Return the items of a client that follows all tasks."""
    return (EVERYTHING,)


class Product(Peer):
    """The daemon.

    :param items: what each token stands for, by its number.
    :param tokens_each: subscriptions of one client.
    """

    version = f"syncserver {__version__}"

    def __init__(
        self, start: Sequence[str], *, items: Items = everything, tokens_each: int = 1
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="syncserver-bench-")
        config = Path(self._folder.name, "syncserver.toml")
        config.write_text(CONFIG, "utf-8")
        serve = (sys.executable, "-m", "syncserver", "serve", "--config", str(config))
        state = {"SYNCSERVER_STATE_DIR": self._folder.name}
        server = Server(NAME, (*serve, "--log-level", "error"), state)
        lines: dict[str, str] = {}
        while "engine" not in lines:
            key, _, said = server.line().partition(" ")
            lines[key] = said
        self._frontend, self._backend = (urlsplit(lines[key]) for key in ("frontend", "backend"))
        self._items, self._tokens_each = items, tokens_each
        self.tokens: list[str] = []
        super().__init__(NAME, server, Generator(start))

    def poster(self) -> contextlib.AbstractContextManager[Poster]:
        """Connect to ``/backend`` with the key."""
        return posting(self._backend.port or 0, self._backend.path, {"X-Backend-Key": KEY})

    def bodies(self, rows: Sequence[Row]) -> list[bytes]:
        """Return the one body that publishes some rows."""
        deltas = [insert(one) for one in rows]
        return [_call("datasync_backend", "publishDeltas", {"deltas": deltas})]

    def prepare(self, count: int) -> Callable[[], Answer]:
        """Get tokens for so many clients."""
        with self.poster() as poster:
            numbers = range(count * self._tokens_each)
            self.tokens = [self.token(poster, self._items(n)) for n in numbers]
        return self.acquiring(None, count)

    def acquiring(self, position: str | None, count: int) -> Callable[[], Answer]:
        """Return what connects the clients and acquires their tokens from a position on."""
        texts = Path(self._folder.name, "texts")
        return self.acquiring_with(self.generator, self.tokens, position, texts, count)

    def acquiring_with(
        self,
        generator: Generator,
        tokens: Sequence[str],
        position: str | None,
        texts: Path,
        count: int | None = None,
    ) -> Callable[[], Answer]:
        """Return what connects clients of a generator, one for each token unless told, to acquire.

        :param texts: the file to write their calls to.
        """
        lines = (
            _call("datasync", "acquireSubscription", {"token": one, "position": position}, n + 1)
            for n, one in enumerate(tokens)
        )
        texts.write_bytes(b"\n".join(lines) + b"\n")
        port, path = self._frontend.port or 0, self._frontend.path
        mark = '"type":"response"'
        number = len(tokens) if count is None else count
        return lambda: generator.connect(port, path, number, texts=texts, mark=mark)

    def stop(self) -> None:
        """End server and clients, and remove the files."""
        super().stop()
        self._folder.cleanup()

    @property
    def metrics_url(self) -> str:
        """Return where the daemon tells of itself."""
        return f"http://{self._backend.netloc}/metrics"

    def token(self, poster: Poster, items: Sequence[Row]) -> str:
        """Return a token for some items."""
        params = {"items": list(items)}
        answer = poster.post(_call("datasync_backend", "authorizeSubscription", params))
        token: str = json.loads(answer)["message"]["data"]
        return token


def _call(service: str, command: str, params: Row, call_id: int | None = None) -> bytes:
    message: dict[str, object] = {"command": command, "params": params}
    if call_id is not None:
        message["callId"] = call_id
    whole: Mapping[str, object] = {"service": service, "message": message}
    return json.dumps(whole, separators=(",", ":")).encode()
