import { byteLengthOf } from "../src/backend/tensor.ts";
import type { EngineConfig } from "../src/base/config.ts";
import { dtypeSize } from "../src/base/dtype.ts";
import type { Workload } from "../src/cli/bench/workload.ts";
import { declaredScheme } from "../src/layers/schemes/declared-scheme.ts";
import type { ModelConfig } from "../src/models/config.ts";
import type { ModelDefinition } from "../src/models/model.ts";
import { defineModel } from "../src/models/registry.ts";
import { stateBytes } from "../src/runner/state-pool.ts";
import { sum } from "./stats.ts";

/** What a GPU can do at best, as measured on it: see `measureCeilings`. */
export interface DeviceLimits {
  /** Of a kernel that only reads. */
  readonly bytesPerSecond: number;
  /** Of large 16-bit matrix products. */
  readonly flopsPerSecond: number;
}

/** Bytes of an element of the KV cache on a GPU. */
export function kvElementBytes({ kvCacheDtype }: Pick<EngineConfig, "kvCacheDtype">): number {
  return dtypeSize(kvCacheDtype === "auto" ? "bfloat16" : "float8_e4m3");
}

/** A request's lengths in tokens. */
export interface RequestLengths {
  readonly prompt: number;
  readonly output: number;
}

export function requestLengths({ requests }: Workload): RequestLengths[] {
  return requests.map(({ promptTokenIds, maxTokens }) => ({
    prompt: promptTokenIds.length,
    output: maxTokens,
  }));
}

export interface RooflineOptions {
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  /** Bytes of an element of the KV cache. Default 2. */
  readonly kvBytes?: number;
  /** As the engine's options: prompts by FP8 weights with a factor an output at twice the matrix rate, a head of 8 bits. Default false. */
  readonly quantizeActivations?: boolean;
  readonly quantizeLmHead?: boolean;
}

/** The least time that a workload can take, and what it is made of. */
export interface Roofline {
  readonly decodeSteps: number;
  /** Cached tokens read, summed over all decode steps. */
  readonly kvTokens: number;
  readonly weightSeconds: number;
  readonly kvSeconds: number;
  readonly prefillSeconds: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
}

/**
 * Limit A. Every decode step reads the weights once, of experts those that as many tokens as a step has on average would choose at random, and each running sequence's keys and values once, at the read ceiling, and states, where the model keeps any, once and writes them;
 * prompts cost their floating-point operations, or reading the weights once a step where that takes longer. Nothing
 * overlaps. A prompt's last position gives its first output token, so a request decodes `output − 1` times. Requests
 * start in order, as soon as fewer than `maxNumSeqs` run.
 */
