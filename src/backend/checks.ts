import type { DType, FloatDType } from "../base/dtype.ts";
import { InvariantError, invariant } from "../base/errors.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../base/sampling-params.ts";
import {
  type AttentionSpec,
  type BatchTensors,
  JOIN_WORDS,
  type LayerCache,
  LOGIT_EDIT_WORDS,
  type LogprobTensors,
  ROW_WORDS,
  type RopeStoreSpec,
  type SampleRows,
  SLOT_WORDS,
  type SlotTensors,
} from "./backend.ts";
import type { Tensor } from "./tensor.ts";

/**
 * What every backend checks before an op runs: dtypes, shapes and overlap, from what the host knows. One function an
 * op; each throws `InvariantError` that names the op and the tensor, and returns the extents that the op works with.
 */

/** An extent: a number must match exactly; a letter stands for any extent and is shown in the message. */
type Extent = number | string;

function check(
  op: string,
  name: string,
  tensor: Tensor,
  dtypes: DType | readonly DType[],
  ...shape: Extent[]
) {
  const rightDtype = typeof dtypes === "string" ? tensor.dtype === dtypes : dtypes.includes(tensor.dtype);
  const rightShape =
    tensor.shape.length === shape.length &&
    shape.every((extent, i) => typeof extent === "string" || tensor.shape[i] === extent);
  if (rightDtype && rightShape) return;
  const dtype = typeof dtypes === "string" ? dtypes : dtypes.join(" or ");
  throw new InvariantError(`${op}: ${name} is ${tensor}, expected ${dtype}[${shape.join(", ")}]`);
}

/** Fails when `written` shares memory with one of `read`. */
function disjoint(
  op: string,
  written: Tensor,
  read: Readonly<Record<string, Tensor | undefined>>,
  name = "out",
) {
  for (const [readName, tensor] of Object.entries(read)) {
    if (tensor !== undefined) invariant(!overlap(written, tensor), `${op}: ${name} overlaps ${readName}`);
  }
}

function overlap(a: Tensor, b: Tensor): boolean {
  if (a.buffer !== b.buffer && a.buffer.address === 0) return false;
  return a.address < b.address + b.byteLength && b.address < a.address + a.byteLength;
}

/** In place on all of `input`, or clear of it. */
function sameOrDisjoint(op: string, written: Tensor, input: Tensor, name: string) {
  const same = written.buffer === input.buffer && written.byteOffset === input.byteOffset;
  if (!same) disjoint(op, written, { [name]: input });
}

export function checkEmbedding(dtype: FloatDType, out: Tensor, table: Tensor, ids: Tensor) {
  const op = "embedding";
  check(op, "table", table, dtype, "V", "H");
  check(op, "ids", ids, "int32", "T");
  const [tokens, vocab, width] = [ids.dim(0), table.dim(0), table.dim(1)];
  check(op, "out", out, dtype, tokens, width);
  disjoint(op, out, { table, ids });
  return { tokens, vocab, width };
}

export function checkGatherRows(dtype: FloatDType, out: Tensor, x: Tensor, rows: Tensor) {
  const op = "gatherRows";
  check(op, "x", x, dtype, "T", "H");
  check(op, "rows", rows, "int32", "R");
  const [count, tokens, width] = [rows.dim(0), x.dim(0), x.dim(1)];
  check(op, "out", out, dtype, count, width);
  disjoint(op, out, { x, rows });
  return { count, tokens, width };
}

/** `m` tokens, `n` outputs, `k` inputs. */
export function checkLinear(dtype: FloatDType, out: Tensor, x: Tensor, weight: Tensor, bias?: Tensor) {
  const op = "linear";
  check(op, "x", x, dtype, "T", "K");
  const [m, k] = [x.dim(0), x.dim(1)];
  check(op, "weight", weight, dtype, "N", k);
  const n = weight.dim(0);
  if (bias !== undefined) check(op, "bias", bias, dtype, n);
  check(op, "out", out, bias === undefined ? [dtype, "float32"] : dtype, m, n);
  disjoint(op, out, { x, weight, bias });
  return { m, n, k };
}

