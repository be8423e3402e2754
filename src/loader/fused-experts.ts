import { ModelDataError } from "../base/errors.ts";
import { quoted } from "../base/quoted.ts";
import type { CheckpointTensor } from "./checkpoint-tensor.ts";
import { FLOATS } from "./stored-dtype.ts";

/** An expert's projections by the tensor that holds them for all experts. */
const PROJECTIONS = { gate_up_proj: ["gate_proj", "up_proj"], down_proj: ["down_proj"] } as const;
/** The most experts of a tensor, as many as a config may have, and the most matrices of all: a file's counts may be of empty ones. */
const MAX_EXPERTS = 4096;
const MAX_MATRICES = 2 ** 18;
const FUSED = /^(.*\.experts)\.(gate_up_proj|down_proj)(?:_(blocks|scales|bias|scale_inv))?$/;
/** Rows of a matrix that a row of `scale_inv` is for. */
const BLOCK_ROWS = 128;

/**
 * Tensors by the names that a checkpoint with one matrix an expert has, of one in which a tensor holds those of all experts of a layer.
 * An expert's matrices are parts of the file, so nothing is read for that.
 *
 * - transformers 5 may store `experts.gate_up_proj` [E, 2I, H], of each expert the rows of the gate before those of the up projection,
 *   and `experts.down_proj` [E, H, I]: they become `experts.0.gate_proj.weight` and so on.
 * - quantised to FP8 they have factors beside them, `…_scale_inv` [E, 2I/128, H/128], or [E, 1, 1] for all of an expert's matrix: they
 *   become `experts.0.gate_proj.weight_scale_inv` and so on.
 * - gpt-oss has `…_blocks` [E, N, K/32, 16], `…_scales` [E, N, K/32] and `…_bias` [E, N], and rows of gate and up take turns: they become
 *   `experts.0.gate_proj.blocks` [I, K/2] and so on.
 * - gpt-oss in floats has `experts.gate_up_proj` [E, H, 2I], whose columns of gate and up take turns, and `experts.down_proj` [E, I, H], each
 *   with a bias as above: columns become rows.
 *
 * @throws ModelDataError for such a tensor of another shape or dtype, for too many, and for an expert's matrix that is there twice
 */
export function splitFusedExperts(
  tensors: ReadonlyMap<string, CheckpointTensor>,
): ReadonlyMap<string, CheckpointTensor> {
  const split = new Map<string, CheckpointTensor>();
  for (const [name, tensor] of tensors) {
    const [, experts, fused, part] = FUSED.exec(name) ?? [];
    if (experts === undefined) {
      split.set(name, tensor);
      continue;
    }
    const projections = PROJECTIONS[fused as keyof typeof PROJECTIONS];
    // Floats with a bias beside them are gpt-oss's.
    const isTransposed = part === undefined && tensors.has(`${name}_bias`);
    const isScale = part === "scale_inv";
    if (isScale) checkScaleRows(name, tensor, tensors.get(`${experts}.${fused}`), projections.length);
    const parts = isTransposed
      ? columnsOf(name, tensor, projections.length)
      : partsOf(name, tensor, projections.length, part);
    for (const [expert, i, matrix] of parts) {
      const own = `${experts}.${expert}.${projections[i]}.${isScale ? "weight_scale_inv" : (part ?? "weight")}`;
      if (split.has(own) || tensors.has(own))
        throw invalid(name, tensor, `has ${quoted(own)}, which is there, too`);
      split.set(own, matrix);
      if (split.size > MAX_MATRICES)
        throw invalid(name, tensor, `is one of experts with more than ${MAX_MATRICES} matrices together`);
    }
  }
  return split;
}

function invalid(name: string, { file }: CheckpointTensor, rule: string): ModelDataError {
  return new ModelDataError(file.path, `tensor ${quoted(name)} ${rule}`);
}

