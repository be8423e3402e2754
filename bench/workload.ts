import { basename } from "node:path";
import { InvalidArgumentError } from "commander";
import { readWorkload, type Workload } from "../src/cli/bench/workload.ts";
import type { LLM, RequestOutput, SamplingParams } from "../src/index.ts";

/** Token ids that all models have. */
const LEAST_VOCABULARY = 256;

export interface NamedWorkload extends Workload {
  readonly name: string;
  /** The first request asks for the log-probabilities of its tokens. */
  readonly logprobs?: boolean;
}

/** A recorded workload, named after its file. @throws as `readWorkload`. */
export function recordedWorkload(file: string): NamedWorkload {
  return { ...readWorkload(file), name: basename(file, ".json") };
}

/** Greedy streams that differ in their first token, all of one length, e.g. `16x32+128`. */
export function streams(count: number, promptTokens: number, maxTokens: number): NamedWorkload {
  const requests = Array.from({ length: count }, (_, stream) => ({
    promptTokenIds: Array.from({ length: promptTokens }, (_, i) => (stream * 131 + i * 17) % 256),
    maxTokens,
  }));
  return {
    name: `${count}x${promptTokens}+${maxTokens}`,
    temperature: 0,
    ignoreEos: true,
    requests,
  };
}

/**
 * Streams by their name: `COUNTxPROMPT+OUTPUT`, lengths in tokens; `:logprobs` at the end lets the first stream ask for
 * log-probabilities.
 * @throws InvalidArgumentError for another text.
 */
export function streamsValue(text: string, previous: readonly NamedWorkload[] = []): NamedWorkload[] {
  const [, count, prompt, output, suffix] = /^(\d+)x(\d+)\+(\d+)(:logprobs)?$/.exec(text) ?? [];
  const sizes = [count, prompt, output].map(Number) as [number, number, number];
  if (!sizes.every((size) => size >= 1))
    throw new InvalidArgumentError(`"${text}" is not COUNTxPROMPT+OUTPUT, as 16x32+128.`);
  const workload = streams(...sizes);
  return [...previous, suffix === undefined ? workload : { ...workload, name: text, logprobs: true }];
}

/** The workload so many times, of which each begins with other tokens: no copy finds what another has cached. */
export function copies(workload: NamedWorkload, count: number): NamedWorkload {
  if (count === 1) return workload;
  const requests = Array.from({ length: count }, (_, copy) =>
    workload.requests.map(({ promptTokenIds: [first, ...rest], maxTokens }) => ({
      promptTokenIds: [(first! + copy) % LEAST_VOCABULARY, ...rest],
      maxTokens,
    })),
  );
  return { ...workload, name: `${count} × ${workload.name}`, requests: requests.flat() };
}

export function samplingOf({ temperature, ignoreEos, requests, logprobs }: NamedWorkload): SamplingParams[] {
  return requests.map(({ maxTokens }, i) => ({
    ...{ temperature, ignoreEos, maxTokens },
    ...(logprobs && i === 0 && { logprobs: 1 }),
  }));
}

/**
 * Seconds of one `LLM.generate` call: scheduling, sampling and read-back included.
 * @throws Error when any request got fewer or more tokens than the workload says.
 */
export async function timeGenerate(llm: LLM, workload: NamedWorkload): Promise<number> {
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

/**
 * Tokens that each running row of a decode step attends to, the step's own included: the first step is 1, and all requests
 * have started before it.
 */
export function contextLengths({ requests }: Workload, step: number): number[] {
  return requests
    .filter(({ maxTokens }) => maxTokens - 1 >= step)
    .map(({ promptTokenIds }) => promptTokenIds.length + step);
}
