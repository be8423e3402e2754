import { firstSeenBlock, type KvGroup } from "../base/kv-group.ts";
import type { BlockManager } from "./block-manager.ts";
import { type BlockTable, NO_BLOCK } from "./block-table.ts";
import type { PrefixHit } from "./prefix-cache.ts";
import type { Sequence } from "./sequence.ts";
import type { StepBuilder } from "./step-builder.ts";

/** Tokens of a step that are computed as fast as more: a prompt with room for so many needs to wait for no more. */
const ROOMY_CHUNK = 2048;

/**
 * The blocks of sequences, in a table for each group of layers: what they lack, take and give back. Groups without a window
 * get the blocks of all known tokens when a sequence is admitted. Those with one get them as the sequence advances, and give them back
 * once no later token sees them, so that a prompt never needs more of them than a window and a step's tokens.
 */
export class SequenceBlocks {
  /** There is something to give back before a sequence ends. */
  readonly haveWindows: boolean;

  constructor(
    private readonly pool: BlockManager,
    private readonly groups: readonly KvGroup[],
  ) {
    this.haveWindows = groups.some(({ reach }) => reach < Infinity);
  }

  /** Blocks that a sequence takes when it goes on by one: one in each group. */
  get perEntry(): number {
    return this.groups.length;
  }

  /** Blocks that a sequence lacks for the positions before `end`. */
  lacking({ blockTables, blockEnd }: Sequence, end: number): number {
    if (end <= blockEnd) return 0;
    const entries = this.pool.blocksFor(end);
    let count = 0;
    for (let group = 0; group < blockTables.length; group++) {
      const { length } = blockTables[group]!.blocks;
      if (length < entries) count += entries - length;
    }
    return count;
  }

  /** The last position, `end` at most, up to which no more than `count` blocks are lacking. */
  reachable(sequence: Sequence, end: number, count: number): number {
    const { blockSize } = this.pool;
    let reached = end;
    while (this.lacking(sequence, reached) > count)
      reached = Math.floor((reached - 1) / blockSize) * blockSize;
    return reached;
  }

  /** Gives a sequence the blocks that it lacks for the positions before `end`. */
  extend(sequence: Sequence, end: number, step: StepBuilder): void {
    if (end <= sequence.blockEnd) return;
    const entries = this.pool.blocksFor(end);
    for (let group = 0; group < this.groups.length; group++) this.#extend(sequence, group, entries, step);
    sequence.blockEnd = entries * this.pool.blockSize;
  }

  /**
   * Free blocks without which a sequence is not admitted.
   * @param hit cached blocks that it begins with
   * @param chunk tokens that its first step computes at most
   * @param isAlone it must begin with the least, as nobody will ever leave it more; else with room for a window and a good step's tokens
   */
  wanted({ length }: Sequence, hit: PrefixHit, chunk: number, isAlone: boolean): number {
    const start = hit.numBlocks * this.pool.blockSize;
    let count = 0;
    for (const [i, { reach }] of this.groups.entries()) {
      for (const block of hit.groups[i]!.blocks) if (this.pool.isFree(block)) count++;
      const isLeast = isAlone && reach !== Infinity;
      const end = isLeast ? start + 1 : Math.min(length, start + Math.min(chunk, ROOMY_CHUNK) + reach);
      count += this.pool.blocksFor(end) - hit.numBlocks;
    }
    return count;
  }

  /** The prefix of a sequence that is cached in all groups, of at most `maxBlocks` blocks. */
  match({ chain, tokens }: Sequence, maxBlocks: number): PrefixHit {
    const { blockSize, cache } = this.pool;
    if (cache === undefined)
      return { numBlocks: 0, groups: this.groups.map(() => ({ first: 0, blocks: [] })) };
    const firstSeen = this.groups.map(
      (group) => (numBlocks: number) => firstSeenBlock(group, numBlocks * blockSize, blockSize),
    );
    return cache.match(chain, tokens, maxBlocks, firstSeen);
  }

  /** A sequence takes the cached blocks that it begins with, and in groups without a window those of all its tokens. */
  admit(sequence: Sequence, hit: PrefixHit, step: StepBuilder): void {
    for (const [group, { first, blocks }] of hit.groups.entries()) {
      const table: BlockTable = { blocks: Array<number>(first).fill(NO_BLOCK), first };
      sequence.blockTables.push(table);
      for (const block of blocks) {
        this.pool.acquire(block);
        step.assign(sequence, group, block);
      }
    }
    // Only now that no hit is free any more.
    for (const [group, { reach }] of this.groups.entries())
      if (reach === Infinity) this.#extend(sequence, group, this.pool.blocksFor(sequence.length), step);
    const entries = sequence.blockTables.map(({ blocks }) => blocks.length);
    sequence.blockEnd = Math.min(...entries) * this.pool.blockSize;
  }

  /**
   * Gives back what no token sees that is still to be computed: rows in flight, too, begin at the first one that is not known to be
   * computed. What could be cached once it is known to be sound is given back as such.
   */
  giveBack({ blockTables, numComputedTokens, chain, isRead }: Sequence): void {
    const { blockSize, cache } = this.pool;
    let [first, known] = [0, Infinity];
    for (let group = 0; group < blockTables.length; group++) {
      const table = blockTables[group]!;
      const { reach } = this.groups[group]!;
      if (reach !== known) {
        first = firstSeenBlock({ reach }, numComputedTokens, blockSize);
        known = reach;
      }
      // What lies furthest back is reused first: it takes all of a window for a hit.
      for (; table.first < first; table.first++) {
        const block = table.blocks[table.first]!;
        if (!isRead && table.first >= chain.numPublished) cache?.promise(chain, group, table.first, block);
        this.pool.release(block);
      }
    }
  }

  /** Gives back all that a sequence holds. */
  release(sequence: Sequence): void {
    const { blockTables, chain } = sequence;
    for (const [group, { blocks, first }] of blockTables.entries()) {
      for (let i = chain.numPublished; i < first; i++) this.pool.cache?.withdraw(chain, group, i, blocks[i]!);
      // The end of a sequence is reused first: what is left is still a prefix.
      for (let i = blocks.length - 1; i >= first; i--) this.pool.release(blocks[i]!);
    }
    blockTables.length = 0;
    sequence.blockEnd = 0;
  }

  #extend(sequence: Sequence, group: number, entries: number, step: StepBuilder): void {
    const { blocks } = sequence.blockTables[group]!;
    while (blocks.length < entries) step.assign(sequence, group, this.pool.allocate());
  }
}
