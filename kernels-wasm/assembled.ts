/**
 * Products by code that the host has assembled for the processor at hand (src/backend/simd/x64): with wider vectors, and products and
 * sums in one rounding. An output is one sum over K in `LANES` lanes, each in the order of its columns, whether its token is alone or one
 * of many; elements are the same float32 everywhere, and those of integers exact. So they are the same bits whatever the number of
 * tokens, units and threads, though not those of the other kernels.
 */
import { convertScales, partsOfRow, SCALES } from "./assembled-scales";
import { call, set } from "./code";
import * as layout from "./layout";
import { rowAt } from "./matrix";
import { argument, sums } from "./vectors";

/** A thread's scratch memory: parameters, panel, lanes of sums [TILE, 8] or [count], then what assembled-scales.ts has. */
const PANEL: usize = 0x1000;
const LANES: usize = 0x20000;

/** Whether the product at hand is computed here. */
export function isAssembled(): bool {
  return argument<i32>(layout.ONE) !== 0;
}

/** Rows that one token is multiplied by at once, at most: as many as there is memory for the scales of. */
export function rowsOfOne(): i32 {
  const parts = partsOfRow();
  return parts === 0 ? 64 : max(4, min(64, layout.MOST_SCALES / parts) & -4);
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

/** Bytes of a row's first `columns`. */
function columnBytes(columns: i32): usize {
  return <usize>((<u64>columns * <u64>argument<usize>(layout.ROW_BYTES)) / <u64>argument<i32>(layout.INPUTS));
}

function partBytes(): usize {
  return columnBytes(argument<i32>(layout.PART_COLUMNS));
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
