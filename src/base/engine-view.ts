import type { EngineStats } from "./engine-stats.ts";

/**
 * An engine between two of its steps, for people who look: in typed arrays, so that they can be transferred, and without a
 * word of what is said in them.
 */
export interface EngineView {
  readonly stats: EngineStats;
  /** [numBlocks] a word for each block of the KV cache: `blockOf` reads it. */
  readonly blocks: Uint32Array<ArrayBuffer>;
  /** [n · RUNNING_FIELDS.length] the sequences that run, in order of arrival. */
  readonly running: Int32Array<ArrayBuffer>;
  /** [n · WAITING_FIELDS.length] the first of the sequences that wait, MAX_WAITING at most. */
  readonly waiting: Int32Array<ArrayBuffer>;
  /**
   * [n · 3] blocks that sequences have from others, MAX_SHARED_RUNS runs of them at most: the sequence, the first block, and
   * the number of blocks, whose numbers follow each other.
   */
  readonly shared: Int32Array<ArrayBuffer>;
}

/** The fields of a sequence in `running`. */
export const RUNNING_FIELDS = [
  /** Its number: sequences are counted as they arrive. */
  "sequence",
  /** The place of its state on the device, which block words name. */
  "slot",
  /** Tokens of the prompt. */
  "promptTokens",
  /** Those of them that were found in the prefix cache. */
  "cachedTokens",
  /** Tokens of prompt and output that are in the KV cache. */
  "computedTokens",
  /** Tokens of prompt and output that are known. */
  "tokens",
  /** Tokens that it may come to. */
  "maxTokens",
  /** Blocks that it holds. */
  "blocks",
] as const;

/** The fields of a sequence in `waiting`. */
export const WAITING_FIELDS = [
  "sequence",
  "promptTokens",
  /** Tokens that are known; more than the prompt has if it ran before. */
  "tokens",
  /** 1: it ran, and was put back for want of blocks; 0: it has not been begun. */
  "preempted",
] as const;

export type RunningSequence = Readonly<Record<(typeof RUNNING_FIELDS)[number], number>>;
export type WaitingSequence = Readonly<Record<(typeof WAITING_FIELDS)[number], number>>;

export const MAX_WAITING = 64;
export const MAX_SHARED_RUNS = 4096;

/** A block of the KV cache. */
export interface BlockState {
  /** Its contents are in the prefix cache. */
  readonly isCached: boolean;
  /** Sequences that hold it, 255 at most; 0: it is free. */
  readonly holders: number;
  /** The slot of the first of them; −1: none. */
  readonly slot: number;
  /** The group of layers that they hold it for; 0 if nobody does. */
  readonly group: number;
}

const SLOT_MASK = 2 ** 14 - 1;
const CACHED = 2 ** 14;
const HOLDERS_SHIFT = 16;
const MAX_HOLDERS = 255;
const GROUP_SHIFT = 24;

/** The word of a block before its first holder is known. */
export function blockWord(isCached: boolean, holders: number): number {
  return (isCached ? CACHED : 0) | (Math.min(holders, MAX_HOLDERS) << HOLDERS_SHIFT);
}

/** The word with the block's first holder, of which `hasHolder` is true. Slots beyond 16,382 all count as that one. */
export function withHolder(word: number, slot: number, group: number): number {
  return word | Math.min(slot + 1, SLOT_MASK) | (group << GROUP_SHIFT);
}

export function hasHolder(word: number): boolean {
  return (word & SLOT_MASK) !== 0;
}

export function blockOf(word: number): BlockState {
  return {
    isCached: (word & CACHED) !== 0,
    holders: (word >>> HOLDERS_SHIFT) & MAX_HOLDERS,
    slot: (word & SLOT_MASK) - 1,
    group: word >>> GROUP_SHIFT,
  };
}

/** The buffers of a view, to be transferred. */
export function buffersOf({ blocks, running, waiting, shared }: EngineView): ArrayBuffer[] {
  return [blocks.buffer, running.buffer, waiting.buffer, shared.buffer];
}

/** The entries of a list in which each has so many numbers, by their fields. */
export function entriesOf<Field extends string>(
  numbers: ArrayLike<number>,
  fields: readonly Field[],
): Readonly<Record<Field, number>>[] {
  const entries: Record<Field, number>[] = [];
  for (let at = 0; at < numbers.length; at += fields.length) {
    const entry = {} as Record<Field, number>;
    for (const [i, field] of fields.entries()) entry[field] = numbers[at + i]!;
    entries.push(entry);
  }
  return entries;
}
