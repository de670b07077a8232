/**
 * A database, an application that publishes its changes, and a server that follows the rules of
 * docs/reference/wire, driven step by step by a seeded random.
 */
import { ArrayCollection, CollectionDeltaProcessor, DataSync } from "../syncserver.js";
import { rig } from "./support.js";

const VIEWS = {
  red: (row) => row.color === "red",
  "": () => true,
  even: (row) => row.n % 2 === 0,
};

/** Rows by id; each change takes the next version and says which delta it is. */
class Database {
  rows = new Map();
  #version = 0;

  constructor(random, { hasRenames }) {
    this.random = random;
    this.hasRenames = hasRenames;
  }

  commit() {
    return Array.from({ length: 1 + this.random.below(3) }, () => this.#change());
  }

  view(tag) {
    return [...this.rows.values()].filter(VIEWS[tag]);
  }

  #change() {
    const { random, rows } = this;
    const old = rows.get(random.below(8)) ?? null;
    const v = (this.#version += 1);
    if (old && random.chance(0.3)) {
      rows.delete(old.id);
      return { old, new: null, version: v };
    }
    const free = [...Array(8).keys()].filter((id) => !rows.has(id));
    const isMoved = old && this.hasRenames && free.length > 0 && random.chance(0.3);
    if (!old && free.length === 0) return this.#change();
    const id = !old || isMoved ? random.pick(free) : old.id;
    const row = { id, color: random.pick(["red", "blue"]), n: random.below(10), v };
    if (old) rows.delete(old.id);
    rows.set(id, row);
    return { old, new: row, version: v };
  }
}

/** One connection as the server sees it. */
class Session {
  subscriptions = new Map(); // token -> {tags, at, callId}; callId while it is joining
  outbox = [];
  handled = 0;
  owesPosition = false;

  constructor(socket) {
    this.socket = socket;
  }

  get joining() {
    return [...this.subscriptions.values()].find(({ callId }) => callId !== null);
  }
}

export class World {
  log = [];
  queues; // what each publisher has committed and not yet posted
  grants = new Map();
  granted = 0;
  applied = []; // [offset, tag] of each delta that reached the page
  isFaulty = true;

  /** `subscriptions` are lists of tags; `versions` is "delta", "row" or "none". */
  constructor(random, { subscriptions, versions, publishers, hasRenames }) {
    this.random = random;
    this.versions = versions;
    this.database = new Database(random, { hasRenames });
    this.queues = Array.from({ length: publishers }, () => []);
    this.rig = rig({ datasync: DataSync }, { random: random.next });
    this.datasync = this.rig.server.services.datasync;
    const version = versions === "none" ? undefined : "v";
    this.collections = Object.fromEntries(Object.keys(VIEWS).map((tag) =>
      [tag, new ArrayCollection([], { version })]));
    this.datasync.processor = new CollectionDeltaProcessor({ Row: this.collections });
    this.datasync.on("delta", ({ offset, tag = "" }) => this.applied.push([offset, tag]));
    this.pages = subscriptions.map((tags) => ({ tags, phase: "grant", token: null }));
    this.session = null;
  }

  step() {
    const { random } = this;
    const action = random.pick(["commit", "post", "post", "page", "page", "serve", "serve",
      "deliver", "deliver", "deliver", "deliver", "fault"]);
    if (action === "commit") random.pick(this.queues).push(this.database.commit());
    else if (action === "post") this.#post(random.pick(this.queues));
    else if (action === "page") this.#advance(random.pick(this.pages));
    else if (action === "fault") this.#fault();
    else this[action]();
  }

  /** No more changes and no more faults: what is under way comes to its end. */
  calmDown() {
    this.isFaulty = false;
    for (const queue of this.queues) while (queue.length > 0) this.#post(queue);
    for (const page of this.pages) this.#advance(page);
    do {
      this.serve();
      this.deliver(Infinity);
    } while (!this.#isIdle);
  }

  get isCalm() {
    return this.#isIdle && this.pages.every(({ phase }) => phase === "live");
  }

  get #isIdle() {
    const { session, rig: { socket } } = this;
    return session.socket === socket && session.handled === socket.sent.length
      && !session.joining && !session.owesPosition && session.outbox.length === 0;
  }

  // ---------------------------------------------------------------- application

  #post(queue) {
    const changes = queue.shift();
    if (!changes) return;
    this.log.push(changes);
    if (!this.session) return;
    for (const [token, subscription] of this.session.subscriptions) {
      if (subscription.callId === null) this.#send(token, this.log.length - 1);
    }
  }

