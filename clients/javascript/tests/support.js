/** A scripted socket, a clock moved by hand and a seeded source of randomness. */
import { SyncServer } from "../syncserver.js";

// What the library reports of foreign code, asserts in a listener among it, fails a test that did
// not ask for `reports`; at the latest when the process ends.
console.error = (error) => {
  process.exitCode = 1;
  throw error;
};

/** Lets promise callbacks run; timers are never waited for. */
export const settled = () => new Promise((resolve) => setImmediate(resolve));

/** What became of a promise, by now. */
export async function outcomeOf(promise) {
  let outcome = "pending";
  promise.then((value) => (outcome = { value }), (error) => (outcome = { error }));
  await settled();
  return outcome;
}

export class FakeClock {
  time = 0;
  #timers = new Map();
  #lastId = 0;

  setTimeout = (action, delay) => {
    this.#lastId += 1;
    this.#timers.set(this.#lastId, { action, at: this.time + delay });
    return this.#lastId;
  };

  clearTimeout = (id) => void this.#timers.delete(id);

  now = () => this.time;

  get pending() {
    return [...this.#timers.values()].map(({ at }) => at - this.time).sort((a, b) => a - b);
  }

  advance(delay) {
    const end = this.time + delay;
    for (;;) {
      const due = [...this.#timers].filter(([, { at }]) => at <= end)
        .sort(([, a], [, b]) => a.at - b.at)[0];
      if (!due) break;
      const [id, { action, at }] = due;
      this.#timers.delete(id);
      this.time = at;
      action();
    }
    this.time = end;
  }
}

export class FakeSocket {
  sent = [];
  isClosed = false;
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;

  constructor(url) {
    this.url = url;
  }

  open() {
    this.onopen?.({});
    return this;
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.isClosed = true;
  }

  receiveText(data) {
    this.onmessage?.({ data });
  }

  receive(service, ...messages) {
    for (const message of messages) this.receiveText(JSON.stringify({ service, message }));
  }

  /** Answer the call that was sent last, or the `nth` from the end. */
  answer(data, nth = 1) {
    const { service, message } = this.sent.at(-nth);
    this.receive(service, { type: "response", callId: message.callId, data });
  }

  refuse(code, details = {}, nth = 1) {
    const { service, message } = this.sent.at(-nth);
    const { callId } = message;
    this.receive(service, { type: "error", callId, message: code, code, ...details });
  }

  lose(code = 1006, reason = "") {
    this.onerror?.({});
    this.onclose?.({ code, reason });
  }

  /** The commands that were sent, as [command, params]. */
  get calls() {
    return this.sent.map(({ message }) => [message.command, message.params]);
  }
}

/** A SyncServer on scripted sockets: `sockets` are all that it made, `socket` the last. */
export function rig(services = {}, options = {}) {
  const clock = new FakeClock();
  const sockets = [];
  class WebSocket extends FakeSocket {
    constructor(url) {
      super(url);
      sockets.push(this);
    }
  }
  const { url = "ws://host/ws", ...rest } = options;
  const server = new SyncServer(url, { services, WebSocket, random: () => 1, ...rest,
    now: clock.now, setTimeout: clock.setTimeout, clearTimeout: clock.clearTimeout });
  const events = [];
  for (const name of ["open", "close", "reconnecting", "error"]) {
    server.on(name, (event) => events.push(event === undefined ? [name] : [name, event]));
  }
  return {
    server, clock, sockets, events,
    get socket() {
      return sockets.at(-1);
    },
    /** Lose the connection and come back. */
    reconnect() {
      this.socket.lose();
      clock.advance(30_000);
      return this.socket.open();
    },
  };
}

/** Collects what is emitted, as [name, event]. */
export function recorder(emitter, ...names) {
  const seen = [];
  for (const name of names) {
    emitter.on(name, (event) => seen.push(event === undefined ? [name] : [name, event]));
  }
  return seen;
}

/** Mulberry32: the same numbers for the same seed. */
export function randomFrom(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    next,
    below: (n) => Math.floor(next() * n),
    pick: (list) => list[Math.floor(next() * list.length)],
    chance: (p) => next() < p,
  };
}

/** Keeps what the library reports of listeners that threw off the screen, and returns it. */
export function reports(t) {
  const seen = [];
  t.mock.method(console, "error", (error) => seen.push(error.message));
  return seen;
}
