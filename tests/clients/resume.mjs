/**
 * node resume.mjs MODULES URL TRANSPORT TOKEN: keep a list in step over SockJS.
 * Prints a JSON line at each change of the list, and when something else happens to it.
 */
import { createRequire } from "node:module";

import {
  ArrayCollection, CollectionDeltaProcessor, DataSync, SyncServer,
} from "../../clients/javascript/syncserver.js";

const [modules, url, transport, token] = process.argv.slice(2);
const SockJS = createRequire(`${modules}/`)("sockjs-client");
const tell = (what) => console.log(JSON.stringify(what));

class Chosen extends SockJS {
  constructor(address) {
    super(address, null, { transports: [transport] });
  }
}

const tasks = new ArrayCollection();
tasks.on("change", () => tell({ ids: tasks.array.map(({ id }) => id) }));
const server = new SyncServer(url, {
  services: { datasync: DataSync },
  WebSocket: Chosen,
  keepUrl: true,
  minBackoff: 10,
});
const { datasync } = server.services;
datasync.on("refetch", () => tell("refetch"));
server.on("close", ({ code }) => tell({ code }));
await datasync.acquire(token, { processor: new CollectionDeltaProcessor({ Task: tasks }) });
tell("live");
