import { expect } from "bun:test";
import { type AsyncCreateOptions, AsyncLLM, type CreateOptions } from "../../src/index.ts";
import { fixture } from "../model/fixtures.ts";

export { collect, GREEDY, PROMPT, rejection, SMALL } from "../llm/support.ts";

import { SMALL } from "../llm/support.ts";

export const LONG = { temperature: 0, maxTokens: 400, ignoreEos: true };

/** The embedded model on the CPU. */
export function createAsyncLLM(options: AsyncCreateOptions = {}): Promise<AsyncLLM> {
  return AsyncLLM.create(undefined, { ...SMALL, ...options });
}

/** A model of random weights, ten times as fast, without a tokenizer. */
export const FAST_MODEL = fixture("qwen3").modelDir;
export const FAST_OPTIONS: CreateOptions = { ...SMALL, skipTokenizerInit: true };

/** Nothing is queued, running, or held. */
export async function expectIdle(llm: AsyncLLM): Promise<void> {
  await llm.drain(60);
  expect(llm.numUnfinished).toBe(0);
  expect(llm.secondsWithoutProgress).toBe(0);
  expect(llm.stats).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
}
