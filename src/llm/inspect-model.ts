import type { KvHeads } from "../backend/attention-spec.ts";
import { checkDeltaNetDims } from "../backend/cuda/ops/delta-dims.ts";
import { expertsWeight } from "../backend/cuda/ops/experts-product.ts";
import { headShape } from "../backend/cuda/ops/head-shape.ts";
import type { Weight } from "../backend/weight.ts";
import { type EngineConfig, type EngineOptions, resolveEngineConfig } from "../base/config.ts";
import { dtypeSize, type KvDType } from "../base/dtype.ts";
import { ConfigError, messageOf } from "../base/errors.ts";
import { blocksOfSequence, tokensInPool } from "../base/kv-group.ts";
import { MAX_RANKS, WHOLE } from "../base/shard.ts";
import type { WeightSummary } from "../base/weight-summary.ts";
import { StoredScheme } from "../layers/schemes/stored-scheme.ts";
import { Checkpoint } from "../loader/checkpoint.ts";
import { keepDtypes } from "../loader/kept-dtypes.ts";
import { CALIBRATION_TENSORS } from "../loader/kv-scales.ts";
import { floatNamed } from "../loader/stored-dtype.ts";
import { directoryOf } from "../loader/tensor-directory.ts";
import { checkCheckpoint } from "../loader/weights.ts";
import { widenedTensors } from "../loader/widened-tensors.ts";
import { attentionFormsOf } from "../models/attention-forms.ts";
import { checkShard } from "../models/check-shard.ts";
import { type ModelConfig, readModelConfig } from "../models/config.ts";
import { cachedLayersOf } from "../models/kv-heads.ts";
import type { ModelDefinition } from "../models/model.ts";
import { defineModel } from "../models/registry.ts";
import { SUPPORTED_MODELS } from "../models/supported-models.ts";
import { summaryOf } from "../models/weight-summary.ts";
import { kvBlockBytes } from "../runner/kv-cache.ts";
import { kvLayout } from "../runner/kv-layout.ts";
import { estimatedPool, KvPlan, planStates } from "../runner/kv-plan.ts";
import { stateBytes } from "../runner/state-pool.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { onlineFormOf } from "./load-part.ts";
import { skippedTensors } from "./skipped-tensors.ts";

/** Tokens without which a model that fits is of no use, but for models of shorter contexts. */
const LEAST_TOKENS = 1024;
/** `Backend.matrixDtypes` of the CPU backend. */
const CPU_DTYPES = ["bfloat16", "float16"] as const;

/** A model folder or a GGUF file, by what is known of it without loading it. */
export interface ModelReport {
  readonly architecture: string;
  /** Models that have the architecture. */
  readonly models: string;
  /** As a GPU holds them. */
  readonly weights: WeightSummary;
  /** Bytes of the weights on a CPU, which keeps matrices of 16-bit floats as they are. */
  readonly cpuBytes: number;
  /** The longest sequence on a CPU whose KV cache has its default size; 0: there is no room for any. */
  readonly cpuTokens: number;
  /** Positions that the model was made for. */
  readonly maxTokens: number;
  /** Of keys and values, in the dtype of activations on a GPU. */
  readonly kvBytesPerToken: number;
  /** Those of them that a sequence keeps when layers with a window see the token no more, and the widest window; 0: there is none. */
  readonly kvBytesKept: number;
  readonly kvWindow: number;
  /** Of a sequence's state, whatever its length, for models that keep one. */
  readonly stateBytes?: number | undefined;
  /** Why no GPU can run it, whatever its size. */
  readonly cudaProblem?: string | undefined;
  /** Why it takes and gives tokens alone. */
  readonly tokenizerProblem?: string | undefined;
}

/** Settings of the engine that change how much memory a model takes; see `EngineOptions`. */
export type SizeOptions = Pick<EngineOptions, "quantization" | "quantizeLmHead" | "kvCacheDtype">;

