/** A daemon of its own for a test, its backend, and pages that speak to it over `ws`. */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { WebSocket } from "ws";
import { ArrayCollection, CollectionDeltaProcessor, DataSync, PubSub, RPCService, SyncServer }
  from "../../syncserver.js";

const PYTHON = process.env.SYNCSERVER_PYTHON ?? process.env.PYTHON ?? "python3";
const REPOSITORY = fileURLToPath(new URL("../../../../", import.meta.url));
const KEY = "a-key-for-tests-of-more-than-32-characters";

const configuration = ({ frontendPort = 0, backendPort = 0, limits = "" }) => `
[frontend]
port = ${frontendPort}

[backend]
port = ${backendPort}
api_keys = ["env:TEST_API_KEY"]

[limits]
${limits}

[services.datasync]
type = "datasync"

[services.datasync.dealers.All]
type = "broadcast"
model = "Task"

[services.datasync.dealers.ByList]
type = "keyed"
model = "Task"
key = "list"

[services.datasync.dealers.Filtered]
type = "filter"
model = "Task"

[services.pubsub]
type = "pubsub"
client_publish = true
`;

export class Daemon {
  /** Start one and wait for its doors; it ends with the test. */
  static async start(t, options = {}) {
    const daemon = new Daemon(t);
    await daemon.start(options);
    return daemon;
  }

  #folder = mkdtempSync(join(tmpdir(), "syncserver-"));
  #process;
  #log = "";

  constructor(t) {
    this.t = t;
    t.after(async () => {
      await this.kill();
      rmSync(this.#folder, { recursive: true });
    });
  }

  async start(options = {}) {
    const file = join(this.#folder, "syncserver.toml");
    writeFileSync(file, configuration(options));
    this.#process = spawn(PYTHON, ["-m", "syncserver", "serve", "--config", file], {
      cwd: REPOSITORY,
      env: { ...process.env, TEST_API_KEY: KEY, PYTHONUNBUFFERED: "1" },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.ended = new Promise((resolve) => {
      this.#process.on("error", (error) => resolve(`${PYTHON}: ${error.message}`));
      this.#process.on("exit", (code, signal) => resolve(code ?? signal));
    });
    this.#process.stderr.on("data", (data) => (this.#log += data));
    await this.#readDoors();
  }

  async #readDoors() {
    for await (const line of createInterface({ input: this.#process.stdout })) {
      const [, door, url] = /^(frontend|backend) (\S+)$/.exec(line) ?? [];
      if (door) this[door] = url;
      if (door === "backend") return void this.#process.stdout.resume();
    }
    throw new Error(`the daemon ended: ${await this.ended}\n${this.#log}`);
  }

  /** The options that give another start the same doors. */
  get samePorts() {
    return { frontendPort: new URL(this.frontend).port, backendPort: new URL(this.backend).port };
  }

  signal(name) {
    this.#process.kill(name);
    return this.ended;
  }

  kill() {
    return this.signal("SIGKILL");
  }

  /** Call a command of the backend; throws what it refuses. */
  async call(service, command, params) {
    const response = await fetch(this.backend, {
      method: "POST",
      headers: { "X-Backend-Key": KEY, "Content-Type": "application/json" },
      body: JSON.stringify({ service, message: { command, params, callId: 0 } }),
    });
    const { message } = await response.json();
    if (message.type === "error") throw Object.assign(new Error(message.message), message);
    return message.data;
  }

  publish(...deltas) {
    return this.call("datasync_backend", "publishDeltas", { deltas });
  }

  authorize(...items) {
    return this.call("datasync_backend", "authorizeSubscription", { items });
  }

  /** A page; `cut()` takes its connection away without a goodbye. */
  page({ version = "v", random = Math.random } = {}) {
    const sockets = [];
    class Socket extends WebSocket {
      constructor(url) {
        super(url);
        sockets.push(this);
      }
    }
    const server = new SyncServer(this.frontend, {
      services: { datasync: DataSync, pubsub: PubSub, nobody: RPCService },
      WebSocket: Socket, minBackoff: 10, maxBackoff: 200, random,
    });
    const { datasync, pubsub } = server.services;
    const tasks = new ArrayCollection([], { version });
    datasync.processor = new CollectionDeltaProcessor({ Task: tasks });
    this.t.after(() => server.close());
    return { server, datasync, pubsub, tasks, cut: () => sockets.at(-1).terminate() };
  }
}

/** A row that has all that the dealers look at. */
export const task = (id, v = 1, more = {}) =>
  ({ id, v, list: "home", done: false, title: "", ...more });
export const insert = (data) => ({ type: "insert", model: "Task", data, version: data.v });
export const remove = (data, version) => ({ type: "delete", model: "Task", data, version });
export const update = (oldData, newData) =>
  ({ type: "update", model: "Task", oldData, newData, version: newData.v });

/** The next event, or the next that `fits`. */
export function next(emitter, name, fits = () => true) {
  return new Promise((resolve) => {
    const off = emitter.on(name, (event) => {
      if (!fits(event)) return;
      off();
      resolve(event);
    });
  });
}

/** Resolves when `isSo` of the collection, now or after a change. */
export async function until(collection, isSo) {
  while (!isSo(collection)) await next(collection, "change");
}

export const idsOf = (collection) => collection.array.map((row) => row.id).sort((a, b) => a - b);