export function checkRmsNorm(dtype: FloatDType, out: Tensor, x: Tensor, weight: Tensor) {
  const op = "rmsNorm";
  check(op, "x", x, dtype, "T", "H");
  const [tokens, width] = [x.dim(0), x.dim(1)];
  check(op, "weight", weight, dtype, width);
  check(op, "out", out, dtype, tokens, width);
  disjoint(op, out, { x, weight });
  return { tokens, width };
}

export function checkAddRmsNorm(dtype: FloatDType, out: Tensor, residual: Tensor, x: Tensor, weight: Tensor) {
  const op = "addRmsNorm";
  check(op, "x", x, dtype, "T", "H");
  const [tokens, width] = [x.dim(0), x.dim(1)];
  check(op, "residual", residual, dtype, tokens, width);
  check(op, "weight", weight, dtype, width);
  check(op, "out", out, dtype, tokens, width);
  disjoint(op, out, { residual, weight });
  disjoint(op, residual, { x, weight }, "residual");
  sameOrDisjoint(op, out, x, "x");
  return { tokens, width };
}

export function checkLayerNorm(
  dtype: FloatDType,
  out: Tensor,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
) {
  const op = "layerNorm";
  check(op, "x", x, dtype, "T", "H");
  const [tokens, width] = [x.dim(0), x.dim(1)];
  check(op, "weight", weight, dtype, width);
  if (bias !== undefined) check(op, "bias", bias, dtype, width);
  check(op, "out", out, dtype, tokens, width);
  disjoint(op, out, { x, weight, bias });
  return { tokens, width };
}

export function checkGatedActivation(dtype: FloatDType, out: Tensor, gateUp: Tensor) {
  const op = "gatedActivation";
  check(op, "out", out, dtype, "T", "I");
  const [tokens, width] = [out.dim(0), out.dim(1)];
  check(op, "gateUp", gateUp, dtype, tokens, 2 * width);
  disjoint(op, out, { gateUp });
  return { tokens, width };
}

export function checkActivation(dtype: FloatDType, out: Tensor, x: Tensor) {
  const op = "activation";
  check(op, "x", x, dtype, "T", "I");
  const [tokens, width] = [x.dim(0), x.dim(1)];
  check(op, "out", out, dtype, tokens, width);
  sameOrDisjoint(op, out, x, "x");
  return { tokens, width };
}

function checkCosSin(op: string, cosSin: Tensor, headDim: number): number {
  check(op, "cosSin", cosSin, "float32", "positions", "rotaryDim");
  const rotaryDim = cosSin.dim(1);
  invariant(rotaryDim % 2 === 0 && rotaryDim <= headDim, `${op}: rotaryDim ${rotaryDim}, headDim ${headDim}`);
  return rotaryDim;
}

export function checkRotary(
  dtype: FloatDType,
  x: Tensor,
  heads: number,
  headDim: number,
  cosSin: Tensor,
  positions: Tensor,
) {
  const op = "rotary";
  check(op, "x", x, dtype, "T", "W");
  const [tokens, width] = [x.dim(0), x.dim(1)];
  invariant(heads * headDim <= width, `${op}: ${heads} heads of ${headDim} in rows of ${width}`);
  check(op, "positions", positions, "int32", tokens);
  disjoint(op, x, { cosSin, positions }, "x");
  return { tokens, width, rotaryDim: checkCosSin(op, cosSin, headDim) };
}

interface Heads {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
}

/** The packed projections and the paged cache. Returns tokens T, blocks B and the block size. */
function checkQkvAndCache(
  op: string,
  dtype: FloatDType,
  qkv: Tensor,
  cache: LayerCache,
  blockSize: number,
  spec: Heads,
) {
  const { numHeads, numKvHeads, headDim } = spec;
  invariant(
    numKvHeads > 0 && numHeads % numKvHeads === 0,
    `${op}: ${numHeads} query heads over ${numKvHeads}`,
  );
  check(op, "qkv", qkv, dtype, "T", (numHeads + 2 * numKvHeads) * headDim);
  check(op, "keys", cache.keys, dtype, "B", numKvHeads, blockSize, headDim);
  check(op, "values", cache.values, dtype, ...cache.keys.shape);
  return { tokens: qkv.dim(0), blocks: cache.keys.dim(0), blockSize };
}

