import { basename } from "node:path";
import { readWorkload, type Workload } from "../src/cli/bench/workload.ts";
import type { LLM, RequestOutput, SamplingParams } from "../src/index.ts";

export interface NamedWorkload extends Workload {
  readonly name: string;
}

/** A recorded workload, named after its file. @throws as `readWorkload`. */
export function recordedWorkload(file: string): NamedWorkload {
  return { ...readWorkload(file), name: basename(file, ".json") };
}

/** Greedy streams that differ in their first token, all of one length. */
export function streams(count: number, promptTokens: number, maxTokens: number): NamedWorkload {
  const requests = Array.from({ length: count }, (_, stream) => ({
    promptTokenIds: Array.from({ length: promptTokens }, (_, i) => (stream * 131 + i * 17) % 256),
    maxTokens,
  }));
  return {
    name: count === 1 ? "1 stream" : `${count} streams`,
    temperature: 0,
    ignoreEos: true,
    requests,
  };
}

export function samplingOf(workload: Workload): SamplingParams[] {
  const { temperature, ignoreEos, requests } = workload;
  return requests.map(({ maxTokens }) => ({ temperature, ignoreEos, maxTokens }));
}

/**
 * Seconds of one `LLM.generate` call: scheduling, sampling and read-back included.
 * @throws Error when any request got fewer or more tokens than the workload says.
 */
export async function timeGenerate(llm: LLM, workload: Workload): Promise<number> {
  const prompts = workload.requests.map(({ promptTokenIds }) => ({ promptTokenIds }));
  const params = samplingOf(workload);
  await forgetPrefixes(llm);
  const started = performance.now();
  const outputs = await llm.generate(prompts, params);
  const seconds = (performance.now() - started) / 1000;
  checkOutputs(workload, outputs);
  return seconds;
}

/** Runs must not find the blocks of the run before. The last step in flight may still hold some. */
async function forgetPrefixes(llm: LLM): Promise<void> {
  for (let attempt = 0; !llm.resetPrefixCache(); attempt++) {
    if (attempt === 100) throw new Error("the prefix cache is still in use after the last run");
    await Bun.sleep(1);
  }
}

export function checkOutputs(workload: Workload, outputs: readonly RequestOutput[]): void {
  for (const [i, { maxTokens }] of workload.requests.entries()) {
    const [completion] = outputs[i]!.outputs;
    if (completion!.error) throw completion!.error;
    if (workload.ignoreEos && completion!.tokenIds.length !== maxTokens)
      throw new Error(`request ${i} got ${completion!.tokenIds.length} of ${maxTokens} tokens`);
  }
}
