import type { Command } from "commander";
import type { SamplingParams } from "../base/sampling-params.ts";
import { integerValue, listValue, numberValue, seedValue } from "./program.ts";

/** Adds the sampling parameters as flags. */
export function addSamplingFlags(command: Command): Command {
  return command
    .optionsGroup("Sampling (defaults: the model's generation_config.json):")
    .option("--max-tokens <count>", "longest output, in tokens", integerValue)
    .option("--min-tokens <count>", "shortest output, in tokens", integerValue)
    .option("--temperature <value>", "0 is greedy", numberValue)
    .option("--top-p <share>", "keep the most likely tokens of this total probability", numberValue)
    .option("--top-k <count>", "keep the k most likely tokens", integerValue)
    .option("--min-p <share>", "keep tokens at least this fraction as likely as the likeliest", numberValue)
    .option("--repetition-penalty <factor>", "above 1 discourages tokens seen before", numberValue)
    .option("--presence-penalty <value>", "subtracted from logits of tokens generated before", numberValue)
    .option("--frequency-penalty <value>", "the same, times their count", numberValue)
    .option("--seed <integer>", "same seed, same text", seedValue)
    .option("--stop <text>", "end the text here; repeatable", listValue)
    .option("--ignore-eos", "go on after an end-of-sequence token")
    .option("--n <count>", "completions per prompt", integerValue)
    .option("--logprobs <count>", "log-probabilities of this many tokens (with --json)", integerValue);
}

const NAMES: readonly (keyof SamplingParams)[] = [
  ...(["maxTokens", "minTokens", "temperature", "topP", "topK", "minP", "repetitionPenalty"] as const),
  ...(["presencePenalty", "frequencyPenalty", "seed", "stop", "ignoreEos", "n", "logprobs"] as const),
];

/** The sampling parameters among the parsed flags. */
export function samplingParams(command: Command): SamplingParams {
  const given = NAMES.filter((name) => command.getOptionValue(name) !== undefined);
  return Object.fromEntries(given.map((name) => [name, command.getOptionValue(name)]));
}