export function checkRopeAndStoreKv(
  dtype: FloatDType,
  qkv: Tensor,
  cache: LayerCache,
  batch: BatchTensors,
  spec: RopeStoreSpec,
) {
  const op = "ropeAndStoreKv";
  const shape = checkQkvAndCache(op, dtype, qkv, cache, batch.blockSize, spec);
  const { cosSin, queryNorm, keyNorm } = spec;
  check(op, "positions", batch.positions, "int32", shape.tokens);
  check(op, "slotMapping", batch.slotMapping, "int32", shape.tokens);
  if (queryNorm !== undefined) check(op, "queryNorm", queryNorm, dtype, spec.headDim);
  if (keyNorm !== undefined) check(op, "keyNorm", keyNorm, dtype, spec.headDim);
  disjoint(op, qkv, { keys: cache.keys, values: cache.values, cosSin, queryNorm, keyNorm }, "qkv");
  return { ...shape, rotaryDim: checkCosSin(op, cosSin, spec.headDim) };
}

export function checkAttention(
  dtype: FloatDType,
  out: Tensor,
  qkv: Tensor,
  cache: LayerCache,
  batch: BatchTensors,
  spec: AttentionSpec,
) {
  const op = "attention";
  const shape = checkQkvAndCache(op, dtype, qkv, cache, batch.blockSize, spec);
  check(op, "out", out, dtype, shape.tokens, spec.numHeads * spec.headDim);
  check(op, "cuSeqlensQ", batch.cuSeqlensQ, "int32", batch.numRows + 1);
  check(op, "contextLens", batch.contextLens, "int32", batch.numRows);
  check(op, "rowSlots", batch.rowSlots, "int32", batch.numRows);
  check(op, "blockTables", batch.blockTables, "int32", "S", "max blocks");
  invariant(
    batch.numTokens === shape.tokens,
    `${op}: batch of ${batch.numTokens} tokens, qkv of ${shape.tokens}`,
  );
  invariant(batch.decodeRows <= batch.numRows, `${op}: ${batch.decodeRows} decode rows of ${batch.numRows}`);
  invariant(spec.window >= 0, `${op}: window ${spec.window}`);
  disjoint(op, out, { qkv, keys: cache.keys, values: cache.values });
  return { ...shape, maxBlocks: batch.blockTables.dim(1) };
}

/** Slots S and the tokens L that each holds. */
function checkProgress(op: string, { tokens, lengths, numComputedTokens }: SlotTensors) {
  check(op, "slots.tokens", tokens, "int32", "S", "L");
  const [slots, capacity] = [tokens.dim(0), tokens.dim(1)];
  check(op, "slots.lengths", lengths, "int32", slots);
  check(op, "slots.numComputedTokens", numComputedTokens, "int32", slots);
  return { slots, capacity };
}

export function checkJoinSlots(slots: SlotTensors, joins: Tensor) {
  const op = "joinSlots";
  check(op, "joins", joins, "int32", "N", JOIN_WORDS);
  const { slots: count, capacity } = checkProgress(op, slots);
  check(op, "slots.params", slots.params, "uint32", count, SLOT_WORDS);
  check(op, "slots.counts", slots.counts, "uint32", count, "V");
  return { joins: joins.dim(0), slots: count, capacity, vocab: slots.counts.dim(1) };
}

