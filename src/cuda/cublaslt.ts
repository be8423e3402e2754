import { ptr } from "bun:ffi";
import type { FloatDType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { Context } from "./context.ts";
import {
  COMPUTE_32F,
  type CublasLtApi,
  CudaDataType,
  EPILOGUE_BIAS,
  MatmulDescAttribute,
  OPERATION_TRANSPOSE,
  PreferenceAttribute,
} from "./cublaslt-symbols.ts";
import { callCublas, checkCublas } from "./errors.ts";
import { OutPointer } from "./ffi.ts";
import { Handle } from "./handle.ts";

/** A cuBLASLt handle: one a context. */
export class CublasLt extends Handle {
  private constructor(
    readonly api: CublasLtApi,
    value: number,
    context: Context,
  ) {
    super(value, context);
  }

  static create(api: CublasLtApi, context: Context): CublasLt {
    const out = new OutPointer();
    callCublas(api, "cublasLtCreate", [out.array]);
    return new CublasLt(api, out.value, context);
  }

  /**
   * Algorithms that can run the problem, the likely fastest first; empty when there is none. Throws `CublasError`
   * when the problem itself is malformed.
   */
  algorithms(problem: MatmulProblem, preference: MatmulPreference, limit: number): MatmulAlgorithm[] {
    const { api } = this;
    const results = new Uint8Array(limit * HEURISTIC_RESULT_BYTES);
    const count = new Int32Array(1);
    const status = api.cublasLtMatmulAlgoGetHeuristic(
      this.value,
      problem.descriptor.value,
      problem.a.value,
      problem.b.value,
      problem.d.value,
      problem.d.value,
      preference.value,
      limit,
      results,
      count,
    );
    if (status === STATUS_NOT_SUPPORTED) return [];
    checkCublas(api, "cublasLtMatmulAlgoGetHeuristic", status);
    return parseHeuristicResults(results, count[0]!);
  }

  /**
   * An algorithm that was found for a problem of other sizes, with the workspace that it needs for this one. Undefined when
   * it cannot run it.
   */
  adapted(problem: MatmulProblem, algorithm: MatmulAlgorithm): MatmulAlgorithm | undefined {
    const result = new Uint8Array(HEURISTIC_RESULT_BYTES);
    const status = this.api.cublasLtMatmulAlgoCheck(
      this.value,
      problem.descriptor.value,
      problem.a.value,
      problem.b.value,
      problem.d.value,
      problem.d.value,
      algorithm.address,
      result,
    );
    if (status !== 0) return undefined;
    const view = new DataView(result.buffer);
    return { ...algorithm, workspaceBytes: Number(view.getBigUint64(ALGORITHM_BYTES, true)) };
  }

  protected override release(value: number): void {
    callCublas(this.api, "cublasLtDestroy", [value]);
  }
}

/** The description of a product D = α · Aᵀ · B + β · C, where C is stored as D is. */
export interface MatmulProblem {
  readonly descriptor: MatmulDescriptor;
  readonly a: MatrixLayout;
  readonly b: MatrixLayout;
  readonly d: MatrixLayout;
}

/** An object of cuBLASLt, owned by its handle. */
abstract class CublasObject extends Handle {
  readonly api: CublasLtApi;
  protected abstract readonly destroy:
    | "cublasLtMatmulDescDestroy"
    | "cublasLtMatmulPreferenceDestroy"
    | "cublasLtMatrixLayoutDestroy";

  protected constructor(owner: CublasLt, value: number) {
    super(value, owner);
    this.api = owner.api;
  }

  protected override release(value: number): void {
    callCublas(this.api, this.destroy, [value]);
  }
}

/** The operation: float32 accumulation, A transposed, epilogue. */
export class MatmulDescriptor extends CublasObject {
  protected readonly destroy = "cublasLtMatmulDescDestroy";
  readonly #pointer = new BigUint64Array(new ArrayBuffer(8));

  /** @param bias The epilogue adds a vector, see `setBias`. */
  static create(owner: CublasLt, bias: boolean): MatmulDescriptor {
    const out = new OutPointer();
    callCublas(owner.api, "cublasLtMatmulDescCreate", [out.array, COMPUTE_32F, CudaDataType.float32]);
    const descriptor = new MatmulDescriptor(owner, out.value);
    descriptor.#set(MatmulDescAttribute.transA, Int32Array.of(OPERATION_TRANSPOSE));
    if (bias) descriptor.#set(MatmulDescAttribute.epilogue, Int32Array.of(EPILOGUE_BIAS));
    return descriptor;
  }

  /** Device address of the bias vector, one element of D's type per row of D. Read by the next matmul. */
  setBias(address: number): void {
    this.#pointer[0] = BigInt(address);
    this.#set(MatmulDescAttribute.biasPointer, this.#pointer);
  }

  #set(attribute: number, value: NodeJS.TypedArray): void {
    setAttribute(this.api, "cublasLtMatmulDescSetAttribute", this.value, attribute, value);
  }
}

