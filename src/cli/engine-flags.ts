import type { Command } from "commander";
import type { EngineOptions } from "../base/config.ts";
import { integerValue, numberValue } from "./program.ts";

/** Adds the engine's options, one for one, as flags; commander gives them back in camelCase. */
export function addEngineFlags(command: Command): Command {
  return command
    .optionsGroup("Engine:")
    .option("--device <name>", "auto, cuda or cpu (default: auto)")
    .option("--dtype <name>", "auto, bfloat16, float16 or float32 (default: auto)")
    .option(
      "--max-model-len <tokens>",
      "prompt plus output of one sequence (default: the model's)",
      integerValue,
    )
    .option("--max-num-seqs <count>", "sequences that run at once (default: 256)", integerValue)
    .option("--max-num-batched-tokens <tokens>", "tokens computed in one step (default: 16384)", integerValue)
    .option("--block-size <tokens>", "tokens of a KV block (default: 16)", integerValue)
    .option("--gpu-memory-utilization <share>", "share of the GPU's memory (default: 0.9)", numberValue)
    .option("--kv-cache-memory-bytes <bytes>", "size of the KV cache, instead of a share", integerValue)
    .option("--tensor-parallel-size <count>", "GPUs that share the model (default: 1)", integerValue)
    .option("--enforce-eager", "do not capture CUDA graphs")
    .option("--no-enable-prefix-caching", "do not reuse the KV blocks of equal prefixes")
    .option("--no-overlap-scheduling", "read each step's tokens before launching the next")
    .option("--load-format <name>", "auto, or dummy for random weights (default: auto)")
    .option("--skip-tokenizer-init", "token ids in and out")
    .option("--revision <name>", "branch, tag or commit of a hub model (default: main)")
    .option("--download-dir <folder>", "where hub models are stored (default: the Hugging Face cache)")
    .option("--chat-template <template>", "a Jinja template, or its path")
    .option("--generation-config <source>", "auto, or vllm to ignore the model's (default: auto)")
    .option("--max-logprobs <count>", "greatest logprobs of a request (default: 20)", integerValue);
}

const NAMES: readonly (keyof EngineOptions)[] = [
  ...(["device", "dtype", "maxModelLen", "maxNumSeqs", "maxNumBatchedTokens", "blockSize"] as const),
  ...(["gpuMemoryUtilization", "kvCacheMemoryBytes", "tensorParallelSize", "enforceEager"] as const),
  ...(["enablePrefixCaching", "overlapScheduling", "loadFormat", "skipTokenizerInit"] as const),
  ...(["revision", "downloadDir", "chatTemplate", "generationConfig", "maxLogprobs"] as const),
];

/** The engine's options among the parsed flags; those left out keep the engine's defaults. */
export function engineOptions(command: Command): EngineOptions {
  const given = NAMES.filter((name) => command.getOptionValueSource(name) === "cli");
  return Object.fromEntries(given.map((name) => [name, command.getOptionValue(name)]));
}
