import type { RankExchange } from "../../../../src/backend/cuda/rank-exchange.ts";
import { EngineDeadError } from "../../../../src/base/errors.ts";

/** Where the other rank's memory would be. */
export const OTHER_BASE = 2 ** 45;
/** More than its bytes. */
const OTHER_BYTES = 2 ** 29;

/** What is copied to the other rank's memory. */
export interface Copied {
  /** From its start. */
  readonly to: number;
  readonly byteLength: number;
}

/** Takes what is copied there, and keeps none of it. */
export function otherMemory(copied: Copied[] = []) {
  return (address: number, byteLength: number): Uint8Array | undefined => {
    if (address < OTHER_BASE || address + byteLength > OTHER_BASE + OTHER_BYTES) return undefined;
    copied.push({ to: address - OTHER_BASE, byteLength });
    return new Uint8Array(byteLength);
  };
}

/** Rank 1 of 2 is this one; what rank 0 says is made up. */
export class FakeExchange implements RankExchange {
  readonly shard = { rank: 1, size: 2 };
  /** What rank 0 answers, beside what it would if it were as this one. */
  answers: {
    device?: number;
    nccl?: number;
    capability?: number;
    reaches?: number;
    context?: number;
    times?: readonly number[];
  } = {};
  hasFailed = false;
  #calls = 0;
  #hasId = false;

  share(own: Uint8Array, receive: (pieces: readonly Uint8Array[], offset: number) => void): void {
    receive([this.#other(own), own], 0);
  }

  waitUntil(isDone: () => boolean): void {
    while (!isDone()) if (this.hasFailed) throw new EngineDeadError("rank 0 failed");
  }

  /** By the length: ids are the first 128 bytes, times the only numbers that are more than three. */
  #other(own: Uint8Array): Uint8Array {
    if (own.length === 128 && !this.#hasId) {
      this.#hasId = true;
      return new Uint8Array(128).fill(9);
    }
    const numbers = new Float64Array(own.slice().buffer);
    const { device = 7, reaches = 1, context = 0, times = numbers } = this.answers;
    if (numbers.length > 3) return bytesOf(times);
    const { nccl = numbers[1]!, capability = numbers[2]! } = this.answers;
    if (this.#calls++ === 0) return bytesOf([device, nccl, capability]);
    return bytesOf(numbers.length === 1 ? [reaches] : [context, OTHER_BASE]);
  }
}

function bytesOf(numbers: ArrayLike<number>): Uint8Array {
  return new Uint8Array(Float64Array.from(numbers).buffer);
}
