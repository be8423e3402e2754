import type { ServerMetrics } from "./metrics.ts";
import type { ServerLog } from "./request-log.ts";

const MAX_NAMES = 64;
const MAX_LENGTH = 64;

/** Counts the fields of requests that no schema has, and logs each name once. Past 64 names it counts "other". */
export class UnknownFieldLog {
  readonly #seen = new Set<string>();

  constructor(
    private readonly metrics: ServerMetrics,
    private readonly log: ServerLog,
  ) {}

  readonly add = (names: readonly string[]): void => {
    for (const full of names.slice(0, MAX_NAMES)) {
      const name = full.slice(0, MAX_LENGTH);
      if (!this.#seen.has(name) && this.#seen.size < MAX_NAMES) {
        this.#seen.add(name);
        this.log.write("unknown_field", { field: name });
      }
      this.metrics.countUnknownFields(this.#seen.has(name) ? name : "other", 1);
    }
    if (names.length > MAX_NAMES) this.metrics.countUnknownFields("other", names.length - MAX_NAMES);
  };
}
