import type { RankExchange } from "../src/backend/cuda/rank-exchange.ts";
import { DeviceError, invariant } from "../src/base/errors.ts";
import type { Shard } from "../src/base/shard.ts";

/** Bytes that a rank can give at once. */
const PART_BYTES = 256;
/** Words ahead of the parts: ranks that have come, meetings so far, whether a rank has given up. */
const ARRIVED = 0;
const MEETINGS = 1;
const FAILED = 2;
const HEADER_BYTES = 64;

/** How long ranks wait for one another: as long as reading weights may take. */
const DEFAULT_TIMEOUT_MS = 120_000;

/**
 * Agreement between the threads of ranks, before their devices can talk to one another: each gives some bytes and takes those
 * of all. One rank's side of memory that they share. It waits on the thread.
 */
export class Rendezvous implements RankExchange {
  readonly #header: Int32Array;
  readonly #parts: Uint8Array;

  /** @param memory From `allocate`, the same for all ranks. */
  constructor(
    memory: SharedArrayBuffer,
    readonly shard: Shard,
    private readonly timeoutMs = DEFAULT_TIMEOUT_MS,
  ) {
    invariant(memory.byteLength === bytesFor(shard.size), `a rendezvous of ${shard.size} ranks`);
    this.#header = new Int32Array(memory, 0, HEADER_BYTES / 4);
    this.#parts = new Uint8Array(memory, HEADER_BYTES);
  }

  static allocate(ranks: number): SharedArrayBuffer {
    return new SharedArrayBuffer(bytesFor(ranks));
  }

  /** Of up to 256 bytes. @throws DeviceError when a rank has given up, or does not come in time; then for all, from then on. */
  share(bytes: Uint8Array, receive: (pieces: readonly Uint8Array[], offset: number) => void): void {
    const { length } = bytes;
    invariant(length <= PART_BYTES, `${length} bytes of one rank`);
    this.#parts.set(bytes, this.shard.rank * PART_BYTES);
    this.#meet();
    const starts = Array.from({ length: this.shard.size }, (_, rank) => rank * PART_BYTES);
    const pieces = starts.map((start) => this.#parts.subarray(start, start + length));
    receive(pieces, 0);
    // Parts are overwritten only when all have read them.
    this.#meet();
  }

  get hasFailed(): boolean {
    return Atomics.load(this.#header, FAILED) !== 0;
  }

  /** Looks again every 0.1 ms, as long as others are waited for. @throws as `share` */
  waitUntil(isDone: () => boolean, what: string): void {
    const deadline = performance.now() + this.timeoutMs;
    while (!isDone()) {
      this.#checkOthers();
      if (performance.now() > deadline) {
        this.giveUp();
        throw new DeviceError(
          `${what} of rank ${this.shard.rank} takes more than ${this.timeoutMs / 1000} s`,
        );
      }
      Bun.sleepSync(0.1);
    }
  }

  /** This rank does not go on: all others stop waiting for it. */
  giveUp(): void {
    Atomics.store(this.#header, FAILED, 1);
    // A rank that has looked and is about to wait would miss the notification alone: the word that it waits for changes.
    Atomics.add(this.#header, MEETINGS, 1);
    Atomics.notify(this.#header, MEETINGS);
  }

  #meet(): void {
    const header = this.#header;
    const meeting = Atomics.load(header, MEETINGS);
    const deadline = performance.now() + this.timeoutMs;
    if (Atomics.add(header, ARRIVED, 1) + 1 === this.shard.size) {
      Atomics.store(header, ARRIVED, 0);
      Atomics.add(header, MEETINGS, 1);
      Atomics.notify(header, MEETINGS);
    }
    while (Atomics.load(header, MEETINGS) === meeting) {
      this.#checkOthers();
      const left = deadline - performance.now();
      if (left > 0) {
        Atomics.wait(header, MEETINGS, meeting, left);
        continue;
      }
      this.giveUp();
      throw new DeviceError(
        `rank ${this.shard.rank} has waited ${this.timeoutMs / 1000} s for the other ${this.shard.size - 1}`,
      );
    }
    this.#checkOthers();
  }

  #checkOthers(): void {
    if (this.hasFailed)
      throw new DeviceError(`rank ${this.shard.rank} cannot go on: another rank has failed`);
  }
}

function bytesFor(ranks: number): number {
  return HEADER_BYTES + ranks * PART_BYTES;
}
