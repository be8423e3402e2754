/**
 * Products of one token and rows of 16-bit floats, without a panel: what is unpacked is used once. They are bound by how fast memory is
 * read, and processors foresee what is read from how it was read so far, one place in a page of memory at a time: so the rows that
 * are multiplied together lie far from each other. The bits are those of sum-floats.ts.
 */
import * as layout from "./layout";
import { rowAt } from "./matrix";
import { WIDTH } from "./sum-floats";
import { fromFloat16, fromSmallFloat16, hasSmallFloat16, raiseLower, raiseUpper } from "./unpack";
import { argument, sums } from "./vectors";

/** Rows that are multiplied together. */
const ROWS: i32 = 4;

/** Whether the matrix at hand can be multiplied here. */
export function hasWholeRows(): bool {
  const form = argument<i32>(layout.FORM);
  return (form === layout.BFLOAT16 || form === layout.FLOAT16) && argument<i32>(layout.INPUTS) % 8 === 0;
}

/** results[count] = rows [row, row + count) times the only token; `ROWS` − 1 more are undefined. */
export function sumFloatRows(row: i32, count: i32, results: usize): void {
  if (argument<i32>(layout.FORM) === layout.BFLOAT16) sumAll(row, count, results, true);
  else sumAll(row, count, results, false);
}

// @inline
function sumAll(row: i32, count: i32, results: usize, isBfloat: bool): void {
  const apart = (count + ROWS - 1) / ROWS;
  const last = argument<i32>(layout.ROWS) - 1;
  for (let i = row; i < row + apart; i++, results += 4) {
    const sums = sumFour(
      rowAt(min(i, last)),
      rowAt(min(i + apart, last)),
      rowAt(min(i + 2 * apart, last)),
      rowAt(min(i + 3 * apart, last)),
      isBfloat,
    );
    v128.store32_lane(results, sums, 0);
    v128.store32_lane(results + ((<usize>apart) << 2), sums, 1);
    v128.store32_lane(results + ((<usize>apart) << 3), sums, 2);
    v128.store32_lane(results + ((<usize>(3 * apart)) << 2), sums, 3);
  }
}

/** Four rows times the token. */
// @inline
function sumFour(a: usize, b: usize, c: usize, d: usize, isBfloat: bool): v128 {
  let x = argument<usize>(layout.X);
  const last = x + ((<usize>argument<i32>(layout.INPUTS)) << 2);
  let t0 = f32x4.splat(0);
  let t1 = t0;
  let t2 = t0;
  let t3 = t0;
  while (x < last) {
    const end = min(last, x + ((<usize>WIDTH) << 2));
    let s0 = f32x4.splat(0);
    let s1 = s0;
    let s2 = s0;
    let s3 = s0;
    for (; x < end; x += 32, a += 16, b += 16, c += 16, d += 16) {
      const u = v128.load(x);
      const v = v128.load(x, 16);
      s0 = addProducts(s0, v128.load(a), u, v, isBfloat);
      s1 = addProducts(s1, v128.load(b), u, v, isBfloat);
      s2 = addProducts(s2, v128.load(c), u, v, isBfloat);
      s3 = addProducts(s3, v128.load(d), u, v, isBfloat);
    }
    t0 = f32x4.add(t0, s0);
    t1 = f32x4.add(t1, s1);
    t2 = f32x4.add(t2, s2);
    t3 = f32x4.add(t3, s3);
  }
  return sums(t0, t1, t2, t3);
}

/** lanes + w[0…3] · u + w[4…7] · v. */
// @inline
function addProducts(lanes: v128, words: v128, u: v128, v: v128, isBfloat: bool): v128 {
  const low = raiseLower(words);
  const high = raiseUpper(words);
  if (isBfloat) return f32x4.add(f32x4.add(lanes, f32x4.mul(low, u)), f32x4.mul(high, v));
  if (hasSmallFloat16(words))
    return f32x4.add(
      f32x4.add(lanes, f32x4.mul(fromSmallFloat16(low), u)),
      f32x4.mul(fromSmallFloat16(high), v),
    );
  return f32x4.add(f32x4.add(lanes, f32x4.mul(fromFloat16(low), u)), f32x4.mul(fromFloat16(high), v));
}
