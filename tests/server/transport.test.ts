import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { hostname } from "node:os";
import { createApp } from "../../src/server/app.ts";
import { cpuClock } from "../support.ts";
import { errorOf, GREEDY, PROMPT, raw, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const LIMIT = 200_000;
let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start({
    ...{ maxRequestBytes: LIMIT, corsOrigins: ["https://app.test"], enableRequestIdHeaders: true },
    servedModelNames: ["tiny", "org/tiny"],
  });
});
afterAll(() => server[Symbol.asyncDispose]());

const COMPLETIONS = "/v1/completions";
const send = (body: BodyInit, headers: Record<string, string> = {}) =>
  errorOf(
    server.fetch(COMPLETIONS, {
      ...{ method: "POST", body },
      headers: { "Content-Type": "application/json", ...headers },
    }),
  );

describe("bodies", () => {
  test.each([
    ["malformed", "{"],
    ["empty", ""],
    ["a list", "[]"],
    ["a string", '"a"'],
    ["null", "null"],
    ["NaN", '{"temperature":NaN}'],
    ["a number past the largest", '{"prompt":"a","temperature":1e999}'],
    ["the same, deep inside", '{"messages":[{"x":[-1e999]}]}'],
    ["nested 100 times too deep", "[".repeat(50_000)],
    ["deep objects", `${'{"a":'.repeat(150)}1${"}".repeat(150)}`],
  ])("%s is no JSON object", async (_, body) => {
    expect(await send(body)).toMatchObject({ status: 400, code: "invalid_json", param: null });
  });

  test("brackets in strings are not nesting", async () => {
    const body = { prompt: `${"[".repeat(200)}\\"${"{".repeat(200)}`, ...GREEDY, max_tokens: 1 };
    expect((await server.post(COMPLETIONS, body)).status).toBe(200);
  });

  test("deep nesting is refused before it costs time", async () => {
    const spent = cpuClock();
    await send("[".repeat(LIMIT));
    expect(spent()).toBeLessThan(0.1);
  });

  test("invalid UTF-8", async () => {
    const body = Buffer.concat([Buffer.from('{"prompt":"'), Buffer.from([0xff, 0xfe]), Buffer.from('"}')]);
    expect(await send(body)).toMatchObject({ status: 400, code: "invalid_utf8" });
  });

  test("half of a surrogate pair, in values and keys", async () => {
    for (const body of ['{"prompt":"\\ud800"}', '{"prompt":"a","\\udc00":1}'])
      expect(await send(body)).toMatchObject({ status: 400, code: "invalid_unicode" });
  });

  test("other content types and encodings", async () => {
    for (const type of ["text/plain", "application/x-www-form-urlencoded"])
      expect(await send("{}", { "Content-Type": type })).toMatchObject({ status: 415 });
    const zipped = Bun.gzipSync(Buffer.from('{"prompt":"a"}'));
    expect(await send(zipped, { "Content-Encoding": "gzip" })).toMatchObject({ status: 415 });
    const charset = { "Content-Type": "Application/JSON; charset=utf-8" };
    expect(await send("{}", charset)).toMatchObject({ status: 400, param: "prompt" });
  });

  test("too large, declared or in chunks", async () => {
    const declared = JSON.stringify({ prompt: "a".repeat(LIMIT) });
    expect(await send(declared)).toMatchObject({ status: 413, code: "request_too_large" });
    const head = `POST ${COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n`;
    const chunk = `${(50_000).toString(16)}\r\n${"a".repeat(50_000)}\r\n`;
    const request = `${head}Transfer-Encoding: chunked\r\n\r\n${chunk.repeat(5)}`;
    const reply = await raw(server.running.port, request);
    expect(reply).toStartWith("HTTP/1.1 413");
    expect(reply).toContain('"code":"request_too_large"');
  });

  test("__proto__ and constructor pollute nothing", async () => {
    const body = `{"prompt":"${PROMPT}","max_tokens":1,"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}},
      "logit_bias":{},"chat_template_kwargs":{"__proto__":{"polluted":1}}}`;
    expect((await server.post(COMPLETIONS, body)).status).toBe(200);
    const messages = `{"messages":[{"role":"user","content":"Hi","__proto__":{"polluted":1}}],"max_tokens":1,
      "chat_template_kwargs":{"__proto__":{"polluted":1}}}`;
    expect((await server.post("/v1/chat/completions", messages)).status).toBe(200);
    expect(({} as Record<string, unknown>)["polluted"]).toBeUndefined();
  });
});

