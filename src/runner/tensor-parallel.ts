import type { KvGroup } from "../base/kv-group.ts";
import { orFail, type RankGroup } from "../ranks/rank-group.ts";
import type { StepRing } from "../ranks/step-ring.ts";
import { decodeBatch, decodeMasks, encodeBatch, encodeMasks } from "./batch-codec.ts";
import type { RowMask, Runner, ScheduledBatch, SlotStates, StepResult } from "./types.ts";

/** First word of a message: the call that every rank makes. */
const Call = { launch: 0, collect: 1, draw: 2 } as const;
const COLLECT = Int32Array.of(Call.collect);

/**
 * The runner of several ranks, in the thread of the leader: every call is published to the other ranks before it is made here, so
 * that all of them make the same calls in the same order. Each computes its part of each step; results come from the leader's own
 * runner, since all ranks draw the same tokens.
 *
 * Ranks that have not done the same cannot go on together: whatever is thrown by one, a failed step too, ends them all.
 */
export class TensorParallelRunner implements Runner {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly vocabSize: number;
  readonly maxDrafts: number;
  readonly maxInFlight: number;
  readonly groups: readonly KvGroup[];
  readonly states: SlotStates | undefined;

  /** @param own computes the leader's part; this disposes of it. */
  constructor(
    private readonly own: Runner,
    private readonly group: RankGroup,
    private readonly ring: StepRing,
  ) {
    this.numBlocks = own.numBlocks;
    this.blockSize = own.blockSize;
    this.maxNumSeqs = own.maxNumSeqs;
    this.maxModelLen = own.maxModelLen;
    this.vocabSize = own.vocabSize;
    this.maxDrafts = own.maxDrafts;
    this.maxInFlight = own.maxInFlight;
    this.groups = own.groups;
    this.states = own.states;
  }

  /** @throws EngineDeadError whatever failed, on whichever rank. */
  launch(batch: ScheduledBatch): void {
    this.#publish(Call.launch, encodeBatch(batch), () => this.own.launch(batch));
  }

  /** @throws EngineDeadError whatever failed, on whichever rank. */
  draw(masks: readonly RowMask[]): void {
    this.#publish(Call.draw, encodeMasks(masks), () => this.own.draw(masks));
  }

  /** @throws EngineDeadError whatever failed, on whichever rank. */
  collect(): StepResult {
    return orFail(this.group, () => {
      this.ring.publish(COLLECT);
      return this.own.collect();
    });
  }

  /** Ends the other ranks, too. */
  dispose(): void {
    this.group.close();
    this.own.dispose();
  }

  #publish(call: number, words: Int32Array, run: () => void): void {
    const message = new Int32Array(1 + words.length);
    message[0] = call;
    message.set(words, 1);
    orFail(this.group, () => {
      this.ring.publish(message);
      run();
    });
  }
}

/** Makes the leader's calls on another rank's runner, in that rank's thread. */
export class Follower {
  constructor(
    private readonly runner: Runner,
    private readonly group: RankGroup,
    private readonly ring: StepRing,
  ) {}

  /** Makes calls until the group is closed. @throws EngineDeadError when a rank fails, this one included. */
  follow(): void {
    while (this.followNext()) {}
  }

  /**
   * Waits for the next call and makes it; its result is the leader's to report.
   * @returns false when the group is closed.
   * @throws as `follow`
   */
  followNext(): boolean {
    return orFail(this.group, () => {
      const message = this.ring.next();
      if (message === undefined) return false;
      const words = message.subarray(1);
      if (message[0] === Call.launch) this.runner.launch(decodeBatch(words));
      else if (message[0] === Call.draw) this.runner.draw(decodeMasks(words));
      else this.runner.collect();
      return true;
    });
  }
}
