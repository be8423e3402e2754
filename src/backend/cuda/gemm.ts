import type { FloatDType } from "../../base/dtype.ts";
import type { CublasLt, MatmulAlgorithm } from "../../cuda/cublaslt.ts";
import { LinearMatmul, type LinearShape } from "../../cuda/linear-matmul.ts";
import type { DeviceMemory } from "../../cuda/memory.ts";
import type { Stream } from "../../cuda/stream.ts";
import type { DeviceBuffer, Tensor } from "../tensor.ts";
import { algorithmKey, rowAlignment, searchedTokens } from "./gemm-shape.ts";
import type { GemmTuner } from "./gemm-tuner.ts";
import { Scratch } from "./scratch.ts";

/** Tokens of every product where results may not depend on how many there are. */
const SLICE_TOKENS = 64;
/** Plans for shapes beyond this many are rebuilt when they come again: prompts make a new shape almost every step. */
const MAX_PLANS = 512;
/** More than a step has. */
const TOKENS_LIMIT = 2 ** 21;
/** More features than a matrix has. */
const FEATURES_LIMIT = 2 ** 22;

/** A matmul of one shape and the algorithm that runs it. */
interface Plan {
  readonly matmul: LinearMatmul;
  readonly algorithm: MatmulAlgorithm;
  /** Addresses of weights that the tuner has been told of. */
  readonly weights: Set<number>;
}

export interface GemmOptions {
  /** See `CudaBackendOptions.batchInvariant`: products are made of slices of one size, each by cuBLASLt's first algorithm. */
  readonly batchInvariant: boolean;
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
}

/** out[T, N] = x[T, K] · weight[N, K]ᵀ (+ bias) (+ addTo) through cuBLASLt, one cached plan a shape. */
export class Gemm {
  /** Numbers of shapes that differ in more than tokens. */
  readonly #families = new Map<number, number>();
  readonly #plans = new Map<number, Plan>();
  /** The likely fastest algorithms, by `algorithmKey` of the shapes that were searched for. */
  readonly #searched = new Map<string, MatmulAlgorithm>();
  readonly #sliceIn: Scratch;
  readonly #sliceOut: Scratch;

  constructor(
    private readonly cublas: CublasLt,
    private readonly workspace: DeviceMemory,
    private readonly stream: Stream,
    private readonly tuner: GemmTuner,
    private readonly options: GemmOptions,
  ) {
    this.#sliceIn = new Scratch(options.allocate);
    this.#sliceOut = new Scratch(options.allocate);
  }

  /** Enqueues the product; `addTo` may be `out`. */
  multiply(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | undefined,
    addTo: Tensor | undefined,
  ): void {
    if (!this.options.batchInvariant) {
      this.#multiply(out, x, weight, bias, addTo);
      return;
    }
    const tokens = x.dim(0);
    for (let start = 0; start < tokens; start += SLICE_TOKENS) {
      const end = Math.min(tokens, start + SLICE_TOKENS);
      const rows = (tensor: Tensor) => tensor.rows(start, end);
      this.#multiplySlice(rows(out), rows(x), weight, bias, addTo && rows(addTo));
    }
  }

