/**
 * Products of x and rows of 4-bit codes with a scale for each group of columns. x comes as integers (prepare.ts): in each block, at most
 * `BLOCK` columns of one group, it is s · (HIGH · h + MIDDLE · m + l) of signed bytes, to 23 bits of the block's largest value. Sixteen
 * codes are multiplied by as many bytes at once, and sums over a block fit: those of bytes 16 bits, all of them 32 (see layout.ts). Sums of
 * integers are exact, so their order is free.
 *
 * Floats of 4 bits (e2m1) are looked up as twice their value and 12 more, which is an integer: codes with a zero point of 12.
 */
import { blockOf, blocksOfGroup, paddedBlock } from "./blocks";
import * as layout from "./layout";
import { rowAt } from "./matrix";
import { codesOf, loadShort, unpackFloats, unpackNibbles } from "./unpack";
import { argument, sum } from "./vectors";

/** The zero point of a matrix that has none of its own, and that of floats. */
const USUAL_ZERO: i32 = 8;
const FLOAT_ZERO: i32 = 12;
/** Columns of a panel, and bytes of its rows. */
const WIDTH: i32 = 2048;
const STRIDE: usize = 2048 + 64;
/** In a thread's scratch memory, after the panel: a block's scales and zero points of eight rows. */
const SCALES_AT: usize = STRIDE * layout.PANEL_ROWS;
const ZEROS_AT: usize = SCALES_AT + 4 * layout.PANEL_ROWS;
/**
 * Bytes of a row that are asked for together, ahead of when they are multiplied. Multiplying takes so many instructions that processors
 * see few lines of memory ahead in them, and little of it would be on its way.
 */
const AHEAD: usize = 256;
/** Bytes of x that 32 codes are multiplied by. */
const X_STEP: usize = 96;

/** lanes[count, 8] += W[row + 0…7] · x[token + 0…count − 1], four lanes each; rows past the last are the last. */
export function sumNibbles(row: i32, token: i32, count: i32, lanes: usize, scratch: usize): void {
  const rows = argument<i32>(layout.ROWS);
  const group = argument<i32>(layout.SCALE_COLUMNS);
  const groups = argument<i32>(layout.SCALES_OF_ROW);
  const ofGroup = blocksOfGroup(group);
  const blocks = ofGroup * groups;
  const padded = paddedBlock(group);
  const blocksOfPanel = WIDTH / padded;
  const xBlock = <usize>(padded / layout.CODES) * X_STEP;
  const xStride = argument<usize>(layout.X_STRIDE);
  const x = argument<usize>(layout.X) + <usize>token * xStride;
  const xScales = argument<usize>(layout.X_SCALES) + <usize>(token * blocks) * layout.NIBBLE_SCALES;

  for (let first = 0; first < blocks; first += blocksOfPanel) {
    const end = min(first + blocksOfPanel, blocks);
    for (let i = 0; i < layout.PANEL_ROWS; i++)
      unpackBlocks(scratch + <usize>i * STRIDE, rowAt(min(row + i, rows - 1)), first, end, group);
    for (let block = first; block < end; block++) {
      for (let i = 0; i < layout.PANEL_ROWS; i++) {
        const at = min(row + i, rows - 1) * groups + block / ofGroup;
        const offset = (<usize>i) << 2;
        store<f32>(scratch + SCALES_AT + offset, scaleAt(at));
        store<i32>(scratch + ZEROS_AT + offset, zeroAt(at));
      }
      const panel = scratch + <usize>((block - first) * padded);
      let inputs = x + <usize>block * xBlock;
      let target = lanes;
      for (let i = 0; i < count; i++, inputs += xStride, target += 128) {
        const xScale = xScales + <usize>(i * blocks + block) * layout.NIBBLE_SCALES;
        for (let pair: usize = 0; pair < <usize>layout.PANEL_ROWS; pair += 2) {
          const a = panel + pair * STRIDE;
          const scale = scratch + SCALES_AT + (pair << 2);
          multiplyPair(
            false,
            false,
            a,
            a + STRIDE,
            inputs,
            xBlock,
            xScale,
            scale,
            scale + 4,
            load<i32>(scale, ZEROS_AT - SCALES_AT),
            load<i32>(scale, ZEROS_AT - SCALES_AT + 4),
            target + (pair << 4),
          );
        }
      }
    }
  }
}

/** Whether the matrix at hand can be multiplied by `sumNibbleRows`: no block is padded. */
export function hasWholeBlocks(): bool {
  const group = argument<i32>(layout.SCALE_COLUMNS);
  return group % blockOf(group) === 0 && blockOf(group) % layout.CODES === 0;
}

/**
 * results[count] = rows [row, row + count) times the only token, without a panel: what is unpacked is used once; one more is undefined.
 * Two rows are read at once that lie far from each other, as in sum-rows.ts.
 */
