import { expectedSums, fromBfloat16, largestError, randomValues, withoutSigns } from "./sum-reference.ts";

/** bfloat16 terms of a sum over ranks, known at all of them, and the sum as the CPU computes it. */
export class Summands {
  /** Of each rank, [count]. */
  readonly parts: readonly Uint16Array<ArrayBuffer>[];
  /** The tensor that they are added to, [count]. */
  readonly residual: Uint16Array<ArrayBuffer>;
  readonly #expected: Uint16Array<ArrayBuffer>;

  constructor(count: number, ranks: number, seed: number) {
    this.parts = Array.from({ length: ranks }, (_, rank) => randomValues(count, seed + 101 * rank));
    this.residual = randomValues(count, seed + 7);
    this.#expected = expectedSums(this.residual, this.parts);
  }

  /** The largest distance of what is expected from float64, in units in the last place. */
  get expectedError(): number {
    return this.error(this.#expected);
  }

  /** Of sums from element `start` on. */
  error(sums: Uint16Array, start = 0): number {
    const slice = (values: Uint16Array) => values.subarray(start, start + sums.length);
    return largestError(sums, slice(this.residual), this.parts.map(slice));
  }

  /** @throws Error where sums from element `start` on differ from the CPU's */
  compare(sums: Uint8Array<ArrayBuffer>, start: number, title: string): void {
    const values = withoutSigns(new Uint16Array(sums.slice().buffer));
    const expected = this.#expected.subarray(start, start + values.length);
    if (Buffer.compare(bytesOf(values), bytesOf(expected)) === 0) return;
    const at = values.findIndex((value, i) => value !== expected[i]);
    const [actual, right] = [values[at]!, expected[at]!].map(
      (bits) => `${fromBfloat16(bits)} (0x${bits.toString(16)})`,
    );
    throw new Error(`${title}: element ${at} is ${actual}, expected ${right}`);
  }
}

function bytesOf({ buffer, byteOffset, byteLength }: Uint16Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
