import { dtypeSize } from "../../base/dtype.ts";
import type { Context } from "../../cuda/context.ts";
import { type CublasLt, type MatmulAlgorithm, matmulAlgorithm } from "../../cuda/cublaslt.ts";
import { LinearMatmul, type LinearShape } from "../../cuda/linear-matmul.ts";
import { DeviceMemory } from "../../cuda/memory.ts";
import type { Stream } from "../../cuda/stream.ts";
import { attempt, type ColdTimer, chosen } from "./cold-timer.ts";
import { algorithmKey, rowAlignment } from "./gemm-shape.ts";
import type { TuningCache } from "./tuning-cache.ts";

/** Algorithms that are timed for each shape. */
export const GEMM_CANDIDATES = 8;
/** Above this the LM head's output, which nobody asks for, would not fit. */
const MANY_TOKENS = 1024;
/**
 * Every byte of the inputs of a timed product: small numbers in either format. With zeros a GPU would draw so little power that
 * long products ran at clocks they never have.
 */
const INPUT_BYTE = 0x3c;

/** A shape without its number of tokens, which is the same for all products of a weight. */
type WeightShape = Omit<LinearShape, "tokens">;

/** The weights of a shape that the model multiplies by. */
interface SeenWeights {
  readonly shape: WeightShape;
  readonly addresses: Set<number>;
  /** The most tokens that one of them was multiplied by. */
  mostTokens: number;
}

/** A chosen algorithm as it is kept on disk. */
interface StoredAlgorithm {
  readonly algorithm: string;
  readonly workspaceBytes: number;
}

export interface GemmTunerParts {
  readonly context: Context;
  readonly stream: Stream;
  readonly cublas: CublasLt;
  readonly workspace: DeviceMemory;
  readonly timer: ColdTimer;
  readonly cache: TuningCache;
}

/**
 * Finds the fastest cuBLASLt algorithm of a shape. cuBLASLt's own ranking is a guess; the best of its first few is often much
 * faster at decode batch sizes, and by a tenth for thousands of tokens. Each is timed over the model's own weights of that shape.
 */
export class GemmTuner {
  readonly #weights = new Map<string, SeenWeights>();
  readonly #best = new Map<string, MatmulAlgorithm>();

  constructor(private readonly parts: GemmTunerParts) {}

  /** Remembers that the model multiplies by the weight at an address, and by how many tokens. */
  observe({ tokens, ...shape }: LinearShape, weight: number): void {
    const key = algorithmKey({ ...shape, tokens: 0 });
    const known = this.#weights.get(key);
    if (known === undefined) {
      this.#weights.set(key, { shape, addresses: new Set([weight]), mostTokens: tokens });
      return;
    }
    known.addresses.add(weight);
    known.mostTokens = Math.max(known.mostTokens, tokens);
  }

  /** The fastest algorithm known for the shape. */
  best(shape: LinearShape): MatmulAlgorithm | undefined {
    const key = algorithmKey(shape);
    let algorithm = this.#best.get(key);
    if (algorithm !== undefined) return algorithm;
    const stored = this.parts.cache.get<StoredAlgorithm>(key);
    if (stored === undefined) return undefined;
    algorithm = matmulAlgorithm(Buffer.from(stored.algorithm, "hex"), stored.workspaceBytes);
    this.#best.set(key, algorithm);
    return algorithm;
  }

  /**
   * Times the algorithms of every weight seen so far at these token counts, where the choice is not known yet; at thousands
   * of tokens only of weights seen with as many. What cannot be timed, for want of memory or because cuBLASLt refuses, is left
   * to cuBLASLt's own ranking.
   */
  tune(tokenCounts: readonly number[]): void {
    for (const { shape, addresses, mostTokens } of this.#weights.values()) {
      for (const tokens of tokenCounts) {
        if (tokens > Math.max(mostTokens, MANY_TOKENS)) continue;
        const whole = { ...shape, tokens };
        if (this.best(whole) === undefined) attempt(() => this.#time(whole, [...addresses]));
      }
    }
    this.parts.cache.save();
  }

  #time(shape: LinearShape, weights: readonly number[]): void {
    const { context, stream, cublas, workspace, timer, cache } = this.parts;
    const { tokens, inFeatures, outFeatures, inputType, outputType } = shape;
    const xBytes = tokens * inFeatures * dtypeSize(inputType);
    const outBytes = tokens * outFeatures * dtypeSize(outputType);
    const used = timer.cold(weights, inFeatures * outFeatures * dtypeSize(inputType) + xBytes + outBytes);
    using x = DeviceMemory.allocate(context, xBytes);
    using out = DeviceMemory.allocate(context, outBytes);
    using bias = DeviceMemory.allocate(context, outFeatures * dtypeSize(outputType));
    using matmul = new LinearMatmul(cublas, shape);
    stream.fill(x.value, INPUT_BYTE, x.byteLength);
    for (const memory of [out, bias]) stream.fill(memory.value, 0, memory.byteLength);
    const common = { out: out.value, x: x.value, bias: bias.value, addTo: out.value };
    const candidates = matmul.algorithms(GEMM_CANDIDATES, workspace.byteLength, rowAlignment(shape));
    const timed = candidates.map((algorithm) => {
      const time = timer.time(() => {
        for (const weight of used)
          matmul.run(stream.value, algorithm, workspace.value, { ...common, weight });
      });
      return { algorithm, time };
    });
    const best = chosen(timed)?.algorithm;
    if (best === undefined) return;
    const { bytes, workspaceBytes } = best;
    this.#best.set(algorithmKey(shape), best);
    cache.set(algorithmKey(shape), { algorithm: Buffer.from(bytes).toString("hex"), workspaceBytes });
  }
}
