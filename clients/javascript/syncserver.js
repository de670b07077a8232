/**
 * The browser's half of syncserver: one ES module, no dependencies, no build step.
 *
 *   SyncServer   one connection that comes back by itself, and its services
 *   RPCService   calls and notifications; PubSub and DataSync are made of it
 *   collections  rows kept by key, into which deltas are applied
 *
 * docs/reference/wire is the protocol. Times are in milliseconds unless a name says otherwise.
 */

/** A failure with a stable `code`; `reason`, `index` and `field` where they apply. */
export class SyncError extends Error {
  constructor(message, { code = "error", reason, index, field } = {}) {
    super(message);
    this.name = "SyncError";
    this.code = code;
    this.reason = reason;
    this.index = index;
    this.field = field;
  }
}

/** Text that is equal for equal JSON values, whatever the order of their keys. */
export function stableStringify(value) {
  const text = JSON.stringify(value);
  if (text === undefined) throw new TypeError("not a JSON value");
  return JSON.stringify(JSON.parse(text), (_, v) =>
    isObject(v) ? Object.fromEntries(Object.keys(v).sort().map((key) => [key, v[key]])) : v);
}

/** Named events. A listener that throws is reported and stops nobody else. */
export class Emitter {
  #listeners = new Map();

  /** Call `listener` at each `name` event; returns a function that ends that. */
  on(name, listener) {
    const entry = { listener };
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(entry);
    return () => void this.#listeners.get(name).delete(entry);
  }

  emit(name, event) {
    const entries = this.#listeners.get(name) ?? [];
    for (const entry of [...entries]) {
      if (entries.has(entry)) shielded(() => entry.listener(event));
    }
  }
}

// ---------------------------------------------------------------------------- connection

const MAX_TIMER = 2 ** 31 - 1; // a longer delay makes setTimeout fire at once
const CLOSED = 3; // of WebSocket.readyState
const STABLE_AFTER = 10_000; // a connection that lived this long starts the backoff anew
const GONE = new Set(["disconnected", "closed"]); // made here: the connection went, no answer came
const HALF_CHARACTER = /[^\\](?:\\\\)*\\ud[89a-f]/; // a lone surrogate, as JSON.stringify writes it
const TEMPORARY = new Set(["unavailable", "timeout"]); // the same acquire may succeed later

/** One connection to a syncserver, kept up until `close()`, and the services on it. */
export class SyncServer extends Emitter {
  /** The services by name. */
  services = Object.create(null);
  #state = "closed"; // closed | connecting | open | waiting (for the next attempt)
  #socket = null;
  #queue = new Set(); // parcels that wait for the connection to open
  #attempts = 0; // attempts since a connection was last good
  #openedAt = Infinity; // when the connection opened
  #cancelReconnect = () => {};
  #cancelCheck = () => {}; // whether a socket that had an error is closed
  #options;

