"""Starlette on uvicorn: the text made once, sent to one client after the other."""

import json

from serving import serve
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

clients = set()


async def client(socket):
    """Keep one client until it leaves."""
    await socket.accept()
    clients.add(socket)
    try:
        async for _ in socket.iter_text():
            pass
    finally:
        clients.discard(socket)


async def publish(request):
    """Send each line of the body to everybody."""
    for line in (await request.body()).splitlines():
        text = json.dumps(json.loads(line), separators=(",", ":"))
        for socket in list(clients):
            await socket.send_text(text)
    return Response()


routes = [WebSocketRoute("/ws", client), Route("/publish", publish, methods=["POST"])]
serve(Starlette(routes=routes), "starlette")
