import type { FloatDType } from "../base/dtype.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../base/sampling-params.ts";
import { type AttentionSpec, type ProjectionNormSpec, projectedHeads } from "./attention-spec.ts";
import {
  type BatchTensors,
  JOIN_WORDS,
  type LayerCache,
  type LinearFusion,
  type LmHead,
  LOGIT_EDIT_WORDS,
  type LogprobTensors,
  type SampleRows,
  SLOT_WORDS,
  type SlotTensors,
  type StepAreas,
  type StepBatch,
} from "./backend.ts";
import {
  check,
  checkWeight,
  disjoint,
  disjointFromWeight,
  refuse,
  sameOrDisjoint,
} from "./operand-checks.ts";
import { rowWords } from "./row-words.ts";
import type { Tensor } from "./tensor.ts";
import type { Weight } from "./weight.ts";

/**
 * The checks before an op runs, the same for every backend: dtypes, shapes and overlap. One function an op; each throws `InvariantError` that names the op and the tensor, and returns the extents that the op works with.
 * A step runs hundreds of ops, so messages are built only when a check fails.
 */

export function checkCopy(target: Tensor, source: Tensor) {
  check("copy", "source", source, target.dtype, ...target.shape);
  disjoint("copy", target, { source }, "target");
}

export function checkRotaryTable(out: Tensor, frequencies: Tensor) {
  const op = "rotaryTable";
  check(op, "frequencies", frequencies, "float32", "H");
  const half = frequencies.dim(0);
  check(op, "out", out, "float32", "P", 2 * half);
  disjoint(op, out, { frequencies });
  return { positions: out.dim(0), half };
}