  constructor(url, options = {}) {
    super();
    this.#options = withDefaults(options);
    this.url = this.#options.keepUrl ? String(url) : socketUrl(url);
    this.callTimeout = this.#options.callTimeout;
    for (const [name, ServiceClass] of Object.entries(this.#options.services)) {
      this.services[name] = new ServiceClass(name, this);
    }
    this.connect();
  }

  get isOpen() {
    return this.#state === "open";
  }

  /** Whether calls are taken: true until `close()` or a final close by the server. */
  get isActive() {
    return this.#state !== "closed";
  }

  /** Connect now, also after a final close; while waiting to reconnect it waits no longer. */
  connect() {
    if (this.#state === "open" || this.#state === "connecting") return;
    this.#cancelReconnect();
    this.#state = "connecting";
    try {
      this.#attach(new this.#options.WebSocket(this.url));
    } catch (error) {
      this.#end({ code: 1006, reason: String(error?.message ?? error) });
      throw error; // the class refuses the URL: it would refuse it again
    }
  }

  /** Disconnect for good: what is pending is rejected, subscriptions wait for `connect()`. */
  close() {
    if (this.#state === "closed") return;
    const socket = this.#detach();
    this.#end({ code: 1000, reason: "" });
    socket?.close();
  }

  /**
   * For services: send, or queue until the connection is open. Throws a SyncError (`closed`,
   * `queue_full`, `malformed`, `too_large`). The parcel returned says whether it was `sent`.
   */
  transmit(service, message) {
    if (!this.isActive) throw new SyncError("The connection is closed", { code: "closed" });
    const parcel = { text: JSON.stringify({ service, message }), sent: false };
    if (HALF_CHARACTER.test(parcel.text)) throw malformed("A text with half a character");
    // The server would close the connection, and again when a subscription is sent again.
    if (bytesOf(parcel.text) > this.#options.maxMessageBytes) {
      throw new SyncError("The message is longer than `maxMessageBytes`", { code: "too_large" });
    }
    if (this.isOpen) {
      this.#dispatch(parcel);
    } else if (this.#queue.size >= this.#options.maxQueue) {
      throw new SyncError("Too many messages wait for the connection", { code: "queue_full" });
    } else {
      this.#queue.add(parcel);
    }
    this.#log(parcel.sent ? "sent" : "queued", service, message);
    return parcel;
  }

  /** For services: take back a parcel that has not been sent. */
  recall(parcel) {
    this.#queue.delete(parcel);
  }

  /** For services: call `action` after `delay`; returns a function that prevents it. */
  after(delay, action) {
    const { setTimeout, clearTimeout } = this.#options; // called bare, as browsers demand
    const timer = setTimeout(action, Math.min(Math.max(delay, 0), MAX_TIMER));
    return () => clearTimeout(timer);
  }

  /** For services: a delay with full jitter for attempt number `attempt` (from 0). */
  backoff(attempt) {
    const { random, minBackoff, maxBackoff } = this.#options;
    return random() * Math.min(maxBackoff, minBackoff * 2 ** attempt);
  }

  /** For services: something odd arrived; only listeners of `error` hear of it. */
  complain(error) {
    this.#log("error", null, { type: error.message });
    this.emit("error", error);
  }

  #attach(socket) {
    this.#socket = socket;
    socket.onopen = () => this.#opened(socket);
    socket.onmessage = (event) => this.#received(event.data);
    socket.onerror = () => (this.#cancelCheck = this.after(0, () => this.#failed(socket)));
    socket.onclose = (event) => this.#lost({ code: event?.code, reason: event?.reason });
  }

  /** A socket had an error. Its `close` says more, but some classes send none. */
  #failed(socket) {
    if (this.#socket === socket && socket.readyState === CLOSED) this.#lost({});
  }

  #detach() {
    const socket = this.#socket;
    this.#socket = null;
    this.#cancelCheck();
    if (!socket) return null;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.onerror = () => {}; // `ws` throws an error that nobody listens to
    return socket;
  }

  #opened(socket) {
    this.#state = "open";
    this.#openedAt = this.#options.now();
    for (const service of Object.values(this.services)) {
      shielded(() => service.connectionOpened());
    }
    for (const parcel of this.#queue) {
      if (this.#socket !== socket) return; // a listener closed it
      this.#queue.delete(parcel);
      shielded(() => this.#dispatch(parcel));
    }
    if (this.#socket === socket) this.emit("open");
  }

  #dispatch(parcel) {
    parcel.sent = true; // before: an answer may come while it is being sent
    this.#socket.send(parcel.text);
  }

  #received(text) {
    const envelope = parseEnvelope(text);
    if (!envelope) return this.complain(malformed("A message is no envelope"));
    const { service: name, message } = envelope;
    this.#log("received", name, message);
    if (name === null && message?.type === "error") return this.complain(errorFrom(message));
    const service = this.services[name];
    if (!service) {
      const error = new SyncError("A message for an unknown service", { code: "unknown_service" });
      return this.complain(error);
    }
    shielded(() => service.onMessage(message));
  }

  #lost({ code = 1006, reason = "" }) {
    this.#detach();
    if (code >= 4500 && code <= 4999) return this.#end({ code, reason });
    this.#state = "waiting";
    const { attempt, delay } = this.#scheduleReconnect(code, reason);
    const cancel = this.#cancelReconnect;
    this.#tellServices("disconnected", { code, reason }, false);
    if (!this.isActive) return; // closed by a listener, and told
    this.emit("close", { code, reason, willReconnect: true });
    if (this.#state === "waiting" && cancel === this.#cancelReconnect) {
      this.emit("reconnecting", { attempt, delay });
    }
  }

  #scheduleReconnect(code, reason) {
    if (this.#options.now() - this.#openedAt >= STABLE_AFTER) this.#attempts = 0;
    const asked = code === 4001 || code === 4013 ? retryAfter(reason) : null;
    const delay = asked ?? this.backoff(this.#attempts);
    this.#openedAt = Infinity; // an attempt that never opens proves nothing
    this.#attempts += 1;
    this.#cancelReconnect = this.after(delay, () => {
      try {
        this.connect();
      } catch (error) {
        this.complain(error); // #end has told the rest
      }
    });
    return { attempt: this.#attempts, delay };
  }

  #end({ code, reason }) {
    this.#cancelReconnect();
    this.#state = "closed";
    this.#attempts = 0;
    this.#queue.clear();
    this.#tellServices("closed", { code, reason }, true);
    this.emit("close", { code, reason, willReconnect: false });
  }

  #tellServices(errorCode, { code, reason }, final) {
    const message = `The connection is ${errorCode} (${code})`;
    for (const service of Object.values(this.services)) {
      const error = new SyncError(message, { code: errorCode, reason: reason || undefined });
      shielded(() => service.connectionClosed(error, final));
    }
  }

  /** Payloads and tokens are never shown. */
  #log(what, service, message) {
    const { debug } = this.#options;
    if (!debug) return;
    const print = typeof debug === "function" ? debug : (line) => console.debug(line);
    const kind = message?.command ?? message?.type ?? typeof message;
    print(`syncserver ${what}: ${service} ${kind} ${message?.callId ?? ""}`.trimEnd());
  }
}

