"""Runs an ASGI application on uvicorn, on a port of its own."""

import json
import socket
from importlib.metadata import version

import uvicorn


def serve(app, *packages, **ready):
    """Print where it is served, and serve it until ended."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    versions = " + ".join(f"{name} {version(name)}" for name in (*packages, "uvicorn"))
    where = {"port": listener.getsockname()[1], "version": versions}
    print(json.dumps(where | ready), flush=True)
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="off",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_keep_alive=3600,
    )
    uvicorn.Server(config).run(sockets=[listener])
