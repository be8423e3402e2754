import { exchangeBytes } from "./exchange.ts";
import { CONTROL_BYTES, type RankMemory } from "./rank-group.ts";
import { ringBytes } from "./step-ring.ts";

/**
 * Milliseconds without an answer after which a rank counts as stuck. Of one step, what lies between two sums over ranks must take
 * less; together with the time to tell clients, it stays below 30 s.
 */
const TIMEOUT_MS = 20_000;

/** The memory of a group of `size` ranks that have begun nothing. */
export function allocateRankMemory(size: number, timeout = TIMEOUT_MS): RankMemory {
  return {
    ...{ size, timeout },
    control: new SharedArrayBuffer(CONTROL_BYTES),
    exchange: new SharedArrayBuffer(exchangeBytes(size)),
    ring: new SharedArrayBuffer(ringBytes(size)),
  };
}
