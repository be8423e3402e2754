import { invariant } from "../base/errors.ts";
import type { Shard } from "../base/shard.ts";
import type { RankGroup } from "./rank-group.ts";

/** Bytes that each rank hands out at a time. */
const CHUNK_BYTES = 256 * 1024;
/** Counters of a rank that come before the chunks, int32: rounds that it has begun, and the bytes of the latest two. */
const COUNTERS = 3;
/** Chunks of a rank: one that others may still read, and the next. */
const CHUNKS = 2;
/**
 * Milliseconds that ranks wait for one another while they start: one may have to compile, or to measure, what another finds on
 * disk.
 */
const START_TIMEOUT_MS = 300_000;

export function exchangeBytes(size: number): number {
  return headerBytes(size) + size * CHUNKS * CHUNK_BYTES;
}

/** Chunks are aligned to 8 bytes. */
function headerBytes(size: number): number {
  return Math.ceil((4 * COUNTERS * size) / 8) * 8;
}

/**
 * Memory through which all ranks show each other bytes, in rounds of one chunk. A rank puts its chunk in place, counts the
 * round, waits until every other rank has counted it, and reads theirs. A rank that has counted round n has read all of round
 * n − 1; so once all have, the chunks of that round are free, and two for each rank suffice.
 */
export class Exchange {
  readonly #rounds: Int32Array;
  readonly #lengths: Int32Array;
  #round = 0;

  constructor(private readonly group: RankGroup) {
    const { size } = group;
    this.#rounds = new Int32Array(group.memory.exchange, 0, size);
    this.#lengths = new Int32Array(group.memory.exchange, 4 * size, CHUNKS * size);
  }

  /** This rank, among all that take part. */
  get shard(): Shard {
    return { rank: this.group.rank, size: this.group.size };
  }

  /** See `RankGroup.failure`. */
  get hasFailed(): boolean {
    return this.group.failure !== undefined;
  }

  /**
   * Shows the other ranks `bytes` and calls `receive` with every rank's, this one's included, in the order of the ranks: once,
   * or piece by piece with the offset of each. Every rank must have as many. The pieces are valid during the call only.
   * @throws EngineDeadError when a rank fails or does not take part within the group's timeout.
   */
  share(bytes: Uint8Array, receive: (pieces: readonly Uint8Array[], offset: number) => void): void {
    for (let offset = 0; offset < bytes.length; offset += CHUNK_BYTES) {
      const piece = bytes.subarray(offset, offset + CHUNK_BYTES);
      receive(this.#shareChunk(piece), offset);
    }
  }

  /** Runs what ranks start with: they wait for one another longer than a step may take. */
  starting<T>(run: () => T): T {
    return this.group.withPatience(START_TIMEOUT_MS, run);
  }

  /** See `RankGroup.waitUntil`. */
  waitUntil(isDone: () => boolean, what: string): void {
    this.group.waitUntil(isDone, what);
  }

  /** The least of the ranks' values, int32. @throws as `share`. */
  minimum(value: number): number {
    let least = value;
    this.share(new Uint8Array(Int32Array.of(value).buffer), (pieces) => {
      const values = pieces.map(({ buffer, byteOffset }) => new Int32Array(buffer, byteOffset, 1)[0]!);
      least = Math.min(...values);
    });
    return least;
  }

  #shareChunk(bytes: Uint8Array): readonly Uint8Array[] {
    const { group } = this;
    const chunk = this.#round % CHUNKS;
    this.#round++;
    this.#chunkOf(group.rank, chunk, bytes.length).set(bytes);
    Atomics.store(this.#lengths, CHUNKS * group.rank + chunk, bytes.length);
    Atomics.store(this.#rounds, group.rank, this.#round | 0);
    Atomics.notify(this.#rounds, group.rank);
    return Array.from({ length: group.size }, (_, rank) => {
      group.waitFor(this.#rounds, rank, this.#round | 0, rank);
      const length = Atomics.load(this.#lengths, CHUNKS * rank + chunk);
      const what = `rank ${rank} shows ${length} bytes, rank ${group.rank} ${bytes.length}`;
      invariant(length === bytes.length, what);
      return this.#chunkOf(rank, chunk, length);
    });
  }

  #chunkOf(rank: number, chunk: number, length: number): Uint8Array {
    const start = headerBytes(this.group.size) + (CHUNKS * rank + chunk) * CHUNK_BYTES;
    return new Uint8Array(this.group.memory.exchange, start, length);
  }
}
