import { invariant } from "../../base/errors.ts";
import { rmsNormRow } from "./norm.ts";

/** Rotation angles: cosSin[positions, rotaryDim], half cosines, half sines. */
export interface Angles {
  readonly cosSin: Float32Array;
  readonly rotaryDim: number;
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

/** Rotates the first `heads` heads of each row of x[T, width] in place. */
export function rotary(
  x: Float32Array,
  width: number,
  heads: number,
  headDim: number,
  angles: Angles,
  positions: Int32Array,
): void {
  for (let t = 0; t < positions.length; t++) {
    const position = checkedPosition("rotary", positions[t]!, angles);
    for (let head = 0; head < heads; head++) rotateHead(x, t * width + head * headDim, angles, position);
  }
}

/** Where ropeAndStoreKv puts keys and values: both [blocks, numKvHeads, blockSize, headDim]. */
export interface KvStore {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  readonly blocks: number;
  readonly blockSize: number;
}

export interface RopeStore {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly angles: Angles;
  readonly queryNorm: Float32Array | undefined;
  readonly keyNorm: Float32Array | undefined;
  readonly eps: number;
}

/** See `Backend.ropeAndStoreKv`. */
export function ropeAndStoreKv(
  qkv: Float32Array,
  store: KvStore,
  positions: Int32Array,
  slotMapping: Int32Array,
  spec: RopeStore,
): void {
  const { numHeads, numKvHeads, headDim, angles, queryNorm, keyNorm, eps } = spec;
  const rotated = numHeads + numKvHeads;
  const width = (rotated + numKvHeads) * headDim;
  for (let t = 0; t < positions.length; t++) {
    const position = checkedPosition("ropeAndStoreKv", positions[t]!, angles);
    for (let head = 0; head < rotated; head++) {
      const start = t * width + head * headDim;
      const norm = head < numHeads ? queryNorm : keyNorm;
      if (norm !== undefined) rmsNormRow(qkv, qkv, start, norm, eps);
      rotateHead(qkv, start, angles, position);
    }
    storeKv(qkv, t * width + numHeads * headDim, store, slotMapping[t]!, numKvHeads, headDim);
  }
}

/** Copies one token's keys at `start` of `qkv`, and the values after them, to cache slot `slot`. */
function storeKv(
  qkv: Float32Array,
  start: number,
  { keys, values, blocks, blockSize }: KvStore,
  slot: number,
  numKvHeads: number,
  headDim: number,
): void {
  invariant(0 <= slot && slot < blocks * blockSize, `ropeAndStoreKv: cache slot ${slot}`);
  const block = Math.floor(slot / blockSize);
  for (let head = 0; head < numKvHeads; head++) {
    const target = ((block * numKvHeads + head) * blockSize + (slot % blockSize)) * headDim;
    const key = start + head * headDim;
    const value = key + numKvHeads * headDim;
    keys.set(qkv.subarray(key, key + headDim), target);
    values.set(qkv.subarray(value, value + headDim), target);
  }
}

function checkedPosition(op: string, position: number, { cosSin, rotaryDim }: Angles): number {
  invariant(
    0 <= position && (position + 1) * rotaryDim <= cosSin.length,
    `${op}: position ${position} is outside cosSin of ${cosSin.length / rotaryDim} positions`,
  );
  return position;
}
