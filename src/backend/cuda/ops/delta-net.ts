import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { ConfigError, InvariantError, UnsupportedModelError } from "../../../base/errors.ts";
import {
  type BatchRows,
  channelsOf,
  checkDeltaNet,
  checkGateElements,
  type DeltaNetShape,
  type DeltaNetSpec,
  type StateCache,
} from "../../delta-net.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { accessWidth, KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";

/** Tokens of a chunk, which end at its multiples. */
const CHUNK = 64;
/** Tokens whose chunks are computed at a time: so much scratch there is. */
const PIECE = 4096;
const PREFILL_THREADS = 128;
/** The same for each pair of columns of 8 that a block takes through a prompt, of two pairs at most. */
const MOST_PAIR_WARPS = 2;
const NORM_THREADS = 128;
const GATE_THREADS = 128;
/** Tokens of a warp of `convolve`. */
const CONVOLVED_TOKENS = 8;
/** Columns of a state that a block takes through a prompt. */
const MOST_COLUMNS = 32;
const DIMS = [16, 32, 64, 128];
/** Blocks of a cluster that divide a head of a row of one token, where rows alone would not keep the GPU busy; and columns of each. */
const DECODE_PARTS = 4;
const LEAST_PART = 16;

const DECODE = { file: "delta_net.cu", constants: { NORM_THREADS } } as const;
const PREFILL = {
  file: "delta_net_prefill.cu",
  constants: { CHUNK, PREFILL_THREADS, CONVOLVED_TOKENS },
} as const;
const HEADS = ["key_heads", "value_heads"] as const;
const PLACE = ["layers", "layer"] as const;
const PIECE_SCALARS = ["first_row", "begin", "end"] as const;

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
const CONVOLVE = {
  ...PREFILL,
  entry: "convolve",
  pointers: ["mixed", "projected", "tails", "convolution", "cu_seqlens", "context_lens", "row_slots"],
  scalars: [...PIECE_SCALARS, "rows", ...HEADS, ...PLACE],
} as const;
const PREPARE_CHUNKS = {
  ...PREFILL,
  entry: "prepare_chunks",
  pointers: [
    ...(["weights", "updates", "products", "decays", "mixed", "gates", "decay_log", "time_bias"] as const),
    ...(["cu_seqlens", "context_lens"] as const),
  ],
  scalars: [...PIECE_SCALARS, "rows", ...HEADS],
} as const;
const ADVANCE_STATES = {
  ...PREFILL,
  entry: "advance_states",
  pointers: [
    ...([
      "out",
      "weights",
      "updates",
      "products",
      "decays",
      "mixed",
      "projected",
      "tails",
      "states",
    ] as const),
    ...(["cu_seqlens", "context_lens", "row_slots"] as const),
  ],
  scalars: [...PIECE_SCALARS, ...HEADS, ...PLACE],
} as const;
const GATE_ELEMENTS = {
  file: "gate_elements.cu",
  entry: "gate_elements",
  pointers: ["x", "gate"],
  scalars: ["count"],
} as const;

export interface DeltaNetOptions extends KernelOptions {
  readonly dtype: FloatDType;
  readonly sharedBytesPerBlock: number;
  readonly smCount: number;
  readonly batchInvariant?: boolean;
  readonly allocate: (byteLength: number) => DeviceBuffer;
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
  readonly #convolve: KernelVariants<typeof CONVOLVE>;
  readonly #prepare: KernelVariants<typeof PREPARE_CHUNKS>;
  readonly #advance: KernelVariants<typeof ADVANCE_STATES>;
  readonly #gateElements: KernelVariants<typeof GATE_ELEMENTS>;
  readonly #mixed: Scratch;
  readonly #weights: Scratch;
  readonly #updates: Scratch;
  readonly #products: Scratch;
  readonly #decays: Scratch;

