/** Words of the record of a row to compute. */
export const RowWord = {
  slot: 0,
  /** Tokens to compute, at least 1. */
  count: 1,
  /** Index in `SampleRows` at which to sample after the row's last token; −1: do not. */
  sample: 2,
  /** Index in the slot's block tables at which the row brings blocks; −1: none. */
  blockIndex: 3,
  /** The first of G words: the block of each group's table at that index; −1: that table stays as it is. */
  block: 4,
} as const;

/** Words of a row's record where there are so many groups of layers. */
export function rowWords(groups: number): number {
  return RowWord.block + groups;
}
