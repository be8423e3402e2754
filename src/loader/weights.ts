import { availableParallelism } from "node:os";
import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { FloatDType } from "../base/dtype.ts";
import { invariant, ModelDataError } from "../base/errors.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import { shown } from "../base/quoted.ts";
import { bulkLoad } from "./bulk-load.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { bytesRead, ChunkReader } from "./chunk-reader.ts";
import { type Finding, listed, refuse, refuseDtypes } from "./findings.ts";
import { storedDtypes } from "./rows-read.ts";
import { LOADABLE } from "./stored-dtype.ts";
import { planParameter, splitReads, type WeightChunk } from "./weight-plan.ts";

/** Chunks on one thread: large enough to amortise what an upload costs besides its bytes. */
const CHUNK_BYTES = 16 * 2 ** 20;
/** Below this, Workers take longer to start than one thread takes to read. */
const BULK_BYTES = 64 * 2 ** 20;
/** By then reads from the page cache, 6–10 GB/s a thread and some 30 GB/s in all, get no faster. */
const MAX_READERS = 8;

export interface LoadWeightsOptions {
  /** Dtype of the loaded parameters, whatever float the checkpoint holds. */
  readonly dtype: FloatDType;
  /** Checkpoint tensors that no parameter needs and that are no error, e.g. `rotary_emb.inv_freq`. */
  readonly ignored: readonly RegExp[];
  /**
   * Threads that read, where the backend has bulk uploads; 1 is this thread. Default: one per core and at most 8, or
   * 1 for less than 64 MiB.
   */
  readonly readers?: number;
  /** Called after each chunk: bytes read from the checkpoint so far, and in all. */
  readonly onProgress?: (loadedBytes: number, totalBytes: number) => void;
}

/**
 * Loads every parameter from the checkpoint: sources are sliced, stacked along dimension
 * 0, converted and uploaded in chunks, by several threads where the backend has bulk uploads, else by this one, in place where
 * the host reaches the tensors, or with one chunk of 16 MiB in host memory at a time. Nothing is allocated before all checks have passed; what was allocated is
 * freed when reading fails later. The checkpoint must stay open until this settles.
 * @throws ModelDataError naming tensors that are missing, misshapen or unexpected, or a file that cannot be read;
 * UnsupportedModelError for tensors of dtypes that are not in `LOADABLE`.
 */
export async function loadWeights(
  checkpoint: Checkpoint,
  specs: readonly ParameterSpec[],
  backend: Backend,
  options: LoadWeightsOptions,
): Promise<Map<string, Tensor>> {
  checkCheckpoint(checkpoint, specs, options.ignored);
  const plans = specs.map((spec) => planParameter(checkpoint, spec, options.dtype));
  const reads = plans.flatMap((plan) => plan.reads);
  const totalBytes = reads.reduce((sum, read) => sum + bytesRead(read), 0);
  const readers = options.readers ?? defaultReaders(totalBytes);
  let loadedBytes = 0;
  const onChunk = ({ read }: WeightChunk) => {
    loadedBytes += bytesRead(read);
    options.onProgress?.(loadedBytes, totalBytes);
  };

  const weights = new Map<string, Tensor>();
  // Allocates when the first chunk is asked for: by then the readers are starting.
  const chunksOf = function* (chunkBytes: number) {
    for (const { name, shape, dtype = options.dtype } of specs)
      weights.set(name, backend.empty(dtype, shape));
    yield* splitReads(plans, weights, chunkBytes);
  };
  try {
    const upload = readers > 1 ? backend.bulkUpload?.() : undefined;
    if (upload === undefined) {
      const reader = new ChunkReader();
      const bytes = backend.bytesOf === undefined ? new Uint8Array(CHUNK_BYTES) : undefined;
      for (const chunk of chunksOf(CHUNK_BYTES)) {
        if (bytes === undefined) reader.read(chunk.read, backend.bytesOf!(chunk.target));
        else backend.upload(chunk.target, reader.read(chunk.read, bytes));
        onChunk(chunk);
      }
    } else {
      try {
        const chunkBytes = Math.min(...upload.buffers.map((buffer) => buffer.byteLength));
        await bulkLoad(chunksOf(chunkBytes), upload, readers, onChunk);
      } finally {
        upload.dispose();
      }
    }
  } catch (error) {
    for (const tensor of weights.values()) tensor.buffer.dispose();
    throw error;
  }
  return weights;
}

function defaultReaders(totalBytes: number): number {
  return totalBytes < BULK_BYTES ? 1 : Math.min(availableParallelism(), MAX_READERS);
}

/**
 * Checks that a checkpoint has the tensors that parameters are made of, as they are expected, and no others but those `ignored`.
 * @throws ModelDataError, UnsupportedModelError as `loadWeights`
 */
export function checkCheckpoint(
  checkpoint: Checkpoint,
  specs: readonly ParameterSpec[],
  ignored: readonly RegExp[],
) {
  const sources = new Map(specs.flatMap((spec) => spec.sources).map((source) => [source.name, source]));
  invariant(new Set(specs.map((spec) => spec.name)).size === specs.length, "two parameters have one name");
  const missing: string[] = [];
  const misshapen: Finding[] = [];
  const unsupported: Finding[] = [];
  const mistyped: Finding[] = [];
  for (const [name, { shape: expected, reading }] of sources) {
    const tensor = checkpoint.tensors.get(name);
    const stored = shown(checkpoint.format.storedName(name));
    if (tensor === undefined) {
      missing.push(stored);
      continue;
    }
    const finding = (rule: string) => ({ path: tensor.file.path, text: `${stored} (${rule})` });
    // Before the shape: what is packed has another one, too.
    if (reading === undefined && !LOADABLE.has(tensor.dtype)) unsupported.push(finding(tensor.dtype));
    else if (tensor.shape.join() !== expected.join())
      misshapen.push(finding(`expected [${expected.join(", ")}], found [${tensor.shape.join(", ")}]`));
    else if (reading !== undefined && !storedDtypes(reading).includes(tensor.dtype))
      mistyped.push(finding(`expected ${storedDtypes(reading).join(" or ")}, found ${tensor.dtype}`));
  }
  const unexpected = [...checkpoint.tensors]
    .filter(([name]) => !sources.has(name) && !ignored.some((pattern) => name.search(pattern) >= 0))
    .map(([name, { file }]) => ({ path: file.path, text: shown(checkpoint.format.storedName(name)) }));
  if (missing.length > 0) throw new ModelDataError(checkpoint.path, `missing tensors: ${listed(missing)}`);
  refuseDtypes(unsupported, checkpoint.format.dtypes);
  refuse(misshapen, "misshapen tensors", ModelDataError);
  refuse(mistyped, "tensors of another dtype", ModelDataError);
  refuse(unexpected, "unexpected tensors", ModelDataError);
}