/** The room that GPUs of one size have for a model. */
export interface ModelFit {
  /** The fewest GPUs that hold it, dividing it; undefined: 8 do not. */
  readonly ranks: number | undefined;
  /** Tokens of the KV pool, of all sequences together, if they are as long as was asked about. */
  readonly kvTokens: number;
  /** Sequences of that length that can run at once, no more than run by default where each has a state. */
  readonly sequences: number;
}

/**
 * What a model folder or a GGUF file holds, and that it can be loaded: all tensors are there. No weights are read.
 * @throws ModelNotFoundError, ModelDataError, UnsupportedModelError or ConfigError as loading it would
 */
export async function inspectModel(folder: string, options: SizeOptions = {}): Promise<ModelReport> {
  const engine = resolveEngineConfig(options);
  const { quantization, quantizeLmHead, kvCacheDtype } = engine;
  const config = readModelConfig(folder);
  const dtype = config.dtype === "float16" ? "float16" : "bfloat16";
  using checkpoint = Checkpoint.open(folder);
  const { gptqZeros, needsZeros, needsOrder } = config.quantisation ?? {};
  const define = (headCodes: boolean) =>
    defineModel(config, {
      scheme: new StoredScheme(directoryOf(checkpoint), {
        ...{ gptqZeros, needsZeros, needsOrder },
        online: onlineFormOf(quantization, config.quantisation),
        quantiseHead: quantizeLmHead,
        headCodes,
      }),
    });
  const [definition, definitionOnCpu] = [define(false), define(true)];
  checkCheckpoint(checkpoint, definition.parameters, [...definition.ignored, ...CALIBRATION_TENSORS]);
  const storedDtype = (name: string) => floatNamed(checkpoint.tensors.get(name)?.dtype);
  const onCpu = keepDtypes(definitionOnCpu.parameters, CPU_DTYPES, storedDtype);
  const kvDtype = kvCacheDtype === "auto" ? dtype : "float8_e4m3";
  return {
    architecture: config.architecture,
    models: SUPPORTED_MODELS[config.architecture].models,
    weights: {
      ...summaryOf(definition, dtype),
      widened: widenedTensors(checkpoint, definition.parameters, dtype),
      skipped: skippedTensors(checkpoint, config),
    },
    cpuBytes: summaryOf(definitionOnCpu, "float32", onCpu).bytes,
    cpuTokens: cpuTokens(engine, config.maxPositionEmbeddings, definition),
    maxTokens: config.maxPositionEmbeddings,
    kvBytesPerToken: bytesPerToken(definition.cachedLayers, kvDtype),
    kvBytesKept: bytesPerToken(
      definition.cachedLayers.filter(({ window }) => window === 0),
      kvDtype,
    ),
    kvWindow: Math.max(0, ...definition.cachedLayers.map(({ window }) => window)),
    stateBytes: definition.stateShape && stateBytes(definition.stateShape, dtype),
    cudaProblem: await problemOf(() => {
      for (const { kvHeads } of attentionFormsOf(config, WHOLE))
        headShape({ ...config, ...kvHeads }, 16, dtype);
      if (config.linearAttention !== undefined) checkDeltaNetDims(config.linearAttention);
      for (const weight of expertsOf(config, definition.matrices)) expertsWeight(weight);
    }),
    tokenizerProblem: await problemOf(() => Tokenizer.load(folder)),
  };
}

/**
 * The GPUs of `memory` bytes that hold a model with room for a context worth having, and for how many tokens.
 * @param fewest GPUs that are asked about
 * @param tokens of a sequence; default: as many as the model was made for
 */
