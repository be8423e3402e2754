/**
 * out[T, N] = x[T, K] · W[N, K]ᵀ, with a bias, an activation or a sum after it. A unit is some rows of W and all tokens.
 *
 * Eight rows of W at a time are unpacked, a part of K after the other, into a panel that stays in the first-level cache while the
 * tokens pass (sum-floats.ts, sum-integers.ts, sum-nibbles.ts, sum-superblocks.ts). One token alone is multiplied without a panel, since what is unpacked is used once
 * (sum-rows.ts). An output is one sum over K, in parts that W's scales or the panel's width delimit, each part's products in their
 * order in four lanes: it is the same bits whatever the number of tokens, units and threads.
 */
import { isAssembled, rowsOfOne, sumOneAssembled, sumRowsAssembled } from "./assembled";
import * as layout from "./layout";
import { isSuperblocks } from "./matrix";
import { sumFloats } from "./sum-floats";
import { sumIntegers } from "./sum-integers";
import { hasWholeBlocks, sumNibbleRows, sumNibbles } from "./sum-nibbles";
import { hasWholeRows, sumFloatRows } from "./sum-rows";
import { sumSuperblockRows, sumSuperblocks } from "./sum-superblocks";
import { argument, exp, geluTanh, silu, sums } from "./vectors";

/** Tokens that pass a panel. */
const TILE: i32 = 64;
/** A thread's scratch memory: panel, lanes of sums [TILE, 8] × 4, gates and results [TILE, 8], or [64]. */
const SUMS: usize = 0x10000;
const GATES: usize = SUMS + TILE * layout.PANEL_ROWS * 16;
const RESULTS: usize = GATES + TILE * layout.PANEL_ROWS * 4;

export function multiply(unit: i32, scratch: usize): void {
  const outputs = argument<i32>(layout.OUTPUTS);
  const tokens = argument<i32>(layout.TOKENS);
  const unitRows = argument<i32>(layout.UNIT_ROWS);
  const start = unit * unitRows;
  const end = min(start + unitRows, outputs);
  if (tokens === 1 && canSumOne()) {
    multiplyOne(start, end, scratch);
    return;
  }
  const isGated = argument<i32>(layout.GATED) !== 0;
  for (let token = 0; token < tokens; token += TILE) {
    const count = min(TILE, tokens - token);
    for (let row = start; row < end; row += layout.PANEL_ROWS) {
      if (isGated) {
        sumRows(row, token, count, scratch, scratch + GATES);
        sumRows(row + outputs, token, count, scratch, scratch + RESULTS);
      } else sumRows(row, token, count, scratch, scratch + RESULTS);
      for (let i = 0; i < count; i++) {
        const offset = (<usize>(i * layout.PANEL_ROWS)) << 2;
        finish(
          row,
          min(layout.PANEL_ROWS, end - row),
          token + i,
          scratch + RESULTS + offset,
          scratch + GATES + offset,
        );
      }
    }
  }
}

/** Outputs [start, end) of the only token. */
function multiplyOne(start: i32, end: i32, scratch: usize): void {
  const outputs = argument<i32>(layout.OUTPUTS);
  const isGated = argument<i32>(layout.GATED) !== 0;
  const atOnce = rowsOfOne();
  for (let row = start; row < end; row += atOnce) {
    const count = min(atOnce, end - row);
    if (isGated) {
      sumOne(row, count, scratch + GATES, scratch);
      sumOne(row + outputs, count, scratch + RESULTS, scratch);
    } else sumOne(row, count, scratch + RESULTS, scratch);
    finish(row, count, 0, scratch + RESULTS, scratch + GATES);
  }
}

function isNibbles(form: i32): bool {
  return form === layout.INT4 || form === layout.MXFP4;
}

/** Whether the kernels that need no panel can multiply by the matrix at hand. */
function canSumOne(): bool {
  if (isAssembled()) return true;
  const form = argument<i32>(layout.FORM);
  if (isSuperblocks(form)) return true;
  return isNibbles(form) ? hasWholeBlocks() : hasWholeRows();
}

