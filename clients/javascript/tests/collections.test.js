import assert from "node:assert/strict";
import { test } from "node:test";
import { ArrayCollection, CollectionDeltaProcessor, SingleItemCollection } from "../syncserver.js";
import { FakeClock, recorder, settled } from "./support.js";

const row = (id, extra) => ({ id, ...extra });
const insert = (data, version) => ({ type: "insert", data, version });
const remove = (data, version) => ({ type: "delete", data, version });
const update = (newData, version, oldData = newData) =>
  ({ type: "update", newData, oldData, version });

/** A holder of one item and the collection over it. */
function single(item = null, options = {}) {
  const holder = { item };
  const collection = new SingleItemCollection({
    read: () => holder.item,
    update: (value) => void (holder.item = value),
    remove: () => void (holder.item = null),
    ...options,
  });
  return { holder, collection };
}

// ------------------------------------------------------------------ rows by key

test("rows are inserted at the end, updated in place, deleted", () => {
  const array = [row(1), row(2), row(3)];
  const collection = new ArrayCollection(array);
  collection.applyDelta(update(row(2, { x: 1 })));
  collection.applyDelta(insert(row(4)));
  collection.applyDelta(remove(row(1)));
  assert.deepEqual(array, [row(2, { x: 1 }), row(3), row(4)]);
  assert.equal(collection.array, array, "the array given is the one kept");
  assert.deepEqual([...collection], array);
  assert.deepEqual([collection.size, collection.get(3), collection.has(3), collection.has(1)],
    [3, row(3), true, false]);
});

test("an insert of a key that is there replaces, an update of one that is not inserts", () => {
  const collection = new ArrayCollection([row(1), row(2)]);
  collection.insert(row(1, { x: 1 }));
  collection.update(row(3), row(3));
  assert.deepEqual(collection.array, [row(1, { x: 1 }), row(2), row(3)]);
});

test("an update that changes the key takes the old row's place", () => {
  const collection = new ArrayCollection([row(1), row(2), row(3)]);
  collection.update(row(9), row(2));
  assert.deepEqual(collection.array, [row(1), row(9), row(3)]);
  collection.update(row(3, { x: 1 }), row(1));
  assert.deepEqual(collection.array, [row(9), row(3, { x: 1 })], "the new key was there");
  collection.update(row(7), row(8));
  assert.deepEqual(collection.array, [row(9), row(3, { x: 1 }), row(7)], "the old one was not");
  for (const id of [9, 3, 7]) assert.equal(collection.get(id).id, id);
});

test("old data without the key means that the key is the same", () => {
  const collection = new ArrayCollection([row(1)]);
  collection.update(row(1, { x: 1 }), { title: "old" });
  collection.update(row(1, { x: 2 }));
  assert.deepEqual(collection.array, [row(1, { x: 2 })]);
});

test("keys are looked up right after many random changes", () => {
  const collection = new ArrayCollection();
  for (let i = 0; i < 2000; i += 1) {
    const id = (i * 7919) % 101;
    if (i % 3 === 2) collection.delete(row(id));
    else collection.insert(row(id, { i }));
    if (i % 50 === 0) {
      for (const item of collection) assert.equal(collection.get(item.id), item);
    }
  }
});

test("keys such as __proto__ are data, 1 and \"1\" are two, objects are compared by value", () => {
  const collection = new ArrayCollection();
  for (const id of ["__proto__", "constructor", 1, "1", { a: 1, b: 2 }, { b: 2, a: 1 }]) {
    collection.insert(row(id));
  }
  assert.equal(collection.size, 5);
  collection.delete(row("__proto__"));
  assert.equal(collection.size, 4);
  const hostile = JSON.parse('{"__proto__": 5, "x": 1}');
  const byProto = new ArrayCollection([hostile], { key: "__proto__" });
  assert.equal(byProto.has(5), true);
  assert.throws(() => byProto.insert({ x: 1 }), /A row without key/);
});

test("a row without key is refused and changes nothing", () => {
  const collection = new ArrayCollection([row(1)]);
  for (const bad of [{}, row(null), null, 5, [1]]) {
    assert.throws(() => collection.insert(bad), { message: "A row without key" });
  }
  assert.throws(() => collection.reset([row(2), {}]));
  assert.deepEqual(collection.array, [row(1)]);
});