function withDefaults({
  services = {},
  WebSocket = globalThis.WebSocket,
  keepUrl = false,
  minBackoff = 250,
  maxBackoff = 30_000,
  callTimeout = 30_000,
  maxMessageBytes = 65_536, // the server's limits.max_message_bytes
  maxQueue = 100, // well below what a server takes at once (limits.max_inbox_messages)
  random = Math.random,
  now = () => performance.now(),
  setTimeout = globalThis.setTimeout,
  clearTimeout = globalThis.clearTimeout,
  debug = false,
}) {
  if (typeof WebSocket !== "function") {
    throw new TypeError("There is no global WebSocket: pass a class as option `WebSocket`");
  }
  return { services, WebSocket, keepUrl, minBackoff, maxBackoff, callTimeout, maxMessageBytes,
    maxQueue, random, now, setTimeout, clearTimeout, debug };
}

function socketUrl(url) {
  const resolved = new URL(url, globalThis.location?.href);
  resolved.protocol = resolved.protocol.replace(/^http/, "ws");
  if (!/^wss?:$/.test(resolved.protocol)) throw new TypeError(`Not a WebSocket URL: ${url}`);
  resolved.hash = ""; // WebSocket refuses fragments
  return resolved.href;
}

function bytesOf(text) {
  return new TextEncoder().encode(text).length;
}

function parseEnvelope(text) {
  try {
    const envelope = typeof text === "string" ? JSON.parse(text) : null;
    return isObject(envelope) && "service" in envelope && "message" in envelope ? envelope : null;
  } catch {
    return null;
  }
}

function retryAfter(reason) {
  try {
    const { retry_after: delay } = JSON.parse(reason);
    return Number.isFinite(delay) && delay >= 0 ? delay : null;
  } catch {
    return null;
  }
}

// ---------------------------------------------------------------------------- services

/** Messages of one name. Override `onMessage`, or listen to `message`. */
export class Service extends Emitter {
  constructor(name, server) {
    super();
    this.name = name;
    this.server = server;
  }

  /** Send any JSON value, queued until the connection is open; throws a SyncError. */
  send(message) {
    this.server.transmit(this.name, message);
  }

  /** Called with each message for this service. */
  onMessage(message) {
    this.emit("message", message);
  }

  /** Called before what was queued is sent. */
  connectionOpened() {}

  /** Called when the connection went; `final` when it will not come back by itself. */
  connectionClosed(_error, _final) {}
}

/** Calls with answers, and notifications. */
export class RPCService extends Service {
  #pending = new Map();
  #nextCallId = 0;

  /** Give the class a method of each name that calls the command of that name. */
  static addRPCMethods(names) {
    const taken = names.find((name, i) => name in this.prototype || names.indexOf(name) < i);
    if (taken !== undefined) {
      throw new Error(
        `Method "${taken}" already exists in the class. Refusing to overwrite it.`,
      );
    }
    for (const name of names) {
      const method = function (params) {
        return this.call(name, params);
      };
      Object.defineProperty(this.prototype, name,
        { value: method, writable: true, configurable: true });
    }
    return this;
  }

  /** Call a command. The promise always settles: answer, time-out, or the connection went. */
  call(command, params = {}) {
    return new Promise((resolve, reject) => {
      this.request(command, params, (error, data) => (error ? reject(error) : resolve(data)));
    });
  }

  /**
   * For subclasses: `call` with a callback, `answered(error, data)`, run in the very turn in
   * which the answer comes, so that it keeps its place among notifications. A `timeout` of 0
   * waits as long as the connection lasts.
   */
  request(command, params, answered, timeout = this.server.callTimeout) {
    const callId = this.#nextCallId;
    const pending = { answered, parcel: null, stopTimer: () => {} };
    this.#pending.set(callId, pending);
    try {
      this.#nextCallId += 1;
      pending.parcel = this.server.transmit(this.name, { command, params, callId });
    } catch (error) {
      return this.#settle(callId, error);
    }
    if (timeout > 0 && this.#pending.has(callId)) {
      pending.stopTimer = this.server.after(timeout, () => this.#timedOut(callId, command));
    }
  }

  onMessage(message) {
    if (!isObject(message)) return this.server.complain(malformed("A message is no object"));
    const { type, callId } = message;
    if (type === "response") {
      this.#settle(callId, null, message.data);
    } else if (type === "error") {
      const error = errorFrom(message);
      if (typeof callId === "number") this.#settle(callId, error);
      else this.server.complain(error);
    } else {
      this.onNotification(message);
    }
  }

  /** Called with each message that answers no call. */
  onNotification(message) {
    this.emit("notification", message);
  }

  connectionClosed(error, final) {
    for (const [callId, { parcel }] of [...this.#pending]) {
      if (final || parcel?.sent) this.#settle(callId, error);
    }
  }

  #timedOut(callId, command) {
    this.server.recall(this.#pending.get(callId)?.parcel);
    this.#settle(callId, new SyncError(`No answer to "${command}"`, { code: "timeout" }));
  }

  #settle(callId, error, data) {
    const pending = this.#pending.get(callId);
    if (!pending) return; // it timed out before
    this.#pending.delete(callId);
    pending.stopTimer();
    shielded(() => pending.answered(error, data));
  }
}

/**
 * Channels. A subscription is a wish: it is asked for anew on each connection, until
 * `unsubscribe`. Event `message` {channel, message}; `unsubscribed` {channel, error} when the
 * server refuses after a reconnect what it once granted.
 */
export class PubSub extends RPCService {
  #channels = new Map();