/** results[count] = the products of the only token and rows [row, row + count); up to three more are undefined. */
function sumOne(row: i32, count: i32, results: usize, scratch: usize): void {
  const form = argument<i32>(layout.FORM);
  if (isAssembled()) sumOneAssembled(row, count, results, scratch);
  else if (isNibbles(form)) sumNibbleRows(row, count, results, scratch);
  else if (isSuperblocks(form)) sumSuperblockRows(row, count, results, scratch);
  else sumFloatRows(row, count, results);
}

/** results[count, 8] = the products of tokens [token, token + count) and eight rows from `row` on. */
function sumRows(row: i32, token: i32, count: i32, scratch: usize, results: usize): void {
  if (isAssembled()) {
    sumRowsAssembled(row, token, count, scratch, results);
    return;
  }
  let lanes = scratch + SUMS;
  memory.fill(lanes, 0, (<usize>(count * layout.PANEL_ROWS)) << 4);
  const form = argument<i32>(layout.FORM);
  if (isNibbles(form)) sumNibbles(row, token, count, lanes, scratch);
  else if (isSuperblocks(form)) sumSuperblocks(row, token, count, lanes, scratch);
  else if (form === layout.INT8) sumIntegers(row, token, count, lanes, scratch);
  else sumFloats(row, token, count, lanes, scratch);
  for (let i = 0; i < count; i++, lanes += 128, results += 32) {
    v128.store(
      results,
      sums(v128.load(lanes), v128.load(lanes, 16), v128.load(lanes, 32), v128.load(lanes, 48)),
    );
    const upper = sums(
      v128.load(lanes, 64),
      v128.load(lanes, 80),
      v128.load(lanes, 96),
      v128.load(lanes, 112),
    );
    v128.store(results, upper, 16);
  }
}

/** Writes `count` outputs of a token, from `row` on. */
function finish(row: i32, count: i32, token: i32, results: usize, gates: usize): void {
  const outputs = argument<i32>(layout.OUTPUTS);
  const isGated = argument<i32>(layout.GATED) !== 0;
  const bias = argument<usize>(layout.BIAS);
  const addTo = argument<usize>(layout.ADD_TO);
  const at = (<usize>(token * outputs + row)) << 2;
  const bytes = (<usize>count) << 2;
  if (bias !== 0) {
    addFloats(results, bias + ((<usize>(row + (isGated ? outputs : 0))) << 2), count);
    if (isGated) addFloats(gates, bias + ((<usize>row) << 2), count);
  }
  if (isGated) {
    for (let i: usize = 0; i < bytes; i += 16)
      v128.store(results + i, gated(v128.load(gates + i), v128.load(results + i)));
  } else if (argument<i32>(layout.ACTIVATION) !== layout.NO_ACTIVATION) {
    for (let i: usize = 0; i < bytes; i += 16) v128.store(results + i, activated(v128.load(results + i)));
  }
  if (addTo !== 0) addFloats(results, addTo + at, count);
  const out = argument<usize>(layout.OUT) + at;
  const whole = bytes & ~15;
  for (let i: usize = 0; i < whole; i += 16) v128.store(out + i, v128.load(results + i));
  for (let i = whole; i < bytes; i += 4) store<f32>(out + i, load<f32>(results + i));
}

function gated(gate: v128, up: v128): v128 {
  if (argument<i32>(layout.ACTIVATION) !== layout.LIMITED_SWIGLU) return f32x4.mul(activated(gate), up);
  const limit = f32x4.splat(argument<f32>(layout.LIMIT));
  const alpha = f32x4.splat(argument<f32>(layout.ALPHA));
  const limited = f32x4.min(gate, limit);
  const ups = f32x4.add(f32x4.max(f32x4.min(up, limit), f32x4.neg(limit)), f32x4.splat(1));
  const sigmoid = f32x4.add(f32x4.splat(1), exp(f32x4.neg(f32x4.mul(alpha, limited))));
  return f32x4.mul(ups, f32x4.div(limited, sigmoid));
}

function activated(x: v128): v128 {
  return argument<i32>(layout.ACTIVATION) === layout.SILU ? silu(x) : geluTanh(x);
}

/** target[i] = source[i] + target[i]. */
function addFloats(target: usize, source: usize, count: i32): void {
  for (let i: usize = 0; i < (<usize>count) << 2; i += 4)
    store<f32>(target + i, load<f32>(source + i) + load<f32>(target + i));
}
