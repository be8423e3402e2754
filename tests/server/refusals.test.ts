import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { errorOf, GREEDY, HI, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start({ maxQueueLength: 64 }, { maxModelLen: 256, kvCacheMemoryBytes: 2 ** 22 });
});
afterAll(async () => {
  expect(server.llm.numUnfinished).toBe(0);
  await server[Symbol.asyncDispose]();
});

type Case = readonly [fields: object, param: string | null, code?: string, status?: number];

const COMPLETIONS = "/v1/completions";
const CHAT = "/v1/chat/completions";
const refuse = (path: string, body: object) => errorOf(server.post(path, body));

/** Each with a value that asks for something. */
const UNSUPPORTED: Readonly<Record<string, unknown>> = {
  ...{ guided_decoding_backend: "x", guided_whitespace_pattern: "x", structural_tag: {} },
  ...{ suffix: "end", use_beam_search: true, length_penalty: 2, early_stopping: true },
  ...{ logits_processors: ["x"], logprob_token_ids: [1], prompt_embeds: "x", kv_transfer_params: {} },
  ...{ vllm_xargs: {}, mm_processor_kwargs: {} },
  ...{ verbosity: "low", prediction: {}, audio: {}, modalities: ["audio"] },
  ...{ web_search_options: {}, service_tier: "flex", truncation_side: "right", functions: [] },
  ...{ function_call: "auto", bootstrap_host: "a", bootstrap_port: 1, bootstrap_room: 1 },
  ...{ disagg_prefill_dp_rank: 0, data_parallel_rank: 1, return_hidden_states: true, lora_path: "a" },
  ...{ session_params: {}, custom_logit_processor: "x" },
  ...{ disaggregated_params: { request_type: "generation_only" }, ec_transfer_params: {} },
};

describe("what is not supported is named", () => {
  test.each(Object.entries(UNSUPPORTED))("%s", async (name, value) => {
    for (const [path, input] of [
      [COMPLETIONS, { prompt: PROMPT }],
      [CHAT, { messages: HI }],
    ] as const) {
      const error = await refuse(path, { ...input, ...GREEDY, [name]: value });
      expect(error).toMatchObject({ status: 501, code: "unsupported_parameter", param: name });
      expect(error.message).toStartWith(`${name}:`);
    }
  });

  test("and a value that asks for nothing is accepted", async () => {
    const harmless = {
      ...{ response_format: { type: "text" }, suffix: "", use_beam_search: false, length_penalty: 1 },
      ...{ modalities: ["text"], service_tier: "auto", priority: 0, include_reasoning: true },
      ...{ user: "u", metadata: { a: "b" }, store: true, best_of: 1, n: 1, guided_json: null },
      ...{ bootstrap_host: null, bootstrap_room: null, data_parallel_rank: 0, return_hidden_states: false },
      ...{ parallel_tool_calls: true, stream_options: null, cache_salt: "s", stop: null, seed: null },
    };
    const reply = await server.post(COMPLETIONS, { prompt: PROMPT, ...GREEDY, max_tokens: 1, ...harmless });
    expect(reply.status).toBe(200);
  });
});

/** " little" and " girl", of one token each. */
const LITTLE_GIRL = [378, 431];

