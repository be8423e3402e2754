import { invariant } from "../base/errors.ts";
import type { BlockTableUpdate, ScheduledBatch, ScheduledRow, SlotJoin } from "../runner/types.ts";
import type { BlockManager } from "./block-manager.ts";
import type { Sequence } from "./sequence.ts";
import { SequenceList } from "./sequence-list.ts";

/** A batch and whose rows it has. Joins and block-table updates are all of sequences with a row. */
export interface ScheduledStep {
  readonly batch: ScheduledBatch;
  /** The sequence of each row. */
  readonly sequences: readonly Sequence[];
  /** Those that just got a slot. */
  readonly admitted: readonly Sequence[];
}

export interface SchedulerLimits {
  /** Sequences that run at once. */
  readonly maxNumSeqs: number;
  /** Tokens of a step. */
  readonly maxNumBatchedTokens: number;
}

/**
 * Who computes what in the next step: first the running sequences with one token to compute, then prompts in order of
 * arrival, in chunks, under one token budget. Owns the queues, the slots and the sequences' blocks.
 *
 * A sequence gets the blocks of all its known tokens when it is admitted, so only decoding can run out of blocks: then
 * the most recently arrived sequence is preempted and later recomputed. Preemption waits until no step is in flight.
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
  readonly #maxNumSeqs: number;
  readonly #maxNumBatchedTokens: number;
  readonly #freeSlots: number[];

  constructor(blocks: BlockManager, limits: SchedulerLimits) {
    this.#blocks = blocks;
    this.#maxNumBatchedTokens = limits.maxNumBatchedTokens;
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
    const preemptions = this.numPreemptions;
    if (!this.#makeRoom(idle)) return undefined;
    const step = new StepBuilder(this.#maxNumBatchedTokens);
    for (let sequence = this.running.first; sequence; sequence = sequence.next) {
      if (sequence.numRemaining === 1) this.#compute(sequence, step);
    }
    for (let sequence = this.running.first; sequence && step.budget > 0; sequence = sequence.next) {
      if (sequence.numRemaining > 1) this.#compute(sequence, step);
    }
    if (this.numPreemptions === preemptions) this.#admit(step);
    return step.build();
  }

  /** The computed full blocks of `sequence` may now be shared. */
  publish(sequence: Sequence): void {
    const numFull = Math.floor(sequence.numComputed / this.#blocks.blockSize);
    this.#blocks.cache?.publish(sequence.chain, sequence.tokens, sequence.table, numFull);
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
      invariant(sequence.table.length === 0 && sequence.slot === -1, "a waiting sequence holds blocks");
      invariant(sequence.inFlight === 0 && sequence.numPending === 0, "a waiting sequence is in flight");
    }
    for (const sequence of [...this.running, ...this.draining]) {
      invariant(!slots.has(sequence.slot), `slot ${sequence.slot} is taken twice or free`);
      slots.add(sequence.slot);
      for (const block of sequence.table) holders[block]!++;
      invariant(new Set(sequence.table).size === sequence.table.length, "a block is twice in one table");
      const { numComputed, numScheduled, length, numPending } = sequence;
      invariant(numComputed <= numScheduled && numScheduled <= length + numPending, "computed past the end");
      invariant(length + numPending <= sequence.maxLength, "a sequence is longer than its limit");
      const held = sequence.table.length * this.#blocks.blockSize;
      invariant(numScheduled <= held, "tokens were scheduled without a block");
    }
    for (const sequence of this.draining)
      invariant(sequence.status === "finished" && sequence.inFlight > 0, "a drained sequence was not freed");
    invariant(
      slots.size === this.#maxNumSeqs,
      `${slots.size} slots of ${this.#maxNumSeqs} are accounted for`,
    );
    invariant(this.running.size <= this.#maxNumSeqs, "too many sequences run");
    this.#blocks.checkIntegrity(holders);
  }

  /** Sees to it that every decoding sequence can have the block it needs. False: collect the steps in flight first. */
  #makeRoom(idle: boolean): boolean {
    for (;;) {
      let needed = 0;
      for (let sequence = this.running.first; sequence; sequence = sequence.next) {
        if (this.#needsBlock(sequence)) needed++;
      }
      if (needed <= this.#blocks.numFree) return true;
      if (!idle) return false;
      this.#preempt(this.running.last!);
    }
  }

  #needsBlock(sequence: Sequence): boolean {
    return (
      sequence.numScheduled === sequence.table.length * this.#blocks.blockSize && sequence.numRemaining > 0
    );
  }

  #preempt(sequence: Sequence): void {
    invariant(sequence.inFlight === 0 && sequence.numPending === 0, "a sequence in flight is preempted");
    this.running.remove(sequence);
    this.#release(sequence);
    sequence.numScheduled = 0;
    sequence.numComputed = 0;
    sequence.status = "waiting";
    this.waiting.insertFromFront(sequence);
    this.numPreemptions++;
  }

  #release(sequence: Sequence): void {
    // The end of a sequence is reused first: what is left is still a prefix.
    for (let i = sequence.table.length - 1; i >= 0; i--) this.#blocks.release(sequence.table[i]!);
    sequence.table.length = 0;
    this.#freeSlots.push(sequence.slot);
    sequence.slot = -1;
  }

  #admit(step: StepBuilder): void {
    let sequence = this.waiting.first;
    while (sequence && step.budget > 0 && this.running.size < this.#maxNumSeqs) {
      const { next } = sequence;
      if (!this.#awaitsPrompt(sequence)) {
        if (this.#freeSlots.length === 0 || !this.#reserve(sequence, step)) return;
        this.#compute(sequence, step);
      }
      sequence = next;
    }
  }

  /** The request's first sequence is about to publish the prompt that this one would compute again. */
  #awaitsPrompt({ leader, promptLength }: Sequence): boolean {
    if (!this.#blocks.cache || !leader || leader.status === "finished") return false;
    return promptLength > this.#blocks.blockSize && leader.numComputed < promptLength;
  }

  /** Admits a sequence if there are blocks for its known tokens, and one more for each running sequence to grow into. */
  #reserve(sequence: Sequence, step: StepBuilder): boolean {
    const { numFree, blockSize } = this.#blocks;
    const hits = this.#prefixHits(sequence);
    const numNew = this.#blocks.blocksFor(sequence.length) - hits.length;
    let taken = numNew;
    for (const block of hits) if (this.#blocks.isFree(block)) taken++;
    if (taken + this.running.size > numFree) return false;

    this.waiting.remove(sequence);
    this.running.insertFromBack(sequence);
    sequence.status = "running";
    sequence.slot = this.#freeSlots.pop()!;
    for (const block of hits) {
      this.#blocks.acquire(block);
      step.assign(sequence, block);
    }
    for (let i = 0; i < numNew; i++) step.assign(sequence, this.#blocks.allocate());
    sequence.chain.numPublished = hits.length;
    sequence.numScheduled = hits.length * blockSize;
    sequence.numComputed = sequence.numScheduled;
    if (sequence.numCached < 0) {
      sequence.numCached = sequence.numScheduled;
      if (this.#readsCache(sequence)) this.prefixQueries += sequence.promptLength;
      this.prefixHits += sequence.numCached;
    }
    step.join(sequence);
    return true;
  }

  #readsCache({ logits, promptLogprobs }: Sequence): boolean {
    return !logits && promptLogprobs === undefined;
  }

  #prefixHits(sequence: Sequence): readonly number[] {
    if (!this.#blocks.cache || !this.#readsCache(sequence)) return [];
    const maxBlocks = Math.floor((sequence.length - 1) / this.#blocks.blockSize);
    return this.#blocks.cache.match(sequence.chain, sequence.tokens, maxBlocks);
  }

  #compute(sequence: Sequence, step: StepBuilder): void {
    const count = Math.min(sequence.numRemaining, step.budget);
    if (count === 0) return;
    if (this.#needsBlock(sequence)) step.assign(sequence, this.#blocks.allocate());
    const sample = !sequence.logits && count === sequence.numRemaining;
    step.compute(sequence, count, sample);
    sequence.numScheduled += count;
    if (sample) sequence.numPending++;
  }
}

/** Collects a batch: rows of one token first. */
class StepBuilder {
  budget: number;
  readonly #joins: SlotJoin[] = [];
  readonly #updates: BlockTableUpdate[] = [];
  readonly #rows: ScheduledRow[] = [];
  readonly #sequences: Sequence[] = [];
  readonly #chunks: ScheduledRow[] = [];
  readonly #chunkSequences: Sequence[] = [];
  readonly #admitted: Sequence[] = [];
  #numTokens = 0;

  constructor(budget: number) {
    this.budget = budget;
  }

  join(sequence: Sequence): void {
    const { slot, promptLength, sampling } = sequence;
    this.#admitted.push(sequence);
    this.#joins.push({ slot, tokens: sequence.tokens.slice(0, sequence.length), promptLength, sampling });
  }

  assign(sequence: Sequence, block: number): void {
    this.#updates.push({ slot: sequence.slot, index: sequence.table.length, block });
    sequence.table.push(block);
  }

  compute(sequence: Sequence, count: number, sample: boolean): void {
    const { slot, numScheduled: start, promptLength, logprobs, promptLogprobs, logits } = sequence;
    const row: { -readonly [K in keyof ScheduledRow]: ScheduledRow[K] } = { slot, start, count, sample };
    if (sample && logprobs !== undefined) row.logprobs = logprobs;
    if (promptLogprobs !== undefined && start < promptLength) row.promptLogprobs = promptLogprobs;
    if (logits) row.logits = true;
    (count === 1 ? this.#rows : this.#chunks).push(row);
    (count === 1 ? this.#sequences : this.#chunkSequences).push(sequence);
    this.budget -= count;
    this.#numTokens += count;
  }

  /** Undefined when there is nothing to compute. */
  build(): ScheduledStep | undefined {
    const decodeRows = this.#rows.length;
    if (this.#numTokens === 0) return undefined;
    for (const row of this.#chunks) this.#rows.push(row);
    for (const sequence of this.#chunkSequences) this.#sequences.push(sequence);
    return {
      batch: {
        joins: this.#joins,
        blockTableUpdates: this.#updates,
        rows: this.#rows,
        decodeRows,
        numTokens: this.#numTokens,
      },
      sequences: this.#sequences,
      admitted: this.#admitted,
    };
  }
}
