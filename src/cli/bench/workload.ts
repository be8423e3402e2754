import { ConfigError, messageOf } from "../../base/errors.ts";
import { SplitMix64 } from "../../base/random.ts";
import { readTextFile } from "../text-file.ts";

/** Prompts as token ids, and how many tokens to generate for each: the format of bench/workloads/. */
export interface Workload {
  readonly temperature: number;
  readonly ignoreEos: boolean;
  readonly requests: readonly { readonly promptTokenIds: readonly number[]; readonly maxTokens: number }[];
}

export interface RandomWorkloadOptions {
  readonly numPrompts: number;
  /** Tokens of each prompt, and tokens to generate. */
  readonly inputLen: number;
  readonly outputLen: number;
  /** Token ids are drawn below this. */
  readonly vocabSize: number;
  readonly seed: number;
}

/** Greedy requests of equal lengths whose prompts share no prefix. */
export function randomWorkload(options: RandomWorkloadOptions): Workload {
  const { numPrompts, inputLen, outputLen, vocabSize } = options;
  const random = new SplitMix64(options.seed);
  const tokenId = () => Number(random.next() % BigInt(vocabSize));
  const requests = Array.from({ length: numPrompts }, () => ({
    promptTokenIds: Array.from({ length: inputLen }, tokenId),
    maxTokens: outputLen,
  }));
  return { temperature: 0, ignoreEos: true, requests };
}

/** Reads a recorded workload: `{ temperature, ignoreEos, requests: [{ promptTokenIds, maxTokens }] }`. */
export function readWorkload(file: string): Workload {
  const text = readTextFile(file);
  let workload: Partial<Workload> | null;
  try {
    workload = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError("workload", `${file}: ${messageOf(cause)}`, { cause });
  }
  const { temperature = 1, ignoreEos = false, requests } = workload ?? {};
  const isRequest = (entry: Workload["requests"][number]) =>
    Array.isArray(entry?.promptTokenIds) && Number.isSafeInteger(entry.maxTokens);
  if (!Array.isArray(requests) || requests.length === 0 || !requests.every(isRequest))
    throw new ConfigError("workload", `${file} must hold requests of promptTokenIds and maxTokens`);
  return { temperature, ignoreEos, requests };
}
