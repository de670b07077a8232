import assert from "node:assert/strict";
import { test } from "node:test";
import { ArrayCollection, CollectionDeltaProcessor, DataSync } from "../syncserver.js";
import { outcomeOf, recorder, reports, rig, settled } from "./support.js";

const insert = (id, extra) => ({ type: "insert", model: "Task", data: { id }, ...extra });
const delta = (id, extra) => ({ type: "delta", delta: insert(id, extra) });
const position = (name) => ({ type: "position", position: name });
const idsOf = (collection) => collection.array.map((row) => row.id);

function open() {
  const r = rig({ datasync: DataSync });
  const { datasync } = r.server.services;
  const tasks = new ArrayCollection();
  datasync.processor = new CollectionDeltaProcessor({ Task: tasks });
  r.socket.open();
  const receive = (...messages) => r.socket.receive("datasync", ...messages);
  return Object.assign(r, { datasync, tasks, receive });
}

/** A rig with live subscriptions on tokens; `at` is the position of each. */
async function live(...tokens) {
  const r = open();
  r.subscriptions = [];
  for (const token of tokens) {
    const acquired = r.datasync.acquire(token);
    r.socket.answer({ position: "at" });
    r.subscriptions.push(await acquired);
  }
  r.subscription = r.subscriptions[0];
  r.socket.sent.length = 0;
  return r;
}

// ------------------------------------------------------------------ acquire

test("acquire sends token and position and resolves with a live subscription", async () => {
  const { datasync, socket } = open();
  const acquired = datasync.acquire("t");
  assert.deepEqual(socket.calls, [["acquireSubscription", { token: "t", position: null }]]);
  socket.answer({ position: "p1" });
  const subscription = await acquired;
  assert.equal(subscription.token, "t");
  assert.equal(subscription.position, "p1");
  assert.equal(subscription.state, "live");
});

test("a position kept from before can be given", () => {
  const { datasync, socket } = open();
  datasync.acquire("t", { position: "p7" }).catch(() => {});
  assert.deepEqual(socket.calls, [["acquireSubscription", { token: "t", position: "p7" }]]);
});

test("what is replayed is applied, together, when the acquire is answered", async () => {
  const { datasync, socket, receive, tasks } = open();
  const acquired = datasync.acquire("t");
  receive(delta(1), delta(2));
  assert.deepEqual(idsOf(tasks), []);
  socket.answer({ position: "p" });
  assert.deepEqual(idsOf(tasks), [1, 2], "before the promise is even awaited");
  await acquired;
});

test("deltas are gathered until the position and applied in order", async () => {
  const { datasync, receive, tasks, subscription } = await live("t");
  const seen = recorder(datasync, "delta");
  const own = recorder(subscription, "delta", "position");
  receive(delta(1), { type: "delta", delta: { type: "delete", model: "Task", data: { id: 1 } } },
    delta(2));
  assert.deepEqual([seen, subscription.position], [[], "at"]);
  receive(position("p2"));
  assert.deepEqual(idsOf(tasks), [2]);
  assert.deepEqual(seen.map(([, { type }]) => type), ["insert", "delete", "insert"]);
  assert.deepEqual(own.slice(3), [["position", "p2"]]);
  assert.equal(subscription.position, "p2");
});

test("a batch is seen whole: one change event for it", async () => {
  const { receive, tasks } = await live("t");
  const sizes = [];
  tasks.on("change", () => sizes.push(tasks.size));
  receive(delta(1), delta(2), delta(3), position("p"));
  await settled();
  assert.deepEqual(sizes, [3]);
});

test("a position counts for every subscription that was answered, and for no other", async () => {
  const { datasync, receive, socket, subscriptions, tasks } = await live("a", "b");
  const third = datasync.acquire("c");
  receive(delta(1), position("p2"));
  assert.deepEqual(idsOf(tasks), [1]);
  assert.deepEqual(subscriptions.map((s) => s.position), ["p2", "p2"]);
  socket.answer({ position: "p3" });
  assert.equal((await third).position, "p3");
  assert.deepEqual(subscriptions.map((s) => s.position), ["p2", "p2"], "an answer counts for one");
});

