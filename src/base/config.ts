import type { DeviceName } from "./device-name.ts";
import { ConfigError } from "./errors.ts";
import { MAX_RANKS } from "./shard.ts";

/** What may be done to weights in floats, and methods of checkpoints. */
const QUANTIZATIONS = [
  ...(["fp8", "fp8_per_channel", "fp8_per_block"] as const),
  ...(["awq", "gptq", "compressed-tensors", "modelopt", "fbgemm_fp8", "mxfp4", "gguf"] as const),
] as const;

export type CpuKernels = "auto" | "avx512" | "avx2" | "wasm";

/** Options of the engine: vLLM's, in camelCase, with its defaults. */
export interface EngineOptions {
  /**
   * `auto`: cuda when a driver and a GPU are found, else cpu. `cpu-reference` is plain TypeScript, many times slower than `cpu`: what all
   * others are held against. Default auto.
   */
  device?: "auto" | DeviceName;
  /** Threads that compute on cpu, over all ranks. Default: as many as the machine runs at once. */
  threads?: number;
  /**
   * What products on cpu are computed with: code that is assembled at the start for AVX-512 or AVX2, or WebAssembly, which is the same
   * bits on all machines. `auto`: the fastest that the processor has. Default auto.
   */
  cpuKernels?: CpuKernels;
  /**
   * Of activations. `auto`: the checkpoint's dtype on cuda (float32 becomes bfloat16), float32 on cpu, where matrices stay in the
   * checkpoint's dtype all the same. Default auto.
   */
  dtype?: "auto" | "bfloat16" | "float16" | "float32";
  /**
   * Quantises the matrices of a model in floats while it is loaded, all but the LM head, to 8-bit floats (e4m3): with a factor for each output
   * channel (`fp8`, `fp8_per_channel`) or each block of 128 × 128 (`fp8_per_block`). Half the memory, and less to read for each token; see
   * docs/quantisation.md for what it costs. A checkpoint that is quantised needs no option; the name of its own method, as its config
   * has it, is accepted, any other refused; so is `gguf` for a GGUF file. Default: weights as they are.
   */
  quantization?: (typeof QUANTIZATIONS)[number];
  /**
   * The LM head in 8-bit floats, too, with a factor for each token of the vocabulary: checkpoints and `quantization` leave it in 16 bits,
   * which is a fifth of what one stream of a model in 4 bits reads. Of any model in which it is not the embedding table.
   * Default false.
   */
  quantizeLmHead?: boolean;
  /**
   * By matrices in 8-bit floats with a factor for each output channel, products of more than a few tokens make 8-bit floats of
   * their inputs, too, with a factor for each token, on GPUs that multiply them (compute capability 9.0): prompts and large batches are
   * computed nearly twice as fast, for about the error of such weights once more; see docs/quantisation.md. Without it, and everywhere
   * else, products are of 16-bit inputs. Default true.
   */
  quantizeActivations?: boolean;
  /**
   * `auto`: keys and values are cached in the dtype of activations. `fp8`, or `fp8_e4m3`: in eight bits, with the scales that
   * the checkpoint was calibrated with, else 1. Twice as many tokens fit, and long contexts are read in half the time, for a
   * relative error of up to 1/16 in each key and value. Default auto.
   */
  kvCacheDtype?: "auto" | "fp8" | "fp8_e4m3";
  /** Prompt plus output tokens of one sequence. Default: the model's own limit, or what the KV cache holds if less. */
  maxModelLen?: number;
  /** Sequences that run at once. Default 256. */
  maxNumSeqs?: number;
  /** Tokens computed in one step, prompts and decodes together; longer prompts are computed in chunks. Default 16384. */
  maxNumBatchedTokens?: number;
  /** Tokens of a KV block, a power of two from 1 to 256. Default 16. */
  blockSize?: number;
  /** Share of the GPU's memory for weights, activations and KV cache; 384 MiB stay the driver's. (0, 1], default 0.9. */
  gpuMemoryUtilization?: number;
  /** Bytes of KV cache of each rank, instead of what `gpuMemoryUtilization` leaves. On the CPU the default is 1 GiB at most. */
  kvCacheMemoryBytes?: number;
  /**
   * Ranks that share the model, each with a part of every layer: a GPU each, from `gpuIndex` on, or threads on the CPU. 8 at most,
   * any number that divides the model's heads, intermediate size and vocabulary. Default 1.
   */
  tensorParallelSize?: number;
  /** Index of the GPU among those that the driver shows; of several, the first. Default 0. */
  gpuIndex?: number;
  /** Capture no steps (on a GPU as CUDA graphs), nor pad any to the sizes of captured ones. Slower; for debugging. Default false. */
  enforceEager?: boolean;
  /**
   * A request's tokens are the same bits whatever else runs, for a cost in speed: see docs/architecture.md, "Sampling".
   * Default false.
   */
  batchInvariant?: boolean;
  /** Reuse the KV blocks of equal prefixes. Default true. */
  enablePrefixCaching?: boolean;
  /** Launch a step before the tokens of the one before are read. Default: true on cuda, false on cpu. */
  overlapScheduling?: boolean;
  /** `dummy`: random weights from config.json alone. Default auto. */
  loadFormat?: "auto" | "dummy";
  /** Token ids in and out; no tokenizer files needed. Default false. */
  skipTokenizerInit?: boolean;
  /** Seeds dummy weights and requests that bring no seed. Default 0. */
  seed?: number;
  /** Branch, tag or commit of a hub model. Default main. */
  revision?: string;
  /** Folder that hub models are stored in. Default: the Hugging Face cache. */
  downloadDir?: string;
  /** A Jinja template, or the path of one, instead of the model's chat template. */
  chatTemplate?: string;
  /** Default sampling from the model's generation_config.json (`auto`), or vLLM's plain defaults (`vllm`). */
  generationConfig?: "auto" | "vllm";
  /** Greatest `logprobs` a request may ask for, for which a GPU's memory is reserved; −1: no limit. Default 20. */
  maxLogprobs?: number;
}

