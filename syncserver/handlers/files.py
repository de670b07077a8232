"""The browser library, as files that any page may load."""

from __future__ import annotations

from pathlib import Path

from tornado.web import HTTPError

from syncserver.handlers.base import PlainHandler

_TYPES = {".js": "text/javascript; charset=utf-8", ".ts": "text/plain; charset=utf-8"}


class ClientFileHandler(PlainHandler):
    """``GET`` one file; a browser asks again whether it changed, and mostly hears 304."""

    def initialize(self, path: Path) -> None:
        """Take the option of the route."""
        self._path = path

    def get(self) -> None:
        """Send the file."""
        try:
            content = self._path.read_bytes()
        except OSError:
            raise HTTPError(404) from None
        self.set_header("Content-Type", _TYPES.get(self._path.suffix, "text/plain"))
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(content)
