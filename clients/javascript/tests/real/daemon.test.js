import assert from "node:assert/strict";
import { test } from "node:test";
import { ArrayCollection, CollectionDeltaProcessor } from "../../syncserver.js";
import { randomFrom } from "../support.js";
import { Daemon, idsOf, insert, next, remove, task, until, update } from "./daemon.js";

const ALL = { dealer: "All", query: null };
const OPEN = { dealer: "Filtered", query: ["==", "done", false] };
const TIMEOUT = { timeout: 60_000 };

test("what happens between token and acquire is there, and what comes after arrives", TIMEOUT,
  async (t) => {
    const daemon = await Daemon.start(t);
    const { datasync, tasks } = daemon.page();
    const token = await daemon.authorize(ALL);
    await daemon.publish(insert(task(1)));
    tasks.reset([task(1)]); // the insert is in the rows already
    await daemon.publish(update(task(1), task(1, 2)), insert(task(2)));
    const subscription = await datasync.acquire(token);
    assert.deepEqual(tasks.array, [task(1, 2), task(2)]);
    assert.equal(subscription.state, "live");
    await daemon.publish(remove(task(1, 2), 3), insert(task(3)));
    await until(tasks, ({ size }) => size === 2 && tasks.has(3));
    assert.deepEqual(idsOf(tasks), [2, 3]);
  });

test("rows move into, within and out of the lists of each dealer and tag", TIMEOUT, async (t) => {
  const daemon = await Daemon.start(t);
  const { datasync } = daemon.page();
  const [open, home, all] = [1, 2, 3].map(() => new ArrayCollection());
  const lists = { open, home, "": all };
  datasync.processor = new CollectionDeltaProcessor({ Task: lists });
  const seen = [];
  datasync.on("delta", ({ type, tag = "" }) => seen.push(`${tag}:${type}`));
  const subscription = await datasync.acquire(await daemon.authorize({ ...OPEN, tag: "open" },
    { dealer: "ByList", query: "home", tag: "home" }, ALL));
  const states = [task(1, 1, { list: "work", done: true }), task(1, 2),
    task(1, 3, { title: "x" }), task(1, 4, { list: "work", done: true })];
  const wanted = [
    [":update", "home:insert", "open:insert"],
    [":update", "home:update", "open:update"],
    [":update", "home:delete", "open:delete"],
  ];
  await daemon.publish(insert(states[0]));
  await until(all, ({ size }) => size === 1);
  for (const [i, deltas] of wanted.entries()) {
    const moved = next(subscription, "position", () => seen.length > 1);
    seen.length = 0;
    await daemon.publish(update(states[i], states[i + 1]));
    await moved;
    assert.deepEqual(seen.sort(), deltas);
    assert.equal(open.size, i === 2 ? 0 : 1);
    assert.equal(home.size, i === 2 ? 0 : 1);
    assert.deepEqual(all.array, [states[i + 1]]);
  }
});

test("a cut connection comes back, nothing is missed and nothing comes twice", TIMEOUT,
  async (t) => {
    const daemon = await Daemon.start(t);
    const { server, datasync, tasks, cut } = daemon.page();
    const seen = [];
    datasync.on("delta", ({ data }) => seen.push(data.id));
    const subscription = await datasync.acquire(await daemon.authorize(ALL));
    for (let id = 0; id < 30; id += 3) {
      await daemon.publish(insert(task(id)));
      const [closed, resumed] = [next(server, "close"), next(subscription, "resumed")];
      cut();
      assert.equal((await closed).willReconnect, true);
      await daemon.publish(insert(task(id + 1)));
      await resumed;
      await daemon.publish(insert(task(id + 2)));
    }
    await until(tasks, ({ size }) => size === 30);
    assert.deepEqual(seen, Array.from({ length: 30 }, (_, id) => id));
  });

test("two publishers overtake each other over cuts, and every list equals the database", TIMEOUT,
  async (t) => {
    const daemon = await Daemon.start(t);
    for (let seed = 1; seed <= 8; seed += 1) await overtaking(daemon, randomFrom(seed), seed);
  });

