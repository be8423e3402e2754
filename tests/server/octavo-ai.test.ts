import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import type { LanguageModelV4 } from "@ai-sdk/provider";
import {
  embedMany,
  generateObject,
  generateText,
  type LanguageModel,
  type ModelMessage,
  Output,
  stepCountIs,
  streamText,
  tool,
} from "ai";
import { z } from "zod";
import { octavo, octavoEmbedding } from "../../src/ai.ts";
import { eventually } from "../support.ts";
import { AbortedRequests } from "./aborted-requests.ts";
import { Scripted } from "./scripted.ts";
import { HI, MODEL } from "./support.ts";

setDefaultTimeout(300_000);

let model: Scripted;
let local: LanguageModelV4;
/** The same model over HTTP, by the packages and endpoints that people ask servers with. */
let overHttp: Readonly<Record<"compatible" | "chat" | "responses", LanguageModel>>;
beforeAll(async () => {
  model = await Scripted.start("qwen3");
  local = octavo(model.llm);
  const http = { name: "octavo", baseURL: "http://test/v1", apiKey: "none", fetch: model.fetch };
  const openai = createOpenAI(http);
  const compatible = { ...http, includeUsage: true, supportsStructuredOutputs: true };
  overHttp = {
    compatible: createOpenAICompatible(compatible).chatModel(MODEL),
    chat: openai.chat(MODEL),
    responses: openai(MODEL),
  };
});
afterAll(() => model[Symbol.asyncDispose]());

const CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>';
const THOUGHT = "<think>\nA greeting.\n</think>\n\n";
const CITY = z.object({ city: z.enum(["Paris", "Rome"]) });

/** A loop of the tool and an answer: its steps, and the prompts that the model got. */
async function toolLoop(of: LanguageModel, streams: boolean) {
  const said = [`${THOUGHT}Let me see.\n${CALL}`, "It is sunny."];
  model.prompts.length = 0;
  model.reply = () => said.shift()!;
  const execute = async ({ city }: { city: string }) => ({ city, weather: "sunny" });
  const get_weather = tool({ inputSchema: z.object({ city: z.string() }), execute });
  const ask = {
    ...{ model: of, messages: HI as ModelMessage[], tools: { get_weather }, stopWhen: stepCountIs(3) },
    maxRetries: 0,
  };
  const steps = streams ? await streamText(ask).steps : (await generateText(ask)).steps;
  return {
    prompts: model.prompts.map((prompt) => prompt.replace(/call_\w+/g, "call")),
    steps: steps.map(({ text, reasoningText, toolCalls, finishReason, usage }) => ({
      ...{
        text,
        reasoningText,
        finishReason,
        calls: toolCalls.map(({ toolName, input }) => [toolName, input]),
      },
      usage: [usage.inputTokens, usage.outputTokens, usage.outputTokenDetails?.reasoningTokens],
    })),
  };
}

