import assert from "node:assert/strict";
import { test } from "node:test";
import { PubSub, RPCService, SyncError, stableStringify } from "../syncserver.js";
import { outcomeOf, recorder, rig, settled } from "./support.js";

function open(options) {
  const r = rig({ calc: RPCService }, options);
  r.socket.open();
  return Object.assign(r, { calc: r.server.services.calc });
}

test("calls are numbered from 0 and have params {} by default", () => {
  const { calc, socket } = open();
  for (const args of [["a"], ["b", { x: 1 }], ["c"]]) calc.call(...args).catch(() => {});
  assert.deepEqual(socket.sent, [
    { service: "calc", message: { command: "a", params: {}, callId: 0 } },
    { service: "calc", message: { command: "b", params: { x: 1 }, callId: 1 } },
    { service: "calc", message: { command: "c", params: {}, callId: 2 } },
  ]);
});

test("each answer goes to its own call, in whatever order", async () => {
  const { calc, socket } = open();
  const [a, b, c] = ["a", "b", "c"].map((name) => calc.call(name));
  socket.answer("C", 1);
  socket.answer(null, 3);
  socket.refuse("unknown_command", {}, 2);
  assert.equal(await a, null);
  assert.equal(await c, "C");
  await assert.rejects(b, { name: "SyncError", code: "unknown_command" });
});

test("an error has all that the server said", async () => {
  const { calc, socket } = open();
  const call = calc.call("publish");
  socket.refuse("bad_delta", { reason: "r", index: 3, field: "data.id" });
  const { error } = await outcomeOf(call);
  assert.ok(error instanceof SyncError && error instanceof Error);
  assert.deepEqual([error.message, error.code, error.reason, error.index, error.field],
    ["bad_delta", "bad_delta", "r", 3, "data.id"]);
});

test("an error of an old server, without code, has the code error", async () => {
  const { calc, socket } = open();
  const call = calc.call("a");
  socket.receive("calc", { type: "error", callId: 0, message: "Unknown command" });
  const { error } = await outcomeOf(call);
  assert.deepEqual([error.message, error.code], ["Unknown command", "error"]);
});

test("a call in flight is rejected when the connection goes, one that waits is sent later",
  async () => {
    const { calc, socket, clock, sockets } = open();
    const inFlight = calc.call("a");
    socket.lose();
    const waiting = calc.call("b");
    assert.equal((await outcomeOf(inFlight)).error.code, "disconnected");
    assert.equal(await outcomeOf(waiting), "pending");
    clock.advance(250);
    sockets[1].lose();
    clock.advance(500);
    sockets[2].open();
    assert.deepEqual(sockets[2].calls, [["b", {}]]);
    sockets[2].answer("B");
    assert.equal(await waiting, "B");
  });

test("a call that is not answered in time is rejected, and its late answer passed over",
  async () => {
    const { calc, socket, clock } = open({ callTimeout: 1000 });
    const slow = calc.call("slow");
    clock.advance(1000);
    assert.equal((await outcomeOf(slow)).error.code, "timeout");
    socket.answer(1);
    assert.deepEqual(clock.pending, []);
  });

test("a call that times out before it was sent is never sent", async () => {
  const { server, socket, clock } = rig({ calc: RPCService }, { callTimeout: 1000 });
  const call = server.services.calc.call("a");
  clock.advance(1000);
  assert.equal((await outcomeOf(call)).error.code, "timeout");
  socket.open();
  assert.deepEqual(socket.sent, []);
});

test("nothing is left behind by calls that are over", async () => {
  const { calc, socket, clock, server } = open();
  for (let i = 0; i < 3; i += 1) calc.call("a").catch(() => {});
  assert.equal(clock.pending.length, 3);
  socket.answer(1, 3);
  socket.refuse("no", {}, 2);
  socket.lose();
  assert.deepEqual(clock.pending, [250]);
  server.close();
  await settled();
});

test("a call whose params are no JSON is rejected", async () => {
  const { calc, socket } = open();
  const cyclic = {};
  cyclic.self = cyclic;
  assert.ok((await outcomeOf(calc.call("a", cyclic))).error instanceof TypeError);
  assert.ok((await outcomeOf(calc.call("a", { n: 1n }))).error instanceof TypeError);
  assert.deepEqual(socket.sent, []);
});

