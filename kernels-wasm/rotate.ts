/** The first part of attention: queries and keys normalised and rotated in place, keys and values stored. A unit is one token. */
import { argument } from "./vectors";

/** Arguments, shared with attend.ts where it needs them. */
export const QKV = 0;
export const OUT = 1;
export const HEADS = 2;
export const KV_HEADS = 3;
export const HEAD_DIM = 4;
export const KEYS = 5;
export const VALUES = 6;
export const BLOCK_SIZE = 7;
/** Whether keys and values are float8. */
export const IS_FLOAT8 = 8;
const POSITIONS = 9;
const SLOTS = 10;
const COS_SIN = 11;
const ROTARY_DIM = 12;
const QUERY_NORM = 13;
const KEY_NORM = 14;
/** float32 [positions], or 0. */
const QUERY_SCALES = 15;
/** float64. */
const EPS = 16;
const KEY_SCALE = 18;
const VALUE_SCALE = 20;
/** Whether projections are queries alone, and nothing is stored. */
export const READS_ONLY = 30;
/** Whether values are normalised. */
const NORMS_VALUES = 31;

export function rotateAndStore(unit: i32): void {
  const heads = argument<i32>(HEADS);
  const kvHeads = argument<i32>(KV_HEADS);
  const headBytes = (<usize>argument<i32>(HEAD_DIM)) << 2;
  const position = load<i32>(argument<usize>(POSITIONS) + ((<usize>unit) << 2));
  const slot = load<i32>(argument<usize>(SLOTS) + ((<usize>unit) << 2));
  const isReading = argument<i32>(READS_ONLY) !== 0;
  const rotated = isReading ? heads : heads + kvHeads;
  let head = argument<usize>(QKV) + <usize>unit * <usize>projectedHeads() * headBytes;
  for (let i = 0; i < rotated; i++, head += headBytes) {
    normaliseHead(head, argument<usize>(i < heads ? QUERY_NORM : KEY_NORM), headBytes);
    rotate(head, position);
    if (i < heads) scaleQuery(head, position, headBytes);
    if (i >= heads && slot >= 0)
      storeHead(head, argument<usize>(KEYS), slot, i - heads, argument<f64>(KEY_SCALE));
  }
  if (slot < 0 || isReading) return;
  for (let i = 0; i < kvHeads; i++, head += headBytes) {
    if (argument<i32>(NORMS_VALUES) !== 0) normaliseValue(head, headBytes);
    storeHead(head, argument<usize>(VALUES), slot, i, argument<f64>(VALUE_SCALE));
  }
}

/** The heads of a token's projections. */
export function projectedHeads(): i32 {
  const heads = argument<i32>(HEADS);
  return argument<i32>(READS_ONLY) !== 0 ? heads : heads + 2 * argument<i32>(KV_HEADS);
}

/** 1 / rms(x), in float64. */
function inverseRms(x: usize, size: usize): f64 {
  let squares: f64 = 0;
  for (let i: usize = 0; i < size; i += 4) squares += <f64>load<f32>(x + i) * <f64>load<f32>(x + i);
  return 1 / sqrt<f64>(squares / <f64>(size >> 2) + argument<f64>(EPS));
}

/** x = x / rms(x), rounded once. */
function normaliseValue(x: usize, size: usize): void {
  const factor = inverseRms(x, size);
  for (let i: usize = 0; i < size; i += 4) store<f32>(x + i, <f32>(<f64>load<f32>(x + i) * factor));
}

/** x = x / rms(x) · weight, where there is one; rounded once. */
function normaliseHead(x: usize, weight: usize, size: usize): void {
  if (weight === 0) return;
  const factor = inverseRms(x, size);
  for (let i: usize = 0; i < size; i += 4)
    store<f32>(x + i, <f32>(<f64>load<f32>(x + i) * factor * <f64>load<f32>(weight + i)));
}

/** (x₁, x₂) → (x₁cos − x₂sin, x₂cos + x₁sin), in float64, rounded once. */
function rotate(x: usize, position: i32): void {
  const rotaryDim = argument<i32>(ROTARY_DIM);
  const half = (<usize>rotaryDim) << 1;
  const cos = argument<usize>(COS_SIN) + ((<usize>(position * rotaryDim)) << 2);
  for (let i: usize = 0; i < half; i += 4) {
    const c = <f64>load<f32>(cos + i);
    const s = <f64>load<f32>(cos + half + i);
    const a = <f64>load<f32>(x + i);
    const b = <f64>load<f32>(x + half + i);
    store<f32>(x + i, <f32>(a * c - b * s));
    store<f32>(x + half + i, <f32>(b * c + a * s));
  }
}

/** x = x · the position's scale, where there is one. */
function scaleQuery(x: usize, position: i32, size: usize): void {
  const scales = argument<usize>(QUERY_SCALES);
  if (scales === 0) return;
  const scale = load<f32>(scales + ((<usize>position) << 2));
  for (let i: usize = 0; i < size; i += 4) store<f32>(x + i, load<f32>(x + i) * scale);
}

/** Copies a head's key or value to its place in the cache, in eight bits as x / scale. */
function storeHead(x: usize, cache: usize, slot: i32, head: i32, scale: f64): void {
  const blockSize = argument<i32>(BLOCK_SIZE);
  const headDim = argument<i32>(HEAD_DIM);
  const row = ((slot / blockSize) * argument<i32>(KV_HEADS) + head) * blockSize + (slot % blockSize);
  const at = <usize>row * <usize>headDim;
  if (argument<i32>(IS_FLOAT8) === 0) memory.copy(cache + (at << 2), x, (<usize>headDim) << 2);
  else {
    for (let i: usize = 0; i < <usize>headDim; i++)
      store<u8>(cache + at + i, toFloat8(<f32>(<f64>load<f32>(x + (i << 2)) / scale)));
  }
}

/** The code of float8_e4m3 that is nearest, ties to even, ±448 for what is beyond; see base/float8.ts. */
function toFloat8(value: f32): u8 {
  const bits = reinterpret<u32>(value);
  const sign = <u8>((bits >>> 24) & 0x80);
  const size = abs(value);
  if (isNaN(size)) return sign | 0x7f;
  if (size >= 448) return sign | 0x7e;
  // Below the least normal value they are multiples of 2^-9.
  if (size < 0.015625) return sign | <u8>nearest(size * 512);
  const magnitude = bits & 0x7fffffff;
  return sign | <u8>(((magnitude + 0x7ffff + ((magnitude >>> 20) & 1)) >>> 20) - 960);
}
