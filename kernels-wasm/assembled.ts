/**
 * Products by code that the host has assembled for the processor at hand (src/backend/simd/x64): with wider vectors, and products and
 * sums in one rounding. An output is one sum over K in `LANES` lanes, each in the order of its columns, whether its token is alone or one
 * of many; elements are the same float32 everywhere, and those of integers exact. So they are the same bits whatever the number of
 * tokens, units and threads, though not those of the other kernels.
 */
import { call } from "./code";
import * as layout from "./layout";
import { isSuperblocks, rowAt } from "./matrix";
import { scaleAt, scalesOfRow } from "./sum-nibbles";
import { factorsOfRow } from "./sum-superblocks";
import { argument, sums } from "./vectors";

/** A thread's scratch memory: parameters, panel, lanes of sums [TILE, 8] or [count], scales and offsets of rows, a row's scales. */
const PANEL: usize = 0x1000;
const LANES: usize = 0x20000;
const SCALES: usize = 0x30000;
const SPARE: usize = SCALES + 2 * layout.OFFSETS_AFTER;

/** float8 is 2⁻⁸ times itself where it is unpacked. */
const FLOAT8_SCALE: f32 = 256;

/** Whether the product at hand is computed here. */
export function isAssembled(): bool {
  return argument<i32>(layout.ONE) !== 0;
}

/** Rows that one token is multiplied by at once, at most: as many as there is memory for the scales of. */
export function rowsOfOne(): i32 {
  const parts = partsOfRow();
  return parts === 0 ? 64 : max(4, min(64, <i32>(layout.OFFSETS_AFTER >> 2) / parts) & -4);
}

/** results[count] = rows [row, row + count) times the only token; up to three more are undefined. */
export function sumOneAssembled(row: i32, count: i32, results: usize, scratch: usize): void {
  const apart = (count + 3) >> 2;
  const last = argument<i32>(layout.ROWS) - 1;
  convertScales(row, apart << 2, scratch);
  set(scratch, layout.ONE_X, argument<usize>(layout.X));
  set(scratch, layout.ONE_ROW_BYTES, argument<usize>(layout.ROW_BYTES));
  set(scratch, layout.ONE_COUNT, apart);
  for (let i = 0; i < 4; i++) set(scratch, layout.ONE_ROWS + i, rowAt(min(row + i * apart, last)));
  set(scratch, layout.ONE_LAST, rowAt(last));
  set(scratch, layout.ONE_LANES, scratch + LANES);
  set(scratch, layout.ONE_SCALES, scratch + SCALES);
  set(scratch, layout.ONE_SCALES_APART, (apart * partsOfRow()) << 2);
  set(scratch, layout.ONE_PART_BYTES, partBytes());
  call(argument<i32>(layout.ONE), scratch);
  foldLanes(scratch + LANES, results, count);
}

/** results[count, 8] = the products of tokens [token, token + count) and eight rows from `row` on; rows past the last are the last. */
export function sumRowsAssembled(row: i32, token: i32, count: i32, scratch: usize, results: usize): void {
  const rows = argument<i32>(layout.ROWS);
  const inputs = argument<i32>(layout.INPUTS);
  const rowBytes = argument<usize>(layout.ROW_BYTES);
  const xStride = argument<usize>(layout.X_STRIDE);
  const x = argument<usize>(layout.X) + <usize>token * xStride;
  const wide = argument<i32>(layout.WIDE_COLUMNS);
  const panels = (inputs + wide - 1) / wide;
  const part = argument<i32>(layout.PART_COLUMNS);
  const parts = partsOfRow();
  convertScales(row, layout.PANEL_ROWS, scratch);
  // What the next eight rows are in comes meanwhile, some of it for each panel.
  const hasNext = row + 2 * layout.PANEL_ROWS <= rows;
  const aheadBytes = hasNext ? (layout.PANEL_ROWS * rowBytes) / <usize>panels : 0;
  let ahead = hasNext ? rowAt(row + layout.PANEL_ROWS) : 0;
  for (let from = 0; from < inputs; from += wide) {
    const columns = min(wide, inputs - from);
    const first = columnBytes(from);
    for (let i = 0; i < layout.PANEL_ROWS; i++)
      set(scratch, layout.UNPACK_ROWS + i, rowAt(min(row + i, rows - 1)) + first);
    set(scratch, layout.UNPACK_BYTES, columnBytes(columns));
    set(scratch, layout.UNPACK_PANEL, scratch + PANEL);
    set(scratch, layout.UNPACK_SCALES, scratch + SCALES + (part === 0 ? 0 : (<usize>(from / part)) << 2));
    set(scratch, layout.UNPACK_SCALES_APART, parts << 2);
    set(scratch, layout.UNPACK_PART_BYTES, partBytes());
    call(argument<i32>(layout.UNPACK), scratch);
    set(scratch, layout.TILES_X, x + ((<usize>from) << 2));
    set(scratch, layout.TILES_X_STRIDE, xStride);
    set(scratch, layout.TILES_TOKENS, count);
    set(scratch, layout.TILES_BYTES, columns << 2);
    set(scratch, layout.TILES_PANEL, scratch + PANEL);
    set(scratch, layout.TILES_LANES, scratch + LANES);
    set(scratch, layout.TILES_AHEAD, ahead);
    set(scratch, layout.TILES_AHEAD_END, ahead + aheadBytes);
    set(scratch, layout.TILES_CONTINUE, from === 0 ? 0 : 1);
    call(argument<i32>(layout.TILES), scratch);
    ahead += aheadBytes;
  }
  foldLanes(scratch + LANES, results, count * layout.PANEL_ROWS);
}

