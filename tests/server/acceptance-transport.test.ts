import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import type { CompletionDelta, GenerationStream } from "../../src/base/outputs.ts";
import { startServer } from "../../src/server/serve.ts";
import { cpuClock, eventually } from "../support.ts";
import { disturbed, replying } from "./disturbed-llm.ts";
import { canary, errorOf, expectUnharmed, GREEDY, PROMPT, raw, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const COMPLETIONS = "/v1/completions";
let server: TestServer;
let before: string;
beforeAll(async () => {
  server = await TestServer.start({ enableRequestIdHeaders: true });
  before = await canary(server);
});
afterEach(() => eventually(() => server.llm.numUnfinished === 0));
afterAll(async () => {
  await expectUnharmed(server, before);
  await server[Symbol.asyncDispose]();
});

const BODY = JSON.stringify({ prompt: PROMPT, ...GREEDY, max_tokens: 1 });
const head = (...headers: readonly string[]) =>
  [`POST ${COMPLETIONS} HTTP/1.1`, "Host: a", "Content-Type: application/json", ...headers, "", ""].join(
    "\r\n",
  );
const whole = (body: string) => head(`Content-Length: ${Buffer.byteLength(body)}`) + body;
const CHUNKED = "Transfer-Encoding: chunked";
const LENGTH = `Content-Length: ${BODY.length}`;

describe("bytes that are no request", () => {
  test.each([
    ["a length and chunks", head(LENGTH, CHUNKED) + BODY, 400],
    ["two lengths", head(LENGTH, "Content-Length: 5") + BODY, 400],
    ["a negative length", head("Content-Length: -1") + BODY, 400],
    ["a chunk whose size is no number", `${head(CHUNKED)}zz\r\n${BODY}\r\n0\r\n\r\n`, 400],
    ["a header of 20 KB", head(`X-Large: ${"a".repeat(20_000)}`, LENGTH) + BODY, 431],
    ["300 headers", head(...Array.from({ length: 300 }, (_, i) => `X-${i}: a`), LENGTH) + BODY, 431],
    ["a line break in a header", head("X-Request-Id: a\r\n b: c", LENGTH) + BODY, 400],
    ["no Host", "GET /v1/models HTTP/1.1\r\n\r\n", 400],
    ["no HTTP", "\x16\x03\x01 hello\r\n\r\n", 400],
  ])("%s", async (_, bytes, status) => {
    expect(await raw(server.running.port, bytes)).toStartWith(`HTTP/1.1 ${status} `);
  });
});

describe("documents that are no body", () => {
  const many = (item: string, count: number) => `[${`${item},`.repeat(count - 1)}${item}]`;
  test.each<readonly [string, string, number, string, string | null]>([
    ["100,000 lists, one in another", "[".repeat(1e5), 400, "invalid_json", null],
    ["ten million of them", "[".repeat(1e7), 413, "request_too_large", null],
    ["objects as deep as fit", '{"a":'.repeat(8e5), 400, "invalid_json", null],
    ["a million empty lists", `{"messages":${many("[]", 1e6)}}`, 400, "invalid_value", "messages"],
    ["500,000 fields", `{"prompt":"a",${'"b":1,'.repeat(5e5)}"c":1}`, 400, "invalid_json", null],
    ["a document and another", `${BODY}${BODY}`, 400, "invalid_json", null],
    ["a name in place of a value", '{"prompt":undefined}', 400, "invalid_json", null],
  ])("%s", async (_, body, status, code, param) => {
    const spent = cpuClock();
    const error = await errorOf(server.post(COMPLETIONS, body));
    expect(error).toMatchObject({ status, code, param, type: "invalid_request_error" });
    expect(spent()).toBeLessThan(0.3);
  });

  test.each([
    ["a lone continuation byte", [0x80]],
    ["an overlong slash", [0xc0, 0xaf]],
    ["half of a surrogate pair", [0xed, 0xa0, 0x80]],
    ["a code point past the last", [0xf4, 0x90, 0x80, 0x80]],
    ["a sequence that is cut off", [0xe2, 0x82]],
  ])("%s is not UTF-8, on any route", async (_, bytes) => {
    const body = Buffer.concat([Buffer.from('{"prompt":"'), Buffer.from(bytes), Buffer.from('"}')]);
    const headers = { "Content-Type": "application/json" };
    for (const path of [COMPLETIONS, "/v1/chat/completions", "/tokenize", "/detokenize"]) {
      const reply = server.fetch(path, { method: "POST", headers, body });
      expect(await errorOf(reply)).toMatchObject({ status: 400, code: "invalid_utf8", param: null });
    }
  });

  test("of a field that comes twice, the last counts", async () => {
    const reply = await server.post(
      COMPLETIONS,
      `{"prompt":"","prompt":"${PROMPT}","max_tokens":0,"max_tokens":2}`,
    );
    expect(await reply.json()).toMatchObject({ usage: { completion_tokens: 2 } });
  });

  test.each<readonly [string, object]>([
    ["an option's name", { stream: true, stream_options: { ["k".repeat(1e6)]: 1 } }],
    ["a token id", { logit_bias: { ["1".repeat(1e6)]: 1 } }],
    ["a model's name", { model: "m".repeat(1e6) }],
    ["a role", { messages: [{ role: "r".repeat(1e6), content: "Hi" }] }],
    ["a choice of tools", { messages: [{}], tools: [{}], tool_choice: "t".repeat(1e6) }],
  ])("%s of a megabyte does not come back", async (_, fields) => {
    const path = "messages" in fields ? "/v1/chat/completions" : COMPLETIONS;
    const text = await (
      await server.post(path, { ...(path === COMPLETIONS && { prompt: PROMPT }), ...fields })
    ).text();
    expect(text).toStartWith('{"error":');
    expect(text.length).toBeLessThan(1000);
  });
});

test("two requests of one id are two requests", async () => {
  const headers = { "X-Request-Id": "mine" };
  const body = { prompt: PROMPT, ...GREEDY, request_id: "mine" };
  const replies = await Promise.all([1, 2].map(() => server.post(COMPLETIONS, body, { headers })));
  for (const reply of replies) expect(await reply.json()).toMatchObject({ choices: [{ text: before }] });
  const entries = server.lines.slice(-2).map((line) => JSON.parse(line));
  expect(entries[0].requestId).not.toBe(entries[1].requestId);
});

test("a client that leaves in the middle of its body is no failure of the server", async () => {
  const socket = await Bun.connect({
    ...{ hostname: "127.0.0.1", port: server.running.port },
    socket: { data: () => {} },
  });
  socket.write(`${head("Content-Length: 100")}{"prompt":`);
  socket.end();
  await eventually(() => server.lines.at(-1)!.includes('"error":"client_closed_request"'));
  expect(JSON.parse(server.lines.at(-1)!)).toMatchObject({ status: 499 });
});

/** Sends `first`, then `drip` every 200 ms, until the server closes. */
async function dropped(first: string, drip: string): Promise<void> {
  const closed = Promise.withResolvers<void>();
  const socket = await Bun.connect({
    ...{ hostname: "127.0.0.1", port: server.running.port },
    socket: { data: () => {}, close: () => closed.resolve(), error: () => closed.resolve() },
  });
  socket.write(first);
  const timer = setInterval(() => (drip === "" ? undefined : socket.write(drip)), 200);
  await closed.promise;
  clearInterval(timer);
  socket.terminate();
}

const PIECE = "x".repeat(64 * 1024);
const PIECES = 600;

/** A long reply of the engine, at once. */
async function* flood({ requests }: GenerationStream): AsyncGenerator<CompletionDelta, void> {
  for (let i = 1; i <= PIECES; i++) {
    const finishReason = i < PIECES ? null : ("length" as const);
    const requestId = requests[0]!.id;
    const delta = { requestId, index: 0, text: PIECE, tokenIds: [5], finishReason, stopReason: null };
    yield delta as CompletionDelta;
  }
}

/** Whether a connection to this port of this machine is open at the port's end. */
function isConnected(port: number): boolean {
  const address = `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const established = "01";
  return readFileSync("/proc/net/tcp", "utf8")
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .some(([, local, , state]) => local === address && state === established);
}

/** The bytes that a client can still read if it begins only when the server has dropped it. */
async function bytesLeft(port: number, request: string): Promise<number> {
  let bytes = 0;
  const closed = Promise.withResolvers<void>();
  const socket = await Bun.connect({
    ...{ hostname: "127.0.0.1", port },
    socket: {
      open: (opened) => void opened.pause(),
      data: (_, data) => {
        bytes += data.length;
      },
      close: () => closed.resolve(),
      error: () => closed.resolve(),
    },
  });
  socket.write(request);
  // The list of all connections is long: it is not asked for all the time.
  while (isConnected(port)) await Bun.sleep(100);
  socket.resume();
  await closed.promise;
  return bytes;
}

test("clients that keep the server waiting are dropped", async () => {
  const handled = server.lines.length;
  const lines: string[] = [];
  const flooding = startServer({
    ...{ llm: disturbed(server.llm, replying(server.llm, flood)), log: (line) => void lines.push(line) },
    options: { port: 0, writeStallSeconds: 0.5, drainSeconds: 0 },
  });
  const stream = JSON.stringify({ ...JSON.parse(BODY), stream: true });
  const writers: Readonly<Record<string, Promise<void>>> = {
    "nothing is sent": dropped("", ""),
    "slow headers": dropped(`POST ${COMPLETIONS} HTTP/1.1\r\nHost: a\r\n`, "X: a\r\n"),
    "a slow body": dropped(head("Content-Length: 4000000"), " ".repeat(200)),
    "slow chunks": dropped(head(CHUNKED), "1\r\n \r\n"),
    "a body that stops": dropped(`${head("Content-Length: 10")}{`, ""),
    "silence after a reply": dropped(whole(BODY), ""),
    "silence after a stream": dropped(whole(stream), ""),
    "slow headers after a stream": dropped(whole(stream), "G"),
  };
  const readers: Readonly<Record<string, Promise<number>>> = {
    "a reply is not read": bytesLeft(flooding.port, whole(BODY)),
    "a stream is not read": bytesLeft(flooding.port, whole(stream)),
  };
  const open = new Set(Object.keys(writers));
  for (const [name, end] of Object.entries(writers)) void end.then(() => open.delete(name));
  await eventually(() => open.size === 0).catch(() => expect([...open]).toEqual([]));
  for (const [name, bytes] of Object.entries(readers))
    expect([name, (await bytes) < (PIECES / 2) * PIECE.length]).toEqual([name, true]);
  const told = (entries: readonly string[]) =>
    entries.map((line) => JSON.parse(line)).map(({ status, error }) => `${status} ${error ?? ""}`.trim());
  const left = "499 client_closed_request";
  expect(told(server.lines.slice(handled)).sort()).toEqual(["200", "200", "200", left, left, left]);
  expect(told(lines)).toEqual(["499 client_stalled", "499 client_stalled"]);
  await flooding.stop();
});