/** A column-major matrix: `rows` × `columns`, nothing between them. */
export class MatrixLayout extends CublasObject {
  protected readonly destroy = "cublasLtMatrixLayoutDestroy";

  static create(owner: CublasLt, dtype: FloatDType, rows: number, columns: number): MatrixLayout {
    const out = new OutPointer();
    const { api } = owner;
    const detail = `${dtype}[${rows}, ${columns}]`;
    callCublas(
      api,
      "cublasLtMatrixLayoutCreate",
      [out.array, CudaDataType[dtype], rows, columns, rows],
      detail,
    );
    return new MatrixLayout(owner, out.value);
  }
}

/** The assumptions of a heuristic search: workspace, and alignment of all four matrices in bytes. */
export class MatmulPreference extends CublasObject {
  protected readonly destroy = "cublasLtMatmulPreferenceDestroy";

  static create(owner: CublasLt, workspaceBytes: number, alignment: number): MatmulPreference {
    const out = new OutPointer();
    const { api } = owner;
    callCublas(api, "cublasLtMatmulPreferenceCreate", [out.array]);
    const preference = new MatmulPreference(owner, out.value);
    preference.#set(PreferenceAttribute.maxWorkspaceBytes, BigUint64Array.of(BigInt(workspaceBytes)));
    for (const matrix of ["A", "B", "C", "D"] as const) {
      preference.#set(PreferenceAttribute[`minAlignment${matrix}`], Uint32Array.of(alignment));
    }
    return preference;
  }

  #set(attribute: number, value: NodeJS.TypedArray): void {
    setAttribute(this.api, "cublasLtMatmulPreferenceSetAttribute", this.value, attribute, value);
  }
}

function setAttribute(
  api: CublasLtApi,
  call: "cublasLtMatmulDescSetAttribute" | "cublasLtMatmulPreferenceSetAttribute",
  handle: number,
  attribute: number,
  value: NodeJS.TypedArray,
): void {
  callCublas(api, call, [handle, attribute, value, value.byteLength], `attribute ${attribute}`);
}

/** One way to run a problem. Valid for problems of the same shapes, types and epilogue on the same GPU. */
export interface MatmulAlgorithm {
  /** The cublasLtMatmulAlgo_t, 64 bytes. */
  readonly bytes: Uint8Array;
  /** Address of `bytes`, which keeps it valid. */
  readonly address: number;
  /** Device bytes it needs as workspace. */
  readonly workspaceBytes: number;
}

const ALGORITHM_BYTES = 64;

/** An algorithm from a copy of its bytes, as they were found by a heuristic search. */
export function matmulAlgorithm(source: Uint8Array, workspaceBytes: number): MatmulAlgorithm {
  invariant(source.length === ALGORITHM_BYTES, `an algorithm of ${source.length} bytes`);
  // Memory of its own: that of a small typed array may move, which would leave the address behind.
  const bytes = new Uint8Array(new ArrayBuffer(ALGORITHM_BYTES));
  bytes.set(source);
  return { bytes, address: ptr(bytes), workspaceBytes };
}

const STATUS_NOT_SUPPORTED = 15;
/** cublasLtMatmulHeuristicResult_t: algo 64, size_t workspaceSize, int state, float wavesCount, int reserved[4]. */
const HEURISTIC_RESULT_BYTES = 96;

/** Usable entries of an array of cublasLtMatmulHeuristicResult_t, in its order. */
export function parseHeuristicResults(results: Uint8Array, count: number): MatmulAlgorithm[] {
  const view = new DataView(results.buffer, results.byteOffset, results.byteLength);
  const algorithms: MatmulAlgorithm[] = [];
  for (let i = 0; i < count; i++) {
    const at = i * HEURISTIC_RESULT_BYTES;
    const state = view.getInt32(at + 72, true);
    if (state !== 0) continue;
    const workspaceBytes = Number(view.getBigUint64(at + ALGORITHM_BYTES, true));
    algorithms.push(matmulAlgorithm(results.subarray(at, at + ALGORITHM_BYTES), workspaceBytes));
  }
  return algorithms;
}
