import assert from "node:assert/strict";
import { test } from "node:test";
import { RPCService, Service, SyncError, SyncServer } from "../syncserver.js";
import { outcomeOf, recorder, reports, rig } from "./support.js";

const closeOf = (events) => events.filter(([name]) => name === "close").at(-1)[1];
const delaysOf = (events) => events.filter(([name]) => name === "reconnecting")
  .map(([, { delay }]) => delay);

test("it connects at once and says when it is open", () => {
  const { server, sockets, socket, events } = rig();
  assert.equal(sockets.length, 1);
  assert.equal(server.isOpen, false);
  socket.open();
  assert.equal(server.isOpen, true);
  assert.deepEqual(events, [["open"]]);
});

test("http addresses become ws, fragments go, other schemes are refused", () => {
  assert.equal(rig({}, { url: "http://h/ws?a=1#f" }).socket.url, "ws://h/ws?a=1");
  assert.equal(rig({}, { url: new URL("https://h/ws") }).socket.url, "wss://h/ws");
  assert.equal(rig({}, { url: "wss://h/ws" }).socket.url, "wss://h/ws");
  assert.throws(() => rig({}, { url: "ftp://h/ws" }), TypeError);
});

test("a relative address is resolved against the page", (t) => {
  assert.throws(() => rig({}, { url: "/ws" }), TypeError);
  globalThis.location = { href: "https://page.example/app/" };
  t.after(() => delete globalThis.location);
  assert.equal(rig({}, { url: "/ws" }).socket.url, "wss://page.example/ws");
});

test("a class such as SockJS can have the address as it is", () => {
  assert.equal(rig({}, { url: "/sockjs", keepUrl: true }).socket.url, "/sockjs");
});

test("without any WebSocket class it says what to do", { skip: "WebSocket" in globalThis }, () => {
  assert.throws(() => new SyncServer("ws://h"), /option `WebSocket`/);
});

test("a class that refuses the address is asked once", async () => {
  class Refusing {
    constructor() {
      throw new SyntaxError("no");
    }
  }
  assert.throws(() => rig({}, { WebSocket: Refusing }), SyntaxError);
});

test("a class that begins to refuse ends the attempts and settles the calls", async () => {
  const { server, socket, clock, events } = rig({ calc: RPCService });
  socket.open();
  const inFlight = outcomeOf(server.services.calc.call("a"));
  socket.lose();
  const queued = outcomeOf(server.services.calc.call("b"));
  Object.defineProperty(server, "url", { get() { throw new SyntaxError("no"); } });
  clock.advance(250);
  assert.equal(closeOf(events).willReconnect, false);
  assert.equal((await inFlight).error.code, "disconnected");
  assert.equal((await queued).error.code, "closed");
  assert.equal(events.at(-1)[0], "error");
});

test("messages made before it is open are sent in order when it is", () => {
  const { server, socket } = rig({ raw: Service, calc: RPCService });
  server.services.raw.send("first");
  server.services.calc.call("second").catch(() => {});
  server.services.raw.send("third");
  assert.deepEqual(socket.sent, []);
  socket.open();
  assert.deepEqual(socket.sent.map(({ message }) => message.command ?? message),
    ["first", "second", "third"]);
});

test("what waited for the connection is sent once, not again on the next one", () => {
  const r = rig({ raw: Service });
  r.server.services.raw.send("once");
  assert.equal(r.socket.open().sent.length, 1);
  assert.deepEqual(r.reconnect().sent, []);
});

test("too many messages before it is open are refused, not kept", async () => {
  const { server, socket } = rig({ raw: Service, calc: RPCService }, { maxQueue: 1 });
  const first = server.services.calc.call("a");
  assert.equal((await outcomeOf(server.services.calc.call("b"))).error.code, "queue_full");
  assert.throws(() => server.services.raw.send("c"), { code: "queue_full" });
  socket.open();
  assert.equal(socket.sent.length, 1);
  socket.answer(1);
  assert.deepEqual(await outcomeOf(first), { value: 1 });
});

