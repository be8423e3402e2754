/** Counts are of sequences (completions), tokens where it says so; totals are since the start. */
export interface EngineStats {
  readonly running: number;
  readonly waiting: number;
  /** Share of the KV blocks in use, 0–1. */
  readonly kvUsage: number;
  /** Blocks that hold a reusable prefix, in use or not. */
  readonly cachedBlocks: number;
  readonly steps: number;
  readonly preemptions: number;
  /** Prompt tokens looked up in the prefix cache, and found there. */
  readonly prefixQueries: number;
  readonly prefixHits: number;
  readonly promptTokens: number;
  readonly generationTokens: number;
}
