import type { Backend } from "../src/backend/backend.ts";
import type { Tensor } from "../src/backend/tensor.ts";
import type { DType, FloatDType } from "../src/base/dtype.ts";
import { dummyWeights } from "../src/loader/dummy-weights.ts";
import type { TimedBackend } from "./profiling-backend.ts";
import type { DeviceLimits } from "./roofline.ts";
import { median } from "./stats.ts";

/** Bytes that launches go through before they come to the same again: several times any L2 cache. */
const COLD_BYTES = 512 * 2 ** 20;

/** Pseudo-random codes before they repeat. */
const FLOAT8_CODES = 2 ** 22;

/** Launches of a graph: so many, or as many as take this long at the limit, so that its start does not count. */
const MAX_LAUNCHES = 200;
const GRAPH_SECONDS = 0.02;
/** Timed replays; their median counts. */
const REPLAYS = 5;

/** One op, or a few that follow each other, in one shape. */
export interface KernelCase {
  /** The op and the model that the shape is from; the same for cases that share memory. */
  readonly group: string;
  readonly name: string;
  /** Bytes of a launch that must come from memory, and floating-point operations. */
  readonly bytes: number;
  readonly flops: number;
  /** Times as fast as the matrix rate that operations can be. Default 1; 8-bit floats: 2. */
  readonly speed?: number;
  /** Sets of operands, which launches take in turn: together more than any cache where the case reads memory. */
  readonly operands: number;
  /** Makes the operands; what it returns enqueues launch i, on set i mod `operands`. */
  prepare(): (i: number) => void;
}

/** A case's time beside the least possible. */
export interface KernelTime {
  readonly group: string;
  readonly name: string;
  readonly bytes: number;
  readonly flops: number;
  /** Microseconds of a launch: median and fastest replay. */
  readonly microseconds: number;
  readonly fastest: number;
  /** Reading the bytes at the read ceiling, or the operations at the matrix rate, whichever takes longer. */
  readonly limitMicroseconds: number;
  /** Share of the limit's rate that was reached, 0–1. */
  readonly share: number;
}

/** Device memory of a group's cases. */
export class CaseMemory implements Disposable {
  readonly #all: Tensor[] = [];
  #seed = 0;

  constructor(
    readonly backend: Backend,
    private readonly coldBytes = COLD_BYTES,
  ) {}

  /** Sets of operands of so many bytes of which none is in cache when its turn comes again. */
  coldSets(bytes: number): number {
    return Math.max(2, Math.ceil(this.coldBytes / bytes));
  }

  empty(dtype: DType, ...shape: number[]): Tensor {
    return this.keep(this.backend.empty(dtype, shape));
  }

  /** Zeros. */
  zeros(dtype: DType, ...shape: number[]): Tensor {
    const tensor = this.empty(dtype, ...shape);
    this.backend.fill(tensor, 0);
    return tensor;
  }

  /** Normal values around 0, of standard deviation 0.02, in the dtype of activations. */
  random(...shape: number[]): Tensor {
    return this.#dummy("normal", shape);
  }

  /** Codes of float8_e4m3 between −2 and 2, the same again every so many. */
  randomFloat8(...shape: number[]): Tensor {
    const tensor = this.empty("float8_e4m3", ...shape);
    const codes = new Uint8Array(Math.min(tensor.size, FLOAT8_CODES));
    for (let i = 0; i < codes.length; i++) codes[i] = (Math.imul(i + 1, 0x9e3779b9) >>> 24) & 0xbf;
    const flat = tensor.reshape(tensor.size);
    for (let at = 0; at < tensor.size; at += codes.length) {
      const part = flat.rows(at, Math.min(at + codes.length, tensor.size));
      this.backend.upload(part, codes.subarray(0, part.size));
    }
    return tensor;
  }

  /** Random bytes. */
  bytes(...shape: number[]): Tensor {
    const spec = { name: "x", shape, dtype: "uint8", sources: [], dummy: "normal" } as const;
    return this.keep(
      dummyWeights([spec], this.backend, this.backend.activationDtype, this.#seed++).get("x")!,
    );
  }

  ones(...shape: number[]): Tensor {
    return this.#dummy("ones", shape);
  }

  /** Takes over a tensor that was made elsewhere. */
  keep(tensor: Tensor): Tensor {
    this.#all.push(tensor);
    return tensor;
  }

  ints(values: ArrayLike<number>, ...shape: number[]): Tensor {
    const tensor = this.empty("int32", ...(shape.length === 0 ? [values.length] : shape));
    this.backend.upload(tensor, Int32Array.from(values));
    return tensor;
  }

  /** Frees all. */
  [Symbol.dispose](): void {
    for (const { buffer } of this.#all) buffer.dispose();
  }

  #dummy(dummy: "normal" | "ones", shape: readonly number[]): Tensor {
    const dtype: FloatDType = this.backend.activationDtype;
    const spec = { name: "x", shape, sources: [], dummy };
    return this.keep(dummyWeights([spec], this.backend, dtype, this.#seed++).get("x")!);
  }
}

/**
 * Times a case as a step runs it: launches one after another in a captured graph, each on memory that is not in cache.
 * Consecutive launches may overlap as far as the kernels allow.
 */
export function timeCase(backend: TimedBackend, each: KernelCase, limits: DeviceLimits): KernelTime {
  const { group, name, bytes, flops, speed = 1, operands } = each;
  const launch = each.prepare();
  const limit = Math.max(bytes / limits.bytesPerSecond, flops / (speed * limits.flopsPerSecond));
  const enough = Math.ceil(GRAPH_SECONDS / limit);
  const launches = Math.max(1, Math.min(MAX_LAUNCHES, enough));
  // Kernels are compiled and scratch is allocated at first use, which capturing forbids.
  for (let i = 0; i < Math.min(operands, launches); i++) launch(i);
  const graph = backend.capture!(() => {
    for (let i = 0; i < launches; i++) launch(i);
  });
  const times: number[] = [];
  try {
    graph.launch();
    for (let i = 0; i < REPLAYS; i++) {
      const start = backend.mark();
      graph.launch();
      const end = backend.mark();
      backend.synchronize();
      times.push((1000 * end.elapsedSince(start)) / launches);
      for (const mark of [start, end]) mark.dispose();
    }
  } finally {
    graph.dispose();
  }
  const [microseconds, limitMicroseconds] = [median(times), 1e6 * limit];
  return {
    ...{ group, name, bytes, flops, microseconds, limitMicroseconds },
    fastest: Math.min(...times),
    share: limitMicroseconds / microseconds,
  };
}