test("the delay doubles up to its maximum, is random over all of it, and starts anew", () => {
  const { socket, clock, events, sockets } = rig({}, { maxBackoff: 1000 });
  socket.lose();
  for (const delay of [250, 500, 1000]) {
    clock.advance(delay - 1);
    const count = sockets.length;
    clock.advance(1);
    assert.equal(sockets.length, count + 1);
    sockets.at(-1).lose();
  }
  clock.advance(1000);
  sockets.at(-1).open();
  clock.advance(10_000);
  sockets.at(-1).lose();
  assert.deepEqual(delaysOf(events), [250, 500, 1000, 1000, 250]);
  const half = rig({}, { random: () => 0.5 });
  half.socket.lose();
  assert.deepEqual(delaysOf(half.events), [125]);
});

test("a server that closes at once does not start the backoff anew", () => {
  const { clock, events, sockets } = rig();
  for (let i = 0; i < 4; i += 1) {
    sockets.at(-1).open();
    sockets.at(-1).lose(1011);
    clock.advance(30_000);
  }
  assert.deepEqual(delaysOf(events), [250, 500, 1000, 2000]);
});

test("the server's retry_after wins over the backoff, for the two codes that have it", () => {
  for (const [code, reason, delay] of [
    [4001, '{"retry_after": 7000}', 7000],
    [4013, '{"retry_after": 60000}', 60000],
    [4001, '{"retry_after": 0}', 0],
    [4008, '{"retry_after": 7000}', 250],
    [4001, "restart", 250],
    [4001, '{"retry_after": -1}', 250],
    [4001, '{"retry_after": "1"}', 250],
    [4001, "null", 250],
    [4001, "", 250],
  ]) {
    const { socket, events } = rig();
    socket.open().lose(code, reason);
    assert.deepEqual(events.slice(1), [["close", { code, reason, willReconnect: true }],
      ["reconnecting", { attempt: 1, delay }]]);
  }
});

test("a retry_after beyond what timers can do waits as long as they can", () => {
  const { socket, clock } = rig();
  socket.open().lose(4001, '{"retry_after": 1e12}');
  assert.deepEqual(clock.pending, [2 ** 31 - 1]);
});

test("codes 4500 to 4999 end it until connect is called", async () => {
  for (const code of [4500, 4503, 4999]) {
    const { server, socket, clock, events, sockets } = rig({ calc: RPCService });
    socket.open();
    const pending = server.services.calc.call("a");
    socket.lose(code, "because");
    assert.deepEqual(closeOf(events), { code, reason: "because", willReconnect: false });
    const { error } = await outcomeOf(pending);
    assert.equal(error.code, "closed");
    assert.equal(error.reason, "because");
    assert.equal((await outcomeOf(server.services.calc.call("b"))).error.code, "closed");
    clock.advance(1e6);
    assert.equal(sockets.length, 1);
    server.connect();
    const again = server.services.calc.call("c");
    sockets[1].open().answer(3);
    assert.deepEqual(await outcomeOf(again), { value: 3 });
  }
});

test("other codes reconnect", () => {
  for (const code of [1000, 1001, 1006, 1011, 3000, 4001, 4008, 4012, 4499, undefined]) {
    const { socket, events } = rig();
    socket.open().lose(code);
    assert.equal(closeOf(events).willReconnect, true);
  }
});

test("a class that tells of a failed attempt by error alone is tried again", () => {
  const { socket, clock, events } = rig({});
  socket.readyState = 3;
  socket.onerror({});
  clock.advance(0);
  assert.deepEqual(delaysOf(events), [250]);
});

test("an error that a close follows counts once", () => {
  const { socket, clock, events } = rig({});
  socket.readyState = 3;
  const { onerror } = socket;
  onerror({});
  socket.lose();
  clock.advance(0);
  assert.deepEqual(delaysOf(events), [250]);
});

