// The ws library of Node.js: the text made once, sent to one client after the other.
"use strict";

const http = require("node:http");
const { WebSocketServer } = require("ws");

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    for (const line of Buffer.concat(chunks).toString().split("\n")) {
      if (!line) continue;
      const text = JSON.stringify(JSON.parse(line));
      for (const client of sockets.clients) client.send(text);
    }
    response.end();
  });
});
const sockets = new WebSocketServer({ server, path: "/ws", perMessageDeflate: false });
server.keepAliveTimeout = 3600000;
server.listen({ port: 0, host: "127.0.0.1", backlog: 1024 }, () => {
  const version = `ws ${require("ws/package.json").version} on node ${process.versions.node}`;
  console.log(JSON.stringify({ port: server.address().port, version }));
});