describe("completions", () => {
  const cases: readonly Case[] = [
    [{ prompt: undefined }, "prompt"],
    [{ prompt: "" }, "prompt", "empty_prompt"],
    [{ prompt: [] }, "prompt", "empty_prompt"],
    [{ prompt: [""] }, "prompt", "empty_prompt"],
    [{ prompt: [[]] }, "prompt", "empty_prompt"],
    [{ prompt: new Array(129).fill("a") }, "prompt"],
    [{ prompt: ["a", [1]] }, "prompt"],
    [{ prompt: [1, [1]] }, "prompt"],
    [{ prompt: { text: "a" } }, "prompt"],
    ...[-1, 4096, 1.5, 2 ** 53, "5", null].map(
      (id): Case => [{ prompt: [1, id] }, "prompt", "invalid_token_id"],
    ),
    [{ prompt: new Array(256).fill(5) }, "prompt", "context_length_exceeded"],
    [{ max_tokens: 253 }, "max_tokens", "context_length_exceeded"],
    ...[0, -1, 1.5, "10"].map((max_tokens): Case => [{ max_tokens }, "max_tokens"]),
    [{ max_tokens: 1e9 }, "max_tokens", "context_length_exceeded"],
    ...[0, 129, 1e9, 1.5].map((n): Case => [{ n, temperature: 1 }, "n"]),
    [{ n: 2, temperature: 0 }, "n"],
    [{ n: 2, best_of: 1, temperature: 1 }, "best_of"],
    [{ best_of: 17 }, "best_of"],
    [{ best_of: 2 }, "best_of", "unsupported_parameter", 501],
    ...[-1, 21].map((logprobs): Case => [{ logprobs }, "logprobs"]),
    [{ logprobs: true }, "logprobs"],
    [{ prompt_logprobs: 1, stream: true }, "prompt_logprobs"],
    [{ echo: true, logprobs: 1, prompt_logprobs: 2 }, "prompt_logprobs"],
    ...[-1, 3].map((temperature): Case => [{ temperature }, "temperature"]),
    ...[0, 1.1, "1"].map((top_p): Case => [{ top_p }, "top_p"]),
    [{ top_k: -2 }, "top_k"],
    [{ min_p: 2 }, "min_p"],
    [{ presence_penalty: 3 }, "presence_penalty"],
    ...[0, 1e-30, 1e30].map((repetition_penalty): Case => [{ repetition_penalty }, "repetition_penalty"]),
    [
      { allowed_token_ids: LITTLE_GIRL, bad_words: ["little", "girl"] },
      "allowed_token_ids",
      "no_token_allowed",
    ],
    [{ allowed_token_ids: [4089, 4091], min_tokens: 1 }, "allowed_token_ids", "no_token_allowed"],
    [
      { allowed_token_ids: [4089, 4091, 378], min_tokens: 1, bad_words: ["little"] },
      ...(["allowed_token_ids", "no_token_allowed"] as const),
    ],
    [
      { allowed_token_ids: [5, 378], min_tokens: 1, stop_token_ids: [5], bad_words: ["little"] },
      ...(["allowed_token_ids", "no_token_allowed"] as const),
    ],
    [{ logit_bias: { 4096: 1 } }, "logit_bias"],
    [{ logit_bias: { 1: 101 } }, "logit_bias"],
    [{ logit_bias: Object.fromEntries(Array.from({ length: 1025 }, (_, i) => [i, 1])) }, "logit_bias"],
    [{ stop: new Array(17).fill("a") }, "stop"],
    [{ stop: "" }, "stop"],
    [{ stop: "a".repeat(1025) }, "stop"],
    [{ stop: 5 }, "stop"],
    [{ stop_token_ids: [4096] }, "stop_token_ids"],
    [{ allowed_token_ids: [4096] }, "allowed_token_ids"],
    [{ allowed_token_ids: [] }, "allowed_token_ids"],
    [{ bad_words: [" "] }, "bad_words"],
    [{ min_tokens: 9 }, "min_tokens"],
    [{ min_tokens: 300, max_tokens: null }, "min_tokens"],
    [{ seed: 1.5 }, "seed"],
    [{ model: "other" }, "model", "model_not_found", 404],
    [{ model: 5 }, "model"],
    [{ stream_options: { include_usage: true } }, "stream_options"],
    [{ stream: true, stream_options: { x: 1 } }, "stream_options.x"],
    [{ stream: "yes" }, "stream"],
    [{ stream_interval: 0 }, "stream_interval"],
    [{ cache_salt: "" }, "cache_salt"],
    [{ cache_salt: "é".repeat(129) }, "cache_salt"],
    [{ cache_salt: 5 }, "cache_salt"],
    [{ truncate_prompt_tokens: 0 }, "truncate_prompt_tokens"],
    [{ request_id: "a\nb" }, "request_id"],
    [{ priority: 1 }, "priority", "unsupported_parameter"],
    [{ chat_template: "{{ x }}" }, "chat_template", "unsupported_parameter"],
    [{ spaces_between_special_tokens: false }, "spaces_between_special_tokens", "unsupported_parameter"],
  ];
  test.each(cases.map((entry) => [JSON.stringify(entry[0]).slice(0, 60), entry] as const))(
    "%s",
    async (_, [fields, param, code = "invalid_value", status = 400]) => {
      const error = await refuse(COMPLETIONS, { prompt: PROMPT, ...GREEDY, ...fields });
      expect(error).toMatchObject({ status, code, param });
      expect(error.message).not.toMatch(/[a-z]+(Tokens|Ids|Words|Logprobs)\b/);
    },
  );

  test("more completions than could ever be admitted", async () => {
    const body = { prompt: new Array(128).fill("a"), n: 128, max_tokens: 1 };
    expect(await refuse(COMPLETIONS, body)).toMatchObject({ status: 400, param: "n" });
  });
});

