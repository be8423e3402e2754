import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { dtypeSize, type FloatDType, narrow, widen } from "../base/dtype.ts";
import { invariant, ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import type { ParameterSource, ParameterSpec } from "../base/parameters.ts";
import type { Checkpoint, CheckpointTensor } from "./checkpoint.ts";

const CHUNK_BYTES = 16 * 1024 * 1024;
const LISTED_NAMES = 5;
const LOADABLE: ReadonlyMap<string, FloatDType> = new Map([
  ["F32", "float32"],
  ["BF16", "bfloat16"],
  ["F16", "float16"],
]);

export interface LoadWeightsOptions {
  /** Checkpoint tensors that no parameter needs and that are no error, e.g. `rotary_emb.inv_freq`. */
  readonly ignored: readonly RegExp[];
  /** Called after each chunk: bytes read from the checkpoint so far, and in all. */
  readonly onProgress?: (loadedBytes: number, totalBytes: number) => void;
}

/**
 * Loads every parameter from the checkpoint in `backend.activationDtype`: sources are sliced, stacked along dimension
 * 0, converted and uploaded in chunks of at most 16 MiB, one chunk in host memory at a time. Nothing is allocated
 * before all checks have passed; what was allocated is freed when reading fails later.
 * @throws ModelDataError naming tensors that are missing, misshapen or unexpected, or a file that cannot be read;
 * UnsupportedModelError for tensors that are not BF16, F16 or F32.
 */
export function loadWeights(
  checkpoint: Checkpoint,
  specs: readonly ParameterSpec[],
  backend: Backend,
  options: LoadWeightsOptions,
): Map<string, Tensor> {
  checkCheckpoint(checkpoint, specs, options.ignored);
  const reads = specs.map((spec) => spec.sources.map((source) => planRead(checkpoint, source)));
  const totalBytes = reads.flat().reduce((sum, read) => sum + (read.end - read.begin), 0);
  let loadedBytes = 0;

  const weights = new Map<string, Tensor>();
  const scratch = new Uint8Array(CHUNK_BYTES);
  try {
    for (const [i, spec] of specs.entries()) {
      const parameter = backend.empty(backend.activationDtype, spec.shape);
      weights.set(spec.name, parameter);
      const elements = parameter.reshape(parameter.size);
      let at = 0;
      for (const read of reads[i]!) {
        for (const { bytes, readBytes } of readChunks(read, backend.activationDtype, scratch)) {
          const count = bytes.length / dtypeSize(read.dtype);
          upload(backend, elements.rows(at, at + count), bytes, read.dtype);
          at += count;
          loadedBytes += readBytes;
          options.onProgress?.(loadedBytes, totalBytes);
        }
      }
      invariant(at === parameter.size, `${spec.name}: sources have ${at} of ${parameter.size} elements`);
    }
  } catch (error) {
    for (const tensor of weights.values()) tensor.buffer.dispose();
    throw error;
  }
  return weights;
}

/** A source tensor's rows as they lie in the file; of each row the elements `[columnStart, columnEnd)` are wanted. */
interface SourceRead {
  readonly tensor: CheckpointTensor;
  readonly dtype: FloatDType;
  /** Byte offsets in the file of the rows wanted. */
  readonly begin: number;
  readonly end: number;
  /** Elements of a row in the file. */
  readonly rowSize: number;
  readonly columnStart: number;
  readonly columnEnd: number;
}

function planRead(checkpoint: Checkpoint, source: ParameterSource): SourceRead {
  const tensor = checkpoint.tensors.get(source.name)!;
  const dtype = LOADABLE.get(tensor.dtype)!;
  const [rows = 1, ...inner] = source.shape;
  const rowSize = product(inner);
  const { dim, start, end } = source.slice ?? { dim: 0, start: 0, end: rows };
  const extent = source.shape[dim];
  const what = `slice [${start}, ${end}) of dimension ${dim} of ${source.name} [${source.shape}]`;
  invariant(source.shape.length === 0 || (extent !== undefined && 0 <= start && end <= extent), what);
  const rowBytes = rowSize * dtypeSize(dtype);
  if (dim === 0) {
    const [begin, stop] = [tensor.begin + start * rowBytes, tensor.begin + end * rowBytes];
    return { tensor, dtype, begin, end: stop, rowSize, columnStart: 0, columnEnd: rowSize };
  }
  const columnSize = product(inner.slice(1));
  const columns = { columnStart: start * columnSize, columnEnd: end * columnSize };
  return { tensor, dtype, begin: tensor.begin, end: tensor.end, rowSize, ...columns };
}

/** Reads a source in pieces that fit a chunk before and after conversion, and packs the wanted columns of its rows. */
function* readChunks(
  read: SourceRead,
  targetDtype: FloatDType,
  scratch: Uint8Array,
): Generator<{ bytes: Uint8Array; readBytes: number }> {
  const size = dtypeSize(read.dtype);
  const maxElements = CHUNK_BYTES / Math.max(size, dtypeSize(targetDtype));
  const whole = read.columnStart === 0 && read.columnEnd === read.rowSize;
  // A row is never split when only some of its columns are wanted: it must fit the scratch buffer.
  invariant(whole || read.rowSize <= maxElements, `rows of ${read.rowSize} elements exceed a chunk`);
  const step = (whole ? maxElements : Math.floor(maxElements / read.rowSize) * read.rowSize) * size;
  const [from, to, stride] = [read.columnStart * size, read.columnEnd * size, read.rowSize * size];

  for (let begin = read.begin; begin < read.end; begin += step) {
    const end = Math.min(begin + step, read.end);
    const bytes = scratch.subarray(0, end - begin);
    read.tensor.file.read({ begin, end }, bytes);
    let packed = bytes.length;
    if (!whole) {
      packed = 0;
      for (let row = 0; row < bytes.length; row += stride, packed += to - from)
        bytes.copyWithin(packed, row + from, row + to);
    }
    yield { bytes: bytes.subarray(0, packed), readBytes: bytes.length };
  }
}

function upload(backend: Backend, target: Tensor, bytes: Uint8Array, dtype: FloatDType): void {
  if (dtype === backend.activationDtype) {
    backend.upload(target, bytes);
    return;
  }
  const values = new Float32Array(target.size);
  widen(bytes, dtype, values);
  const narrowed = backend.activationDtype === "float32" ? values : narrow(values, backend.activationDtype);
  backend.upload(target, narrowed);
}

function checkCheckpoint(
  checkpoint: Checkpoint,
  specs: readonly ParameterSpec[],
  ignored: readonly RegExp[],
) {
  const sources = new Map(specs.flatMap((spec) => spec.sources).map((source) => [source.name, source.shape]));
  invariant(new Set(specs.map((spec) => spec.name)).size === specs.length, "two parameters have one name");
  const missing: string[] = [];
  const misshapen: string[] = [];
  const unsupported: string[] = [];
  for (const [name, expected] of sources) {
    const tensor = checkpoint.tensors.get(name);
    if (tensor === undefined) missing.push(name);
    else if (
      tensor.shape.length !== expected.length ||
      tensor.shape.some((extent, i) => extent !== expected[i])
    )
      misshapen.push(`${name} (expected [${expected.join(", ")}], found [${tensor.shape.join(", ")}])`);
    else if (!LOADABLE.has(tensor.dtype)) unsupported.push(`${name} (${tensor.dtype})`);
  }
  const unexpected = [...checkpoint.tensors.keys()].filter(
    (name) => !sources.has(name) && !ignored.some((pattern) => name.search(pattern) >= 0),
  );
  const { folder } = checkpoint;
  if (missing.length > 0) throw new ModelDataError(folder, `missing tensors: ${listed(missing)}`);
  if (misshapen.length > 0) throw new ModelDataError(folder, `misshapen tensors: ${listed(misshapen)}`);
  if (unexpected.length > 0) throw new ModelDataError(folder, `unexpected tensors: ${listed(unexpected)}`);
  if (unsupported.length > 0)
    throw new UnsupportedModelError(folder, `tensors that are not BF16, F16 or F32: ${listed(unsupported)}`);
}

function listed(names: readonly string[]): string {
  const more = names.length > LISTED_NAMES ? ` and ${names.length - LISTED_NAMES} more` : "";
  return names.slice(0, LISTED_NAMES).join(", ") + more;
}

function product(extents: readonly number[]): number {
  return extents.reduce((size, extent) => size * extent, 1);
}