/** Options without which the model or the device decides. */
type Undecided =
  | "threads"
  | "quantization"
  | "maxModelLen"
  | "kvCacheMemoryBytes"
  | "overlapScheduling"
  | "downloadDir"
  | "chatTemplate";

/** `EngineOptions` after defaults and validation. What only the model can decide stays undefined. */
export type EngineConfig = Readonly<Required<Omit<EngineOptions, Undecided>>> & {
  readonly [Name in Undecided]: EngineOptions[Name] | undefined;
};

/**
 * Checks the options and fills in defaults.
 * @throws ConfigError naming the option: unknown, of the wrong type, or out of range.
 */
export function resolveEngineConfig(options: EngineOptions = {}): EngineConfig {
  const unread = new Set(Object.keys(options));
  const take = <K extends keyof EngineOptions>(name: K): EngineOptions[K] => {
    unread.delete(name);
    return options[name];
  };
  const oneOf = <const T extends string, const F extends T | undefined>(
    name: keyof EngineOptions,
    values: readonly T[],
    fallback: F,
  ): T | F => {
    const value = take(name);
    if (value === undefined) return fallback;
    if (!values.includes(value as T)) throw invalid(name, `one of ${values.join(", ")}`, value);
    return value as T;
  };
  const integer = <F extends number | undefined>(
    name: keyof EngineOptions,
    min: number,
    max: number,
    fallback: F,
  ): number | F => {
    const value = take(name);
    if (value === undefined) return fallback;
    if (!Number.isSafeInteger(value) || (value as number) < min || (value as number) > max)
      throw invalid(name, `an integer from ${min} to ${max}`, value);
    return value as number;
  };
  const flag = <F extends boolean | undefined>(name: keyof EngineOptions, fallback: F): boolean | F => {
    const value = take(name);
    if (value === undefined) return fallback;
    if (typeof value !== "boolean") throw invalid(name, "true or false", value);
    return value;
  };
  const text = <F extends string | undefined>(name: keyof EngineOptions, fallback: F): string | F => {
    const value = take(name);
    if (value === undefined) return fallback;
    if (typeof value !== "string" || value === "") throw invalid(name, "a non-empty string", value);
    return value;
  };

  const share = take("gpuMemoryUtilization");
  const gpuMemoryUtilization = share === undefined ? 0.9 : share;
  if (!(typeof gpuMemoryUtilization === "number" && gpuMemoryUtilization > 0 && gpuMemoryUtilization <= 1))
    throw invalid("gpuMemoryUtilization", "a number above 0, at most 1", gpuMemoryUtilization);
  const blockSize = integer("blockSize", 1, 256, 16);
  if ((blockSize & (blockSize - 1)) !== 0)
    throw invalid("blockSize", "a power of two from 1 to 256", blockSize);

  const config: EngineConfig = {
    device: oneOf("device", ["auto", "cuda", "cpu", "cpu-reference"], "auto"),
    threads: integer("threads", 1, 1024, undefined),
    cpuKernels: oneOf("cpuKernels", ["auto", "avx512", "avx2", "wasm"], "auto"),
    dtype: oneOf("dtype", ["auto", "bfloat16", "float16", "float32"], "auto"),
    quantization: oneOf("quantization", QUANTIZATIONS, undefined),
    quantizeLmHead: flag("quantizeLmHead", false),
    quantizeActivations: flag("quantizeActivations", true),
    kvCacheDtype: oneOf("kvCacheDtype", ["auto", "fp8", "fp8_e4m3"], "auto"),
    maxModelLen: integer("maxModelLen", 1, 2 ** 24, undefined),
    maxNumSeqs: integer("maxNumSeqs", 1, 4096, 256),
    maxNumBatchedTokens: integer("maxNumBatchedTokens", 1, 2 ** 20, 16384),
    blockSize,
    gpuMemoryUtilization,
    kvCacheMemoryBytes: integer("kvCacheMemoryBytes", 1, Number.MAX_SAFE_INTEGER, undefined),
    tensorParallelSize: integer("tensorParallelSize", 1, MAX_RANKS, 1),
    gpuIndex: integer("gpuIndex", 0, 1023, 0),
    enforceEager: flag("enforceEager", false),
    batchInvariant: flag("batchInvariant", false),
    enablePrefixCaching: flag("enablePrefixCaching", true),
    overlapScheduling: flag("overlapScheduling", undefined),
    loadFormat: oneOf("loadFormat", ["auto", "dummy"], "auto"),
    skipTokenizerInit: flag("skipTokenizerInit", false),
    seed: integer("seed", 0, Number.MAX_SAFE_INTEGER, 0),
    revision: text("revision", "main"),
    downloadDir: text("downloadDir", undefined),
    chatTemplate: text("chatTemplate", undefined),
    generationConfig: oneOf("generationConfig", ["auto", "vllm"], "auto"),
    maxLogprobs: integer("maxLogprobs", -1, 2 ** 24, 20),
  };
  for (const name of unread) throw new ConfigError(name, `unknown option "${name}"`);
  return Object.freeze(config);
}

function invalid(option: string, expected: string, value: unknown): ConfigError {
  const found = typeof value === "string" ? JSON.stringify(value) : String(value);
  return new ConfigError(option, `${option} must be ${expected}, not ${found}`);
}
