import { isDeepStrictEqual } from "node:util";
import { RankGroup } from "../../src/ranks/rank-group.ts";
import { allocateRankMemory } from "../../src/ranks/rank-memory.ts";
import { StepRing } from "../../src/ranks/step-ring.ts";
import { Follower, TensorParallelRunner } from "../../src/runner/tensor-parallel.ts";
import type { RowMask, Runner, ScheduledBatch, StepResult } from "../../src/runner/types.ts";
import type { Fault } from "./fake-device.ts";
import { FakeRunner, type FakeRunnerOptions } from "./fake-runner.ts";

/** What the simulation decides about ranks. */
export interface RankChoices {
  readonly size: number;
  /** The number of messages that a rank reads now, of so many that wait for it. */
  lag(waiting: number): number;
  /** Asked for each call of each rank but the leader: whether it fails. */
  dies(): boolean;
}

/**
 * Ranks with fake runners, in one thread: behind the real ring, each reads what the leader has published at its own pace. What
 * the options leave to chance comes out the same on all of them, as drawing does.
 */
export class FakeRanks {
  /** The engine's. */
  readonly runner: Runner;
  /** The leader's own. */
  readonly leader: FakeRunner;
  readonly #followers: readonly FakeFollower[];
  readonly #results: StepResult[] = [];
  readonly #violations: string[] = [];
  #published = 0;

  constructor(
    options: FakeRunnerOptions,
    private readonly choices: RankChoices,
  ) {
    const memory = allocateRankMemory(choices.size);
    const groups = Array.from({ length: choices.size }, (_, rank) => new RankGroup(memory, rank));
    const faults: (Fault | undefined)[] = [];
    const guesses: boolean[] = [];
    const record = <T>(list: T[], value: T): T => list[list.push(value) - 1]!;
    this.leader = new FakeRunner({
      ...options,
      fault: () => record(faults, options.fault?.()),
      guesses: () => record(guesses, options.guesses?.() === true),
    });
    this.#followers = groups
      .slice(1)
      .map((group) => new FakeFollower(options, choices, group, faults, guesses));
    this.runner = new TensorParallelRunner(this.#leaderRunner(), groups[0]!, new StepRing(groups[0]!));
  }

  /** Some rank has failed by itself. */
  get hasFailed(): boolean {
    return this.#followers.some(({ hasFailed }) => hasFailed);
  }

  /** Lets all ranks read what is left. @returns what they did wrong, or otherwise than the leader. */
  finish(): string[] {
    const ofFollowers = this.#followers.flatMap((follower, i) => {
      follower.readUpTo(this.#published);
      const wrong = [...follower.runner.violations];
      const count = Math.min(follower.results.length, this.#results.length);
      const same = isDeepStrictEqual(follower.results.slice(0, count), this.#results.slice(0, count));
      if (!same) wrong.push(`rank ${i + 1} has other results than the leader`);
      if (!follower.isDead && follower.numRead !== this.#published)
        wrong.push(`rank ${i + 1} has read ${follower.numRead} of ${this.#published} messages`);
      return wrong;
    });
    return [...this.#violations, ...ofFollowers];
  }

  /** The leader's part of each call, at some point of which other ranks read some of what they have not read yet. */
  #leaderRunner(): Runner {
    const { leader } = this;
    const call = <T>(run: () => T): T => {
      this.#published++;
      if (this.hasFailed) this.#violations.push("the leader computes though a rank has died");
      const result = run();
      // A rank can only replay what the leader has left to chance before.
      for (const follower of this.#followers)
        follower.readUpTo(follower.numRead + this.choices.lag(this.#published - follower.numRead));
      return result;
    };
    const { numBlocks, blockSize, maxNumSeqs, maxModelLen, vocabSize } = leader;
    const { maxDrafts, maxInFlight, groups, states } = leader;
    return {
      ...{ numBlocks, blockSize, maxNumSeqs, maxModelLen, vocabSize, maxDrafts },
      ...{ maxInFlight, groups, states },
      launch: (batch: ScheduledBatch) => call(() => leader.launch(batch)),
      draw: (masks: readonly RowMask[]) => call(() => leader.draw(masks)),
      collect: () => {
        const result = call(() => leader.collect());
        this.#results.push(structuredClone(result));
        return result;
      },
      dispose: () => leader.dispose(),
    };
  }
}

class FakeFollower {
  readonly runner: FakeRunner;
  readonly results: StepResult[] = [];
  numRead = 0;
  /** It makes no calls any more: a rank has failed. */
  isDead = false;
  /** It was the one. */
  hasFailed = false;
  readonly #follower: Follower;

  constructor(
    options: FakeRunnerOptions,
    { dies }: RankChoices,
    private readonly group: RankGroup,
    faults: readonly (Fault | undefined)[],
    guesses: readonly boolean[],
  ) {
    let [numFaults, numGuesses] = [0, 0];
    this.runner = new FakeRunner({
      ...options,
      fault: () => faults[numFaults++],
      guesses: () => guesses[numGuesses++]!,
    });
    const call = <T>(run: () => T): T => {
      this.hasFailed ||= dies();
      if (this.hasFailed) throw new Error("the rank has died");
      return run();
    };
    const runner = {
      launch: (batch: ScheduledBatch) => call(() => this.runner.launch(batch)),
      draw: (masks: readonly RowMask[]) => call(() => this.runner.draw(masks)),
      collect: () => {
        const result = call(() => this.runner.collect());
        this.results.push(result);
        return result;
      },
    } as Runner;
    this.#follower = new Follower(runner, group, new StepRing(group));
  }

  /** Makes the leader's calls up to the nth, all of which are published, unless a rank fails. */
  readUpTo(count: number): void {
    while (!this.isDead && this.numRead < count) {
      this.numRead++;
      const counters = new Int32Array(this.group.memory.ring, 0, this.group.size);
      if (counters[0] === counters[this.group.rank]) throw new Error("a call has not been published");
      try {
        this.#follower.followNext();
      } catch {
        this.isDead = true;
      }
    }
  }
}