test("half a character, which a server cannot read, is refused and not sent", async () => {
  const { calc, socket } = open();
  for (const half of ["\ud83d", "a\ude00b", "\\\ud800", "\\\\\udfff"]) {
    assert.equal((await outcomeOf(calc.call("a", { half }))).error.code, "malformed");
    assert.equal((await outcomeOf(calc.call("a", { [half]: 1 }))).error.code, "malformed");
  }
  assert.deepEqual(socket.sent, []);
  for (const whole of ["\u{1f600}", "\\ud83d", "\\\\ud83d", "\ue000", "\u0000"]) {
    calc.call("a", { whole }).catch(() => {});
    assert.equal(socket.sent.at(-1).message.params.whole, whole);
  }
});

test("a message longer than the server takes is refused and not sent", async () => {
  const { server, socket } = rig({ calc: RPCService, pubsub: PubSub }, { maxMessageBytes: 200 });
  socket.open();
  const { calc, pubsub } = server.services;
  assert.equal((await outcomeOf(calc.call("a", { x: "\u00e9".repeat(100) }))).error.code, "too_large");
  assert.deepEqual(socket.sent, []);
  calc.call("a", { x: "e".repeat(100) }).catch(() => {});
  assert.equal(socket.sent.length, 1);
  assert.equal((await outcomeOf(pubsub.subscribe("c".repeat(200)))).error.code, "too_large");
  assert.equal(socket.sent.length, 1);
});

test("params are sent as they were when the call was made", () => {
  const { server, socket } = rig({ calc: RPCService });
  const params = { x: 1 };
  server.services.calc.call("a", params).catch(() => {});
  params.x = 2;
  socket.open();
  assert.deepEqual(socket.calls, [["a", { x: 1 }]]);
});

test("all that answers no call is a notification", () => {
  const { calc, socket } = open();
  const seen = recorder(calc, "notification");
  socket.receive("calc", { type: "tick", n: 1 }, { odd: true });
  assert.deepEqual(seen, [["notification", { type: "tick", n: 1 }],
    ["notification", { odd: true }]]);
});

test("a callback of request runs in its place among the notifications", () => {
  const { calc, socket } = open();
  const order = [];
  calc.on("notification", ({ type }) => order.push(type));
  calc.request("a", {}, () => order.push("answer"));
  socket.receive("calc", { type: "before" }, { type: "response", callId: 0 }, { type: "after" });
  assert.deepEqual(order, ["before", "answer", "after"]);
});

test("addRPCMethods adds methods that call, and refuses names that are taken", async () => {
  class Calc extends RPCService {}
  assert.equal(Calc.addRPCMethods(["sum", "mul"]), Calc);
  const { server, socket } = rig({ calc: Calc });
  socket.open();
  const sum = server.services.calc.sum({ a: 1 });
  server.services.calc.mul().catch(() => {});
  assert.deepEqual(socket.calls, [["sum", { a: 1 }], ["mul", {}]]);
  socket.answer(3, 2);
  assert.equal(await sum, 3);
  const message = (name) =>
    `Method "${name}" already exists in the class. Refusing to overwrite it.`;
  for (const name of ["sum", "call", "on", "constructor", "toString"]) {
    assert.throws(() => Calc.addRPCMethods(["div", name]), { message: message(name) });
  }
  assert.throws(() => Calc.addRPCMethods(["twice", "twice"]), { message: message("twice") });
  assert.equal("div" in Calc.prototype, false);
  assert.equal("sum" in RPCService.prototype, false);
});

test("stableStringify is equal for equal values and refuses what is no JSON", () => {
  assert.equal(stableStringify({ b: [1, { d: 1, c: 2 }], a: null }),
    '{"a":null,"b":[1,{"c":2,"d":1}]}');
  assert.equal(stableStringify(1.0), stableStringify(1));
  assert.notEqual(stableStringify(1), stableStringify(true));
  assert.notEqual(stableStringify(1), stableStringify("1"));
  const hostile = JSON.parse('{"b": 1, "__proto__": {"x": 1}}');
  assert.equal(stableStringify(hostile), '{"__proto__":{"x":1},"b":1}');
  assert.throws(() => stableStringify(undefined), TypeError);
  const cyclic = [];
  cyclic.push(cyclic);
  assert.throws(() => stableStringify(cyclic), TypeError);
});

test("an answer that comes twice counts once", () => {
  const { calc, socket } = open();
  const answers = [];
  calc.request("a", {}, (error, data) => answers.push(data));
  socket.answer(1);
  socket.answer(2);
  assert.deepEqual(answers, [1]);
});
