import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { CompletionClient, EventReader } from "../../src/cli/bench/completion-client.ts";
import { arrivalTimes, generateLoad } from "../../src/cli/bench/load-generator.ts";
import { distribution, summarize } from "../../src/cli/bench/report.ts";
import { randomWorkload } from "../../src/cli/bench/workload.ts";
import { temporaryFolder } from "../support.ts";
import { expectRefusal, octavo } from "./support.ts";
import { TerminalSession } from "./terminal.ts";

setDefaultTimeout(300_000);

interface Asked {
  readonly prompt: readonly number[];
  readonly max_tokens: number;
  readonly [field: string]: unknown;
}

/**
 * A server that sends `max_tokens` tokens, each in an event of its own, or what `answer` says. After the
 * warm-up, no stream ends before there have been `atOnce` of them at a time.
 */
function fakeServer(answer: (asked: Asked) => Response | undefined = () => undefined, atOnce = 1) {
  const met = Promise.withResolvers<void>();
  const asked: Asked[] = [];
  const authorizations = new Set<string | null>();
  let active = 0;
  let mostActive = 0;
  const server = Bun.serve({
    ...{ hostname: "127.0.0.1", port: 0 },
    async fetch(request) {
      authorizations.add(request.headers.get("authorization"));
      if (request.method === "GET") return Response.json({ data: [{ id: "fake" }] });
      const body = (await request.json()) as Asked;
      asked.push(body);
      const answered = answer(body);
      if (answered !== undefined) return answered;
      const warmUp = asked.length === 1;
      const usage = { prompt_tokens: body.prompt.length, completion_tokens: body.max_tokens };
      const stream = new ReadableStream({
        async start(controller) {
          mostActive = Math.max(mostActive, ++active);
          if (active === atOnce) met.resolve();
          for (let i = 0; i < body.max_tokens; i++) {
            controller.enqueue(event({ choices: [{ text: "é", token_ids: [i] }] }));
            await Bun.sleep(1);
          }
          if (!warmUp) await met.promise;
          active--;
          controller.enqueue(`${event({ choices: [], usage })}data: [DONE]\n\n`);
          controller.close();
        },
      });
      return new Response(stream);
    },
  });
  return {
    ...{ asked, authorizations, url: `http://127.0.0.1:${server.port}` },
    mostActive: () => mostActive,
    [Symbol.dispose]: () => void server.stop(true),
  };
}

function event(chunk: object): string {
  return `data: ${JSON.stringify(chunk)}\n\n`;
}

test("events come whole out of any pieces", () => {
  const stream = Buffer.from(': hello\n\ndata: {"a":"é"}\n\ndata: 2\r\n\r\ndata:3\n\ndata: [DONE]\n\n');
  for (const size of [1, 2, 3, 7, stream.length]) {
    const reader = new EventReader();
    const events: string[] = [];
    for (let at = 0; at < stream.length; at += size) {
      events.push(...reader.push(stream.subarray(at, at + size)));
    }
    expect([events, reader.done]).toEqual([['{"a":"é"}', "2", "3"], true]);
  }
});

test("percentiles are interpolated", () => {
  expect(distribution([3, 1, 2, 5, 4])).toEqual({ mean: 3, p50: 3, p90: 4.6, p99: 4.96 });
  expect(distribution([])).toEqual({ mean: 0, p50: 0, p90: 0, p99: 0 });
});

test("the report of known traces", () => {
  const report = summarize([
    { startTime: 0, tokenTimes: [100, 110, 130], outputTokens: 3, promptTokens: 10 },
    { startTime: 1000, tokenTimes: [1500, 2000], outputTokens: 5, promptTokens: 20 },
    { startTime: 0, tokenTimes: [], outputTokens: 0, promptTokens: 0, failure: "HTTP 503: busy" },
  ]);
  expect(report).toMatchObject({ completed: 2, failed: 1, seconds: 2, promptTokens: 30, outputTokens: 8 });
  expect(report.failures).toEqual([{ reason: "HTTP 503: busy", count: 1 }]);
  expect([report.requestsPerSecond, report.outputTokensPerSecond, report.totalTokensPerSecond]).toEqual([
    1, 4, 19,
  ]);
  expect([report.ttft.mean, report.itl.p50, report.tpot.mean, report.e2e.mean]).toEqual([300, 20, 70, 565]);
});

describe("arrivals", () => {
  test("have the rate asked for, depend on the seed alone, and are together at rate Infinity", () => {
    const times = arrivalTimes(5000, 10, 1);
    const gaps = times.slice(1).map((time, i) => time - times[i]!);
    const mean = gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length;
    const deviation = Math.sqrt(gaps.reduce((sum, gap) => sum + (gap - mean) ** 2, 0) / gaps.length);
    expect(mean).toBeWithin(95, 105);
    expect(deviation).toBeWithin(92, 108);
    expect(arrivalTimes(5000, 10, 1)).toEqual(times);
    expect(arrivalTimes(5000, 10, 2)).not.toEqual(times);
    expect(new Set(arrivalTimes(5, Infinity, 1))).toEqual(new Set([0]));
  });

  test("no more are under way than allowed, and results keep the order", async () => {
    let active = 0;
    let most = 0;
    const options = { requestRate: Infinity, maxConcurrency: 3, seed: 0 };
    const results = await generateLoad([...Array(12).keys()], options, async (i) => {
      most = Math.max(most, ++active);
      await Bun.sleep((i * 7) % 5);
      active--;
      return i;
    });
    expect([results, most]).toEqual([[...Array(12).keys()], 3]);
  });
});

