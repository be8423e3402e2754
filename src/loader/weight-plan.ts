import type { Tensor } from "../backend/tensor.ts";
import { type DType, dtypeSize, type FloatDType } from "../base/dtype.ts";
import { invariant, UnsupportedModelError } from "../base/errors.ts";
import type { ParameterSource, ParameterSpec } from "../base/parameter-spec.ts";
import type { Reading } from "../base/reading.ts";
import type { Span } from "../base/shard.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { bytesReadOfRow, type ChunkRead, elementsOf, isContiguous } from "./chunk-reader.ts";
import { formOf, type RowsRead } from "./rows-read.ts";
import { LOADABLE, unitOf } from "./stored-dtype.ts";

/** A read, and the elements of a parameter, one-dimensional, that it becomes. */
export interface WeightChunk {
  readonly read: ChunkRead | RowsRead;
  readonly target: Tensor;
}

/** A parameter and the reads that make it up, in order. */
export interface ParameterPlan {
  readonly spec: ParameterSpec;
  readonly reads: readonly (ChunkRead | RowsRead)[];
}

/** Plans whole sources; `splitReads` cuts them up. Every tensor must be in the checkpoint, as `spec` says. */
export function planParameter(
  checkpoint: Checkpoint,
  spec: ParameterSpec,
  defaultDtype: FloatDType,
): ParameterPlan {
  const dtype = spec.dtype ?? defaultDtype;
  const reads = spec.sources.flatMap(({ reading, ...source }): (ChunkRead | RowsRead)[] => {
    const given = reading ?? transposedReading(checkpoint, source, dtype as FloatDType);
    return given === undefined
      ? planReads(checkpoint, source, dtype as FloatDType)
      : [planRows(checkpoint, source.name, given, dtype)];
  });
  const found = reads.reduce((sum, read) => sum + elementsOf(read), 0);
  const wanted = product(spec.shape);
  invariant(found === wanted, `${spec.name}: sources have ${found} of ${wanted} elements`);
  return { spec, reads };
}

/** Undefined for a tensor whose rows are rows of the file. */
function transposedReading(
  checkpoint: Checkpoint,
  { name, shape, slice, affine }: ParameterSource,
  dtype: FloatDType,
): Reading | undefined {
  const { transposed } = checkpoint.tensors.get(name)!;
  if (transposed === undefined) return undefined;
  invariant(affine === undefined, `${name}: values of a matrix are what is stored`);
  const [rows, columns] = shape.map((end, dim) => (slice?.dim === dim ? slice : { start: 0, end })) as [
    Span,
    Span,
  ];
  return { kind: "transposed", dtype, ...transposed, rows, columns };
}

function planRows(checkpoint: Checkpoint, name: string, reading: Reading, targetDtype: DType): RowsRead {
  const { file, dtype, shape, begin, end, pairedRows, within, transposed } = checkpoint.tensors.get(name)!;
  if (transposed !== undefined && reading.kind !== "transposed")
    throw new UnsupportedModelError(
      file.path,
      `tensor "${name}" has columns for rows, and cannot be quantised while it is loaded`,
    );
  const form = formOf(reading);
  invariant(form.dtype === targetDtype, `${name}: rows of ${form.dtype} for a parameter of ${targetDtype}`);
  const mayBePaired = ["blocks", "superblocks", "float8"].includes(reading.kind);
  invariant(pairedRows === undefined || mayBePaired, `${name}: rows in another order`);
  invariant(within === undefined || reading.kind === "bytes", `${name}: rows within longer ones`);
  const stored = checkpoint.format.storedName(name);
  const tensor = { name: stored, path: file.path, fd: file.fd, dtype, shape, begin, end, pairedRows, within };
  return { reading, tensor, rows: { start: 0, end: form.count } };
}