/** Random changes by two workers with POSTs under way at once, and a page that is cut. */
async function overtaking(daemon, random, seed) {
  const { datasync, cut, server } = daemon.page({ random: random.next });
  const base = seed * 1000; // each seed has rows of its own
  const [open, all] = [1, 2].map(() => new ArrayCollection([], { version: "v" }));
  datasync.processor = new CollectionDeltaProcessor({ Task: { open, "": all } });
  const rows = new Map();
  let version = 0;
  const change = () => {
    const id = base + random.below(6);
    const old = rows.get(id);
    const isGone = old && random.chance(0.3);
    const row = task(id, (version += 1), { done: random.chance(0.5) });
    rows.set(id, row);
    if (isGone) rows.delete(id);
    if (!old) return insert(row);
    return isGone ? remove(old, version) : update(old, row);
  };
  const token = await daemon.authorize({ ...OPEN, tag: "open" }, ALL);
  const posts = [];
  for (let i = 0; i < 10; i += 1) posts.push([change()]);
  all.reset(rows.values());
  open.reset([...rows.values()].filter(({ done }) => !done));
  const acquired = datasync.acquire(token);
  const workers = [[...posts], []];
  for (let i = 0; i < 60; i += 1) random.pick(workers).push([change(), change()]);
  await Promise.all(workers.map(async (batches) => {
    for (const deltas of batches) {
      if (random.chance(0.1)) cut();
      await daemon.publish(...deltas);
    }
  }));
  await acquired;
  await daemon.publish(insert(task(base + 999)));
  await until(all, () => all.has(base + 999));
  const byId = (list) =>
    [...list].filter(({ id }) => id !== base + 999).sort((a, b) => a.id - b.id);
  assert.deepEqual(byId(all), byId(rows.values()), `seed ${seed}`);
  assert.deepEqual(byId(open), byId(rows.values()).filter(({ done }) => !done), `seed ${seed}`);
  server.close();
}

test("a batch with one bad delta applies nothing and names it", TIMEOUT, async (t) => {
  const daemon = await Daemon.start(t);
  const { datasync, tasks } = daemon.page();
  await datasync.acquire(await daemon.authorize(ALL));
  await assert.rejects(daemon.publish(insert(task(1)), { type: "insert", model: "Task" }),
    { code: "invalid_delta", index: 1 });
  await daemon.publish(insert(task(2)));
  await until(tasks, ({ size }) => size > 0);
  assert.deepEqual(idsOf(tasks), [2]);
});

test("the ways in which a subscription is over", TIMEOUT, async (t) => {
  const daemon = await Daemon.start(t);
  const { datasync, tasks } = daemon.page();
  await assert.rejects(datasync.acquire("x".repeat(32)), { code: "no_such_subscription" });

  const revoked = await datasync.acquire(await daemon.authorize(ALL));
  const other = await datasync.acquire(await daemon.authorize(OPEN));
  await daemon.call("datasync_backend", "revokeSubscription", { token: revoked.token });
  assert.deepEqual(await next(revoked, "refetch"), { reason: "revoked" });

  await daemon.call("datasync_backend", "requestRefetch", { items: [OPEN] });
  assert.deepEqual(await next(other, "refetch"), { reason: "requested" });

  const cancelled = await datasync.acquire(await daemon.authorize(ALL));
  await cancelled.cancel();
  const kept = await datasync.acquire(await daemon.authorize(OPEN));
  await daemon.publish(insert(task(1, 1, { done: true })), insert(task(2)));
  await until(tasks, ({ size }) => size > 0);
  assert.deepEqual(idsOf(tasks), [2]);
  assert.equal(kept.state, "live");
});

test("another page takes a subscription over, and the first does not take it back", TIMEOUT,
  async (t) => {
    const daemon = await Daemon.start(t);
    const [first, second] = [daemon.page(), daemon.page()];
    const lost = await first.datasync.acquire(await daemon.authorize(ALL));
    await daemon.publish(insert(task(1)));
    await until(first.tasks, ({ size }) => size === 1);
    const { token, position } = lost;
    const ended = next(lost, "ended");
    const taken = await second.datasync.acquire(token, { position });
    assert.deepEqual(await ended, { reason: "taken_over" });
    first.cut();
    await next(first.server, "open");
    await daemon.publish(insert(task(2)));
    await until(second.tasks, ({ size }) => size > 0);
    assert.deepEqual([idsOf(second.tasks), idsOf(first.tasks)], [[2], [1]]);
    assert.deepEqual([taken.state, lost.state], ["live", "ended"]);
  });

test("cancels, cuts and acquires on top of each other leave nothing behind", TIMEOUT, async (t) => {
  const daemon = await Daemon.start(t);
  const { server, datasync, tasks, cut } = daemon.page();
  const random = randomFrom(7);
  await next(server, "open");
  for (let i = 0; i < 40; i += 1) {
    const acquired = datasync.acquire(await daemon.authorize(ALL));
    const settled = acquired.then((subscription) => subscription.cancel(), () => {});
    await daemon.publish(insert(task(i)));
    if (random.chance(0.3)) cut();
    await settled;
  }
  await datasync.acquire(await daemon.authorize(ALL));
  const seen = [];
  datasync.on("delta", ({ data }) => seen.push(data.id));
  await daemon.publish(insert(task(100)));
  await until(tasks, () => tasks.has(100));
  assert.deepEqual(seen, [100], "from one subscription, not from those that were cancelled");
});

