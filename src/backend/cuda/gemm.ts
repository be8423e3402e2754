import type { FloatDType } from "../../base/dtype.ts";
import type { CublasLt, MatmulAlgorithm } from "../../cuda/cublaslt.ts";
import { LinearMatmul, type LinearShape } from "../../cuda/linear-matmul.ts";
import type { DeviceMemory } from "../../cuda/memory.ts";
import type { Stream } from "../../cuda/stream.ts";
import type { Tensor } from "../tensor.ts";
import { algorithmKey, rowAlignment } from "./gemm-shape.ts";
import type { GemmTuner } from "./gemm-tuner.ts";

/** Plans for shapes beyond this many are rebuilt when they come again: prompts make a new shape almost every step. */
const MAX_PLANS = 512;

/** A matmul of one shape and the algorithm that runs it. */
interface Plan {
  readonly matmul: LinearMatmul;
  readonly algorithm: MatmulAlgorithm;
}

/** out[T, N] = x[T, K] · weight[N, K]ᵀ (+ bias) (+ addTo) through cuBLASLt, one cached plan a shape. */
export class Gemm {
  readonly #plans = new Map<string, Plan>();

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
    const shape: LinearShape = {
      tokens: x.dim(0),
      inFeatures: x.dim(1),
      outFeatures: weight.dim(0),
      inputType: x.dtype as FloatDType,
      outputType: out.dtype as FloatDType,
      bias: bias !== undefined,
      addTo: addTo !== undefined,
    };
    this.tuner.observe(shape, weight.address);
    const { matmul, algorithm } = this.#plan(shape);
    matmul.run(this.stream.value, algorithm, this.workspace.value, {
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

  #plan(shape: LinearShape): Plan {
    const key = algorithmKey(shape);
    const known = this.#plans.get(key);
    if (known !== undefined) return known;
    if (this.#plans.size >= MAX_PLANS) {
      const [oldest] = this.#plans.keys();
      this.#plans.get(oldest!)!.matmul.dispose();
      this.#plans.delete(oldest!);
    }
    const matmul = new LinearMatmul(this.cublas, shape);
    try {
      const ranked = () => matmul.algorithms(1, this.workspace.byteLength, rowAlignment(shape));
      const plan = { matmul, algorithm: this.tuner.best(shape) ?? ranked()[0]! };
      this.#plans.set(key, plan);
      return plan;
    } catch (error) {
      matmul.dispose();
      throw error;
    }
  }
}
