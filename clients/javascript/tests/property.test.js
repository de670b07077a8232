import assert from "node:assert/strict";
import { test } from "node:test";
import { World } from "./simulation.js";
import { randomFrom, settled } from "./support.js";

const SEEDS = Number(process.env.SEEDS ?? 150);
const byId = (rows) => [...rows].sort((a, b) => a.id - b.id);

/** Lives through a world and returns it at rest. */
async function live(seed, options, look = () => {}) {
  const world = new World(randomFrom(seed), options);
  for (let i = 0; i < 250; i += 1) {
    world.step();
    await settled();
    look(world);
  }
  for (let i = 0; i < 8; i += 1) { // token, rows, acquire, perhaps refused: twice
    world.calmDown();
    await settled();
  }
  assert.ok(world.isCalm, "it comes to rest");
  return world;
}

function equalsDatabase(world) {
  for (const tag of world.pages.flatMap((page) => page.tags)) {
    assert.deepEqual(byId(world.collections[tag].array), byId(world.database.view(tag)),
      `collection "${tag}"`);
  }
}

/** For one subscription: nothing twice, each batch at once, in the order of the log. */
function isOnceWholeAndInOrder(world) {
  const offsets = world.applied.splice(0).map(([offset]) => offset);
  assert.deepEqual(offsets, [...offsets].sort((a, b) => a - b));
  const last = world.lastOffset ?? -1;
  assert.ok(offsets.every((offset) => offset > last), `${offsets} after ${last}`);
  world.lastOffset = offsets.at(-1) ?? last;
  if (world.pages[0].phase === "grant") world.lastOffset = -1; // a new token starts anew
}

const WORLDS = {
  "one publisher, no versions": { subscriptions: [["red", ""]], versions: "none", publishers: 1 },
  "publishers that overtake each other, versions in the deltas":
    { subscriptions: [["red", ""]], versions: "delta", publishers: 2 },
  "publishers that overtake each other, versions in the rows":
    { subscriptions: [["red", ""]], versions: "row", publishers: 3 },
  "two subscriptions on one connection":
    { subscriptions: [["red", ""], ["even"]], versions: "delta", publishers: 2 },
};

for (const [name, options] of Object.entries(WORLDS)) {
  for (const hasRenames of [false, true]) {
    test(`${name}${hasRenames ? ", keys that change" : ""}: it equals the database`, async () => {
      const look = options.subscriptions.length === 1 ? isOnceWholeAndInOrder : undefined;
      for (let seed = 1; seed <= SEEDS; seed += 1) {
        try {
          equalsDatabase(await live(seed, { ...options, hasRenames }, look));
        } catch (error) {
          error.message = `seed ${seed}: ${error.message}`;
          throw error;
        }
      }
    });
  }
}
