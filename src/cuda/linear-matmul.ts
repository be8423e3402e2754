import type { FloatDType } from "../base/dtype.ts";
import { InvariantError } from "../base/errors.ts";
import {
  type CublasLt,
  type MatmulAlgorithm,
  MatmulDescriptor,
  MatmulPreference,
  type MatmulProblem,
  MatrixLayout,
} from "./cublaslt.ts";
import type { CublasLtApi } from "./cublaslt-symbols.ts";
import { CublasError, checkCublas } from "./errors.ts";

export interface LinearShape {
  /** T, K and N of out[T, N] = x[T, K] · weight[N, K]ᵀ. */
  readonly tokens: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** Type of x and weight. */
  readonly inputType: FloatDType;
  /** Type of out, bias and addTo. */
  readonly outputType: FloatDType;
  /** Adds bias[N] to every row. */
  readonly bias?: boolean;
  /** Adds addTo[T, N]. */
  readonly addTo?: boolean;
}

/** Device addresses of a product's operands. */
export interface LinearOperands {
  readonly out: number;
  readonly x: number;
  readonly weight: number;
  /** Of a shape that has one. */
  readonly bias?: number | undefined;
  /** Of a shape that has one; may be `out`. */
  readonly addTo?: number | undefined;
}

/**
 * out[T, N] = x[T, K] · weight[N, K]ᵀ (+ bias[N]) (+ addTo[T, N]), accumulated in float32, for one shape. All three matrices
 * are contiguous and row-major, which to cuBLASLt's column-major eyes is outᵀ[N, T] = weightᵀ[K, N]ᵀ · xᵀ[K, T].
 */
export class LinearMatmul implements Disposable {
  readonly #api: CublasLtApi;
  readonly #problem: MatmulProblem;
  readonly #one = new Float32Array(new ArrayBuffer(4)).fill(1);
  readonly #zero = new Float32Array(new ArrayBuffer(4));
  #bias = 0;

  constructor(
    private readonly cublas: CublasLt,
    readonly shape: LinearShape,
  ) {
    const { tokens, inFeatures, outFeatures, inputType, outputType, bias = false } = shape;
    this.#api = cublas.api;
    this.#problem = {
      descriptor: MatmulDescriptor.create(cublas, bias),
      a: MatrixLayout.create(cublas, inputType, inFeatures, outFeatures),
      b: MatrixLayout.create(cublas, inputType, inFeatures, tokens),
      d: MatrixLayout.create(cublas, outputType, outFeatures, tokens),
    };
  }

  /**
   * Algorithms for this shape, the likely fastest first.
   *
   * @param workspaceBytes Most workspace an algorithm may need.
   * @param alignment Bytes to which x, weight and out are aligned. Default 16.
   * @throws CublasError when cuBLASLt has none.
   */
  algorithms(limit: number, workspaceBytes: number, alignment = 16): MatmulAlgorithm[] {
    using preference = MatmulPreference.create(this.cublas, workspaceBytes, alignment);
    const found = this.cublas.algorithms(this.#problem, preference, limit);
    if (found.length === 0) {
      throw new CublasError("cublasLtMatmulAlgoGetHeuristic", 15, "CUBLAS_STATUS_NOT_SUPPORTED", `${this}`);
    }
    return found;
  }

  /** An algorithm of a shape that differs in tokens alone, if it can run this one within `workspaceBytes`. */
  adapted(algorithm: MatmulAlgorithm, workspaceBytes: number): MatmulAlgorithm | undefined {
    const adapted = this.cublas.adapted(this.#problem, algorithm);
    return adapted !== undefined && adapted.workspaceBytes <= workspaceBytes ? adapted : undefined;
  }

  /** Enqueues the matmul. `workspace` is a device address, of as many bytes as the algorithm needs. */
  run(stream: number, algorithm: MatmulAlgorithm, workspace: number, operands: LinearOperands): void {
    const { out, x, weight, bias = 0, addTo = 0 } = operands;
    const { descriptor, a, b, d } = this.#problem;
    const lacks = (this.shape.bias && bias === 0) || (this.shape.addTo && addTo === 0);
    if (lacks) throw new InvariantError(`${this}: bias ${bias}, addTo ${addTo}`);
    if (this.shape.bias && bias !== this.#bias) {
      descriptor.setBias(bias);
      this.#bias = bias;
    }
    // D = A · B + β · C: without a sum, C is never read.
    const status = this.#api.cublasLtMatmul(
      this.cublas.value,
      descriptor.value,
      this.#one,
      weight,
      a.value,
      x,
      b.value,
      this.shape.addTo ? this.#one : this.#zero,
      this.shape.addTo ? addTo : out,
      d.value,
      out,
      d.value,
      algorithm.address,
      workspace,
      algorithm.workspaceBytes,
      stream,
    );
    if (status !== 0) checkCublas(this.#api, "cublasLtMatmul", status, `${this}`);
  }

  dispose(): void {
    const { descriptor, a, b, d } = this.#problem;
    for (const handle of [descriptor, a, b, d]) handle.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  toString(): string {
    const { tokens, inFeatures, outFeatures, inputType, outputType, bias, addTo } = this.shape;
    return `${outputType}[${tokens}, ${outFeatures}] = ${inputType}[${tokens}, ${inFeatures}] · [${outFeatures}, ${inFeatures}]ᵀ${bias ? " + bias" : ""}${addTo ? " + addTo" : ""}`;
  }
}