/** @param kept other dtypes that the table may have; see `Backend.matrixDtypes` */
export function checkEmbedding(
  dtype: FloatDType,
  out: Tensor,
  table: Tensor,
  ids: Tensor,
  kept: readonly FloatDType[] = [],
) {
  const op = "embedding";
  check(op, "table", table, [dtype, ...kept], "V", "H");
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

export function checkAllReduceAdd(dtype: FloatDType, residual: Tensor, branch: Tensor) {
  const op = "allReduceAdd";
  check(op, "residual", residual, dtype, "T", "H");
  check(op, "branch", branch, dtype, residual.dim(0), residual.dim(1));
  disjoint(op, residual, { branch }, "residual");
}

export function checkGatherColumns(out: Tensor, part: Tensor, ranks: number) {
  const op = "gatherColumns";
  check(op, "part", part, "float32", "N", "V / ranks");
  const [rows, width] = [part.dim(0), part.dim(1)];
  check(op, "out", out, "float32", rows, ranks * width);
  disjoint(op, out, { part });
  return { rows, width };
}

/** `m` tokens, `n` outputs of the product, `k` inputs. */
export function checkLinear(
  dtype: FloatDType,
  out: Tensor,
  x: Tensor,
  weight: Weight,
  { norm, bias, activation, addTo }: LinearFusion,
  kept: readonly FloatDType[] = [],
) {
  const op = "linear";
  check(op, "x", x, dtype, "T", "K");
  const [m, k] = [x.dim(0), x.dim(1)];
  const n = weight.shape[0];
  checkWeight(op, "weight", weight, [dtype, ...kept], n, k);
  if (norm !== undefined) check(op, "norm.weight", norm.weight, dtype, k);
  if (bias !== undefined) check(op, "bias", bias, dtype, n);
  if (activation !== undefined && addTo !== undefined) refuse(op, `an activation and a sum`);
  if (addTo !== undefined) check(op, "addTo", addTo, dtype, m, n);
  const plain = bias === undefined && activation === undefined && addTo === undefined;
  check(op, "out", out, plain ? [dtype, "float32"] : dtype, m, activation?.gated ? n / 2 : n);
  disjoint(op, out, { x, norm: norm?.weight, bias });
  disjointFromWeight(op, out, weight);
  if (addTo !== undefined) sameOrDisjoint(op, out, addTo, "addTo");
  return { m, n, k };
}

export function checkRmsNorm(
  dtype: FloatDType,
  out: Tensor,
  x: Tensor,
  weight: Tensor,
  addTo?: Tensor,
  scale?: Tensor,
) {
  const op = "rmsNorm";
  const shape = checkNorm(op, dtype, out, x, weight);
  if (scale !== undefined) {
    check(op, "scale", scale, "float32", 1);
    disjoint(op, out, { scale });
    if (addTo === undefined) refuse(op, "a scale of a sum without one");
  }
  if (addTo === undefined) return shape;
  check(op, "addTo", addTo, dtype, shape.tokens, shape.width);
  sameOrDisjoint(op, out, addTo, "addTo");
  return shape;
}

export function checkLayerNorm(
  dtype: FloatDType,
  out: Tensor,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
) {
  return checkNorm("layerNorm", dtype, out, x, weight, bias);
}

function checkNorm(op: string, dtype: FloatDType, out: Tensor, x: Tensor, weight: Tensor, bias?: Tensor) {
  check(op, "x", x, dtype, "T", "H");
  const [tokens, width] = [x.dim(0), x.dim(1)];
  check(op, "weight", weight, dtype, width);
  if (bias !== undefined) check(op, "bias", bias, dtype, width);
  check(op, "out", out, dtype, tokens, width);
  disjoint(op, out, { x, weight, bias });
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

export function checkMultiplyColumns(dtype: FloatDType, x: Tensor, factors: Tensor, start: number) {
  const op = "multiplyColumns";
  check(op, "x", x, dtype, "T", "I");
  const [tokens, width] = [x.dim(0), x.dim(1)];
  check(op, "factors", factors, dtype, tokens, "W");
  const stride = factors.dim(1);
  if (!(start >= 0 && start + width <= stride)) refuse(op, `${width} columns from ${start} on, of ${stride}`);
  disjoint(op, x, { factors }, "x");
  return { tokens, width, stride };
}

/** Tokens T, and the widths of all queries and of all keys of a token. */
export function checkNormProjections(dtype: FloatDType, qkv: Tensor, { query, key }: ProjectionNormSpec) {
  const op = "normProjections";
  check(op, "query", query, dtype, "NQ·D");
  check(op, "key", key, dtype, "NKV·D");
  const [queryWidth, keyWidth] = [query.dim(0), key.dim(0)];
  check(op, "qkv", qkv, dtype, "T", queryWidth + 2 * keyWidth);
  disjoint(op, qkv, { query, key }, "qkv");
  return { tokens: qkv.dim(0), queryWidth, keyWidth };
}

/** Tokens T, blocks B and their size, the rotated dimensions, and entries of a block table. */
export function checkAttend(
  dtype: FloatDType,
  out: Tensor,
  qkv: Tensor,
  { keys, values, keyScale = 1, valueScale = 1 }: LayerCache,
  batch: BatchTensors,
  spec: AttentionSpec,
) {
  const op = "attend";
  const { numHeads, numKvHeads, headDim, cosSin, queryScales, headNorm, softCap, sinks, window } = spec;
  const { numRows, decodeRows, blockSize } = batch;
  // Also for 0 key/value heads, where the remainder is NaN.
  if (numHeads % numKvHeads !== 0) refuse(op, `${numHeads} query heads over ${numKvHeads}`);
  check(op, "qkv", qkv, dtype, "T", projectedHeads(spec) * headDim);
  const tokens = qkv.dim(0);
  if (batch.numTokens !== tokens) refuse(op, `batch of ${batch.numTokens} tokens, qkv of ${tokens}`);
  check(op, "out", out, dtype, tokens, numHeads * headDim);
  check(op, "keys", keys, [dtype, "float8_e4m3"], "B", numKvHeads, blockSize, headDim);
  check(op, "values", values, keys.dtype, ...keys.shape);
  for (const scale of [keyScale, valueScale]) {
    const isOfDtype = keys.dtype === "float8_e4m3" ? scale > 0 && Number.isFinite(scale) : scale === 1;
    if (!isOfDtype) refuse(op, `a scale of ${scale} for ${keys.dtype}`);
  }
  check(op, "positions", batch.positions, "int32", tokens);
  check(op, "slotMapping", batch.slotMapping, "int32", tokens);
  check(op, "cuSeqlensQ", batch.cuSeqlensQ, "int32", numRows + 1);
  check(op, "contextLens", batch.contextLens, "int32", numRows);
  check(op, "rowSlots", batch.rowSlots, "int32", numRows);
  check(op, "blockTables", batch.blockTables, "int32", "S", "max blocks");
  if (decodeRows > numRows) refuse(op, `${decodeRows} decode rows of ${numRows}`);
  if (cosSin !== undefined) check(op, "cosSin", cosSin, "float32", "positions", "rotaryDim");
  if (queryScales !== undefined) check(op, "queryScales", queryScales, "float32", "positions");
  if (sinks !== undefined) check(op, "sinks", sinks, "float32", numHeads);
  if (softCap !== undefined && !(softCap > 0 && softCap < Infinity)) refuse(op, `softCap ${softCap}`);
  const rotaryDim = cosSin?.dim(1) ?? 0;
  if (rotaryDim % 2 !== 0 || rotaryDim > headDim) refuse(op, `rotaryDim ${rotaryDim}, headDim ${headDim}`);
  if (headNorm !== undefined) {
    check(op, "headNorm.query", headNorm.query, dtype, headDim);
    if (headNorm.key !== undefined) check(op, "headNorm.key", headNorm.key, dtype, headDim);
    else if (!spec.readsOnly) refuse(op, "keys without a norm beside queries with one");
  }
  if (!(window >= 0)) refuse(op, `window ${window}`);
  disjoint(op, out, { qkv, keys, values, sinks });
  const { query, key } = headNorm ?? {};
  disjoint(op, qkv, { keys, values, cosSin, queryScales, sinks, query, key }, "qkv");
  return { tokens, blocks: keys.dim(0), blockSize, rotaryDim, maxBlocks: batch.blockTables.dim(1) };
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
  batch: StepBatch,
  samples: SampleRows,
  inbox: StepAreas,
  slots: SlotTensors,
) {
  const op = "prepareBatch";
  const { numTokens: tokens, numRows, slotMappings } = batch;
  check(op, "tokenIds", batch.tokenIds, "int32", tokens);
  check(op, "positions", batch.positions, "int32", tokens);
  check(op, "slotMappings", slotMappings, "int32", "G", "T at least");
  const [groups, mappingStride] = [slotMappings.dim(0), slotMappings.dim(1)];
  if (groups === 0 || mappingStride < tokens) refuse(op, `slotMappings ${slotMappings} of ${tokens} tokens`);
  check(op, "cuSeqlensQ", batch.cuSeqlensQ, "int32", numRows + 1);
  check(op, "contextLens", batch.contextLens, "int32", numRows);
  check(op, "rowSlots", batch.rowSlots, "int32", numRows);
  check(op, "samples.slots", samples.slots, "int32", "N");
  const numSamples = samples.slots.dim(0);
  check(op, "samples.positions", samples.positions, "int32", numSamples);
  check(op, "samples.tokenIndices", samples.tokenIndices, "int32", numSamples);
  if (numSamples > numRows) refuse(op, `${numSamples} samples of ${numRows} rows`);
  const { areas, areaWords } = checkStepAreas(op, "inbox", inbox, numRows * rowWords(groups));
  const { slots: count, capacity } = checkProgress(op, slots);
  check(op, "slots.blockTables", slots.blockTables, "int32", groups, count, "max blocks");
  const maxBlocks = slots.blockTables.dim(2);
  const { blockSize } = batch;
  return {
    ...{ tokens, numRows, numSamples, slots: count, capacity, maxBlocks, blockSize, areas, areaWords },
    ...{ groups, mappingStride },
  };
}

const FOUR_BYTES = ["int32", "uint32", "float32"] as const;

/** Areas of at least `least` words. */
function checkStepAreas(op: string, name: string, { steps, areas }: StepAreas, least: number) {
  check(op, "steps", steps, "uint32", 1);
  check(op, name, areas, "int32", "A", "W");
  const [count, words] = [areas.dim(0), areas.dim(1)];
  if (count === 0 || (count & (count - 1)) !== 0) refuse(op, `${name} of ${count} areas, no power of two`);
  if (words < least) refuse(op, `${name} has ${words} words an area, ${least} are needed`);
  return { areas: count, areaWords: words };
}

export function checkPost(outbox: StepAreas, results: Tensor) {
  const op = "post";
  check(op, "results", results, FOUR_BYTES, "N");
  disjoint(op, outbox.areas, { results, steps: outbox.steps }, "outbox");
  return { ...checkStepAreas(op, "outbox", outbox, results.size), count: results.size };
}

export function checkScatter(target: Tensor, indices: Tensor, values: Tensor) {
  const op = "scatter";
  if (!FOUR_BYTES.some((dtype) => dtype === target.dtype)) refuse(op, `target is ${target}`);
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

export function checkCapLogits(logits: Tensor, cap: number) {
  const op = "capLogits";
  check(op, "logits", logits, "float32", "N", "V");
  checkCap(op, cap);
  return { count: logits.size };
}

function checkCap(op: string, cap: number) {
  if (!(cap > 0 && Number.isFinite(cap))) refuse(op, `a cap of ${cap}`);
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

export function checkSample(
  out: Tensor,
  logits: Tensor,
  processed: Tensor,
  samples: SampleRows,
  slots: SlotTensors,
) {
  const op = "sample";
  const shape = checkSampleRows(op, logits, samples, slots);
  check(op, "processed", processed, "float32", shape.rows, shape.vocab);
  check(op, "out", out, "int32", shape.rows);
  const { slots: rowSlots, positions } = samples;
  disjoint(op, out, { logits, processed, "samples.slots": rowSlots, "samples.positions": positions });
  return shape;
}

export function checkDrawTokens(
  dtype: FloatDType,
  out: Tensor,
  hidden: Tensor,
  { weight, norm, softCap }: LmHead,
  logits: Tensor,
  samples: SampleRows,
  slots: SlotTensors,
  ranks = 1,
  kept: readonly FloatDType[] = [],
) {
  const op = "drawTokens";
  const shape = checkSampleRows(op, logits, samples, slots);
  check(op, "hidden", hidden, dtype, shape.rows, "H");
  const width = hidden.dim(1);
  checkWeight(op, "head.weight", weight, [dtype, ...kept], shape.vocab / ranks, width);
  if (norm !== undefined) check(op, "head.norm.weight", norm.weight, dtype, width);
  if (softCap !== undefined) checkCap(op, softCap);
  check(op, "out", out, "int32", shape.rows);
  const read = { hidden, norm: norm?.weight };
  disjoint(op, logits, read, "logits");
  disjointFromWeight(op, logits, weight, "logits");
  disjointFromWeight(op, out, weight);
  const { slots: rowSlots, positions } = samples;
  disjoint(op, out, { ...read, logits, "samples.slots": rowSlots, "samples.positions": positions });
  return { ...shape, width };
}

export function checkLogprobs(out: LogprobTensors, logits: Tensor, tokens: Tensor, rows?: Tensor) {
  const op = "logprobs";
  check(op, "logits", logits, "float32", "N", "V");
  const [samples, vocab] = [logits.dim(0), logits.dim(1)];
  check(op, "tokens", tokens, "int32", samples);
  if (rows !== undefined) check(op, "rows", rows, "int32", "R");
  const count = rows?.dim(0) ?? samples;
  check(op, "chosen", out.chosen, "float32", count);
  check(op, "ranks", out.ranks, "int32", count);
  check(op, "topIds", out.topIds, "int32", count, "K");
  const top = out.topIds.dim(1);
  check(op, "topLogprobs", out.topLogprobs, "float32", count, top);
  if (top > vocab) refuse(op, `the ${top} most likely of ${vocab} tokens`);
  for (const name of ["chosen", "ranks", "topIds", "topLogprobs"] as const) {
    disjoint(op, out[name], { logits, tokens, rows }, name);
  }
  return { rows: count, samples, vocab, top };
}
