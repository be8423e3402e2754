import type { Command } from "commander";
import { resolveEngineConfig } from "../base/config.ts";
import { resolveSamplingParams, type SamplingParams } from "../base/sampling-params.ts";
import { engineOptions } from "./engine-flags.ts";
import { addFlags, type FlagTable, givenFlags } from "./flag-table.ts";
import { integerValue, listValue, numberValue, seedValue } from "./flag-values.ts";

type SamplingFlag = (typeof SHARED)[number] | "n" | "logprobs";

const SHARED = [
  ...(["maxTokens", "minTokens", "temperature", "topP", "topK", "minP", "repetitionPenalty"] as const),
  ...(["presencePenalty", "frequencyPenalty", "seed", "stop", "ignoreEos"] as const),
] as const;

export const SAMPLING_FLAGS: FlagTable<SamplingFlag> = {
  maxTokens: ["--max-tokens <count>", "longest output, in tokens", integerValue],
  minTokens: ["--min-tokens <count>", "shortest output, in tokens", integerValue],
  temperature: ["--temperature <value>", "0 is greedy", numberValue],
  topP: ["--top-p <share>", "keep the most likely tokens of this total probability", numberValue],
  topK: ["--top-k <count>", "keep the k most likely tokens", integerValue],
  minP: ["--min-p <share>", "keep tokens at least this fraction as likely as the likeliest", numberValue],
  repetitionPenalty: ["--repetition-penalty <factor>", "above 1 discourages tokens seen before", numberValue],
  presencePenalty: [
    "--presence-penalty <value>",
    "subtracted from logits of tokens generated before",
    numberValue,
  ],
  frequencyPenalty: ["--frequency-penalty <value>", "the same, times their count", numberValue],
  seed: [
    "--seed <integer>",
    "another seed, another text; the same one repeats it (default: as in the run before)",
    seedValue,
  ],
  stop: ["--stop <text>", "end the text here; repeatable", listValue],
  ignoreEos: ["--ignore-eos", "go on after an end-of-sequence token"],
  n: ["--n <count>", "completions per prompt", integerValue],
  logprobs: ["--logprobs <count>", "log-probabilities of this many tokens (with --json)", integerValue],
};

const GROUP = "Sampling (defaults: the model's generation_config.json):";

/** Adds the sampling parameters as flags; for `chat`, those that one streamed reply can have. */
export function addSamplingFlags(command: Command, kind: "batch" | "chat" = "batch"): Command {
  const { n, logprobs, ...shared } = SAMPLING_FLAGS;
  return addFlags(command, GROUP, kind === "chat" ? shared : { ...shared, n, logprobs });
}

/**
 * The sampling parameters that were given, over those that the command has of its own. They are checked as far as can
 * be without a model, so that a mistake is known before one is loaded.
 * @throws ConfigError or InvalidRequestError naming the option or parameter.
 */
export function samplingParams(command: Command, own: SamplingParams = {}): SamplingParams {
  const params = { ...own, ...givenFlags<SamplingParams>(command, SAMPLING_FLAGS) };
  const { maxLogprobs } = resolveEngineConfig(engineOptions(command));
  resolveSamplingParams({ maxTokens: null, ...params }, { vocabSize: Number.MAX_SAFE_INTEGER, maxLogprobs });
  return params;
}