test("the key may be another field or a function", () => {
  const named = new ArrayCollection([{ pk: 1 }], { key: "pk" });
  named.insert({ pk: 1, x: 1 });
  assert.equal(named.size, 1);
  const computed = new ArrayCollection([], { key: ({ a, b }) => [a, b] });
  computed.insert({ a: 1, b: 2 });
  computed.insert({ a: 1, b: 2, x: 1 });
  computed.insert({ a: 12, b: "" });
  assert.equal(computed.size, 2);
});

test("transformItem is applied to all rows; keys are those of the rows", () => {
  const options = { transformItem: ({ id, x = 0 }) => `${id}:${x}` };
  const collection = new ArrayCollection([row(1)], options);
  collection.insert(row(2));
  collection.update(row(1, { x: 5 }));
  collection.update(row(3), row(2));
  assert.deepEqual(collection.array, ["1:5", "3:0"]);
  collection.delete(row(1));
  collection.getIterator().hasNext();
  collection.reset([row(4), row(5)]);
  assert.deepEqual(collection.array, ["4:0", "5:0"]);
  const iterator = collection.getIterator();
  iterator.next();
  iterator.update(row(4, { x: 1 }));
  assert.deepEqual(collection.array, ["4:1", "5:0"]);
});

test("change is told once after all that happened in a turn", async () => {
  const collection = new ArrayCollection();
  const { collection: one } = single();
  const seen = [recorder(collection, "change"), recorder(one, "change")];
  for (let id = 0; id < 5; id += 1) collection.insert(row(id));
  one.insert(row(1));
  assert.deepEqual(seen, [[], []]);
  await settled();
  assert.deepEqual(seen, [[["change"]], [["change"]]]);
  collection.reset([]);
  await settled();
  assert.equal(seen[0].length, 2);
});

test("a delta that is ignored is no change", async () => {
  const collection = new ArrayCollection([row(1, { v: 5 })], { version: "v" });
  await settled();
  const seen = recorder(collection, "change");
  assert.equal(collection.applyDelta(insert(row(1, { v: 4 }))), false);
  assert.equal(collection.applyDelta(remove(row(1, { v: 3 }))), false);
  assert.equal(collection.applyDelta({ type: "news" }), false);
  await settled();
  assert.deepEqual(seen, []);
});

test("reset replaces all; the last of rows with one key wins", () => {
  const array = [row(1), row(2)];
  const collection = new ArrayCollection(array);
  collection.reset(new Set([row(3), row(4), row(3, { x: 1 })]));
  assert.deepEqual(array, [row(3, { x: 1 }), row(4)]);
  collection.reset(collection.array);
  assert.equal(collection.size, 2);
});

// ------------------------------------------------------------------ versions

