/**
 * Attention of rotated queries over the paged cache. A unit is some consecutive tokens of one row and the query heads of one key/value
 * head. Keys pass in tiles that begin at multiples of `TILE` positions, with a running maximum (Milakov & Gimelshein 2018), so a
 * query's result does not depend on the queries that it is computed with.
 */
import { call, set } from "./code";
import * as layout from "./layout";
import {
  BLOCK_SIZE,
  HEAD_DIM,
  HEADS,
  IS_FLOAT8,
  KEYS,
  KV_HEADS,
  OUT,
  projectedHeads,
  QKV,
  VALUES,
} from "./rotate";
import { unpackFloat8 } from "./unpack";
import { argument, capped, exp, sum } from "./vectors";

const WINDOW = 24;
const SCALE = 25;
/** What results are multiplied by. */
const RESULT_SCALE = 26;
/** int32 [units / NKV, 4]: address of the row's block table, first token, tokens, position of the first. */
const RUNS = 27;
/** The cap of scores, or 0. */
const SOFT_CAP = 28;
/** float32 [NQ], or 0. */
const SINKS = 29;

const TILE: i32 = 32;
/**
 * A thread's scratch memory: addresses of a tile's keys and values, weights, parameters of assembled code, unpacked keys and values, states of
 * queries. Lists have room for what assembled code takes at once.
 */
const LIST_BYTES: usize = (TILE + layout.DOTS_KEYS_AT_ONCE) * 4;
const KEY_AT: usize = 0;
const VALUE_AT: usize = LIST_BYTES;
const WEIGHTS: usize = 2 * LIST_BYTES;
const PARAMETERS: usize = 3 * LIST_BYTES;
const UNPACKED: usize = 0x200;
/** State of a query: running maximum, then the lanes of the sum of weights, then the weighted sum of values [D]. */
const STATE_SUM: usize = 16;
const STATE_VALUES: usize = 32;

export function attend(unit: i32, scratch: usize): void {
  const heads = argument<i32>(HEADS);
  const kvHeads = argument<i32>(KV_HEADS);
  const headDim = argument<i32>(HEAD_DIM);
  const isFloat8 = argument<i32>(IS_FLOAT8) !== 0;
  const window = argument<i32>(WINDOW);
  const run = argument<usize>(RUNS) + ((<usize>(unit / kvHeads)) << 4);
  const kvHead = unit % kvHeads;
  const table = load<usize>(run);
  const firstToken = load<i32>(run, 4);
  const tokens = load<i32>(run, 8);
  const firstPosition = load<i32>(run, 12);

  const headBytes = (<usize>headDim) << 2;
  const group = heads / kvHeads;
  const unpackedValues = scratch + UNPACKED + <usize>TILE * headBytes;
  const states = isFloat8 ? unpackedValues + <usize>TILE * headBytes : scratch + UNPACKED;
  const stateBytes = STATE_VALUES + headBytes;
  memory.fill(states, 0, <usize>(tokens * group) * stateBytes);
  for (let i = 0; i < tokens * group; i++)
    beginState(states + <usize>i * stateBytes, kvHead * group + (i % group));

  const lastPosition = firstPosition + tokens - 1;
  const begin = window > 0 ? max(0, firstPosition - window + 1) : 0;
  for (let tile = begin & -TILE; tile <= lastPosition; tile += TILE) {
    const end = min(tile + TILE, lastPosition + 1);
    findTile(
      table,
      kvHead,
      max(tile, begin),
      tile,
      end,
      scratch,
      isFloat8,
      scratch + UNPACKED,
      unpackedValues,
    );
    for (let t = 0; t < tokens; t++) {
      const position = firstPosition + t;
      const low = max(tile, window > 0 ? position - window + 1 : 0);
      const high = min(end, position + 1);
      if (low >= high) continue;
      const width = <usize>projectedHeads() * headBytes;
      let query =
        argument<usize>(QKV) + <usize>(firstToken + t) * width + <usize>(kvHead * group) * headBytes;
      let state = states + <usize>(t * group) * stateBytes;
      for (let g = 0; g < group; g++, query += headBytes, state += stateBytes) {
        weigh(query, low - tile, high - tile, scratch, state, headBytes);
        addValues(low - tile, high - tile, scratch, state + STATE_VALUES, headBytes);
      }
    }
  }

  for (let t = 0; t < tokens; t++) {
    let out = argument<usize>(OUT) + <usize>((firstToken + t) * heads + kvHead * group) * headBytes;
    for (let g = 0; g < group; g++, out += headBytes) {
      const state = states + <usize>(t * group + g) * stateBytes;
      const factor = f32x4.splat(argument<f32>(RESULT_SCALE) / sum(v128.load(state, STATE_SUM)));
      for (let i: usize = 0; i < headBytes; i += 16)
        v128.store(out + i, f32x4.mul(v128.load(state + i, STATE_VALUES), factor));
    }
  }
}