test("a replay that is cut goes on where it was", async () => {
  const r = open();
  const acquired = r.datasync.acquire("t");
  const second = r.datasync.acquire("u");
  r.receive(delta(1), position("p1"), delta(2));
  assert.deepEqual(idsOf(r.tasks), [1], "vouched for");
  const socket = r.reconnect();
  assert.deepEqual(socket.calls.map(([, params]) => params),
    [{ token: "t", position: "p1" }, { token: "u", position: null }]);
  r.receive(delta(2));
  socket.answer({ position: "p2" }, 2);
  assert.equal((await acquired).position, "p2");
  socket.answer({ position: "p3" }, 1);
  assert.equal((await second).position, "p3");
  assert.deepEqual(idsOf(r.tasks), [1, 2]);
});

test("a position that comes while the last one is left is not the next one's", async () => {
  const r = await live("a");
  r.subscription.cancel().catch(() => {});
  r.datasync.acquire("b").catch(() => {});
  r.receive(position("p9"));
  const { calls } = r.reconnect();
  assert.deepEqual(calls.map(([, params]) => params), [{ token: "b", position: null }]);
});

test("a token that is held already is refused here", async () => {
  const { datasync, socket } = await live("t");
  await assert.rejects(datasync.acquire("t"), { code: "already_acquired" });
  assert.deepEqual(socket.sent, []);
});

test("a first acquire that is refused rejects, with the server's reason", async () => {
  for (const [code, details] of [["refetch", { reason: "trimmed" }], ["no_such_subscription", {}],
    ["taken_over", {}], ["internal_error", {}]]) {
    const r = open();
    const acquired = r.datasync.acquire("t");
    const heard = recorder(r.datasync, "refetch", "ended");
    r.receive(delta(1));
    r.socket.refuse(code, details);
    const { error } = await outcomeOf(acquired);
    assert.deepEqual([error.code, error.reason], [code, details.reason]);
    assert.deepEqual(heard, [], "the rejection says it");
    assert.deepEqual(idsOf(r.tasks), [1]);
    assert.deepEqual(r.reconnect().sent, []);
  }
});

test("an answer without position, as of an old server, is refused", async () => {
  const { datasync, socket } = open();
  const acquired = datasync.acquire("t");
  socket.answer(null);
  await assert.rejects(acquired, { code: "malformed" });
});

test("a temporary refusal is tried again, on the same connection, and sooner when fresh",
  async () => {
    const r = open();
    const acquired = r.datasync.acquire("t");
    r.socket.refuse("unavailable");
    assert.deepEqual(r.clock.pending, [250]);
    r.clock.advance(250);
    r.socket.refuse("unavailable");
    assert.deepEqual(r.clock.pending, [500]);
    r.receive({ type: "stale" }, { type: "fresh" });
    assert.equal(r.socket.sent.length, 3);
    assert.deepEqual(r.clock.pending, []);
    r.socket.answer({ position: "p" });
    assert.equal((await acquired).state, "live");
  });

// ------------------------------------------------------------------ connections

test("after a reconnect subscriptions go on from their positions, in their order", async () => {
  const r = await live("a", "b");
  r.receive(delta(1), position("p2"));
  const [a, b] = r.subscriptions;
  const heard = [...r.subscriptions].map((s) => recorder(s, "resumed"));
  r.socket.lose();
  assert.deepEqual([a.state, b.state], ["suspended", "suspended"]);
  r.clock.advance(250);
  r.socket.open();
  assert.deepEqual(r.socket.calls, [["acquireSubscription", { token: "a", position: "p2" }],
    ["acquireSubscription", { token: "b", position: "p2" }]]);
  assert.equal(a.state, "acquiring");
  r.socket.answer({ position: "p3" }, 2);
  assert.deepEqual([a.state, b.state], ["live", "acquiring"]);
  r.receive(delta(2));
  r.socket.answer({ position: "p4" });
  assert.deepEqual([a.position, b.position, idsOf(r.tasks)], ["p3", "p4", [1, 2]]);
  assert.deepEqual(heard, [[["resumed"]], [["resumed"]]]);
});