test("Snorky's way: once, answered null, gone with the connection", TIMEOUT, async (t) => {
  const daemon = await Daemon.start(t);
  const { server, datasync, tasks, cut } = daemon.page();
  const token = await daemon.authorize(ALL);
  await daemon.publish(insert(task(1)));
  assert.equal(await datasync.acquireSubscription(token), null);
  assert.deepEqual(idsOf(tasks), [1]);
  await assert.rejects(datasync.acquireSubscription(token), { code: "already_acquired" });
  await daemon.publish(insert(task(2)));
  await until(tasks, ({ size }) => size === 2);
  assert.equal(await datasync.cancelSubscription(token) ?? null, null);
  await assert.rejects(datasync.cancelSubscription(token), { code: "no_such_subscription" });
  const second = await daemon.authorize(ALL);
  await datasync.acquireSubscription(second);
  cut();
  await next(server, "open");
  await assert.rejects(datasync.acquireSubscription(second), { name: "SyncError" });
});

test("channels: any JSON, own messages before the answer, again after a cut", TIMEOUT,
  async (t) => {
    const daemon = await Daemon.start(t);
    const { server, pubsub, cut } = daemon.page();
    const seen = [];
    const channel = { room: 1, kind: ["a"] };
    await pubsub.subscribe(channel, (message) => seen.push(message));
    await pubsub.subscribe(1, (message) => seen.push(message));
    await pubsub.publish({ kind: ["a"], room: 1 }, "mine");
    assert.deepEqual(seen, ["mine"]);
    await pubsub.publish(true, "true is not 1");
    cut();
    await next(server, "open");
    await pubsub.publish("after those that were asked for anew", null);
    await daemon.call("pubsub_backend", "publish", { channel: 1.0, message: "theirs" });
    await pubsub.publish(channel, "last");
    assert.deepEqual(seen, ["mine", "theirs", "last"]);
    await pubsub.unsubscribe(channel);
    await pubsub.publish(channel, "unheard");
    assert.equal(seen.length, 3);
  });

test("what the server does not understand is answered, and the connection lives", TIMEOUT,
  async (t) => {
    const daemon = await Daemon.start(t);
    const { server, datasync, pubsub } = daemon.page();
    await assert.rejects(datasync.call("nothing"), { code: "unknown_command" });
    await assert.rejects(datasync.call("acquireSubscription", { token: 5 }),
      { message: "token must be string" });
    await assert.rejects(pubsub.call("subscribe", {}), { code: "invalid_params" });
    await assert.rejects(server.services.nobody.call("a"), { code: "unknown_service" });
    const deep = JSON.parse("[".repeat(70) + "]".repeat(70));
    await assert.rejects(pubsub.publish("a", deep), { code: "too_deep" });
    await assert.rejects(pubsub.publish("a", 2 ** 60), { code: "bad_number" });
    await assert.rejects(pubsub.subscribe({ a: 2 ** 60 }), { code: "bad_number" });
    await assert.rejects(pubsub.subscribe("\ud83d"), { code: "malformed" });
    assert.equal(server.isOpen, true);
  });

test("a daemon that drains says when to come back, and the page is told", TIMEOUT, async (t) => {
  const daemon = await Daemon.start(t);
  const { server, datasync } = daemon.page();
  const subscription = await datasync.acquire(await daemon.authorize(ALL));
  const [closed, reconnecting] = [next(server, "close"), next(server, "reconnecting")];
  assert.equal(await daemon.signal("SIGTERM"), 0);
  const { code, reason, willReconnect } = await closed;
  assert.deepEqual([code, willReconnect], [4001, true]);
  assert.equal((await reconnecting).delay, JSON.parse(reason).retry_after);
  assert.equal(subscription.state, "suspended");
});

test("a daemon that has lost its memory has the page fetch again", TIMEOUT, async (t) => {
  const daemon = await Daemon.start(t);
  const { datasync, tasks } = daemon.page();
  const subscription = await datasync.acquire(await daemon.authorize(ALL));
  const refetched = next(subscription, "refetch");
  await daemon.kill();
  await daemon.start(daemon.samePorts);
  assert.deepEqual(await refetched, { reason: "epoch" });
  const again = await datasync.acquire(await daemon.authorize(ALL));
  await daemon.publish(insert(task(1)));
  await until(tasks, ({ size }) => size === 1);
  assert.equal(again.state, "live");
});

test("a subscription that waited too long is told so", TIMEOUT, async (t) => {
  const daemon = await Daemon.start(t, { limits: "resume_max_entries = 8" });
  const { datasync, server, cut } = daemon.page();
  const subscription = await datasync.acquire(await daemon.authorize(ALL));
  const refetched = next(subscription, "refetch");
  const closed = next(server, "close");
  cut();
  await closed;
  server.close();
  for (let id = 0; id < 20; id += 1) await daemon.publish(insert(task(id)));
  server.connect();
  assert.deepEqual(await refetched, { reason: "too_far" });
  assert.equal(subscription.state, "ended");
});
