import { expect } from "bun:test";
import type { CompletionDelta, CreateOptions, RequestOutput, SamplingParams } from "../../src/index.ts";
import { LLM } from "../../src/index.ts";

/** A small KV cache keeps several models in one test process cheap. */
export const SMALL: CreateOptions = { device: "cpu", kvCacheMemoryBytes: 64 * 2 ** 20 };

export const PROMPT = "Once upon a time";
export const GREEDY: SamplingParams = { temperature: 0, maxTokens: 12 };

/** The embedded model on the CPU. */
export function createLLM(options: CreateOptions = {}): Promise<LLM> {
  return LLM.create(undefined, { ...SMALL, ...options });
}

/** The only completion of the only output. */
export function only(outputs: readonly RequestOutput[]) {
  expect(outputs).toHaveLength(1);
  expect(outputs[0]!.outputs).toHaveLength(1);
  return outputs[0]!.outputs[0]!;
}

export async function complete(llm: LLM, params: SamplingParams, prompt = PROMPT) {
  return only(await llm.generate(prompt, params));
}

export async function collect(deltas: AsyncIterable<CompletionDelta>): Promise<CompletionDelta[]> {
  return Array.fromAsync(deltas);
}

/** What a promise rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

/** The engine holds nothing and still computes what it did before. */
export async function expectUsable(llm: LLM): Promise<void> {
  expect(llm.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
  expect((await complete(llm, { ...GREEDY, maxTokens: 4 })).text).toBe(", there was a");
}
