/** The pools of sequences' memory. */
export interface CacheConfig {
  /** Tokens of a KV block, and how many blocks there are. */
  readonly blockSize: number;
  readonly numBlocks: number;
  /** Groups of the model's layers, each of which has blocks of its own for a sequence. Undefined: one. */
  readonly numGroups?: number;
  /** Sequences that have room for a state, of models that keep one. Undefined: the model keeps none. */
  readonly numStates?: number;
  /** Snapshots of states that prefixes are cached by, of such models; 0: none are cached. */
  readonly numSnapshots?: number;
}