  constructor(library: KernelLibrary, options: DeltaNetOptions) {
    const { dtype, allocate } = options;
    this.#options = options;
    this.#decode = new KernelVariants(library, DELTA_DECODE, dtype, options);
    this.#gatedNorm = new KernelVariants(library, GATED_NORM, dtype, options);
    this.#convolve = new KernelVariants(library, CONVOLVE, dtype, options);
    this.#prepare = new KernelVariants(library, PREPARE_CHUNKS, dtype, options);
    this.#advance = new KernelVariants(library, ADVANCE_STATES, dtype, options);
    this.#gateElements = new KernelVariants(library, GATE_ELEMENTS, dtype, options);
    const scratch = () => new Scratch(allocate);
    this.#mixed = scratch();
    this.#weights = scratch();
    this.#updates = scratch();
    this.#products = scratch();
    this.#decays = scratch();
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
      this.#prepare.unit(this.#prefillDefines(shape)),
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
    for (const { address } of [out, projected, cache.tails, cache.states])
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
    for (let begin = decodeRows; begin < tokens; begin += PIECE) {
      const end = Math.min(begin + PIECE, tokens);
      this.#piece(
        stream,
        { out, projected, gates, cache, batch, spec },
        { begin, end },
        { ...heads, ...place },
      );
    }
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

  /** The tokens [begin, end) of rows of prompts: outputs before their norm, and states. */
  #piece(
    stream: number,
    { out, projected, gates, cache, batch, spec }: PromptCall,
    { begin, end }: { readonly begin: number; readonly end: number },
    scalars: Record<(typeof HEADS)[number] | (typeof PLACE)[number], number>,
  ): void {
    const { dtype } = this.#options;
    const { numKeyHeads, numValueHeads, keyDim, valueDim } = spec;
    const { decodeRows, numRows } = batch;
    const [tokens, rows] = [end - begin, numRows - decodeRows];
    const perHead = (scratch: Scratch, dim: number) => scratch.tensor(dtype, [tokens * numValueHeads, dim]);
    const mixed = this.#mixed.tensor(dtype, [tokens, channelsOf(spec)]);
    const weights = perHead(this.#weights, keyDim);
    const updates = perHead(this.#updates, valueDim);
    const products = perHead(this.#products, CHUNK);
    const decays = this.#decays.tensor("float32", [tokens, numValueHeads]);
    const common = {
      ...{ ...scalars, first_row: decodeRows, begin, end, mixed, projected },
      ...{ cu_seqlens: batch.cuSeqlensQ, context_lens: batch.contextLens, row_slots: batch.rowSlots },
      ...{ tails: cache.tails, states: cache.states },
    };
    const [key, defines] = [dimsKey(spec), this.#prefillDefines(spec)];
    const blocks = Math.ceil(tokens / (CONVOLVED_TOKENS * (PREFILL_THREADS / WARP)));
    const allHeads = 2 * numKeyHeads + numValueHeads;
    this.#convolve.get(key, defines).launch(stream, blocks, allHeads, 1, PREFILL_THREADS, 0, {
      ...common,
      rows,
      convolution: spec.convolution,
    });
    const prepared = { weights, updates, products, decays };
    const chunks = Math.floor(tokens / CHUNK) + 2 * rows;
    this.#prepare
      .get(key, defines)
      .launch(stream, chunks, numValueHeads, 1, PREFILL_THREADS, prepareBytes(spec, dtype), {
        ...{ ...common, ...prepared, rows, gates, decay_log: spec.decayLog, time_bias: spec.timeBias },
      });
    const parts = numValueHeads * (valueDim / columnsOf(spec));
    this.#advance
      .get(key, defines)
      .launch(stream, parts, rows, 1, advanceThreads(spec), advanceBytes(spec, dtype, this.#stages(spec)), {
        ...{ ...common, ...prepared, out },
      });
  }

  /** Clusters are of GPUs that have dependent launches, too. */
  #mostParts({ valueDim }: DeltaNetShape): number {
    return this.#options.dependentLaunch && valueDim / DECODE_PARTS >= LEAST_PART ? DECODE_PARTS : 1;
  }

  #prefillDefines(shape: DeltaNetShape): Macros {
    const stages = this.#stages(shape);
    return {
      ...{
        ...dimDefines(shape),
        PART: columnsOf(shape),
        STAGES: stages,
        ADVANCE_THREADS: advanceThreads(shape),
      },
      PREPARE_BYTES: prepareBytes(shape, this.#options.dtype),
      ADVANCE_BYTES: advanceBytes(shape, this.#options.dtype, stages),
    };
  }

  /** Chunks in shared memory: the next one is on its way where there is room for two. */
  #stages(shape: DeltaNetShape): number {
    const { dtype, sharedBytesPerBlock } = this.#options;
    return advanceBytes(shape, dtype, 2) <= sharedBytesPerBlock ? 2 : 1;
  }
}

