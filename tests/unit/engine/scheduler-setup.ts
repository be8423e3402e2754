import type { KvGroup } from "../../../src/base/kv-group.ts";
import { BlockManager } from "../../../src/engine/block-manager.ts";
import { Scheduler } from "../../../src/engine/scheduler.ts";
import { Sequence } from "../../../src/engine/sequence.ts";
import type { ScheduledStep } from "../../../src/engine/step-builder.ts";
import { sha256 } from "./helpers.ts";

/** A scheduler whose steps are computed at once or left in flight. */
export function setUpScheduler(
  options: {
    numBlocks?: number;
    maxNumSeqs?: number;
    budget?: number;
    cache?: boolean;
    maxDrafts?: number;
    batchInvariant?: boolean;
    groups?: readonly KvGroup[];
  } = {},
) {
  const { numBlocks = 16, maxNumSeqs = 4, budget = 16, cache = false, maxDrafts = 0 } = options;
  const { batchInvariant = false, groups = [{ reach: Infinity }] } = options;
  const blocks = new BlockManager(numBlocks, 4, cache ? sha256 : undefined, undefined, groups.length);
  const scheduler = new Scheduler(blocks, {
    ...{ maxNumSeqs, maxNumBatchedTokens: budget, maxDrafts, batchInvariant, groups },
  });
  let ordinal = 0;
  const inFlight: ScheduledStep[] = [];

  const add = (prompt: number[], maxTokens = 20, leader?: Sequence, lockstep = false): Sequence => {
    const sequence = new Sequence({
      ...{
        ordinal: ordinal++,
        promptTokenIds: Int32Array.from(prompt),
        maxTokens,
        logits: false,
        salt: "",
        leader,
      },
      ...{ logprobs: undefined, promptLogprobs: undefined, lockstep },
      sampling: {} as Sequence["sampling"],
    });
    scheduler.add(sequence);
    return sequence;
  };
  const launch = (): ScheduledStep | undefined => {
    const step = scheduler.schedule(inFlight.length === 0);
    scheduler.checkIntegrity();
    if (!step) return undefined;
    inFlight.push(step);
    for (const sequence of step.sequences) sequence.inFlight++;
    return step;
  };
  /** Of each row's drafts at most `accepted` are. */
  const collect = (accepted = 0): void => {
    const { sequences, batch } = inFlight.shift()!;
    for (const [i, sequence] of sequences.entries()) {
      const row = batch.rows[i]!;
      sequence.inFlight--;
      if (sequence.status === "finished") {
        scheduler.drain(sequence);
        continue;
      }
      const drawn = row.sample ? 1 + Math.min(accepted, row.drafts ?? 0) : 0;
      sequence.collect(row, new Int32Array(drawn).fill(7), 0, drawn);
      if (row.sample) scheduler.settle(sequence);
      else scheduler.advance(sequence);
    }
    scheduler.checkIntegrity();
  };
  /** Launches and collects a step; its rows as [slot, start, count, sample]. */
  const step = (): unknown[] | undefined => {
    const launched = launch();
    const rows = launched?.batch.rows.map(({ slot, count, sample }, i) => {
      return [slot, launched.sequences[i]!.numScheduledTokens - count, count, sample];
    });
    if (launched) collect();
    return rows;
  };
  return { blocks, scheduler, add, launch, collect, step };
}