describe("chat", () => {
  const image = { type: "image_url", image_url: { url: "http://127.0.0.1:1/x.png" } };
  const cases: readonly Case[] = [
    [{ messages: undefined }, "messages"],
    [{ messages: [] }, "messages", "empty_prompt"],
    [{ messages: "Hi" }, "messages"],
    [{ messages: ["Hi"] }, "messages[0]"],
    [{ messages: [{ content: "Hi" }] }, "messages[0].role"],
    [{ messages: [{ role: "robot", content: "Hi" }] }, "messages[0].role"],
    [{ messages: [...HI, { role: "user" }] }, "messages[1].content"],
    [{ messages: [{ role: "user", content: 5 }] }, "messages[0].content"],
    [{ messages: [{ role: "user", content: [{ type: "text" }] }] }, "messages[0].content[0]"],
    ...[image, { type: "input_audio" }, { type: "file" }].map(
      (part): Case => [
        { messages: [{ role: "user", content: [{ type: "text", text: "a" }, part] }] },
        ...(["messages[0].content[1]", "unsupported_content"] as const),
      ],
    ),
    [{ messages: [{ role: "user", content: "Hi ".repeat(300) }] }, "messages", "context_length_exceeded"],
    [
      { max_completion_tokens: 300, max_tokens: undefined },
      "max_completion_tokens",
      "context_length_exceeded",
    ],
    [{ max_completion_tokens: 3, max_tokens: 4 }, "max_completion_tokens"],
    [{ top_logprobs: 2 }, "top_logprobs"],
    [{ logprobs: true, top_logprobs: 21 }, "top_logprobs"],
    [{ logprobs: 2 }, "logprobs"],
    [{ tools: [] }, "tools"],
    [{ tools: [{ type: "function", function: { name: "f" } }] }, "tools", "unsupported_parameter"],
    [{ tool_choice: "auto" }, "tool_choice"],
    [{ chat_template: "{{ x }}" }, "chat_template", "unsupported_parameter"],
    [{ chat_template_kwargs: { chat_template: "x" } }, "chat_template_kwargs", "unsupported_parameter"],
    [{ chat_template_kwargs: { messages: [] } }, "chat_template_kwargs"],
    [{ chat_template_kwargs: [] }, "chat_template_kwargs"],
    [{ continue_final_message: true, add_generation_prompt: true }, "continue_final_message"],
    [{ n: 129, temperature: 1 }, "n"],
  ];
  test.each(cases.map((entry) => [JSON.stringify(entry[0]).slice(0, 60), entry] as const))(
    "%s",
    async (_, [fields, param, code = "invalid_value", status = 400]) => {
      const error = await refuse(CHAT, { messages: HI, ...GREEDY, ...fields });
      expect(error).toMatchObject({ status, code, param });
    },
  );

  test("tools are shown to the template with tool_choice none", async () => {
    const tools = [{ type: "function", function: { name: "get_weather", parameters: {} } }];
    const body = { messages: HI, ...GREEDY, max_tokens: 1, tools, tool_choice: "none" };
    expect((await server.post(CHAT, body)).status).toBe(200);
  });

  test("a developer's message is the system's", async () => {
    const render = async (role: string) => {
      const reply = await server.post(`${CHAT}/render`, { messages: [{ role, content: "Be brief" }, ...HI] });
      return reply.json();
    };
    expect(await render("developer")).toEqual(await render("system"));
  });
});

