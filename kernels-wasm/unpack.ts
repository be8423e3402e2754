/**
 * Elements of a matrix's row, as floats or integers. Each function writes `count` of them to `target`, rounded up to a multiple of 16
 * with zeros; whole vectors are read from within the row alone.
 */
import * as layout from "./layout";

/** Elements [first, first + count) of the row at `row`, as float32. `spare`: 16 bytes. */
export function unpackFloats(
  form: i32,
  target: usize,
  row: usize,
  first: i32,
  count: i32,
  spare: usize,
): void {
  const size = form === layout.FLOAT32 ? 4 : form === layout.FLOAT8 ? 1 : 2;
  const source = row + <usize>(first * size);
  const perVector = 16 / size;
  const whole = count - (count % perVector);
  unpackVectors(form, target, source, whole);
  const written = target + ((<usize>whole) << 2);
  if (whole < count) {
    v128.store(spare, i32x4.splat(0));
    memory.copy(spare, source + <usize>(whole * size), <usize>((count - whole) * size));
    unpackVectors(form, written, spare, perVector);
  }
}

/** The same of whole vectors. */
function unpackVectors(form: i32, target: usize, source: usize, count: i32): void {
  const end = target + ((<usize>count) << 2);
  switch (form) {
    case layout.FLOAT32:
      memory.copy(target, source, (<usize>count) << 2);
      return;
    case layout.BFLOAT16: {
      // The upper half of a float32.
      for (; target < end; target += 32, source += 16) {
        const words = v128.load(source);
        v128.store(target, raiseLower(words));
        v128.store(target, raiseUpper(words), 16);
      }
      return;
    }
    case layout.FLOAT16: {
      for (; target < end; target += 32, source += 16) {
        const words = v128.load(source);
        const a = raiseLower(words);
        const b = raiseUpper(words);
        const isSmall = hasSmallFloat16(words);
        v128.store(target, isSmall ? fromSmallFloat16(a) : fromFloat16(a));
        v128.store(target, isSmall ? fromSmallFloat16(b) : fromFloat16(b), 16);
      }
      return;
    }
    case layout.FLOAT8:
      unpackFloat8(target, source, count);
  }
}

/** The first four of eight 16-bit elements, each as the upper half of a word. */
// @inline
export function raiseLower(words: v128): v128 {
  return i8x16.relaxed_swizzle(words, i8x16(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7));
}

/** The last four. */
// @inline
export function raiseUpper(words: v128): v128 {
  return i8x16.relaxed_swizzle(words, i8x16(-1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15));
}

/** `count` codes of float8_e4m3, a multiple of 16, as float32. */
export function unpackFloat8(target: usize, source: usize, count: i32): void {
  const end = target + ((<usize>count) << 2);
  const a = i8x16(-1, -1, -1, 0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3);
  const b = i8x16(-1, -1, -1, 4, -1, -1, -1, 5, -1, -1, -1, 6, -1, -1, -1, 7);
  const c = i8x16(-1, -1, -1, 8, -1, -1, -1, 9, -1, -1, -1, 10, -1, -1, -1, 11);
  const d = i8x16(-1, -1, -1, 12, -1, -1, -1, 13, -1, -1, -1, 14, -1, -1, -1, 15);
  for (; target < end; target += 64, source += 16) {
    const codes = v128.load(source);
    const wordsA = i8x16.relaxed_swizzle(codes, a);
    const wordsB = i8x16.relaxed_swizzle(codes, b);
    const wordsC = i8x16.relaxed_swizzle(codes, c);
    const wordsD = i8x16.relaxed_swizzle(codes, d);
    const less = i8x16.sub(v128.and(codes, i8x16.splat(0x7f)), i8x16.splat(1));
    if (v128.any_true(i8x16.lt_u(less, i8x16.splat(7)))) {
      v128.store(target, fromSmallFloat8(wordsA));
      v128.store(target, fromSmallFloat8(wordsB), 16);
      v128.store(target, fromSmallFloat8(wordsC), 32);
      v128.store(target, fromSmallFloat8(wordsD), 48);
    } else {
      v128.store(target, fromFloat8(wordsA));
      v128.store(target, fromFloat8(wordsB), 16);
      v128.store(target, fromFloat8(wordsC), 32);
      v128.store(target, fromFloat8(wordsD), 48);
    }
  }
}