// @inline
function set<T>(scratch: usize, word: i32, value: T): void {
  store<u32>(scratch + ((<usize>word) << 2), <u32>value);
}

/** Bytes of a row's first `columns`. */
function columnBytes(columns: i32): usize {
  return <usize>((<u64>columns * <u64>argument<usize>(layout.ROW_BYTES)) / <u64>argument<i32>(layout.INPUTS));
}

function partBytes(): usize {
  return columnBytes(argument<i32>(layout.PART_COLUMNS));
}

/** Parts of a row with one scale, 0 where there are none. */
function partsOfRow(): i32 {
  const part = argument<i32>(layout.PART_COLUMNS);
  return part === 0 ? 0 : argument<i32>(layout.INPUTS) / part;
}

function zeroPoint(): f32 {
  const form = argument<i32>(layout.FORM);
  return form === layout.INT4 ? 8 : form === layout.INT8 ? 128 : 0;
}

/** Scales and offsets of rows [row, row + count) at `SCALES`, of each part of a row; what is past the last row is undefined. */
function convertScales(row: i32, count: i32, scratch: usize): void {
  const parts = partsOfRow();
  if (parts === 0) return;
  const rows = min(count, argument<i32>(layout.ROWS) - row);
  const target = scratch + SCALES;
  const zeros = argument<usize>(layout.ZEROS);
  const total = rows * parts;
  if (isSuperblocks(argument<i32>(layout.FORM))) {
    for (let i = 0; i < rows; i++)
      factorsOfRow(row + i, target + ((<usize>(i * parts)) << 2), layout.OFFSETS_AFTER);
    return;
  }
  if (
    argument<i32>(layout.CONVERT) === 0 ||
    argument<i32>(layout.PART_COLUMNS) !== argument<i32>(layout.SCALE_COLUMNS)
  ) {
    for (let i = 0; i < rows; i++)
      spreadScales(row + i, target + ((<usize>(i * parts)) << 2), scratch + SPARE);
    return;
  }
  const bytes = argument<i32>(layout.SCALE_FORM) === layout.MXFP4 ? 1 : 2;
  const scales = argument<usize>(layout.SCALES) + <usize>(row * parts * bytes);
  const ofRows = zeros + <usize>(row * parts);
  const whole = total - (total % layout.CONVERTED);
  if (whole > 0) {
    set(scratch, layout.CONVERT_FROM, scales);
    set(scratch, layout.CONVERT_TO, target);
    set(scratch, layout.CONVERT_COUNT, whole);
    store<f32>(scratch, zeros === 0 ? -zeroPoint() : -1, layout.CONVERT_MINUS_ZERO << 2);
    set(scratch, layout.CONVERT_ZEROS_FROM, ofRows);
    call(argument<i32>(zeros === 0 ? layout.CONVERT : layout.CONVERT_ZEROS), scratch);
  }
  for (let i = whole; i < total; i++) {
    const zero = zeros === 0 ? zeroPoint() : <f32>load<u8>(ofRows + <usize>i);
    storeScale(target + ((<usize>i) << 2), scaleAt(row * parts + i), zero);
  }
}

/** The same of one row whose groups have several parts each, or another form; `spare`: the scales of groups. */
function spreadScales(row: i32, target: usize, spare: usize): void {
  const groups = argument<i32>(layout.SCALES_OF_ROW);
  const zeros = argument<usize>(layout.ZEROS);
  if (argument<i32>(layout.FORM) === layout.FLOAT8) {
    const scaleRow = row / argument<i32>(layout.SCALE_ROWS);
    const scales = argument<usize>(layout.SCALES) + ((<usize>(scaleRow * groups)) << 2);
    for (let i: usize = 0; i < (<usize>groups) << 2; i += 4)
      store<f32>(spare + i, load<f32>(scales + i) * FLOAT8_SCALE);
  } else scalesOfRow(spare, row, groups);
  const part = argument<i32>(layout.PART_COLUMNS);
  const size = argument<i32>(layout.SCALE_COLUMNS);
  for (let from = 0; from < argument<i32>(layout.INPUTS); from += part, target += 4) {
    const group = from / size;
    const zero = zeros === 0 ? zeroPoint() : <f32>load<u8>(zeros + <usize>(row * groups + group));
    storeScale(target, load<f32>(spare + ((<usize>group) << 2)), zero);
  }
}

// @inline
function storeScale(target: usize, scale: f32, zero: f32): void {
  store<f32>(target, scale);
  store<f32>(target + layout.OFFSETS_AFTER, scale * -zero);
}

/** results[count], and up to three more: the sums of each of as many vectors' lanes. */
function foldLanes(lanes: usize, results: usize, count: i32): void {
  const stride = argument<usize>(layout.LANES) << 2;
  for (let i = 0; i < count; i += 4, lanes += 4 * stride, results += 16) {
    const folded =
      stride === 64
        ? sums(fold16(lanes), fold16(lanes + 64), fold16(lanes + 128), fold16(lanes + 192))
        : sums(fold8(lanes), fold8(lanes + 32), fold8(lanes + 64), fold8(lanes + 96));
    v128.store(results, folded);
  }
}

// @inline
function fold8(lanes: usize): v128 {
  return f32x4.add(v128.load(lanes), v128.load(lanes, 16));
}

// @inline
function fold16(lanes: usize): v128 {
  return f32x4.add(fold8(lanes), fold8(lanes + 32));
}