for (const kind of ["array", "single"]) {
  const make = (rows, options) => {
    if (kind === "array") return new ArrayCollection(rows, options);
    const { collection } = single(null, options);
    collection.reset(rows);
    return collection;
  };
  const rowsOf = (collection) => {
    if (kind === "array") return collection.array;
    return collection.read() === null ? [] : [collection.read()];
  };

  test(`${kind}: a delta older than the snapshot's row is ignored`, () => {
    const collection = make([row(1, { v: 5 })], { version: "v" });
    for (const delta of [insert(row(1, { v: 1 }), 1), update(row(1, { v: 4 }), 4),
      remove(row(1, { v: 3 }), 4), update(row(1, { v: 2 }))]) {
      assert.equal(collection.applyDelta(delta), false);
    }
    assert.deepEqual(rowsOf(collection), [row(1, { v: 5 })]);
    collection.applyDelta(update(row(1, { v: 5, x: 1 }), 5));
    assert.deepEqual(rowsOf(collection), [row(1, { v: 5, x: 1 })], "the same is applied again");
    collection.applyDelta(update(row(1, { v: 6 }), 6));
    assert.deepEqual(rowsOf(collection), [row(1, { v: 6 })]);
  });

  test(`${kind}: a delta older than the last one of its row is ignored`, () => {
    const collection = make([]);
    collection.applyDelta(update(row(1, { x: 2 }), 2));
    collection.applyDelta(insert(row(1, { x: 1 }), 1));
    assert.deepEqual(rowsOf(collection), [row(1, { x: 2 })]);
    collection.applyDelta(remove(row(1), 1));
    assert.deepEqual(rowsOf(collection), [row(1, { x: 2 })]);
  });

  test(`${kind}: a row that was deleted is not brought back by an older delta`, () => {
    const collection = make([]);
    assert.equal(collection.applyDelta(remove(row(1), 3)), true, "of a key never seen");
    collection.applyDelta(insert(row(1), 1));
    collection.applyDelta(update(row(1), 2));
    assert.deepEqual(rowsOf(collection), []);
    collection.applyDelta(insert(row(1, { x: 4 }), 4));
    assert.deepEqual(rowsOf(collection), [row(1, { x: 4 })], "made anew");
    collection.applyDelta(remove(row(1), 3));
    assert.deepEqual(rowsOf(collection), [row(1, { x: 4 })]);
  });

  test(`${kind}: a deletion without version of its own is newer than the row it shows`, () => {
    const collection = make([row(1, { v: 5 })], { version: "v" });
    collection.applyDelta(remove(row(1, { v: 5 })));
    collection.applyDelta(update(row(1, { v: 5 })));
    assert.deepEqual(rowsOf(collection), []);
    collection.applyDelta(insert(row(1, { v: 6 })));
    collection.applyDelta(remove(row(1, { v: 5 })));
    assert.deepEqual(rowsOf(collection), [row(1, { v: 6 })]);
  });

  test(`${kind}: a deletion without any version is newer than what is known`, () => {
    const collection = make([]);
    collection.applyDelta(insert(row(1), 5));
    collection.applyDelta(remove(row(1)));
    collection.applyDelta(update(row(1), 5));
    assert.deepEqual(rowsOf(collection), []);
    collection.applyDelta(remove(row(1)));
    collection.applyDelta(update(row(1), 5));
    assert.deepEqual(rowsOf(collection), []);
    collection.applyDelta(insert(row(1), 6));
    assert.equal(rowsOf(collection).length, 1);
  });

  test(`${kind}: deltas without version are applied as they come`, () => {
    const collection = make([]);
    collection.applyDelta(insert(row(1, { x: 5 }), 5));
    collection.applyDelta(update(row(1, { x: 0 })));
    assert.deepEqual(rowsOf(collection), [row(1, { x: 0 })]);
    collection.applyDelta(remove(row(1)));
    collection.applyDelta(insert(row(1)));
    assert.equal(rowsOf(collection).length, 1);
    collection.applyDelta(insert(row(1, { x: 4 }), 4));
    assert.deepEqual(rowsOf(collection), [row(1)], "and what is known of versions stays known");
  });

  test(`${kind}: the delta's version goes before the row's`, () => {
    const collection = make([], { version: "v" });
    collection.applyDelta(insert(row(1, { v: 1 }), 10));
    collection.applyDelta(update(row(1, { v: 9 })));
    assert.deepEqual(rowsOf(collection), [row(1, { v: 1 })]);
  });

  test(`${kind}: a version may be computed; what is no number is none`, () => {
    const version = ({ at }) => (at ? Date.parse(at) : at);
    const collection = make([row(1, { at: "2026-01-02" })], { version });
    collection.applyDelta(update(row(1, { at: "2026-01-01" })));
    assert.equal(rowsOf(collection)[0].at, "2026-01-02");
    collection.applyDelta(update(row(1, { at: "nonsense" })));
    assert.equal(rowsOf(collection)[0].at, "nonsense");
    collection.applyDelta(update(row(1, { at: null }), "7"));
    assert.equal(rowsOf(collection)[0].at, null);
  });

  test(`${kind}: an old change of key does not undo what came after it`, () => {
    const collection = make([]);
    collection.applyDelta(update(row(2), 3, row(1)));
    collection.applyDelta(insert(row(1), 1));
    collection.applyDelta(update(row(1), 2, row(1)));
    assert.deepEqual(rowsOf(collection), [row(2)]);
    collection.applyDelta(update(row(1, { x: 4 }), 4, row(2)));
    collection.applyDelta(update(row(2), 3, row(1)));
    assert.deepEqual(rowsOf(collection), [row(1, { x: 4 })]);
  });

  test(`${kind}: reset forgets versions and deletions, for a backup may be older`, () => {
    const collection = make([row(1, { v: 9 })], { version: "v" });
    collection.applyDelta(remove(row(2), 9));
    collection.reset([row(1, { v: 3 })]);
    collection.applyDelta(update(row(1, { v: 4 })));
    assert.deepEqual(rowsOf(collection), [row(1, { v: 4 })]);
    collection.applyDelta(insert(row(2, { v: 4 })));
    assert.ok(rowsOf(collection).some(({ id }) => id === 2));
  });

  test(`${kind}: deletions are remembered for a time`, () => {
    const clock = new FakeClock();
    const collection = make([], { tombstoneSeconds: 600, now: clock.now });
    collection.applyDelta(remove(row(1), 5));
    clock.advance(600_000);
    assert.equal(collection.applyDelta(insert(row(1), 4)), false);
    clock.advance(1);
    assert.equal(collection.applyDelta(insert(row(1), 4)), true);
  });

  test(`${kind}: a row made anew is no deletion any more`, () => {
    const collection = make([], { maxTombstones: 2 });
    for (const delta of [remove(row(2), 5), remove(row(1), 5), insert(row(1), 6),
      remove(row(3), 5)]) collection.applyDelta(delta);
    assert.equal(collection.applyDelta(insert(row(2), 4)), false);
  });

  test(`${kind}: of too many deletions the oldest are forgotten`, () => {
    const collection = make([], { maxTombstones: 2 });
    for (const id of [1, 2, 1, 3]) collection.applyDelta(remove(row(id), 5));
    assert.equal(collection.applyDelta(insert(row(1), 4)), false);
    assert.equal(collection.applyDelta(insert(row(3), 4)), false);
    assert.equal(collection.applyDelta(insert(row(2), 4)), true);
  });
}