test("what was gathered when the connection went is dropped, for it comes again", async () => {
  const r = await live("t");
  const seen = recorder(r.datasync, "delta");
  r.receive(delta(1), position("p2"), delta(2));
  const socket = r.reconnect();
  assert.deepEqual(socket.calls[0][1], { token: "t", position: "p2" });
  r.receive(delta(2));
  socket.answer({ position: "p3" });
  assert.deepEqual(seen.map(([, { data }]) => data.id), [1, 2], "nothing twice");
});

test("an acquire cut in the middle is made again with the same position", async () => {
  const r = open();
  const acquired = r.datasync.acquire("t");
  r.receive(delta(1));
  const socket = r.reconnect();
  assert.deepEqual(socket.calls, [["acquireSubscription", { token: "t", position: null }]]);
  r.receive(delta(1), delta(2));
  socket.answer({ position: "p" });
  assert.equal((await acquired).state, "live");
  assert.deepEqual(idsOf(r.tasks), [1, 2]);
});

test("an acquire made without connection is sent once, before queued calls", () => {
  const { server, socket } = rig({ datasync: DataSync });
  const { datasync } = server.services;
  datasync.call("other").catch(() => {});
  datasync.acquire("t").catch(() => {});
  socket.open();
  assert.deepEqual(socket.calls.map(([command]) => command), ["acquireSubscription", "other"]);
});

test("a refusal on resume is a refetch, whatever its code; the token is forgotten", async () => {
  for (const [code, details, reason] of [["refetch", { reason: "epoch" }, "epoch"],
    ["no_such_subscription", {}, "no_such_subscription"],
    ["internal_error", {}, "internal_error"]]) {
    const r = await live("t");
    const own = recorder(r.subscription, "refetch", "ended", "resumed");
    const all = recorder(r.datasync, "refetch");
    r.reconnect().refuse(code, details);
    assert.deepEqual(own, [["refetch", { reason }]]);
    assert.deepEqual(all, [["refetch", { subscription: r.subscription, reason }]]);
    assert.equal(r.subscription.state, "ended");
    assert.deepEqual(r.reconnect().sent, []);
  }
});

test("taken over as answer on resume is an end", async () => {
  const r = await live("t");
  const own = recorder(r.subscription, "refetch", "ended");
  r.reconnect().refuse("taken_over", { reason: "taken_over" });
  assert.deepEqual(own, [["ended", { reason: "taken_over" }]]);
  assert.deepEqual(r.reconnect().sent, []);
});

test("a temporary refusal on resume keeps the subscription", async () => {
  const r = await live("t");
  r.reconnect().refuse("unavailable");
  assert.equal(r.subscription.state, "suspended");
  r.clock.advance(250);
  r.socket.answer({ position: "p9" });
  assert.deepEqual([r.subscription.state, r.subscription.position], ["live", "p9"]);
});

test("the delay of retries starts anew once it worked", async () => {
  const r = await live("t");
  for (let i = 0; i < 2; i += 1) {
    r.reconnect().refuse("unavailable");
    assert.deepEqual(r.clock.pending, [250]);
    r.clock.advance(250);
    r.socket.answer({ position: "p" });
  }
});

test("fresh does not acquire anew what is live", async () => {
  const r = await live("t");
  r.receive({ type: "stale" }, { type: "fresh" });
  assert.deepEqual(r.socket.sent, []);
});

test("a retry does not outlive its connection", async () => {
  const r = await live("t");
  const socket = r.reconnect();
  socket.refuse("unavailable");
  socket.lose();
  assert.equal(r.clock.pending.length, 1);
  r.clock.advance(30_000);
  assert.equal(r.socket.open().sent.length, 1);
});

test("on a final close what is live waits for connect, what is not yet is rejected", async () => {
  const r = await live("t");
  const asked = r.datasync.acquire("u");
  r.server.close();
  assert.equal((await outcomeOf(asked)).error.code, "closed");
  await assert.rejects(r.datasync.acquire("v"), { code: "closed" });
  assert.equal(r.subscription.state, "suspended");
  r.server.connect();
  assert.deepEqual(r.socket.open().calls,
    [["acquireSubscription", { token: "t", position: "at" }]]);
});

