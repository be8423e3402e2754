import type { KvHeads } from "../backend/attention-spec.ts";
import { lengthOf, type Shard, shareOf } from "../base/shard.ts";
import type { ModelConfig } from "./config.ts";

/** The layers that have a cache of their own, in the order of the caches: they have attention, and store keys and values. */
export function layersWithCache({ kvSources, linearAttention }: ModelConfig): number[] {
  return [...kvSources.keys()].filter(
    (layer) => kvSources[layer] === layer && !linearAttention?.layers[layer],
  );
}

/** A layer with a cache of its own, as a rank has it. */
export interface CachedLayer extends KvHeads {
  /** Tokens that queries see of it at most, those of other layers that attend to it too; 0: all. */
  readonly window: number;
}

/** The layers with a cache, in the order of the caches. */
export function cachedLayersOf(config: ModelConfig, shard: Shard): CachedLayer[] {
  return layersWithCache(config).map((layer) => {
    const windows = config.layerWindows.filter((_, reader) => config.kvSources[reader] === layer);
    const window = windows.includes(0) ? 0 : Math.max(...windows);
    return { ...rankHeads(config.layerKvHeads[layer]!, shard), window };
  });
}

/** A rank's part of a layer's heads; of fewer heads than ranks, several hold the same one. */
export function rankHeads({ numKvHeads, headDim }: KvHeads, shard: Shard): KvHeads {
  return { numKvHeads: lengthOf(shareOf(numKvHeads, shard)), headDim };
}
