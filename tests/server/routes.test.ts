import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { version } from "../../package.json";
import { eventually } from "../support.ts";
import { ENDLESS, errorOf, GREEDY, HI, MODEL, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start();
});
afterAll(() => server[Symbol.asyncDispose]());

const json = async (path: string, body?: unknown) =>
  (await (body === undefined ? server.fetch(path) : server.post(path, body))).json();

describe("tokens", () => {
  test("of a prompt, and back", async () => {
    const document = (await json("/tokenize", { prompt: PROMPT, return_token_strs: true })) as {
      tokens: number[];
    };
    expect(document).toMatchObject({ count: 4, max_model_len: 1024, token_strs: expect.any(Array) });
    expect(await json("/detokenize", { tokens: document.tokens })).toEqual({ prompt: PROMPT });
  });

  test("back to text keeps special ones unless asked not to", async () => {
    const { tokens } = (await json("/tokenize", { messages: HI })) as { tokens: number[] };
    const { prompt: all } = (await json("/detokenize", { tokens })) as { prompt: string };
    expect(all).toContain("<|im_start|>user\nHi<|im_end|>");
    expect(await json("/detokenize", { tokens, skip_special_tokens: false })).toEqual({ prompt: all });
    expect(await json("/detokenize", { tokens, skip_special_tokens: true })).toEqual({
      prompt: all.replaceAll(/<\|im_\w+\|>/g, ""),
    });
  });

  test("of a conversation are those that a chat computes", async () => {
    const { tokens, token_strs } = (await json("/tokenize", { messages: HI })) as {
      tokens: number[];
      token_strs: null;
    };
    expect(token_strs).toBeNull();
    const chat = { messages: HI, ...GREEDY, max_tokens: 1, return_token_ids: true };
    expect(await json("/v1/chat/completions", chat)).toMatchObject({ prompt_token_ids: tokens });
    expect(await json("/v1/chat/completions/render", { messages: HI })).toEqual({ token_ids: tokens });
  });

  test("of each prompt of a completion", async () => {
    const { tokens } = (await json("/tokenize", { prompt: PROMPT })) as { tokens: number[] };
    const rendered = await json("/v1/completions/render", { prompt: [PROMPT, PROMPT] });
    expect(rendered).toEqual([{ token_ids: tokens }, { token_ids: tokens }]);
  });

  test("mistakes are named", async () => {
    expect(await errorOf(server.post("/tokenize", {}))).toMatchObject({ status: 400, param: "prompt" });
    const both = { prompt: "a", messages: HI };
    expect(await errorOf(server.post("/tokenize", both))).toMatchObject({ status: 400, param: "prompt" });
    for (const id of [-1, 4096, 1.5, "5"])
      expect(await errorOf(server.post("/detokenize", { tokens: [id] }))).toMatchObject({
        ...{ status: 400, code: "invalid_token_id" },
      });
    const model = { model: "other", prompt: "a" };
    expect(await errorOf(server.post("/tokenize", model))).toMatchObject({ code: "model_not_found" });
  });
});

test("the version", async () => {
  expect(await json("/version")).toEqual({ version });
});

test("the document of the API has the routes and their fields", async () => {
  const document = (await json("/openapi.json")) as {
    openapi: string;
    paths: Record<string, Record<string, { requestBody?: object }>>;
  };
  expect(document.openapi).toBe("3.1.0");
  for (const [path, operations] of Object.entries(document.paths)) {
    for (const method of Object.keys(operations)) {
      const { status } = await server.fetch(path, { method: method.toUpperCase() });
      expect([path, [404, 405].includes(status) && !path.includes("{")]).toEqual([path, false]);
    }
  }
  const body = JSON.stringify(document.paths["/v1/chat/completions"]!["post"]!.requestBody);
  for (const field of ["messages", "temperature", "seed", "max_completion_tokens", "cache_salt"])
    expect(body).toContain(`"${field}"`);
});

test("a completion's line in the log says whose it was and what it took", async () => {
  for (const stream of [false, true]) {
    const logged = server.lines.length;
    await (await server.post("/v1/completions", { prompt: PROMPT, ...GREEDY, n: 1, stream })).text();
    // Lines of requests before this one may come late.
    const completions = () => server.lines.slice(logged).filter((line) => line.includes(`"/v1/completions"`));
    await eventually(() => completions().length > 0);
    expect(JSON.parse(completions().at(-1)!)).toMatchObject({
      ...{ method: "POST", path: "/v1/completions", status: 200, model: MODEL },
      ...{ promptTokens: 4, completionTokens: 8 },
    });
  }
});