test("closing inside a delta listener leaves the rest of the batch and its position right",
  async () => {
    const r = await live("t");
    r.datasync.on("delta", () => r.server.close());
    r.receive(delta(1), delta(2), position("p2"));
    assert.deepEqual(idsOf(r.tasks), [1, 2]);
    assert.deepEqual([r.subscription.state, r.subscription.position], ["suspended", "p2"]);
  });

test("closing while a resume is being answered leaves it suspended", async () => {
  const r = await live("t");
  const socket = r.reconnect();
  r.datasync.on("delta", () => r.server.close());
  r.receive(delta(1));
  socket.answer({ position: "p2" });
  assert.equal(r.subscription.state, "suspended");
});

// ------------------------------------------------------------------ the ways to end

test("an unasked refetch ends one subscription; what came before is applied before", async () => {
  const r = await live("a", "b");
  const order = [];
  const [a, b] = r.subscriptions;
  r.datasync.on("delta", ({ data }) => order.push(data.id));
  a.on("refetch", ({ reason }) => order.push(reason));
  r.receive(delta(1), { type: "refetch", token: "a", reason: "requested" }, delta(2));
  assert.deepEqual(order, [1, "requested"]);
  assert.deepEqual([a.state, b.state, b.position], ["ended", "live", "at"]);
  r.receive(position("p2"));
  assert.deepEqual([order, a.position, b.position], [[1, "requested", 2], "at", "p2"]);
  assert.deepEqual(r.reconnect().calls, [["acquireSubscription", { token: "b", position: "p2" }]]);
});

test("after the last subscription has ended deltas are applied as they come", async () => {
  const r = await live("t");
  r.receive(delta(1), { type: "refetch", token: "t", reason: "revoked" }, delta(2));
  assert.deepEqual(idsOf(r.tasks), [1, 2]);
});

test("a subscription that another connection took is not taken back", async () => {
  const r = await live("t");
  const own = recorder(r.subscription, "ended", "refetch");
  const all = recorder(r.datasync, "ended");
  r.receive(delta(1), { type: "ended", token: "t", reason: "taken_over" });
  assert.deepEqual(own, [["ended", { reason: "taken_over" }]]);
  assert.equal(all.length, 1);
  assert.deepEqual(idsOf(r.tasks), [1]);
  assert.deepEqual(r.reconnect().sent, []);
});

test("a refetch or end while the first acquire is under way rejects it once", async () => {
  for (const [type, code, reason] of [["refetch", "refetch", "revoked"],
    ["ended", "taken_over", "taken_over"]]) {
    const r = open();
    const acquired = r.datasync.acquire("t");
    r.receive({ type, token: "t", reason });
    r.socket.refuse(code, { reason });
    const { error } = await outcomeOf(acquired);
    assert.deepEqual([error.code, error.reason], [code, reason]);
  }
});

test("a refetch for a token that nobody holds is passed over", async () => {
  const r = await live("t");
  r.receive({ type: "refetch", token: "x", reason: "revoked" }, { type: "ended", token: "x" },
    { type: "refetch" }, { type: "position" }, { type: "delta" }, { type: "news" });
  assert.equal(r.subscription.state, "live");
  assert.equal(r.subscription.position, "at");
});

test("who listens for the end after it came is told all the same", async () => {
  const r = open();
  const acquired = r.datasync.acquire("t");
  r.socket.answer({ position: "p" }); // and at once, before the promise can be awaited:
  r.receive({ type: "refetch", token: "t", reason: "expired" });
  const subscription = await acquired;
  const seen = recorder(subscription, "refetch", "ended");
  subscription.on("refetch", () => assert.fail("taken off"))();
  await settled();
  assert.deepEqual(seen, [["refetch", { reason: "expired" }]]);
});

test("the rows can be read again and a new token be acquired inside the refetch event",
  async () => {
    const r = await live("t");
    let second;
    r.subscription.on("refetch", () => {
      r.tasks.reset([{ id: 5 }]);
      second = r.datasync.acquire("u");
    });
    r.receive(delta(1), { type: "refetch", token: "t", reason: "requested" });
    r.socket.answer({ position: "q" });
    assert.equal((await second).position, "q");
    assert.deepEqual(idsOf(r.tasks), [5]);
  });