export function fitOf(
  folder: string,
  report: ModelReport,
  memory: number,
  utilization: number,
  fewest = 1,
  tokens = report.maxTokens,
): ModelFit {
  const config = readModelConfig(folder);
  const { maxNumSeqs, enablePrefixCaching } = resolveEngineConfig({});
  for (let ranks = fewest; ranks <= MAX_RANKS; ranks++) {
    if (!isDivisible(config, ranks)) continue;
    const pool = estimatedPool(memory, report.weights.bytes / ranks, utilization);
    const states = planStates(pool, (report.stateBytes ?? 0) / ranks, maxNumSeqs, enablePrefixCaching);
    const { groups, blockBytes } = poolOf(config, report, ranks, tokens);
    const blocks = Math.floor(Math.max(0, pool - states.bytes) / blockBytes);
    const isRoomy = tokensInPool(groups, blocks, 1) >= Math.min(report.maxTokens, LEAST_TOKENS);
    if (states.sequences < 1 || !isRoomy) continue;
    const kvTokens = Math.floor((blocks * tokens) / blocksOfSequence(groups, tokens, 1));
    const fitting = Math.floor(kvTokens / tokens);
    const sequences = report.stateBytes === undefined ? fitting : Math.min(fitting, states.sequences);
    return { ranks, kvTokens, sequences };
  }
  return { ranks: undefined, kvTokens: 0, sequences: 0 };
}

/** Bytes of the KV pool that a sequence of so many tokens takes, besides its state. */
export function sequenceBytes(folder: string, report: ModelReport, tokens: number): number {
  const { groups, blockBytes } = poolOf(readModelConfig(folder), report, 1, tokens);
  return blocksOfSequence(groups, tokens, 1) * blockBytes;
}

/** The pool of one of so many ranks, if blocks had one token. */
function poolOf(config: ModelConfig, { kvBytesPerToken }: ModelReport, ranks: number, tokens: number) {
  const layout = kvLayout(cachedLayersOf(config, { rank: 0, size: ranks }), tokens);
  const elementBytes = kvBytesPerToken / bytesPerToken(cachedLayersOf(config, WHOLE), "float8_e4m3");
  const elements = kvBlockBytes({ layout, blockSize: 1, kvDtype: "float8_e4m3" });
  return { groups: layout.groups, blockBytes: elements * elementBytes };
}

/** The longest sequence, as the CPU's backend would have it. @param limit positions that the model was made for */
function cpuTokens(
  engine: EngineConfig,
  limit: number,
  { cachedLayers, stateShape }: ModelDefinition,
): number {
  const kvDtype = engine.kvCacheDtype === "auto" ? "float32" : "float8_e4m3";
  const pool = { layers: cachedLayers, blockSize: engine.blockSize, kvDtype } as const;
  try {
    return new KvPlan(limit, pool, engine, {}, stateShape && stateBytes(stateShape, "float32")).maxModelLen;
  } catch (error) {
    if (error instanceof ConfigError) return 0;
    throw error;
  }
}

/** Bytes of a token's keys and values in these layers. */
function bytesPerToken(layers: readonly KvHeads[], kvDtype: KvDType): number {
  const elements = layers.reduce((sum, { numKvHeads, headDim }) => sum + 2 * numKvHeads * headDim, 0);
  return elements * dtypeSize(kvDtype);
}

function isDivisible(config: ModelConfig, size: number): boolean {
  try {
    checkShard(config, { rank: 0, size });
    return true;
  } catch (error) {
    if (error instanceof ConfigError) return false;
    throw error;
  }
}

/** The matrices of all of a layer's experts together, which products of a layer never have the shape of. */
function expertsOf({ experts, hiddenSize }: ModelConfig, matrices: readonly Weight[]): readonly Weight[] {
  if (experts === undefined) return [];
  const { count, intermediateSize } = experts;
  return matrices.filter(
    ({ shape: [n, k] }) =>
      (n === 2 * count * intermediateSize && k === hiddenSize) ||
      (n === count * hiddenSize && k === intermediateSize),
  );
}

async function problemOf(run: () => unknown): Promise<string | undefined> {
  try {
    await run();
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
}
