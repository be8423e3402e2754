import type { Tensor } from "../backend/tensor.ts";
import { type DType, dtypeSize, type FloatDType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { ParameterSource, ParameterSpec } from "../base/parameter-spec.ts";
import type { Reading } from "../base/reading.ts";
import { lengthOf } from "../base/shard.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { bytesReadOfRow, type ChunkRead, isContiguous } from "./chunk-reader.ts";
import { formOf, type RowsRead } from "./rows-read.ts";

/** Checkpoint dtypes that can be loaded. */
export const LOADABLE: ReadonlyMap<string, FloatDType> = new Map([
  ["F32", "float32"],
  ["BF16", "bfloat16"],
  ["F16", "float16"],
]);

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
  const reads = spec.sources.map(({ reading, ...source }) =>
    reading === undefined
      ? planRead(checkpoint, source, dtype as FloatDType)
      : planRows(checkpoint, source.name, reading, dtype),
  );
  const found = reads.reduce((sum, read) => sum + elementsOf(read), 0);
  const wanted = product(spec.shape);
  invariant(found === wanted, `${spec.name}: sources have ${found} of ${wanted} elements`);
  return { spec, reads };
}

function planRows(checkpoint: Checkpoint, name: string, reading: Reading, targetDtype: DType): RowsRead {
  const { file, dtype, shape, begin, end } = checkpoint.tensors.get(name)!;
  const form = formOf(reading);
  invariant(form.dtype === targetDtype, `${name}: rows of ${form.dtype} for a parameter of ${targetDtype}`);
  const tensor = { name, path: file.path, fd: file.fd, dtype, shape, begin, end };
  return { reading, tensor, rows: { start: 0, end: form.count } };
}

function planRead(checkpoint: Checkpoint, source: ParameterSource, targetDtype: FloatDType): ChunkRead {
  const tensor = checkpoint.tensors.get(source.name)!;
  const dtype = LOADABLE.get(tensor.dtype)!;
  const [rows = 1, ...inner] = source.shape;
  const { dim, start, end } = source.slice ?? { dim: 0, start: 0, end: rows };
  const extent = source.shape[dim];
  const what = `slice [${start}, ${end}) of dimension ${dim} of ${source.name} [${source.shape}]`;
  invariant(source.shape.length === 0 || (extent !== undefined && 0 <= start && end <= extent), what);
  const size = dtypeSize(dtype);
  const rowBytes = product(inner) * size;
  const whole = { begin: tensor.begin, end: tensor.end, columnBegin: 0, columnEnd: rowBytes };
  const common = { path: tensor.file.path, fd: tensor.file.fd, ...whole, rowBytes, dtype, targetDtype };
  if (dim === 0)
    return { ...common, begin: tensor.begin + start * rowBytes, end: tensor.begin + end * rowBytes };
  const columnBytes = product(inner.slice(1)) * size;
  return { ...common, columnBegin: start * columnBytes, columnEnd: end * columnBytes };
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
  const size = dtypeSize(read.dtype);
  const maxBytes = Math.floor(chunkBytes / Math.max(size, dtypeSize(read.targetDtype))) * size;
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

/** Elements of the parameter that a read gives. */
function elementsOf(read: ChunkRead | RowsRead): number {
  if ("reading" in read) return lengthOf(read.rows) * formOf(read.reading).width;
  const bytes = read.end - read.begin;
  const wanted = isContiguous(read) ? bytes : (bytes / read.rowBytes) * (read.columnEnd - read.columnBegin);
  return wanted / dtypeSize(read.dtype);
}

function product(extents: readonly number[]): number {
  return extents.reduce((size, extent) => size * extent, 1);
}
