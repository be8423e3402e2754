import {
  afterAll,
  afterEach,
  beforeAll,
  describe,
  expect,
  setDefaultTimeout,
  setSystemTime,
  test,
} from "bun:test";
import type { AsyncLLM } from "../../src/async/async-llm.ts";
import { EngineDeadError, RequestFailedError } from "../../src/base/errors.ts";
import { createApp, type ServerOptions, startServer } from "../../src/server/serve.ts";
import { cpuClock, eventually } from "../support.ts";
import { disturbed, replying } from "./disturbed-llm.ts";
import { canary, ENDLESS, errorOf, expectUnharmed, GREEDY, HI, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const COMPLETIONS = "/v1/completions";
const JSON_TYPE = { "Content-Type": "application/json" };
let server: TestServer;
let before: string;
beforeAll(async () => {
  server = await TestServer.start({}, { maxNumSeqs: 4 });
  before = await canary(server);
});
afterEach(() => expectUnharmed(server, before));
afterAll(() => server[Symbol.asyncDispose]());

const postTo = (body: object): RequestInit => ({
  ...{ method: "POST", headers: JSON_TYPE, body: JSON.stringify(body) },
});

/** A reply to a request of the app over such a model, and the log. */
async function ask(members: Partial<AsyncLLM>, path: string, init?: RequestInit, options?: ServerOptions) {
  const lines: string[] = [];
  const log = (line: string) => void lines.push(line);
  const app = createApp({ llm: disturbed(server.llm, members), log, ...(options && { options }) });
  return { reply: await app.request(path, init), lines };
}

const failing = (error: unknown) =>
  replying(server.llm, async function* () {
    yield await Promise.reject(error);
  });

describe("a failure of the engine is that request's, without its details", () => {
  const hidden = "at 0x7fff12345678 in /secret/model";
  test.each<readonly [string, unknown, number, string]>([
    ["logits that are not finite", new RequestFailedError(hidden, "numerical_error"), 500, "numerical_error"],
    ["a step that fails", new RequestFailedError(hidden, "step_failed"), 500, "step_failed"],
    ["a failure of no known kind", new RequestFailedError(hidden, "unheard_of"), 500, "unheard_of"],
    ["an engine that dies", new EngineDeadError(hidden), 503, "engine_dead"],
    ["a bug", new TypeError(hidden), 500, "internal_error"],
  ])("%s", async (_, error, status, code) => {
    for (const stream of [false, true]) {
      const init = postTo({ prompt: PROMPT, ...GREEDY, stream });
      const { reply, lines } = await ask(failing(error), COMPLETIONS, init);
      const text = await reply.text();
      expect(reply.status).toBe(stream ? 200 : status);
      expect(text).toContain(`"type":"server_error","param":null,"code":"${code}"`);
      expect(text).not.toContain("secret");
      expect(text).not.toContain("[DONE]");
      expect(lines).toHaveLength(1);
      expect(JSON.parse(lines[0]!)).toMatchObject({ status, error: expect.stringContaining(code) });
    }
  });

  test("a bug in any other route", async () => {
    const broken = async () => {
      throw new TypeError(hidden);
    };
    const members = { tokenize: broken, detokenize: broken, resetPrefixCache: broken };
    for (const [path, body] of [
      ["/tokenize", { prompt: "a" }],
      ["/detokenize", { tokens: [5] }],
      ["/v1/completions/render", { prompt: "a" }],
      ["/v1/chat/completions/render", { messages: HI }],
      ["/reset_prefix_cache", {}],
    ] as const) {
      const { reply, lines } = await ask(members, path, postTo(body));
      expect(await errorOf(reply)).toMatchObject({
        status: 500,
        code: "internal_error",
        type: "server_error",
      });
      expect(lines.join()).toContain("secret");
    }
  });
});

test("an engine that stands still is not healthy, but ready", async () => {
  for (const path of ["/health", "/ping"]) {
    const { reply } = await ask({ secondsWithoutProgress: 31 }, path);
    expect(await errorOf(reply)).toMatchObject({ status: 503, code: "engine_stalled", type: "server_error" });
  }
  expect((await ask({ secondsWithoutProgress: 31 }, "/ready")).reply.status).toBe(200);
  expect((await ask({ secondsWithoutProgress: 29 }, "/health")).reply.status).toBe(200);
});

describe("while the text waits to be prepared", () => {
  /** A tokenizer that takes for ever. */
  const slow: Partial<AsyncLLM> = {
    submit: () => new Promise<never>(() => {}),
    tokenize: () => new Promise<never>(() => {}),
  };
  const requests = [
    [COMPLETIONS, { prompt: PROMPT }],
    ["/tokenize", { prompt: PROMPT }],
    ["/v1/chat/completions/render", { messages: HI }],
  ] as const;

  test.each(requests)("%s: the time for waiting and the time for all run out", async (path, body) => {
    const waited = await ask(slow, path, postTo(body), { queueTimeoutSeconds: 0.05 });
    expect(waited.reply.headers.get("retry-after")).toBe("1");
    expect(await errorOf(waited.reply)).toMatchObject({ status: 503, code: "queue_timeout" });
    const ran = await ask(slow, path, postTo(body), { requestTimeoutSeconds: 0.05 });
    expect(await errorOf(ran.reply)).toMatchObject({ status: 504, code: "timeout" });
  });

  test.each(requests)("%s: a client may leave, and has a limit", async (path, body) => {
    const app = createApp({
      ...{ llm: disturbed(server.llm, slow), log: () => {} },
      options: { maxConcurrentPerKey: 1, apiKeys: ["sk-one"] },
    });
    const headers = { ...JSON_TYPE, Authorization: "Bearer sk-one" };
    const leave = new AbortController();
    const first = app.request(path, { ...postTo(body), headers, signal: leave.signal });
    const load = async () => (await app.request("/load", { headers })).json();
    await eventually(async () => Bun.deepEquals(await load(), { server_load: 1 }));
    const second = await errorOf(app.request(path, { ...postTo(body), headers }));
    expect(second).toMatchObject({ status: 429, type: "rate_limit_error", code: "too_many_requests" });
    leave.abort();
    expect(await errorOf(first)).toMatchObject({ status: 499, code: "client_closed_request" });
    expect(await load()).toEqual({ server_load: 0 });
  });
});

test("a clock that jumps an hour either way ends nothing", async () => {
  const replies = [-1, 1].map(async (hours) => {
    const reply = await server.post(COMPLETIONS, {
      ...ENDLESS,
      max_tokens: 60,
      temperature: 0,
      stream: true,
    });
    setSystemTime(Date.now() + hours * 3_600_000);
    return reply.text();
  });
  const texts = await Promise.all(replies).finally(() => setSystemTime());
  for (const text of texts) expect(text).toEndWith("data: [DONE]\n\n");
  expect((await server.fetch("/health")).status).toBe(200);
});

/** A connection that sent a request and does nothing more. */
async function sent(port: number, path: string, body: object, events = {}) {
  const text = JSON.stringify(body);
  const socket = await Bun.connect({ hostname: "127.0.0.1", port, socket: { data: () => {}, ...events } });
  socket.write(
    `POST ${path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: ${text.length}\r\n\r\n${text}`,
  );
  return socket;
}

test("1,000 clients that leave at once, in every state of their requests", async () => {
  const port = server.running.port;
  const logged = server.lines.length;
  for (let i = 0; i < 1000; i += 50) {
    const sockets = await Promise.all(
      Array.from({ length: 50 }, (_, j) =>
        sent(port, COMPLETIONS, { ...ENDLESS, prompt: `${PROMPT} ${i + j}`, stream: j % 2 === 0 }),
      ),
    );
    await Bun.sleep(i % 7);
    for (const [j, socket] of sockets.entries()) j % 3 === 0 ? socket.terminate() : socket.end();
  }
  // The kernel drops what a third of them wrote if they were reset before it was read.
  await eventually(() => server.lines.length - logged >= 666 && server.llm.numUnfinished === 0);
  const statuses = new Set(server.lines.slice(logged).map((line) => JSON.parse(line).status as number));
  expect([...statuses]).toEqual([499]);
});

test("a full queue answers within 10 ms of CPU time", async () => {
  const full = startServer({
    ...{ llm: server.llm, log: () => {} },
    options: { port: 0, maxQueueLength: 0, drainSeconds: 0 },
  });
  const held = await Promise.all([1, 2, 3, 4].map(() => sent(full.port, COMPLETIONS, ENDLESS)));
  await eventually(() => server.llm.numUnfinished === 4);
  const spent = cpuClock();
  for (let i = 0; i < 50; i++) {
    const reply = await fetch(new URL(COMPLETIONS, full.url), postTo({ prompt: PROMPT }));
    expect(await errorOf(reply)).toMatchObject({ status: 503, code: "overloaded" });
  }
  expect(spent() / 50).toBeLessThan(0.01);
  for (const socket of held) socket.terminate();
  await full.stop();
});
