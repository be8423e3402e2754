import { invariant } from "../../base/errors.ts";
import { projectedHeads } from "../attention-spec.ts";
import type { AttentionHeads, attention, PagedKv, RaggedRows } from "./attention.ts";
import { PADDING } from "./batch.ts";
import { type Float8Kv, storeFloat8, widenContexts } from "./float8-kv.ts";
import { normaliseRow, rmsNormRow } from "./norm.ts";

/** Rotation angles: cosSin[positions, rotaryDim], half cosines, half sines. */
export interface Angles {
  readonly cosSin: Float32Array;
  readonly rotaryDim: number;
}

/** `AttentionSpec` in host memory. */
export interface AttendSpec extends AttentionHeads {
  readonly headNorm:
    | {
        readonly query: Float32Array;
        readonly key: Float32Array | undefined;
        readonly eps: number;
        readonly normsValues?: boolean | undefined;
      }
    | undefined;
  readonly angles: Angles | undefined;
  /** [positions] */
  readonly queryScales: Float32Array | undefined;
}

/** See `Backend.attend`: the projections are normalised and rotated in place, keys and values stored. */
export function attend(
  out: Float32Array,
  qkv: Float32Array,
  cache: PagedKv | Float8Kv,
  rows: RaggedRows,
  spec: AttendSpec,
  attentionOf: typeof attention,
): void {
  const { numHeads, numKvHeads, headDim, headNorm, angles, queryScales } = spec;
  const all = projectedHeads(spec);
  const rotated = Math.min(all, numHeads + numKvHeads);
  const width = all * headDim;
  for (const [t, position] of rows.positions.entries()) {
    const positions = angles && angles.cosSin.length / angles.rotaryDim;
    for (const count of [positions, queryScales?.length])
      invariant(
        0 <= position && position < (count ?? Infinity),
        `attend: position ${position} is outside tables of ${count} positions`,
      );
    for (let head = 0; head < rotated; head++) {
      const start = t * width + head * headDim;
      const weight = head < numHeads ? headNorm?.query : headNorm?.key;
      if (weight !== undefined) rmsNormRow(qkv, qkv, start, weight, headNorm!.eps);
      if (angles !== undefined) rotateHead(qkv, start, angles, position);
      if (queryScales !== undefined && head < numHeads)
        for (let i = start; i < start + headDim; i++) qkv[i]! *= queryScales[position]!;
    }
    if (headNorm?.normsValues)
      for (let head = rotated; head < all; head++)
        normaliseRow(qkv, t * width + head * headDim, headDim, headNorm.eps);
    const slot = rows.slotMapping[t]!;
    if (slot !== PADDING && !spec.readsOnly)
      storeKv(qkv, t * width + numHeads * headDim, cache, slot, numKvHeads, headDim);
  }
  if (isFloat8(cache)) {
    const widened = widenContexts(cache, rows, numKvHeads * cache.blockSize * headDim, spec.window);
    attentionOf(out, qkv, widened.cache, widened.rows, spec);
  } else attentionOf(out, qkv, cache, rows, spec);
}

/** Rotates one head of x, at `start`, in place: (x₁, x₂) → (x₁cos − x₂sin, x₂cos + x₁sin). */
function rotateHead(x: Float32Array, start: number, { cosSin, rotaryDim }: Angles, position: number): void {
  const half = rotaryDim / 2;
  const cosStart = position * rotaryDim;
  for (let i = 0; i < half; i++) {
    const cos = cosSin[cosStart + i]!;
    const sin = cosSin[cosStart + half + i]!;
    const x1 = x[start + i]!;
    const x2 = x[start + half + i]!;
    x[start + i] = x1 * cos - x2 * sin;
    x[start + half + i] = x2 * cos + x1 * sin;
  }
}

function isFloat8(cache: PagedKv | Float8Kv): cache is Float8Kv {
  return cache.keys instanceof Uint8Array;
}

/** Copies one token's keys at `start` of `qkv`, and the values after them, to cache slot `slot`. */
function storeKv(
  qkv: Float32Array,
  start: number,
  cache: PagedKv | Float8Kv,
  slot: number,
  numKvHeads: number,
  headDim: number,
): void {
  const { blocks, blockSize } = cache;
  invariant(0 <= slot && slot < blocks * blockSize, `attend: cache slot ${slot}`);
  const block = Math.floor(slot / blockSize);
  for (let head = 0; head < numKvHeads; head++) {
    const target = ((block * numKvHeads + head) * blockSize + (slot % blockSize)) * headDim;
    const first = start + head * headDim;
    const key = qkv.subarray(first, first + headDim);
    const value = qkv.subarray(first + numKvHeads * headDim, first + (numKvHeads + 1) * headDim);
    if (isFloat8(cache)) {
      storeFloat8(cache.keys, target, key, cache.keyScale);
      storeFloat8(cache.values, target, value, cache.valueScale);
    } else {
      cache.keys.set(key, target);
      cache.values.set(value, target);
    }
  }
}
