/**
 * Two live lists of one table, and a log of what the connection does.
 *
 * The rows come once, with a token, over HTTP from the web app; after that only deltas come,
 * over the connection to syncserver. What the user does goes to the web app alone: it shows
 * when its delta arrives, here as in every other window.
 */

const LEAVE_MS = 600; // as long as page.css takes to fold a row
const MAX_EVENTS = 200;
const RETRY_MS = 2000;

const $ = (selector) => document.querySelector(selector);
const VIEWS = ["all", "open"];

// ---------------------------------------------------------------------------- what is shown

function log(kind, text) {
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString("en-GB");
  const line = document.createElement("span");
  line.textContent = text;
  const entry = document.createElement("div");
  entry.className = kind;
  entry.append(time, line);
  const events = $("#events");
  events.append(entry);
  while (events.childElementCount > MAX_EVENTS) events.firstElementChild.remove();
  events.scrollTop = events.scrollHeight;
}

function show(state, text) {
  $("#status").dataset.state = state;
  $("#status").textContent = text;
  $("#cut").disabled = !["live", "waiting"].includes(state);
  $("#cut").textContent = state === "waiting" ? "Reconnect now" : "Cut the connection";
}

/** Keeps the elements of one list equal to the rows of a collection, in the order of ids. */
class List {
  #items = new Map(); // id -> element
  #element;
  #count;
  #isFilled = false;

  constructor(name) {
    this.#element = $(`#${name}`);
    this.#count = $(`#${name}-count`);
  }

  /** `isDone(id)` says how a row that leaves looks on its way out. */
  render(rows, isDone) {
    const sorted = [...rows].sort((a, b) => a.id - b.id);
    const ids = new Set(sorted.map((row) => row.id));
    for (const [id, item] of this.#items) {
      if (!ids.has(id)) this.#leave(id, item, isDone(id));
    }
    let previous = null;
    for (const row of sorted) previous = this.#put(row, previous);
    this.#count.textContent = sorted.length;
    this.#isFilled = true;
  }

  #put(row, previous) {
    let item = this.#items.get(row.id);
    if (!item) {
      item = newItem(row.id);
      if (this.#isFilled) item.classList.add("coming");
      this.#items.set(row.id, item);
      if (previous) previous.after(item);
      else this.#element.prepend(item);
    }
    fill(item, row);
    return item;
  }

  #leave(id, item, isDone) {
    this.#items.delete(id);
    item.classList.toggle("done", isDone);
    item.querySelector("input[type=checkbox]").checked = isDone;
    item.classList.add("leaving");
    item.inert = true;
    setTimeout(() => item.remove(), LEAVE_MS);
  }
}

function newItem(id) {
  const item = $("#task").content.cloneNode(true).firstElementChild;
  item.dataset.id = id;
  const box = item.querySelector("input");
  box.addEventListener("change", async () => {
    if (!await save("PATCH", `/tasks/${id}`, { done: box.checked })) box.checked = !box.checked;
  });
  const title = item.querySelector(".title");
  title.addEventListener("dblclick", () => rename(item, id));
  title.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // it would go on into the field
    rename(item, id);
  });
  item.querySelector(".delete").addEventListener("click", () => save("DELETE", `/tasks/${id}`));
  return item;
}

function fill(item, { title, done }) {
  item.classList.toggle("done", done);
  item.querySelector("input[type=checkbox]").checked = done;
  item.querySelector("input[type=checkbox]").ariaLabel = `Done: ${title}`;
  item.querySelector(".title").textContent = title;
  item.querySelector(".delete").ariaLabel = `Delete: ${title}`;
}

/** Edit a title in place: Enter or leaving the field saves, Escape does not. */
function rename(item, id) {
  const title = item.querySelector(".title");
  if (title.hidden) return;
  const input = document.createElement("input");
  input.className = "rename";
  input.ariaLabel = "New title";
  input.maxLength = 200;
  input.value = title.textContent;
  title.hidden = true;
  title.after(input);
  input.select();
  const close = (isSaved) => {
    if (!title.hidden) return; // `blur` follows when the input goes
    title.hidden = false;
    input.remove();
    const text = input.value.trim();
    if (isSaved && text && text !== title.textContent) save("PATCH", `/tasks/${id}`, { title: text });
  };
  input.addEventListener("blur", () => close(true));
  input.addEventListener("keydown", ({ key }) => {
    if (key !== "Enter" && key !== "Escape") return;
    close(key === "Enter");
    title.focus();
  });
}

// ---------------------------------------------------------------------------- the web app

/** Have the web app change the database; false, and a line for the user, where it did not. */
async function save(method, url, body) {
  const init = { method };
  if (body) Object.assign(init, { headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body) });
  const problem = await fetch(url, init).then(complaint, () => "The web app does not answer.");
  $("#problem").textContent = problem;
  $("#problem").hidden = !problem;
  return !problem;
}

