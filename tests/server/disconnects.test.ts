import { expect, setDefaultTimeout, spyOn, test } from "bun:test";
import type { EngineMessage } from "../../src/async/worker-protocol.ts";
import { eventually } from "../support.ts";
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

  const aborted: string[][] = [];
  const record = (message: Partial<EngineMessage>) => {
    if (message.type === "abort") aborted.push([...message.ids!]);
  };
  const spies = [Worker.prototype, MessagePort.prototype].map((prototype) => {
    const post = prototype.postMessage;
    return spyOn(prototype, "postMessage").mockImplementation(function (this: never, ...args: never[]) {
      record(args[0]!);
      return post.apply(this, args as never);
    });
  });
  for (const socket of sockets) socket.terminate();
  await eventually(() => server.llm.numUnfinished === 0);
  for (const spy of spies) spy.mockRestore();
  expect(aborted.map(({ length }) => length)).toEqual(sockets.map(() => 1));
  expect(new Set(aborted.flat()).size).toBe(CLIENTS);
  await expectUnharmed(server, before);
});
