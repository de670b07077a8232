"""syncserver: real-time row sync beside any web app (docs/index)."""

from syncserver.delta import Delta
from syncserver.errors import InvalidQuery, RPCError
from syncserver.registry import ServiceRegistry
from syncserver.version import __version__

__all__ = ["Delta", "InvalidQuery", "RPCError", "ServiceRegistry", "__version__"]
