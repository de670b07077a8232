"""Speak to a syncserver daemon from the trusted side of a web app.

::

    from syncserver_client import Backend

    backend = Backend("http://127.0.0.1:5801/backend", key)
    backend.publish([{"type": "insert", "model": "Task", "data": {"id": 1, "title": "Milk"}}])
    token = backend.authorize([{"dealer": "AllTasks", "query": None}])
"""

from syncserver_client.backend import Backend
from syncserver_client.encoding import json_default
from syncserver_client.errors import (
    BackendError,
    BadRequest,
    CallError,
    ConnectionFailed,
    EncodingError,
    Forbidden,
    HTTPError,
    IdempotencyConflict,
    InvalidResponse,
    Timeout,
    TooLarge,
    TooManyRequests,
    TransportError,
    Unauthorized,
    Unavailable,
    WrongAddress,
)
from syncserver_client.version import __version__

__all__ = [
    "Backend",
    "BackendError",
    "BadRequest",
    "CallError",
    "ConnectionFailed",
    "EncodingError",
    "Forbidden",
    "HTTPError",
    "IdempotencyConflict",
    "InvalidResponse",
    "Timeout",
    "TooLarge",
    "TooManyRequests",
    "TransportError",
    "Unauthorized",
    "Unavailable",
    "WrongAddress",
    "__version__",
    "json_default",
]
