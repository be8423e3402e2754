/**
 * Products of x and rows in superblocks: codes of 4 or 6 bits with a scale and a minimum for each group of 16 or 32 columns, both whole
 * multiples of what 256 columns have. x comes as for other codes of 4 bits (prepare.ts), in blocks of `CODES` columns. Codes of 6 bits fit
 * there, too: a lane of 16 bits sums four products of a byte and a code of a block, and lanes of the lower half are columns of its first 16.
 *
 * Sums of a block's products are exact. A group's minimum is multiplied by the sum of its x, which prepare.ts has made; codes without
 * minima are taken less their middle.
 */
import * as layout from "./layout";
import { rowAt } from "./matrix";
import { fromSmallFloat16, raiseLower } from "./unpack";
import { argument, sum } from "./vectors";

/** Columns of a panel, and bytes of its rows. */
const WIDTH: i32 = 2048;
const STRIDE: usize = 2048 + 64;
/** In a thread's scratch memory: the sums of a token's x over groups; for each row that is multiplied at once, its scales and its offsets. */
const INPUT_SUMS_AT: usize = layout.SCRATCH_BYTES / 4;
const FACTORS_AT: usize = layout.SCRATCH_BYTES / 2;
/** Bytes of x that a block is multiplied by. */
const X_STEP: usize = 96;
/** See sum-nibbles.ts. */
const AHEAD: usize = 256;

/** The order of a block's codes: two neighbours a byte, one a byte, or as `unpack` leaves them. */
const PACKED: i32 = 0;
const BYTES: i32 = 1;
const UNPACKED: i32 = 2;
/** Groups of 16 columns whose middle code stands for 0; with minima, groups of 16 or 32. */
const CENTRED: i32 = 0;
const FINE: i32 = 1;
const COARSE: i32 = 2;

function kindOfGroups(): i32 {
  if (argument<i32>(layout.MINIMA) === 0) return CENTRED;
  return argument<i32>(layout.SCALE_COLUMNS) === 16 ? FINE : COARSE;
}

/** lanes[count, 8] += W[row + 0…7] · x[token + 0…count − 1], four lanes each; rows past the last are the last. */
export function sumSuperblocks(row: i32, token: i32, count: i32, lanes: usize, scratch: usize): void {
  const kind = kindOfGroups();
  if (kind === CENTRED) sumPanels(CENTRED, row, token, count, lanes, scratch);
  else if (kind === FINE) sumPanels(FINE, row, token, count, lanes, scratch);
  else sumPanels(COARSE, row, token, count, lanes, scratch);
}

// @inline
function sumPanels(kind: i32, row: i32, token: i32, count: i32, lanes: usize, scratch: usize): void {
  const last = argument<i32>(layout.ROWS) - 1;
  const blocks = argument<i32>(layout.INPUTS) / layout.CODES;
  const xStride = argument<usize>(layout.X_STRIDE);
  const x = argument<usize>(layout.X) + <usize>token * xStride;
  const records = argument<usize>(layout.X_SCALES) + <usize>(token * blocks) * layout.NIBBLE_SCALES;
  const rowFactors = 2 * factorBytes();
  const tables = scratch + FACTORS_AT;
  for (let i = 0; i < layout.PANEL_ROWS; i++)
    writeFactors(kind, min(row + i, last), tables + <usize>i * rowFactors, factorBytes());
  const blocksOfPanel = WIDTH / layout.CODES;
  for (let first = 0; first < blocks; first += blocksOfPanel) {
    const end = min(first + blocksOfPanel, blocks);
    for (let i = 0; i < layout.PANEL_ROWS; i++)
      unpack(scratch + <usize>i * STRIDE, rowAt(min(row + i, last)), first, end);
    for (let block = first; block < end; block++) {
      const panel = scratch + <usize>((block - first) * layout.CODES);
      const factors = tables + <usize>block * blockFactors(kind);
      let inputs = x + <usize>block * X_STEP;
      let target = lanes;
      for (let i = 0; i < count; i++, inputs += xStride, target += 128) {
        const record = records + <usize>(i * blocks + block) * layout.NIBBLE_SCALES;
        for (let pair: usize = 0; pair < <usize>layout.PANEL_ROWS; pair += 2) {
          const a = panel + pair * STRIDE;
          const scales = factors + pair * rowFactors;
          addBlock(
            UNPACKED,
            kind,
            a,
            a + STRIDE,
            inputs,
            record,
            scales,
            scales + rowFactors,
            target + (pair << 4),
          );
        }
      }
    }
  }
  if (kind === CENTRED) return;
  const sums = scratch + INPUT_SUMS_AT;
  for (let i = 0; i < count; i++, lanes += 128) {
    writeInputSums(kind, records + <usize>(i * blocks) * layout.NIBBLE_SCALES, sums);
    for (let j: usize = 0; j < <usize>layout.PANEL_ROWS; j++)
      addOffsets(lanes + (j << 4), tables + j * rowFactors + (rowFactors >> 1), sums);
  }
}