export function sumNibbleRows(row: i32, count: i32, results: usize, scratch: usize): void {
  const apart = (count + 1) >> 1;
  const last = argument<i32>(layout.ROWS) - 1;
  const isFloat = argument<i32>(layout.FORM) === layout.MXFP4;
  for (let i = row; i < row + apart; i++, results += 4) {
    const other = results + ((<usize>apart) << 2);
    if (isFloat) multiplyRows(true, min(i, last), min(i + apart, last), results, other, scratch);
    else multiplyRows(false, min(i, last), min(i + apart, last), results, other, scratch);
  }
}

// @inline
function multiplyRows(isFloat: bool, n: i32, o: i32, resultA: usize, resultB: usize, scratch: usize): void {
  const group = argument<i32>(layout.SCALE_COLUMNS);
  const groups = argument<i32>(layout.SCALES_OF_ROW);
  const zeros = argument<usize>(layout.ZEROS);
  const ofGroup = blocksOfGroup(group);
  const bytes = <usize>blockOf(group) >> 1;
  const xBlock = (bytes / 16) * X_STEP;
  // Both rows' scales as float32, where the panel would be, and lanes.
  const scalesB = scratch + 16 + ((<usize>groups + 16) << 2);
  const lanes = scratch + layout.SCRATCH_BYTES / 2;
  scalesOfRow(scratch, n, groups);
  scalesOfRow(scalesB, o, groups);
  let a = rowAt(n);
  let b = rowAt(o);
  let x = argument<usize>(layout.X);
  let xScale = argument<usize>(layout.X_SCALES);
  let zeroA = isFloat ? FLOAT_ZERO : USUAL_ZERO;
  let zeroB = zeroA;
  v128.store(lanes, i32x4.splat(0));
  v128.store(lanes, i32x4.splat(0), 16);
  const end =
    argument<usize>(layout.DATA) + <usize>argument<i32>(layout.ROWS) * argument<usize>(layout.ROW_BYTES);
  let asked = a;
  let seen = i32x4.splat(0);
  for (let i = 0; i < groups; i++) {
    // Rows follow one another, so what is ahead of a row's last part is the next row.
    if (a >= asked && b + 2 * AHEAD <= end) {
      for (let j = AHEAD; j < 2 * AHEAD; j += 64)
        seen = v128.xor(seen, v128.xor(v128.load(a + j), v128.load(b + j)));
      asked = a + AHEAD;
    }
    if (zeros !== 0) {
      zeroA = <i32>load<u8>(zeros + <usize>(n * groups + i));
      zeroB = <i32>load<u8>(zeros + <usize>(o * groups + i));
    }
    const offset = (<usize>i) << 2;
    for (let block = 0; block < ofGroup; block++) {
      multiplyPair(
        true,
        isFloat,
        a,
        b,
        x,
        xBlock,
        xScale,
        scratch + offset,
        scalesB + offset,
        zeroA,
        zeroB,
        lanes,
      );
      a += bytes;
      b += bytes;
      x += xBlock;
      xScale += layout.NIBBLE_SCALES;
    }
  }
  // A load that nothing uses would not be made.
  v128.store(lanes, seen, 32);
  store<f32>(resultA, sum(v128.load(lanes)));
  store<f32>(resultB, sum(v128.load(lanes, 16)));
}

/**
 * lanes[2] += scale · s · (w[2] − zero) · x, over one block of two rows: `xBlock` bytes of x, and codes that are packed or bytes. Sums
 * begin with what the zero point takes off them.
 */
