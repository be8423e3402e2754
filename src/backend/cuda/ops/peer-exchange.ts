import type { FloatDType } from "../../../base/dtype.ts";
import { dtypeSize } from "../../../base/dtype.ts";
import { MAX_RANKS, type Shard } from "../../../base/shard.ts";
import type { Tensor } from "../../tensor.ts";
import type { Addressed } from "../argument-packer.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { PEER_MEMORY_CONSTANTS, type PeerMemory } from "../peer-memory.ts";
import { accessWidth, KernelVariants, VECTOR_BYTES } from "./kernel-variants.ts";

/** Threads of a block, a vector or a word each. */
const PEER_THREADS = 512;
/** The fewest blocks of a message: its warps are spread over so many multiprocessors. More take longer to start than they save. */
const LEAST_BLOCKS = 16;
/** Nanoseconds that a kernel waits for another rank, should no host give it up: longer than hosts wait within a step. */
const PEER_TIMEOUT_NS = 25e9;

const CONSTANTS = { MAX_RANKS, PEER_THREADS, PEER_TIMEOUT_NS, ...PEER_MEMORY_CONSTANTS };

const REDUCE_ADD = {
  file: "reduce_add.cu",
  constants: CONSTANTS,
  entry: "reduce_add",
  pointers: ["residual", "branch", "rounds", "given_up"],
  scalars: ["offset", "capacity", "rank", "size"],
  values: ["peers"],
} as const;
const ADD_COPIED = {
  file: "reduce_add.cu",
  constants: CONSTANTS,
  entry: "add_copied",
  pointers: ["residual", "branch", "copies", "given_up"],
  scalars: ["offset", "capacity", "rank", "sequence", "size"],
  values: ["peers"],
} as const;
const ADD = {
  file: "reduce_add.cu",
  constants: CONSTANTS,
  entry: "add",
  pointers: ["residual", "branch"],
  scalars: ["size"],
} as const;
const GATHER_WORDS = {
  file: "gather_words.cu",
  constants: CONSTANTS,
  entry: "gather_words",
  pointers: ["out", "part", "rounds", "given_up"],
  scalars: ["offset", "first", "width", "capacity", "rank", "words"],
  values: ["peers"],
} as const;

/** Messages between the GPUs of ranks, through memory that they write into one another: `peers.cuh`. */
export class PeerExchange {
  readonly #reduceAdd: KernelVariants<typeof REDUCE_ADD>;
  readonly #addCopied: KernelVariants<typeof ADD_COPIED>;
  readonly #add: KernelVariants<typeof ADD>;
  readonly #gather: KernelVariants<typeof GATHER_WORDS>;
  readonly #vector: number;

  /** @param dtype bfloat16 or float16, of residual streams */
  constructor(
    library: KernelLibrary,
    readonly dtype: FloatDType,
    private readonly shard: Shard,
    options: KernelOptions = {},
  ) {
    this.#vector = VECTOR_BYTES / dtypeSize(dtype);
    this.#reduceAdd = new KernelVariants(library, REDUCE_ADD, dtype, options);
    // Between them the stream waits for events.
    this.#addCopied = new KernelVariants(library, ADD_COPIED, dtype, { ...options, dependentLaunch: false });
    this.#add = new KernelVariants(library, ADD, dtype, options);
    this.#gather = new KernelVariants(library, GATHER_WORDS, dtype, options);
  }