  /** Subscribe; resolves when the server has agreed, be it on a later connection. */
  async subscribe(channel, listener = null) {
    const key = stableStringify(channel);
    const entry = this.#channels.get(key) ?? this.#added(key, channel);
    entry.listeners.add(listener);
    return entry.granted.promise;
  }

  /** Take a listener off its channel, or all; the last one to go ends the subscription. */
  async unsubscribe(channel, listener) {
    const key = stableStringify(channel);
    const entry = this.#channels.get(key);
    if (!entry) throw new SyncError("Not subscribed", { code: "not_subscribed" });
    if (listener !== undefined) {
      entry.listeners.delete(listener);
      if (entry.listeners.size > 0) return;
    }
    this.#channels.delete(key);
    entry.granted.reject(new SyncError("Unsubscribed", { code: "cancelled" }));
    if (this.server.isOpen) await ignoring(GONE, this.call("unsubscribe", { channel }));
  }

  /** Publish, where the server allows it. */
  publish(channel, message) {
    return this.call("publish", { channel, message });
  }

  onNotification(notification) {
    super.onNotification(notification);
    if (notification.type !== "message") return;
    const { channel, message } = notification;
    this.emit("message", { channel, message });
    for (const listener of [...(this.#listenersOf(channel) ?? [])]) {
      if (listener) shielded(() => listener(message, channel));
    }
  }

  connectionOpened() {
    for (const [key, entry] of this.#channels) this.#ask(key, entry);
  }

  connectionClosed(error, final) {
    super.connectionClosed(error, final);
    for (const [key, entry] of this.#channels) {
      if (final && !entry.isGranted) this.#refuse(key, entry, error);
    }
  }

  #added(key, channel) {
    if (!this.server.isActive) {
      throw new SyncError("The connection is closed", { code: "closed" });
    }
    const entry = { channel, listeners: new Set(), granted: deferred(), isGranted: false };
    this.#channels.set(key, entry);
    if (this.server.isOpen) this.#ask(key, entry);
    return entry; // which may be refused already
  }

  #ask(key, entry) {
    this.request("subscribe", { channel: entry.channel }, (error) => {
      if (this.#channels.get(key) !== entry) return; // unsubscribed meanwhile
      if (GONE.has(error?.code)) return; // asked again when there is a connection
      if (error && error.code !== "already_subscribed") return this.#refuse(key, entry, error);
      entry.isGranted = true;
      entry.granted.resolve();
    }, 0);
  }

  #refuse(key, entry, error) {
    this.#channels.delete(key);
    if (!entry.isGranted) return entry.granted.reject(error);
    this.emit("unsubscribed", { channel: entry.channel, error });
  }

  #listenersOf(channel) {
    return channel === undefined ? null : this.#channels.get(stableStringify(channel))?.listeners;
  }
}

// ---------------------------------------------------------------------------- datasync

/**
 * What one token stands for. `state`: acquiring, live, suspended (no connection) or ended.
 *
 * Events: `refetch` {reason} (over: read the rows again, with a new token), `ended` {reason}
 * (over: another connection has it), `resumed` (nothing was missed), `position` (a new one to
 * keep) and `delta` (a delta names no subscription: this is every one the service applies
 * while this is held). A listener of `refetch` or `ended` that comes too late is still told.
 */
export class Subscription extends Emitter {
  state = "acquiring";
  #service;
  #over = null;

  constructor(service, token, { position, processor }) {
    super();
    this.#service = service;
    this.token = token;
    this.position = position;
    this.processor = processor;
  }

  /** End it. Deltas already on their way may still be applied until the promise resolves. */
  cancel() {
    return this.#service.cancel(this);
  }

  /** For the service: over, and by which event. */
  finish(name, event) {
    this.state = "ended";
    this.#over = { name, event };
    this.emit(name, event);
  }

