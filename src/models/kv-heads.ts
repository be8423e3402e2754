import type { KvHeads } from "../backend/attention-spec.ts";
import { lengthOf, type Shard, shareOf } from "../base/shard.ts";
import type { ModelConfig } from "./config.ts";

/** The layers that have a cache of their own, in the order of the caches: they have attention, and store keys and values. */
export function layersWithCache({ kvSources, linearAttention }: ModelConfig): number[] {
  return [...kvSources.keys()].filter(
    (layer) => kvSources[layer] === layer && !linearAttention?.layers[layer],
  );
}

/** What a rank caches for each token, in each of the layers with a cache. */
export function kvHeadsOf(config: ModelConfig, shard: Shard): KvHeads[] {
  return layersWithCache(config).map((layer) => rankHeads(config.layerKvHeads[layer]!, shard));
}

/** A rank's part of a layer's heads; of fewer heads than ranks, several hold the same one. */
export function rankHeads({ numKvHeads, headDim }: KvHeads, shard: Shard): KvHeads {
  return { numKvHeads: lengthOf(shareOf(numKvHeads, shard)), headDim };
}