  /** Units for all exchanges, of whole vectors or not. */
  units(): KernelUnit[] {
    const streams = [this.#vector, 1].map((access) => this.#reduceAdd.unit(this.#defines(access)));
    return [...streams, this.#gather.unit(this.#ranks)];
  }

  /**
   * residual += the sum over ranks of branch, element by element in float32, bit-equal on every rank. Messages larger than
   * the memory go in pieces. The tensors are disjoint and have the same shape.
   * @param blocks of each kernel: by default a vector for each thread, within the limits
   */
  reduceAdd(stream: number, memory: PeerMemory, residual: Tensor, branch: Tensor, blocks?: number): void {
    const access = accessWidth(this.dtype, residual.size, residual, branch);
    const kernel = this.#reduceAdd.get(access, this.#defines(access));
    const { rounds, offset, capacity } = memory.sums;
    const fixed = { peers: memory.table, given_up: memory.givenUp, rank: this.shard.rank };
    for (const piece of piecesOf(residual.size, capacity * this.#vector)) {
      const count = blocks ?? blocksOf(memory, Math.ceil(piece.length / this.#vector));
      kernel.launch(stream, count, 1, 1, PEER_THREADS, 0, {
        ...{ ...fixed, rounds, offset, capacity, size: piece.length },
        residual: at(residual, piece.start),
        branch: at(branch, piece.start),
      });
    }
  }

  /**
   * The same sum, of whole aligned vectors, when the stream has come to the end of this rank's copies to the others.
   * @param copies the other ranks' terms: from this address on, of the memory's capacity each
   * @param sequence of this sum, the same at all ranks, from 1 without a gap
   */
  addCopied(
    stream: number,
    memory: PeerMemory,
    residual: Tensor,
    branch: Tensor,
    copies: number,
    sequence: number,
  ): void {
    const { counts, capacity } = memory.copies!;
    const kernel = this.#addCopied.get(this.#vector, this.#defines(this.#vector));
    const count = blocksOf(memory, Math.ceil(residual.size / this.#vector));
    kernel.launch(stream, count, 1, 1, PEER_THREADS, 0, {
      ...{ peers: memory.table, given_up: memory.givenUp, rank: this.shard.rank, offset: counts, capacity },
      ...{ residual, branch, copies: { address: copies }, sequence, size: residual.size },
    });
  }

  /** residual += branch, element by element: after a sum over ranks that something else has made. */
  add(stream: number, residual: Tensor, branch: Tensor): void {
    const { size } = residual;
    if (size === 0) return;
    const access = accessWidth(this.dtype, size, residual, branch);
    const blocks = Math.ceil(size / (this.#vector * PEER_THREADS));
    this.#add
      .get(access, this.#defines(access))
      .launch(stream, blocks, 1, 1, PEER_THREADS, 0, { residual, branch, size });
  }

  /**
   * out [rows, ranks, width] = every rank's part [rows, width], of elements of 4 bytes; in one row by default. Messages larger
   * than the memory go in pieces.
   */
  gather(stream: number, memory: PeerMemory, out: Tensor, part: Tensor, width = part.size): void {
    const { rounds, offset, capacity } = memory.gathers;
    const fixed = { peers: memory.table, given_up: memory.givenUp, rank: this.shard.rank };
    for (const piece of piecesOf(part.size, capacity)) {
      const blocks = blocksOf(memory, piece.length);
      this.#gather.get(0, this.#ranks).launch(stream, blocks, 1, 1, PEER_THREADS, 0, {
        ...{ ...fixed, rounds, offset, capacity, out, part },
        ...{ width, first: piece.start, words: piece.length },
      });
    }
  }

  get #ranks() {
    return { RANKS: this.shard.size };
  }

  #defines(access: number) {
    return { ...this.#ranks, ACCESS: access };
  }
}

/** Blocks of a message of so many vectors or words, one for each thread. */
function blocksOf(memory: PeerMemory, items: number): number {
  return Math.min(memory.blocks, Math.max(LEAST_BLOCKS, Math.ceil(items / PEER_THREADS)));
}

/** Of a message: none of nothing, which no rank sends. */
function piecesOf(size: number, most: number): { readonly start: number; readonly length: number }[] {
  return Array.from({ length: Math.ceil(size / most) }, (_, i) => ({
    start: i * most,
    length: Math.min(most, size - i * most),
  }));
}

/** A tensor from an element on. */
function at(tensor: Tensor, element: number): Addressed {
  return { address: tensor.address + element * dtypeSize(tensor.dtype) };
}
