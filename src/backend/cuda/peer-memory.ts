import { ptr } from "bun:ffi";
import { invariant } from "../../base/errors.ts";
import { MAX_RANKS, type Shard } from "../../base/shard.ts";
import type { Context } from "../../cuda/context.ts";
import { DeviceMemory, PinnedMemory } from "../../cuda/memory.ts";
import type { Stream } from "../../cuda/stream.ts";
import type { Addressed, HostValue } from "./argument-packer.ts";
import { type RankExchange, shareNumbers } from "./rank-exchange.ts";

/** Buffers that rounds take in turn, see peers.cuh. */
const BUFFERS = 2;
const VECTOR_BYTES = 16;
/** Bytes of a word with its tag. */
const TAGGED_BYTES = 8;
/** The largest message that is summed at once. All of it goes to every other rank, so more ranks get less. */
const LARGEST_SUM_BYTES = 2 ** 23;
const LEAST_SUM_BYTES = 2 ** 18;
/**
 * Bytes of the largest message whose terms copy engines bring at once, between two ranks. A ring takes less of the links of more
 * ranks than copies to all of them.
 */
const LARGEST_COPY_BYTES = 2 ** 27;
/** The most words that are gathered at once. */
const GATHER_WORDS = 2 ** 16;
/** Of a count for each rank, in whole vectors. */
const COUNT_BYTES = 4 * MAX_RANKS;
/** Blocks of a kernel that a multiprocessor has room for at once. */
const PEER_BLOCKS_PER_SM = 2;
/** The most blocks of a kernel. */
const PEER_BLOCKS = 256;

/** Constants of peers.cuh. */
export const PEER_MEMORY_CONSTANTS = { PEER_BLOCKS, PEER_BLOCKS_PER_SM };

/** Part of the memory that ranks write for one kind of kernel. */
export interface PeerArea {
  /** From the base of each rank's memory, in bytes. */
  readonly offset: number;
  /** Items of a message: vectors or words. */
  readonly capacity: number;
  /** Each block's rounds, uint32 [PEER_BLOCKS]. */
  readonly rounds: Addressed;
}

/** Part of the memory that other ranks' copy engines write. */
export interface CopyArea {
  /** Of what add_copied counts, from the base of each rank's memory, in bytes. */
  readonly counts: number;
  /** Of two buffers that take turns. */
  readonly offset: number;
  /** Vectors of a message. */
  readonly capacity: number;
}

/**
 * The memory through which the GPUs of ranks exchange messages: of this rank, which the others write, and of the others as this
 * GPU reaches it. Owned by the context; free it when the stream has nothing left to do, which it then has not at any rank.
 */
export class PeerMemory {
  /** The most blocks of a kernel. */
  readonly blocks: number;
  readonly sums: PeerArea;
  readonly gathers: PeerArea;
  /** Where there are two ranks. */
  readonly copies: CopyArea | undefined;
  /** Every rank's base address. */
  readonly table: HostValue;
  readonly #bases = new BigUint64Array(new ArrayBuffer(MAX_RANKS * 8));
  readonly #givenUp: PinnedMemory;

  /** @throws OctavoError when a rank has failed; CudaError when this GPU cannot reach another. */
  constructor(context: Context, stream: Stream, exchange: RankExchange) {
    const { shard } = exchange;
    invariant(shard.size <= MAX_RANKS, `${shard.size} ranks`);
    this.blocks = Math.min(PEER_BLOCKS, PEER_BLOCKS_PER_SM * context.device.multiprocessors);
    const places = BUFFERS * shard.size;
    const sumCapacity = largestSum(shard) / VECTOR_BYTES;
    const sumBytes = places * sumCapacity * VECTOR_BYTES;
    const counts = sumBytes + places * GATHER_WORDS * TAGGED_BYTES;
    const copies = counts + COUNT_BYTES;
    const copyBytes = shard.size === 2 ? BUFFERS * LARGEST_COPY_BYTES : 0;
    const memory = DeviceMemory.allocate(context, copies + copyBytes);
    const rounds = DeviceMemory.allocate(context, 2 * PEER_BLOCKS * 4);
    this.#givenUp = PinnedMemory.allocate(context, 4);
    new Uint32Array(this.#givenUp.bytes)[0] = 0;
    stream.fill(memory.value, 0, copies);
    stream.fill(rounds.value, 0, rounds.byteLength);
    // It must be empty before anyone else writes to it.
    stream.synchronize();
    const others = shareNumbers(exchange, context.value, memory.value);
    for (const [rank, [peer, base]] of others.entries()) {
      if (rank !== shard.rank) context.reach(peer!);
      this.#bases[rank] = BigInt(base!);
    }
    this.table = { hostAddress: ptr(this.#bases) };
    if (copyBytes > 0) this.copies = { counts, offset: copies, capacity: LARGEST_COPY_BYTES / VECTOR_BYTES };
    this.sums = { offset: 0, capacity: sumCapacity, rounds: { address: rounds.value } };
    this.gathers = {
      offset: sumBytes,
      capacity: GATHER_WORDS,
      rounds: { address: rounds.value + PEER_BLOCKS * 4 },
    };
  }

  /** The address of a rank's memory, as this GPU reaches it. */
  base(rank: number): number {
    return Number(this.#bases[rank]);
  }

  /** A word of host memory that is 0 until `giveUp`. */
  get givenUp(): Addressed {
    return { address: this.#givenUp.value };
  }

  /** Kernels of this rank that wait for others end with an error, which leaves the context of no use. */
  giveUp(): void {
    if (!this.#givenUp.isDisposed) new Uint32Array(this.#givenUp.bytes)[0] = 1;
  }
}

/** Bytes of the largest message that is summed at once. */
export function largestSum({ size }: Shard): number {
  return Math.max(LEAST_SUM_BYTES, LARGEST_SUM_BYTES / size);
}