  on(name, listener) {
    const off = super.on(name, listener);
    if (this.#over?.name !== name) return off;
    let wanted = true;
    queueMicrotask(() => wanted && shielded(() => listener(this.#over.event)));
    return () => {
      wanted = false;
      off();
    };
  }
}

/**
 * Live rows. Deltas go to `processor` (an object with `processDelta(delta)`), to the
 * processors of subscriptions and to listeners of `delta`.
 *
 * While a subscription with positions is on the connection, deltas are gathered and applied
 * together when a position vouches for them. So batches are whole, and what a cut leaves
 * unvouched is dropped here and sent again by the server. Without one, deltas are applied as
 * they come.
 *
 * Three things other than a `position` apply what was gathered, because none may follow: the
 * answer of an acquire, a subscription that ends, and the cancelling of the last one. The
 * position of the *other* subscriptions does not move with it, so after a cut at just that
 * point their last deltas come twice; collections do not mind.
 *
 * Events: `delta`, `stale`, `fresh`, and `refetch` / `ended` {subscription, reason}.
 */
export class DataSync extends RPCService {
  processor = null;
  /** Whether the server has said that its log is out of reach. */
  isStale = false;
  #held = new Map(); // token -> hold: what is to be live, on this connection or the next
  #active = new Set(); // holds that the server may be sending deltas for: asked, live, leaving
  #gathered = [];
  #retries = 0;
  #cancelRetry = null;

  /**
   * Acquire a token in the way that survives cuts. Resolves when all deltas since the grant
   * (or since `position`) have been applied; keeps trying over reconnects, and rejects when
   * the server refuses, on `close()`, on a final close and on `cancel`.
   */
  acquire(token, { processor = null, position = null } = {}) {
    const hold = { subscription: new Subscription(this, token, { position, processor }),
      isNew: true, ...deferred() };
    if (!this.server.isActive) {
      hold.reject(new SyncError("The connection is closed", { code: "closed" }));
    } else if (this.#held.has(token)) {
      hold.reject(new SyncError("This token is held already", { code: "already_acquired" }));
    } else {
      this.#held.set(token, hold);
      if (this.server.isOpen) this.#ask(hold);
    }
    return hold.promise;
  }

  /** For Subscription.cancel. */
  async cancel(subscription) {
    const { token } = subscription;
    const hold = this.#held.get(token);
    if (hold?.subscription !== subscription) return; // it is over
    this.#held.delete(token);
    subscription.state = "ended";
    if (hold.isNew) hold.reject(new SyncError("Cancelled", { code: "cancelled" }));
    if (!this.#active.has(hold)) return; // the server has it on no connection of ours
    await new Promise((resolve, reject) => {
      this.request("cancelSubscription", { token }, (error) => {
        this.#leave(hold);
        if (!error || GONE.has(error.code) || error.code === "no_such_subscription") resolve();
        else reject(error);
      });
    });
  }

  /** Snorky's way: once, no positions, gone with its connection. */
  acquireSubscription(token) {
    return this.call("acquireSubscription", { token });
  }

  cancelSubscription(token) {
    const hold = this.#held.get(token);
    return hold ? this.cancel(hold.subscription) : this.call("cancelSubscription", { token });
  }

  onNotification(message) {
    super.onNotification(message);
    const { type } = message;
    if (type === "delta") this.#deltaCame(message.delta);
    else if (type === "position") this.#positionCame(message.position);
    else if (type === "refetch" || type === "ended") this.#overCame(message);
    else if (type === "stale") this.#setStale(true);
    else if (type === "fresh") this.#freshCame();
  }

  connectionOpened() {
    this.#askForAll();
  }

  connectionClosed(error, final) {
    this.#gathered = []; // before the rest: the server sends it again
    this.#active.clear();
    this.#stopRetry();
    super.connectionClosed(error, final);
    for (const [token, { subscription, isNew, reject }] of this.#held) {
      if (!isNew) {
        subscription.state = "suspended";
      } else if (final) {
        this.#held.delete(token);
        subscription.state = "ended";
        reject(error);
      }
    }
    this.#setStale(false); // nobody says so any more
  }

  #askForAll() {
    this.#stopRetry();
    for (const hold of [...this.#held.values()]) {
      if (!this.#active.has(hold)) this.#ask(hold);
    }
  }

  #ask(hold) {
    const { subscription } = hold;
    subscription.state = "acquiring";
    this.#active.add(hold);
    const { token, position } = subscription;
    this.request("acquireSubscription", { token, position },
      (error, data) => this.#answered(hold, error, data), 0);
  }

  #answered(hold, error, data) {
    if (GONE.has(error?.code)) return; // asked again when there is a connection
    this.#apply();
    const { subscription } = hold;
    if (this.#held.get(subscription.token) !== hold) return; // cancelled, or over, meanwhile
    if (!this.#active.has(hold)) return; // a listener closed the connection
    if (!error && typeof data?.position !== "string") {
      error = malformed("An acquire was answered without a position");
    }
    if (error) this.#refused(hold, error);
    else this.#wentLive(hold, data.position);
  }

  #wentLive(hold, position) {
    const { subscription, isNew } = hold;
    this.#retries = 0;
    hold.isNew = false;
    subscription.state = "live";
    this.#moveTo(subscription, position);
    if (isNew) hold.resolve(subscription);
    else subscription.emit("resumed");
  }

  #refused(hold, error) {
    if (TEMPORARY.has(error.code)) return this.#retryLater(hold);
    if (!hold.isNew && error.code === "taken_over") return this.#over(hold, "ended", error);
    this.#over(hold, "refetch", error);
  }

  #retryLater(hold) {
    if (!hold.isNew) hold.subscription.state = "suspended";
    this.#leave(hold);
    this.#cancelRetry ??= this.server.after(this.server.backoff(this.#retries++), () => {
      this.#askForAll();
    });
  }

  #stopRetry() {
    this.#cancelRetry?.();
    this.#cancelRetry = null;
  }

  #overCame({ type, token, reason }) {
    const hold = this.#held.get(token);
    if (!hold) return;
    const code = type === "ended" ? "taken_over" : "refetch";
    this.#over(hold, type, new SyncError("The subscription is over", { code, reason }));
  }

  /**
   * The deltas that came before are applied before: the rows read again must not be
   * overwritten by older ones, and others on the connection may be owed them.
   */
  #over(hold, name, error) {
    const { subscription, isNew, reject } = hold;
    this.#apply();
    if (this.#held.get(subscription.token) !== hold) return; // cancelled by a listener
    this.#held.delete(subscription.token);
    this.#active.delete(hold);
    const reason = error.reason ?? error.code;
    subscription.finish(name, { reason });
    if (isNew) reject(error);
    else this.emit(name, { subscription, reason });
  }

