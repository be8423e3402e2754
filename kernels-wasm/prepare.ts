/** Inputs of products, normalised and in the form that products read. A unit is one token. */
import { blocksOfGroup, paddedBlock } from "./blocks";
import * as layout from "./layout";
import { argument, sum } from "./vectors";

/** The least scale: inputs that ask for a smaller one, which nothing can be divided by, become 0. */
const LEAST_SCALE: f32 = 1e-37;

// Arguments of both kernels: x, out, bytes of a token in out, inputs K, weight of the norm or 0, eps, scales out, group, bits of a code,
// permutation or 0; of floats also: whether pairs are split.

/**
 * out[K] = x, or x / rms(x) · weight, float32, permuted, and zeros up to the stride. Of split pairs, of each 32 inputs those at even
 * columns come first.
 */
export function prepareFloats(unit: i32, scratch: usize): void {
  const inputs = argument<i32>(3);
  const stride = argument<usize>(2);
  const permutation = argument<usize>(9);
  const isSplit = argument<i32>(10) !== 0;
  const out = argument<usize>(1) + <usize>unit * stride;
  const size = (<usize>inputs) << 2;
  const x = argument<usize>(0) + <usize>unit * size;
  if (permutation === 0 && !isSplit) normalise(x, out, inputs);
  else {
    normalise(x, scratch, inputs);
    const permuted = permutation === 0 ? scratch : isSplit ? scratch + size : out;
    if (permutation !== 0) permute(scratch, permuted, permutation, inputs);
    if (isSplit) splitPairs(permuted, out, size);
  }
  memory.fill(out + size, 0, stride - size);
}

/** out[count] = x in the order of the permutation. */
function permute(x: usize, out: usize, permutation: usize, count: i32): void {
  for (let i: usize = 0; i < (<usize>count) << 2; i += 4)
    store<u32>(out + i, load<u32>(x + ((<usize>load<u32>(permutation + i)) << 2)));
}

/** Of each 32 of x, as many as `size` bytes, first those at even columns. */
function splitPairs(x: usize, out: usize, size: usize): void {
  for (const end = x + size; x < end; x += 128, out += 128) {
    for (let i: usize = 0; i < 64; i += 16) {
      const a = v128.load(x + 2 * i);
      const b = v128.load(x + 2 * i, 16);
      v128.store(out + i, v128.shuffle<i32>(a, b, 0, 2, 4, 6));
      v128.store(out + i, v128.shuffle<i32>(a, b, 1, 3, 5, 7), 64);
    }
  }
}

/**
 * out = x, or the norm of x, as integers, in blocks that are padded with zeros to a multiple of `CODES`; and for each block a record. By the
 * bits of codes:
 *
 *   8   x = s · (h + l / 2¹⁵), int16: the block's h, then its l. Record: s, float32, and the sums of the h and of the l, int32
 *   4   x = s · (HIGH · h + MIDDLE · m + l), int8: 32 inputs are h, m and l of those at even columns, then of those at odd ones.
 *       Record: of h, of m and of l the sum of each lane that products with codes are summed in, int16 [8]; then s, float32; then
 *       the sums of x over the lower lanes and over the upper ones, float32 [2]
 *
 * The sums are what a zero point, or a minimum, is multiplied by.
 */
export function prepareIntegers(unit: i32, scratch: usize): void {
  const inputs = argument<i32>(3);
  const group = argument<i32>(7);
  const bits = argument<i32>(8);
  const permutation = argument<usize>(9);
  const ofGroup = blocksOfGroup(group);
  const blocks = (inputs / group) * ofGroup;
  const blockBytes = <usize>paddedBlock(group) * (bits === 4 ? 3 : 4);
  const recordBytes: usize = bits === 4 ? layout.NIBBLE_SCALES : layout.BLOCK_SCALES;
  normalise(argument<usize>(0) + ((<usize>(unit * inputs)) << 2), scratch, inputs);
  let x = scratch;
  if (permutation !== 0) {
    x += (<usize>inputs) << 2;
    permute(scratch, x, permutation, inputs);
  }
  let out = argument<usize>(1) + <usize>unit * argument<usize>(2);
  let record = argument<usize>(6) + <usize>(unit * blocks) * recordBytes;
  for (let block = 0; block < blocks; block++) {
    const within = (block % ofGroup) * layout.BLOCK;
    const start = (block / ofGroup) * group + within;
    const values = x + ((<usize>start) << 2);
    const count = min(layout.BLOCK, group - within);
    memory.fill(out, 0, blockBytes);
    if (bits === 4) quantiseToBytes(values, count, out, blockBytes, record);
    else quantiseToShorts(values, count, out, blockBytes, record);
    out += blockBytes;
    record += recordBytes;
  }
}

function quantiseToShorts(x: usize, count: i32, out: usize, blockBytes: usize, record: usize): void {
  const largest = largestOf(x, count);
  const scale: f32 = largest < Infinity ? largest / 32767 : NaN;
  let highs = i32x4.splat(0);
  let lows = highs;
  if (scale > LEAST_SCALE) {
    const factor = f32x4.splat(<f32>(32767 / <f64>largest));
    const lowOut = out + (blockBytes >> 1);
    for (let i: usize = 0; i < <usize>count; i += 4) {
      const values = f32x4.mul(v128.load(x + (i << 2)), factor);
      const high = f32x4.nearest(values);
      const h = i32x4.trunc_sat_f32x4_s(high);
      const rest = f32x4.mul(f32x4.sub(values, high), f32x4.splat(32768));
      const l = i32x4.trunc_sat_f32x4_s(f32x4.nearest(rest));
      highs = i32x4.add(highs, h);
      lows = i32x4.add(lows, l);
      v128.store64_lane(out + (i << 1), i16x8.narrow_i32x4_s(h, h), 0);
      v128.store64_lane(lowOut + (i << 1), i16x8.narrow_i32x4_s(l, l), 0);
    }
  }
  store<f32>(record, scale);
  store<i32>(record, addLanes(highs), 4);
  store<i32>(record, addLanes(lows), 8);
}

