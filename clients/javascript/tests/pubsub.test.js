import assert from "node:assert/strict";
import { test } from "node:test";
import { PubSub } from "../syncserver.js";
import { outcomeOf, recorder, reports, rig } from "./support.js";

function open() {
  const r = rig({ pubsub: PubSub });
  r.socket.open();
  return Object.assign(r, { pubsub: r.server.services.pubsub });
}
const message = (channel, body) => ({ type: "message", channel, message: body });

test("messages reach the listeners of their channel and the event", async () => {
  const { pubsub, socket } = open();
  const mine = [];
  const event = recorder(pubsub, "message");
  const subscribed = pubsub.subscribe("a", (...args) => mine.push(args));
  assert.deepEqual(socket.calls, [["subscribe", { channel: "a" }]]);
  socket.answer(null);
  assert.equal(await subscribed, undefined);
  socket.receive("pubsub", message("a", { x: 1 }), message("b", 2));
  assert.deepEqual(mine, [[{ x: 1 }, "a"]]);
  assert.deepEqual(event, [["message", { channel: "a", message: { x: 1 } }],
    ["message", { channel: "b", message: 2 }]]);
});

test("a message is a notification as those of any RPC service are", () => {
  const { pubsub, socket } = open();
  const seen = recorder(pubsub, "notification");
  socket.receive("pubsub", message("a", 1), { type: "stale" });
  assert.deepEqual(seen, [["notification", message("a", 1)], ["notification", { type: "stale" }]]);
});

test("any JSON is a channel, whatever the order of its keys", () => {
  const { pubsub, socket } = open();
  const seen = [];
  pubsub.subscribe({ a: 1, b: [true] }, () => seen.push("object")).catch(() => {});
  pubsub.subscribe(1, () => seen.push("number")).catch(() => {});
  pubsub.subscribe(true, () => seen.push("boolean")).catch(() => {});
  pubsub.subscribe("__proto__", () => seen.push("proto")).catch(() => {});
  socket.receive("pubsub", message({ b: [true], a: 1 }), message(1), message(true),
    message("__proto__"), message("constructor"), { type: "message" });
  assert.deepEqual(seen, ["object", "number", "boolean", "proto"]);
});

test("several listeners of a channel are one subscription, ended by the last to go", async () => {
  const { pubsub, socket } = open();
  const [a, b] = [() => {}, () => {}];
  const both = [pubsub.subscribe("c", a), pubsub.subscribe("c", b)];
  assert.equal(socket.sent.length, 1);
  socket.answer(null);
  await Promise.all(both);
  await pubsub.unsubscribe("c", a);
  assert.equal(socket.sent.length, 1);
  const gone = pubsub.unsubscribe("c", b);
  assert.deepEqual(socket.calls[1], ["unsubscribe", { channel: "c" }]);
  socket.answer(null);
  await gone;
  await assert.rejects(pubsub.unsubscribe("c"), { code: "not_subscribed" });
});

test("unsubscribe without listener ends them all", async () => {
  const { pubsub, socket } = open();
  const seen = [];
  pubsub.subscribe("c", () => seen.push(1)).catch(() => {});
  pubsub.subscribe("c", () => seen.push(2)).catch(() => {});
  socket.answer(null);
  pubsub.unsubscribe("c").catch(() => {});
  socket.receive("pubsub", message("c"));
  assert.deepEqual(seen, []);
});

test("a refused subscription rejects and leaves nothing", async () => {
  const { pubsub, socket, reconnect } = open();
  const refused = pubsub.subscribe("c");
  socket.refuse("not_authorized");
  await assert.rejects(refused, { code: "not_authorized" });
  const again = pubsub.subscribe("c");
  socket.answer(null);
  await again;
});

