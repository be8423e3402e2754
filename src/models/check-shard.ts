import { ConfigError, invariant } from "../base/errors.ts";
import { MAX_RANKS, type Shard } from "../base/shard.ts";
import type { ModelConfig } from "./config.ts";

/**
 * Checks that ranks can have equal parts of a model: as many query heads, intermediate dimensions and tokens of the
 * vocabulary each, and as many key/value heads, or one that several ranks hold.
 * @throws ConfigError naming the numbers of ranks that would do.
 */
export function checkShard(config: ModelConfig, { rank, size }: Shard): void {
  invariant(0 <= rank && rank < size, `rank ${rank} of ${size}`);
  if (divides(config, size)) return;
  const { numHeads, numKvHeads, intermediateSize, vocabSize } = config;
  const sizes = Array.from({ length: MAX_RANKS }, (_, i) => i + 1).filter((n) => divides(config, n));
  const parts = `${numHeads} heads, ${numKvHeads} key/value heads, ${intermediateSize} intermediate dimensions and ${vocabSize} tokens`;
  const message = `tensorParallelSize ${size} does not divide the model's ${parts}; what does is ${sizes.join(", ")}`;
  throw new ConfigError("tensorParallelSize", message);
}

function divides({ numHeads, numKvHeads, intermediateSize, vocabSize }: ModelConfig, ranks: number): boolean {
  const kvHeads = numKvHeads % ranks === 0 || ranks % numKvHeads === 0;
  return [numHeads, intermediateSize, vocabSize].every((count) => count % ranks === 0) && kvHeads;
}
