import type { Backend, LogprobTensors, Readback } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Workspace } from "../backend/workspace.ts";
import type { LogprobRows } from "./types.ts";

/** Log-probabilities of some rows on their way to the host. */
export interface PendingLogprobs {
  readonly topCount: number;
  readonly chosen: Readback;
  readonly ranks: Readback;
  readonly topIds: Readback;
  readonly topLogprobs: Readback;
}

/** Enqueues a copy to the host, as `Backend.readback` does. */
export type EnqueueCopy = (source: Tensor) => Readback;

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
  readback: EnqueueCopy,
): PendingLogprobs {
  const count = rows?.dim(0) ?? logits.dim(0);
  const out: LogprobTensors = {
    chosen: workspace.tensor("chosenLogprobs", "float32", [count]),
    ranks: workspace.tensor("chosenRanks", "int32", [count]),
    topIds: workspace.tensor("topIds", "int32", [count, topCount]),
    topLogprobs: workspace.tensor("topLogprobs", "float32", [count, topCount]),
  };
  backend.logprobs(out, logits, tokens, rows);
  return {
    topCount,
    chosen: readback(out.chosen),
    ranks: readback(out.ranks),
    topIds: readback(out.topIds),
    topLogprobs: readback(out.topLogprobs),
  };
}

/** Waits for the copies. `chosenIds` are the tokens that they are of, row by row. Ranks count from 1. */
export function readLogprobs(pending: PendingLogprobs, chosenIds: Int32Array): LogprobRows {
  return {
    topCount: pending.topCount,
    chosenIds,
    chosenLogprobs: asFloat32(pending.chosen.wait()),
    chosenRanks: asInt32(pending.ranks.wait()).map((rank) => rank + 1),
    topIds: asInt32(pending.topIds.wait()),
    topLogprobs: asFloat32(pending.topLogprobs.wait()),
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
