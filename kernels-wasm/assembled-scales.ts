/**
 * Scales of rows for assembled code: of each part of a row a scale and an offset, float32, so that an element is code · scale + offset. A
 * part is a group of columns with one scale, or a piece of one that is longer than a panel.
 */
import { call, set } from "./code";
import * as layout from "./layout";
import { isSuperblocks } from "./matrix";
import { scaleAt, scalesOfRow } from "./sum-nibbles";
import { argument } from "./vectors";

/** In a thread's scratch memory: scales of rows, then as many offsets; a row's scales of groups. */
export const SCALES: usize = 0x30000;
const SPARE: usize = SCALES + 2 * layout.OFFSETS_AFTER;

/** float8 is 2⁻⁸ times itself where it is unpacked. */
const FLOAT8_SCALE: f32 = 256;

/** Parts of a row with one scale, 0 where there are none. */
export function partsOfRow(): i32 {
  const part = argument<i32>(layout.PART_COLUMNS);
  return part === 0 ? 0 : argument<i32>(layout.INPUTS) / part;
}

/** Writes those of rows [row, row + count) to `SCALES`; what is past the last row is undefined. */
export function convertScales(row: i32, count: i32, scratch: usize): void {
  const parts = partsOfRow();
  if (parts === 0) return;
  const rows = min(count, argument<i32>(layout.ROWS) - row);
  if (isSuperblocks(argument<i32>(layout.FORM))) convertSuperblocks(row, rows, scratch);
  else if (argument<i32>(layout.CONVERT) !== 0 && parts === argument<i32>(layout.SCALES_OF_ROW))
    convertGroups(row * parts, rows * parts, scratch);
  else {
    const target = scratch + SCALES;
    for (let i = 0; i < rows; i++)
      spreadScales(row + i, target + ((<usize>(i * parts)) << 2), scratch + SPARE);
  }
}

/** Groups [first, first + count). */
function convertGroups(first: i32, count: i32, scratch: usize): void {
  const bytes = argument<i32>(layout.SCALE_FORM) === layout.MXFP4 ? 1 : 2;
  const zeros = argument<usize>(layout.ZEROS);
  const whole = count - (count % layout.CONVERTED);
  if (whole > 0) {
    set(scratch, layout.CONVERT_FROM, argument<usize>(layout.SCALES) + <usize>(first * bytes));
    set(scratch, layout.CONVERT_TO, scratch + SCALES);
    set(scratch, layout.CONVERT_COUNT, whole);
    store<f32>(scratch, zeros === 0 ? -usualZero() : -1, layout.CONVERT_FACTOR << 2);
    set(scratch, layout.CONVERT_OTHERS, zeros + <usize>first);
    call(argument<i32>(layout.CONVERT), scratch);
  }
  for (let i = whole; i < count; i++) {
    const zero = zeros === 0 ? usualZero() : <f32>load<u8>(zeros + <usize>(first + i));
    storeScale(scratch + SCALES + ((<usize>i) << 2), scaleAt(first + i), zero);
  }
}

/** Rows of superblocks: what is taken off a code without a minimum is the middle of codes. */
function convertSuperblocks(row: i32, rows: i32, scratch: usize): void {
  const hasMinima = argument<i32>(layout.MINIMA) !== 0;
  const factors = hasMinima ? 2 : 1;
  const ofRow = argument<i32>(layout.INPUTS) / layout.SUPERBLOCK;
  const steps = argument<usize>(layout.SCALES) + <usize>(row * argument<i32>(layout.SCALES_OF_ROW) * factors);
  const units = argument<usize>(layout.SUPERBLOCK_UNITS) + <usize>(row * ofRow * factors * 2);
  set(scratch, layout.CONVERT_FROM, steps);
  set(scratch, layout.CONVERT_TO, scratch + SCALES);
  set(scratch, layout.CONVERT_COUNT, rows * ofRow);
  store<f32>(scratch, hasMinima ? -1 : <f32>-layout.SUPERBLOCK_MIDDLE, layout.CONVERT_FACTOR << 2);
  set(scratch, layout.CONVERT_OTHERS, units);
  call(argument<i32>(layout.CONVERT), scratch);
}

/** A row whose groups have several parts each, or floats as scales; `spare`: the scales of groups. */
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
    const zero = zeros === 0 ? usualZero() : <f32>load<u8>(zeros + <usize>(row * groups + group));
    storeScale(target, load<f32>(spare + ((<usize>group) << 2)), zero);
  }
}

function usualZero(): f32 {
  const form = argument<i32>(layout.FORM);
  return form === layout.INT4 ? 8 : form === layout.INT8 ? 128 : 0;
}

// @inline
function storeScale(target: usize, scale: f32, zero: f32): void {
  store<f32>(target, scale);
  store<f32>(target + layout.OFFSETS_AFTER, scale * -zero);
}
