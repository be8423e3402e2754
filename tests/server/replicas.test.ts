import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import type { AsyncLLM } from "../../src/async/async-llm.ts";
import type { Replica } from "../../src/async/replica-set.ts";
import { createApp } from "../../src/server/serve.ts";
import { createReplicas, kill } from "../async/replicas.ts";
import { eventually } from "../support.ts";
import { disturbed } from "./disturbed-llm.ts";
import { canary, ENDLESS, errorOf, GREEDY, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const stream = (server: TestServer, body: object = {}) =>
  server.post("/v1/completions", { ...ENDLESS, temperature: 1, stream: true, ...body });

/** One endless stream on each replica, by its index. */
async function occupyBoth(server: TestServer): Promise<readonly Response[]> {
  const replies: Response[] = [];
  for (const busy of [0, 1]) {
    const before = server.llm.replicas.map(({ stats }) => stats.running);
    const reply = await stream(server);
    await eventually(() => server.llm.stats.running === busy + 1);
    const where = server.llm.replicas.findIndex(({ stats }, i) => stats.running > before[i]!);
    expect(replies[where]).toBeUndefined();
    replies[where] = reply;
  }
  return replies;
}

let llm: AsyncLLM;
beforeAll(async () => {
  llm = await createReplicas({ maxNumSeqs: 1 });
});
afterAll(() => llm.dispose());

test("metrics have a series for each engine, and their sums are the server's", async () => {
  await using server = TestServer.over(llm, {});
  const before = llm.stats.generationTokens;
  const n = 4;
  const body = { prompt: Array.from({ length: n }, () => PROMPT), ...GREEDY, ignore_eos: true };
  expect((await server.post("/v1/completions", body)).status).toBe(200);
  const of = (name: string, engine: number) => server.metric(`vllm:${name}`, `engine="${engine}"`);
  const sum = async (name: string) => (await of(name, 0))! + (await of(name, 1))!;
  expect(await sum("generation_tokens_total")).toBe(before + n * GREEDY.max_tokens);
  for (const engine of [0, 1]) {
    for (const name of ["generation_tokens_total", "request_max_num_generation_tokens_count"])
      expect(await of(name, engine)).toBeGreaterThan(0);
    const ended = `engine="${engine}",finished_reason="length"`;
    expect(await server.metric("vllm:request_success_total", ended)).toBeGreaterThan(0);
  }
  for (const name of ["e2e_request_latency_seconds", "request_max_num_generation_tokens"])
    expect(await sum(`${name}_count`)).toBe(n);
  expect(await sum("inter_token_latency_seconds_count")).toBeGreaterThan(0);
  expect(await sum("cache_config_info")).toBe(2);
  for (const engine of [0, 1]) expect(await server.metric("octavo:replica_up", `engine="${engine}"`)).toBe(1);
});

test("the waiting room is beside what all replicas run", async () => {
  await using server = TestServer.over(llm, { maxQueueLength: 1, drainSeconds: 0 });
  await occupyBoth(server);
  const waiting = stream(server);
  await eventually(() => llm.stats.running + llm.stats.waiting === 3);
  expect(llm.stats).toMatchObject({ running: 2, waiting: 1 });
  expect(await errorOf(stream(server))).toMatchObject({ status: 503, code: "overloaded" });
  void waiting;
});

test("/health lists the replicas, and is 503 when none gets on", async () => {
  const ask = (replicas: readonly Partial<Replica>[], path = "/health") => {
    const all = replicas.map((members, i): Replica => {
      const { stats, cacheConfig, failure, secondsWithoutProgress } = llm.replicas[i]!;
      const view = () => llm.replicas[i]!.view();
      return { stats, cacheConfig, failure, secondsWithoutProgress, view, ...members };
    });
    const waits = all.map(({ secondsWithoutProgress }) => secondsWithoutProgress);
    const members = { replicas: all, secondsWithoutProgress: Math.min(...waits) };
    return createApp({ llm: disturbed(llm, members), options: { logRequests: false } }).request(path);
  };
  const fine = { secondsWithoutProgress: 0 };
  const stuck = { secondsWithoutProgress: 31 };
  for (const path of ["/health", "/ping"])
    expect(await (await ask([fine, fine], path)).json()).toEqual({ replicas: ["ok", "ok"] });
  expect(await (await ask([stuck, fine])).json()).toEqual({ replicas: ["stalled", "ok"] });
  expect(await errorOf(ask([stuck, stuck]))).toMatchObject({ status: 503, code: "engine_stalled" });
});

test("stopping waits for the requests of all replicas", async () => {
  const server = TestServer.over(llm, {});
  const body = { max_tokens: 60, temperature: 1 };
  const replies = await Promise.all([stream(server, body), stream(server, body)]);
  await eventually(() => llm.replicas.every(({ stats }) => stats.running === 1));
  const stopping = server.running.stop();
  for (const reply of replies) expect(await reply.text()).toEndWith("data: [DONE]\n\n");
  await stopping;
  expect(llm.numUnfinished).toBe(0);
});

test("a replica's death: its clients are told, others are served, and it shows; the last is the server's", async () => {
  await using server = TestServer.over(llm, { maxQueueLength: 1, drainSeconds: 0 });
  const before = await canary(server);
  const [first, second] = await occupyBoth(server);
  await kill(llm, 1);
  const told = await second!.text();
  expect(told).toContain('"code":"replica_dead"');
  expect(told).not.toContain("[DONE]");
  expect((await server.fetch("/ready")).status).toBe(200);
  const health = await server.fetch("/health");
  expect([health.status, await health.json()]).toEqual([200, { replicas: ["ok", "dead"] }]);
  for (const [engine, up, running] of [
    [0, 1, 1],
    [1, 0, 0],
  ] as const) {
    expect(await server.metric("octavo:replica_up", `engine="${engine}"`)).toBe(up);
    expect(await server.metric("vllm:num_requests_running", `engine="${engine}"`)).toBe(running);
  }
  // One runs and one may wait.
  const waiting = server.post("/v1/completions", { prompt: PROMPT, ...GREEDY });
  await eventually(() => llm.stats.waiting === 1);
  expect(await errorOf(stream(server))).toMatchObject({ status: 503, code: "overloaded" });
  await first!.body!.cancel();
  expect((await waiting).status).toBe(200);
  expect(await canary(server)).toBe(before);

  const whole = errorOf(server.post("/v1/completions", ENDLESS));
  await eventually(() => llm.stats.running === 1);
  await kill(llm, 0);
  expect(await whole).toMatchObject({ status: 503, code: "engine_dead" });
  expect(await errorOf(server.fetch("/health"))).toMatchObject({ status: 503, code: "engine_dead" });
});

test("a reply that was not begun may be asked for again elsewhere", async () => {
  await using own = await createReplicas();
  await using server = TestServer.over(own, { drainSeconds: 0 });
  const whole = server.post("/v1/completions", ENDLESS);
  await eventually(() => own.stats.running === 1);
  await kill(
    own,
    own.replicas.findIndex(({ stats }) => stats.running === 1),
  );
  const reply = await whole;
  expect(reply.headers.get("retry-after")).toBe("1");
  expect(reply.headers.get("x-should-retry")).toBeNull();
  expect(await errorOf(reply)).toMatchObject({ status: 503, code: "replica_dead", type: "server_error" });
});