/** @throws ModelDataError for factors of which some are for rows of two projections */
function checkScaleRows(
  name: string,
  scales: CheckpointTensor,
  weight: CheckpointTensor | undefined,
  projections: number,
): void {
  const rows = (weight?.shape[1] ?? 0) / projections;
  if (projections === 1 || isOfAll(scales) || rows % BLOCK_ROWS === 0) return;
  const blocks = `blocks of ${BLOCK_ROWS} rows`;
  throw invalid(name, scales, `is for ${blocks}, which hold rows of two matrices of ${rows}`);
}

/** True for one factor for each expert's matrix, both projections. */
function isOfAll({ shape }: CheckpointTensor): boolean {
  return shape.length === 3 && shape[1] === 1 && shape[2] === 1;
}

/** An expert's projection, by number, and the tensor of it. */
type ExpertPart = [expert: number, projection: number, part: CheckpointTensor];

/** @throws ModelDataError for what is no matrix of floats an expert */
function* columnsOf(name: string, tensor: CheckpointTensor, projections: number): Generator<ExpertPart> {
  const { shape, begin, end, ...stored } = tensor;
  const [count = 0, inputs = 0, width = 0] = shape;
  const rows = width / projections;
  if (shape.length !== 3 || shape.includes(0) || !Number.isInteger(rows))
    throw invalid(name, tensor, `is [${shape.join(", ")}], expected [experts, columns, rows]`);
  if (count > MAX_EXPERTS) throw tooMany(name, tensor, count);
  if (!FLOATS.has(stored.dtype)) throw invalid(name, tensor, `is ${stored.dtype}, expected floats`);
  const bytes = (end - begin) / count;
  for (let expert = 0; expert < count; expert++) {
    const place = { begin: begin + expert * bytes, end: begin + (expert + 1) * bytes, shape: [rows, inputs] };
    for (let i = 0; i < projections; i++)
      yield [expert, i, { ...stored, ...place, transposed: { start: i, stride: projections } }];
  }
}

function tooMany(name: string, tensor: CheckpointTensor, count: number): ModelDataError {
  return invalid(name, tensor, `is of ${count} experts, at most ${MAX_EXPERTS} are allowed`);
}

/** @param part undefined for the matrices, else `scale_inv`, or gpt-oss's `blocks`, `scales` or `bias` */
function* partsOf(
  name: string,
  tensor: CheckpointTensor,
  projections: number,
  part: string | undefined,
): Generator<ExpertPart> {
  const { shape, begin, end, ...stored } = tensor;
  const [count = 0, height = 0, ...inner] = shape;
  const isShared = part === "scale_inv" && isOfAll(tensor);
  const rows = isShared ? 1 : height / projections;
  // Pieces of 32 columns may have a dimension of their own.
  const ranks = part === "blocks" ? [3, 4] : part === "bias" ? [2] : [3];
  if (!ranks.includes(shape.length) || shape.includes(0) || !Number.isInteger(rows))
    throw invalid(
      name,
      tensor,
      `is [${shape.join(", ")}], expected [experts, rows${part === "bias" ? "" : ", columns"}]`,
    );
  if (count > MAX_EXPERTS) throw tooMany(name, tensor, count);
  if ((part === "blocks" || part === "scales") && stored.dtype !== "U8")
    throw invalid(name, tensor, `is ${stored.dtype}, expected U8`);
  const own = part === "bias" ? [rows] : [rows, inner.reduce((product, extent) => product * extent, 1)];
  const bytes = (end - begin) / count;
  const takeTurns = part !== undefined && part !== "scale_inv" && projections > 1;
  for (let expert = 0; expert < count; expert++) {
    const from = begin + expert * bytes;
    for (let i = 0; i < projections; i++) {
      if (isShared) {
        yield [expert, i, { ...stored, shape: [1], begin: from, end: from + bytes }];
        continue;
      }
      const rowBytes = (projections * bytes) / height;
      const place = takeTurns
        ? { begin: from, end: from + bytes, within: { rowBytes, start: (i * rowBytes) / projections } }
        : { begin: from + (i * bytes) / projections, end: from + ((i + 1) * bytes) / projections };
      yield [expert, i, { ...stored, shape: own, ...place }];
    }
  }
}