test("the prefix cache is emptied unless requests hold it", async () => {
  const running = server.post("/v1/completions", { ...ENDLESS, stream: true });
  const reply = await running;
  await eventually(() => server.llm.stats.running === 1);
  expect(await errorOf(server.post("/reset_prefix_cache", ""))).toMatchObject({ status: 409, code: "busy" });
  expect(await json("/load")).toEqual({ server_load: 1 });
  await reply.body!.cancel();
  await eventually(() => server.llm.numUnfinished === 0);
  expect((await server.post("/reset_prefix_cache", "")).status).toBe(200);
  expect(await json("/load")).toEqual({ server_load: 0 });
});

describe("metrics", () => {
  const GAUGES = [
    ...["num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason"],
    ...["kv_cache_usage_perc", "gpu_cache_usage_perc", "engine_sleep_state", "cache_config_info"],
  ];
  const COUNTERS = [
    ...["prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total"],
    ...["gpu_prefix_cache_queries_total", "gpu_prefix_cache_hits_total", "prompt_tokens_total"],
    ...["prompt_tokens_cached_total", "generation_tokens_total", "request_success_total"],
  ];
  const HISTOGRAMS = [
    ...["time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"],
    ...["request_time_per_output_token_seconds", "request_queue_time_seconds", "request_prompt_tokens"],
    ...["request_inference_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"],
    ...["request_generation_tokens", "request_params_n", "request_params_max_tokens"],
    ...["request_max_num_generation_tokens", "iteration_tokens_total", "request_prefill_kv_computed_tokens"],
  ];

  test("have vLLM's names, types and labels", async () => {
    await json("/v1/completions", { prompt: PROMPT, ...GREEDY });
    const reply = await server.fetch("/metrics");
    expect(reply.headers.get("content-type")).toStartWith("text/plain; version=0.0.4");
    const text = await reply.text();
    const expected = [
      ...GAUGES.map((name) => [name, "gauge"] as const),
      ...COUNTERS.map((name) => [name, "counter"] as const),
      ...HISTOGRAMS.map((name) => [name, "histogram"] as const),
    ];
    for (const [name, type] of expected) {
      expect(text).toContain(`# TYPE vllm:${name} ${type}\n`);
      const sample = type === "histogram" ? `${name}_count` : name;
      expect(text).toContain(`vllm:${sample}{model_name="${MODEL}",engine="0"`);
    }
    expect(text).toMatch(
      /block_size="16",num_gpu_blocks="\d+",num_layer_groups="1",num_states="0",num_state_snapshots="0",cache_dtype="auto"/,
    );
    expect(text).toMatch(/octavo:weights_bytes\{.*,format="bfloat16"\} \d{7}/);
  });

  test("have samples from the start, every family of them", async () => {
    await using fresh = TestServer.over(server.llm, {});
    const text = await (await fresh.fetch("/metrics")).text();
    const families = [...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)];
    expect(families.length).toBeGreaterThan(25);
    for (const [, name, type] of families)
      expect(text).toMatch(new RegExp(`^${name}${type === "histogram" ? "_count" : ""}(\\{.*\\})? \\d`, "m"));
  });

  test("count", async () => {
    const names = [
      ...["vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:prefix_cache_queries_total"],
      ...["vllm:time_to_first_token_seconds_count", "vllm:inter_token_latency_seconds_count"],
      ...["vllm:request_generation_tokens_sum", "vllm:e2e_request_latency_seconds_count"],
      "vllm:request_max_num_generation_tokens_sum",
    ];
    const read = () => Promise.all(names.map((name) => server.metric(name)));
    const lengths = () => server.metric("vllm:request_success_total", 'finished_reason="length"');
    const [before, endings] = [await read(), await lengths()];
    await json("/v1/completions", { prompt: PROMPT, n: 2, max_tokens: 8, seed: 1, ignore_eos: true });
    const after = await read();
    expect(after.map((value, i) => value! - before[i]!)).toEqual([16, 8, 8, 1, 14, 16, 1, 8]);
    expect((await lengths())! - endings!).toBe(2);
  });

  test("know what runs and what waits", async () => {
    const reply = await server.post("/v1/completions", { ...ENDLESS, stream: true });
    await eventually(() => server.llm.stats.running === 1);
    expect(await server.metric("vllm:num_requests_running")).toBe(1);
    expect(await server.metric("vllm:kv_cache_usage_perc")).toBeGreaterThan(0);
    await reply.body!.cancel();
    await eventually(() => server.llm.stats.running === 0);
    expect(await server.metric("vllm:num_requests_running")).toBe(0);
  });
});
