"""python-socketio on uvicorn: `emit` to everybody."""

import json

import socketio
from serving import serve

server = socketio.AsyncServer(async_mode="asgi", ping_interval=3600)


async def publish(_scope, receive, send):
    """Emit each line of the body to everybody."""
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    for line in body.splitlines():
        await server.emit("delta", json.loads(line))
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


serve(
    socketio.ASGIApp(server, publish),
    "python-socketio",
    path="/socket.io/?EIO=4&transport=websocket",
    dialect="engine.io",
)
