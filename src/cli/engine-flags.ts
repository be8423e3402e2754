import type { Command } from "commander";
import type { EngineOptions } from "../base/config.ts";
import { addFlags, type FlagTable, givenFlags } from "./flag-table.ts";
import { integerValue, numberValue } from "./flag-values.ts";

/** The engine's options, one for one. `seed` is not among them: to most commands `--seed` is a sampling parameter. */
const ENGINE_FLAGS: FlagTable<Exclude<keyof EngineOptions, "seed">> = {
  device: ["--device <name>", "auto, cuda or cpu (default: auto)"],
  dtype: ["--dtype <name>", "auto, bfloat16, float16 or float32 (default: auto)"],
  maxModelLen: [
    "--max-model-len <tokens>",
    "prompt plus output of one sequence (default: the model's)",
    integerValue,
  ],
  maxNumSeqs: ["--max-num-seqs <count>", "sequences that run at once (default: 256)", integerValue],
  maxNumBatchedTokens: [
    "--max-num-batched-tokens <tokens>",
    "tokens computed in one step (default: 16384)",
    integerValue,
  ],
  blockSize: ["--block-size <tokens>", "tokens of a KV block (default: 16)", integerValue],
  gpuMemoryUtilization: [
    "--gpu-memory-utilization <share>",
    "share of the GPU's memory (default: 0.9)",
    numberValue,
  ],
  kvCacheMemoryBytes: [
    "--kv-cache-memory-bytes <bytes>",
    "size of the KV cache, instead of a share",
    integerValue,
  ],
  tensorParallelSize: [
    "--tensor-parallel-size <count>",
    "GPUs that share the model; -tp for short (default: 1)",
    integerValue,
  ],
  enforceEager: ["--enforce-eager", "do not capture CUDA graphs"],
  enablePrefixCaching: ["--no-enable-prefix-caching", "do not reuse the KV blocks of equal prefixes"],
  overlapScheduling: ["--no-overlap-scheduling", "read each step's tokens before launching the next"],
  loadFormat: ["--load-format <name>", "auto, or dummy for random weights (default: auto)"],
  skipTokenizerInit: ["--skip-tokenizer-init", "token ids in and out"],
  revision: ["--revision <name>", "branch, tag or commit of a hub model (default: main)"],
  downloadDir: ["--download-dir <folder>", "where hub models are stored (default: the Hugging Face cache)"],
  chatTemplate: ["--chat-template <template>", "a Jinja template, or its path"],
  generationConfig: ["--generation-config <source>", "auto, or vllm to ignore the model's (default: auto)"],
  maxLogprobs: ["--max-logprobs <count>", "greatest logprobs of a request (default: 20)", integerValue],
};

/** Adds the engine's options as flags. */
export function addEngineFlags(command: Command): Command {
  return addFlags(command, "Engine:", ENGINE_FLAGS);
}

/** The engine's options that were given; those left out keep the engine's defaults. */
export function engineOptions(command: Command): EngineOptions {
  return givenFlags<EngineOptions>(command, ENGINE_FLAGS);
}
