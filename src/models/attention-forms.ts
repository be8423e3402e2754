import type { LayerAttention } from "../backend/backend.ts";
import type { Shard } from "../base/shard.ts";
import { rotaryDim } from "../layers/rotary.ts";
import type { ModelConfig } from "./config.ts";
import { rankHeads } from "./kv-heads.ts";

/** The attention that a model's layers have on a rank, each once. */
export function attentionFormsOf(config: ModelConfig, shard: Shard): LayerAttention[] {
  const { numKvHeads, headDim, layerKvHeads, layerRopes } = config;
  const { queryScaling, attentionSoftCap, attentionSinks } = config;
  const forms = layerRopes.map((rope, layer): LayerAttention => {
    const heads = layerKvHeads[layer]!;
    const readsOnly = config.kvSources[layer] !== layer;
    const isUsual = heads.numKvHeads === numKvHeads && heads.headDim === headDim;
    return {
      rotaryDim: rope === undefined ? 0 : rotaryDim(heads.headDim, rope),
      hasQueryScales: queryScaling !== undefined,
      hasSoftCap: attentionSoftCap !== undefined,
      hasSinks: attentionSinks,
      normsValues: config.gemma4 !== undefined && !readsOnly,
      readsOnly,
      ...(!isUsual && { kvHeads: rankHeads(heads, shard) }),
    };
  });
  return [...new Map(forms.map((form) => [JSON.stringify(form), form])).values()];
}