test("close settles everything, stops the timers and is final", async () => {
  const { server, socket, clock, events, sockets } = rig({ calc: RPCService });
  socket.open();
  const sent = server.services.calc.call("a");
  server.close();
  assert.equal(socket.isClosed, true);
  assert.equal((await outcomeOf(sent)).error.code, "closed");
  assert.deepEqual(closeOf(events), { code: 1000, reason: "", willReconnect: false });
  assert.deepEqual(clock.pending, []);
  socket.lose();
  server.close();
  assert.equal(events.length, 2);
  assert.equal(sockets.length, 1);
});

test("close while it waits to reconnect, and while it connects, ends that", async () => {
  const waiting = rig();
  waiting.socket.lose();
  waiting.server.close();
  assert.deepEqual(waiting.clock.pending, []);
  const connecting = rig({ calc: RPCService });
  const queued = connecting.server.services.calc.call("a");
  connecting.server.close();
  connecting.socket.open();
  assert.deepEqual(connecting.socket.sent, []);
  assert.equal((await outcomeOf(queued)).error.code, "closed");
});

test("connect while it waits to reconnect does not wait", () => {
  const { server, socket, clock, sockets } = rig();
  socket.lose();
  server.connect();
  server.connect();
  assert.equal(sockets.length, 2);
  assert.deepEqual(clock.pending, []);
});

test("a close listener may close or connect; nothing is announced that will not be", () => {
  const first = rig();
  first.server.on("close", () => first.server.close());
  first.socket.lose();
  assert.deepEqual(first.events.map(([name]) => name), ["close", "close"]);
  const second = rig();
  second.server.on("close", () => second.server.connect());
  second.socket.lose();
  assert.deepEqual(second.events.map(([name]) => name), ["close"]);
  assert.equal(second.sockets.length, 2);
});

test("a service may close when its connection goes, which is told once", () => {
  class Closing extends Service {
    connectionClosed(_error, final) {
      if (!final) this.server.close();
    }
  }
  const { socket, events, clock } = rig({ closing: Closing });
  socket.lose();
  assert.deepEqual(events, [["close", { code: 1000, reason: "", willReconnect: false }]]);
  assert.deepEqual(clock.pending, []);
});

test("events of a socket that was given up are not heard", () => {
  const { server, socket, sockets, events } = rig({ raw: Service });
  socket.open();
  const heard = recorder(server.services.raw, "message");
  socket.lose();
  server.connect();
  sockets[1].open();
  const count = events.length;
  socket.receive("raw", "late");
  socket.lose();
  assert.equal(events.length, count);
  assert.deepEqual(heard, []);
  assert.ok(socket.onerror, "`ws` throws errors that nobody listens to");
});

test("nothing that can arrive throws, and error listeners hear of it", () => {
  const { server, socket, events } = rig({ calc: RPCService });
  socket.open();
  events.length = 0;
  const nonsense = ["{", "1", "null", "[]", '"x"', "{}", '{"service":"calc"}', '{"message":1}',
    '{"service":"nobody","message":1}', '{"service":"__proto__","message":1}',
    '{"service":"constructor","message":{}}', '{"service":1,"message":1}',
    '{"service":"calc","message":null}', '{"service":"calc","message":[1]}',
    '{"service":"calc","message":{"type":"error","callId":null,"message":"m","code":"c"}}',
    '{"service":null,"message":{"type":"error","message":"m","code":"malformed"}}'];
  for (const text of nonsense) socket.receiveText(text);
  socket.receiveText(new Uint8Array(1));
  assert.equal(events.length, nonsense.length + 1);
  assert.ok(events.every(([name, error]) => name === "error" && error instanceof SyncError));
  const codes = new Map(events.map(([, error], i) => [nonsense[i], error.code]));
  assert.deepEqual([codes.get(nonsense[8]), codes.get(nonsense[14]), codes.get(nonsense[15])],
    ["unknown_service", "c", "malformed"]);
  assert.equal(server.isOpen, true);
  const unheard = new SyncServer("ws://h", { WebSocket: socket.constructor });
  unheard.complain(new SyncError("nobody listens"));
  unheard.close();
});