test("the refusal of a subscription that was given up is not that of the next one", async () => {
  const { pubsub, socket } = open();
  const heard = [];
  const first = pubsub.subscribe("c");
  pubsub.unsubscribe("c").catch(() => {});
  await assert.rejects(first, { code: "cancelled" });
  const second = pubsub.subscribe("c", (body) => heard.push(body));
  socket.refuse("not_authorized", {}, 3);
  assert.equal(await outcomeOf(second), "pending");
  socket.answer(null);
  await second;
  socket.receive("pubsub", message("c", 1));
  assert.deepEqual(heard, [1]);
});

test("a subscription that cannot be sent rejects with the reason and leaves nothing", async () => {
  const { pubsub, socket } = open();
  await assert.rejects(pubsub.subscribe("\ud83d"), { code: "malformed" });
  const { send } = socket;
  socket.send = () => {
    throw new Error("no such socket");
  };
  await assert.rejects(pubsub.subscribe("c"), { message: "no such socket" });
  socket.send = send;
  const again = pubsub.subscribe("c");
  socket.answer(null);
  await again;
});

test("a subscription made before it is open is asked for once, before what was queued", () => {
  const { server, socket } = rig({ pubsub: PubSub });
  const { pubsub } = server.services;
  pubsub.publish("c", 1).catch(() => {});
  pubsub.subscribe("c").catch(() => {});
  socket.open();
  assert.deepEqual(socket.calls.map(([command]) => command), ["subscribe", "publish"]);
});

test("after a reconnect it subscribes again by itself", async () => {
  const r = open();
  const { pubsub } = r;
  const granted = pubsub.subscribe("a");
  r.socket.answer(null);
  await granted;
  const asked = pubsub.subscribe("b");
  const left = pubsub.subscribe("c");
  pubsub.unsubscribe("c").catch(() => {});
  await assert.rejects(left, { code: "cancelled" });
  const socket = r.reconnect();
  assert.deepEqual(socket.calls,
    [["subscribe", { channel: "a" }], ["subscribe", { channel: "b" }]]);
  assert.equal(await outcomeOf(asked), "pending");
  socket.answer(null, 1);
  await asked;
});

test("unsubscribe while there is no connection forgets, and sends nothing", async () => {
  const r = open();
  const granted = r.pubsub.subscribe("a");
  r.socket.answer(null);
  await granted;
  r.socket.lose();
  await r.pubsub.unsubscribe("a");
  r.clock.advance(250);
  r.socket.open();
  assert.deepEqual(r.socket.sent, []);
});

test("unsubscribe resolves when the connection goes before the answer", async () => {
  const r = open();
  r.pubsub.subscribe("a").catch(() => {});
  r.socket.answer(null);
  const gone = r.pubsub.unsubscribe("a");
  r.socket.lose();
  await gone;
});

test("a channel that is refused after a reconnect is told of", async () => {
  const r = open();
  r.pubsub.subscribe("a").catch(() => {});
  r.socket.answer(null);
  const seen = recorder(r.pubsub, "unsubscribed");
  r.reconnect().refuse("not_authorized");
  assert.equal(seen[0][1].channel, "a");
  assert.equal(seen[0][1].error.code, "not_authorized");
});

test("on a final close what was granted waits for connect, what was not is rejected", async () => {
  const { pubsub, server, socket, sockets } = open();
  pubsub.subscribe("a").catch(() => {});
  socket.answer(null);
  const asked = pubsub.subscribe("b");
  server.close();
  assert.equal((await outcomeOf(asked)).error.code, "closed");
  await assert.rejects(pubsub.subscribe("c"), { code: "closed" });
  server.connect();
  sockets[1].open();
  assert.deepEqual(sockets[1].calls, [["subscribe", { channel: "a" }]]);
});

test("a channel that is no JSON is refused, a listener that throws reported", async (t) => {
  const seen = reports(t);
  const { pubsub, socket } = open();
  await assert.rejects(pubsub.subscribe(undefined), TypeError);
  const heard = [];
  pubsub.subscribe("a", () => {
    throw new Error("mine");
  }).catch(() => {});
  pubsub.subscribe("a", () => heard.push(1)).catch(() => {});
  socket.receive("pubsub", message("a"));
  assert.deepEqual([seen, heard], [["mine"], [1]]);
});