test("a key that was changed away is remembered like a deletion", () => {
  const collection = new ArrayCollection([row(1)]);
  collection.applyDelta(update(row(2), 5, row(1)));
  assert.equal(collection.applyDelta(update(row(1), 4)), false);
  assert.deepEqual(collection.array, [row(2)]);
});

test("a change of key onto a newer row only removes the old one", () => {
  const collection = new ArrayCollection([row(1)]);
  collection.applyDelta(insert(row(2, { x: 9 }), 9));
  collection.applyDelta(update(row(2), 5, row(1)));
  assert.deepEqual(collection.array, [row(2, { x: 9 })]);
});

// ------------------------------------------------------------------ one item

test("a single item is set by insert and update, and removed by its own deletion only", () => {
  const { holder, collection } = single();
  collection.applyDelta(insert(row(1)));
  assert.deepEqual(holder.item, row(1));
  collection.applyDelta(update(row(1, { x: 1 })));
  assert.deepEqual(holder.item, row(1, { x: 1 }));
  collection.applyDelta(insert(row(2)));
  assert.deepEqual(holder.item, row(2), "the row that came last is the one");
  collection.applyDelta(remove(row(1)));
  assert.deepEqual(holder.item, row(2), "another one went");
  collection.applyDelta(remove(row(2)));
  assert.equal(holder.item, null);
});

test("a row that was displaced does not come back older", () => {
  const { holder, collection } = single();
  collection.applyDelta(insert(row(1), 5));
  collection.applyDelta(insert(row(2), 1));
  assert.equal(collection.applyDelta(update(row(1), 4)), false);
  assert.deepEqual(holder.item, row(2));
});

test("rows that were displaced are remembered like deletions, within the same bounds", () => {
  const { collection } = single(null, { maxTombstones: 1 });
  for (const id of [1, 2, 3]) collection.applyDelta(insert(row(id), 5));
  assert.equal(collection.applyDelta(update(row(2), 4)), false);
  assert.equal(collection.applyDelta(update(row(1), 4)), true);
});

test("the three functions may be given one by one, and undefined is no item", () => {
  let item;
  const collection = new SingleItemCollection(() => item, (value) => (item = value),
    () => (item = undefined), { key: "pk" });
  assert.equal(collection.getIterator().hasNext(), false);
  collection.insert({ pk: 1 });
  assert.deepEqual(item, { pk: 1 });
  collection.delete({ pk: 1 });
  assert.equal(item, undefined);
});

test("an item that the page set itself is known by its key", () => {
  const { holder, collection } = single(row(1));
  collection.delete(row(2));
  assert.deepEqual(holder.item, row(1));
  collection.delete(row(1));
  assert.equal(holder.item, null);
  holder.item = "no row";
  collection.delete(row(1));
  assert.equal(holder.item, "no row");
  collection.getIterator().next();
  collection.insert(row(3));
  assert.deepEqual(holder.item, row(3));
});

test("a transformed single item is known by the key of its row", () => {
  const { holder, collection } = single(null, { transformItem: ({ id }) => `item ${id}` });
  collection.insert(row(1));
  assert.equal(holder.item, "item 1");
  collection.delete(row(2));
  assert.equal(holder.item, "item 1");
  collection.update(row(3), row(1));
  assert.equal(holder.item, "item 3");
  collection.delete(row(3));
  assert.equal(holder.item, null);
});

