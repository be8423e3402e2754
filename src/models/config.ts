import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import type { KvHeads } from "../backend/attention-spec.ts";
import type { Activation } from "../backend/backend.ts";
import type { FloatDType } from "../base/dtype.ts";
import { ModelDataError, ModelNotFoundError, UnsupportedModelError } from "../base/errors.ts";
import { isGgufModel } from "../gguf/gguf-file.ts";
import type { QueryScaling, RopeConfig } from "../layers/rotary.ts";
import { type ExpertsConfig, readExpertsConfig } from "./experts-config.ts";
import { type Architecture, FAMILY_DEFAULTS, type FamilyDefaults, isSupported } from "./family-defaults.ts";
import { type Gemma4Config, readGemma4 } from "./gemma4-config.ts";
import { readGgufConfig } from "./gguf-config.ts";
import { JsonFields } from "./json-fields.ts";
import { type LinearAttentionConfig, readLinearAttention } from "./linear-attention-config.ts";
import { ggufQuantisation, type QuantisationConfig, readQuantisation } from "./quantisation.ts";
import { refuseUnknownFields } from "./refused-fields.ts";
import { readLayerRopes, readLayersWithRope, readQueryScaling, stretchedPositions } from "./rope-config.ts";
import { readTextConfig } from "./text-config.ts";

/** A model's architecture and sizes: its config.json, validated, with one spelling and all defaults filled in. */
export interface ModelConfig {
  /** First of `architectures`; that of the language model where a model has more parts. */
  readonly architecture: Architecture;
  /** The checkpoint has more than the language model: what makes its input of images, say. */
  readonly isTextPart: boolean;
  /** Rows of the embedding and width of the logits; the tokenizer may know fewer tokens. */
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  /** Divides `numHeads`. */
  readonly numKvHeads: number;
  /** Even. */
  readonly headDim: number;
  /** Each layer's: `numKvHeads` of `headDim`, but in families whose layers differ. */
  readonly layerKvHeads: readonly KvHeads[];
  /** The layer whose keys and values each layer attends to: itself, or one before it of the same heads. */
  readonly kvSources: readonly number[];
  readonly activation: Activation;
  /** Positions that the model can tell apart: those that YaRN stretches its training to, if it does. */
  readonly maxPositionEmbeddings: number;
  readonly rmsNormEps: number;
  /** Each layer's; layers that have the same share one object. Undefined: queries and keys are not rotated. */
  readonly layerRopes: readonly (RopeConfig | undefined)[];
  /** Of all layers. */
  readonly queryScaling: QueryScaling | undefined;
  /** Multiplies query·key; undefined: 1 / sqrt(headDim). */
  readonly attentionScale: number | undefined;
  /** See `AttentionSpec.softCap`. */
  readonly attentionSoftCap: number | undefined;
  /** Heads have attention sinks. */
  readonly attentionSinks: boolean;
  readonly tieWordEmbeddings: boolean;
  /** Multiplies embeddings. */
  readonly embeddingMultiplier: number;
  /** Multiplies what a layer's parts add to the residual stream. */
  readonly residualMultiplier: number;
  /** Divides logits. */
  readonly logitsScaling: number;
  /** See `LmHead.softCap`. */
  readonly logitSoftCap: number | undefined;
  /** Attention and feed-forward read the same residual stream. */
  readonly parallelResidual: boolean;
  /** Undefined when the config is silent; the family then decides. */
  readonly attentionBias: boolean | undefined;
  readonly mlpBias: boolean;
  /** Each layer's sliding window in tokens; 0 = none. */
  readonly layerWindows: readonly number[];
  /** Undefined where all layers have attention. */
  readonly linearAttention: LinearAttentionConfig | undefined;
  /** Of Gemma 4 alone. */
  readonly gemma4: Gemma4Config | undefined;
  /** Undefined for a dense model. */
  readonly experts: ExpertsConfig | undefined;
  readonly eosTokenIds: readonly number[];
  /** Dtype of the checkpoint; undefined when the config is silent. */
  readonly dtype: FloatDType | undefined;
  /** Undefined for weights in floats. */
  readonly quantisation: QuantisationConfig | undefined;
}