/**
 * results[count] = rows [row, row + count) times the only token, without a panel; one more is undefined. Two rows are read at once that lie
 * far from each other, as in sum-rows.ts.
 */
export function sumSuperblockRows(row: i32, count: i32, results: usize, scratch: usize): void {
  const kind = kindOfGroups();
  if (kind === CENTRED) sumRows(BYTES, CENTRED, row, count, results, scratch);
  else if (kind === FINE) sumRows(BYTES, FINE, row, count, results, scratch);
  else if (argument<i32>(layout.FORM) === layout.BYTE_SUPERBLOCKS)
    sumRows(BYTES, COARSE, row, count, results, scratch);
  else sumRows(PACKED, COARSE, row, count, results, scratch);
}

// @inline
function sumRows(order: i32, kind: i32, row: i32, count: i32, results: usize, scratch: usize): void {
  const apart = (count + 1) >> 1;
  const last = argument<i32>(layout.ROWS) - 1;
  if (kind !== CENTRED) writeInputSums(kind, argument<usize>(layout.X_SCALES), scratch + INPUT_SUMS_AT);
  for (let i = row; i < row + apart; i++, results += 4)
    multiplyRows(
      order,
      kind,
      min(i, last),
      min(i + apart, last),
      results,
      results + ((<usize>apart) << 2),
      scratch,
    );
}

// @inline
function multiplyRows(
  order: i32,
  kind: i32,
  n: i32,
  o: i32,
  resultA: usize,
  resultB: usize,
  scratch: usize,
): void {
  const bytes: usize = order === PACKED ? layout.CODES / 2 : layout.CODES;
  const tableBytes = factorBytes();
  // The panel's place is free.
  const lanes = scratch;
  let scalesA = scratch + FACTORS_AT;
  let scalesB = scalesA + 2 * tableBytes;
  writeFactors(kind, n, scalesA, tableBytes);
  writeFactors(kind, o, scalesB, tableBytes);
  let a = rowAt(n);
  let b = rowAt(o);
  let record = argument<usize>(layout.X_SCALES);
  v128.store(lanes, i32x4.splat(0));
  v128.store(lanes, i32x4.splat(0), 16);
  const end =
    argument<usize>(layout.DATA) + <usize>argument<i32>(layout.ROWS) * argument<usize>(layout.ROW_BYTES);
  let asked = a;
  let seen = i32x4.splat(0);
  const firstX = argument<usize>(layout.X);
  const lastX = firstX + <usize>(argument<i32>(layout.INPUTS) / layout.CODES) * X_STEP;
  for (let x = firstX; x < lastX; x += X_STEP) {
    // Rows follow one another, so what is ahead of a row's last part is the next row.
    if (a >= asked && b + 2 * AHEAD <= end) {
      for (let j = AHEAD; j < 2 * AHEAD; j += 64)
        seen = v128.xor(seen, v128.xor(v128.load(a + j), v128.load(b + j)));
      asked = a + AHEAD;
    }
    addBlock(order, kind, a, b, x, record, scalesA, scalesB, lanes);
    a += bytes;
    b += bytes;
    scalesA += blockFactors(kind);
    scalesB += blockFactors(kind);
    record += layout.NIBBLE_SCALES;
  }
  // A load that nothing uses would not be made.
  v128.store(lanes, seen, 32);
  if (kind !== CENTRED) {
    const offsets = scratch + FACTORS_AT + tableBytes;
    addOffsets(lanes, offsets, scratch + INPUT_SUMS_AT);
    addOffsets(lanes + 16, offsets + 2 * tableBytes, scratch + INPUT_SUMS_AT);
  }
  store<f32>(resultA, sum(v128.load(lanes)));
  store<f32>(resultB, sum(v128.load(lanes, 16)));
}