test("random prompts differ, repeat with the seed and stay in the vocabulary", () => {
  const options = { numPrompts: 3, inputLen: 50, outputLen: 7, vocabSize: 20, seed: 5 };
  const workload = randomWorkload(options);
  expect(randomWorkload(options)).toEqual(workload);
  const [first, second] = workload.requests;
  expect(first!.promptTokenIds).not.toEqual(second!.promptTokenIds);
  expect(first).toMatchObject({ maxTokens: 7 });
  for (const id of first!.promptTokenIds) expect(id).toBeWithin(0, 20);
});

test("a failed request says why", async () => {
  const refusals: readonly (readonly [Response | string, string])[] = [
    [
      Response.json({ error: { message: "the queue\nis full" } }, { status: 503 }),
      "HTTP 503: the queue\nis full",
    ],
    [event({ error: { message: "out of luck" } }), "out of luck"],
    [event({ choices: [{ text: "x" }] }), "the stream broke off"],
    ["data: [DONE]\n\n", "the completion is empty"],
  ];
  for (const [reply, reason] of refusals) {
    using server = fakeServer(() => (typeof reply === "string" ? new Response(reply) : reply));
    expect((await new CompletionClient(server.url, undefined).complete("{}", 1)).failure).toBe(reason);
  }
});

describe("octavo bench serve", () => {
  test("replays a workload against a server and reports it", async () => {
    using server = fakeServer();
    using folder = temporaryFolder();
    const requests = Array.from({ length: 6 }, (_, i) => ({ promptTokenIds: [i, i, i], maxTokens: i + 2 }));
    const workload = { temperature: 0.6, ignoreEos: true, requests };
    writeFileSync(folder.file("workload.json"), JSON.stringify(workload));
    const { code, stdout, stderr } = await octavo([
      ...["bench", "serve", "--base-url", `${server.url}/v1`, "--workload", folder.file("workload.json")],
      ...["--num-prompts", "5", "--max-concurrency", "2", "--api-key", "secret"],
      ...["--json", folder.file("result.json")],
    ]);
    expect([code, stderr]).toEqual([0, ""]);
    const [warmUp, ...asked] = server.asked;
    expect(warmUp).toMatchObject({ model: "fake", max_tokens: 4 });
    expect(asked).toHaveLength(5);
    expect(asked[3]).toMatchObject({
      ...{ prompt: [3, 3, 3], max_tokens: 5, temperature: 0.6, ignore_eos: true },
      ...{ stream: true, stream_options: { include_usage: true }, return_token_ids: true },
    });
    expect([server.mostActive(), server.authorizations]).toEqual([2, new Set(["Bearer secret"])]);
    const result = JSON.parse(readFileSync(folder.file("result.json"), "utf8"));
    expect(result).toMatchObject({
      completed: 5,
      failed: 0,
      promptTokens: 15,
      outputTokens: 20,
      maxConcurrency: 2,
    });
    expect(result.itl.p50).toBeGreaterThan(0);
    for (const part of ["Output tokens/s", "Time to first token", "p99"]) expect(stdout).toContain(part);
  });

  test("shows progress at once, whatever the server takes for its first token", async () => {
    const silent = new Response(new ReadableStream({}));
    using server = fakeServer(() => silent);
    const args = ["bench", "serve", "--base-url", server.url, "--num-prompts", "7"];
    using session = new TerminalSession("src/cli/main.ts", args);
    await session.shows("Requests");
    await session.shows("0%");
  });

  test("more streams at once than Bun's fetch allows by default", async () => {
    using server = fakeServer(undefined, 300);
    const args = ["bench", "serve", "--base-url", server.url, "--num-prompts", "300", "--output-len", "10"];
    const { code, stdout } = await octavo(args);
    expect([code, stdout]).toEqual([0, expect.stringMatching(/completed +300\n/)]);
    expect(server.mostActive()).toBe(300);
  });

  test("some failures are counted; if all fail, or no server answers, the exit code is 69", async () => {
    let requests = 0;
    const busy = () => Response.json({ error: { message: "busy" } }, { status: 503 });
    using sometimes = fakeServer(() => (++requests % 2 === 0 ? busy() : undefined));
    const args = ["bench", "serve", "--num-prompts", "4", "--output-len", "2", "--base-url"];
    const { code, stdout } = await octavo([...args, sometimes.url]);
    expect([code, stdout]).toEqual([0, expect.stringContaining("2 × HTTP 503: busy")]);
    using never = fakeServer(({ max_tokens }) => (max_tokens === 2 ? busy() : undefined));
    expectRefusal(await octavo([...args, never.url]), 69, "no request succeeded");
    expectRefusal(await octavo([...args, "http://127.0.0.1:1"]), 69, "127.0.0.1:1");
  });

  test.each([
    [["--request-rate", "0"], 64, "0"],
    [["--num-prompts", "0"], 64, "0"],
    [["--base-url", "nowhere"], 64, "nowhere"],
    [["--workload", "no-such.json"], 66, "no-such.json"],
    [["--workload", "package.json"], 64, "requests"],
  ])("refuses %j", async (args, code, part) => {
    expectRefusal(await octavo(["bench", "serve", ...args]), code, part);
  });
});
