/**
 * Products of x and rows of 8-bit integers with a scale for each group of columns. x comes as integers too (prepare.ts): in each block,
 * at most `BLOCK` columns of one group, it is s · (h + l / 2¹⁵) with int16 h and l, to 27 bits or more of the block's largest value.
 * Sums of integers are exact: a zero point is multiplied by the sum of the inputs and comes first.
 */
import { blockOf, blocksOfGroup, paddedBlock } from "./blocks";
import * as layout from "./layout";
import { loadShort, unpackBytes } from "./unpack";
import { argument } from "./vectors";

/** The zero point of a matrix that has none of its own. */
const USUAL_ZERO: i32 = 128;
/** Columns of a panel, and bytes of its rows. */
const WIDTH: i32 = 1024;
const STRIDE: usize = 1024 * 2 + 64;
/** In a thread's scratch memory, after the panel. */
const SCALES_AT: usize = STRIDE * layout.PANEL_ROWS;
const ZEROS_AT: usize = SCALES_AT + 4 * layout.PANEL_ROWS;

/** lanes[count, 8] += W[row + 0…7] · x[token + 0…count − 1], four lanes each; rows past the last are the last. */
export function sumIntegers(row: i32, token: i32, count: i32, lanes: usize, scratch: usize): void {
  const rows = argument<i32>(layout.ROWS);
  const data = argument<usize>(layout.DATA);
  const rowBytes = argument<usize>(layout.ROW_BYTES);
  const group = argument<i32>(layout.SCALE_COLUMNS);
  const groups = argument<i32>(layout.SCALES_OF_ROW);
  const scales = argument<usize>(layout.SCALES);
  const scaleForm = argument<i32>(layout.SCALE_FORM);
  const zeros = argument<usize>(layout.ZEROS);

  const ofGroup = blocksOfGroup(group);
  const blocks = ofGroup * groups;
  const padded = paddedBlock(group);
  const blockBytes = (<usize>padded) << 1;
  const blocksOfPanel = max(1, WIDTH / padded);
  const xStride = argument<usize>(layout.X_STRIDE);
  const x = argument<usize>(layout.X) + <usize>token * xStride;
  const xScales = argument<usize>(layout.X_SCALES) + <usize>(token * blocks) * layout.BLOCK_SCALES;

  for (let first = 0; first < blocks; first += blocksOfPanel) {
    const end = min(first + blocksOfPanel, blocks);
    for (let i = 0; i < layout.PANEL_ROWS; i++) {
      const source = data + <usize>min(row + i, rows - 1) * rowBytes;
      unpackBlocks(scratch + <usize>i * STRIDE, source, first, end, group);
    }
    for (let block = first; block < end; block++) {
      for (let i = 0; i < layout.PANEL_ROWS; i++) {
        const at = <usize>(min(row + i, rows - 1) * groups + block / ofGroup);
        const zero = zeros === 0 ? USUAL_ZERO : <i32>load<u8>(zeros + at);
        store<f32>(scratch + SCALES_AT + ((<usize>i) << 2), loadShort(scales + (at << 1), scaleForm));
        store<i32>(scratch + ZEROS_AT + ((<usize>i) << 2), -zero);
      }
      const panel = scratch + <usize>(block - first) * blockBytes;
      let inputs = x + <usize>block * 2 * blockBytes;
      let target = lanes;
      for (let i = 0; i < count; i++, inputs += xStride, target += 128) {
        const xScale = xScales + <usize>(i * blocks + block) * layout.BLOCK_SCALES;
        multiply4(panel, inputs, blockBytes, target, scratch + SCALES_AT, xScale);
        multiply4(panel + 4 * STRIDE, inputs, blockBytes, target + 64, scratch + SCALES_AT + 16, xScale);
      }
    }
  }
}

/** Unpacks a row's blocks [first, end): at once where nothing is padded. */
function unpackBlocks(panel: usize, row: usize, first: i32, end: i32, group: i32): void {
  const blockSize = blockOf(group);
  const padded = paddedBlock(group);
  if (blockSize === padded && group % blockSize === 0) {
    unpackBytes(panel, row + <usize>(first * blockSize), (end - first) * blockSize);
    return;
  }
  const ofGroup = blocksOfGroup(group);
  for (let block = first; block < end; block++, panel += (<usize>padded) << 1) {
    const within = (block % ofGroup) * blockSize;
    const start = (block / ofGroup) * group + within;
    unpackBytes(panel, row + <usize>start, min(blockSize, group - within));
  }
}

/** lanes[4] += scale · s · (w[4] − zero) · x, over one block: `bytes` of each row of w, as many of h and of l. */
function multiply4(w: usize, x: usize, bytes: usize, lanes: usize, scales: usize, xScales: usize): void {
  const zeros = scales + (ZEROS_AT - SCALES_AT);
  const highs = v128.load32_zero(xScales, 4);
  const lows = v128.load32_zero(xScales, 8);
  let h0 = i32x4.mul(highs, v128.load32_zero(zeros));
  let h1 = i32x4.mul(highs, v128.load32_zero(zeros, 4));
  let h2 = i32x4.mul(highs, v128.load32_zero(zeros, 8));
  let h3 = i32x4.mul(highs, v128.load32_zero(zeros, 12));
  let l0 = i32x4.mul(lows, v128.load32_zero(zeros));
  let l1 = i32x4.mul(lows, v128.load32_zero(zeros, 4));
  let l2 = i32x4.mul(lows, v128.load32_zero(zeros, 8));
  let l3 = i32x4.mul(lows, v128.load32_zero(zeros, 12));
  const end = w + bytes;
  for (; w < end; w += 16, x += 16) {
    const h = v128.load(x);
    const l = v128.load(x + bytes);
    let row = v128.load(w);
    h0 = i32x4.add(h0, i32x4.dot_i16x8_s(row, h));
    l0 = i32x4.add(l0, i32x4.dot_i16x8_s(row, l));
    row = v128.load(w, STRIDE);
    h1 = i32x4.add(h1, i32x4.dot_i16x8_s(row, h));
    l1 = i32x4.add(l1, i32x4.dot_i16x8_s(row, l));
    row = v128.load(w, 2 * STRIDE);
    h2 = i32x4.add(h2, i32x4.dot_i16x8_s(row, h));
    l2 = i32x4.add(l2, i32x4.dot_i16x8_s(row, l));
    row = v128.load(w, 3 * STRIDE);
    h3 = i32x4.add(h3, i32x4.dot_i16x8_s(row, h));
    l3 = i32x4.add(l3, i32x4.dot_i16x8_s(row, l));
  }
  const xScale = load<f32>(xScales);
  addScaled(lanes, h0, l0, load<f32>(scales) * xScale);
  addScaled(lanes + 16, h1, l1, load<f32>(scales, 4) * xScale);
  addScaled(lanes + 32, h2, l2, load<f32>(scales, 8) * xScale);
  addScaled(lanes + 48, h3, l3, load<f32>(scales, 12) * xScale);
}

/** lanes += scale · (h + l / 2¹⁵). */
function addScaled(lanes: usize, h: v128, l: v128, scale: f32): void {
  v128.store(lanes, f32x4.add(v128.load(lanes), scaled(h, l, scale)));
}

/** scale · (h + l / 2¹⁵). */
function scaled(h: v128, l: v128, scale: f32): v128 {
  const low = f32x4.mul(f32x4.convert_i32x4_s(l), f32x4.splat(1.0 / 32768.0));
  return f32x4.mul(f32x4.add(f32x4.convert_i32x4_s(h), low), f32x4.splat(scale));
}
