/**
 * A sequence's blocks in one group of layers, in order of position. They are held from `first` on: no token to come sees those
 * before.
 */
export interface BlockTable {
  readonly blocks: number[];
  first: number;
}

/** The entry of a block that a sequence never held. */
export const NO_BLOCK = -1;