export function roofline(
  config: ModelConfig,
  requests: readonly RequestLengths[],
  limits: DeviceLimits,
  options: RooflineOptions,
): Roofline {
  const { kvBytes = dtypeSize("bfloat16") } = options;
  const { always, experts, head } = weightsOf(config);
  const headBytes = head * dtypeSize(options.quantizeLmHead ? "float8_e4m3" : "bfloat16");
  const bytesOf = (tokens: number) => always.bytes + experts.bytes * activeShare(config, tokens) + headBytes;
  const layers = always.count + experts.count * activeShare(config, 1);
  const speed = options.quantizeActivations && isFloat8ByChannel(config) ? 2 : 1;
  const attention = attentionLayersOf(config);

  let [promptTokens, outputTokens, kvLayerTokens, kvElements, prefillFlops] = [0, 0, 0, 0, 0];
  for (const { prompt, output } of requests) {
    promptTokens += prompt;
    outputTokens += output;
    for (const { window, headDim, kvSize } of attention) {
      const read = attendedTokens(prompt + 1, prompt + output - 1, window);
      kvLayerTokens += read;
      kvElements += read * kvSize;
      // Two products, of queries with keys and of weights with values, at two operations a multiply-add.
      prefillFlops += 4 * attendedTokens(1, prompt, window) * config.numHeads * headDim;
    }
    prefillFlops += (2 * layers * prompt) / speed + 2 * head;
  }
  const prefillSteps = Math.ceil(promptTokens / options.maxNumBatchedTokens);
  const decodeSteps = countDecodeSteps(requests, options.maxNumSeqs);
  const decodedTokens = requests.reduce((sum, { output }) => sum + output - 1, 0);
  const stepBytes = bytesOf(decodedTokens / Math.max(1, decodeSteps));
  const weightSeconds = (decodeSteps * stepBytes) / limits.bytesPerSecond;
  const stateTraffic = decodedTokens * 2 * statesOf(config);
  const kvSeconds = (kvElements * kvBytes + stateTraffic) / limits.bytesPerSecond;
  const prefillSeconds = Math.max(
    prefillFlops / limits.flopsPerSecond,
    (prefillSteps * bytesOf(options.maxNumBatchedTokens)) / limits.bytesPerSecond,
  );
  const seconds = weightSeconds + kvSeconds + prefillSeconds;
  return {
    ...{ decodeSteps, weightSeconds, kvSeconds, prefillSeconds, seconds },
    kvTokens: kvLayerTokens / attention.length,
    tokensPerSecond: outputTokens / seconds,
  };
}

/** The least seconds of a decode step over contexts of these lengths, the step's own token included, and of its parts. */
export interface DecodeLimit {
  /** Weights of the layers but those of experts. */
  readonly layers: number;
  readonly experts: number;
  readonly attention: number;
  readonly states: number;
  readonly head: number;
  readonly step: number;
}

/**
 * The weights of the layers and of the LM head, and the keys and values of the contexts, are read once; states, too, and written.
 * @param kvBytes of an element of the KV cache
 */
export function decodeLimit(
  config: ModelConfig,
  contextLengths: readonly number[],
  { bytesPerSecond }: DeviceLimits,
  kvBytes = dtypeSize("bfloat16"),
): DecodeLimit {
  const bytes = dtypeSize("bfloat16");
  const { always, experts, head: headWeights } = weightsOf(config);
  const read = contextLengths.flatMap((length) =>
    attentionLayersOf(config).map(
      ({ window, kvSize }) => (window === 0 ? length : Math.min(length, window)) * kvSize,
    ),
  );
  const sequences = contextLengths.length;
  const parts = {
    layers: always.bytes / bytesPerSecond,
    experts: (experts.bytes * activeShare(config, sequences)) / bytesPerSecond,
    attention: (sum(read) * kvBytes) / bytesPerSecond,
    states: (sequences * 2 * statesOf(config)) / bytesPerSecond,
    head: (headWeights * bytes) / bytesPerSecond,
  };
  return { ...parts, step: sum(Object.values(parts)) };
}

/** A layer with attention. */
interface AttentionLayer {
  readonly window: number;
  readonly headDim: number;
  /** Elements of a token's keys and values, which the layer reads whoever stored them. */
  readonly kvSize: number;
}

function attentionLayersOf({ layerWindows, layerKvHeads, linearAttention }: ModelConfig): AttentionLayer[] {
  return layerKvHeads
    .map(({ numKvHeads, headDim }, layer) => ({
      ...{ window: layerWindows[layer]!, headDim },
      kvSize: 2 * numKvHeads * headDim,
    }))
    .filter((_, layer) => !linearAttention?.layers[layer]);
}

/** Bytes of a sequence's states in the layers that keep any. */
function statesOf(config: ModelConfig): number {
  const { stateShape } = defineModel(config);
  return stateShape === undefined ? 0 : stateBytes(stateShape, "bfloat16");
}

/** Weights of the layers, and their bytes, codes and scales alike, in the form that the config states. */
interface LayerWeights {
  readonly count: number;
  readonly bytes: number;
}

