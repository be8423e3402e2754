import { expect, setDefaultTimeout, test } from "bun:test";
import { eventually } from "../support.ts";
import { AbortedRequests } from "./aborted-requests.ts";
import { canary, ENDLESS, expectUnharmed, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const CLIENTS = 1000;

/** A client that sends a request and reads what comes. */
function connect(port: number, onData: () => void) {
  const body = JSON.stringify({ ...ENDLESS, prompt: PROMPT, stream: true });
  const head = `POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: ${body.length}`;
  return Bun.connect({
    ...{ hostname: "127.0.0.1", port },
    socket: { open: (socket) => void socket.write(`${head}\r\n\r\n${body}`), data: onData },
  });
}

test("1,000 clients that leave are one message each to the engine, and nothing of theirs runs on", async () => {
  await using server = await TestServer.start({ maxQueueLength: CLIENTS }, { maxNumSeqs: 32 });
  const before = await canary(server);
  let replies = 0;
  const sockets = await Promise.all(
    Array.from({ length: CLIENTS }, () => connect(server.running.port, () => replies++)),
  );
  await eventually(() => server.llm.stats.running + server.llm.stats.waiting === CLIENTS);
  await eventually(() => replies > 0);

  using aborted = new AbortedRequests();
  for (const socket of sockets) socket.terminate();
  await eventually(() => server.llm.numUnfinished === 0);
  expect(aborted.ids.map(({ length }) => length)).toEqual(sockets.map(() => 1));
  expect(new Set(aborted.ids.flat()).size).toBe(CLIENTS);
  await expectUnharmed(server, before);
});
