import type { AttentionForm } from "../backend/attention-spec.ts";
import { rotaryDim } from "../layers/rotary.ts";
import type { ModelConfig } from "./config.ts";

/** The forms that the attention of a model's layers has, each once. */
export function attentionFormsOf(config: ModelConfig): AttentionForm[] {
  const { headDim, layerRopes, queryScaling, attentionSoftCap, attentionSinks } = config;
  const rotaryDims = new Set(layerRopes.map((rope) => (rope === undefined ? 0 : rotaryDim(headDim, rope))));
  return [...rotaryDims].map((dim) => ({
    rotaryDim: dim,
    hasQueryScales: queryScaling !== undefined,
    hasSoftCap: attentionSoftCap !== undefined,
    hasSinks: attentionSinks,
  }));
}
