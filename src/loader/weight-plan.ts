import type { Tensor } from "../backend/tensor.ts";
import { dtypeSize, type FloatDType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { ParameterSource, ParameterSpec } from "../base/parameter-spec.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { bytesReadOfRow, type ChunkRead, isContiguous } from "./chunk-reader.ts";

/** Checkpoint dtypes that can be loaded. */
export const LOADABLE: ReadonlyMap<string, FloatDType> = new Map([
  ["F32", "float32"],
  ["BF16", "bfloat16"],
  ["F16", "float16"],
]);

/** A read, and the elements of a parameter, one-dimensional, that it becomes. */
export interface WeightChunk {
  readonly read: ChunkRead;
  readonly target: Tensor;
}

/** A parameter and the reads that make it up, in order. */
export interface ParameterPlan {
  readonly spec: ParameterSpec;
  readonly reads: readonly ChunkRead[];
}

/** Plans whole sources; `splitReads` cuts them up. Every tensor must be in the checkpoint, as `spec` says. */
export function planParameter(
  checkpoint: Checkpoint,
  spec: ParameterSpec,
  targetDtype: FloatDType,
): ParameterPlan {
  const reads = spec.sources.map((source) => planRead(checkpoint, source, targetDtype));
  const found = reads.reduce((sum, read) => sum + elementsOf(read), 0);
  const wanted = product(spec.shape);
  invariant(found === wanted, `${spec.name}: sources have ${found} of ${wanted} elements`);
  return { spec, reads };
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

/** Elements of the parameter that a read gives. */
function elementsOf(read: ChunkRead): number {
  const bytes = read.end - read.begin;
  const wanted = isContiguous(read) ? bytes : (bytes / read.rowBytes) * (read.columnEnd - read.columnBegin);
  return wanted / dtypeSize(read.dtype);
}

function product(extents: readonly number[]): number {
  return extents.reduce((size, extent) => size * extent, 1);
}
