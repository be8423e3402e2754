/**
 * Memory for draws from the standard normal distribution by how many numbers their generator had given before. Each takes a logarithm,
 * a root and a cosine, and a thousand cases draw the same ones.
 */
export function noKnownNormals(): Float32Array {
  return new Float32Array(2 ** 22).fill(Number.NaN);
}

/** What each number moves the state of a generator on by. */
const STEP = 0x6d2b79f5;

/** A seeded generator of test data (mulberry32): the same numbers on every run. */
export class Random {
  #state: number;
  #numGiven = 0;

  /** @param known memory of `noKnownNormals` that generators of this seed share */
  constructor(
    seed: number,
    private readonly known: Float32Array = new Float32Array(0),
  ) {
    this.#state = seed | 0;
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    this.#numGiven++;
    this.#state = (this.#state + STEP) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Uniform in [0, limit). */
  int(limit: number): number {
    return Math.floor(this.uniform() * limit);
  }

  /** `count` draws from the normal distribution of deviation `scale` around `mean`. */
  normals(count: number, scale = 1, mean = 0): Float32Array {
    const draws = new Float32Array(count);
    const [known, first] = [this.known, this.#numGiven];
    let i = 0;
    for (; i < count; i++) {
      const draw = known[first + 2 * i] ?? Number.NaN;
      if (Number.isNaN(draw)) break;
      draws[i] = mean + scale * draw;
    }
    this.#numGiven += 2 * i;
    this.#state = (this.#state + Math.imul(2 * i, STEP)) | 0;
    for (; i < count; i++) draws[i] = mean + scale * this.#normal();
    return draws;
  }

  #normal(): number {
    const at = this.#numGiven;
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const draw = Math.fround(radius * Math.cos(2 * Math.PI * this.uniform()));
    if (at < this.known.length) this.known[at] = draw;
    return draw;
  }

  /** The numbers 0 … count − 1 in random order. */
  permutation(count: number): number[] {
    const order = Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; i--) {
      const j = this.int(i + 1);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }
}
