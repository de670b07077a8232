// Compiled by types.test.js with --strict and never run: the API as an app uses it.
import {
  ArrayCollection,
  CollectionDeltaProcessor,
  DataSync,
  Emitter,
  PubSub,
  RPCService,
  Service,
  SingleItemCollection,
  SyncError,
  SyncServer,
  stableStringify,
  type Delta,
  type SocketLike,
  type Subscription,
} from "../syncserver.js";

interface Task {
  id: number;
  title: string;
  version: number;
}

class Calculator extends RPCService {
  sum(a: number, b: number): Promise<number> {
    return this.call<number>("sum", { a, b });
  }
}
const Clock = (class extends RPCService {}).addRPCMethods(["tick", "stop"]);

declare const FakeSocket: new (url: string) => SocketLike;

const server = new SyncServer("/ws", {
  services: { datasync: DataSync, pubsub: PubSub, calc: Calculator, clock: Clock, raw: Service },
  WebSocket: FakeSocket,
  minBackoff: 100,
  debug: (line) => line.length,
});
const withGlobals = new SyncServer("wss://example.org/ws", { WebSocket, setTimeout, clearTimeout });
withGlobals.connect();

const off: () => void = server.on("close", ({ code, reason, willReconnect }) => {
  const text: string = willReconnect ? reason : code.toFixed();
  text.trim();
});
off();
server.on("open", () => {});
server.on("reconnecting", ({ attempt, delay }) => attempt + delay);
server.on("error", (error) => error.message);
// @ts-expect-error there is no such event
server.on("opened", () => {});
// @ts-expect-error there is no such service
server.services.chat;

const tasks = new ArrayCollection<Task>([], { key: "id", version: "version" });
const titles = new ArrayCollection<Task, string>([], { transformItem: (task) => task.title });
let current: Task | null = null;
const one = new SingleItemCollection<Task>({
  read: () => current,
  update: (task) => void (current = task),
  remove: () => void (current = null),
  version: (task) => task.version,
});
const positional = new SingleItemCollection<Task>(
  () => current, (task) => void (current = task), () => void (current = null), { key: "id" },
);
const title: string | undefined = titles.get(1);
for (const task of tasks) task.title.concat(title ?? "");
tasks.on("change", () => tasks.array.map((task) => task.title));
tasks.reset([{ id: 1, title: "a", version: 1 }]);
positional.insert({ id: 1, title: "b", version: 2 }, 2);
const iterator = tasks.getIterator();
while (iterator.hasNext()) if (iterator.next().id === 1) iterator.remove();

const { datasync, pubsub, calc, clock, raw } = server.services;
datasync.processor = new CollectionDeltaProcessor(
  { Task: { mine: tasks, "": one }, Title: titles },
  { itemsAreEqual: (a, b) => a.id === b.id },
);
datasync.processor = new CollectionDeltaProcessor(new Map([["Task", tasks]]));
datasync.processor = { processDelta: (delta: Delta<Task>) => delta.type };

async function main(): Promise<void> {
  const subscription: Subscription = await datasync.acquire("token", { position: null });
  subscription.on("refetch", ({ reason }) => reason.trim());
  subscription.on("ended", ({ reason }) => reason.trim());
  subscription.on("resumed", () => {});
  subscription.on("delta", (delta) => (delta.type === "update" ? delta.oldData : delta.data));
  const position: string | null = subscription.position;
  sessionStorage.setItem("position", position ?? "");
  await subscription.cancel();
  await datasync.acquireSubscription("token");
  await datasync.cancelSubscription("token");
  datasync.on("stale", () => {});
  datasync.on("refetch", ({ subscription: which, reason }) => which.token + reason);

  await pubsub.subscribe({ room: 1 }, (message, channel) => [message, channel]);
  await pubsub.publish("channel", { any: ["thing"] });
  await pubsub.unsubscribe("channel");
  pubsub.on("message", ({ channel, message }) => [channel, message]);

  const sum: number = await calc.sum(1, 2);
  await clock.tick({ times: sum });
  await clock.call("stop");
  raw.send([1, 2]);
  raw.on("message", (message) => message);
  try {
    await calc.call("nothing");
  } catch (error) {
    if (error instanceof SyncError) error.code.concat(error.reason ?? "", error.field ?? "");
  }
}

interface OwnEvents {
  done: number;
  empty: void;
}
const emitter = new Emitter<OwnEvents>();
emitter.emit("done", 1);
emitter.emit("empty");
// @ts-expect-error `done` has a number
emitter.emit("done", "1");

export { main, stableStringify };
