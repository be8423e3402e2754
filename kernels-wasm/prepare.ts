/** Inputs of products, normalised and in the form that products read. A unit is one token. */
import * as layout from "./layout";
import { argument, sum } from "./vectors";

// Arguments of both kernels: x, out, bytes of a token in out, inputs K, weight of the norm or 0, eps;
// of integers also: scales out, group, bits of a code, permutation or 0.

/** out[K] = x, or x / rms(x) · weight, float32, and zeros up to the stride. */
export function prepareFloats(unit: i32): void {
  const inputs = argument<i32>(3);
  const stride = argument<usize>(2);
  const out = argument<usize>(1) + <usize>unit * stride;
  const size = (<usize>inputs) << 2;
  normalise(argument<usize>(0) + <usize>unit * size, out, inputs);
  memory.fill(out + size, 0, stride - size);
}

/**
 * out = x, or the norm of x, as integers: for each block its int16 h, then its l, both padded with zeros to a multiple of `CODES`,
 * where x = s · (h + l / 2¹⁵), or 16 times that where codes come times 16; and for each block s, float32, and the sums of the h and of
 * the l that a zero point is multiplied by, int32.
 */
export function prepareIntegers(unit: i32, scratch: usize): void {
  const inputs = argument<i32>(3);
  const group = argument<i32>(7);
  const bits = argument<i32>(8);
  const permutation = argument<usize>(9);
  const blockSize = min(group, layout.BLOCK);
  const blocksOfGroup = (group + blockSize - 1) / blockSize;
  const blocks = (inputs / group) * blocksOfGroup;
  const blockBytes = (<usize>((blockSize + layout.CODES - 1) & -layout.CODES)) << 1;
  normalise(argument<usize>(0) + ((<usize>(unit * inputs)) << 2), scratch, inputs);
  let x = scratch;
  if (permutation !== 0) {
    x += (<usize>inputs) << 2;
    for (let i: usize = 0; i < (<usize>inputs) << 2; i += 4)
      store<u32>(x + i, load<u32>(scratch + ((<usize>load<u32>(permutation + i)) << 2)));
  }
  let out = argument<usize>(1) + <usize>unit * argument<usize>(2);
  let scales = argument<usize>(6) + <usize>(unit * blocks) * layout.BLOCK_SCALES;
  for (let block = 0; block < blocks; block++) {
    const within = (block % blocksOfGroup) * blockSize;
    const start = (block / blocksOfGroup) * group + within;
    memory.fill(out, 0, 2 * blockBytes);
    quantise(x + ((<usize>start) << 2), min(blockSize, group - within), bits, out, blockBytes, scales);
    out += 2 * blockBytes;
    scales += layout.BLOCK_SCALES;
  }
}

/** Writes h and l of `count` floats, and their scale and sums. The scale is NaN where there is one, or an infinity. */
function quantise(x: usize, count: i32, bits: i32, out: usize, blockBytes: usize, scales: usize): void {
  let largest: f32 = 0;
  for (let i = 0; i < count; i++) largest = max(largest, abs(load<f32>(x + ((<usize>i) << 2))));
  const scale: f32 = largest < Infinity ? largest / 32767 : NaN;
  let highs: i32 = 0;
  let lows: i32 = 0;
  // What is too small to be divided by is nothing.
  if (scale > 1e-37) {
    const factor = f32x4.splat(<f32>(32767 / <f64>largest));
    // Codes of 4 bits come times 16 at odd columns.
    const even = bits === 4 ? f32x4(1, 0.0625, 1, 0.0625) : f32x4.splat(1);
    const weight = bits === 4 ? i32x4(1, 16, 1, 16) : i32x4.splat(1);
    const factors = f32x4.mul(factor, even);
    let highSum = i32x4.splat(0);
    let lowSum = highSum;
    for (let i = 0; i < count; i += 4) {
      const values = f32x4.mul(v128.load(x + ((<usize>i) << 2)), factors);
      const high = f32x4.nearest(values);
      const highs = i32x4.trunc_sat_f32x4_s(high);
      const rest = f32x4.mul(f32x4.sub(values, high), f32x4.splat(32768));
      const lows = i32x4.trunc_sat_f32x4_s(f32x4.nearest(rest));
      highSum = i32x4.add(highSum, i32x4.mul(highs, weight));
      lowSum = i32x4.add(lowSum, i32x4.mul(lows, weight));
      storeInputs(out, i, bits, highs);
      storeInputs(out + blockBytes, i, bits, lows);
    }
    highs = addLanes(highSum);
    lows = addLanes(lowSum);
  }
  store<f32>(scales, scale);
  store<i32>(scales, highs, 4);
  store<i32>(scales, lows, 8);
}

/**
 * Writes inputs i to i + 3 of a block to their places. Codes of 4 bits are unpacked from 16-bit words, eight at a time: first all lowest
 * codes, then the next; so input 4 w + j of each 32 is at 8 j + w.
 */
function storeInputs(out: usize, i: i32, bits: i32, values: v128): void {
  if (bits === 8) {
    v128.store64_lane(out + ((<usize>i) << 1), i16x8.narrow_i32x4_s(values, values), 0);
    return;
  }
  const within = i % layout.CODES;
  const at = out + ((<usize>(i - within + (within >> 2))) << 1);
  store<i16>(at, <i16>i32x4.extract_lane(values, 0));
  store<i16>(at, <i16>i32x4.extract_lane(values, 1), 16);
  store<i16>(at, <i16>i32x4.extract_lane(values, 2), 32);
  store<i16>(at, <i16>i32x4.extract_lane(values, 3), 48);
}

function addLanes(a: v128): i32 {
  return (
    i32x4.extract_lane(a, 0) +
    i32x4.extract_lane(a, 1) +
    (i32x4.extract_lane(a, 2) + i32x4.extract_lane(a, 3))
  );
}

/** out[count] = x, or x / rms(x) · weight. */
function normalise(x: usize, out: usize, count: i32): void {
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