describe("in this process", () => {
  test("a tool loop has thoughts, calls and an answer, and is the same as a stream and over HTTP", async () => {
    const loop = await toolLoop(local, false);
    expect(loop.steps).toMatchObject([
      {
        ...{ text: "Let me see.", reasoningText: "A greeting.", finishReason: "tool-calls" },
        calls: [["get_weather", { city: "Paris" }]],
      },
      { text: "It is sunny.", finishReason: "stop", calls: [] },
    ]);
    expect(loop.prompts[1]).toContain(
      '<tool_response>\n{"city":"Paris","weather":"sunny"}\n</tool_response>',
    );
    expect(await toolLoop(local, true)).toEqual(loop);
    for (const name of ["compatible", "chat", "responses"] as const) {
      for (const streams of [false, true]) {
        const { prompts, steps } = await toolLoop(overHttp[name], streams);
        // @ai-sdk/openai reads thoughts from summaries alone; by references to items it hands them back even so.
        const hasThoughts = name === "compatible";
        const without = { ...(!hasThoughts && { reasoningText: undefined }), usage: undefined };
        const known = loop.steps.map((step) => ({ ...step, ...without }));
        expect(steps.map((step) => ({ ...step, usage: undefined }))).toEqual(known);
        expect(steps.map(({ usage }) => usage.slice(1))).toEqual(
          loop.steps.map(({ usage }) => usage.slice(1)),
        );
        const forgotten = loop.prompts.map((prompt) => prompt.replace(THOUGHT, ""));
        if (name === "chat") expect(prompts).toEqual(forgotten);
        else expect(prompts).toEqual(loop.prompts);
      }
    }
  });

  test("an object is the same over HTTP, whole and in pieces", async () => {
    model.reply = '{"city": "Paris"}';
    for (const of of [local, ...Object.values(overHttp)]) {
      const ask = {
        model: of,
        messages: HI as ModelMessage[],
        maxRetries: 0,
        output: Output.object({ schema: CITY }),
      };
      expect((await generateText(ask)).output).toEqual({ city: "Paris" });
      const stream = streamText(ask);
      const pieces = await Array.fromAsync(stream.partialOutputStream);
      expect([pieces.at(-1), await stream.output]).toEqual([{ city: "Paris" }, { city: "Paris" }]);
    }
  });

  test("text comes in pieces, with thoughts before it", async () => {
    model.reply = `${THOUGHT}Hello there!`;
    const { fullStream } = streamText({ model: local, messages: HI, maxRetries: 0 });
    const kinds: string[] = [];
    let text = "";
    for await (const part of fullStream) {
      if (part.type !== kinds.at(-1)) kinds.push(part.type);
      if (part.type === "text-delta") text += part.text;
    }
    expect(text).toBe("Hello there!");
    expect(kinds).toEqual([
      ...["start", "start-step", "reasoning-start", "reasoning-delta", "reasoning-end"],
      ...["text-start", "text-delta", "text-end", "finish-step", "finish"],
    ]);
  });

  test("a call's input comes in pieces, and whole at its end", async () => {
    model.reply = CALL;
    const { stream } = await local.doStream({
      prompt: [{ role: "user", content: [{ type: "text", text: "Hi" }] }],
      tools: [{ type: "function", name: "get_weather", inputSchema: { type: "object" } }],
    });
    const kinds: string[] = [];
    let input = "";
    for await (const part of stream) {
      if (part.type !== kinds.at(-1)) kinds.push(part.type);
      if (part.type === "tool-input-delta") input += part.delta;
      if (part.type === "tool-call") expect(part).toMatchObject({ toolName: "get_weather", input });
    }
    expect(JSON.parse(input)).toEqual({ city: "Paris" });
    expect(kinds).toEqual([
      ...["stream-start", "response-metadata", "tool-input-start", "tool-input-delta", "tool-input-end"],
      ...["tool-call", "finish"],
    ]);
  });

  test("an object keeps to its schema, after thoughts or without", async () => {
    const real = octavo(model.server.llm);
    const options = { model: real, schema: CITY, messages: HI, temperature: 2, maxRetries: 0 };
    const { object } = await generateObject({ ...options, maxOutputTokens: 60, reasoning: "none" } as never);
    expect(CITY.safeParse(object).success).toBe(true);
  });

  test("a tool that must be called is called", async () => {
    const { toolCalls } = await generateText({
      ...{
        model: octavo(model.server.llm),
        messages: HI,
        temperature: 2,
        maxOutputTokens: 100,
        maxRetries: 0,
      },
      ...{ tools: { pick: tool({ inputSchema: CITY }) }, toolChoice: { type: "tool", toolName: "pick" } },
      providerOptions: { octavo: { chatTemplateKwargs: { enable_thinking: false } } },
    });
    expect(toolCalls).toHaveLength(1);
    expect(CITY.safeParse(toolCalls[0]!.input).success).toBe(true);
  });

  test("an aborted stream ends its request", async () => {
    const { llm } = model.server;
    using aborted = new AbortedRequests();
    const controller = new AbortController();
    const { fullStream } = streamText({
      ...{ model: octavo(llm), messages: HI, maxRetries: 0, abortSignal: controller.signal },
      providerOptions: { octavo: { ignoreEos: true } },
    });
    for await (const part of fullStream) if (/-delta$/.test(part.type)) controller.abort();
    await eventually(() => llm.numUnfinished === 0);
    expect(aborted.ids.map(({ length }) => length)).toEqual([1]);
  });

  test("vectors are the library's", async () => {
    const { llm } = model.server;
    const values = ["A dog runs.", "The sky is blue."];
    const { embeddings } = await embedMany({ model: octavoEmbedding(llm, { pooling: "mean" }), values });
    const direct = await llm.embed(values, { pooling: "mean" });
    expect(embeddings).toEqual(direct.map((vector) => Array.from(vector)));
  });

  test.each([
    ["prompt", { messages: [{ role: "user", content: [{ type: "image", image: new Uint8Array(4) }] }] }],
    ["n", { messages: HI, providerOptions: { octavo: { n: 2 } } }],
    ["temperature", { messages: HI, temperature: 9 }],
  ])("%s is refused by its name", async (param, options) => {
    const call = generateText({ model: local, maxRetries: 0, ...options } as never);
    const error = await call.then(
      () => undefined,
      (cause: unknown) => cause,
    );
    expect(error).toMatchObject({ param });
  });
});
