/** Of durations in seconds. */
export interface DurationSummary {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
}

/** Durations that are summed up now and then. Between two times the latest `CAPACITY` are kept. */
export class Durations {
  readonly #seconds = new Float64Array(CAPACITY);
  #count = 0;

  add(seconds: number): void {
    this.#seconds[this.#count++ % CAPACITY] = seconds;
  }

  /** Sums up those since the last time; null without any. */
  take(): DurationSummary | null {
    const count = this.#count;
    if (count === 0) return null;
    this.#count = 0;
    const sorted = this.#seconds.slice(0, Math.min(count, CAPACITY)).sort();
    const quantile = (q: number) => sorted[Math.floor(q * (sorted.length - 1))]!;
    return { count, p50: quantile(0.5), p99: quantile(0.99) };
  }
}

const CAPACITY = 4096;