function isFloat8ByChannel({ quantisation }: ModelConfig): boolean {
  const { declared } = quantisation ?? {};
  return declared?.kind === "float8" && declared.granularity === "channel";
}

/** Weights of the layers that every token goes through, those of all experts, and of the LM head. Embeddings are looked up, not read. */
function weightsOf(config: ModelConfig): { always: LayerWeights; experts: LayerWeights; head: number } {
  const { quantisation, tieWordEmbeddings, vocabSize, hiddenSize } = config;
  const head = vocabSize * hiddenSize;
  const floats = defineModel(config);
  const perLayer = floats.parameters.find(({ name }) => name === "perLayerEmbedding.weight");
  const outside = (tieWordEmbeddings ? 1 : 2) * head + (perLayer?.shape.reduce((a, b) => a * b) ?? 0);
  const count = (of: ModelDefinition, isCounted: (name: string) => boolean) =>
    of.parameters
      .filter(({ name }) => isCounted(name))
      .reduce((total, { shape }) => total + shape.reduce((size, extent) => size * extent, 1), 0);
  const bytes = (of: ModelDefinition, isCounted: (name: string) => boolean) =>
    of.parameters
      .filter(({ name }) => isCounted(name))
      .reduce((sum, spec) => sum + byteLengthOf(spec.dtype ?? "bfloat16", spec.shape), 0);
  // Experts beside a dense block have a name of their own.
  const block = floats.parameters.some(({ name }) => name.includes(".experts.gateUp.")) ? "experts" : "mlp";
  const isExperts = (name: string) => {
    const layer = new RegExp(`^layers\\.(\\d+)\\.${block}\\.(?:gateUp|down)\\.`).exec(name)?.[1];
    return layer !== undefined && config.experts?.layers[Number(layer)] === true;
  };
  const isAlways = (name: string) => !isExperts(name);
  const declared = quantisation?.declared;
  const stored = defineModel(config, declared && { scheme: declaredScheme(declared) });
  return {
    always: {
      count: count(floats, isAlways) - outside,
      bytes: bytes(stored, isAlways) - outside * dtypeSize("bfloat16"),
    },
    experts: { count: count(floats, isExperts), bytes: bytes(stored, isExperts) },
    head,
  };
}

/** The share of a layer's experts that so many tokens come to, each choosing at random. */
function activeShare({ experts }: ModelConfig, tokens: number): number {
  return experts === undefined ? 0 : 1 - (1 - experts.perToken / experts.count) ** tokens;
}

/** A model whose weights are quantised while it is loaded, if the options say so, as if its config stated that. */
export function asLoaded(
  config: ModelConfig,
  { quantization }: Pick<EngineConfig, "quantization">,
): ModelConfig {
  if (config.quantisation !== undefined || !quantization?.startsWith("fp8")) return config;
  const granularity = quantization === "fp8_per_block" ? "block" : "channel";
  const declared = { kind: "float8", granularity } as const;
  const needs = { needsZeros: false, needsOrder: false };
  return { ...config, quantisation: { method: quantization, gptqZeros: "v1", ...needs, declared } };
}

/** Σ over contexts of `from` to `to` tokens of what a layer with this window reads of them; 0 = no window. */
function attendedTokens(from: number, to: number, window: number): number {
  const most = window === 0 ? Infinity : window;
  const whole = Math.max(0, Math.min(to, most) - from + 1);
  const cut = Math.max(0, to - from + 1 - whole);
  return (whole * (2 * from + whole - 1)) / 2 + (cut > 0 ? cut * most : 0);
}

function countDecodeSteps(requests: readonly RequestLengths[], maxNumSeqs: number): number {
  const busyUntil = new Float64Array(Math.min(maxNumSeqs, requests.length));
  for (const { output } of requests) {
    const first = busyUntil.indexOf(Math.min(...busyUntil));
    busyUntil[first]! += output - 1;
  }
  return Math.max(...busyUntil);
}