function quantiseToBytes(x: usize, count: i32, out: usize, blockBytes: usize, record: usize): void {
  const largest = largestOf(x, count);
  const scale: f32 = largest < Infinity ? largest / (127 * <f32>layout.HIGH) : NaN;
  if (scale > LEAST_SCALE) {
    const factor = f32x4.splat(<f32>(127 / <f64>largest));
    const mostLow = f32x4.splat(<f32>(layout.HIGH / 2 - 1));
    for (let i = 0; i < count; i += 4) {
      const values = f32x4.mul(v128.load(x + ((<usize>i) << 2)), factor);
      const high = f32x4.nearest(values);
      const rest = f32x4.nearest(f32x4.mul(f32x4.sub(values, high), f32x4.splat(<f32>layout.HIGH)));
      // Of two halves the upper one would be too much for m.
      const lows = i32x4.trunc_sat_f32x4_s(f32x4.min(rest, mostLow));
      const middle = i32x4.shr_s(i32x4.add(lows, i32x4.splat(layout.MIDDLE / 2)), 7);
      const at = out + <usize>(i / layout.CODES) * 96 + <usize>((i % layout.CODES) >> 1);
      storeBytes(at, i32x4.trunc_sat_f32x4_s(high));
      storeBytes(at + 16, middle);
      storeBytes(at + 32, i32x4.sub(lows, i32x4.shl(middle, 7)));
    }
  }
  let h = i16x8.splat(0);
  let m = h;
  let l = h;
  for (const end = out + blockBytes; out < end; out += 48) {
    h = i16x8.add(h, i16x8.extadd_pairwise_i8x16_s(v128.load(out)));
    m = i16x8.add(m, i16x8.extadd_pairwise_i8x16_s(v128.load(out, 16)));
    l = i16x8.add(l, i16x8.extadd_pairwise_i8x16_s(v128.load(out, 32)));
  }
  v128.store(record, h);
  v128.store(record, m, 16);
  v128.store(record, l, 32);
  store<f32>(record, scale, 48);
  const all = i32x4.add(
    i32x4.dot_i16x8_s(h, i16x8.splat(<i16>layout.HIGH)),
    i32x4.add(i32x4.dot_i16x8_s(m, i16x8.splat(<i16>layout.MIDDLE)), i32x4.dot_i16x8_s(l, i16x8.splat(1))),
  );
  const halves = i32x4.add(v128.shuffle<i32>(all, all, 0, 2, 0, 2), v128.shuffle<i32>(all, all, 1, 3, 1, 3));
  const sums = f32x4.mul(f32x4.convert_i32x4_s(halves), f32x4.splat(scale));
  v128.store64_lane(record, sums, 0, layout.INPUT_SUMS);
}

/** The largest magnitude of `count` floats, a multiple of 4: infinite or NaN where one is. */
function largestOf(x: usize, count: i32): f32 {
  // As integers magnitudes are in the same order, and NaN are above infinities.
  let largest = i32x4.splat(0);
  for (const end = x + ((<usize>count) << 2); x < end; x += 16)
    largest = i32x4.max_s(largest, v128.and(v128.load(x), i32x4.splat(0x7fffffff)));
  const halves = i32x4.max_s(largest, v128.shuffle<i32>(largest, largest, 2, 3, 0, 1));
  return reinterpret<f32>(max(i32x4.extract_lane(halves, 0), i32x4.extract_lane(halves, 1)));
}

/** The lowest bytes of four inputs: those at even columns, and 48 bytes on those at odd ones. */
function storeBytes(at: usize, values: v128): void {
  const bytes = i8x16.relaxed_swizzle(
    values,
    i8x16(0, 8, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
  );
  v128.store16_lane(at, bytes, 0);
  v128.store16_lane(at, bytes, 1, 48);
}

function addLanes(a: v128): i32 {
  return (
    i32x4.extract_lane(a, 0) +
    i32x4.extract_lane(a, 1) +
    (i32x4.extract_lane(a, 2) + i32x4.extract_lane(a, 3))
  );
}

/** out[count] = x, or x / rms(x) · weight. */
export function normalise(x: usize, out: usize, count: i32): void {
  const weight = argument<usize>(4);
  const size = (<usize>count) << 2;
  if (weight === 0) {
    memory.copy(out, x, size);
    return;
  }
  const whole = size & ~15;
  let a = f32x4.splat(0);
  let b = a;
  let i: usize = 0;
  for (; i + 32 <= whole; i += 32) {
    const u = v128.load(x + i);
    const v = v128.load(x + i, 16);
    a = f32x4.add(a, f32x4.mul(u, u));
    b = f32x4.add(b, f32x4.mul(v, v));
  }
  for (; i < whole; i += 16) {
    const u = v128.load(x + i);
    a = f32x4.add(a, f32x4.mul(u, u));
  }
  let squares = sum(f32x4.add(a, b));
  for (; i < size; i += 4) squares += load<f32>(x + i) * load<f32>(x + i);
  const factor = <f32>1 / sqrt<f32>(squares / <f32>count + argument<f32>(5));
  const factors = f32x4.splat(factor);
  for (i = 0; i < whole; i += 16)
    v128.store(out + i, f32x4.mul(f32x4.mul(v128.load(x + i), factors), v128.load(weight + i)));
  for (; i < size; i += 4) store<f32>(out + i, load<f32>(x + i) * factor * load<f32>(weight + i));
}