/** Whether a float16 is subnormal. */
export function hasSmallFloat16(words: v128): bool {
  const less = i16x8.sub(v128.and(words, i16x8.splat(0x7fff)), i16x8.splat(1));
  return v128.any_true(i16x8.lt_u(less, i16x8.splat(0x3ff)));
}

/**
 * Finite float16 in the upper halves of words. Exponent and mantissa move to where float32 has them, whose bias is 112 more; the product
 * with 2^112 is exact.
 */
export function fromFloat16(words: v128): v128 {
  const bits = v128.and(i32x4.shr_s(words, 3), i32x4.splat(0x8fffe000));
  return f32x4.mul(bits, f32x4.splat(reinterpret<f32>((127 + 112) << 23)));
}

/** The same of float8_e4m3 in the upper bytes, whose bias is 120 less than float32's. */
function fromFloat8(words: v128): v128 {
  const bits = v128.and(i32x4.shr_s(words, 4), i32x4.splat(0x87f00000));
  return f32x4.mul(bits, f32x4.splat(reinterpret<f32>((127 + 120) << 23)));
}

/**
 * The same where some are subnormal. They would be so in float32 too before the product, for which processors take a hundred times as
 * long: with the least normal exponent instead of 0 they have the least normal value more, which is taken off.
 * @param magnitudes exponents and mantissas, where float32 has them
 * @param bias of float32's exponent, less the other's
 */
// @inline
function fromSubnormal(magnitudes: v128, signs: v128, bias: i32): v128 {
  const isSmall = i32x4.lt_s(magnitudes, i32x4.splat(1 << 23));
  const raised = i32x4.add(magnitudes, v128.and(isSmall, i32x4.splat(1 << 23)));
  const values = i32x4.add(raised, i32x4.splat(bias << 23));
  const least = v128.and(isSmall, i32x4.splat((bias + 1) << 23));
  return v128.or(f32x4.sub(values, least), v128.and(signs, i32x4.splat(0x80000000)));
}

/** Float16 in the upper halves of words, subnormal or not. */
// @inline
export function fromSmallFloat16(words: v128): v128 {
  return fromSubnormal(v128.and(i32x4.shr_u(words, 3), i32x4.splat(0x0fffe000)), words, 112);
}

function fromSmallFloat8(words: v128): v128 {
  return fromSubnormal(v128.and(i32x4.shr_u(words, 4), i32x4.splat(0x07f00000)), words, 120);
}

/** A float16 or bfloat16 at `address`. */
export function loadShort(address: usize, form: i32): f32 {
  const bits = <u32>load<u16>(address);
  if (form === layout.BFLOAT16) return reinterpret<f32>(bits << 16);
  const rest = reinterpret<f32>((bits & 0x7fff) << 13) * reinterpret<f32>((127 + 112) << 23);
  return bits & 0x8000 ? -rest : rest;
}

/** `count` codes of 8 bits, a multiple of 16, as int16. What codes are padded with to a multiple of `CODES` is undefined. */
export function unpackBytes(target: usize, source: usize, count: i32): void {
  const end = target + ((<usize>count) << 1);
  for (; target < end; target += 32, source += 16) {
    v128.store(target, v128.load8x8_u(source));
    v128.store(target, v128.load8x8_u(source, 8), 16);
  }
}

/**
 * `count` codes of 4 bits, a multiple of 16, as bytes padded to a multiple of `CODES`: of each 32 first those at even columns. What codes
 * are padded with is undefined.
 */
export function unpackNibbles(isFloat: bool, target: usize, source: usize, count: i32): void {
  const end = target + <usize>(count & -layout.CODES);
  for (; target < end; target += 32, source += 16) storeNibbles(isFloat, target, v128.load(source));
  if (count % layout.CODES !== 0) storeNibbles(isFloat, target, v128.load64_zero(source));
}

function storeNibbles(isFloat: bool, target: usize, codes: v128): void {
  v128.store(target, codesOf(v128.and(codes, i8x16.splat(0x0f)), isFloat));
  v128.store(target, codesOf(v128.and(i16x8.shr_u(codes, 4), i8x16.splat(0x0f)), isFloat), 16);
}

/** Bytes below 16 as the integers that they are multiplied as; see sum-nibbles.ts. */
// @inline
export function codesOf(codes: v128, isFloat: bool): v128 {
  return isFloat
    ? i8x16.relaxed_swizzle(i8x16(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0), codes)
    : codes;
}