test("fields that nothing knows are accepted, counted, and logged once a name", async () => {
  const body = { prompt: PROMPT, ...GREEDY, max_tokens: 1, tempreature: 2, __proto__x: 1 };
  for (let i = 0; i < 2; i++) expect((await server.post(COMPLETIONS, body)).status).toBe(200);
  expect(await server.metric("octavo:unknown_fields_total", 'field="tempreature"')).toBe(2);
  expect(server.lines.filter((line) => line.includes('"field":"tempreature"'))).toHaveLength(1);

  const many = Object.fromEntries(Array.from({ length: 100 }, (_, i) => [`unknown${i}`, i]));
  expect((await server.post(COMPLETIONS, { ...body, ...many })).status).toBe(200);
  expect(await server.metric("octavo:unknown_fields_total", 'field="other"')).toBeGreaterThan(0);
});

describe("bad words that leave no token only once the text has come so far", () => {
  // Of these tokens each is forbidden after any other.
  const body = {
    ...{ prompt: PROMPT, ...GREEDY, allowed_token_ids: LITTLE_GIRL },
    bad_words: ["little little", "little girl", "girl little", "girl girl"],
  };
  const refusal = { type: "invalid_request_error", code: "no_token_allowed", param: "bad_words" };

  test("end the completion with a mistake of the client's", async () => {
    expect(await refuse(COMPLETIONS, body)).toMatchObject({ status: 400, ...refusal });
    expect(await refuse(CHAT, { ...body, prompt: undefined, messages: HI })).toMatchObject({
      ...{ status: 400, ...refusal },
    });
  });

  test("end a stream that has begun", async () => {
    const events = (await (await server.post(COMPLETIONS, { ...body, stream: true })).text()).split("\n\n");
    const [first, last] = events.map((event) => event && JSON.parse(event.slice("data: ".length)));
    expect(["little", "girl"]).toContain(first.choices[0].text.trim());
    expect(last).toEqual({ error: expect.objectContaining(refusal) });
  });

  test("leave alone what others ask for", async () => {
    const [failed, fine] = await Promise.all([
      server.post(COMPLETIONS, body),
      server.post(COMPLETIONS, { prompt: PROMPT, ...GREEDY }),
    ]);
    expect([failed.status, fine.status]).toEqual([400, 200]);
  });
});

describe("near the end of the context", () => {
  const prompt = (tokens: number) => new Array(tokens).fill(5);

  test("a completion without max_tokens has what is left", async () => {
    for (const [tokens, left] of [
      [250, 6],
      [255, 1],
      [200, 16],
    ] as const) {
      const reply = await server.post(COMPLETIONS, {
        prompt: prompt(tokens),
        temperature: 0,
        ignore_eos: true,
      });
      expect(await reply.json()).toMatchObject({
        usage: { completion_tokens: left },
        choices: [{ finish_reason: "length" }],
      });
    }
  });

  test("one that asks for more is refused", async () => {
    const asked = { prompt: prompt(250), temperature: 0, max_tokens: 16 };
    expect(await refuse(COMPLETIONS, asked)).toMatchObject({
      ...{ status: 400, code: "context_length_exceeded", param: "max_tokens" },
    });
    expect(await refuse(COMPLETIONS, { prompt: prompt(250), min_tokens: 7 })).toMatchObject({
      ...{ status: 400, param: "min_tokens" },
    });
  });
});

test.each([
  ["/v1/completions", { prompt: "Hi ".repeat(1_300_000) }, "prompt"],
  ["/v1/completions", { prompt: ["Hi", "Hi ".repeat(1_300_000)] }, "prompt"],
  ["/v1/chat/completions", { messages: [{ role: "user", content: "Hi ".repeat(1_300_000) }] }, "messages"],
])("megabytes of text are refused before they are tokenized: %s", async (path, body, param) => {
  const error = await refuse(path, body);
  expect(error).toMatchObject({ status: 400, code: "context_length_exceeded", param });
  expect(error.message).toMatch(/has 39\d\d\d\d\d bytes/);
});