function planReads(checkpoint: Checkpoint, source: ParameterSource, targetDtype: FloatDType): ChunkRead[] {
  const tensor = checkpoint.tensors.get(source.name)!;
  const dtype = LOADABLE.get(tensor.dtype)!;
  const [rows = 1, ...inner] = source.shape;
  const { dim, start, end } = source.slice ?? { dim: 0, start: 0, end: rows };
  const extent = source.shape[dim];
  const what = `slice [${start}, ${end}) of dimension ${dim} of ${source.name} [${source.shape}]`;
  invariant(source.shape.length === 0 || (extent !== undefined && 0 <= start && end <= extent), what);
  const unit = unitOf(dtype);
  const rowBytes = (product(inner) / unit.elements) * unit.bytes;
  const whole = { begin: tensor.begin, end: tensor.end, columnBegin: 0, columnEnd: rowBytes };
  const { affine } = source;
  const common = {
    name: checkpoint.format.storedName(source.name),
    path: tensor.file.path,
    fd: tensor.file.fd,
    ...whole,
    rowBytes,
    dtype,
    targetDtype,
    affine,
  };
  if (dim === 0) {
    if (tensor.within !== undefined) {
      const { rowBytes: longer, start: columnBegin } = tensor.within;
      const [first, last] = [tensor.begin + start * longer, tensor.begin + end * longer];
      const columns = { columnBegin, columnEnd: columnBegin + rowBytes };
      return [{ ...common, ...columns, rowBytes: longer, begin: first, end: last }];
    }
    if (tensor.pairedRows !== undefined) return pairedReads(common, tensor.pairedRows, start, end);
    return [{ ...common, begin: tensor.begin + start * rowBytes, end: tensor.begin + end * rowBytes }];
  }
  invariant(
    tensor.pairedRows === undefined && tensor.within === undefined,
    `${what}, whose rows are in another order`,
  );
  // Whole blocks are read; where a slice begins or ends within one, what is decoded of it is trimmed.
  const [first, last] = [start, end].map((column) => column * product(inner.slice(1)));
  const columnBegin = Math.floor(first! / unit.elements);
  const skipped = first! - columnBegin * unit.elements;
  const columns = {
    columnBegin: columnBegin * unit.bytes,
    columnEnd: Math.ceil(last! / unit.elements) * unit.bytes,
  };
  const isWhole = skipped === 0 && last! % unit.elements === 0;
  const trim = { start: skipped, end: skipped + last! - first! };
  return [{ ...common, ...columns, ...(!isWhole && { trim }) }];
}

/**
 * Reads of rows `[start, end)` of a tensor whose groups of `size` rows are stored as pairs: row i of a group's first half, then
 * row i of its second. Seen as rows twice as long, each half is their left or right half.
 */
function pairedReads(rows: ChunkRead, size: number, start: number, end: number): ChunkRead[] {
  const { begin, rowBytes } = rows;
  invariant(
    start % size === 0 && end % size === 0,
    `${rows.path}: [${start}, ${end}) cuts groups of ${size}`,
  );
  const reads: ChunkRead[] = [];
  for (let row = start; row < end; row += size) {
    const group = { ...rows, begin: begin + row * rowBytes, end: begin + (row + size) * rowBytes };
    for (const side of [0, rowBytes])
      reads.push({ ...group, rowBytes: 2 * rowBytes, columnBegin: side, columnEnd: side + rowBytes });
  }
  return reads;
}

/** Cuts the reads of all parameters into chunks that take at most `chunkBytes` before and after conversion. */
export function* splitReads(
  plans: readonly ParameterPlan[],
  weights: ReadonlyMap<string, Tensor>,
  chunkBytes: number,
): Generator<WeightChunk> {
  for (const { spec, reads } of plans) {
    const parameter = weights.get(spec.name)!;
    const elements = parameter.reshape(parameter.size);
    let at = 0;
    for (const read of reads) {
      if ("reading" in read) {
        for (const rows of splitRows(read, chunkBytes)) {
          const count = elementsOf(rows);
          yield { read: rows, target: elements.rows(at, at + count) };
          at += count;
        }
        continue;
      }
      const step = stepBytes(read, chunkBytes);
      for (let begin = read.begin; begin < read.end; begin += step) {
        const chunk = { ...read, begin, end: Math.min(begin + step, read.end) };
        const count = elementsOf(chunk);
        yield { read: chunk, target: elements.rows(at, at + count) };
        at += count;
      }
    }
  }
}

function stepBytes(read: ChunkRead, chunkBytes: number): number {
  const unit = unitOf(read.dtype);
  const decodedBytes = unit.elements * dtypeSize(read.targetDtype);
  const maxBytes = Math.floor(chunkBytes / Math.max(unit.bytes, decodedBytes)) * unit.bytes;
  if (isContiguous(read)) return maxBytes;
  // A row is never split when only some of its columns are wanted.
  const bytes = bytesReadOfRow(read);
  invariant(bytes <= maxBytes, `${read.path}: rows of ${bytes} bytes exceed a chunk`);
  return Math.floor(maxBytes / bytes) * read.rowBytes;
}

function* splitRows(read: RowsRead, chunkBytes: number): Generator<RowsRead> {
  const { cost, step } = formOf(read.reading);
  const most = Math.floor(chunkBytes / cost);
  invariant(most > 0, `${read.tensor.name}: a row of ${cost} bytes exceeds a chunk`);
  const count = most < step ? most : most - (most % step);
  const { start, end } = read.rows;
  for (let row = start; row < end; row += count)
    yield { ...read, rows: { start: row, end: Math.min(row + count, end) } };
}

function product(extents: readonly number[]): number {
  return extents.reduce((size, extent) => size * extent, 1);
}
