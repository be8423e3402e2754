import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createApp, startServer } from "../../src/server/serve.ts";
import { errorOf, GREEDY, HI, PROMPT, raw, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const KEYS = ["sk-first", "sk-second"];
let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start({ apiKeys: KEYS, enablePromptTokensDetails: true });
});
afterAll(() => server[Symbol.asyncDispose]());

const bearer = (key: string) => ({ headers: { Authorization: `Bearer ${key}` } });

describe("without a key", () => {
  test.each(["/live", "/ready", "/health", "/ping"])("%s answers", async (path) => {
    const reply = await server.fetch(path);
    expect([reply.status, await reply.text()]).toEqual([200, ""]);
  });

  test.each([
    ["GET", "/v1/models"],
    ["GET", "/v1/models/tiny-stories"],
    ["POST", "/v1/completions"],
    ["POST", "/v1/chat/completions"],
    ["POST", "/v1/completions/render"],
    ["POST", "/v1/chat/completions/render"],
    ["POST", "/tokenize"],
    ["POST", "/detokenize"],
    ["GET", "/version"],
    ["GET", "/metrics"],
    ["GET", "/load"],
    ["GET", "/openapi.json"],
    ["POST", "/reset_prefix_cache"],
    ["GET", "/nowhere"],
    ["OPTIONS", "/v1/models"],
    ["GET", "/health/"],
    ["GET", "/HEALTH"],
  ])("%s %s does not", async (method, path) => {
    const reply = await server.fetch(path, { method });
    expect(reply.headers.get("www-authenticate")).toBe("Bearer");
    expect(await errorOf(reply)).toMatchObject({
      ...{ status: 401, type: "authentication_error", code: "invalid_api_key", param: null },
    });
  });

  test.each([
    "//v1/models",
    "/v1/../v1/models",
    "/health/../v1/models",
    "/v1%2fmodels",
    "/%76%31/models",
    "/health%2f..%2fv1/models",
    "/health/..%2f..%2fv1/models",
    "http://a/v1/models",
    "/v1/models?x=/health",
    "/v1/models#/health",
  ])("nor does the path %s", async (path) => {
    const reply = await raw(server.running.port, `GET ${path} HTTP/1.1\r\nHost: a\r\n\r\n`);
    expect(reply).toMatch(/^HTTP\/1\.1 40[014] /);
    expect(reply).not.toContain("tiny-stories");
  });
});

test.each([
  ["another", "Bearer sk-third"],
  ["a prefix", "Bearer sk-firs"],
  ["a longer", "Bearer sk-first1"],
  ["an empty", "Bearer "],
  ["a very long", `Bearer ${"k".repeat(10_240)}`],
  ["both in one", "Bearer sk-first sk-second"],
  ["a basic", "Basic sk-first"],
  ["a bare", "sk-first"],
])("%s key is wrong", async (_, authorization) => {
  const reply = server.fetch("/v1/models", { headers: { Authorization: authorization } });
  expect(await errorOf(reply)).toMatchObject({ status: 401 });
});

test("a key that comes in two headers is right if it is the same", async () => {
  const status = async (...keys: readonly string[]) => {
    const headers = keys.map((key) => `Authorization: Bearer ${key}\r\n`).join("");
    const reply = await raw(server.running.port, `GET /v1/models HTTP/1.1\r\nHost: a\r\n${headers}\r\n`);
    return reply.slice("HTTP/1.1 ".length, "HTTP/1.1 200".length);
  };
  expect(await status("sk-first", "sk-first")).toBe("200");
  expect(await status("sk-first", "sk-first", "sk-first")).toBe("200");
  for (const keys of [
    ["sk-first", "sk-second"],
    ["sk-first", "sk-third"],
    ["sk-third", "sk-third"],
    ["sk-first", ""],
  ])
    expect([keys, await status(...keys)]).toEqual([keys, "401"]);
});

test.each(KEYS)("%s is right", async (key) => {
  expect((await server.fetch("/v1/models", bearer(key))).status).toBe(200);
  expect((await server.fetch("/metrics", bearer(key))).status).toBe(200);
  expect(await errorOf(server.fetch("/nowhere", bearer(key)))).toMatchObject({ status: 404 });
});

test("the log tells keys apart without telling them", async () => {
  for (const key of KEYS) await server.fetch("/version", bearer(key));
  const [first, second] = server.lines.slice(-2).map((line) => JSON.parse(line).keyId);
  expect(first).toMatch(/^[0-9a-f]{12}$/);
  expect(second).not.toBe(first);
  expect(server.lines.join()).not.toContain("sk-");
});

test("cached prefixes are kept apart by key, and by salt", async () => {
  const prompt = "One day a small dog went to the park to play with a red ball. ".repeat(3);
  const cached = async (key: string, salt?: string) => {
    const body = { prompt, ...GREEDY, max_tokens: 1, ...(salt && { cache_salt: salt }) };
    const reply = await server.post("/v1/completions", body, bearer(key));
    const { usage } = (await reply.json()) as {
      usage: { prompt_tokens_details: { cached_tokens: number } };
    };
    return usage.prompt_tokens_details.cached_tokens;
  };
  expect(await cached("sk-first")).toBe(0);
  expect(await cached("sk-first")).toBeGreaterThan(0);
  expect(await cached("sk-second")).toBe(0);
  expect(await cached("sk-first", "tenant")).toBe(0);
  expect(await cached("sk-first", "tenant")).toBeGreaterThan(0);
  expect(await cached("sk-second", "tenant")).toBe(0);
});

describe("addresses of other machines", () => {
  test.each(["0.0.0.0", "::", "192.168.1.5", "127.0.0.1.evil.test"])("%s needs a key", (host) => {
    const start = () => startServer({ llm: server.llm, options: { host, port: 0 } });
    expect(start).toThrow(expect.objectContaining({ code: "invalid_config", option: "host" }));
  });

  test("or that it is said to be wanted", async () => {
    const options = { host: "0.0.0.0", port: 0, allowUnauthenticated: true, logRequests: false };
    const open = startServer({ llm: server.llm, options });
    expect((await fetch(`http://127.0.0.1:${open.port}/version`)).status).toBe(200);
    await open.stop();
  });

  test("a port that is taken is an error of its own", () => {
    const options = { port: server.running.port };
    const start = () => startServer({ llm: server.llm, options });
    expect(start).toThrow(expect.objectContaining({ code: "cannot_bind", exitCode: 73 }));
  });
});

test("the app needs no port", async () => {
  const app = createApp({ llm: server.llm, options: { logRequests: false } });
  const reply = await app.request("/v1/chat/completions", {
    ...{ method: "POST", headers: { "Content-Type": "application/json" } },
    body: JSON.stringify({ messages: HI, ...GREEDY, stream: true }),
  });
  expect(await reply.text()).toEndWith("data: [DONE]\n\n");
  expect((await app.request("/nowhere")).status).toBe(404);
  const options = { logPrompts: true };
  const lines: string[] = [];
  const logging = createApp({ llm: server.llm, options, log: (line) => void lines.push(line) });
  await logging.request("/v1/completions", {
    ...{ method: "POST", headers: { "Content-Type": "application/json" } },
    body: JSON.stringify({ prompt: PROMPT, ...GREEDY, max_tokens: 1 }),
  });
  expect(JSON.parse(lines[0]!)).toMatchObject({ prompt: [PROMPT], status: 200 });
});
