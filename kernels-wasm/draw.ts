/**
 * Drawing tokens from rows of logits: the threshold that min-p, top-k and top-p leave, and the best of a part of a row. The same as
 * backend/cpu/sampling.ts, without sorting.
 */
import * as layout from "./layout";
import { argument } from "./vectors";

// Arguments of both kernels: records of rows, V, parts of a row, candidates out [rows, parts], first token of the row.

/** Bits of a key that a pass tells apart. */
const PASS_BITS: i32 = 8;
const BINS: i32 = 1 << PASS_BITS;
/** Logits that a thread's scratch memory has room for behind the bins, in each of two lists. */
const LISTED: i32 = 1 << 13;
/** Tokens whose odds are less than e^-64 of the most likely one's change no float64 sum. */
const NEGLIGIBLE: f64 = 64;

/** The least logit / temperature of row `unit` that may be drawn, or NaN where a logit is. */
export function findThreshold(unit: i32, scratch: usize): void {
  const row = argument<usize>(0) + <usize>unit * layout.ROW_RECORD;
  if (load<i32>(row, layout.ROW_IS_CUT) === 0) return;
  const vocab = argument<i32>(1);
  const logits = load<usize>(row, layout.ROW_LOGITS);
  const temperature = load<f64>(row, layout.ROW_TEMPERATURE);
  const largest = findLargest(logits, vocab);
  const top = <f64>largest / temperature;
  let threshold = top + load<f64>(row, layout.ROW_LOG_MIN_P);
  const topK = load<i32>(row, layout.ROW_TOP_K);
  const topP = load<f64>(row, layout.ROW_TOP_P);
  // Nothing can be drawn then, and the draw says so.
  if (!isNaN(largest) && largest !== -Infinity) {
    // The logits that top-k leaves, or all.
    let left = logits;
    let count = vocab;
    if (topK > 0 && topK < vocab) {
      const kth = select(logits, vocab, -Infinity, temperature, 0, <f64>topK, false, scratch);
      threshold = max(threshold, <f64>kth / temperature);
      const list = scratch + (BINS << 3) + (LISTED << 2);
      const listed = listFrom(kth, logits, vocab, list);
      if (listed <= LISTED) {
        left = list;
        count = listed;
      }
    }
    if (topP < 1) {
      const least = max(threshold, top - NEGLIGIBLE);
      let total: f64 = 0;
      for (let i = 0; i < count; i++) {
        const scaled = <f64>load<f32>(left + ((<usize>i) << 2)) / temperature;
        if (scaled >= least) total += Math.exp(scaled - top);
      }
      threshold =
        <f64>select(left, count, least, temperature, top, topP * total, true, scratch) / temperature;
    }
  }
  store<f64>(row, threshold, layout.ROW_THRESHOLD);
}

/** Lists the logits that are not below `least`, in their order. @returns their number, of which the list has LISTED at most */
function listFrom(least: f32, logits: usize, vocab: i32, list: usize): i32 {
  let count = 0;
  for (let i = 0; i < vocab; i++) {
    const logit = load<f32>(logits + ((<usize>i) << 2));
    if (logit < least) continue;
    if (count < LISTED) store<f32>(list + ((<usize>count) << 2), logit);
    count++;
  }
  return count;
}

/**
 * The logit at which the weights of the largest ones reach `wanted`: of each 1, or e^(logit / temperature − top). Logits below
 * `least`, divided by the temperature, weigh nothing. Radix selection: in each pass the weights of a bin of keys are summed, and the
 * bin that reaches the sum is looked into. The second pass lists that bin's logits, if they are not too many, for those after it.
 */
function select(
  logits: usize,
  count: i32,
  least: f64,
  temperature: f64,
  top: f64,
  wanted: f64,
  isWeighted: bool,
  scratch: usize,
): f32 {
  let prefix: u32 = 0;
  let known: u32 = 0;
  let above: f64 = 0;
  let shift = 32;
  const list = scratch + (BINS << 3);
  for (let pass = 0; shift > 0; pass++) {
    const bits = min(PASS_BITS, shift);
    shift -= bits;
    const bins: u32 = 1 << bits;
    memory.fill(scratch, 0, BINS << 3);
    let listed = 0;
    for (let i = 0; i < count; i++) {
      const logit = load<f32>(logits + ((<usize>i) << 2));
      const key = keyOf(logit);
      if (((key ^ prefix) & known) !== 0) continue;
      if (pass === 1) {
        if (listed < LISTED) store<f32>(list + ((<usize>listed) << 2), logit);
        listed++;
      }
      let weight: f64 = 1;
      if (isWeighted) {
        const scaled = <f64>logit / temperature;
        if (scaled < least) continue;
        weight = Math.exp(scaled - top);
      }
      const bin = scratch + ((<usize>((key >>> shift) & (bins - 1))) << 3);
      store<f64>(bin, load<f64>(bin) + weight);
    }
    // The lowest bin that holds anything takes what roundings have left over.
    let chosen = <i32>bins;
    for (let bin = <i32>bins - 1; bin >= 0; bin--) {
      const weight = load<f64>(scratch + ((<usize>bin) << 3));
      if (weight === 0) continue;
      if (chosen < <i32>bins) above += load<f64>(scratch + ((<usize>chosen) << 3));
      chosen = bin;
      if (above + weight >= wanted) break;
    }
    prefix |= (<u32>chosen) << shift;
    known |= (bins - 1) << shift;
    if (pass === 1 && listed <= LISTED) {
      logits = list;
      count = listed;
    }
  }
  return fromKey(prefix);
}

