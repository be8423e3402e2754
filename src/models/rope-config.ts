import type { KvHeads } from "../backend/attention-spec.ts";
import { ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import { type QueryScaling, type RopeConfig, type RopeScaling, rotaryDim } from "../layers/rotary.ts";
import type { JsonFields } from "./json-fields.ts";

const MAX_POSITIONS = 2 ** 30;
const LAYER_TYPES = ["full_attention", "sliding_attention"];

/** What a family says of its layers' ropes where a config does not. */
export interface RopeDefaults {
  /** Default 10,000. */
  readonly ropeTheta?: number;
  /** Layers with a window have a rope of their own, without scaling; its theta by default that of the others. */
  readonly slidingRope?: { readonly theta?: number };
  /** Every so manyth layer has no rope, unless the config lists those that have. */
  readonly noRopeInterval?: number;
}

/**
 * Each layer's rotary embedding; layers of one kind share an object. It is read from either spelling: `rope_theta` with
 * `rope_scaling` (whose kind is `type` or `rope_type`), or `rope_parameters`, which holds both and may have an entry for
 * each layer type. As in transformers, `rope_scaling` wins where there are both.
 * @param heads each layer's
 * @param positions `max_position_embeddings`
 * @param windows each layer's, 0 = none
 * @throws UnsupportedModelError for scaling that Octavo does not implement; ModelDataError.
 */
export function readLayerRopes(
  config: JsonFields,
  heads: readonly KvHeads[],
  positions: number,
  windows: readonly number[],
  defaults: RopeDefaults,
): (RopeConfig | undefined)[] {
  const scaling = config.object("rope_scaling");
  const parameters = config.object("rope_parameters");
  const shared = scaling?.isEmpty === false ? scaling : parameters;
  const read = (fields: JsonFields | undefined, theta: number, isSliding: boolean) => {
    const layer = windows.findIndex((window) => window > 0 === isSliding);
    return readRope(config, fields, theta, heads[Math.max(0, layer)]!.headDim, positions);
  };
  const { ropeTheta = 10_000, slidingRope, noRopeInterval } = defaults;
  const theta = config.number("rope_theta", 1, 1e12, ropeTheta);
  const byType = (type: string) => parameters?.object(type);

  const full = read(byType("full_attention") ?? (hasTypes(shared) ? undefined : shared), theta, false);
  const slidingTheta = config.number("rope_local_base_freq", 1, 1e12, slidingRope?.theta ?? theta);
  const isApart = hasTypes(parameters) || slidingRope !== undefined || config.has("rope_local_base_freq");
  const sliding = isApart ? read(byType("sliding_attention"), slidingTheta, true) : full;
  const hasRope = readLayersWithRope(config, windows.length, noRopeInterval);
  return windows.map((window, layer) => (!hasRope(layer) ? undefined : window > 0 ? sliding : full));
}

/** Whether `rope_parameters` are by layer type. */
function hasTypes(parameters: JsonFields | undefined): boolean {
  return LAYER_TYPES.some((type) => parameters?.has(type));
}

/** Whether a layer has a rope: by `no_rope_layers`, in which 1 stands for one that has. */
export function readLayersWithRope(config: JsonFields, layers: number, defaultInterval: number | undefined) {
  if (defaultInterval === undefined) return () => true;
  const listed = config.get("no_rope_layers");
  if (Array.isArray(listed) && listed.length > 0) {
    if (listed.length !== layers || !listed.every((has) => has === 0 || has === 1))
      throw config.invalid("no_rope_layers", `a list of ${layers} zeros and ones`);
    return (layer: number) => listed[layer] === 1;
  }
  const interval = config.integer("no_rope_layer_interval", 1, 1e6, defaultInterval);
  return (layer: number) => (layer + 1) % interval !== 0;
}

/** @param parameters scaling, and what it may hold besides */
function readRope(
  config: JsonFields,
  parameters: JsonFields | undefined,
  theta: number,
  headDim: number,
  positions: number,
): RopeConfig {
  const share = parameters?.has("partial_rotary_factor") ? parameters : config;
  const rope: RopeConfig = {
    theta: parameters?.number("rope_theta", 1, 1e12, theta) ?? theta,
    partialRotaryFactor: share.number("partial_rotary_factor", 0, 1, 1),
    scaling: Object.freeze(
      readScaling(parameters, originalPositions(config, parameters, positions), positions),
    ),
  };
  const dim = rotaryDim(headDim, rope);
  const { scaling } = rope;
  const lists = {
    factors: scaling.kind === "factors" ? scaling.factors : undefined,
    ...(scaling.kind === "longrope" && {
      short_factor: scaling.shortFactors,
      long_factor: scaling.longFactors,
    }),
  };
  for (const [name, list] of Object.entries(lists)) {
    if (list !== undefined && list.length !== dim / 2)
      throw parameters!.invalid(name, `a list of ${dim / 2} factors`);
  }
  if (dim === 0)
    throw new ModelDataError(
      config.file,
      `partial_rotary_factor ${rope.partialRotaryFactor} rotates no dimension`,
    );
  if (scaling.kind === "dynamic" && dim === 2)
    throw new UnsupportedModelError(config.file, "dynamic rope of two dimensions is not supported");
  return Object.freeze(rope);
}

/** Scaling of queries by position: `rope_parameters` may hold `llama_4_scaling_beta`. */
export function readQueryScaling(config: JsonFields, positions: number): QueryScaling | undefined {
  const scaling = config.object("rope_scaling");
  const parameters = scaling?.isEmpty === false ? scaling : config.object("rope_parameters");
  const beta = parameters?.number("llama_4_scaling_beta", 0, 1e6, 0) ?? 0;
  if (beta === 0) return undefined;
  return { beta, originalMaxPositionEmbeddings: originalPositions(config, parameters, positions) };
}

/** Positions that scaling makes of those of training, where its factor says so: YaRN's and NTK's do; 0 for all else. */
export function stretchedPositions({ scaling }: RopeConfig): number {
  if (scaling.kind !== "yarn" && scaling.kind !== "dynamic") return 0;
  return Math.min(Math.floor(scaling.originalMaxPositionEmbeddings * scaling.factor), MAX_POSITIONS);
}

/** Positions of training: the config's own field, else that of the scaling, else `max_position_embeddings`. */
function originalPositions(config: JsonFields, scaling: JsonFields | undefined, positions: number): number {
  const name = "original_max_position_embeddings";
  const inner = scaling?.integer(name, 1, MAX_POSITIONS, undefined);
  return config.integer(name, 1, MAX_POSITIONS, inner ?? positions);
}

/** @param original positions of training */
function readScaling(fields: JsonFields | undefined, original: number, positions: number): RopeScaling {
  if (fields === undefined) return { kind: "none" };
  if (fields.has("mrope_section"))
    throw new UnsupportedModelError(fields.file, "multimodal rope (mrope_section) is not supported");
  const kind = fields.string(fields.has("rope_type") ? "rope_type" : "type", "default");
  const factor = () => fields.number("factor", 1, 1e6);
  switch (kind) {
    case "default":
      return { kind: "none" };
    case "linear":
      return { kind, factor: factor() };
    case "dynamic":
      return { kind, factor: factor(), originalMaxPositionEmbeddings: positions };
    case "proportional":
      return { kind, factor: fields.number("factor", 1, 1e6, 1) };
    case "longrope":
    case "su":
      return readLongRope(fields, original, positions);
    case "llama3": {
      const lowFreqFactor = fields.number("low_freq_factor", 1e-6, 1e6);
      const highFreqFactor = fields.number("high_freq_factor", 1e-6, 1e6);
      if (highFreqFactor <= lowFreqFactor) throw fields.invalid("high_freq_factor", "above low_freq_factor");
      return {
        kind,
        factor: factor(),
        lowFreqFactor,
        highFreqFactor,
        originalMaxPositionEmbeddings: original,
      };
    }
    case "yarn":
      // Phi-3's first files call it so.
      if (fields.has("short_factor")) return readLongRope(fields, original, positions);
      return readYarn(fields, original, positions);
    case "factors":
      return { kind, factors: Object.freeze(readFactors(fields, "factors")) };
  }
  throw new UnsupportedModelError(fields.file, `rope type "${kind}" is not supported`);
}

/**
 * The default factor is what the positions are stretched by. The default temperature is that of transformers: from
 * `mscale` and `mscale_all_dim` if both are given.
 */
function readYarn(fields: JsonFields, original: number, positions: number): RopeScaling {
  const factor =
    positions > original
      ? fields.number("factor", 1, 1e6, positions / original)
      : fields.number("factor", 1, 1e6);
  const betaFast = fields.number("beta_fast", 1e-6, 1e6, 32);
  const betaSlow = fields.number("beta_slow", 1e-6, 1e6, 1);
  if (betaFast < betaSlow) throw fields.invalid("beta_fast", "at least beta_slow");
  const temperature = (scale: number) => 0.1 * scale * Math.log(factor) + 1;
  const mscale = fields.number("mscale", 0, 1e6, 0);
  const mscaleAllDim = fields.number("mscale_all_dim", 0, 1e6, 0);
  const both = mscale > 0 && mscaleAllDim > 0;
  const fallback = both ? temperature(mscale) / temperature(mscaleAllDim) : temperature(1);
  const attentionFactor = fields.number("attention_factor", 1e-6, 1e6, fallback);
  return {
    kind: "yarn",
    factor,
    betaFast,
    betaSlow,
    originalMaxPositionEmbeddings: original,
    truncate: fields.boolean("truncate", true),
    attentionFactor,
  };
}

/** The default temperature is that of transformers, from what the positions are stretched by. */
function readLongRope(fields: JsonFields, original: number, positions: number): RopeScaling {
  const factor = fields.number("factor", 1e-6, 1e6, positions / original);
  const fallback = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original));
  return {
    kind: "longrope",
    shortFactors: Object.freeze(readFactors(fields, "short_factor")),
    longFactors: Object.freeze(readFactors(fields, "long_factor")),
    originalMaxPositionEmbeddings: original,
    attentionFactor: fields.number("attention_factor", 1e-6, 1e6, fallback),
  };
}

function readFactors(fields: JsonFields, name: string): number[] {
  const factors = fields.get(name);
  const isFactor = (factor: unknown) => typeof factor === "number" && factor > 0 && factor < 1e6;
  if (Array.isArray(factors) && factors.every(isFactor)) return [...factors];
  throw fields.invalid(name, "a list of positive numbers");
}
