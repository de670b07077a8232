import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import * as library from "../syncserver.js";
import { FakeSocket, settled } from "./support.js";

const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");

/** The script of the README as a function of what it finds in a page. */
function script() {
  const [, code] = /<script type="module">([^]*?)<\/script>/.exec(readme);
  const body = code.replace(/import (\{[^}]*\})\s*from "\/syncserver.js";/, "const $1 = library;");
  return new Function("library", "fetch", "render", "setTimeout", body);
}

test("the page of the README shows the rows, follows them and fetches again", async (t) => {
  const sockets = [];
  const tokens = ["first", "second", "third"];
  const rendered = [];
  globalThis.location = { href: "https://page.example/" };
  const original = globalThis.WebSocket;
  globalThis.WebSocket = class extends FakeSocket {
    constructor(url) {
      super(url);
      sockets.push(this);
    }
  };
  t.after(() => {
    delete globalThis.location;
    globalThis.WebSocket = original;
    sockets[0].lose(4500); // and no timer is left
  });
  let isAway = true;
  const fetch = async () => {
    if (isAway) throw new TypeError("Failed to fetch");
    return {
      json: async () => [{ id: 1, version: 1 }],
      headers: { get: () => tokens.shift() },
    };
  };
  const timers = [];
  const setTimeout = (action, delay) => timers.push({ action, delay });
  const retry = () => {
    assert.equal(timers.length, 1, "once for each failure");
    const [{ action, delay }] = timers.splice(0);
    assert.ok(delay >= 1000 && delay <= 5000, `${delay} ms`);
    action();
  };
  script()(library, fetch, (rows) => rendered.push(rows.map(({ id }) => id)), setTimeout);
  const socket = sockets[0].open();
  assert.equal(socket.url, "wss://page.example/ws");
  await settled();
  isAway = false;
  retry();
  await settled();
  assert.deepEqual(socket.calls,
    [["acquireSubscription", { token: "first", position: null }]]);
  socket.refuse("refetch", { reason: "trimmed" });
  await settled();
  retry();
  await settled();
  assert.equal(socket.calls.at(-1)[1].token, "second");
  const delta = { type: "insert", model: "Task", data: { id: 2, version: 1 } };
  socket.receive("datasync", { type: "delta", delta });
  socket.answer({ position: "p" });
  await settled();
  assert.deepEqual(rendered.at(-1), [1, 2]);
  socket.receive("datasync", { type: "refetch", token: "second", reason: "requested" });
  await settled();
  assert.equal(socket.calls.at(-1)[1].token, "third");
  assert.deepEqual(rendered.at(-1), [1]);
  socket.answer({ position: "q" });
  await settled();
});

test("the README names every error code of the library and every event", () => {
  const source = readFileSync(new URL("../syncserver.js", import.meta.url), "utf8");
  const codes = [...source.matchAll(/code: "(\w+)"/g)].map(([, code]) => code);
  const events = [...source.matchAll(/emit\("(\w+)"/g)].map(([, name]) => name);
  for (const name of new Set([...codes, ...events])) {
    assert.ok(readme.includes(`\`${name}\``), name);
  }
});
