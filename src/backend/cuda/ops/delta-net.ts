import { ConfigError, InvariantError } from "../../../base/errors.ts";
import {
  type BatchRows,
  checkDeltaNet,
  checkGateElements,
  type DeltaNetShape,
  type DeltaNetSpec,
  type StateCache,
} from "../../delta-net.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { checkDeltaNetDims, convolvedDefines, dimsKey, HEADS, PLACE } from "./delta-dims.ts";
import { DeltaPrompts, type DeltaPromptsOptions } from "./delta-prompts.ts";
import { accessWidth, KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";

const NORM_THREADS = 128;
const GATE_THREADS = 128;
/** Blocks of a cluster that divide a head of a row of one token, where rows alone would not keep the GPU busy; and columns of each. */
const DECODE_PARTS = 4;
const LEAST_PART = 16;

const DECODE = { file: "delta_net.cu", constants: { NORM_THREADS } } as const;

const DELTA_DECODE = {
  ...DECODE,
  entry: "delta_decode",
  pointers: [
    ...(["out", "projected", "gates", "tails", "states", "convolution", "decay_log", "time_bias"] as const),
    ...(["norm_weight", "context_lens", "row_slots"] as const),
  ],
  scalars: [...HEADS, ...PLACE, "eps"],
} as const;
const GATED_NORM = {
  ...DECODE,
  entry: "gated_norm",
  pointers: ["out", "projected", "norm_weight"],
  scalars: ["first", "count", ...HEADS, "eps"],
} as const;
const GATE_ELEMENTS = {
  file: "gate_elements.cu",
  entry: "gate_elements",
  pointers: ["x", "gate"],
  scalars: ["count"],
} as const;

export interface DeltaNetOptions extends DeltaPromptsOptions {
  readonly smCount: number;
  readonly batchInvariant?: boolean;
}

/**
 * The ops of layers that keep a state: rows of one token are one kernel; those of prompts are a few, for a piece of the batch at a time.
 * Launch shapes depend on numbers of rows and tokens alone, so they can be captured; scratch is allocated at the largest use, which must
 * come before.
 */
export class DeltaNetOps {
  readonly #options: DeltaNetOptions;
  readonly #decode: KernelVariants<typeof DELTA_DECODE>;
  readonly #gatedNorm: KernelVariants<typeof GATED_NORM>;
  readonly #prompts: DeltaPrompts;
  readonly #gateElements: KernelVariants<typeof GATE_ELEMENTS>;

  constructor(library: KernelLibrary, options: DeltaNetOptions) {
    const { dtype } = options;
    this.#options = options;
    this.#decode = new KernelVariants(library, DELTA_DECODE, dtype, options);
    this.#gatedNorm = new KernelVariants(library, GATED_NORM, dtype, options);
    this.#prompts = new DeltaPrompts(library, options);
    this.#gateElements = new KernelVariants(library, GATE_ELEMENTS, dtype, options);
  }

  /** @throws UnsupportedModelError for heads that the kernels cannot take; ConfigError where batches must not matter. */
  units(shape: DeltaNetShape): KernelUnit[] {
    checkDeltaNetDims(shape);
    if (this.#options.batchInvariant)
      throw new ConfigError(
        "batchInvariant",
        "linear attention on cuda depends on how prompts are cut: batchInvariant is not supported for this model",
      );
    const access = accessWidth(this.#options.dtype, VECTOR_BYTES);
    return [
      ...this.#prompts.units(shape),
      ...[...new Set([1, this.#mostParts(shape)])].map((parts) =>
        this.#decode.unit(decodeDefines(shape, parts)),
      ),
      this.#gateElements.unit({ ACCESS: access }),
    ];
  }

  /** See `DeltaNetOps.deltaNet` of the backend. */
  deltaNet(
    stream: number,
    out: Tensor,
    projected: Tensor,
    gates: Tensor,
    cache: StateCache,
    batch: BatchRows,
    spec: DeltaNetSpec,
  ): void {
    const { dtype } = this.#options;
    const { tokens, layers } = checkDeltaNet(dtype, out, projected, gates, cache, batch, spec);
    checkDeltaNetDims(spec);
    for (const { address } of [out, projected, cache.tails, cache.states, spec.convolution])
      if (address % VECTOR_BYTES !== 0)
        throw new InvariantError(`deltaNet: memory at ${address} is not aligned`);
    const { numKeyHeads, numValueHeads } = spec;
    const heads = { key_heads: numKeyHeads, value_heads: numValueHeads };
    const place = { layers, layer: cache.layer };
    const { decodeRows, numRows } = batch;
    if (decodeRows > 0) {
      const parts = 2 * decodeRows * numValueHeads < this.#options.smCount ? this.#mostParts(spec) : 1;
      const kernel = this.#decode.get(dimsKey(spec) * DECODE_PARTS + parts - 1, decodeDefines(spec, parts));
      kernel.launch(stream, decodeRows, numValueHeads * parts, 1, decodeThreads(spec, parts), 0, {
        ...{ ...heads, ...place, out, projected, gates, tails: cache.tails, states: cache.states },
        ...{ convolution: spec.convolution, decay_log: spec.decayLog, time_bias: spec.timeBias },
        ...{ norm_weight: spec.norm.weight, eps: spec.norm.eps },
        ...{ context_lens: batch.contextLens, row_slots: batch.rowSlots },
      });
    }
    if (decodeRows === numRows) return;
    const scalars = { ...heads, ...place };
    this.#prompts.launch(stream, { out, projected, gates, cache, batch, spec, tokens, scalars });
    const count = (tokens - decodeRows) * numValueHeads;
    const blocks = Math.ceil(count / (NORM_THREADS / WARP));
    this.#gatedNorm.get(dimsKey(spec), decodeDefines(spec, 1)).launch(stream, blocks, 1, 1, NORM_THREADS, 0, {
      ...{ ...heads, out, projected, norm_weight: spec.norm.weight, eps: spec.norm.eps },
      ...{ first: decodeRows, count },
    });
  }

  /** See `DeltaNetOps.gateElements` of the backend. */
  gateElements(stream: number, x: Tensor, gate: Tensor): void {
    const { count } = checkGateElements(this.#options.dtype, x, gate);
    if (count === 0) return;
    const access = accessWidth(this.#options.dtype, count, x, gate);
    const blocks = Math.ceil(count / access / GATE_THREADS);
    const kernel = this.#gateElements.get(access, { ACCESS: access });
    kernel.launch(stream, blocks, 1, 1, GATE_THREADS, 0, { x, gate, count });
  }

  /** Clusters are of GPUs that have dependent launches, too. */
  #mostParts({ valueDim }: DeltaNetShape): number {
    return this.#options.dependentLaunch && valueDim / DECODE_PARTS >= LEAST_PART ? DECODE_PARTS : 1;
  }
}

function decodeDefines(shape: DeltaNetShape, parts: number): Macros {
  return { ...convolvedDefines(shape), DECODE_THREADS: decodeThreads(shape, parts), SPLIT: parts };
}

/** Threads with four columns each of as few rows of a state as 256 of them can hold it by. */
function decodeThreads({ keyDim, valueDim }: DeltaNetShape, parts: number): number {
  const columns = valueDim / parts / 4;
  return (keyDim / Math.max(1, (keyDim * columns) / 256)) * columns;
}
