/** Types of syncserver.js. */

/** Anything that JSON.stringify turns into the JSON that is meant. */
export type JsonLike = unknown;
export type Off = () => void;

/** Named events: `Events` maps each name to what its listeners are given. */
export class Emitter<Events extends object = Record<string, unknown>> {
  on<Name extends keyof Events>(name: Name, listener: (event: Events[Name]) => void): Off;
  emit<Name extends keyof Events>(
    name: Name, ...event: Events[Name] extends void ? [] : [Events[Name]]
  ): void;
}

export class SyncError extends Error {
  constructor(
    message: string,
    details?: { code?: string; reason?: string; index?: number; field?: string },
  );
  /**
   * The server's (docs/reference/codes), or one made here: `disconnected`, `closed`, `timeout`,
   * `queue_full`, `cancelled`, `not_subscribed`, `already_acquired`, `malformed`,
   * `too_large`, `unknown_service`.
   */
  readonly code: string;
  readonly reason: string | undefined;
  readonly index: number | undefined;
  readonly field: string | undefined;
}

export function stableStringify(value: JsonLike): string;

// ---------------------------------------------------------------------------- connection

/** What is needed of a WebSocket; SockJS has it too. */
export interface SocketLike {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  send(text: string): void;
  close(): void;
}

export type ServiceClass<S extends Service = Service> =
  new (name: string, server: SyncServer<any>) => S;
export type ServiceClasses = Record<string, ServiceClass>;
export type Services<C extends ServiceClasses> = {
  readonly [Name in keyof C]: InstanceType<C[Name]>;
};

export interface SyncServerOptions<C extends ServiceClasses = ServiceClasses> {
  services?: C;
  /** Default: the global one. */
  WebSocket?: new (url: string) => SocketLike;
  /** Give the class the URL as it is. SockJS wants that; else it is made absolute and ws(s). */
  keepUrl?: boolean;
  /** Default 250 ms. */
  minBackoff?: number;
  /** Default 30,000 ms. */
  maxBackoff?: number;
  /** Default 30,000 ms; 0 for none. */
  callTimeout?: number;
  /** The longest message that is sent, the server's `limits.max_message_bytes`; default 65,536. */
  maxMessageBytes?: number;
  /** How many messages may wait for the connection; default 100. */
  maxQueue?: number;
  random?: () => number;
  /** A clock in milliseconds. */
  now?: () => number;
  setTimeout?: (action: () => void, delay: number) => any;
  clearTimeout?: (timer: any) => void;
  /** true for console.debug; shows names and types, never payloads. */
  debug?: boolean | ((line: string) => void);
}

export interface SyncServerEvents {
  open: void;
  close: { code: number; reason: string; willReconnect: boolean };
  /** An attempt number `attempt` (from 1) follows in `delay` milliseconds. */
  reconnecting: { attempt: number; delay: number };
  /** Something came that fits nothing; harmless. */
  error: Error;
}

export interface Parcel {
  readonly sent: boolean;
}

export class SyncServer<C extends ServiceClasses = ServiceClasses>
  extends Emitter<SyncServerEvents> {
  constructor(url: string | URL, options?: SyncServerOptions<C>);
  readonly url: string;
  readonly services: Services<C>;
  readonly isOpen: boolean;
  readonly isActive: boolean;
  callTimeout: number;
  connect(): void;
  close(): void;
  /** The rest is for services. */
  transmit(service: string, message: JsonLike): Parcel;
  recall(parcel: Parcel): void;
  after(delay: number, action: () => void): Off;
  backoff(attempt: number): number;
  complain(error: Error): void;
}

// ---------------------------------------------------------------------------- services

export interface ServiceEvents {
  message: any;
}

export class Service<Events extends object = ServiceEvents> extends Emitter<Events> {
  constructor(name: string, server: SyncServer<any>);
  readonly name: string;
  readonly server: SyncServer<any>;
  send(message: JsonLike): void;
  onMessage(message: any): void;
  connectionOpened(): void;
  connectionClosed(error: SyncError, final: boolean): void;
}

export interface Notification {
  type: string;
  [field: string]: any;
}

export interface RPCEvents {
  notification: Notification;
}

export type RPCMethods<Names extends string> = {
  [Name in Names]: (params?: Record<string, JsonLike>) => Promise<any>;
};

export class RPCService<Events extends object = RPCEvents> extends Service<Events> {
  /** Adds to this very class and returns it, with the methods in its type. */
  static addRPCMethods<Names extends string, Class extends new (...args: any[]) => any>(
    this: Class, names: readonly Names[],
  ): Class &
    (new (name: string, server: SyncServer<any>) => InstanceType<Class> & RPCMethods<Names>);
  call<Answer = any>(command: string, params?: Record<string, JsonLike>): Promise<Answer>;
  request(
    command: string,
    params: Record<string, JsonLike>,
    answered: (error: Error | null, data: any) => void,
    timeout?: number,
  ): void;
  onNotification(notification: Notification): void;
}

export interface PubSubEvents extends RPCEvents {
  message: { channel: any; message: any };
  unsubscribed: { channel: any; error: Error };
}

export type ChannelListener = (message: any, channel: any) => void;

export class PubSub extends RPCService<PubSubEvents> {
  subscribe(channel: JsonLike, listener?: ChannelListener): Promise<void>;
  unsubscribe(channel: JsonLike, listener?: ChannelListener): Promise<void>;
  publish(channel: JsonLike, message: JsonLike): Promise<any>;
}

// ---------------------------------------------------------------------------- datasync

export interface Insertion<Row = any> {
  type: "insert";
  model: string;
  data: Row;
  tag?: string;
  version?: number;
}

