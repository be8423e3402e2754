import { ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import { type RopeConfig, type RopeScaling, rotaryDim } from "../layers/rotary.ts";
import type { JsonFields } from "./json-fields.ts";

const MAX_POSITIONS = 2 ** 30;

/**
 * Rotary embedding from either spelling: `rope_theta` with `rope_scaling` (whose kind is `type` or `rope_type`), or
 * `rope_parameters`, which holds both.
 * @throws UnsupportedModelError for scaling that Octavo does not implement; ModelDataError.
 */
export function readRopeConfig(config: JsonFields, headDim: number, maxPositions: number): RopeConfig {
  const parameters = config.object("rope_parameters");
  const byLayer = ["full_attention", "sliding_attention"].some((type) => parameters?.has(type));
  if (byLayer || config.has("rope_local_base_freq"))
    throw new UnsupportedModelError(config.file, "rope that differs between layers is not supported");

  const either = (name: string) => (parameters?.has(name) ? parameters : config);
  const rope: RopeConfig = {
    theta: either("rope_theta").number("rope_theta", 1, 1e12, 10_000),
    partialRotaryFactor: either("partial_rotary_factor").number("partial_rotary_factor", 0, 1, 1),
    scaling: Object.freeze(readScaling(parameters ?? config.object("rope_scaling"), maxPositions)),
  };
  if (rotaryDim(headDim, rope) === 0)
    throw new ModelDataError(
      config.file,
      `partial_rotary_factor ${rope.partialRotaryFactor} rotates no dimension`,
    );
  return Object.freeze(rope);
}

function readScaling(fields: JsonFields | undefined, maxPositions: number): RopeScaling {
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
      const originalMaxPositionEmbeddings = fields.integer(
        "original_max_position_embeddings",
        1,
        MAX_POSITIONS,
      );
      return { kind, factor: factor(), lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings };
    }
    case "yarn":
      return readYarn(fields, factor(), maxPositions);
  }
  throw new UnsupportedModelError(fields.file, `rope type "${kind}" is not supported`);
}

/** The default temperature is that of transformers: from `mscale` and `mscale_all_dim` if both are given. */
function readYarn(fields: JsonFields, factor: number, maxPositions: number): RopeScaling {
  if (fields.boolean("truncate", true) === false)
    throw new UnsupportedModelError(fields.file, "yarn with truncate: false is not supported");
  const positions = fields.integer("original_max_position_embeddings", 1, MAX_POSITIONS, maxPositions);
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
    originalMaxPositionEmbeddings: positions,
    attentionFactor,
  };
}