/** lanes[2] += the products of a block of two rows, at whose scales of this block are `scalesA` and `scalesB`. */
// @inline
function addBlock(
  order: i32,
  kind: i32,
  a: usize,
  b: usize,
  x: usize,
  record: usize,
  scalesA: usize,
  scalesB: usize,
  lanes: usize,
): void {
  let a0 = i16x8.splat(0);
  let a1 = a0;
  let a2 = a0;
  if (kind === CENTRED) {
    const middle = i16x8.splat(<i16>-layout.SUPERBLOCK_MIDDLE);
    a0 = i16x8.mul(v128.load(record), middle);
    a1 = i16x8.mul(v128.load(record, 16), middle);
    a2 = i16x8.mul(v128.load(record, 32), middle);
  }
  let b0 = a0;
  let b1 = a1;
  let b2 = a2;
  let c = evenCodes(order, a);
  let d = evenCodes(order, b);
  let bytes = v128.load(x);
  a0 = addDots(a0, bytes, c);
  b0 = addDots(b0, bytes, d);
  bytes = v128.load(x, 16);
  a1 = addDots(a1, bytes, c);
  b1 = addDots(b1, bytes, d);
  bytes = v128.load(x, 32);
  a2 = addDots(a2, bytes, c);
  b2 = addDots(b2, bytes, d);
  c = oddCodes(order, a);
  d = oddCodes(order, b);
  bytes = v128.load(x, 48);
  a0 = addDots(a0, bytes, c);
  b0 = addDots(b0, bytes, d);
  bytes = v128.load(x, 64);
  a1 = addDots(a1, bytes, c);
  b1 = addDots(b1, bytes, d);
  bytes = v128.load(x, 80);
  a2 = addDots(a2, bytes, c);
  b2 = addDots(b2, bytes, d);
  const scale = v128.load32_splat(record, 48);
  addScaled(lanes, a0, a1, a2, f32x4.mul(blockScales(kind, scalesA), scale));
  addScaled(lanes + 16, b0, b1, b2, f32x4.mul(blockScales(kind, scalesB), scale));
}

/** The codes of a block at even columns, a byte each. */
// @inline
function evenCodes(order: i32, at: usize): v128 {
  if (order === UNPACKED) return v128.load(at);
  if (order === PACKED) return v128.and(v128.load(at), i8x16.splat(0x0f));
  const low = i16x8.splat(0xff);
  return i8x16.narrow_i16x8_u(v128.and(v128.load(at), low), v128.and(v128.load(at, 16), low));
}

/** Those at odd columns. */
// @inline
function oddCodes(order: i32, at: usize): v128 {
  if (order === UNPACKED) return v128.load(at, 16);
  if (order === PACKED) return v128.and(i16x8.shr_u(v128.load(at), 4), i8x16.splat(0x0f));
  return i8x16.narrow_i16x8_u(i16x8.shr_u(v128.load(at), 8), i16x8.shr_u(v128.load(at, 16), 8));
}

/** sums[8] + the dot products of two bytes and two codes each. */
// @inline
function addDots(sums: v128, bytes: v128, codes: v128): v128 {
  return i16x8.add(sums, i16x8.relaxed_dot_i8x16_i7x16_s(bytes, codes));
}

/** A block's scales: its groups' of 16 columns are half of the lanes each. */
// @inline
function blockScales(kind: i32, scales: usize): v128 {
  if (kind === COARSE) return v128.load32_splat(scales);
  const both = v128.load64_zero(scales);
  return v128.shuffle<i32>(both, both, 0, 0, 1, 1);
}

/** Bytes of a block's scales. */
// @inline
function blockFactors(kind: i32): usize {
  return kind === COARSE ? 4 : 8;
}

/** lanes += factors · the sum of all, from the sums of each of the bytes of x. */
// @inline
function addScaled(lanes: usize, h: v128, m: v128, l: v128, factors: v128): void {
  const all = i32x4.add(
    i32x4.dot_i16x8_s(h, i16x8.splat(<i16>layout.HIGH)),
    i32x4.add(i32x4.dot_i16x8_s(m, i16x8.splat(<i16>layout.MIDDLE)), i32x4.dot_i16x8_s(l, i16x8.splat(1))),
  );
  v128.store(lanes, f32x4.add(v128.load(lanes), f32x4.mul(f32x4.convert_i32x4_s(all), factors)));
}