test("a single item that was read anew is the one, and none if there was none", () => {
  const { holder, collection } = single(row(1));
  collection.insert(row(1), 5);
  collection.reset([row(2)]);
  assert.deepEqual(holder.item, row(2));
  collection.reset([]);
  assert.equal(holder.item, null);
  assert.equal(collection.insert(row(1), 4), true, "what was known of versions is forgotten");
  const untouched = single(null, { remove: () => assert.fail("there is none") });
  untouched.collection.reset([]);
});

// ------------------------------------------------------------------ iterators

const NOT_POINTING = { message: "Iterator not pointing to an item! (call next())" };
const DELETED = { message: "Iterator pointing to a deleted item! (call next())" };
const BUSTED = { message: "Busted iterator" };

test("an array iterator walks, updates and removes", () => {
  const collection = new ArrayCollection([row(1), row(2), row(3)]);
  const iterator = collection.getIterator();
  const seen = [];
  while (iterator.hasNext()) {
    const item = iterator.next();
    seen.push(item.id);
    if (item.id === 2) iterator.remove();
    else iterator.update(row(item.id, { x: 1 }));
  }
  assert.deepEqual(seen, [1, 2, 3]);
  assert.deepEqual(collection.array, [row(1, { x: 1 }), row(3, { x: 1 })]);
});

test("an iterator stays at an item whose removal comes too late", () => {
  const collection = new ArrayCollection([row(1, { v: 5 }), row(2, { v: 5 })], { version: "v" });
  const iterator = collection.getIterator();
  iterator.next();
  iterator.remove(4);
  iterator.update(row(1, { v: 6 }));
  assert.equal(iterator.next().id, 2);
  assert.deepEqual(collection.array, [row(1, { v: 6 }), row(2, { v: 5 })]);
});

test("an array iterator says how it is misused", () => {
  const iterator = new ArrayCollection([row(1), row(2)]).getIterator();
  assert.throws(() => iterator.remove(), NOT_POINTING);
  assert.throws(() => iterator.update(row(1)), NOT_POINTING);
  iterator.next();
  iterator.remove();
  assert.throws(() => iterator.remove(), DELETED);
  assert.throws(() => iterator.update(row(1)), DELETED);
  assert.equal(iterator.next().id, 2);
  assert.equal(iterator.hasNext(), false);
  assert.throws(() => iterator.next(), BUSTED);
  assert.throws(() => new ArrayCollection().getIterator().next(), BUSTED);
});

test("a single item iterator walks, updates and removes", () => {
  const { holder, collection } = single(row(1));
  const iterator = collection.getIterator();
  assert.throws(() => iterator.remove(), NOT_POINTING);
  assert.throws(() => iterator.update(row(1)), NOT_POINTING);
  assert.deepEqual([iterator.hasNext(), iterator.next(), iterator.hasNext()],
    [true, row(1), false]);
  assert.throws(() => iterator.next(), BUSTED);
  iterator.update(row(1, { x: 1 }));
  assert.deepEqual(holder.item, row(1, { x: 1 }));
  iterator.remove();
  assert.equal(holder.item, null);
  assert.throws(() => iterator.remove(), DELETED);
  assert.throws(() => iterator.update(row(1)), DELETED);
  assert.throws(() => single().collection.getIterator().next(), BUSTED);
});

test("an iterator removes what is no row of ours", () => {
  const { holder, collection } = single("no row");
  const iterator = collection.getIterator();
  iterator.next();
  iterator.remove();
  assert.equal(holder.item, null);
});

// ------------------------------------------------------------------ processor

const onModel = (model, delta, tag) => ({ model, tag, ...delta });

test("deltas go to the collection of their model", () => {
  const [tasks, notes] = [new ArrayCollection(), new ArrayCollection()];
  const processor = new CollectionDeltaProcessor({ Task: tasks, Note: notes });
  assert.equal(processor.processDelta(onModel("Task", insert(row(1)))), true);
  processor.processDelta(onModel("Note", insert(row(2)), "any tag"));
  processor.processDelta(onModel("Task", update(row(1, { x: 1 }))));
  assert.deepEqual([tasks.array, notes.array], [[row(1, { x: 1 })], [row(2)]]);
  processor.processDelta(onModel("Task", remove(row(1))));
  assert.equal(tasks.size, 0);
});