test("answers to calls that are not known are passed over", () => {
  const { socket, events } = rig({ calc: RPCService });
  socket.open();
  socket.receive("calc", { type: "response", callId: 7, data: 1 },
    { type: "error", callId: 7, message: "m" }, { type: "response", callId: "__proto__" });
  assert.deepEqual(events, [["open"]]);
});

test("a listener that throws is reported and stops nobody", (t) => {
  const seen = reports(t);
  const { server, socket } = rig({ raw: Service });
  server.services.raw.on("message", () => {
    throw new Error("mine");
  });
  const heard = recorder(server.services.raw, "message");
  socket.open().receive("raw", 1);
  assert.deepEqual(heard, [["message", 1]]);
  assert.deepEqual(seen, ["mine"]);
});

test("a listener that was taken off is not called any more, even in the same event", () => {
  const { server, socket } = rig({ raw: Service });
  const { raw } = server.services;
  const seen = [];
  raw.on("message", () => offSecond());
  const offSecond = raw.on("message", () => seen.push("second"));
  const offThird = raw.on("message", () => seen.push("third"));
  socket.open().receive("raw", 1);
  offThird();
  offThird();
  socket.receive("raw", 2);
  assert.deepEqual(seen, ["third"]);
});

test("the debug log shows names and types, never what they carry", () => {
  const lines = [];
  const { server, socket } = rig({ calc: RPCService }, { debug: (line) => lines.push(line) });
  socket.open();
  server.services.calc.call("acquire", { token: "secret" }).catch(() => {});
  socket.receive("calc", { type: "delta", delta: "secret" });
  assert.deepEqual(lines,
    ["syncserver sent: calc acquire 0", "syncserver received: calc delta"]);
});

test("without debug nothing is printed, with true to the console", (t) => {
  const lines = [];
  t.mock.method(console, "debug", (line) => lines.push(line));
  for (const debug of [false, undefined, true]) {
    rig({ raw: Service }, { debug }).socket.open().receive("raw", 1);
  }
  assert.deepEqual(lines, ["syncserver received: raw number"]);
});

test("the backoff goes on while attempts fail, however long ago the last good connection was",
  () => {
    const { clock, events, sockets } = rig();
    sockets[0].open();
    clock.advance(60_000);
    for (let i = 0; i < 8; i += 1) {
      sockets.at(-1).lose();
      clock.advance(30_000);
    }
    assert.deepEqual(delaysOf(events), [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000]);
  });

test("after a close and a connect nothing of before is sent, and the backoff starts anew", () => {
  const { server, clock, events, sockets } = rig({ raw: Service });
  sockets[0].lose();
  clock.advance(250);
  server.services.raw.send("before");
  server.close();
  server.connect();
  sockets[2].open();
  assert.deepEqual(sockets[2].sent, []);
  sockets[2].lose();
  assert.deepEqual(delaysOf(events), [250, 250]);
});

test("closing and connecting while the queue is sent leaves the rest for the next connection",
  () => {
    const { server, socket, sockets, events } = rig({ raw: Service });
    server.services.raw.send("first");
    server.services.raw.send("second");
    socket.send = (text) => {
      socket.sent.push(text);
      server.close();
      server.connect();
      server.services.raw.send("third");
    };
    socket.open();
    assert.equal(socket.sent.length, 1);
    assert.deepEqual(sockets[1].sent, []);
    assert.deepEqual(events.map(([name]) => name), ["close"]);
    sockets[1].open();
    assert.deepEqual(sockets[1].sent, [{ service: "raw", message: "third" }]);
  });

test("a service that closes when it is opened is the last to hear of it", () => {
  class Closing extends Service {
    connectionOpened() {
      this.server.close();
    }
  }
  const { socket, events } = rig({ closing: Closing });
  socket.open();
  assert.deepEqual(events.map(([name]) => name), ["close"]);
});
