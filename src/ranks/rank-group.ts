import { EngineDeadError, InvariantError } from "../base/errors.ts";

/** Memory that all ranks of a model share; each thread makes a `RankGroup` of it. */
export interface RankMemory {
  readonly size: number;
  /** Milliseconds that a rank waits for another within a step before it gives up on it. */
  readonly timeout: number;
  readonly control: SharedArrayBuffer;
  /** See `Exchange` and `StepRing`. */
  readonly exchange: SharedArrayBuffer;
  readonly ring: SharedArrayBuffer;
}

/** Words of the control memory, ahead of the message. `gone` counts the ranks beside the leader that hold nothing any more. */
const Word = { status: 0, messageBytes: 1, gone: 2 } as const;
const MESSAGE_START = 16;
const MAX_MESSAGE_BYTES = 4096;
export const CONTROL_BYTES = MESSAGE_START + MAX_MESSAGE_BYTES;

const Status = { running: 0, failing: 1, failed: 2, closed: 3 } as const;

/** Longest sleep before a waiting rank looks whether another has failed, in milliseconds. */
const SLICE_MS = 50;
/** The same for what no rank reports: a sleep takes some 0.1 ms at least. */
const POLL_MS = 0.05;

/**
 * One rank's view of all ranks' common fate: they run, until one fails or the leader, rank 0, closes the group. From then on
 * every wait ends. The first failure stays the reason.
 */
export class RankGroup {
  readonly #control: Int32Array;
  /** Milliseconds that this rank waits for another before it gives up on it: `memory.timeout`, or more while ranks start. */
  #patience: number;

  constructor(
    readonly memory: RankMemory,
    readonly rank: number,
  ) {
    this.#control = new Int32Array(memory.control);
    this.#patience = memory.timeout;
  }

  /** Waits for others for so long while `run` runs, instead of as long as a step may take. */
  withPatience<T>(milliseconds: number, run: () => T): T {
    this.#patience = milliseconds;
    try {
      return run();
    } finally {
      this.#patience = this.memory.timeout;
    }
  }

  get size(): number {
    return this.memory.size;
  }

  /** The leader has no use for the ranks any more. */
  get isClosed(): boolean {
    return Atomics.load(this.#control, Word.status) === Status.closed;
  }

  /** Ends the group; not an error. */
  close(): void {
    Atomics.compareExchange(this.#control, Word.status, Status.running, Status.closed);
  }

  /** Another rank than the leader has given back all it had, and does nothing any more. Called once. */
  leave(): void {
    Atomics.add(this.#control, Word.gone, 1);
    Atomics.notify(this.#control, Word.gone);
  }

  /** The leader's: waits until all other ranks have left, for so long at most. @returns whether they have */
  awaitOthers(milliseconds: number): boolean {
    const deadline = performance.now() + milliseconds;
    for (;;) {
      const gone = Atomics.load(this.#control, Word.gone);
      const left = deadline - performance.now();
      if (gone >= this.size - 1 || left <= 0) return gone >= this.size - 1;
      Atomics.wait(this.#control, Word.gone, gone, left);
    }
  }

  /** Ends the group with the failure of a rank, by default this one, unless it has ended. */
  fail(message: string, rank = this.rank): void {
    this.#fail(`rank ${rank} failed: ${message}`);
  }

  /** The error that the group ended with; undefined while it has not failed. */
  get failure(): EngineDeadError | undefined {
    const status = Atomics.load(this.#control, Word.status);
    if (status !== Status.failing && status !== Status.failed) return undefined;
    // Whoever fails writes the message next; should its thread end before that, there is none.
    if (status === Status.failing) Atomics.wait(this.#control, Word.status, Status.failing, SLICE_MS);
    const length = Atomics.load(this.#control, Word.messageBytes);
    // TextDecoder takes no shared memory.
    const bytes = new Uint8Array(this.memory.control, MESSAGE_START, length).slice();
    return new EngineDeadError(length === 0 ? "a rank failed" : new TextDecoder().decode(bytes));
  }

  /** @throws EngineDeadError when a rank has failed, or the group is closed. */
  assertAlive(): void {
    if (Atomics.load(this.#control, Word.status) === Status.running) return;
    throw this.failure ?? new EngineDeadError("the ranks have been shut down");
  }

  /**
   * Waits until `counters[index]`, which counts modulo 2³², has come to `target`.
   * @param whose the rank that counts
   * @throws EngineDeadError when a rank has failed, the group is closed, or that rank has not come so far within the timeout:
   * then it has failed, for all.
   */
  waitFor(counters: Int32Array, index: number, target: number, whose: number): void {
    if (hasReached(Atomics.load(counters, index), target)) return;
    const deadline = performance.now() + this.#patience;
    for (;;) {
      const value = Atomics.load(counters, index);
      if (hasReached(value, target)) return;
      this.assertAlive();
      if (performance.now() > deadline) {
        this.#fail(`rank ${whose} has not answered rank ${this.rank} for ${this.#patience / 1000} s`);
        this.assertAlive();
      }
      Atomics.wait(counters, index, value, SLICE_MS);
    }
  }

  /**
   * Waits for what the ranks do together without counting it, as their devices do; looks again and again. A group that was closed
   * still finishes it.
   * @param what of this rank, in words
   * @throws EngineDeadError when a rank has failed, or it has not happened within the timeout: then the group has failed.
   */
  waitUntil(isDone: () => boolean, what: string): void {
    if (isDone()) return;
    const deadline = performance.now() + this.#patience;
    while (!isDone()) {
      if (this.failure !== undefined) throw this.failure;
      if (performance.now() > deadline) {
        this.#fail(`${what} of rank ${this.rank} has not come to an end for ${this.#patience / 1000} s`);
        throw (
          this.failure ?? new EngineDeadError(`${what} has not come to an end while ranks were shut down`)
        );
      }
      Atomics.wait(this.#control, Word.status, Status.running, POLL_MS);
    }
  }

  /** The same without a limit. @returns false when the group is closed. @throws EngineDeadError when a rank has failed. */
  waitForever(counters: Int32Array, index: number, target: number): boolean {
    for (;;) {
      const value = Atomics.load(counters, index);
      if (hasReached(value, target)) return true;
      if (this.isClosed) return false;
      this.assertAlive();
      Atomics.wait(counters, index, value, SLICE_MS);
    }
  }

  #fail(message: string): void {
    const before = Atomics.compareExchange(this.#control, Word.status, Status.running, Status.failing);
    if (before !== Status.running) return;
    const bytes = new TextEncoder().encode(message).subarray(0, MAX_MESSAGE_BYTES);
    new Uint8Array(this.memory.control, MESSAGE_START).set(bytes);
    Atomics.store(this.#control, Word.messageBytes, bytes.length);
    Atomics.store(this.#control, Word.status, Status.failed);
    Atomics.notify(this.#control, Word.status);
  }
}

function hasReached(value: number, target: number): boolean {
  return ((value - target) | 0) >= 0;
}

/** Runs a rank's part of something that all take part in: what is thrown ends the group. */
export function orFail<T>(group: RankGroup, run: () => T): T {
  try {
    return run();
  } catch (error) {
    // A failure of another rank is on record already.
    if (group.failure === undefined) group.fail(error instanceof Error ? error.message : String(error));
    if (error instanceof EngineDeadError || error instanceof InvariantError) throw error;
    throw new EngineDeadError(group.failure?.message ?? String(error), { cause: error });
  }
}