const ACTIVATIONS: ReadonlyMap<string, Activation> = new Map([
  ["silu", "silu"],
  ["swish", "silu"],
  ["gelu", "gelu"],
  ["gelu_new", "gelu_tanh"],
  ["gelu_fast", "gelu_tanh"],
  ["gelu_pytorch_tanh", "gelu_tanh"],
]);
/** Of a layer, and of all layers together: some files have rows of each head apart. */
const MAX_HEADS = 4096;
const MAX_HEADS_OF_ALL = 2 ** 17;
const DTYPES: ReadonlySet<string> = new Set<FloatDType>(["float32", "bfloat16", "float16"]);

/**
 * Reads a model folder's `config.json` as transformers 4 and 5 write it, or what stands for it in a GGUF file; fields that
 * it does not mention have the family's defaults. Code that a config names (`auto_map`) is never looked at.
 * @param model a folder or a GGUF file
 * @throws ModelNotFoundError when the folder or the file is missing; UnsupportedModelError for an architecture, and after
 * that for quantisation that is not supported, unknown activations, dtypes, rope types or fields that would change results;
 * ModelDataError naming a field that is out of range.
 */
export function readModelConfig(model: string): ModelConfig {
  const gguf = isGgufModel(model) ? readGgufConfig(model) : undefined;
  const whole = gguf?.json ?? readConfigJson(model);
  const text = readTextConfig(whole);
  const stored = text ?? whole;
  const architecture = readArchitecture(stored);
  const defaults: FamilyDefaults = FAMILY_DEFAULTS[architecture];
  const json = stored.withDefaults(defaults.fields ?? {}, defaults.aliases);
  refuseUnknownFields(json, new Set(defaults.honoured));
  const quantisation = gguf ? ggufQuantisation(gguf.isFloats) : readQuantisation(json, model);

  const vocabSize = json.integer("vocab_size", 1, 1e7, defaults.vocabSize);
  const hiddenSize = json.integer("hidden_size", 1, 1e6, defaults.hiddenSize);
  const numLayers = json.integer("num_hidden_layers", 1, 1024, defaults.numLayers);
  const mostHeads = Math.min(MAX_HEADS, Math.floor(MAX_HEADS_OF_ALL / numLayers));
  const numHeads = json.integer("num_attention_heads", 1, mostHeads, defaults.numHeads);
  const usual = json.isNull("num_key_value_heads") ? undefined : defaults.numKvHeads;
  const numKvHeads = json.integer("num_key_value_heads", 1, 4096, usual ?? numHeads);
  if (numHeads % numKvHeads !== 0)
    throw json.invalid("num_key_value_heads", `a divisor of ${numHeads} heads`);
  const fallbackDim = json.isNull("head_dim") ? undefined : defaults.headDim;
  const headDim = json.integer("head_dim", 2, 1024, fallbackDim ?? hiddenSize / numHeads);
  if (headDim % 2 !== 0 || headDim > 1024)
    throw new ModelDataError(json.file, `head dimension ${headDim} is not an even integer up to 1024`);
  const kvHeads = Object.freeze({ numKvHeads, headDim });
  const positions = json.integer("max_position_embeddings", 1, 2 ** 30, defaults.maxPositionEmbeddings);
  const linearAttention = defaults.linearAttention ? readLinearAttention(json, numLayers) : undefined;
  const layerWindows = linearAttention?.layers.map(() => 0) ?? readLayerWindows(json, defaults, numLayers);
  const gemma4 = defaults.gemma4
    ? readGemma4(json, { vocabSize, numHeads }, layerWindows, kvHeads)
    : undefined;
  const layerKvHeads = gemma4?.layerKvHeads ?? layerWindows.map(() => kvHeads);
  const layerRopes = readLayerRopes(json, layerKvHeads, positions, layerWindows, defaults);
  const stretched = layerRopes.map((rope) => (rope === undefined ? 0 : stretchedPositions(rope)));

  const intermediateSize = json.integer("intermediate_size", 1, 1e7, defaults.intermediateSize);

  return Object.freeze({
    isTextPart: text !== undefined,
    ...{ architecture, vocabSize, hiddenSize, intermediateSize, numLayers, numHeads, numKvHeads, headDim },
    layerKvHeads: Object.freeze(layerKvHeads),
    kvSources: gemma4?.kvSources ?? Object.freeze([...layerWindows.keys()]),
    layerRopes: Object.freeze(layerRopes),
    queryScaling: readQueryScaling(json, positions),
    attentionScale: readAttentionScale(json),
    attentionSoftCap: readSoftCap(json, "attn_logit_softcapping"),
    attentionSinks: defaults.attentionSinks ?? false,
    experts: readExperts(json, defaults.experts, numLayers, intermediateSize),
    activation: readActivation(json),
    maxPositionEmbeddings: Math.max(positions, ...stretched),
    rmsNormEps: json.number("rms_norm_eps", 0, 1, 1e-6),
    tieWordEmbeddings: json.boolean("tie_word_embeddings", false),
    embeddingMultiplier: json.number("embedding_multiplier", 1e-6, 1e6, 1),
    residualMultiplier: json.number("residual_multiplier", 1e-6, 1e6, 1),
    logitsScaling: json.number("logits_scaling", 1e-6, 1e6, 1),
    logitSoftCap: readSoftCap(json, "final_logit_softcapping"),
    parallelResidual: json.boolean("use_parallel_residual", false),
    attentionBias: json.boolean("attention_bias", undefined),
    mlpBias: json.boolean("mlp_bias", false),
    ...{ layerWindows: Object.freeze(layerWindows), linearAttention },
    gemma4: gemma4 && Object.freeze(gemma4),
    eosTokenIds: Object.freeze(readEosTokenIds(json, defaults, vocabSize)),
    dtype: readDtype(json),
    quantisation: quantisation && Object.freeze(quantisation),
  });
}

