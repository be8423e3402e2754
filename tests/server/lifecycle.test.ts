import { describe, expect, setDefaultTimeout, test } from "bun:test";
import OpenAI from "openai";
import { eventually } from "../support.ts";
import { ENDLESS, errorOf, GREEDY, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const stream = (server: TestServer, body: object) =>
  server.post("/v1/completions", { prompt: PROMPT, ...GREEDY, stream: true, ...body });

describe("stopping", () => {
  test("readiness fails first, requests under way finish, then the port is closed", async () => {
    await using server = await TestServer.start();
    const reply = await stream(server, { max_tokens: 150, ignore_eos: true });
    const whole = server.post("/v1/completions", {
      prompt: PROMPT,
      ...GREEDY,
      max_tokens: 150,
      ignore_eos: true,
    });
    await eventually(() => server.llm.stats.running === 2);
    let stopped = false;
    const stopping = server.running.stop().then(() => {
      stopped = true;
    });
    for (const path of ["/ready", "/health", "/ping"])
      expect(await errorOf(server.fetch(path))).toMatchObject({ status: 503, code: "shutting_down" });
    expect((await server.fetch("/live")).status).toBe(200);
    const refused = await server.post("/v1/completions", { prompt: PROMPT });
    expect(refused.headers.get("retry-after")).toBe("1");
    expect(await errorOf(refused)).toMatchObject({ status: 503, code: "shutting_down" });
    expect(stopped).toBe(false);

    expect(await reply.text()).toEndWith("data: [DONE]\n\n");
    expect(await (await whole).json()).toMatchObject({ usage: { completion_tokens: 150 } });
    await stopping;
    expect(server.llm.numUnfinished).toBe(0);
    expect(server.fetch("/live")).rejects.toThrow();
  });

  test("with a delay, readiness fails first and requests are still taken", async () => {
    const shutdownDelaySeconds = 2;
    await using server = await TestServer.start({ shutdownDelaySeconds });
    const started = performance.now();
    void server.running.stop();
    /** On a machine that is too slow for the delay, nothing can be seen. */
    const inTime = () => performance.now() - started < (shutdownDelaySeconds - 0.1) * 1000;
    for (const path of ["/ready", "/health", "/ping"])
      expect(await errorOf(server.fetch(path))).toMatchObject({ status: 503, code: "shutting_down" });
    const reply = await server.post("/v1/completions", { prompt: PROMPT, ...GREEDY });
    expect([200, inTime() ? 200 : 503]).toContain(reply.status);
    await server.running.stop();
    expect(performance.now() - started).toBeGreaterThan(shutdownDelaySeconds * 1000 - 50);
  });

  test("what does not finish in time is told, and ended", async () => {
    await using server = await TestServer.start({ drainSeconds: 0.2 });
    const reply = await stream(server, ENDLESS);
    const whole = errorOf(server.post("/v1/completions", ENDLESS));
    await eventually(() => server.llm.stats.running === 2);
    await server.running.stop();
    const text = await reply.text();
    expect(text).toContain('"code":"shutting_down"');
    expect(text).not.toContain("[DONE]");
    expect(await whole).toMatchObject({ status: 503, code: "shutting_down" });
    expect(server.llm.numUnfinished).toBe(0);
  });

  test("twice is once", async () => {
    await using server = await TestServer.start();
    const [first, second] = [server.running.stop(), server.running.stop()];
    expect(first).toBe(second);
    await first;
  });
});

test("a dead engine: streams end with an error, /health is 503, /live is not", async () => {
  await using server = await TestServer.start();
  const reply = await stream(server, ENDLESS);
  const whole = errorOf(server.post("/v1/completions", ENDLESS));
  await eventually(() => server.llm.stats.running === 2);
  await server.llm.dispose();
  const text = await reply.text();
  expect(text).toContain('"code":"engine_dead"');
  expect(text).not.toContain("[DONE]");
  expect(await whole).toMatchObject({ status: 503, code: "engine_dead", message: "the engine has stopped" });
  for (const path of ["/ready", "/health", "/ping"])
    expect(await errorOf(server.fetch(path))).toMatchObject({ status: 503, code: "engine_dead" });
  expect((await server.fetch("/live")).status).toBe(200);
  expect((await server.fetch("/metrics")).status).toBe(200);
  const client = new OpenAI({ baseURL: server.baseURL, apiKey: "none", maxRetries: 2 });
  const failure = await client.completions
    .create({ model: "tiny-stories", prompt: PROMPT })
    .catch((error: unknown) => error);
  expect(failure).toMatchObject({ status: 503, code: "engine_dead" });
  await eventually(() => server.lines.filter((line) => line.includes('"status":503')).length >= 5);
});

test("many clients that leave at once leave nothing behind", async () => {
  await using server = await TestServer.start();
  const controller = new AbortController();
  const { signal } = controller;
  const left = Array.from({ length: 20 }, (_, i) =>
    server
      .post("/v1/completions", { ...ENDLESS, stream: i % 2 === 0 }, { signal })
      .then((reply) => reply.text())
      .catch((error: Error) => error.name),
  );
  await eventually(() => server.llm.stats.running > 5);
  controller.abort();
  expect(new Set(await Promise.all(left))).toEqual(new Set(["AbortError"]));
  await eventually(() => server.llm.numUnfinished === 0);
  expect(await (await server.fetch("/load")).json()).toEqual({ server_load: 0 });
  const canary = await server.post("/v1/completions", { prompt: PROMPT, ...GREEDY, max_tokens: 4 });
  expect(await canary.json()).toMatchObject({ choices: [{ text: ", there was a" }] });
});