describe("paths and methods", () => {
  test("an unknown path", async () => {
    for (const path of ["/", "/v1", "/v2/models", "/v1%2fmodels", "/x//v1/models"])
      expect(await errorOf(server.fetch(path))).toMatchObject({ status: 404, code: "not_found" });
  });

  test.each([
    ["GET", COMPLETIONS, "POST"],
    ["PUT", "/v1/chat/completions", "POST"],
    ["POST", "/v1/models", "GET, HEAD"],
    ["DELETE", "/v1/models/tiny", "GET, HEAD"],
    ["POST", "/health", "GET, HEAD, OPTIONS"],
    ["DELETE", "/ping", "GET, HEAD, OPTIONS, POST"],
    ["GET", "/reset_prefix_cache", "POST"],
    ["POST", "/metrics", "GET, HEAD"],
  ])("%s %s", async (method, path, allow) => {
    const reply = await server.fetch(path, { method });
    expect(reply.headers.get("allow")).toBe(allow);
    expect(await errorOf(reply)).toMatchObject({ status: 405, code: "method_not_allowed" });
  });

  test.each(["a/?x=", "a b", "a/health?x=", "a@b", ""])("Host: %p", async (host) => {
    const reply = await raw(server.running.port, `GET /v1/models HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
    expect(reply).toStartWith("HTTP/1.1 400");
  });

  test("models may have several names, with slashes", async () => {
    const ids = async (path: string) => (await server.fetch(path)).json();
    expect(await ids("/v1/models")).toMatchObject({ data: [{ id: "tiny" }, { id: "org/tiny" }] });
    for (const path of ["/v1/models/org/tiny", "/v1/models/org%2Ftiny"])
      expect(await ids(path)).toMatchObject({ id: "org/tiny", owned_by: "octavo", parent: null });
    const reply = await server.post(COMPLETIONS, { model: "org/tiny", prompt: PROMPT, max_tokens: 1 });
    expect(await reply.json()).toMatchObject({ model: "org/tiny" });
  });
});

describe("HTTP/1.0 without Host", () => {
  const statusOf = async (method: string, target: string) => {
    const reply = await raw(server.running.port, `${method} ${target} HTTP/1.0\r\n\r\n`);
    return Number(reply.slice("HTTP/1.1 ".length, "HTTP/1.1 200".length));
  };

  test("finds its path, as HAProxy's health check needs", async () => {
    for (const method of ["GET", "HEAD", "OPTIONS"])
      for (const path of ["/live", "/ready", "/health", "/ping"])
        expect([method, path, await statusOf(method, path)]).toEqual([method, path, 200]);
    expect(await statusOf("GET", "/v1/models?x=/")).toBe(200);
    expect(await statusOf("GET", "http://a/health")).toBe(200);
  });

  test("and no other", async () => {
    for (const path of ["/", "//v1/models", "//health", "/x/v1/models", "/xxx/health", "/v1/../health"])
      expect([path, await statusOf("GET", path)]).toEqual([path, 404]);
  });
});

test("headers that a proxy has doubled count once", async () => {
  const body = JSON.stringify({ prompt: PROMPT, ...GREEDY, max_tokens: 1 });
  const headers = ["Content-Type: application/json", "Content-Encoding: identity", "X-Request-Id: mine"];
  const head = [`POST ${COMPLETIONS} HTTP/1.1`, "Host: a", "Host: a", ...headers, ...headers];
  const length = `Content-Length: ${body.length}`;
  const reply = await raw(server.running.port, `${[...head, length, "", body].join("\r\n")}`);
  expect(reply).toStartWith("HTTP/1.1 200");
  expect(reply.toLowerCase()).toContain("\r\nx-request-id: mine\r\n");
});

describe("CORS", () => {
  const preflight = (origin: string, at = server) =>
    at.fetch(COMPLETIONS, {
      method: "OPTIONS",
      headers: { Origin: origin, "Access-Control-Request-Method": "POST" },
    });

  test("is for the origins that were named", async () => {
    const named = await preflight("https://app.test");
    expect(named.status).toBe(204);
    expect(named.headers.get("access-control-allow-origin")).toBe("https://app.test");
    const foreign = await preflight("https://evil.test");
    expect(foreign.headers.get("access-control-allow-origin")).toBeNull();
  });

  test("is for all with *, on refusals too", async () => {
    await using open = TestServer.over(server.llm, { corsOrigins: ["https://app.test", "*"] });
    for (const reply of [
      await preflight("https://any.test", open),
      await open.fetch("/v1/models", { headers: { Origin: "https://any.test" } }),
      await open.post(COMPLETIONS, "{", { headers: { Origin: "https://any.test" } }),
    ])
      expect([reply.status, reply.headers.get("access-control-allow-origin")]).toEqual([reply.status, "*"]);
  });

  test("leaves health checks alone", async () => {
    expect((await server.fetch("/health", { method: "OPTIONS" })).status).toBe(200);
  });
});

test("what a page of another site may send without asking changes nothing here", async () => {
  const reset = (headers: Record<string, string>, at = server) =>
    at.fetch("/reset_prefix_cache", { method: "POST", headers });
  const foreign = { "Sec-Fetch-Site": "cross-site", Origin: "https://evil.test" };
  const refused = await reset(foreign);
  expect([refused.status, await errorOf(refused)]).toEqual([
    403,
    expect.objectContaining({ code: "cross_site" }),
  ]);
  expect((await reset({ ...foreign, "Content-Type": "text/plain" })).status).toBe(403);
  for (const headers of [
    ...[{}, { "Sec-Fetch-Site": "same-origin" }, { ...foreign, Origin: "https://app.test" }],
    // A browser has asked before it sends one of these.
    ...[
      { ...foreign, Authorization: "Bearer any" },
      { ...foreign, "Content-Type": "application/json" },
    ],
  ] as Record<string, string>[])
    expect((await reset(headers)).status).toBe(200);
  expect((await server.fetch("/health", { headers: foreign })).status).toBe(200);
});

test("no page of another site watches the engine", async () => {
  const watch = async (headers: Record<string, string>) => {
    const ending = new AbortController();
    const { status } = await server.fetch("/engine", { headers, signal: ending.signal });
    ending.abort();
    return status;
  };
  expect(await watch({ "Sec-Fetch-Site": "cross-site" })).toBe(403);
  expect(await watch({ "Sec-Fetch-Site": "cross-site", Origin: "https://app.test" })).toBe(200);
  expect(await watch({ "Sec-Fetch-Site": "same-origin" })).toBe(200);
});

describe("names of the server", () => {
  const statusOf = async (at: TestServer, Host: string) =>
    (await at.fetch("/v1/models", { headers: { Host } })).status;

  test("without a key are local, or named", async () => {
    for (const host of [
      "localhost:8000",
      "LOCALHOST",
      "octavo",
      "a.localhost",
      "127.0.0.1",
      "[::1]:80",
      "10.1.2.3",
      "host.docker.internal",
      "box.local",
      hostname(),
    ])
      expect([host, await statusOf(server, host)]).toEqual([host, 200]);
    for (const host of [
      "evil.test",
      "evil.test:8000",
      "localhost.evil.test",
      "127.0.0.1.evil.test",

      "local.evil",
    ])
      expect([host, await statusOf(server, host)]).toEqual([host, 403]);
    expect(await statusOf(server, "a b")).toBe(400);
    await using named = TestServer.over(server.llm, { allowedHosts: ["LLM.test"] });
    expect(await statusOf(named, "llm.test:8000")).toBe(200);
    expect(await statusOf(named, "evil.test")).toBe(403);
    await using open = TestServer.over(server.llm, { allowedHosts: ["*"] });
    expect(await statusOf(open, "any.test")).toBe(200);
  });

  test("with a key are any", async () => {
    await using keyed = TestServer.over(server.llm, { apiKeys: ["secret"] });
    const headers = { Host: "llm.test", Authorization: "Bearer secret" };
    expect((await keyed.fetch("/v1/models", { headers })).status).toBe(200);
  });

  test("are any for an app that is mounted in another", async () => {
    const app = createApp({ llm: server.llm, log: () => {} });
    expect((await app.request("/v1/models", { headers: { Host: "llm.test" } })).status).toBe(200);
  });
});

describe("request ids", () => {
  const idOf = async (given: string) =>
    (await server.fetch("/version", { headers: { "X-Request-Id": given } })).headers.get("x-request-id");

  test("come back if they are printable and short", async () => {
    expect(await idOf("order 66/a")).toBe("order 66/a");
    expect(await idOf("a".repeat(129))).toMatch(/^[0-9a-f]{32}$/);
    expect(await idOf("é")).toMatch(/^[0-9a-f]{32}$/);
    const fresh = await server.fetch("/nowhere");
    expect(fresh.headers.get("x-request-id")).toMatch(/^[0-9a-f]{32}$/);
  });

  test("become the reply's", async () => {
    const replyId = async (at: TestServer, body: object) => {
      const headers = { "X-Request-Id": "order 66/a" };
      const reply = await at.post(
        COMPLETIONS,
        { prompt: PROMPT, ...GREEDY, max_tokens: 1, ...body },
        { headers },
      );
      return ((await reply.json()) as { id: string }).id;
    };
    expect(await replyId(server, {})).toBe("cmpl-order 66/a");
    expect(await replyId(server, { request_id: "mine" })).toBe("cmpl-order 66/a");
    await using plain = TestServer.over(server.llm, {});
    expect(await replyId(plain, {})).toMatch(/^cmpl-[0-9a-f]{32}$/);
    for (const request_id of ["mine", "注文 é 66", "👩‍👩‍👧", " "])
      expect(await replyId(plain, { request_id })).toBe(`cmpl-${request_id}`);
    for (const line of plain.lines) expect(JSON.parse(line)).toMatchObject({ clientRequestId: "order 66/a" });
  });

  test("one line of the log for each request, whatever it brings", async () => {
    const before = server.lines.length;
    await server.fetch("/x%0Ay\u0085z\u2028", { headers: { "X-Request-Id": "a".repeat(10_000) } });
    const [line, ...more] = server.lines.slice(before);
    expect(more).toEqual([]);
    expect(line).toMatch(/^[ -~]*$/);
    expect(JSON.parse(line!)).toMatchObject({ event: "request", status: 404, method: "GET" });
    expect(line!.length).toBeLessThan(1000);
  });
});

test("the log tells tokens, not texts", async () => {
  await server.post(COMPLETIONS, { prompt: "A secret garden", ...GREEDY });
  const line = server.lines.at(-1)!;
  expect(JSON.parse(line)).toMatchObject({ status: 200, model: "tiny", completionTokens: 8 });
  expect(server.lines.join()).not.toContain("secret");
});
