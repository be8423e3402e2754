/**
 * Layers of a model that attend equally far back. Each group has blocks of its own: a block of the pool holds keys and values of the
 * layers of one group, any one.
 */
export interface KvGroup {
  /** Tokens that a query may read of its sequence at most, counted back from itself; infinite without a window. */
  readonly reach: number;
}

/** The first block that queries from `position` on read. */
export function firstSeenBlock({ reach }: KvGroup, position: number, blockSize: number): number {
  return Math.max(0, Math.floor((position + 1 - reach) / blockSize));
}

/** The most blocks that a sequence of any length needs at a time to have its next token computed. */
function blocksInReach({ reach }: KvGroup, blockSize: number): number {
  return Math.ceil((reach - 1) / blockSize) + 1;
}

/** Blocks without which a sequence of so many tokens cannot be computed, a token at a time. */
export function blocksOfSequence(groups: readonly KvGroup[], tokens: number, blockSize: number): number {
  const entries = Math.ceil(tokens / blockSize);
  return groups.reduce((sum, group) => sum + Math.min(entries, blocksInReach(group, blockSize)), 0);
}

/** Tokens of the longest sequence that so many blocks hold, computed token by token if need be; infinite if all groups have a window. */
export function tokensInPool(groups: readonly KvGroup[], numBlocks: number, blockSize: number): number {
  const limits = groups.map((group) => blocksInReach(group, blockSize)).sort((a, b) => a - b);
  let left = numBlocks;
  for (const [i, limit] of limits.entries()) {
    // Groups from here on take `length` blocks each, those before no more than they reach.
    const length = Math.floor(left / (limits.length - i));
    if (length < limit) return length * blockSize;
    left -= limit;
  }
  return Infinity;
}