/** Unsigned integers in the order of floats. */
function keyOf(value: f32): u32 {
  const bits = reinterpret<u32>(value);
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

function fromKey(key: u32): f32 {
  return reinterpret<f32>(key & 0x80000000 ? key & 0x7fffffff : ~key);
}

/** The maximum; NaN when there is one. */
function findLargest(logits: usize, count: i32): f32 {
  let largest = f32x4.splat(-Infinity);
  let i = 0;
  for (; i + 4 <= count; i += 4) largest = f32x4.max(largest, v128.load(logits + ((<usize>i) << 2)));
  let result = max(
    max(f32x4.extract_lane(largest, 0), f32x4.extract_lane(largest, 1)),
    max(f32x4.extract_lane(largest, 2), f32x4.extract_lane(largest, 3)),
  );
  for (; i < count; i++) result = max(result, load<f32>(logits + ((<usize>i) << 2)));
  return result;
}

/** The best token of a part of a row, and its key: NaN where a logit is, −∞ where nothing can be drawn. */
export function draw(unit: i32): void {
  const parts = argument<i32>(2);
  const row = argument<usize>(0) + <usize>(unit / parts) * layout.ROW_RECORD;
  const part = unit % parts;
  const first = part * layout.DRAW_PART;
  const count = min(layout.DRAW_PART, argument<i32>(1) - first);
  const logits = load<usize>(row, layout.ROW_LOGITS) + ((<usize>first) << 2);
  const candidate = argument<usize>(3) + <usize>unit * layout.CANDIDATE_BYTES;
  const firstToken = argument<i32>(4) + first;
  const temperature = load<f64>(row, layout.ROW_TEMPERATURE);

  const largest = findLargest(logits, count);
  let token = -1;
  let key = <f64>largest;
  if (!isNaN(largest) && largest !== -Infinity) {
    if (temperature === 0) {
      let i = 0;
      while (load<f32>(logits + ((<usize>i) << 2)) !== largest) i++;
      token = firstToken + i;
    } else {
      key = -Infinity;
      const threshold = load<f64>(row, layout.ROW_THRESHOLD);
      const seedLow = load<u32>(row, layout.ROW_SEED_LOW);
      const seedHigh = load<u32>(row, layout.ROW_SEED_HIGH);
      const position = load<u32>(row, layout.ROW_POSITION);
      let group: u32 = 0xffff_ffff;
      for (let i = 0; i < count; i++) {
        const scaled = <f64>load<f32>(logits + ((<usize>i) << 2)) / temperature;
        if (scaled < threshold || scaled === -Infinity) continue;
        const candidateToken = <u32>(firstToken + i);
        if (candidateToken >>> 2 !== group) {
          group = candidateToken >>> 2;
          philox(group, position, seedLow, seedHigh);
        }
        const word = randomWord(candidateToken & 3);
        // The noise −ln(−ln u) is at most −ln(1 − u), which has at most as many halvings as 1 − u has leading zeros and one.
        if (scaled + 0.6931471805599454 * <f64>(clz(~word) + 1) <= key) continue;
        const uniform = (<f64>word + 0.5) * 2.3283064365386963e-10; // 2^-32
        const score = scaled - Math.log(-Math.log(uniform));
        if (score > key) {
          key = score;
          token = <i32>candidateToken;
        }
      }
    }
  }
  store<f64>(candidate, key);
  store<i32>(candidate, token, 8);
}

let random0: u32 = 0;
let random1: u32 = 0;
let random2: u32 = 0;
let random3: u32 = 0;

function randomWord(index: u32): u32 {
  if (index < 2) return index === 0 ? random0 : random1;
  return index === 2 ? random2 : random3;
}

/** Philox4x32-10 (Salmon et al. 2011) of the counter (c0, c1, 0, 0) under a 64-bit key. */
function philox(c0: u32, c1: u32, k0: u32, k1: u32): void {
  let c2: u32 = 0;
  let c3: u32 = 0;
  for (let round = 0; round < 10; round++) {
    const a = <u64>c0 * 0xd2511f53;
    const b = <u64>c2 * 0xcd9e8d57;
    c0 = <u32>(b >>> 32) ^ c1 ^ k0;
    c1 = <u32>b;
    c2 = <u32>(a >>> 32) ^ c3 ^ k1;
    c3 = <u32>a;
    k0 += 0x9e3779b9;
    k1 += 0xbb67ae85;
  }
  random0 = c0;
  random1 = c1;
  random2 = c2;
  random3 = c3;
}