  /** The page's own way: token, then rows, then acquire; from the start after a refetch. */
  #advance(page) {
    if (page.phase === "grant") {
      this.#postOvertaken();
      page.token = `token ${(this.granted += 1)}`;
      this.grants.set(page.token, { tags: page.tags, at: this.log.length });
      page.phase = "read";
    } else if (page.phase === "read") {
      for (const tag of page.tags) this.collections[tag].reset(this.database.view(tag));
      page.phase = "acquire";
    } else if (page.phase === "acquire") {
      page.phase = "acquiring";
      this.datasync.acquire(page.token).then(
        (subscription) => {
          page.phase = "live";
          subscription.on("refetch", () => (page.phase = "grant"));
        },
        () => (page.phase = "grant"),
      );
    }
  }

  /**
   * What no client can know: a row is absent from the snapshot because of a deletion posted
   * before the grant, and an older change of it is posted after. So that is not simulated:
   * what was overtaken by then is posted first.
   */
  #postOvertaken() {
    const latest = new Map();
    for (const { version, ...rows } of this.log.flat()) {
      for (const row of [rows.old, rows.new]) {
        if (row) latest.set(row.id, Math.max(version, latest.get(row.id) ?? 0));
      }
    }
    const isOvertaken = (change) => [change.old, change.new].some((row) =>
      row && change.version < (latest.get(row.id) ?? 0));
    for (const queue of this.queues) {
      if (queue.some((changes) => changes.some(isOvertaken))) {
        this.#post(queue);
        return this.#postOvertaken();
      }
    }
  }

  // ---------------------------------------------------------------- server

  /** One piece of work for the connection: a command, some replay, or an owed position. */
  serve() {
    const socket = this.rig.socket;
    if (this.session?.socket !== socket) {
      this.session = new Session(socket);
      socket.open();
    }
    const { session } = this;
    if (session.joining) return this.#join();
    if (session.handled < socket.sent.length) {
      return this.#command(socket.sent[session.handled++].message);
    }
    if (session.owesPosition) this.#put({ type: "position", position: String(this.log.length) });
    session.owesPosition = false;
  }

  #command({ command, params: { token, position }, callId }) {
    const grant = this.grants.get(token);
    if (command !== "acquireSubscription") throw new Error(command);
    const isRefused = this.isFaulty && this.random.chance(0.1);
    if (!grant || isRefused) {
      this.grants.delete(token);
      const [code, reason] = grant ? ["refetch", "trimmed"] : ["no_such_subscription", undefined];
      return this.#put({ type: "error", callId, message: code, code, reason });
    }
    const at = position === null ? grant.at : Number(position);
    this.session.subscriptions.set(token, { tags: grant.tags, at, callId });
  }

  #join() {
    const { subscriptions, joining } = this.session;
    const [token] = [...subscriptions].find(([, subscription]) => subscription === joining);
    if (joining.at < this.log.length) return this.#send(token, joining.at++);
    const { callId } = joining;
    joining.callId = null;
    this.#put({ type: "response", callId, data: { position: String(this.log.length) } });
  }

  /** An entry, narrowed for each tag of a subscription. */
  #send(token, offset) {
    this.session.owesPosition = true;
    for (const tag of this.session.subscriptions.get(token).tags) {
      for (const change of this.log[offset]) {
        const delta = this.#narrow(change, VIEWS[tag]);
        if (delta) this.#put({ type: "delta", delta: { ...delta, tag: tag || undefined, offset } });
      }
    }
  }

  #narrow({ old, new: row, version }, covers) {
    const [was, is] = [old !== null && covers(old), row !== null && covers(row)];
    const common = { model: "Row", version: this.versions === "delta" ? version : undefined };
    if (was && is) return { type: "update", newData: row, oldData: old, ...common };
    if (is) return { type: "insert", data: row, ...common };
    return was ? { type: "delete", data: old, ...common } : null;
  }

  #put(message) {
    this.session.outbox.push(message);
  }

  /** Frames reach the page, some at a time. */
  deliver(count = 1 + this.random.below(4)) {
    if (this.session?.socket !== this.rig.socket) return;
    this.rig.socket.receive("datasync", ...this.session.outbox.splice(0, count));
  }

  // ---------------------------------------------------------------- faults

  #fault() {
    if (!this.session || this.session.socket !== this.rig.socket) return;
    if (this.random.chance(0.5)) {
      this.deliver(this.random.below(6)); // cut at any frame
      this.rig.socket.lose();
      this.rig.clock.advance(30_000);
      return;
    }
    const live = [...this.session.subscriptions].filter(([, { callId }]) => callId === null);
    if (live.length === 0) return;
    const [token] = this.random.pick(live);
    this.session.subscriptions.delete(token);
    this.grants.delete(token);
    this.#put({ type: "refetch", token, reason: "requested" });
  }
}
