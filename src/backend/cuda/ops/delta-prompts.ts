import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import {
  type BatchRows,
  channelsOf,
  type DeltaNetShape,
  type DeltaNetSpec,
  type StateCache,
} from "../../delta-net.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { convolvedDefines, dimDefines, dimsKey, HEADS, type HeadScalars, PLACE } from "./delta-dims.ts";
import { KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";

/** Tokens of a chunk, which end at its multiples. */
const CHUNK = 64;
/** Tokens whose chunks are computed at a time: so much scratch there is. */
const PIECE = 4096;
/** Threads of a block, whose warps have 16 tokens of a chunk each. */
const PREFILL_THREADS = 128;
/** `advance_states` has as many for each pair of 8 columns that a block takes through a prompt, for this many pairs at most. */
const MOST_PAIR_WARPS = 2;
/** Tokens of a warp of `convolve`. */
const CONVOLVED_TOKENS = 16;
/** Columns of a state that a block takes through a prompt. */
const MOST_COLUMNS = 32;

const CHUNKS = { CHUNK, PREFILL_THREADS } as const;
const PIECE_SCALARS = ["first_row", "begin", "end"] as const;

const CONVOLVE = {
  file: "delta_convolve.cu",
  constants: { ...CHUNKS, CONVOLVED_TOKENS },
  entry: "convolve",
  pointers: ["mixed", "projected", "tails", "convolution", "cu_seqlens", "context_lens", "row_slots"],
  scalars: [...PIECE_SCALARS, "rows", ...HEADS, ...PLACE],
} as const;
const PREPARE_CHUNKS = {
  file: "delta_prepare_chunks.cu",
  constants: CHUNKS,
  entry: "prepare_chunks",
  pointers: [
    ...(["weights", "updates", "products", "decays", "mixed", "gates", "decay_log", "time_bias"] as const),
    ...(["cu_seqlens", "context_lens"] as const),
  ],
  scalars: [...PIECE_SCALARS, "rows", ...HEADS],
} as const;
const ADVANCE_STATES = {
  file: "delta_advance_states.cu",
  constants: CHUNKS,
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

export interface DeltaPromptsOptions extends KernelOptions {
  readonly dtype: FloatDType;
  readonly sharedBytesPerBlock: number;
  readonly allocate: (byteLength: number) => DeviceBuffer;
}

export interface PromptCall {
  readonly out: Tensor;
  readonly projected: Tensor;
  readonly gates: Tensor;
  readonly cache: StateCache;
  readonly batch: BatchRows;
  readonly spec: DeltaNetSpec;
  /** Of the batch. */
  readonly tokens: number;
  readonly scalars: HeadScalars;
}

/**
 * The gated delta rule for rows of prompts, up to the norm of its outputs: three kernels for a piece of the batch at a time, see
 * `delta_chunks.cuh`. Scratch is allocated at the largest use.
 */
export class DeltaPrompts {
  readonly #options: DeltaPromptsOptions;
  readonly #convolve: KernelVariants<typeof CONVOLVE>;
  readonly #prepare: KernelVariants<typeof PREPARE_CHUNKS>;
  readonly #advance: KernelVariants<typeof ADVANCE_STATES>;
  readonly #mixed: Scratch;
  readonly #weights: Scratch;
  readonly #updates: Scratch;
  readonly #products: Scratch;
  readonly #decays: Scratch;

  constructor(library: KernelLibrary, options: DeltaPromptsOptions) {
    const { dtype, allocate } = options;
    this.#options = options;
    this.#convolve = new KernelVariants(library, CONVOLVE, dtype, options);
    this.#prepare = new KernelVariants(library, PREPARE_CHUNKS, dtype, options);
    this.#advance = new KernelVariants(library, ADVANCE_STATES, dtype, options);
    const scratch = () => new Scratch(allocate);
    this.#mixed = scratch();
    this.#weights = scratch();
    this.#updates = scratch();
    this.#products = scratch();
    this.#decays = scratch();
  }

  units(shape: DeltaNetShape): KernelUnit[] {
    return [
      this.#convolve.unit(convolvedDefines(shape)),
      this.#prepare.unit(this.#prepareDefines(shape)),
      this.#advance.unit(this.#advanceDefines(shape)),
    ];
  }

  /** Of all rows of prompts, which come after those of one token: outputs before their norm, states, and the tails of their ends. */
  launch(stream: number, call: PromptCall): void {
    for (let begin = call.batch.decodeRows; begin < call.tokens; begin += PIECE)
      this.#piece(stream, call, begin, Math.min(begin + PIECE, call.tokens));
  }

  /** The tokens [begin, end). */
  #piece(stream: number, call: PromptCall, begin: number, end: number): void {
    const { out, projected, gates, cache, batch, spec, scalars } = call;
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
    const key = dimsKey(spec);
    const blocks = Math.ceil(tokens / (CONVOLVED_TOKENS * (PREFILL_THREADS / WARP)));
    const allHeads = 2 * numKeyHeads + numValueHeads;
    this.#convolve.get(key, convolvedDefines(spec)).launch(stream, blocks, allHeads, 1, PREFILL_THREADS, 0, {
      ...common,
      rows,
      convolution: spec.convolution,
    });
    const prepared = { weights, updates, products, decays };
    const chunks = Math.floor(tokens / CHUNK) + 2 * rows;
    this.#prepare
      .get(key, this.#prepareDefines(spec))
      .launch(stream, chunks, numValueHeads, 1, PREFILL_THREADS, prepareBytes(spec, dtype), {
        ...{ ...common, ...prepared, rows, gates, decay_log: spec.decayLog, time_bias: spec.timeBias },
      });
    const parts = numValueHeads * (valueDim / columnsOf(spec));
    this.#advance
      .get(key, this.#advanceDefines(spec))
      .launch(stream, parts, rows, 1, advanceThreads(spec), advanceBytes(spec, dtype, this.#stages(spec)), {
        ...{ ...common, ...prepared, out },
      });
  }

  #prepareDefines(shape: DeltaNetShape): Macros {
    return { ...dimDefines(shape), PREPARE_BYTES: prepareBytes(shape, this.#options.dtype) };
  }

  #advanceDefines(shape: DeltaNetShape): Macros {
    const stages = this.#stages(shape);
    return {
      ...{ ...convolvedDefines(shape), PART: columnsOf(shape), STAGES: stages },
      ADVANCE_THREADS: advanceThreads(shape),
      ADVANCE_BYTES: advanceBytes(shape, this.#options.dtype, stages),
    };
  }

  /** Chunks in shared memory: the next one is on its way where there is room for two. */
  #stages(shape: DeltaNetShape): number {
    const { dtype, sharedBytesPerBlock } = this.#options;
    return advanceBytes(shape, dtype, 2) <= sharedBytesPerBlock ? 2 : 1;
  }
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
  const [keys, values] = [tileBytes(CHUNK, keyDim, dtype), tileBytes(CHUNK, valueDim, dtype)];
  const square = CHUNK * (CHUNK + 4) * dtypeSize("float32");
  return keys + values + Math.max(keys, square) + square + 2 * CHUNK * dtypeSize("float32");
}

/** Of `AdvanceShared`. */
function advanceBytes(shape: DeltaNetShape, dtype: FloatDType, stages: number): number {
  const tile = (rows: number, columns: number) => tileBytes(rows, columns, dtype);
  const [keyDim, columns] = [shape.keyDim, columnsOf(shape)];
  const chunk = 3 * tile(CHUNK, keyDim) + tile(CHUNK, CHUNK) + tile(CHUNK, columns);
  const decays = 2 * CHUNK * dtypeSize("float32");
  return stages * chunk + decays + tile(keyDim, columns) + 2 * tile(CHUNK, columns);
}
