/** node node.js MODULES PLACE TRANSPORT: exercise sockjs-client, print the outcome. */
const { createRequire } = require("node:module");
const { exercise } = require("./exercise.js");

const [modules, place, transport] = process.argv.slice(2);
const SockJS = createRequire(`${modules}/`)("sockjs-client");

exercise(SockJS, place, transport).then(
  (word) => { console.log(word); process.exit(0); },
  (error) => { console.log(error.message); process.exit(1); },
);