test("what the server tells is a notification as those of any RPC service are", async () => {
  const r = await live("t");
  const seen = recorder(r.datasync, "notification");
  r.receive(position("p"), { type: "news" });
  assert.deepEqual(seen, [["notification", position("p")], ["notification", { type: "news" }]]);
});

// ------------------------------------------------------------------ cancel

test("cancel tells the server and resolves with its answer", async () => {
  const r = await live("t");
  const done = r.subscription.cancel();
  assert.equal(r.subscription.state, "ended");
  assert.deepEqual(r.socket.calls, [["cancelSubscription", { token: "t" }]]);
  assert.equal(await outcomeOf(done), "pending");
  r.socket.answer(null);
  await done;
  await r.subscription.cancel();
  assert.deepEqual(r.reconnect().sent, []);
});

test("what was on its way when the last was cancelled is applied whole, at the answer",
  async () => {
    const r = await live("t");
    r.receive(delta(1));
    const done = r.subscription.cancel();
    r.receive(delta(2));
    assert.deepEqual(idsOf(r.tasks), []);
    r.socket.answer(null);
    assert.deepEqual(idsOf(r.tasks), [1, 2]);
    await done;
  });

test("cancel during an acquire: both are answered and nothing is left", async () => {
  const r = open();
  const acquired = r.datasync.acquire("t");
  const hold = r.datasync.cancelSubscription("t");
  assert.deepEqual(r.socket.calls.map(([command]) => command),
    ["acquireSubscription", "cancelSubscription"]);
  assert.equal((await outcomeOf(acquired)).error.code, "cancelled");
  r.receive(delta(1));
  r.socket.answer({ position: "p" }, 2);
  r.socket.answer(null);
  await hold;
  r.receive(delta(2));
  assert.deepEqual(idsOf(r.tasks), [1, 2], "nothing is gathered any more");
  assert.deepEqual(r.reconnect().sent, []);
});

test("cancel during an acquire that is refused resolves", async () => {
  const r = open();
  const acquired = outcomeOf(r.datasync.acquire("t"));
  const done = r.datasync.cancelSubscription("t");
  r.socket.refuse("refetch", { reason: "revoked" }, 2);
  r.socket.refuse("no_such_subscription");
  await done;
  assert.equal((await acquired).error.code, "cancelled");
});

test("cancel that the server refuses for another reason rejects", async () => {
  const r = await live("t");
  const done = r.subscription.cancel();
  r.socket.refuse("internal_error");
  await assert.rejects(done, { code: "internal_error" });
});

test("cancel pipelined with a disconnect resolves, and nothing is acquired again", async () => {
  for (const isNew of [false, true]) {
    const r = await live("t");
    const acquired = isNew ? outcomeOf(r.datasync.acquire("u")) : null;
    const done = r.datasync.cancelSubscription(isNew ? "u" : "t");
    const socket = r.reconnect();
    await done;
    assert.deepEqual(socket.calls.map(([, { token }]) => token), isNew ? ["t"] : []);
    if (isNew) assert.equal((await acquired).error.code, "cancelled");
  }
});

test("cancel while it is resumed stays an end", async () => {
  const r = await live("t");
  const socket = r.reconnect();
  const own = recorder(r.subscription, "resumed", "refetch");
  r.subscription.cancel().catch(() => {});
  socket.answer({ position: "p2" }, 2);
  assert.deepEqual([r.subscription.state, own], ["ended", []]);
});

test("cancel by a listener of the deltas before a refetch comes first", async () => {
  const r = await live("t");
  const own = recorder(r.subscription, "refetch");
  r.datasync.on("delta", () => r.subscription.cancel());
  r.receive(delta(1), { type: "refetch", token: "t", reason: "requested" });
  assert.deepEqual(own, []);
});

test("cancel without connection needs no answer", async () => {
  const r = await live("t");
  r.socket.lose();
  const waiting = outcomeOf(r.datasync.acquire("u"));
  await r.subscription.cancel();
  await r.datasync.cancelSubscription("u");
  assert.equal((await waiting).error.code, "cancelled");
  r.clock.advance(250);
  assert.deepEqual(r.socket.open().sent, []);
});