// @inline
function multiplyPair(
  isPacked: bool,
  isFloat: bool,
  a: usize,
  b: usize,
  x: usize,
  xBlock: usize,
  xScale: usize,
  scaleA: usize,
  scaleB: usize,
  zeroA: i32,
  zeroB: i32,
  lanes: usize,
): void {
  const minusA = i16x8.splat(<i16>-zeroA);
  const minusB = i16x8.splat(<i16>-zeroB);
  let bytes = v128.load(xScale);
  let a0 = i16x8.mul(bytes, minusA);
  let b0 = i16x8.mul(bytes, minusB);
  bytes = v128.load(xScale, 16);
  let a1 = i16x8.mul(bytes, minusA);
  let b1 = i16x8.mul(bytes, minusB);
  bytes = v128.load(xScale, 32);
  let a2 = i16x8.mul(bytes, minusA);
  let b2 = i16x8.mul(bytes, minusB);
  const low = i8x16.splat(0x0f);
  for (const end = x + xBlock; x < end; x += X_STEP) {
    const u = v128.load(a);
    const v = v128.load(b);
    let c = isPacked ? codesOf(v128.and(u, low), isFloat) : u;
    let d = isPacked ? codesOf(v128.and(v, low), isFloat) : v;
    bytes = v128.load(x);
    a0 = addDots(a0, bytes, c);
    b0 = addDots(b0, bytes, d);
    bytes = v128.load(x, 16);
    a1 = addDots(a1, bytes, c);
    b1 = addDots(b1, bytes, d);
    bytes = v128.load(x, 32);
    a2 = addDots(a2, bytes, c);
    b2 = addDots(b2, bytes, d);
    c = isPacked ? codesOf(v128.and(i16x8.shr_u(u, 4), low), isFloat) : v128.load(a, 16);
    d = isPacked ? codesOf(v128.and(i16x8.shr_u(v, 4), low), isFloat) : v128.load(b, 16);
    bytes = v128.load(x, 48);
    a0 = addDots(a0, bytes, c);
    b0 = addDots(b0, bytes, d);
    bytes = v128.load(x, 64);
    a1 = addDots(a1, bytes, c);
    b1 = addDots(b1, bytes, d);
    bytes = v128.load(x, 80);
    a2 = addDots(a2, bytes, c);
    b2 = addDots(b2, bytes, d);
    a += isPacked ? 16 : 32;
    b += isPacked ? 16 : 32;
  }
  addScaled(lanes, a0, a1, a2, xScale, scaleA);
  addScaled(lanes + 16, b0, b1, b2, xScale, scaleB);
}

/** sums[8] + the dot products of two bytes and two codes each. */
// @inline
function addDots(sums: v128, bytes: v128, codes: v128): v128 {
  return i16x8.add(sums, i16x8.relaxed_dot_i8x16_i7x16_s(bytes, codes));
}

/** lanes += scale · s · the sum of all, from the sums of each of the bytes of x. */
// @inline
function addScaled(lanes: usize, h: v128, m: v128, l: v128, xScale: usize, scale: usize): void {
  const all = i32x4.add(
    i32x4.dot_i16x8_s(h, i16x8.splat(<i16>layout.HIGH)),
    i32x4.add(i32x4.dot_i16x8_s(m, i16x8.splat(<i16>layout.MIDDLE)), i32x4.dot_i16x8_s(l, i16x8.splat(1))),
  );
  const factor = f32x4.mul(v128.load32_splat(scale), v128.load32_splat(xScale, 48));
  v128.store(lanes, f32x4.add(v128.load(lanes), f32x4.mul(f32x4.convert_i32x4_s(all), factor)));
}

export function scaleAt(index: i32): f32 {
  const form = argument<i32>(layout.SCALE_FORM);
  const scales = argument<usize>(layout.SCALES);
  return form === layout.MXFP4
    ? halfPower(load<u8>(scales + <usize>index))
    : loadShort(scales + ((<usize>index) << 1), form);
}

/** 2^(exponent − 127) / 2; as a subnormal where it is one. */
function halfPower(exponent: u32): f32 {
  return reinterpret<f32>(exponent > 1 ? (exponent - 1) << 23 : 1 << (21 + exponent));
}

function zeroAt(index: i32): i32 {
  const zeros = argument<usize>(layout.ZEROS);
  if (zeros !== 0) return <i32>load<u8>(zeros + <usize>index);
  return argument<i32>(layout.FORM) === layout.MXFP4 ? FLOAT_ZERO : USUAL_ZERO;
}

/** target[groups] = the scales of a row, and up to 15 floats and a spare vector after them. */
export function scalesOfRow(target: usize, row: i32, groups: i32): void {
  const form = argument<i32>(layout.SCALE_FORM);
  const scales = argument<usize>(layout.SCALES);
  if (form === layout.MXFP4) {
    for (let i = 0; i < groups; i++)
      store<f32>(target + ((<usize>i) << 2), halfPower(load<u8>(scales + <usize>(row * groups + i))));
    return;
  }
  const spare = target + (((<usize>groups + 15) & ~15) << 2);
  unpackFloats(form, target, scales + ((<usize>(row * groups)) << 1), 0, groups, spare);
}

/** Unpacks a row's blocks [first, end): at once where nothing is padded. */
function unpackBlocks(panel: usize, row: usize, first: i32, end: i32, group: i32): void {
  const isFloat = argument<i32>(layout.FORM) === layout.MXFP4;
  const blockSize = blockOf(group);
  if (hasWholeBlocks()) {
    unpackNibbles(isFloat, panel, row + <usize>((first * blockSize) >> 1), (end - first) * blockSize);
    return;
  }
  const padded = paddedBlock(group);
  const ofGroup = blocksOfGroup(group);
  for (let block = first; block < end; block++, panel += <usize>padded) {
    const within = (block % ofGroup) * blockSize;
    const start = (block / ofGroup) * group + within;
    unpackNibbles(isFloat, panel, row + <usize>(start >> 1), min(blockSize, group - within));
  }
}