/** The state of a query that has seen nothing yet but its head's sink. */
function beginState(state: usize, head: i32): void {
  const sinks = argument<usize>(SINKS);
  const sink: f32 = sinks === 0 ? -Infinity : load<f32>(sinks + ((<usize>head) << 2));
  store<f32>(state, sink);
  if (sink !== -Infinity) store<f32>(state, 1, STATE_SUM);
}

/** Addresses of the keys and values at positions [from, end), those of `tile` first; of eight bits, unpacked ones. */
function findTile(
  table: usize,
  kvHead: i32,
  from: i32,
  tile: i32,
  end: i32,
  scratch: usize,
  isFloat8: bool,
  keys: usize,
  values: usize,
): void {
  const blockSize = argument<i32>(BLOCK_SIZE);
  const headDim = argument<i32>(HEAD_DIM);
  for (let position = from; position < end; position++) {
    const block = load<i32>(table + ((<usize>(position / blockSize)) << 2));
    const row = (block * argument<i32>(KV_HEADS) + kvHead) * blockSize + (position % blockSize);
    const at = <usize>row * <usize>headDim;
    const i = <usize>(position - tile);
    let key = argument<usize>(KEYS) + (isFloat8 ? at : at << 2);
    let value = argument<usize>(VALUES) + (isFloat8 ? at : at << 2);
    if (isFloat8) {
      const unpacked = (i * <usize>headDim) << 2;
      unpackFloat8(keys + unpacked, key, headDim);
      unpackFloat8(values + unpacked, value, headDim);
      key = keys + unpacked;
      value = values + unpacked;
    }
    store<usize>(scratch + KEY_AT + (i << 2), key);
    store<usize>(scratch + VALUE_AT + (i << 2), value);
  }
  // Assembled code takes some keys too many.
  const ending = scratch + KEY_AT + ((<usize>(end - tile)) << 2);
  for (let i: usize = 0; i < (<usize>layout.DOTS_KEYS_AT_ONCE) << 2; i += 4)
    store<usize>(ending + i, load<usize>(ending - 4));
}

/** `dot` by assembled code; up to seven more are others'. */
function dotAssembled(query: usize, low: i32, high: i32, scratch: usize, headBytes: usize): void {
  const parameters = scratch + PARAMETERS;
  const atOnce = layout.DOTS_KEYS_AT_ONCE;
  set(parameters, layout.DOTS_QUERY, query);
  set(parameters, layout.DOTS_KEYS, scratch + KEY_AT + ((<usize>low) << 2));
  set(parameters, layout.DOTS_COUNT, (high - low + atOnce - 1) & -atOnce);
  set(parameters, layout.DOTS_BYTES, headBytes);
  set(parameters, layout.DOTS_OUT, scratch + WEIGHTS);
  call(argument<i32>(layout.DOTS), parameters);
}

/** `addValues` by assembled code. */
function addValuesAssembled(low: i32, high: i32, scratch: usize, sums: usize, headBytes: usize): void {
  const parameters = scratch + PARAMETERS;
  set(parameters, layout.WEIGHTED_VALUES, scratch + VALUE_AT + ((<usize>low) << 2));
  set(parameters, layout.WEIGHTED_WEIGHTS, scratch + WEIGHTS);
  set(parameters, layout.WEIGHTED_COUNT, high - low);
  set(parameters, layout.WEIGHTED_BYTES, headBytes);
  set(parameters, layout.WEIGHTED_SUMS, sums);
  call(argument<i32>(layout.WEIGHTED), parameters);
}

/** Dot products of a query and the tile's keys [low, high), to `WEIGHTS`; up to three more are others'. */
function dot(query: usize, low: i32, high: i32, scratch: usize, headBytes: usize): void {
  for (let i = low; i < high; i += 4) {
    const at = scratch + KEY_AT + ((<usize>i) << 2);
    const last = high - 1 - i;
    const k0 = load<usize>(at);
    const k1 = last > 0 ? load<usize>(at, 4) : k0;
    const k2 = last > 1 ? load<usize>(at, 8) : k0;
    const k3 = last > 2 ? load<usize>(at, 12) : k0;
    let s0 = f32x4.splat(0);
    let s1 = s0;
    let s2 = s0;
    let s3 = s0;
    for (let d: usize = 0; d < headBytes; d += 16) {
      const q = v128.load(query + d);
      s0 = f32x4.add(s0, f32x4.mul(q, v128.load(k0 + d)));
      s1 = f32x4.add(s1, f32x4.mul(q, v128.load(k1 + d)));
      s2 = f32x4.add(s2, f32x4.mul(q, v128.load(k2 + d)));
      s3 = f32x4.add(s3, f32x4.mul(q, v128.load(k3 + d)));
    }
    const ab = f32x4.add(v128.shuffle<i32>(s0, s1, 0, 4, 1, 5), v128.shuffle<i32>(s0, s1, 2, 6, 3, 7));
    const cd = f32x4.add(v128.shuffle<i32>(s2, s3, 0, 4, 1, 5), v128.shuffle<i32>(s2, s3, 2, 6, 3, 7));
    const dots = f32x4.add(v128.shuffle<i32>(ab, cd, 0, 1, 4, 5), v128.shuffle<i32>(ab, cd, 2, 3, 6, 7));
    v128.store(scratch + WEIGHTS + ((<usize>(i - low)) << 2), dots);
  }
}