test("cancel inside a delta listener leaves the others their position", async () => {
  const r = await live("a", "b");
  const [a, b] = r.subscriptions;
  r.datasync.on("delta", () => a.cancel());
  r.receive(delta(1), delta(2), position("p2"));
  assert.deepEqual([a.position, b.position, idsOf(r.tasks)], ["at", "p2", [1, 2]]);
  assert.deepEqual(r.socket.calls, [["cancelSubscription", { token: "a" }]]);
});

// ------------------------------------------------------------------ Snorky's way

test("acquireSubscription sends no position and its deltas are applied as they come",
  async () => {
    const { datasync, socket, receive, tasks, reconnect } = open();
    const seen = recorder(datasync, "delta");
    const acquired = datasync.acquireSubscription("t");
    assert.deepEqual(socket.calls, [["acquireSubscription", { token: "t" }]]);
    receive(delta(1));
    assert.deepEqual([idsOf(tasks), seen], [[1], [["delta", insert(1)]]]);
    socket.answer(null);
    assert.equal(await acquired, null);
    const cancelled = datasync.cancelSubscription("t");
    assert.deepEqual(socket.calls[1], ["cancelSubscription", { token: "t" }]);
    socket.answer(null);
    await cancelled;
    assert.equal(tasks.size, 1);
  });

test("acquireSubscription is gone with its connection", async () => {
  const r = open();
  r.datasync.acquireSubscription("t").catch(() => {});
  r.socket.answer(null);
  assert.deepEqual(r.reconnect().sent, []);
});

test("the commands can be called by hand as in any RPC service", () => {
  const { datasync, socket } = open();
  datasync.call("acquireSubscription", { token: "t" }).catch(() => {});
  assert.deepEqual(socket.calls, [["acquireSubscription", { token: "t" }]]);
});

// ------------------------------------------------------------------ routing

test("processors of subscriptions get the deltas while theirs is held, each once", async () => {
  const r = open();
  const [mine, shared] = [[], []];
  const processor = { processDelta: (d) => shared.push(d.data.id) };
  r.datasync.processor = processor;
  r.datasync.acquire("a", { processor }).catch(() => {});
  r.socket.answer({ position: "p" });
  const own = { processDelta: (d) => mine.push(d.data.id) };
  const acquired = r.datasync.acquire("b", { processor: own });
  r.receive(delta(1));
  r.socket.answer({ position: "p" });
  const b = await acquired;
  r.receive(delta(2), position("p2"));
  b.cancel().catch(() => {});
  r.socket.answer(null);
  r.receive(delta(3), position("p3"));
  assert.deepEqual([mine, shared], [[1, 2], [1, 2, 3]]);
});

test("a processor that throws is reported and the other deltas are applied", async (t) => {
  const seen = reports(t);
  const r = await live("t");
  r.receive({ type: "delta", delta: { type: "insert", model: "Task", data: {} } }, delta(2),
    position("p"));
  assert.deepEqual(seen, ["A row without key"]);
  assert.deepEqual(idsOf(r.tasks), [2]);
  assert.equal(r.subscription.position, "p");
});

test("stale and fresh are told once, and a lost connection is not stale", async () => {
  const r = await live("t");
  const seen = recorder(r.datasync, "stale", "fresh");
  r.receive({ type: "stale" }, { type: "stale" });
  assert.equal(r.datasync.isStale, true);
  r.receive({ type: "fresh" }, { type: "fresh" }, { type: "stale" });
  r.socket.lose();
  assert.equal(r.datasync.isStale, false);
  assert.deepEqual(seen, [["stale"], ["fresh"], ["stale"], ["fresh"]]);
});

test("two services keep their deltas and positions apart", async () => {
  const r = rig({ one: DataSync, two: DataSync });
  r.socket.open();
  const { one, two } = r.server.services;
  const first = one.acquire("a");
  r.socket.answer({ position: "p" });
  const second = two.acquire("a");
  r.socket.answer({ position: "p" });
  const [a, b] = [await first, await second];
  const seen = [recorder(one, "delta"), recorder(two, "delta")];
  r.socket.receive("one", delta(1), position("p1"));
  r.socket.receive("two", delta(2));
  assert.deepEqual(seen.map((list) => list.length), [1, 0]);
  assert.deepEqual([a.position, b.position], ["p1", "p"]);
});