  /** Off the connection; no position will come when nothing is left on it. */
  #leave(hold) {
    this.#active.delete(hold);
    if (this.#active.size === 0) this.#apply();
  }

  #deltaCame(delta) {
    if (!isObject(delta)) return this.server.complain(malformed("A delta is no object"));
    this.#gathered.push(delta);
    if (this.#active.size === 0) this.#apply();
  }

  #positionCame(position) {
    if (typeof position !== "string") return this.server.complain(malformed("No position"));
    const covered = this.#covered();
    this.#apply();
    for (const subscription of covered) {
      if (subscription.state !== "ended") this.#moveTo(subscription, position);
    }
  }

  /** Those that a position is about: what is live, or a replay before anything else is. */
  #covered() {
    const [first] = this.#active;
    if (first?.subscription.state === "acquiring") return [first.subscription];
    return [...this.#held.values()].map((hold) => hold.subscription)
      .filter((subscription) => subscription.state === "live");
  }

  #moveTo(subscription, position) {
    subscription.position = position;
    subscription.emit("position", position);
  }

  #apply() {
    if (this.#gathered.length === 0) return;
    const deltas = this.#gathered;
    this.#gathered = [];
    const subscriptions = [...this.#held.values()].map((hold) => hold.subscription);
    const processors = new Set([this, ...subscriptions].map((holder) => holder.processor));
    for (const delta of deltas) {
      for (const processor of processors) shielded(() => processor?.processDelta(delta));
      for (const emitter of [this, ...subscriptions]) emitter.emit("delta", delta);
    }
  }

  #setStale(isStale) {
    if (isStale === this.isStale) return;
    this.isStale = isStale;
    this.emit(isStale ? "stale" : "fresh");
  }

  #freshCame() {
    this.#setStale(false);
    if (this.server.isOpen) this.#askForAll(); // those that were told `unavailable`
  }
}

// ---------------------------------------------------------------------------- collections

/**
 * Rows by key. `insert`, `update` and `delete` are one law, whatever order deltas come in:
 *
 *   a row that comes is put in the place of the one with its key, or at the end;
 *   a version lower than what is known of the key is ignored (without versions: as it comes);
 *   a deletion is remembered with its version, so that an older row does not come back.
 *
 * Versions come with deltas or out of the rows (option `version`); a snapshot needs the latter.
 * `change` comes once after all that happened in one turn.
 */
export class Collection extends Emitter {
  #keyOf;
  #versionOf;
  #versions;
  #isChanged = false;

  constructor({ key = "id", version, transformItem = (row) => row, ...memory } = {}) {
    super();
    this.#keyOf = reader(key);
    this.#versionOf = version === undefined ? () => undefined : reader(version);
    this.#versions = new Versions(memory);
    this.transformItem = transformItem;
  }

  /** The key of a row. */
  keyOf(row) {
    const key = isObject(row) ? this.#keyOf(row) : undefined;
    if (key === undefined || key === null) throw new TypeError("A row without key");
    return typeof key === "object" ? stableStringify(key) : key;
  }

  /** Apply one delta; false where it was older than what is known. */
  applyDelta({ type, data, newData, oldData, version }) {
    if (type === "insert") return this.insert(data, version);
    if (type === "update") return this.update(newData, oldData, version);
    if (type === "delete") return this.delete(data, version);
    return false;
  }

  insert(row, version) {
    return this.replaceKey(this.keyOf(row), row, version);
  }

  /** `oldRow` matters where it has another key than `row`. */
  update(row, oldRow, version) {
    const oldKey = isObject(oldRow) ? this.#keyOf(oldRow) : undefined;
    return this.replaceKey(this.keyOf((oldKey ?? null) === null ? row : oldRow), row, version);
  }

