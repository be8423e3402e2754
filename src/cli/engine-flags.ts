import type { Command } from "commander";
import type { AsyncCreateOptions } from "../async/async-llm.ts";
import type { EngineOptions } from "../base/config.ts";
import { ConfigError } from "../base/errors.ts";
import { addFlags, type FlagTable, givenFlags } from "./flag-table.ts";
import { integerValue, numberValue, quantityValue } from "./flag-values.ts";
import { addEffectlessFlags, EFFECTLESS_ENGINE_FLAGS } from "./vllm-flags.ts";

/** The engine's options, one for one. `seed` is not among them: to most commands `--seed` is a sampling parameter. */
export const ENGINE_FLAGS: FlagTable<Exclude<keyof EngineOptions, "seed">> = {
  device: ["--device <name>", "auto, cuda, cpu or cpu-reference (default: auto)"],
  threads: ["--threads <count>", "threads that compute on a CPU (default: all cores)", integerValue],
  cpuKernels: ["--cpu-kernels <name>", "auto, avx512, avx2 or wasm (default: auto)"],
  dtype: ["--dtype <name>", "auto, bfloat16, float16 or float32 (default: auto)", dtypeValue],
  quantization: [
    "-q, --quantization <name>",
    "quantise while loading: fp8, fp8_per_channel or fp8_per_block (default: as the model is stored)",
    quantizationValue,
  ],
  quantizeLmHead: ["--quantize-lm-head", "the LM head in 8-bit floats too"],
  quantizeActivations: ["--no-quantize-activations", "keep inputs of products by 8-bit weights in 16 bits"],
  kvCacheDtype: ["--kv-cache-dtype <name>", "auto, or fp8 for keys and values in eight bits (default: auto)"],
  maxModelLen: [
    "--max-model-len <tokens>",
    "prompt plus output of one sequence, as 4096, 4k or 4K; auto: what fits (default: the model's)",
    maxModelLenValue,
  ],
  maxNumSeqs: ["--max-num-seqs <count>", "sequences that run at once (default: 256)", integerValue],
  maxNumBatchedTokens: [
    "--max-num-batched-tokens <tokens>",
    "tokens computed in one step (default: 16384)",
    quantityValue,
  ],
  blockSize: ["--block-size <tokens>", "tokens of a KV block (default: 16)", integerValue],
  gpuMemoryUtilization: [
    "--gpu-memory-utilization <share>",
    "share of the GPU's memory (default: 0.9)",
    numberValue,
  ],
  kvCacheMemoryBytes: [
    "--kv-cache-memory-bytes <bytes>",
    "size of the KV cache, instead of a share, as 2G",
    quantityValue,
  ],
  tensorParallelSize: [
    "--tensor-parallel-size <count>",
    "GPUs that share the model, 8 at most; -tp for short (default: 1)",
    integerValue,
  ],
  gpuIndex: ["--gpu-index <index>", "GPU to use; of several, the first (default: 0)", integerValue],
  enforceEager: ["--enforce-eager", "run steps op by op: capture none"],
  batchInvariant: ["--batch-invariant", "the same tokens, bit for bit, whatever else runs; slower"],
  enablePrefixCaching: ["--no-enable-prefix-caching", "do not reuse the KV blocks of equal prefixes"],
  overlapScheduling: ["--no-overlap-scheduling", "read each step's tokens before launching the next"],
  loadFormat: ["--load-format <name>", "auto, or dummy for random weights (default: auto)", loadFormatValue],
  skipTokenizerInit: ["--skip-tokenizer-init", "token ids in and out"],
  revision: ["--revision <name>", "branch, tag or commit of a hub model (default: main)"],
  downloadDir: ["--download-dir <folder>", "where hub models are stored (default: the Hugging Face cache)"],
  chatTemplate: ["--chat-template <template>", "a Jinja template, or its path"],
  generationConfig: ["--generation-config <source>", "auto, or vllm to ignore the model's (default: auto)"],
  maxLogprobs: ["--max-logprobs <count>", "greatest logprobs of a request (default: 20)", integerValue],
};

/** The engines of a server. */
export const REPLICA_FLAGS: FlagTable<"dataParallelSize"> = {
  dataParallelSize: [
    "--data-parallel-size <count>",
    "copies of the model, each on GPUs of its own; -dp for short (default: 1)",
    integerValue,
  ],
};

/** Stands for a context as long as the model's, or as the KV cache holds if less: the option left out. */
const AUTO = "auto";

function maxModelLenValue(text: string): number | typeof AUTO {
  return text === AUTO || text === "-1" ? AUTO : quantityValue(text);
}

/** Takes vLLM's other names of dtypes. */
function dtypeValue(text: string): string {
  return { half: "float16", float: "float32" }[text] ?? text;
}

/** Takes vLLM's names of methods with the kernels for them. */
function quantizationValue(text: string): string {
  return text.replace(/^(awq|gptq)_marlin$|^(modelopt)_fp8$/, "$1$2");
}

/** Takes vLLM's names of formats and loaders of safetensors, which are Octavo's only one. */
function loadFormatValue(text: string): string {
  return ["safetensors", "fastsafetensors", "hf"].includes(text) ? "auto" : text;
}

/** Adds the engine's options as flags, and those of vLLM's engine that have no effect here. */
export function addEngineFlags(command: Command): Command {
  addFlags(command, "Engine:", ENGINE_FLAGS);
  return addEffectlessFlags(command, EFFECTLESS_ENGINE_FLAGS);
}

/** Adds the number of engines, which only a server can have several of. */
export function addReplicaFlags(command: Command): Command {
  return addFlags(command, "Engine:", REPLICA_FLAGS);
}

/** The number of engines, if it was given. */
export function replicaOptions(command: Command): Pick<AsyncCreateOptions, "dataParallelSize"> {
  return givenFlags(command, REPLICA_FLAGS);
}

/** The engine's options that were given; those left out keep the engine's defaults. */
export function engineOptions(command: Command): EngineOptions {
  type Given = Omit<EngineOptions, "maxModelLen"> & { readonly maxModelLen?: number | typeof AUTO };
  const { maxModelLen, ...options } = givenFlags<Given>(command, ENGINE_FLAGS);
  return { ...options, ...(typeof maxModelLen === "number" && { maxModelLen }) };
}

/** The same for a command that reads and writes text. @throws ConfigError for one that has no tokenizer. */
export function textEngineOptions(command: Command): EngineOptions {
  const options = engineOptions(command);
  if (options.skipTokenizerInit)
    throw new ConfigError("skipTokenizerInit", "text needs a tokenizer: leave --skip-tokenizer-init out");
  return options;
}
