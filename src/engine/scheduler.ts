import { invariant } from "../base/errors.ts";
import { firstSeenBlock, type KvGroup } from "../base/kv-group.ts";
import type { BlockManager } from "./block-manager.ts";
import type { Sequence } from "./sequence.ts";
import { SequenceBlocks } from "./sequence-blocks.ts";
import { SequenceList } from "./sequence-list.ts";
import type { StateHit } from "./snapshot-pool.ts";
import { type ScheduledStep, StepBuilder } from "./step-builder.ts";

export interface SchedulerLimits {
  /** Sequences that run at once. */
  readonly maxNumSeqs: number;
  /** Tokens of a step. */
  readonly maxNumBatchedTokens: number;
  /** Drafts that a row may have. Default 0. */
  readonly maxDrafts?: number;
  /**
   * A token of a prompt is never a row among the decode rows, which other kernels compute: how many tokens come with it depends
   * on the budget that others leave and on what is cached. Default false: alone it is one, which is faster.
   */
  readonly batchInvariant?: boolean;
  /** See `Runner.groups`. Default: one without a window. */
  readonly groups?: readonly KvGroup[];
}

/**
 * Decides which tokens are computed in the next step: first the running sequences with one token to compute, and drafts where
 * there is room for them, then prompts in order of arrival, in chunks, under one token budget. Owns the queues, the slots
 * and the sequences' blocks.
 *
 * A sequence gets blocks as `SequenceBlocks` says. It is always left one more token's; for more tokens of a prompt than that, or
 * drafts, there must be blocks that nobody needs. When there are too few for one token of each, the most recently arrived sequence is
 * preempted and later recomputed, which waits until no step is in flight.
 */
export class Scheduler {
  readonly waiting = new SequenceList();
  readonly running = new SequenceList();
  /** Finished sequences whose blocks and slot are still used by steps in flight. */
  readonly draining = new Set<Sequence>();
  /** Since the start: preemptions, and prompt tokens looked up and found in the prefix cache. */
  numPreemptions = 0;
  prefixQueries = 0;
  prefixHits = 0;
  readonly #blocks: BlockManager;
  readonly #tables: SequenceBlocks;
  readonly #groups: readonly KvGroup[];
  readonly #maxNumSeqs: number;
  readonly #maxNumBatchedTokens: number;
  readonly #maxDrafts: number;
  readonly #batchInvariant: boolean;
  readonly #freeSlots: number[];
  /** Free blocks that no running sequence needs for its next token, or the drafts that it may have in this step. */
  #spare = 0;

  constructor(blocks: BlockManager, limits: SchedulerLimits) {
    const { groups = [{ reach: Infinity }] } = limits;
    this.#blocks = blocks;
    this.#tables = new SequenceBlocks(blocks, groups);
    this.#groups = groups;
    this.#maxNumBatchedTokens = limits.maxNumBatchedTokens;
    this.#maxDrafts = limits.maxDrafts ?? 0;
    this.#batchInvariant = limits.batchInvariant ?? false;
    // More sequences than tokens in a step could not all advance.
    this.#maxNumSeqs = Math.min(limits.maxNumSeqs, limits.maxNumBatchedTokens);
    this.#freeSlots = Array.from({ length: this.#maxNumSeqs }, (_, i) => this.#maxNumSeqs - 1 - i);
  }

  /** Queues a new sequence: its ordinal is greater than all before. */
  add(sequence: Sequence): void {
    this.waiting.insertFromBack(sequence);
  }