export interface Update<Row = any> {
  type: "update";
  model: string;
  newData: Row;
  oldData: Row;
  tag?: string;
  version?: number;
}

export interface Deletion<Row = any> {
  type: "delete";
  model: string;
  data: Row;
  tag?: string;
  version?: number;
}

export type Delta<Row = any> = Insertion<Row> | Update<Row> | Deletion<Row>;

export interface DeltaProcessor {
  processDelta(delta: Delta): unknown;
}

export type SubscriptionState = "acquiring" | "live" | "suspended" | "ended";

export interface SubscriptionEvents {
  delta: Delta;
  refetch: { reason: string };
  ended: { reason: string };
  resumed: void;
  position: string;
}

export class Subscription extends Emitter<SubscriptionEvents> {
  private constructor();
  readonly token: string;
  readonly position: string | null;
  readonly state: SubscriptionState;
  processor: DeltaProcessor | null;
  cancel(): Promise<void>;
}

export interface DataSyncEvents extends RPCEvents {
  delta: Delta;
  refetch: { subscription: Subscription; reason: string };
  ended: { subscription: Subscription; reason: string };
  stale: void;
  fresh: void;
}

export class DataSync extends RPCService<DataSyncEvents> {
  processor: DeltaProcessor | null;
  readonly isStale: boolean;
  acquire(
    token: string,
    options?: { processor?: DeltaProcessor | null; position?: string | null },
  ): Promise<Subscription>;
  cancel(subscription: Subscription): Promise<void>;
  acquireSubscription(token: string): Promise<null>;
  cancelSubscription(token: string): Promise<void>;
}

// ---------------------------------------------------------------------------- collections

export type Key = string | number | boolean;

export interface CollectionOptions<Row = any, Item = Row> {
  /** Name of the field, or a function of the row; default "id". */
  key?: string | ((row: Row) => JsonLike);
  /** Name of the field that holds a row's version, or a function of the row. */
  version?: string | ((row: Row) => number | null | undefined);
  /** What is kept for a row. */
  transformItem?: (row: Row) => Item;
  /** How long a deletion is remembered; default 600. */
  tombstoneSeconds?: number;
  /** How many are; default 10,000. */
  maxTombstones?: number;
  /** A clock in milliseconds. */
  now?: () => number;
}

export interface ItemIterator<Row = any, Item = Row> {
  hasNext(): boolean;
  next(): Item;
  remove(version?: number): void;
  update(row: Row, version?: number): void;
}

/** What a CollectionDeltaProcessor needs of a collection of your own. */
export interface CollectionLike<Row = any, Item = Row> {
  insert(row: Row, version?: number): unknown;
  getIterator(): ItemIterator<Row, Item>;
}

export interface CollectionEvents {
  /** Once after all that happened in one turn. */
  change: void;
}

export abstract class Collection<Row = any, Item = Row> extends Emitter<CollectionEvents>
  implements CollectionLike<Row, Item> {
  constructor(options?: CollectionOptions<Row, Item>);
  keyOf(row: Row): Key;
  applyDelta(delta: Omit<Delta<Row>, "model">): boolean;
  insert(row: Row, version?: number): boolean;
  update(row: Row, oldRow?: Partial<Row> | null, version?: number): boolean;
  delete(row: Row, version?: number): boolean;
  replaceKey(oldKey: Key, row: Row, version?: number): boolean;
  removeKey(key: Key, version?: number): boolean;
  reset(rows: Iterable<Row>): void;
  abstract getIterator(): ItemIterator<Row, Item>;
}

export class ArrayCollection<Row = any, Item = Row> extends Collection<Row, Item> {
  constructor(array?: Item[], options?: CollectionOptions<Row, Item>);
  readonly array: readonly Item[];
  readonly size: number;
  get(key: Key): Item | undefined;
  has(key: Key): boolean;
  [Symbol.iterator](): IterableIterator<Item>;
  getIterator(): ArrayIterator<Row, Item>;
}

export class ArrayIterator<Row = any, Item = Row> implements ItemIterator<Row, Item> {
  constructor(collection: ArrayCollection<Row, Item>);
  hasNext(): boolean;
  next(): Item;
  remove(version?: number): void;
  update(row: Row, version?: number): void;
}

export interface ItemAccess<Item = any> {
  read: () => Item | null | undefined;
  update: (item: Item) => void;
  remove: () => void;
}

export class SingleItemCollection<Row = any, Item = Row> extends Collection<Row, Item> {
  constructor(options: ItemAccess<Item> & CollectionOptions<Row, Item>);
  constructor(
    read: ItemAccess<Item>["read"],
    update: ItemAccess<Item>["update"],
    remove: ItemAccess<Item>["remove"],
    options?: CollectionOptions<Row, Item>,
  );
  read(): Item | null;
  getIterator(): SingleItemIterator<Row, Item>;
}

export class SingleItemIterator<Row = any, Item = Row> implements ItemIterator<Row, Item> {
  constructor(collection: SingleItemCollection<Row, Item>);
  hasNext(): boolean;
  next(): Item;
  remove(version?: number): void;
  update(row: Row, version?: number): void;
}

export type ByTag = { [tag: string]: CollectionLike } | ReadonlyMap<string, CollectionLike>;
export type ByModel =
  | { [model: string]: CollectionLike | ByTag }
  | ReadonlyMap<string, CollectionLike | ByTag>;

export class CollectionDeltaProcessor implements DeltaProcessor {
  constructor(
    collections: ByModel,
    options?: { itemsAreEqual?: ((item: any, row: any) => boolean) | null },
  );
  collections: ByModel;
  processDelta(delta: Delta): boolean;
}