  delete(row, version) {
    // The deletion itself is newer than the row it shows, and older than the row's next version.
    return this.removeKey(this.keyOf(row), numberOr(version, this.#rowVersion(row) + 0.5));
  }

  /** Put `row` where the row of key `oldKey` is; its own key may be another. */
  replaceKey(oldKey, row, version) {
    const key = this.keyOf(row);
    const known = numberOr(version, this.#rowVersion(row));
    const isLate = this.#versions.isOld(key, known);
    if (key === oldKey || !this.hasKey(oldKey) || this.#versions.isOld(oldKey, known)) {
      if (key !== oldKey) this.removeKey(oldKey, known);
      if (isLate) return false;
      this.putKey(key, row);
    } else if (isLate || this.hasKey(key)) {
      this.removeKey(oldKey, known);
      if (!isLate) this.putKey(key, row);
    } else {
      this.moveKey(oldKey, key, row);
      this.#versions.bury(oldKey, known);
    }
    if (!isLate) this.#versions.note(key, known);
    this.#changed();
    return true;
  }

  /** Remove the row of a key and remember that; false where the deletion was older. */
  removeKey(key, version) {
    if (this.#versions.isOld(key, version)) return false;
    if (this.hasKey(key)) this.dropKey(key);
    this.#versions.bury(key, version);
    this.#changed();
    return true;
  }

  /** Replace all by rows that were read anew; what was known of versions is forgotten. */
  reset(rows) {
    const fresh = [...rows].map((row) => [this.keyOf(row), row]);
    this.#versions.clear();
    this.dropAll();
    for (const [key, row] of fresh) {
      this.putKey(key, row);
      this.#versions.note(key, this.#rowVersion(row));
    }
    this.#changed();
  }

  /** For subclasses: a row was displaced without being deleted. */
  forgetKey(key) {
    this.#versions.bury(key);
  }

  #rowVersion(row) {
    return numberOr(this.#versionOf(row), undefined);
  }

  #changed() {
    if (this.#isChanged) return;
    this.#isChanged = true;
    queueMicrotask(() => {
      this.#isChanged = false;
      this.emit("change");
    });
  }
}

/** What is known of versions: of the rows that are there, and for a while of those that went. */
class Versions {
  #live = new Map();
  #buried = new Map(); // key -> {version, at}, oldest first
  #options;

  constructor({ tombstoneSeconds = 600, maxTombstones = 10_000, now = () => performance.now() }) {
    this.#options = { lifetime: tombstoneSeconds * 1000, maxTombstones, now };
  }

  isOld(key, version) {
    return version < this.#known(key); // false where either is undefined
  }

  /** The row is there, in this version. */
  note(key, version = this.#known(key)) {
    this.#buried.delete(key);
    if (version !== undefined) this.#live.set(key, version);
  }

  /** The row went; without a version of its own that was after all that is known of it. */
  bury(key, version = this.#afterKnown(key)) {
    this.#live.delete(key);
    this.#buried.delete(key); // so that it is set anew, as the youngest
    if (version !== undefined) this.#buried.set(key, { version, at: this.#options.now() });
    this.#evict();
  }

  clear() {
    this.#live.clear();
    this.#buried.clear();
  }

  #known(key) {
    const live = this.#live.get(key);
    if (live !== undefined) return live;
    const tombstone = this.#buried.get(key);
    return tombstone && !this.#isExpired(tombstone) ? tombstone.version : undefined;
  }

  #afterKnown(key) {
    const live = this.#live.get(key);
    return live === undefined ? this.#known(key) : live + 0.5;
  }

  #isExpired({ at }) {
    return this.#options.now() - at > this.#options.lifetime;
  }

  #evict() {
    for (const [key, tombstone] of this.#buried) {
      const isFull = this.#buried.size > this.#options.maxTombstones;
      if (!isFull && !this.#isExpired(tombstone)) return;
      this.#buried.delete(key);
    }
  }
}

/** Rows in an array, which belongs to the collection from now on: read it, do not write it. */
export class ArrayCollection extends Collection {
  #places = new Map(); // key -> {key, index}
  #order = []; // the same places, by index

  constructor(array = [], options = {}) {
    super(options);
    this.array = array;
    if (array.length > 0) this.reset(array);
  }

  get size() {
    return this.array.length;
  }