function readConfigJson(folder: string): JsonFields {
  if (!existsSync(folder) || !statSync(folder).isDirectory())
    throw new ModelNotFoundError(folder, `model folder ${folder} does not exist`);
  const json = JsonFields.read(folder, "config.json");
  if (json !== undefined) return json;
  const path = join(folder, "config.json");
  throw new ModelNotFoundError(path, `${path} does not exist`);
}

/** The first that the config names; that it cannot be loaded is the first thing that a user is told. */
function readArchitecture(json: JsonFields): Architecture {
  const architecture = json.strings("architectures")?.[0];
  if (architecture === undefined) throw json.invalid("architectures", "a list of at least one name");
  if (isSupported(architecture)) return architecture;
  const known = Object.keys(FAMILY_DEFAULTS).join(", ");
  throw new UnsupportedModelError(
    json.file,
    `architecture ${architecture} is not supported; supported are ${known}`,
  );
}

/** Of a family whose models may have experts, `enable_moe_block` says whether one does. */
function readExperts(
  json: JsonFields,
  defaults: FamilyDefaults["experts"],
  numLayers: number,
  intermediateSize: number,
): ExpertsConfig | undefined {
  if (defaults === undefined || !json.boolean("enable_moe_block", true)) return undefined;
  return readExpertsConfig(json, defaults, numLayers, intermediateSize);
}

function readActivation(json: JsonFields): Activation {
  const name = json.string(json.has("hidden_activation") ? "hidden_activation" : "hidden_act", "silu");
  const activation = ACTIVATIONS.get(name);
  if (activation === undefined)
    throw new UnsupportedModelError(json.file, `activation ${JSON.stringify(name)} is not supported`);
  return activation;
}

