// socket.io on Node.js: `emit` to everybody.
"use strict";

const http = require("node:http");
const { Server } = require("socket.io");

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    for (const line of Buffer.concat(chunks).toString().split("\n"))
      if (line) io.emit("delta", JSON.parse(line));
    response.end();
  });
});
const io = new Server(server, { pingInterval: 3600000, perMessageDeflate: false });
server.keepAliveTimeout = 3600000;
server.listen({ port: 0, host: "127.0.0.1", backlog: 1024 }, () => {
  const own = require("socket.io/package.json").version;
  console.log(
    JSON.stringify({
      port: server.address().port,
      path: "/socket.io/?EIO=4&transport=websocket",
      dialect: "engine.io",
      version: `socket.io ${own} on node ${process.versions.node}`,
    }),
  );
});