  /** A product of at most `SLICE_TOKENS` tokens, as one of so many: what is lacking may hold anything. */
  #multiplySlice(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | undefined,
    addTo: Tensor | undefined,
  ): void {
    if (x.dim(0) === SLICE_TOKENS) {
      // In place, as the padded one: cuBLASLt may round otherwise where it is not.
      if (addTo !== undefined && addTo.address !== out.address)
        this.stream.copy(out.address, addTo.address, out.byteLength);
      this.#multiply(out, x, weight, bias, addTo && out);
      return;
    }
    const paddedX = this.#sliceIn.tensor(x.dtype, [SLICE_TOKENS, x.dim(1)]);
    const paddedOut = this.#sliceOut.tensor(out.dtype, [SLICE_TOKENS, out.dim(1)]);
    this.stream.copy(paddedX.address, x.address, x.byteLength);
    if (addTo !== undefined) this.stream.copy(paddedOut.address, addTo.address, addTo.byteLength);
    this.#multiply(paddedOut, paddedX, weight, bias, addTo && paddedOut);
    this.stream.copy(out.address, paddedOut.address, out.byteLength);
  }

  #multiply(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | undefined,
    addTo: Tensor | undefined,
  ): void {
    const tokens = x.shape[0]!;
    const key = this.#family(out, x, weight, bias, addTo) * TOKENS_LIMIT + tokens;
    let plan = this.#plans.get(key);
    if (plan === undefined || !plan.weights.has(weight.address)) {
      const shape: LinearShape = {
        ...{ tokens, inFeatures: x.dim(1), outFeatures: weight.dim(0) },
        ...{ inputType: x.dtype as FloatDType, outputType: out.dtype as FloatDType },
        ...{ bias: bias !== undefined, addTo: addTo !== undefined },
      };
      if (!this.options.batchInvariant) this.tuner.observe(shape, weight.address);
      plan ??= this.#plan(key, shape);
      plan.weights.add(weight.address);
    }
    plan.matmul.run(this.stream.value, plan.algorithm, this.workspace.value, {
      out: out.address,
      x: x.address,
      weight: weight.address,
      bias: bias?.address,
      addTo: addTo?.address,
    });
  }

  /** Tells the tuner of a product by the weight at an address that may come, though another kernel has computed it so far. */
  foresee(shape: Omit<LinearShape, "tokens">, weight: number): void {
    this.tuner.observe({ ...shape, tokens: 0 }, weight);
  }

  /** Drops the plans, so that what the tuner has learnt since is used. */
  replan(): void {
    for (const { matmul } of this.#plans.values()) matmul.dispose();
    this.#plans.clear();
  }

  /** Strings as keys would cost more than the rest of a launch. */
  #family(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | undefined,
    addTo: Tensor | undefined,
  ): number {
    const types = (x.dtype === "float16" ? 1 : 0) + (out.dtype === x.dtype ? 2 : 0);
    const added = (bias === undefined ? 0 : 4) + (addTo === undefined ? 0 : 8);
    const key = (weight.shape[0]! * FEATURES_LIMIT + weight.shape[1]!) * 16 + types + added;
    let family = this.#families.get(key);
    if (family === undefined) {
      family = this.#families.size;
      this.#families.set(key, family);
    }
    return family;
  }

  #plan(key: number, shape: LinearShape): Plan {
    if (this.#plans.size >= MAX_PLANS) {
      const [oldest] = this.#plans.keys();
      this.#plans.get(oldest!)!.matmul.dispose();
      this.#plans.delete(oldest!);
    }
    const matmul = new LinearMatmul(this.cublas, shape);
    try {
      const tuned = this.options.batchInvariant ? undefined : this.tuner.best(shape);
      const algorithm = tuned ?? this.#search(matmul);
      const plan: Plan = { matmul, algorithm, weights: new Set() };
      this.#plans.set(key, plan);
      return plan;
    } catch (error) {
      matmul.dispose();
      throw error;
    }
  }

  /** An algorithm for the shape of `matmul`: that of a number of tokens near by, where it can be. */
  #search(matmul: LinearMatmul): MatmulAlgorithm {
    const { byteLength } = this.workspace;
    const { shape } = matmul;
    const near = { ...shape, tokens: searchedTokens(shape.tokens) };
    const found = this.tuner.best(near) ?? this.#likely(near);
    return matmul.adapted(found, byteLength) ?? matmul.algorithms(1, byteLength, rowAlignment(shape))[0]!;
  }

  #likely(shape: LinearShape): MatmulAlgorithm {
    const key = algorithmKey(shape);
    let algorithm = this.#searched.get(key);
    if (algorithm === undefined) {
      using matmul = new LinearMatmul(this.cublas, shape);
      algorithm = matmul.algorithms(1, this.workspace.byteLength, rowAlignment(shape))[0]!;
      this.#searched.set(key, algorithm);
    }
    return algorithm;
  }
}