test("with tags they go to the collection of their tag, those without to \"\"", () => {
  const [mine, rest, proto] = [1, 2, 3].map(() => new ArrayCollection());
  const processor = new CollectionDeltaProcessor({
    Task: { mine, "": rest },
    Note: new Map([["__proto__", proto]]),
  });
  processor.processDelta(onModel("Task", insert(row(1)), "mine"));
  processor.processDelta(onModel("Task", insert(row(2))));
  processor.processDelta(onModel("Note", insert(row(3)), "__proto__"));
  assert.deepEqual([mine.array, rest.array, proto.array], [[row(1)], [row(2)], [row(3)]]);
  assert.equal(processor.processDelta(onModel("Task", insert(row(4)), "other")), false);
});

test("a delta that belongs nowhere is passed over", () => {
  const processor = new CollectionDeltaProcessor({ Task: new ArrayCollection(), Note: {} });
  for (const delta of [onModel("Other", insert(row(1))), onModel("__proto__", insert(row(1))),
    onModel("Note", insert(row(1))), onModel("Note", insert(row(1)), "constructor"),
    onModel("toString", insert(row(1))), onModel("Task", { type: "news" }), { type: "insert" }]) {
    assert.equal(processor.processDelta(delta), false);
  }
});

test("versions are kept for each tag on its own", () => {
  const [a, b] = [new ArrayCollection(), new ArrayCollection()];
  const processor = new CollectionDeltaProcessor({ Task: { a, b } });
  processor.processDelta(onModel("Task", remove(row(1), 5), "a"));
  processor.processDelta(onModel("Task", insert(row(1), 5), "b"));
  processor.processDelta(onModel("Task", insert(row(1), 4), "a"));
  assert.deepEqual([a.size, b.size], [0, 1]);
});

test("itemsAreEqual finds the item that a delta is about", () => {
  const collection = new ArrayCollection([row(1, { slug: "a" }), row(2, { slug: "b" })]);
  const itemsAreEqual = (item, other) => item.slug === other.slug;
  const processor = new CollectionDeltaProcessor({ Task: collection }, { itemsAreEqual });
  processor.processDelta(onModel("Task",
    update(row(2, { slug: "c" }), undefined, row(77, { slug: "b" }))));
  assert.deepEqual(collection.array[1], row(2, { slug: "c" }));
  processor.processDelta(onModel("Task", remove(row(78, { slug: "a" }))));
  processor.processDelta(onModel("Task", remove(row(79, { slug: "none" }))));
  processor.processDelta(onModel("Task", insert(row(3, { slug: "d" }))));
  assert.deepEqual(collection.array, [row(2, { slug: "c" }), row(3, { slug: "d" })]);
});

test("a collection of one's own needs insert and getIterator only", () => {
  const rows = new Map();
  const own = {
    insert: (item) => void rows.set(item.id, item),
    getIterator() {
      const ids = [...rows.keys()];
      let current;
      return {
        hasNext: () => ids.length > 0,
        next: () => rows.get((current = ids.shift())),
        remove: () => void rows.delete(current),
        update: (item) => void rows.set(current, item),
      };
    },
  };
  const processor = new CollectionDeltaProcessor({ Task: own });
  processor.processDelta(onModel("Task", insert(row(1))));
  processor.processDelta(onModel("Task", insert(row(2))));
  processor.processDelta(onModel("Task", update(row(2, { x: 1 }))));
  processor.processDelta(onModel("Task", remove(row(1))));
  processor.processDelta(onModel("Task", remove(row(9))));
  assert.deepEqual([...rows.values()], [row(2, { x: 1 })]);
});

test("a single item collection works behind a processor", () => {
  const { holder, collection } = single(row(1));
  const processor = new CollectionDeltaProcessor({ Task: collection });
  processor.processDelta(onModel("Task", update(row(1, { x: 1 }))));
  assert.deepEqual(holder.item, row(1, { x: 1 }));
  processor.processDelta(onModel("Task", remove(row(1))));
  assert.equal(holder.item, null);
});

test("ten thousand deltas on ten thousand rows take no scan each", () => {
  const collection = new ArrayCollection(Array.from({ length: 10_000 }, (_, id) => row(id)));
  let looked = 0;
  const counting = new Proxy(collection.array, {
    get(target, name) {
      looked += 1;
      return Reflect.get(target, name);
    },
  });
  collection.array = counting;
  for (let id = 0; id < 10_000; id += 1) collection.update(row(id, { x: 1 }));
  assert.ok(looked <= 20_000, `${looked} looks into the array`);
});
