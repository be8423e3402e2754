import type { Backend } from "../backend/backend.ts";
import { Tensor } from "../backend/tensor.ts";
import type { Workspace } from "../backend/workspace.ts";
import type { LogprobRows } from "./types.ts";

/** Log-probabilities of R rows, K top entries each, as `enqueueLogprobs` lays them out. */
export interface LogprobExtents {
  readonly count: number;
  readonly topCount: number;
}

export interface EnqueuedLogprobs extends LogprobExtents {
  /** int32 [logprobWords], in memory that the next of them take. */
  readonly words: Tensor;
}

/** Words of all four parts: chosen log-probabilities [R] and ranks [R], top ids [R, K] and log-probabilities [R, K]. */
export function logprobWords({ count, topCount }: LogprobExtents): number {
  return 2 * count * (1 + topCount);
}

/**
 * Enqueues the log-softmax of logits[N, V], its value at tokens[N], and its `topCount` best entries: of the rows int32 [R]
 * if given, else of all.
 */
export function enqueueLogprobs(
  backend: Backend,
  workspace: Workspace,
  logits: Tensor,
  tokens: Tensor,
  rows: Tensor | undefined,
  topCount: number,
): EnqueuedLogprobs {
  const count = rows?.dim(0) ?? logits.dim(0);
  const words = workspace.tensor("logprobs", "int32", [logprobWords({ count, topCount })]);
  const part = (dtype: "int32" | "float32", start: number, ...shape: number[]) =>
    new Tensor(words.buffer, dtype, shape, 4 * start);
  const out = {
    chosen: part("float32", 0, count),
    ranks: part("int32", count, count),
    topIds: part("int32", 2 * count, count, topCount),
    topLogprobs: part("float32", count * (2 + topCount), count, topCount),
  };
  backend.logprobs(out, logits, tokens, rows);
  return { count, topCount, words };
}

/** The rows in `words`, copied. `chosenIds` are the tokens that they are of, row by row. Ranks count from 1. */
export function readLogprobs(
  { count, topCount }: LogprobExtents,
  words: Int32Array,
  chosenIds: Int32Array,
): LogprobRows {
  const ints = (start: number, length: number) => words.slice(start, start + length);
  const floats = (start: number, length: number) => new Float32Array(ints(start, length).buffer);
  return {
    topCount,
    chosenIds,
    chosenLogprobs: floats(0, count),
    chosenRanks: ints(count, count).map((rank) => rank + 1),
    topIds: ints(2 * count, count * topCount),
    topLogprobs: floats(count * (2 + topCount), count * topCount),
  };
}

/** Rows [start, end), with only the first `topCount` entries of each. */
export function sliceLogprobs(rows: LogprobRows, start: number, end: number, topCount: number): LogprobRows {
  const top = <A extends Int32Array | Float32Array>(entries: A): A => {
    const out = arrayLike(entries, (end - start) * topCount);
    for (let row = start; row < end; row++) {
      const from = row * rows.topCount;
      out.set(entries.subarray(from, from + topCount), (row - start) * topCount);
    }
    return out;
  };
  return {
    topCount,
    chosenIds: rows.chosenIds.slice(start, end),
    chosenLogprobs: rows.chosenLogprobs.slice(start, end),
    chosenRanks: rows.chosenRanks.slice(start, end),
    topIds: top(rows.topIds),
    topLogprobs: top(rows.topLogprobs),
  };
}

/** Rows of `parts` one after the other; all have the same `topCount`. */
export function concatLogprobs(parts: readonly LogprobRows[]): LogprobRows {
  return {
    topCount: parts[0]!.topCount,
    chosenIds: concat(parts.map(({ chosenIds }) => chosenIds)),
    chosenLogprobs: concat(parts.map(({ chosenLogprobs }) => chosenLogprobs)),
    chosenRanks: concat(parts.map(({ chosenRanks }) => chosenRanks)),
    topIds: concat(parts.map(({ topIds }) => topIds)),
    topLogprobs: concat(parts.map(({ topLogprobs }) => topLogprobs)),
  };
}

/** The elements of `arrays`, of which there is one at least, one after the other. */
export function concat<A extends Int32Array | Float32Array>(arrays: readonly A[]): A {
  const out = arrayLike(
    arrays[0]!,
    arrays.reduce((sum, { length }) => sum + length, 0),
  );
  let offset = 0;
  for (const array of arrays) {
    out.set(array, offset);
    offset += array.length;
  }
  return out;
}

function arrayLike<A extends Int32Array | Float32Array>(array: A, length: number): A {
  return new (array.constructor as new (length: number) => A)(length);
}

export function asInt32(bytes: Uint8Array): Int32Array {
  return new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

export function asFloat32(bytes: Uint8Array): Float32Array {
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}
