/** A seeded generator of test data (mulberry32): the same numbers on every run. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
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
    for (let i = 0; i < count; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
      draws[i] = mean + scale * radius * Math.cos(2 * Math.PI * this.uniform());
    }
    return draws;
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
