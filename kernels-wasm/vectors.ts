/** Four float32 at a time. */
import { ARGUMENTS } from "./layout";

/** A 32-bit argument of the task. */
export function argument<T>(index: i32): T {
  return load<T>(<usize>ARGUMENTS + ((<usize>index) << 2));
}

/** The sums of each vector's lanes, (0 + 2) + (1 + 3). */
export function sums(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(v128.shuffle<i32>(a, b, 0, 4, 1, 5), v128.shuffle<i32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.add(v128.shuffle<i32>(c, d, 0, 4, 1, 5), v128.shuffle<i32>(c, d, 2, 6, 3, 7));
  return f32x4.add(v128.shuffle<i32>(ab, cd, 0, 1, 4, 5), v128.shuffle<i32>(ab, cd, 2, 3, 6, 7));
}

/** The sum of a vector's lanes, in the same order. */
export function sum(a: v128): f32 {
  return (
    f32x4.extract_lane(a, 0) +
    f32x4.extract_lane(a, 2) +
    (f32x4.extract_lane(a, 1) + f32x4.extract_lane(a, 3))
  );
}

/**
 * e^x to some 1.5 units in the last place: x = n ln 2 + r, and a polynomial of degree 7 on |r| ≤ ln 2 / 2 (Cephes' expf). Below
 * e^-87 it stays there instead of vanishing.
 */
export function exp(x: v128): v128 {
  const bounded = f32x4.min(f32x4.max(x, f32x4.splat(-87)), f32x4.splat(88));
  const n = f32x4.nearest(f32x4.mul(bounded, f32x4.splat(<f32>Math.LOG2E)));
  const high = f32x4.sub(bounded, f32x4.mul(n, f32x4.splat(0.693359375)));
  const r = f32x4.add(high, f32x4.mul(n, f32x4.splat(2.1219444e-4)));
  let p = f32x4.splat(1.98756915e-4);
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.3981999507e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(8.3334519073e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(4.1665795894e-2));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.6666665459e-1));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(5.0000001201e-1));
  p = f32x4.add(f32x4.add(f32x4.mul(p, f32x4.mul(r, r)), r), f32x4.splat(1));
  const power = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.mul(p, power);
}

/** tanh x: a polynomial where it is near x (Cephes' tanhf), 1 − 2 / (1 + e^2|x|) with x's sign elsewhere. */
function tanh(x: v128): v128 {
  const squares = f32x4.mul(x, x);
  let p = f32x4.splat(-5.70498872745e-3);
  p = f32x4.add(f32x4.mul(p, squares), f32x4.splat(2.06390887954e-2));
  p = f32x4.add(f32x4.mul(p, squares), f32x4.splat(-5.37397155531e-2));
  p = f32x4.add(f32x4.mul(p, squares), f32x4.splat(1.33314422036e-1));
  p = f32x4.add(f32x4.mul(p, squares), f32x4.splat(-3.33332819422e-1));
  const near = f32x4.add(f32x4.mul(f32x4.mul(p, squares), x), x);
  const size = f32x4.abs(x);
  const one = f32x4.splat(1);
  const far = f32x4.sub(one, f32x4.div(f32x4.splat(2), f32x4.add(one, exp(f32x4.add(size, size)))));
  const signed = v128.or(far, v128.and(x, i32x4.splat(0x80000000)));
  return v128.bitselect(near, signed, f32x4.lt(size, f32x4.splat(0.625)));
}

/** cap · tanh(x / cap). */
export function capped(x: v128, cap: f32): v128 {
  return f32x4.mul(tanh(f32x4.div(x, f32x4.splat(cap))), f32x4.splat(cap));
}

/** x / (1 + e^-x). */
export function silu(x: v128): v128 {
  return f32x4.div(x, f32x4.add(f32x4.splat(1), exp(f32x4.neg(x))));
}

/** x / 2 · (1 + tanh z), z = √(2/π) (x + 0.044715 x³), which is x / (1 + e^-2z). */
export function geluTanh(x: v128): v128 {
  const cube = f32x4.mul(f32x4.mul(x, x), x);
  const z = f32x4.mul(f32x4.add(x, f32x4.mul(cube, f32x4.splat(0.044715))), f32x4.splat(1.5957691216057308));
  return f32x4.div(x, f32x4.add(f32x4.splat(1), exp(f32x4.neg(z))));
}