interface PromptCall {
  readonly out: Tensor;
  readonly projected: Tensor;
  readonly gates: Tensor;
  readonly cache: StateCache;
  readonly batch: BatchRows;
  readonly spec: DeltaNetSpec;
}

/** @throws UnsupportedModelError for heads that the kernels cannot take. */
export function checkDeltaNetDims({ keyDim, valueDim }: DeltaNetShape): void {
  for (const dim of [keyDim, valueDim])
    if (!DIMS.includes(dim))
      throw new UnsupportedModelError(
        "config.json",
        `linear attention on cuda does not take heads of ${dim} dimensions; supported are ${DIMS.join(", ")}`,
      );
}

/** A number of its own for the sizes that kernels are specialised by. */
function dimsKey({ keyDim, valueDim, convWidth }: DeltaNetShape): number {
  return (convWidth * 256 + keyDim) * 256 + valueDim;
}

function dimDefines({ keyDim, valueDim, convWidth }: DeltaNetShape): Macros {
  return { KEY_DIM: keyDim, VALUE_DIM: valueDim, CONV_WIDTH: convWidth };
}

function decodeDefines(shape: DeltaNetShape, parts: number): Macros {
  return { ...dimDefines(shape), DECODE_THREADS: decodeThreads(shape, parts), SPLIT: parts };
}

/** Threads with four columns each of as few rows of a state as 256 of them can hold it by. */
function decodeThreads({ keyDim, valueDim }: DeltaNetShape, parts: number): number {
  const columns = valueDim / parts / 4;
  return (keyDim / Math.max(1, (keyDim * columns) / 256)) * columns;
}

function columnsOf({ valueDim }: DeltaNetShape): number {
  return Math.min(valueDim, MOST_COLUMNS);
}

function advanceThreads(shape: DeltaNetShape): number {
  return PREFILL_THREADS * Math.min(MOST_PAIR_WARPS, columnsOf(shape) / 16);
}

/** Of a tile of shared memory, whose rows are apart by a vector more than they have. */
function tileBytes(rows: number, columns: number, dtype: FloatDType): number {
  return rows * (columns * dtypeSize(dtype) + VECTOR_BYTES);
}

/** Of `PrepareShared`. */
function prepareBytes({ keyDim, valueDim }: DeltaNetShape, dtype: FloatDType): number {
  const tiles = 2 * tileBytes(CHUNK, keyDim, dtype) + tileBytes(CHUNK, valueDim, dtype);
  return tiles + CHUNK * (CHUNK + 4 + CHUNK + 1 + 2) * dtypeSize("float32");
}

/** Of `AdvanceShared`. */
function advanceBytes(shape: DeltaNetShape, dtype: FloatDType, stages: number): number {
  const tile = (rows: number, columns: number) => tileBytes(rows, columns, dtype);
  const [keyDim, columns] = [shape.keyDim, columnsOf(shape)];
  const chunk =
    3 * tile(CHUNK, keyDim) + tile(CHUNK, CHUNK) + tile(CHUNK, columns) + CHUNK * dtypeSize("float32");
  return stages * chunk + tile(keyDim, columns) + 2 * tile(CHUNK, columns);
}