/** Bytes of a row's scales, or offsets, as floats. */
function factorBytes(): usize {
  return (<usize>argument<i32>(layout.SCALES_OF_ROW)) << 2;
}

/** sums[groups] = the sums of a token's x over each group; `record` is its first block's. */
// @inline
function writeInputSums(kind: i32, record: usize, sums: usize): void {
  for (const end = sums + factorBytes(); sums < end; record += layout.NIBBLE_SCALES) {
    const lower = load<f32>(record, layout.INPUT_SUMS);
    const upper = load<f32>(record, layout.INPUT_SUMS + 4);
    if (kind === COARSE) store<f32>(sums, lower + upper);
    else {
      store<f32>(sums, lower);
      store<f32>(sums, upper, 4);
    }
    sums += blockFactors(kind);
  }
}

/** lanes += offsets[groups] · sums[groups]. */
function addOffsets(lanes: usize, offsets: usize, sums: usize): void {
  let all = f32x4.splat(0);
  for (const end = offsets + factorBytes(); offsets < end; offsets += 16, sums += 16)
    all = f32x4.add(all, f32x4.mul(v128.load(offsets), v128.load(sums)));
  v128.store(lanes, f32x4.add(v128.load(lanes), all));
}

/** scales[groups] of a row, and of groups with minima `apart` bytes after them what an element is more than its code times the scale. */
// @inline
function writeFactors(kind: i32, row: i32, scales: usize, apart: usize): void {
  const factors: usize = kind === CENTRED ? 1 : 2;
  const superblocks = argument<i32>(layout.INPUTS) / layout.SUPERBLOCK;
  const bytes = factors * (kind === COARSE ? 8 : 16);
  let step = argument<usize>(layout.SCALES) + <usize>(row * superblocks) * bytes;
  let unit = argument<usize>(layout.SUPERBLOCK_UNITS) + <usize>(row * superblocks) * 2 * factors;
  for (const end = step + <usize>superblocks * bytes; step < end; step += bytes, unit += 2 * factors) {
    if (kind === CENTRED) {
      const scale = halves(v128.load16_splat(unit));
      const steps = v128.load(step);
      storeEight(scales, i16x8.extend_low_i8x16_s(steps), scale);
      storeEight(scales + 32, i16x8.extend_high_i8x16_s(steps), scale);
      scales += 64;
    } else {
      const units = halves(v128.load32_zero(unit));
      const scale = v128.shuffle<i32>(units, units, 0, 0, 0, 0);
      const offset = f32x4.neg(v128.shuffle<i32>(units, units, 1, 1, 1, 1));
      storePairs(scales, apart, v128.load(step), scale, offset);
      if (kind === FINE) storePairs(scales + 32, apart, v128.load(step, 16), scale, offset);
      scales += kind === FINE ? 64 : 32;
    }
  }
}

/** The first four of eight float16, many of which are subnormal in files. */
// @inline
function halves(words: v128): v128 {
  return fromSmallFloat16(raiseLower(words));
}

/** Factors of eight groups whose steps are pairs of bytes, the scale's the lower one. */
// @inline
function storePairs(scales: usize, apart: usize, pairs: v128, scale: v128, offset: v128): void {
  storeEight(scales, i16x8.shr_s(i16x8.shl(pairs, 8), 8), scale);
  storeEight(scales + apart, i16x8.shr_s(pairs, 8), offset);
}

/** Eight steps times their unit. */
// @inline
function storeEight(target: usize, steps: v128, unit: v128): void {
  v128.store(target, f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(steps)), unit));
  v128.store(target, f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(steps)), unit), 16);
}

/** Unpacks a row's blocks [first, end). */
function unpack(panel: usize, row: usize, first: i32, end: i32): void {
  const isPacked = argument<i32>(layout.FORM) === layout.NIBBLE_SUPERBLOCKS;
  const bytes = isPacked ? layout.CODES / 2 : layout.CODES;
  let source = row + <usize>(first * bytes);
  for (let block = first; block < end; block++, source += bytes, panel += layout.CODES) {
    v128.store(panel, isPacked ? evenCodes(PACKED, source) : evenCodes(BYTES, source));
    v128.store(panel, isPacked ? oddCodes(PACKED, source) : oddCodes(BYTES, source), 16);
  }
}
