/** A chat room on one pubsub channel, over SockJS. */

const daemon = document.querySelector("meta[name=syncserver]").content;
const { PubSub, SyncServer } = await import(`${daemon}/syncserver.js`);

const CHANNEL = "chat";
const element = Object.fromEntries(
  ["status", "transport", "messages", "empty", "say", "name", "text", "problem"]
    .map((id) => [id, document.getElementById(id)]),
);

/** SockJS with the transports that were chosen; the library makes one for each connection. */
let current = null;
class ChosenSockJS extends SockJS {
  constructor(url) {
    const chosen = element.transport.value.split(",").filter(Boolean);
    super(url, null, chosen.length ? { transports: chosen } : {});
    current = this;
  }
}

function show(state, text) {
  element.status.dataset.state = state;
  element.status.textContent = text;
}

function add({ from, text }) {
  const name = document.createElement("b");
  name.textContent = String(from);
  const words = document.createElement("span");
  words.textContent = String(text);
  const item = document.createElement("li");
  item.append(name, words);
  item.classList.toggle("own", from === element.name.value);
  element.messages.append(item);
  item.scrollIntoView({ block: "nearest" });
  element.empty.hidden = true;
}

const server = new SyncServer(`${daemon}/ws/sockjs`, {
  services: { pubsub: PubSub },
  WebSocket: ChosenSockJS,
  keepUrl: true,
});
const { pubsub } = server.services;

server.on("open", () => show("live", `Connected over ${current.transport}`));
server.on("close", ({ code }) => show("waiting", `Not connected (${code})`));
server.on("reconnecting", ({ delay }) =>
  show("waiting", `Again in ${(delay / 1000).toFixed(1)} s`));

element.transport.addEventListener("change", () => {
  show("connecting", "Connecting");
  server.close();
  server.connect();
});

element.say.addEventListener("submit", async (event) => {
  event.preventDefault();
  const message = { from: element.name.value.trim(), text: element.text.value };
  try {
    await pubsub.publish(CHANNEL, message);
    element.text.value = "";
    element.problem.hidden = true;
  } catch (error) {
    element.problem.textContent = `Not sent: ${error.message}`;
    element.problem.hidden = false;
  }
});

await pubsub.subscribe(CHANNEL, add);
document.body.dataset.ready = "";
