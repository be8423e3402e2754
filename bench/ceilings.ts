import { fileURLToPath } from "node:url";
import { KernelLibrary } from "../src/backend/cuda/kernel-library.ts";
import type { KernelUnit } from "../src/backend/cuda/kernel-source.ts";
import { Context } from "../src/cuda/context.ts";
import { CublasLt } from "../src/cuda/cublaslt.ts";
import { LinearMatmul } from "../src/cuda/linear-matmul.ts";
import { DeviceMemory } from "../src/cuda/memory.ts";
import { type Cuda, openCuda } from "../src/cuda/open-cuda.ts";
import { Event, Stream } from "../src/cuda/stream.ts";
import type { DeviceLimits } from "./roofline.ts";
import { median } from "./stats.ts";

/** Memory that is read: far more than any L2 cache holds. */
const READ_BYTES = 2 ** 31;
/** In flight on a multiprocessor: `RING_STAGES` copies of `CHUNK_BYTES`, or `LOADS` loads of each of 1,024 threads. */
const CHUNK_BYTES = 16 * 1024;
const RING_STAGES = 4;
const LOADS = 4;
const READ_THREADS = 1024;
const FILL_THREADS = 256;
const FILL_BLOCKS = 4096;
/** Bytes that a thread reads or writes at a time. */
const UNIT_BYTES = 16;
const WORD_BYTES = 4;
const BULK_COPY_CAPABILITY = 9;

/** M, N and K of the matrix product, and the algorithms that are tried. */
const MATRIX_SIZE = 8192;
const MATRIX_CANDIDATES = 4;
const WORKSPACE_BYTES = 32 * 2 ** 20;

/** A group of launches is timed as one; the median of the groups counts. */
const GROUPS = 5;
const LAUNCHES = 4;

/** Kernels that are only measured. They are no part of the package, so they are not in its own folder of kernels. */
export const MEASURED_FOLDER = fileURLToPath(new URL("./kernels-cu", import.meta.url));
export const CEILING_UNIT: KernelUnit = {
  file: "ceiling.cu",
  constants: { CHUNK_BYTES, RING_STAGES, LOADS },
};

/**
 * Measures what this GPU can do, so that figures stand beside the limit of the card and the moment they were taken on:
 * cards of one name differ. The read ceiling is the faster of a kernel of bulk copies and one of plain loads over 2 GiB;
 * the matrix rate that of cuBLASLt's fastest of four algorithms for 8192 × 8192 × 8192 in bfloat16. Takes about 0.2 s and
 * 2.5 GiB of device memory, which is given back.
 * @throws DeviceError without a GPU.
 */
export function measureCeilings(cuda: Cuda = openCuda()): DeviceLimits {
  const context = Context.retain(cuda.driver.api, cuda.device);
  try {
    const stream = Stream.create(context);
    const library = KernelLibrary.create(context, cuda.nvrtc, { sourceFolder: MEASURED_FOLDER });
    using data = DeviceMemory.allocate(context, READ_BYTES);
    const words = READ_BYTES / WORD_BYTES;
    const fill = { data: addressOf(data), words };
    library
      .kernel(CEILING_UNIT, "fill_random")
      .launch(stream.value, FILL_BLOCKS, 1, 1, FILL_THREADS, 0, fill);
    const secondsOf = (launch: () => void) => timeLaunches(context, stream, launch);
    return {
      bytesPerSecond: READ_BYTES / Math.min(...readKernels(library, stream, data).map(secondsOf)),
      flopsPerSecond: (2 * MATRIX_SIZE ** 3) / matrixSeconds(cuda, context, stream, data, secondsOf),
    };
  } finally {
    context.dispose();
  }
}

export function describeCeilings({ bytesPerSecond, flopsPerSecond }: DeviceLimits): string {
  const [reads, products] = [(bytesPerSecond / 1e12).toFixed(2), (flopsPerSecond / 1e12).toFixed(0)];
  return `reads ${reads} TB/s, multiplies ${products} TFLOP/s`;
}

function readKernels(library: KernelLibrary, stream: Stream, data: DeviceMemory): (() => void)[] {
  const { multiprocessors, computeCapability } = data.context.device;
  const loads = library.kernel(CEILING_UNIT, "read_loads");
  const ofLoads = { data: addressOf(data), sink: addressOf(data), units: READ_BYTES / UNIT_BYTES };
  const kernels = [1, 2].map((each) => () => {
    loads.launch(stream.value, each * multiprocessors, 1, 1, READ_THREADS, 0, ofLoads);
  });
  if (computeCapability[0] < BULK_COPY_CAPABILITY) return kernels;
  const bulk = library.kernel(CEILING_UNIT, "read_bulk");
  const ofBulk = { data: addressOf(data), chunks: READ_BYTES / CHUNK_BYTES };
  const ringBytes = RING_STAGES * CHUNK_BYTES;
  return [...kernels, () => bulk.launch(stream.value, multiprocessors, 1, 1, 32, ringBytes, ofBulk)];
}

/** Seconds of a product of matrices in `data`, with the fastest algorithm. */
function matrixSeconds(
  cuda: Cuda,
  context: Context,
  stream: Stream,
  data: DeviceMemory,
  secondsOf: (launch: () => void) => number,
): number {
  const cublas = CublasLt.create(cuda.cublasLt, context);
  using workspace = DeviceMemory.allocate(context, WORKSPACE_BYTES);
  const [tokens, inFeatures, outFeatures] = [MATRIX_SIZE, MATRIX_SIZE, MATRIX_SIZE];
  const dtypes = { inputType: "bfloat16", outputType: "bfloat16" } as const;
  using matmul = new LinearMatmul(cublas, { tokens, inFeatures, outFeatures, ...dtypes });
  const matrixBytes = 2 * MATRIX_SIZE ** 2;
  const operands = {
    x: data.value,
    weight: data.value + matrixBytes,
    out: data.value + 2 * matrixBytes,
  };
  const times = matmul.algorithms(MATRIX_CANDIDATES, WORKSPACE_BYTES).map((algorithm) => {
    return secondsOf(() => matmul.run(stream.value, algorithm, workspace.value, operands));
  });
  return Math.min(...times);
}

function addressOf({ value }: DeviceMemory): { readonly address: number } {
  return { address: value };
}

function timeLaunches(context: Context, stream: Stream, launch: () => void): number {
  launch();
  const seconds = Array.from({ length: GROUPS }, () => {
    using start = Event.create(context, { timing: true });
    using end = Event.create(context, { timing: true });
    start.record(stream);
    for (let i = 0; i < LAUNCHES; i++) launch();
    end.record(stream);
    end.synchronize();
    return end.elapsedSince(start) / 1000 / LAUNCHES;
  });
  return median(seconds);
}
