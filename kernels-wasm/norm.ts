/** Norms that stand alone. A unit is one token. */
import { normalise } from "./prepare";
import { argument, sum } from "./vectors";

// Arguments, those that `normalise` reads where it reads them: x, out, -, width, weight, eps, then what is added or 0, bias or 0, and
// what the sum is multiplied by.
const X = 0;
const OUT = 1;
const WIDTH = 3;
const WEIGHT = 4;
const EPS = 5;
const ADD_TO = 6;
const BIAS = 7;
const SCALE = 8;

/** out = x / rms(x) · weight, or that plus addTo, which may be `out`, times the scale. */
export function rmsNorm(unit: i32, scratch: usize): void {
  const size = (<usize>argument<i32>(WIDTH)) << 2;
  const start = <usize>unit * size;
  const out = argument<usize>(OUT) + start;
  let addTo = argument<usize>(ADD_TO);
  if (addTo === 0) {
    normalise(argument<usize>(X) + start, out, argument<i32>(WIDTH));
    return;
  }
  normalise(argument<usize>(X) + start, scratch, argument<i32>(WIDTH));
  addTo += start;
  const scale = argument<f32>(SCALE);
  for (let i: usize = 0; i < size; i += 4)
    store<f32>(out + i, (load<f32>(addTo + i) + load<f32>(scratch + i)) * scale);
}

/** out = (x − mean) / √(variance + eps) · weight + bias; the last columns, where they are no whole vector, in the same way. */
export function layerNorm(unit: i32): void {
  const width = argument<i32>(WIDTH);
  const size = (<usize>width) << 2;
  const whole = size & ~15;
  const x = argument<usize>(X) + <usize>unit * size;
  const out = argument<usize>(OUT) + <usize>unit * size;
  const weight = argument<usize>(WEIGHT);
  const bias = argument<usize>(BIAS);
  let lanes = f32x4.splat(0);
  let i: usize = 0;
  for (; i < whole; i += 16) lanes = f32x4.add(lanes, v128.load(x + i));
  let total = <f64>sum(lanes);
  for (; i < size; i += 4) total += <f64>load<f32>(x + i);
  const mean = <f32>(total / <f64>width);
  const means = f32x4.splat(mean);
  lanes = f32x4.splat(0);
  for (i = 0; i < whole; i += 16) {
    const from = f32x4.sub(v128.load(x + i), means);
    lanes = f32x4.add(lanes, f32x4.mul(from, from));
  }
  let squares = sum(lanes);
  for (; i < size; i += 4) squares += (load<f32>(x + i) - mean) * (load<f32>(x + i) - mean);
  const scale = <f32>(1 / sqrt<f64>(<f64>squares / <f64>width + <f64>argument<f32>(EPS)));
  for (i = 0; i < whole; i += 16) {
    const normed = f32x4.mul(f32x4.sub(v128.load(x + i), means), f32x4.splat(scale));
    const result = f32x4.mul(normed, v128.load(weight + i));
    v128.store(out + i, bias === 0 ? result : f32x4.add(result, v128.load(bias + i)));
  }
  for (; i < size; i += 4) {
    const result = (load<f32>(x + i) - mean) * scale * load<f32>(weight + i);
    store<f32>(out + i, bias === 0 ? result : result + load<f32>(bias + i));
  }
}