function readEosTokenIds(json: JsonFields, { eosTokenId }: FamilyDefaults, vocabSize: number) {
  const given = json.tokenIds("eos_token_id", vocabSize);
  if (given !== undefined) return given;
  return eosTokenId === undefined || json.isNull("eos_token_id") || eosTokenId >= vocabSize
    ? []
    : [eosTokenId];
}

function readDtype(json: JsonFields): FloatDType | undefined {
  const name = json.string(json.has("dtype") ? "dtype" : "torch_dtype", "auto").replace(/^torch\./, "");
  if (name === "auto") return undefined;
  if (!DTYPES.has(name))
    throw new UnsupportedModelError(json.file, `dtype ${JSON.stringify(name)} is not supported`);
  return name as FloatDType;
}

/** Either field is one that few families have. */
function readAttentionScale(json: JsonFields): number | undefined {
  if (!json.has("query_pre_attn_scalar")) return json.number("attention_multiplier", 1e-6, 1e6, undefined);
  return 1 / Math.sqrt(json.number("query_pre_attn_scalar", 1e-6, 1e6));
}

/** False and 0 are none, too. */
function readSoftCap(json: JsonFields, name: string): number | undefined {
  return json.get(name) ? json.number(name, 1e-6, 1e6) : undefined;
}

/**
 * The window of each layer. Those that `layer_types` names have one; without it, those that the family says.
 * `use_sliding_window: false`, Qwen's default, turns it off.
 */
function readLayerWindows(json: JsonFields, defaults: FamilyDefaults, numLayers: number): number[] {
  const enabled = json.boolean("use_sliding_window", defaults.usesSlidingWindow);
  const fallback = json.isNull("sliding_window") ? 0 : defaults.slidingWindow;
  const window = enabled ? json.integer("sliding_window", 0, 2 ** 30, fallback) : 0;
  const types = json.strings("layer_types");
  const last = defaults.lastLayerIsFull ? numLayers - 1 : numLayers;
  if (types === undefined) {
    const hasWindow = windowedLayers(json, defaults, numLayers, window);
    return Array.from({ length: numLayers }, (_, layer) => (layer < last && hasWindow(layer) ? window : 0));
  }
  if (types.length !== numLayers) throw json.invalid("layer_types", `a list of ${numLayers} types`);
  return types.map((type, layer) => {
    if (type === "full_attention" || layer >= last) return 0;
    if (type !== "sliding_attention")
      throw new UnsupportedModelError(json.file, `layer type ${JSON.stringify(type)} is not supported`);
    if (window === 0) throw json.invalid("sliding_window", "above 0 when layer_types has sliding_attention");
    return window;
  });
}

/** Whether a layer has the window, where layers are not listed. */
function windowedLayers(
  json: JsonFields,
  { fullLayerInterval, firstWindowLayer, noRopeInterval, listsWindows }: FamilyDefaults,
  numLayers: number,
  window: number,
): (layer: number) => boolean {
  if (fullLayerInterval !== undefined) {
    const interval = json.integer("sliding_window_pattern", 1, 1e6, fullLayerInterval);
    return (layer) => (layer + 1) % interval !== 0;
  }
  const unlisted = listsWindows ? "use_sliding_window" : "sliding_window_pattern";
  if (window > 0 && json.has(unlisted))
    throw new UnsupportedModelError(json.file, `${unlisted} without layer_types is not supported`);
  if (noRopeInterval !== undefined) {
    const hasRope = readLayersWithRope(json, numLayers, noRopeInterval);
    return (layer) => !hasRope(layer);
  }
  if (firstWindowLayer === undefined) return () => true;
  const first = json.integer("max_window_layers", 0, 1e6, firstWindowLayer);
  return (layer) => layer >= first;
}
