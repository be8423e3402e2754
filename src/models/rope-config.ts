import { ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import { type RopeConfig, type RopeScaling, rotaryDim } from "../layers/rotary.ts";
import type { JsonFields } from "./json-fields.ts";

const MAX_POSITIONS = 2 ** 30;

/**
 * Rotary embedding from either spelling: `rope_theta` with `rope_scaling` (whose kind is `type` or `rope_type`), or
 * `rope_parameters`, which holds both. As in transformers, `rope_scaling` wins where there are both.
 * @param positions `max_position_embeddings`
 * @throws UnsupportedModelError for scaling that Octavo does not implement; ModelDataError.
 */
export function readRopeConfig(config: JsonFields, headDim: number, positions: number): RopeConfig {
  const scaling = config.object("rope_scaling");
  const parameters = scaling?.isEmpty === false ? scaling : config.object("rope_parameters");
  const byLayer = ["full_attention", "sliding_attention"].some((type) => parameters?.has(type));
  if (byLayer || config.has("rope_local_base_freq"))
    throw new UnsupportedModelError(config.file, "rope that differs between layers is not supported");

  const either = (name: string) => (parameters?.has(name) ? parameters : config);
  const rope: RopeConfig = {
    theta: either("rope_theta").number("rope_theta", 1, 1e12, 10_000),
    partialRotaryFactor: either("partial_rotary_factor").number("partial_rotary_factor", 0, 1, 1),
    scaling: Object.freeze(
      readScaling(parameters, originalPositions(config, parameters, positions), positions),
    ),
  };
  if (rope.scaling.kind === "factors" && rope.scaling.factors.length !== rotaryDim(headDim, rope) / 2)
    throw parameters!.invalid("factors", `a list of ${rotaryDim(headDim, rope) / 2} factors`);
  if (rotaryDim(headDim, rope) === 0)
    throw new ModelDataError(
      config.file,
      `partial_rotary_factor ${rope.partialRotaryFactor} rotates no dimension`,
    );
  return Object.freeze(rope);
}

/** Positions that scaling makes of those of training, where it says so: YaRN's factor does; 0 for all else. */
export function stretchedPositions({ scaling }: RopeConfig): number {
  if (scaling.kind !== "yarn") return 0;
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
      return readYarn(fields, original, positions);
    case "factors":
      return { kind, factors: Object.freeze(readFactors(fields)) };
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
  if (fields.boolean("truncate", true) === false)
    throw new UnsupportedModelError(fields.file, "yarn with truncate: false is not supported");
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
    attentionFactor,
  };
}

function readFactors(fields: JsonFields): number[] {
  const factors = fields.get("factors");
  const isFactor = (factor: unknown) => typeof factor === "number" && factor > 0 && factor < 1e6;
  if (Array.isArray(factors) && factors.every(isFactor)) return [...factors];
  throw fields.invalid("factors", "a list of positive numbers");
}
