"""Tornado as most code uses it: `write_message` with a dict, for each client."""

import asyncio
import json

import tornado
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

clients = set()


class Socket(WebSocketHandler):
    """One client."""

    def open(self):
        clients.add(self)

    def on_close(self):
        clients.discard(self)


class Publish(RequestHandler):
    """Sends each line of the body to everybody."""

    def post(self):
        for line in self.request.body.splitlines():
            message = json.loads(line)
            for client in clients:
                client.write_message(message)


async def main():
    """Serve until ended."""
    sockets = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(Application([("/ws", Socket), ("/publish", Publish)]))
    server.add_sockets(sockets)
    port = sockets[0].getsockname()[1]
    print(json.dumps({"port": port, "version": f"tornado {tornado.version}"}), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
