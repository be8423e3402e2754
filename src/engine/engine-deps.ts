import type { IHasher } from "hash-wasm";
import type { ResolvedSamplingParams } from "../base/sampling-params.ts";
import type { Runner } from "../runner/types.ts";
import type { TextStream } from "./completion.ts";
import type { MatcherSource } from "./token-matcher.ts";

/** The surroundings of an engine, which has no clock, randomness or asynchronous work of its own. */
export interface EngineDeps {
  /** Owned by the engine from here on. */
  readonly runner: Runner;
  readonly enablePrefixCaching: boolean;
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  /** See `SchedulerLimits`. */
  readonly batchInvariant?: boolean;
  /** Launch a step before the tokens of the one before are read, if the runner can. */
  readonly overlap: boolean;
  readonly eosTokenIds: readonly number[];
  /** SHA-256, from hash-wasm's `createSHA256`. */
  readonly hasher: IHasher;
  /** Seconds. */
  clock(): number;
  /** Unsigned 64-bit seeds for requests that bring none. */
  nextSeed(): bigint;
  /** Without it there is no text. */
  createTextStream?(promptTokenIds: Int32Array, sampling: ResolvedSamplingParams): TextStream;
  /** For requests with a grammar, of which there are none without it. */
  readonly matchers?: MatcherSource | undefined;
  /** A token's text, for log-probabilities. */
  decodeToken?(id: number): string;
  /** Check every invariant after every step: slow. */
  readonly debugInvariants?: boolean;
}