async function complaint(response) {
  if (response.ok) return "";
  const { error } = await response.json().catch(() => ({}));
  return `Not saved: ${error ?? response.status}`;
}

/** The rows of both views, and the token that keeps them live (null: no daemon just now). */
async function fetchRows() {
  const query = VIEWS.map((view) => `view=${view}`).join("&");
  const response = await fetch(`/tasks?${query}`, { headers: { "X-Snorky": "Subscribe" } });
  if (!response.ok) throw new Error(`GET /tasks answered ${response.status}`);
  return { rows: await response.json(), token: response.headers.get("X-Subscription-Token") };
}

// ---------------------------------------------------------------------------- the connection

async function main() {
  const { content: url, dataset } = $("meta[name=syncserver]");
  const { SyncServer, DataSync, ArrayCollection, CollectionDeltaProcessor } =
    await import(dataset.library);

  /** A WebSocket that the page can drop, as a bad network would. */
  class Line extends WebSocket {
    static current = null;

    constructor(address) {
      super(address);
      Line.current = this;
    }
  }

  // For the eye, the first wait is two to three seconds; the library's own default is 250 ms.
  const server = new SyncServer(url, { services: { datasync: DataSync }, WebSocket: Line,
    minBackoff: 3000, maxBackoff: 12_000, random: () => (2 + Math.random()) / 3 });
  const { datasync } = server.services;

  const collections = {};
  const lists = {};
  for (const view of VIEWS) {
    collections[view] = new ArrayCollection([], { version: "version" });
    lists[view] = new List(view);
    collections[view].on("change", () => lists[view].render(collections[view], isDone));
  }
  const isDone = (id) => collections.all.get(id)?.done ?? false;
  datasync.processor = new CollectionDeltaProcessor({ Task: collections });

  /** Rows and token, the rows into the collections, and only then the deltas since the token. */
  async function load() {
    try {
      const { rows, token } = await fetchRows();
      for (const view of VIEWS) collections[view].reset(rows[view]);
      log("rows", `rows fetched: ${rows.all.length} tasks, ${rows.open.length} of them open`);
      if (token === null) throw new Error("the web app got no token: is the daemon running?");
      const subscription = await datasync.acquire(token);
      watch(subscription);
      log("live", `live from position ${subscription.position}`);
      show("live", "Live");
    } catch (error) {
      if (!server.isActive) return; // the daemon wants no more of us, and the status says so
      log("problem", `${error.message}; asking again in ${RETRY_MS} ms`);
      setTimeout(load, RETRY_MS);
    }
  }

  function watch(subscription) {
    const again = (what) => {
      log("refetch", `${what}: fetching the rows anew`);
      show("connecting", "Fetching");
      load();
    };
    subscription.on("refetch", ({ reason }) => again(`no resume (${reason})`));
    subscription.on("ended", ({ reason }) => again(`ended (${reason})`));
    subscription.on("resumed", () => {
      const deltas = replayed === 1 ? "1 delta" : `${replayed} deltas`;
      log("resumed", `resumed at position ${subscription.position}: ${deltas} replayed, no rows fetched`);
      show("live", "Live");
    });
  }

  let replayed = 0; // deltas since the connection went
  datasync.on("delta", ({ type, tag, data, newData, version }) => {
    replayed += 1;
    log("delta", `${type} in "${tag}": task ${(newData ?? data).id}, version ${version}`);
  });
  datasync.on("stale", () => show("connecting", "Live, log out of reach"));
  datasync.on("fresh", () => show("live", "Live"));

  server.on("open", () => {
    log("open", "connected");
    show("connecting", "Connected");
  });
  server.on("close", ({ code, willReconnect }) => {
    replayed = 0;
    log("cut", `connection lost (${code})`);
    if (!willReconnect) show("ended", "Ended; reload the page");
  });
  server.on("reconnecting", ({ attempt, delay }) => {
    log("reconnecting", `reconnecting in ${Math.round(delay)} ms (attempt ${attempt})`);
    show("waiting", "Cut off");
  });

  $("#cut").addEventListener("click", () => {
    if (server.isOpen) {
      log("cut", "cut by you: the lists stand still, what you save still reaches the database");
      $("#cut").disabled = true;
      Line.current.close();
    } else {
      server.connect();
    }
  });

  await load();
}

$("#add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const title = $("#title");
  const text = title.value;
  title.value = "";
  if (text.trim() && !await save("POST", "/tasks", { title: text })) title.value ||= text;
});

main().catch((error) => {
  log("problem", `the browser library did not load: ${error.message}`);
  show("ended", "No daemon; reload when it runs");
});
