import type { EngineStats } from "../base/engine-stats.ts";
import {
  blockWord,
  type EngineView,
  hasHolder,
  MAX_SHARED_RUNS,
  MAX_WAITING,
  RUNNING_FIELDS,
  WAITING_FIELDS,
  withHolder,
} from "../base/engine-view.ts";
import type { BlockManager } from "./block-manager.ts";
import type { Scheduler } from "./scheduler.ts";
import type { Sequence } from "./sequence.ts";

/** The state of blocks and queues. O(blocks in use, counted once for each holder, + blocks of the pool). */
export function viewOf(
  { running, waiting, draining }: Scheduler,
  blocks: BlockManager,
  stats: EngineStats,
): EngineView {
  const words = new Uint32Array(blocks.numBlocks);
  for (let block = 0; block < words.length; block++)
    words[block] = blockWord(blocks.cache?.has(block) === true, blocks.holdersOf(block));
  const shared: number[] = [];
  for (const sequence of running) claimBlocks(sequence, words, shared);
  for (const sequence of draining) claimBlocks(sequence, words, shared);

  const rows = new Int32Array(running.size * RUNNING_FIELDS.length);
  let at = 0;
  for (const sequence of running) {
    rows.set(runningFields(sequence), at);
    at += RUNNING_FIELDS.length;
  }
  const queue = new Int32Array(Math.min(waiting.size, MAX_WAITING) * WAITING_FIELDS.length);
  at = 0;
  for (let sequence = waiting.first; sequence && at < queue.length; sequence = sequence.next) {
    queue.set(waitingFields(sequence), at);
    at += WAITING_FIELDS.length;
  }
  return { stats, blocks: words, running: rows, waiting: queue, shared: Int32Array.from(shared) };
}

/** In the order of RUNNING_FIELDS. */
function runningFields(sequence: Sequence): number[] {
  const { ordinal, slot, promptLength, numCachedTokens, numComputedTokens, length, maxLength } = sequence;
  const held = sequence.blockTables.reduce((sum, { blocks, first }) => sum + blocks.length - first, 0);
  return [ordinal, slot, promptLength, numCachedTokens, numComputedTokens, length, maxLength, held];
}

/** In the order of WAITING_FIELDS. */
function waitingFields({ ordinal, promptLength, length, numCachedTokens }: Sequence): number[] {
  return [ordinal, promptLength, length, numCachedTokens >= 0 ? 1 : 0];
}

/** Names the sequence in the words of its blocks; those that another is named in already become runs in `shared`. */
function claimBlocks({ ordinal, slot, blockTables }: Sequence, words: Uint32Array, shared: number[]): void {
  let [start, length] = [-1, 0];
  const endRun = () => {
    if (length > 0 && shared.length < 3 * MAX_SHARED_RUNS) shared.push(ordinal, start, length);
    length = 0;
  };
  for (const [group, { blocks, first }] of blockTables.entries()) {
    for (let i = first; i < blocks.length; i++) {
      const block = blocks[i]!;
      if (!hasHolder(words[block]!)) words[block] = withHolder(words[block]!, slot, group);
      else if (length > 0 && block === start + length) length++;
      else {
        endRun();
        [start, length] = [block, 1];
      }
    }
    endRun();
  }
}