export function checkPrepareBatch(
  batch: BatchTensors,
  samples: SampleRows,
  rows: Tensor,
  slots: SlotTensors,
) {
  const op = "prepareBatch";
  const { numTokens: tokens, numRows } = batch;
  check(op, "tokenIds", batch.tokenIds, "int32", tokens);
  check(op, "positions", batch.positions, "int32", tokens);
  check(op, "slotMapping", batch.slotMapping, "int32", tokens);
  check(op, "cuSeqlensQ", batch.cuSeqlensQ, "int32", numRows + 1);
  check(op, "contextLens", batch.contextLens, "int32", numRows);
  check(op, "rowSlots", batch.rowSlots, "int32", numRows);
  check(op, "samples.slots", samples.slots, "int32", "N");
  const numSamples = samples.slots.dim(0);
  check(op, "samples.positions", samples.positions, "int32", numSamples);
  check(op, "samples.tokenIndices", samples.tokenIndices, "int32", numSamples);
  invariant(numSamples <= numRows, `${op}: ${numSamples} samples of ${numRows} rows`);
  check(op, "rows", rows, "int32", numRows, ROW_WORDS);
  const { slots: count, capacity } = checkProgress(op, slots);
  check(op, "slots.blockTables", slots.blockTables, "int32", count, "max blocks");
  const maxBlocks = slots.blockTables.dim(1);
  return { tokens, numRows, numSamples, slots: count, capacity, maxBlocks, blockSize: batch.blockSize };
}

const FOUR_BYTES = ["int32", "uint32", "float32"] as const;

export function checkScatter(target: Tensor, indices: Tensor, values: Tensor) {
  const op = "scatter";
  invariant(
    FOUR_BYTES.some((dtype) => dtype === target.dtype),
    `${op}: target is ${target}`,
  );
  check(op, "indices", indices, "int32", "N");
  check(op, "values", values, FOUR_BYTES, indices.dim(0));
  disjoint(op, target, { indices, values }, "target");
  return { count: indices.dim(0) };
}

function checkSampleRows(op: string, logits: Tensor, samples: SampleRows, slots: SlotTensors) {
  check(op, "logits", logits, "float32", "N", "V");
  const [rows, vocab] = [logits.dim(0), logits.dim(1)];
  check(op, "samples.slots", samples.slots, "int32", rows);
  check(op, "samples.positions", samples.positions, "int32", rows);
  const { slots: count, capacity } = checkProgress(op, slots);
  check(op, "slots.params", slots.params, "uint32", count, SLOT_WORDS);
  check(op, "slots.counts", slots.counts, "uint32", count, vocab);
  return { rows, vocab, slots: count, capacity };
}

export function checkProcessLogits(out: Tensor, logits: Tensor, samples: SampleRows, slots: SlotTensors) {
  const op = "processLogits";
  const shape = checkSampleRows(op, logits, samples, slots);
  check(op, "slots.edits", slots.edits, "uint32", shape.slots, MAX_LOGIT_EDITS, LOGIT_EDIT_WORDS);
  check(op, "slots.badWords", slots.badWords, "uint32", shape.slots, MAX_BAD_WORD_TOKENS);
  check(op, "slots.allowed", slots.allowed, "uint32", shape.slots, Math.ceil(shape.vocab / 32));
  check(op, "out", out, "float32", shape.rows, shape.vocab);
  sameOrDisjoint(op, out, logits, "logits");
  return shape;
}

export function checkSample(out: Tensor, logits: Tensor, samples: SampleRows, slots: SlotTensors) {
  const op = "sample";
  const shape = checkSampleRows(op, logits, samples, slots);
  check(op, "out", out, "int32", shape.rows);
  disjoint(op, out, { logits, "samples.slots": samples.slots, "samples.positions": samples.positions });
  return shape;
}

export function checkLogprobs(out: LogprobTensors, logits: Tensor, tokens: Tensor) {
  const op = "logprobs";
  check(op, "logits", logits, "float32", "R", "V");
  const [rows, vocab] = [logits.dim(0), logits.dim(1)];
  check(op, "tokens", tokens, "int32", rows);
  check(op, "chosen", out.chosen, "float32", rows);
  check(op, "ranks", out.ranks, "int32", rows);
  check(op, "topIds", out.topIds, "int32", rows, "K");
  const top = out.topIds.dim(1);
  check(op, "topLogprobs", out.topLogprobs, "float32", rows, top);
  invariant(top <= vocab, `${op}: the ${top} most likely of ${vocab} tokens`);
  for (const name of ["chosen", "ranks", "topIds", "topLogprobs"] as const) {
    disjoint(op, out[name], { logits, tokens }, name);
  }
  return { rows, vocab, top };
}