/** Weights of the tile's keys [low, high), e^(score − maximum); what the state held is scaled to the new maximum. */
function weigh(query: usize, low: i32, high: i32, scratch: usize, state: usize, headBytes: usize): void {
  if (argument<i32>(layout.DOTS) !== 0) dotAssembled(query, low, high, scratch, headBytes);
  else dot(query, low, high, scratch, headBytes);
  const scale = f32x4.splat(argument<f32>(SCALE));
  const softCap = argument<f32>(SOFT_CAP);
  const indices = i32x4(0, 1, 2, 3);
  let largest = f32x4.splat(-Infinity);
  for (let i = 0; i < high - low; i += 4) {
    const at = scratch + WEIGHTS + ((<usize>i) << 2);
    let scores = f32x4.mul(v128.load(at), scale);
    if (softCap > 0) scores = capped(scores, softCap);
    v128.store(at, scores);
    const isThere = i32x4.lt_s(indices, i32x4.splat(high - low - i));
    largest = f32x4.max(largest, v128.bitselect(scores, f32x4.splat(-Infinity), isThere));
  }
  const known = load<f32>(state);
  const now = max(
    known,
    max(
      max(f32x4.extract_lane(largest, 0), f32x4.extract_lane(largest, 1)),
      max(f32x4.extract_lane(largest, 2), f32x4.extract_lane(largest, 3)),
    ),
  );
  if (now !== known) {
    store<f32>(state, now);
    if (known !== -Infinity) {
      const factor = exp(f32x4.splat(known - now));
      for (let d = STATE_SUM; d < STATE_VALUES + headBytes; d += 16)
        v128.store(state + d, f32x4.mul(v128.load(state + d), factor));
    }
  }
  let total = v128.load(state, STATE_SUM);
  for (let i = 0; i < high - low; i += 4) {
    const at = scratch + WEIGHTS + ((<usize>i) << 2);
    const isThere = i32x4.lt_s(indices, i32x4.splat(high - low - i));
    const weights = v128.and(exp(f32x4.sub(v128.load(at), f32x4.splat(now))), isThere);
    v128.store(at, weights);
    total = f32x4.add(total, weights);
  }
  v128.store(state, total, STATE_SUM);
}

/** sum[D] += weights · values [low, high) of the tile. */
function addValues(low: i32, high: i32, scratch: usize, sums: usize, headBytes: usize): void {
  if (argument<i32>(layout.WEIGHTED) !== 0) {
    addValuesAssembled(low, high, scratch, sums, headBytes);
    return;
  }
  const addresses = scratch + VALUE_AT + ((<usize>low) << 2);
  const bytes = (<usize>(high - low)) << 2;
  let d: usize = 0;
  for (; d + 64 <= headBytes; d += 64) {
    let a = v128.load(sums + d);
    let b = v128.load(sums + d, 16);
    let c = v128.load(sums + d, 32);
    let e = v128.load(sums + d, 48);
    for (let i: usize = 0; i < bytes; i += 4) {
      const value = load<usize>(addresses + i) + d;
      const weight = v128.load32_splat(scratch + WEIGHTS + i);
      a = f32x4.add(a, f32x4.mul(weight, v128.load(value)));
      b = f32x4.add(b, f32x4.mul(weight, v128.load(value, 16)));
      c = f32x4.add(c, f32x4.mul(weight, v128.load(value, 32)));
      e = f32x4.add(e, f32x4.mul(weight, v128.load(value, 48)));
    }
    v128.store(sums + d, a);
    v128.store(sums + d, b, 16);
    v128.store(sums + d, c, 32);
    v128.store(sums + d, e, 48);
  }
  for (; d < headBytes; d += 16) {
    let a = v128.load(sums + d);
    for (let i: usize = 0; i < bytes; i += 4) {
      const value = load<usize>(addresses + i) + d;
      a = f32x4.add(a, f32x4.mul(v128.load32_splat(scratch + WEIGHTS + i), v128.load(value)));
    }
    v128.store(sums + d, a);
  }
}
