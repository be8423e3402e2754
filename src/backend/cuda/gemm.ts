import type { FloatDType } from "../../base/dtype.ts";
import type { CublasLt, MatmulAlgorithm } from "../../cuda/cublaslt.ts";
import { LinearMatmul, type LinearShape } from "../../cuda/linear-matmul.ts";
import type { DeviceMemory } from "../../cuda/memory.ts";
import type { Stream } from "../../cuda/stream.ts";
import type { Tensor } from "../tensor.ts";
import { algorithmKey, rowAlignment, searchedTokens } from "./gemm-shape.ts";
import type { GemmTuner } from "./gemm-tuner.ts";

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

/** out[T, N] = x[T, K] · weight[N, K]ᵀ (+ bias) (+ addTo) through cuBLASLt, one cached plan a shape. */
export class Gemm {
  /** Numbers of shapes that differ in more than tokens. */
  readonly #families = new Map<number, number>();
  readonly #plans = new Map<number, Plan>();
  /** The likely fastest algorithms, by `algorithmKey` of the shapes that were searched for. */
  readonly #searched = new Map<string, MatmulAlgorithm>();

  constructor(
    private readonly cublas: CublasLt,
    private readonly workspace: DeviceMemory,
    private readonly stream: Stream,
    private readonly tuner: GemmTuner,
  ) {}

  /** Enqueues the product; `addTo` may be `out`. */
  multiply(
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
      this.tuner.observe(shape, weight.address);
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
      const algorithm = this.tuner.best(shape) ?? this.#search(matmul);
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
