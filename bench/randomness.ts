/** Random numbers, the same for the same seed (Numerical Recipes' congruence). */
export class Randomness {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0 || 1;
  }

  /** [0, 1) */
  next(): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
    return this.#state / 2 ** 32;
  }

  /** From 1 to `most`, as often from 1 to 2 as from 1,000 to 2,000. */
  size(most: number): number {
    return Math.max(1, Math.floor(most ** this.next()));
  }
}
