import { ConfigError, invariant } from "../base/errors.ts";
import { MAX_RANKS, type Shard } from "../base/shard.ts";
import type { ModelConfig } from "./config.ts";

/**
 * Checks that ranks can have equal parts of a model: as many query heads, intermediate dimensions (of each expert, too), key heads of linear
 * attention and tokens of the vocabulary each, and as many key/value heads, or one that several ranks hold.
 * @throws ConfigError naming the numbers of ranks that would do.
 */
export function checkShard(config: ModelConfig, { rank, size }: Shard): void {
  invariant(0 <= rank && rank < size, `rank ${rank} of ${size}`);
  if (divides(config, size)) return;
  const { numHeads, layerKvHeads, vocabSize, linearAttention } = config;
  const kvHeads = [...new Set(layerKvHeads.map(({ numKvHeads }) => numKvHeads))].join(" and ");
  const widths = widthsOf(config).join(" and ");
  const sizes = Array.from({ length: MAX_RANKS }, (_, i) => i + 1).filter((n) => divides(config, n));
  const linear = linearAttention && `${linearAttention.numKeyHeads} key heads of linear attention, `;
  const parts = `${numHeads} heads, ${kvHeads} key/value heads, ${linear ?? ""}${widths} intermediate dimensions and ${vocabSize} tokens`;
  const message = `tensorParallelSize ${size} does not divide the model's ${parts}; what does is ${sizes.join(", ")}`;
  throw new ConfigError("tensorParallelSize", message);
}

function divides(config: ModelConfig, ranks: number): boolean {
  const { numHeads, layerKvHeads, vocabSize, linearAttention } = config;
  const keyHeads = linearAttention?.numKeyHeads ?? ranks;
  const isShared = (kvHeads: number) => kvHeads % ranks === 0 || ranks % kvHeads === 0;
  return (
    [numHeads, vocabSize, keyHeads, ...widthsOf(config)].every((count) => count % ranks === 0) &&
    layerKvHeads.every(({ numKvHeads }) => isShared(numKvHeads))
  );
}

/** The intermediate sizes of the model's feed-forward blocks. */
function widthsOf({ intermediateSize, experts }: ModelConfig): number[] {
  if (experts === undefined) return [intermediateSize];
  const hasDense = experts.areBesideDense || !experts.layers.every(Boolean);
  const dense = hasDense ? [intermediateSize] : [];
  const { sharedIntermediateSize } = experts;
  const shared = sharedIntermediateSize === 0 ? [] : [sharedIntermediateSize];
  return [...new Set([...dense, experts.intermediateSize, ...shared])];
}
