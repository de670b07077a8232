/**
 * What a client of SockJS must be able to do over one transport, in Node and in a page.
 * Resolves with the names of what worked; rejects with what did not.
 */
const TEXTS = [
  "plain",
  "",
  "\u{1f9c0} \u2028\u2029 \u00e9\u4e16 \u200d \ufeff \u0000\n\r",
  "\ud83e alone, \udd80 too",
  '"],c[3000,"x"] </script>',
  "x".repeat(30000),
  ...Array.from({ length: 100 }, (_, number) => `number ${number}`),
];

function opened(SockJS, url, transport) {
  return new Promise((resolve, reject) => {
    const socket = new SockJS(url, null, { transports: [transport], timeout: 15000 });
    socket.onopen = () => resolve(socket);
    socket.onclose = ({ code, reason }) => reject(new Error(`no open: ${code} ${reason}`));
  });
}

function ended(socket) {
  return new Promise((resolve) => {
    socket.onclose = ({ code, reason }) => resolve({ code, reason });
  });
}

async function exercise(SockJS, place, transport) {
  const socket = await opened(SockJS, `${place}/echo`, transport);
  if (socket.transport !== transport) throw new Error(`it is ${socket.transport}`);
  const found = [];
  const all = new Promise((resolve, reject) => {
    socket.onmessage = ({ data }) => {
      found.push(data);
      if (found.length === TEXTS.length) resolve();
    };
    socket.onclose = ({ code, reason }) => reject(new Error(`closed: ${code} ${reason}`));
  });
  for (const text of TEXTS) socket.send(text);
  await all;
  const wrong = TEXTS.findIndex((text, index) => text !== found[index]);
  if (wrong >= 0) throw new Error(`text ${wrong} came as ${JSON.stringify(found[wrong])}`);
  const own = ended(socket);
  socket.close(1000, "enough");
  const { code } = await own;
  if (code !== 1000) throw new Error(`own close came as ${code}`);

  const other = await opened(SockJS, `${place}/farewell`, transport);
  const said = ended(other);
  other.send("go");
  const told = await said;
  if (told.code !== 4001 || told.reason !== '{"retry_after": 12}') {
    throw new Error(`the server's close came as ${JSON.stringify(told)}`);
  }
  return "ok";
}

if (typeof module !== "undefined") module.exports = { exercise };