  /** The item of a key. */
  get(key) {
    return this.array[this.#places.get(key)?.index];
  }

  has(key) {
    return this.#places.has(key);
  }

  [Symbol.iterator]() {
    return this.array[Symbol.iterator]();
  }

  getIterator() {
    return new ArrayIterator(this);
  }

  /** The key of the item at an index. */
  keyAt(index) {
    return this.#order[index].key;
  }

  hasKey(key) {
    return this.#places.has(key);
  }

  putKey(key, row) {
    const item = this.transformItem(row);
    const index = this.#places.get(key)?.index ?? this.array.length;
    if (index === this.array.length) {
      const place = { key, index };
      this.#places.set(key, place);
      this.#order.push(place);
    }
    this.array[index] = item;
  }

  moveKey(oldKey, key, row) {
    const item = this.transformItem(row);
    const place = this.#places.get(oldKey);
    this.#places.delete(oldKey);
    this.#places.set(key, place);
    place.key = key;
    this.array[place.index] = item;
  }

  dropKey(key) {
    const { index } = this.#places.get(key);
    this.#places.delete(key);
    this.array.splice(index, 1);
    this.#order.splice(index, 1);
    for (let i = index; i < this.#order.length; i += 1) this.#order[i].index = i;
  }

  dropAll() {
    this.#places.clear();
    this.#order.length = 0;
    this.array.length = 0;
  }
}

/** Walks over an ArrayCollection; do not change it otherwise meanwhile. */
export class ArrayIterator {
  #collection;
  #index = -1;
  #isRemoved = false;

  constructor(collection) {
    this.#collection = collection;
  }

  hasNext() {
    return this.#index + 1 < this.#collection.size;
  }

  next() {
    if (!this.hasNext()) throw new Error("Busted iterator");
    this.#index += 1;
    this.#isRemoved = false;
    return this.#collection.array[this.#index];
  }

  remove(version) {
    const isDone = this.#collection.removeKey(this.#currentKey(), version);
    if (!isDone) return;
    this.#index -= 1;
    this.#isRemoved = true;
  }

  update(row, version) {
    this.#collection.replaceKey(this.#currentKey(), row, version);
  }

  #currentKey() {
    checkPointed(this.#isRemoved, this.#index >= 0);
    return this.#collection.keyAt(this.#index);
  }
}

/**
 * One row, kept by the page: `read()` gives it or null, `update(item)` sets it, `remove()`
 * takes it away. The row that comes last is the one. Takes the three functions, or one object
 * with them and the options of Collection.
 */
export class SingleItemCollection extends Collection {
  #access;
  #held = { item: null, key: undefined };

  constructor(read, update, remove, options = {}) {
    const access = typeof read === "function" ? { read, update, remove } : read;
    super(typeof read === "function" ? options : read);
    this.#access = access;
  }

  read() {
    return this.#access.read() ?? null;
  }

  getIterator() {
    return new SingleItemIterator(this);
  }

  /** The key of the item that is there. */
  currentKey() {
    const item = this.read();
    if (item === null) return undefined;
    if (item === this.#held.item) return this.#held.key;
    try {
      return this.keyOf(item);
    } catch {
      return undefined; // set by the page, or transformed: no row of ours
    }
  }

  hasKey(key) {
    return this.currentKey() === key;
  }

  putKey(key, row) {
    const displaced = this.currentKey();
    this.moveKey(displaced, key, row);
    if (displaced !== undefined && displaced !== key) this.forgetKey(displaced);
  }

  moveKey(_oldKey, key, row) {
    const item = this.transformItem(row);
    this.#held = { item, key };
    this.#access.update(item);
  }

  dropKey() {
    this.#access.remove();
  }

  dropAll() {
    if (this.read() !== null) this.#access.remove();
  }
}

/** The same interface over one item. */
export class SingleItemIterator {
  #collection;
  #isPointed = false;
  #isRemoved = false;

  constructor(collection) {
    this.#collection = collection;
  }

  hasNext() {
    return !this.#isPointed && this.#collection.read() !== null;
  }

  next() {
    if (!this.hasNext()) throw new Error("Busted iterator");
    this.#isPointed = true;
    return this.#collection.read();
  }

  remove(version) {
    this.#isRemoved = this.#collection.removeKey(this.#currentKey(), version);
  }

  update(row, version) {
    this.#collection.replaceKey(this.#currentKey(), row, version);
  }

  #currentKey() {
    checkPointed(this.#isRemoved, this.#isPointed);
    return this.#collection.currentKey();
  }
}

const DELTA_TYPES = new Set(["insert", "update", "delete"]);

/**
 * Takes deltas to collections: `{Model: collection}` or `{Model: {tag: collection}}`, with ""
 * for deltas without tag. With `itemsAreEqual(item, row)`, and for collections of your own
 * (`insert`, `getIterator`), items are looked for one by one, by default by their `id`.
 */
export class CollectionDeltaProcessor {
  #itemsAreEqual;

  constructor(collections, { itemsAreEqual = null } = {}) {
    this.collections = collections;
    this.#itemsAreEqual = itemsAreEqual;
  }

  /** Apply a delta; false where it belongs to no collection, or was too old for its own. */
  processDelta(delta) {
    const collection = this.#find(delta);
    if (!collection || !DELTA_TYPES.has(delta.type)) return false;
    const isKeyed = typeof collection.applyDelta === "function";
    return isKeyed && !this.#itemsAreEqual ? collection.applyDelta(delta)
      : this.#scan(collection, delta);
  }

  #find({ model, tag = "" }) {
    const found = entryOf(this.collections, model);
    return typeof found?.insert === "function" ? found : entryOf(found, tag);
  }

  #scan(collection, { type, data, newData = data, oldData = data, version }) {
    const areEqual = this.#itemsAreEqual ?? ((item, row) => item.id === row.id);
    const iterator = collection.getIterator();
    while (iterator.hasNext()) {
      if (!areEqual(iterator.next(), oldData)) continue;
      if (type === "delete") iterator.remove(version);
      else iterator.update(newData, version);
      return true;
    }
    if (type === "delete") collection.delete?.(oldData, version);
    else collection.insert(newData, version);
    return true;
  }
}

// ---------------------------------------------------------------------------- small change

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Keys such as __proto__ are data: only own entries count. */
function entryOf(container, name) {
  if (container instanceof Map) return container.get(name);
  return isObject(container) && Object.hasOwn(container, name) ? container[name] : undefined;
}

function reader(nameOrFunction) {
  return typeof nameOrFunction === "function" ? nameOrFunction
    : (row) => entryOf(row, nameOrFunction);
}

function numberOr(value, otherwise) {
  if (typeof value === "number" && !Number.isNaN(value)) return value;
  return Number.isNaN(otherwise) ? undefined : otherwise;
}

function checkPointed(isRemoved, isPointed) {
  if (isRemoved) throw new Error("Iterator pointing to a deleted item! (call next())");
  if (!isPointed) throw new Error("Iterator not pointing to an item! (call next())");
}

function malformed(message) {
  return new SyncError(message, { code: "malformed" });
}

function errorFrom({ message, code, reason, index, field }) {
  return new SyncError(String(message), { code, reason, index, field });
}

function deferred() {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  return parts;
}

async function ignoring(codes, promise) {
  try {
    await promise;
  } catch (error) {
    if (!codes.has(error.code)) throw error;
  }
}

/** Foreign code runs in here: what it throws is shown and goes no further. */
function shielded(action) {
  try {
    return action();
  } catch (error) {
    if (typeof globalThis.reportError === "function") globalThis.reportError(error);
    else console.error(error);
  }
}
