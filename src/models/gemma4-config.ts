import type { KvHeads } from "../backend/attention-spec.ts";
import { UnsupportedModelError } from "../base/errors.ts";
import type { JsonFields } from "./json-fields.ts";

/** What Gemma 4's layers have besides Gemma 3's. */
export interface Gemma4Config {
  /** Layers without a window take their values from `k_proj`. */
  readonly keysAreValues: boolean;
  /** Dimensions of the input that each layer has of a token besides the residual stream; 0 = there is none. */
  readonly perLayerInputSize: number;
  /** Whether each layer's feed-forward block has twice the intermediate size. */
  readonly doubleWide: readonly boolean[];
}

/** `Gemma4Config`, and what it makes of the fields of all models. */
export interface Gemma4Layers extends Gemma4Config {
  /** See `ModelConfig`. */
  readonly layerKvHeads: readonly KvHeads[];
  readonly kvSources: readonly number[];
}

/** Heads of layers without a window are this large, unless a config says otherwise. */
const FULL_HEAD_DIM = 512;
/** Fields that `per_layer_config` may have of a layer. */
const LAYER_FIELDS: ReadonlySet<string> = new Set(["head_dim", "num_key_value_heads"]);

/**
 * The heads of layers without a window are in `global_head_dim` and `num_global_key_value_heads`, or, as transformers writes them
 * since 5.24, in `per_layer_config` by layers' numbers.
 * @param model fields that all models have
 * @param windows each layer's, 0 = none
 * @param usual heads of layers with a window
 * @throws ModelDataError naming a field that is out of range; UnsupportedModelError
 */
export function readGemma4(
  json: JsonFields,
  { vocabSize, numHeads }: { readonly vocabSize: number; readonly numHeads: number },
  windows: readonly number[],
  usual: KvHeads,
): Gemma4Layers {
  const numLayers = windows.length;
  const keysAreValues = json.boolean("attention_k_eq_v", false);
  const fallback = json.isNull("hidden_size_per_layer_input") ? 0 : 256;
  const perLayerInputSize = json.integer("hidden_size_per_layer_input", 0, 1e6, fallback);
  const inputs = json.integer("vocab_size_per_layer_input", 0, 1e7, vocabSize);
  if (perLayerInputSize > 0 && inputs !== vocabSize)
    throw new UnsupportedModelError(
      json.file,
      `${json.nameOf("vocab_size_per_layer_input")} ${inputs} beside a vocabulary of ${vocabSize} is not supported`,
    );
  checkRopes(json, windows);
  const shared = json.integer("num_kv_shared_layers", 0, numLayers - 1, 0);
  const kvSources = readKvSources(json, windows, numLayers - shared);
  const isWide = json.boolean("use_double_wide_mlp", false);
  return {
    ...{ keysAreValues, perLayerInputSize, kvSources },
    layerKvHeads: readLayerHeads(json, numHeads, windows, usual, keysAreValues),
    doubleWide: Object.freeze(kvSources.map((source, layer) => isWide && source !== layer)),
  };
}

/** Layers from the first shared one on attend to the last layer of their kind before it. */
function readKvSources(json: JsonFields, windows: readonly number[], firstShared: number): readonly number[] {
  const sources = windows.map((window, layer) => {
    if (layer < firstShared) return layer;
    return windows.findLastIndex((other, i) => i < firstShared && other > 0 === window > 0);
  });
  if (sources.includes(-1))
    throw json.invalid(
      "num_kv_shared_layers",
      "few enough for a layer of each type to have keys and values of its own",
    );
  return Object.freeze(sources);
}

function readLayerHeads(
  json: JsonFields,
  numHeads: number,
  windows: readonly number[],
  usual: KvHeads,
  keysAreValues: boolean,
): readonly KvHeads[] {
  const read = (fields: JsonFields, heads: string, dim: string, fallback: KvHeads): KvHeads => {
    const numKvHeads = fields.integer(heads, 1, 4096, fallback.numKvHeads);
    if (numHeads % numKvHeads !== 0) throw fields.invalid(heads, `a divisor of ${numHeads} heads`);
    const headDim = fields.integer(dim, 2, 1024, fallback.headDim);
    if (headDim % 2 !== 0) throw fields.invalid(dim, "even");
    return Object.freeze({ numKvHeads, headDim });
  };
  const byLayer = json.object("per_layer_config");
  if (byLayer !== undefined) checkLayers(byLayer, windows.length);
  const [own, large] = ["num_key_value_heads", { ...usual, headDim: FULL_HEAD_DIM }];
  const full = read(json, keysAreValues ? "num_global_key_value_heads" : own, "global_head_dim", large);
  if (byLayer === undefined) return Object.freeze(windows.map((window) => (window === 0 ? full : usual)));
  const layers = windows.map((_, layer) => {
    const fields = byLayer.object(String(layer));
    return fields === undefined ? usual : read(fields, own, "head_dim", usual);
  });
  // They have one rope, and those that share keys and values read what others wrote.
  for (const [layer, { numKvHeads, headDim }] of layers.entries()) {
    const first = layers[windows.findIndex((window) => window > 0 === windows[layer]! > 0)]!;
    if (numKvHeads !== first.numKvHeads || headDim !== first.headDim)
      throw json.invalid("per_layer_config", "the same for all layers of a type");
  }
  return Object.freeze(layers);
}

/** Of layers by their numbers nothing may differ but their heads. */
function checkLayers(byLayer: JsonFields, numLayers: number): void {
  for (const layer of byLayer.keys) {
    const isLayer = /^\d{1,4}$/.test(layer) && Number(layer) < numLayers;
    if (!isLayer) throw byLayer.invalid(layer, `of a layer from 0 to ${numLayers - 1}`);
    const fields = byLayer.object(layer);
    const other = fields?.keys.find((name) => !LAYER_FIELDS.has(name));
    if (other !== undefined)
      throw new UnsupportedModelError(byLayer.file, `${fields!.nameOf(other)} of a layer is not supported`);
  }
}

/** As transformers has it, layer types have no rope but what the config gives all of them, or none. */
function checkRopes(json: JsonFields, windows: readonly number[]): void {
  const ropes = json.object("rope_parameters");
  if (ropes === undefined) throw json.invalid("rope_parameters", "an object");
  for (const window of new Set(windows)) {
    const type = window > 0 ? "sliding_attention" : "full_attention";
    const rope = ropes.object(type);
    if (rope === undefined) throw ropes.invalid(type, "an object");
    rope.number("rope_theta", 1, 1e12);
  }
}
