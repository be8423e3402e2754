import { invariant } from "../base/errors.ts";
import type { RankGroup } from "./rank-group.ts";

/** Words of the ring: a power of two. A longer message passes through it in pieces. */
const CAPACITY = 2 ** 18;
/** Words ahead of a message: its number, from 0, and how many words it has. */
const HEADER_WORDS = 2;

/** One counter for the leader, one for each other rank, and the words. */
export function ringBytes(size: number): number {
  return 4 * (size + CAPACITY);
}

/**
 * Messages from the leader to every other rank, each of which reads all of them in their order: a ring of words, with a
 * counter, modulo 2³², of the words that the leader has written and of those that each other rank has read.
 */
export class StepRing {
  /** [0]: words written; [r]: words that rank r has read. */
  readonly #counters: Int32Array;
  readonly #words: Int32Array;
  /** Words written, of the leader, or read, of another rank; and messages. */
  #at = 0;
  #messages = 0;

  constructor(private readonly group: RankGroup) {
    const { size, memory } = group;
    this.#counters = new Int32Array(memory.ring, 0, size);
    this.#words = new Int32Array(memory.ring, 4 * size, CAPACITY);
  }

  /**
   * The leader's: sends a message. Returns when all of it is in the ring, which other ranks may have to make room in first.
   * @throws EngineDeadError when a rank has failed, or makes no room within the group's timeout.
   */
  publish(message: Int32Array): void {
    invariant(this.group.rank === 0, "only the leader publishes");
    this.group.assertAlive();
    this.#write(Int32Array.of(this.#messages++, message.length));
    this.#write(message);
  }

  /**
   * Another rank's: waits for the next message, for as long as it takes.
   * @returns undefined when the group is closed.
   * @throws EngineDeadError when a rank has failed; InvariantError when a message is missing.
   */
  next(): Int32Array | undefined {
    if (!this.group.waitForever(this.#counters, 0, (this.#at + HEADER_WORDS) | 0)) return undefined;
    const [number, length] = this.#read(HEADER_WORDS);
    invariant(number === this.#messages++, `message ${number} instead of ${this.#messages - 1}`);
    return this.#read(length!);
  }

  #write(words: Int32Array): void {
    for (let start = 0; start < words.length; ) {
      const index = this.#at & (CAPACITY - 1);
      const piece = words.subarray(start, start + Math.min(CAPACITY / 2, CAPACITY - index));
      for (let rank = 1; rank < this.group.size; rank++)
        this.group.waitFor(this.#counters, rank, (this.#at + piece.length - CAPACITY) | 0, rank);
      this.#words.set(piece, index);
      this.#count(piece.length);
      start += piece.length;
    }
  }

  #read(length: number): Int32Array {
    const message = new Int32Array(length);
    for (let start = 0; start < length; ) {
      const index = this.#at & (CAPACITY - 1);
      const wanted = Math.min(length - start, CAPACITY / 2, CAPACITY - index);
      this.group.waitFor(this.#counters, 0, (this.#at + 1) | 0, 0);
      const there = (Atomics.load(this.#counters, 0) - this.#at) | 0;
      const piece = this.#words.subarray(index, index + Math.min(wanted, there));
      message.set(piece, start);
      this.#count(piece.length);
      start += piece.length;
    }
    return message;
  }

  /** Counts words of this rank and wakes whoever waits for them. */
  #count(words: number): void {
    this.#at = (this.#at + words) | 0;
    Atomics.store(this.#counters, this.group.rank, this.#at);
    Atomics.notify(this.#counters, this.group.rank);
  }
}
