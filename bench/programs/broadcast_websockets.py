"""The websockets library with its `broadcast`, which makes a frame once.

It serves no POST, so a listener of its own takes them.
"""

import asyncio
import json

import websockets
from websockets.asyncio.server import broadcast, serve

clients = set()


async def client(socket):
    """Keep one client until it leaves."""
    clients.add(socket)
    try:
        await socket.wait_closed()
    finally:
        clients.discard(socket)


async def publish(reader, writer):
    """Send each line of the body of every POST to everybody."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            for line in (await reader.readexactly(length)).splitlines():
                broadcast(clients, json.dumps(json.loads(line), separators=(",", ":")))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    except asyncio.IncompleteReadError:
        writer.close()


async def main():
    """Serve until ended."""
    posts = await asyncio.start_server(publish, "127.0.0.1", 0)
    settings = {"compression": None, "ping_interval": None, "backlog": 1024}
    async with serve(client, "127.0.0.1", 0, **settings) as server:
        ready = {
            "port": server.sockets[0].getsockname()[1],
            "publish_port": posts.sockets[0].getsockname()[1],
            "version": f"websockets {websockets.__version__}",
        }
        print(json.dumps(ready), flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
