/** Products of x, float32, and rows of floats, some columns at a time. */
import * as layout from "./layout";
import { unpackFloats } from "./unpack";
import { argument } from "./vectors";

/** Columns of a panel. Its rows are padded, so that they do not share cache sets. */
export const WIDTH: i32 = 1024;
const STRIDE: usize = (1024 + 16) * 4;
/** In a thread's scratch memory, after the panel. */
const SCALES_AT: usize = STRIDE * layout.PANEL_ROWS;
const SPARE: usize = SCALES_AT + layout.PANEL_ROWS * 4;

/** lanes[count, 8] += W[row + 0…7] · x[token + 0…count − 1], four lanes each; rows past the last are the last. */
export function sumFloats(row: i32, token: i32, count: i32, lanes: usize, scratch: usize): void {
  const form = argument<i32>(layout.FORM);
  const rows = argument<i32>(layout.ROWS);
  const inputs = argument<i32>(layout.INPUTS);
  const data = argument<usize>(layout.DATA);
  const rowBytes = argument<usize>(layout.ROW_BYTES);
  const scaleColumns = argument<i32>(layout.SCALE_COLUMNS);
  const xStride = argument<usize>(layout.X_STRIDE);
  const x = argument<usize>(layout.X) + <usize>token * xStride;
  const isInPlace = form === layout.FLOAT32 && row + layout.PANEL_ROWS <= rows && inputs % 4 === 0;
  for (let from = 0; from < inputs; from += WIDTH) {
    const to = min(from + WIDTH, inputs);
    if (!isInPlace) {
      for (let i = 0; i < layout.PANEL_ROWS; i++) {
        const address = data + <usize>min(row + i, rows - 1) * rowBytes;
        unpackFloats(form, scratch + <usize>i * STRIDE, address, from, to - from, scratch + SPARE);
      }
    }
    const stride = isInPlace ? rowBytes : STRIDE;
    for (let start = from; start < to; ) {
      const end = min(to, (start / scaleColumns + 1) * scaleColumns);
      loadScales(row, start / scaleColumns, rows, scratch + SCALES_AT);
      const panel = isInPlace
        ? data + <usize>row * rowBytes + ((<usize>start) << 2)
        : scratch + ((<usize>(start - from)) << 2);
      // Past the last column, panel and x have zeros.
      const bytes = (<usize>((end - start + 3) & -4)) << 2;
      multiplyPanel(
        panel,
        stride,
        x + ((<usize>start) << 2),
        xStride,
        bytes,
        count,
        lanes,
        scratch + SCALES_AT,
      );
      start = end;
    }
  }
}

/** Scales of a block's columns, of eight rows. */
function loadScales(row: i32, block: i32, rows: i32, target: usize): void {
  const scales = argument<usize>(layout.SCALES);
  for (let i = 0; i < layout.PANEL_ROWS; i++) {
    let scale: f32 = 1;
    if (scales !== 0) {
      const scaleRow = min(row + i, rows - 1) / argument<i32>(layout.SCALE_ROWS);
      scale = load<f32>(scales + ((<usize>(scaleRow * argument<i32>(layout.SCALES_OF_ROW) + block)) << 2));
    }
    store<f32>(target + ((<usize>i) << 2), scale);
  }
}

/** lanes[count, 8] += scales[8] · panel[8] · x[count], over `bytes` of each row. */
function multiplyPanel(
  panel: usize,
  stride: usize,
  x: usize,
  xStride: usize,
  bytes: usize,
  count: i32,
  lanes: usize,
  scales: usize,
): void {
  let token = 0;
  for (; token + 2 <= count; token += 2) {
    multiply4x2(panel, stride, x, xStride, bytes, lanes, scales);
    multiply4x2(panel + 4 * stride, stride, x, xStride, bytes, lanes + 64, scales + 16);
    x += 2 * xStride;
    lanes += 256;
  }
  if (token < count) multiply8x1(panel, stride, x, bytes, lanes, scales);
}

/** lanes[8] += scale · w[8] · x. */
function multiply8x1(w: usize, stride: usize, x: usize, bytes: usize, lanes: usize, scales: usize): void {
  let s0 = f32x4.splat(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  let s4 = s0;
  let s5 = s0;
  let s6 = s0;
  let s7 = s0;
  const end = x + bytes;
  let w4 = w + 4 * stride;
  for (; x < end; x += 16, w += 16, w4 += 16) {
    const a = v128.load(x);
    s0 = f32x4.add(s0, f32x4.mul(v128.load(w), a));
    s1 = f32x4.add(s1, f32x4.mul(v128.load(w + stride), a));
    s2 = f32x4.add(s2, f32x4.mul(v128.load(w + 2 * stride), a));
    s3 = f32x4.add(s3, f32x4.mul(v128.load(w + 3 * stride), a));
    s4 = f32x4.add(s4, f32x4.mul(v128.load(w4), a));
    s5 = f32x4.add(s5, f32x4.mul(v128.load(w4 + stride), a));
    s6 = f32x4.add(s6, f32x4.mul(v128.load(w4 + 2 * stride), a));
    s7 = f32x4.add(s7, f32x4.mul(v128.load(w4 + 3 * stride), a));
  }
  addScaled(lanes, s0, scales);
  addScaled(lanes + 16, s1, scales + 4);
  addScaled(lanes + 32, s2, scales + 8);
  addScaled(lanes + 48, s3, scales + 12);
  addScaled(lanes + 64, s4, scales + 16);
  addScaled(lanes + 80, s5, scales + 20);
  addScaled(lanes + 96, s6, scales + 24);
  addScaled(lanes + 112, s7, scales + 28);
}

/** The same of four rows and two tokens: eight sums are as many as keep both multipliers busy. */
function multiply4x2(
  w: usize,
  stride: usize,
  x: usize,
  xStride: usize,
  bytes: usize,
  lanes: usize,
  scales: usize,
): void {
  let s0 = f32x4.splat(0);
  let s1 = s0;
  let s2 = s0;
  let s3 = s0;
  let t0 = s0;
  let t1 = s0;
  let t2 = s0;
  let t3 = s0;
  const end = x + bytes;
  for (; x < end; x += 16, w += 16) {
    const a = v128.load(x);
    const b = v128.load(x + xStride);
    let row = v128.load(w);
    s0 = f32x4.add(s0, f32x4.mul(row, a));
    t0 = f32x4.add(t0, f32x4.mul(row, b));
    row = v128.load(w + stride);
    s1 = f32x4.add(s1, f32x4.mul(row, a));
    t1 = f32x4.add(t1, f32x4.mul(row, b));
    row = v128.load(w + 2 * stride);
    s2 = f32x4.add(s2, f32x4.mul(row, a));
    t2 = f32x4.add(t2, f32x4.mul(row, b));
    row = v128.load(w + 3 * stride);
    s3 = f32x4.add(s3, f32x4.mul(row, a));
    t3 = f32x4.add(t3, f32x4.mul(row, b));
  }
  addScaled(lanes, s0, scales);
  addScaled(lanes + 16, s1, scales + 4);
  addScaled(lanes + 32, s2, scales + 8);
  addScaled(lanes + 48, s3, scales + 12);
  addScaled(lanes + 128, t0, scales);
  addScaled(lanes + 144, t1, scales + 4);
  addScaled(lanes + 160, t2, scales + 8);
  addScaled(lanes + 176, t3, scales + 12);
}

function addScaled(lanes: usize, part: v128, scale: usize): void {
  v128.store(lanes, f32x4.add(v128.load(lanes), f32x4.mul(part, v128.load32_splat(scale))));
}