  /**
   * Plans a step and reserves what it needs.
   * @param idle no step is in flight, so sequences may be preempted.
   * @returns undefined when nothing can be computed before a step in flight is collected.
   */
  schedule(idle: boolean): ScheduledStep | undefined {
    if (!this.#makeRoom(idle)) return undefined;
    const step = new StepBuilder(this.#maxNumBatchedTokens, this.#batchInvariant);
    const maxDrafts = this.#affordableDrafts();
    for (let sequence = this.running.first; sequence; sequence = sequence.next) {
      if (sequence.numRemainingTokens === 1) this.#compute(sequence, step, maxDrafts);
    }
    for (let sequence = this.running.first; sequence && step.budget > 0; sequence = sequence.next) {
      if (sequence.numRemainingTokens > 1) this.#compute(sequence, step);
    }
    this.#admit(step);
    return step.build();
  }

  /** Does ahead what `publish` will have to do for the tokens known when the steps launched so far are done. */
  preparePublication({ chain, tokens, length, numScheduledTokens }: Sequence): void {
    const numFull = Math.floor(Math.min(length, numScheduledTokens) / this.#blocks.blockSize);
    this.#blocks.cache?.prepare(chain, tokens, numFull);
  }

  /** More tokens of `sequence` are known to be computed, though not yet that they are sound. */
  advance(sequence: Sequence): void {
    if (this.#tables.haveWindows) this.#tables.giveBack(sequence);
  }

  /** The full blocks of `sequence` that are known to be computed may now be shared. */
  settle(sequence: Sequence): void {
    const { blockTables, numComputedTokens, snapshots, chain } = sequence;
    const numFull = Math.floor(numComputedTokens / this.#blocks.blockSize);
    this.#blocks.cache?.publish(chain, sequence.tokens, blockTables, numFull);
    while (snapshots[0] && snapshots[0].position <= numComputedTokens) {
      const { position, place } = snapshots.shift()!;
      this.#blocks.snapshots!.publish(chain.keys[position / this.#blocks.blockSize - 1]!, place);
    }
    this.advance(sequence);
  }

  /** Takes a sequence that is not finished out of its queue; what it holds is freed once no step in flight uses it. */
  finish(sequence: Sequence): void {
    invariant(sequence.status !== "finished", "a sequence finished twice");
    if (sequence.status === "waiting") this.waiting.remove(sequence);
    else {
      this.running.remove(sequence);
      if (sequence.inFlight > 0) this.draining.add(sequence);
      else this.#release(sequence);
    }
    sequence.status = "finished";
  }

  /** A step with a row of this finished sequence has been collected. */
  drain(sequence: Sequence): void {
    if (sequence.inFlight > 0) return;
    invariant(this.draining.delete(sequence), "a finished sequence was freed twice");
    this.#release(sequence);
  }

  /** Throws `InvariantError` unless queues, slots and blocks agree with the sequences. */
  checkIntegrity(): void {
    const holders = new Int32Array(this.#blocks.numBlocks);
    const slots = new Set(this.#freeSlots);
    for (const [list, status] of [[this.waiting, "waiting"] as const, [this.running, "running"] as const]) {
      let size = 0;
      let ordinal = -1;
      for (const sequence of list) {
        size++;
        invariant(sequence.status === status, `a ${sequence.status} sequence is in the ${status} queue`);
        invariant(sequence.ordinal > ordinal, `the ${status} queue is out of order`);
        ordinal = sequence.ordinal;
      }
      invariant(size === list.size, `the ${status} queue has ${size} sequences, counted as ${list.size}`);
    }
    for (const sequence of this.waiting) {
      invariant(sequence.blockTables.length === 0 && sequence.slot === -1, "a waiting sequence holds blocks");
      const { inFlight, numScheduledTokens, numComputedTokens } = sequence;
      invariant(inFlight + numScheduledTokens + numComputedTokens === 0, "a waiting sequence is in flight");
    }
    for (const sequence of this.running) {
      const { length, maxPendingTokens, numScheduledTokens } = sequence;
      const next = length + maxPendingTokens - 1;
      invariant(
        maxPendingTokens === 0 || numScheduledTokens === next,
        "a drawn token is not the next to compute",
      );
      invariant(!sequence.lockstep || maxPendingTokens <= 1, "a step was launched ahead of the host");
    }
    for (const sequence of [...this.running, ...this.draining]) {
      invariant(!slots.has(sequence.slot), `slot ${sequence.slot} is taken twice or free`);
      slots.add(sequence.slot);
      const { blockTables, numComputedTokens, numScheduledTokens } = sequence;
      const { length, maxPendingTokens } = sequence;
      const { blockSize } = this.#blocks;
      const held = blockTables.flatMap(({ blocks, first }) => blocks.slice(first));
      for (const block of held) holders[block]!++;
      invariant(new Set(held).size === held.length, "a block is twice in one sequence's tables");
      invariant(blockTables.length === this.#groups.length, "a running sequence lacks a table");
      for (const [i, { first }] of blockTables.entries()) {
        const seen = firstSeenBlock(this.#groups[i]!, numComputedTokens, blockSize);
        invariant(first <= seen, "a block that is seen was given back");
        invariant(first === seen || sequence.status !== "running", "a block that nobody sees is kept");
      }
      const entries = blockTables.map(({ blocks }) => blocks.length);
      invariant(sequence.blockEnd === Math.min(...entries) * blockSize, "a sequence's blocks are miscounted");
      invariant(numScheduledTokens <= sequence.blockEnd, "tokens were scheduled without a block");
      const bound = length + maxPendingTokens;
      invariant(
        numComputedTokens <= numScheduledTokens && numScheduledTokens <= bound,
        "computed past the end",
      );
      invariant(bound <= sequence.maxLength, "a sequence is longer than its limit");
      invariant(sequence.chain.keys.length * blockSize <= length, "a block of unknown tokens has a key");
    }
    for (const sequence of this.draining)
      invariant(sequence.status === "finished" && sequence.inFlight > 0, "a drained sequence was not freed");
    invariant(
      slots.size === this.#maxNumSeqs,
      `${slots.size} slots of ${this.#maxNumSeqs} are accounted for`,
    );
    invariant(this.running.size <= this.#maxNumSeqs, "too many sequences run");
    const sequences = [...this.waiting, ...this.running, ...this.draining];
    this.#blocks.checkIntegrity(
      holders,
      sequences.flatMap(({ snapshots }) => snapshots.map(({ place }) => place)),
    );
  }

  /** Sees to it that every running sequence can have the blocks of a token. False: collect the steps in flight first. */
  #makeRoom(idle: boolean): boolean {
    for (;;) {
      this.#spare = this.#blocks.numFree - this.#blocksNeeded(0);
      if (this.#spare >= 0) return true;
      if (!idle) return false;
      this.putBack(this.running.last!);
      this.numPreemptions++;
    }
  }

  /** Drafts that each decoding row of the next step may have, so that nobody goes without tokens or blocks for them. */
  #affordableDrafts(): number {
    if (this.#maxDrafts === 0 || this.running.size === 0) return 0;
    const share = Math.floor(this.#maxNumBatchedTokens / this.running.size);
    const drafts = Math.min(this.#maxDrafts, share - 1);
    const spare = this.#blocks.numFree - this.#blocksNeeded(drafts);
    if (spare < 0) return 0;
    this.#spare = spare;
    return drafts;
  }

  /** Blocks that the running sequences lack to compute their next tokens with so many drafts at most. */
  #blocksNeeded(maxDrafts: number): number {
    let needed = 0;
    for (let sequence = this.running.first; sequence; sequence = sequence.next) {
      if (sequence.numRemainingTokens === 0) continue;
      const drafts = maxDrafts === 0 ? 0 : Math.min(maxDrafts, sequence.maxDrafts);
      needed += this.#tables.lacking(sequence, sequence.numScheduledTokens + 1 + drafts);
    }
    return needed;
  }

  /** Takes the slot and the blocks of a running sequence without a row in flight; what it had drawn is forgotten, but for known tokens. */
  putBack(sequence: Sequence): void {
    invariant(sequence.inFlight === 0, "a sequence in flight is put back");
    this.running.remove(sequence);
    this.#release(sequence);
    sequence.numScheduledTokens = 0;
    sequence.numComputedTokens = 0;
    sequence.maxPendingTokens = 0;
    sequence.isHeld = false;
    sequence.status = "waiting";
    this.waiting.insertFromFront(sequence);
  }

  #release(sequence: Sequence): void {
    this.#tables.release(sequence);
    for (const { place } of sequence.snapshots.splice(0)) this.#blocks.snapshots!.release(place);
    sequence.borders = [];
    this.#freeSlots.push(sequence.slot);
    sequence.slot = -1;
  }

  #admit(step: StepBuilder): void {
    let sequence = this.waiting.first;
    while (sequence && step.budget > 0 && this.running.size < this.#maxNumSeqs) {
      const { next } = sequence;
      if (!sequence.awaitsMask && !this.#awaitsPrompt(sequence)) {
        if (this.#freeSlots.length === 0 || !this.#reserve(sequence, step)) return;
        this.#compute(sequence, step);
      }
      sequence = next;
    }
  }

  /** The request's first sequence is about to publish the prompt that this one would compute again. */
  #awaitsPrompt({ leader, promptLength }: Sequence): boolean {
    if (!this.#blocks.cache || !leader || leader.status === "finished") return false;
    return promptLength > this.#blocks.blockSize && leader.numComputedTokens < promptLength;
  }

  /** Admits a sequence if there are the blocks that it wants, and those of one more entry for each running sequence to grow into. */
  #reserve(sequence: Sequence, step: StepBuilder): boolean {
    const hit = this.#prefixHit(sequence);
    const others = this.running.size;
    const growth = others * this.#tables.perEntry;
    const wanted = this.#tables.wanted(sequence, hit, step.budget, others === 0);
    if (wanted + growth > this.#blocks.numFree) return false;

    this.waiting.remove(sequence);
    this.running.insertFromBack(sequence);
    sequence.status = "running";
    sequence.slot = this.#freeSlots.pop()!;
    sequence.borders = hit.borders;
    this.#tables.admit(sequence, hit, step);
    sequence.chain.numPublished = hit.numBlocks;
    sequence.numScheduledTokens = hit.numBlocks * this.#blocks.blockSize;
    sequence.numComputedTokens = sequence.numScheduledTokens;
    if (sequence.numCachedTokens < 0) {
      sequence.numCachedTokens = sequence.numComputedTokens;
      if (this.#readsCache(sequence)) this.prefixQueries += sequence.promptLength;
      this.prefixHits += sequence.numCachedTokens;
    }
    step.join(sequence, hit.snapshot);
    const next = this.#tables.lacking(sequence, sequence.numScheduledTokens + 1);
    this.#spare = this.#blocks.numFree - growth - next;
    return true;
  }

  #readsCache({ isRead, promptLogprobs }: Sequence): boolean {
    return !isRead && promptLogprobs === undefined;
  }

  #prefixHit(sequence: Sequence): StateHit {
    const { cache, snapshots, blockSize } = this.#blocks;
    const isCached = cache !== undefined && this.#readsCache(sequence);
    const hit = this.#tables.match(sequence, isCached ? Math.floor((sequence.length - 1) / blockSize) : 0);
    if (!isCached) return { ...hit, borders: [] };
    if (snapshots === undefined) return { ...hit, borders: [] };
    return snapshots.resume(hit, sequence.chain.keys, sequence.length, blockSize);
  }

  #compute(sequence: Sequence, step: StepBuilder, maxDrafts = 0): void {
    if (sequence.awaitsMask) return;
    const remaining = sequence.numRemainingTokens;
    const border = sequence.borders[0] ?? Infinity;
    const wanted = Math.min(remaining, step.budget, border - sequence.numScheduledTokens);
    if (wanted === 0) return;
    const known = this.#affordable(sequence, wanted);
    const sample = !sequence.isRead && known === remaining;
    const drafts = maxDrafts === 0 ? 0 : Math.min(maxDrafts, sequence.maxDrafts);
    const end = sequence.numScheduledTokens + known + drafts;
    this.#tables.extend(sequence, end, step);
    step.compute(sequence, known + drafts, sample, drafts);
    if (sequence.numScheduledTokens === border) this.#keepState(sequence, step);
  }

  /** Tokens, of so many, for which a sequence finds blocks: its next one's, and spare ones, which it takes. */
  #affordable(sequence: Sequence, count: number): number {
    if (count === 1) return 1;
    const start = sequence.numScheduledTokens;
    const next = this.#tables.lacking(sequence, start + 1);
    const end = this.#tables.reachable(sequence, start + count, next + Math.max(0, this.#spare));
    this.#spare -= this.#tables.lacking(sequence, end) - next;
    return end - start;
  }

  /** The sequence is at a border after this step: its state is kept, if there is a place. */
  #keepState(sequence: Sequence, step: StepBuilder): void {
    sequence.borders = sequence.borders.slice(1);
    const place = this.#blocks.snapshots!.take();
    if (place === undefined) return;
    sequence.snapshots.push({ position: sequence.numScheduledTokens, place });
    step.keep(sequence.slot, place);
  }
}
