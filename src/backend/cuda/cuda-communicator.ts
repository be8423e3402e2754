import type { FloatDType } from "../../base/dtype.ts";
import { DeviceError, invariant, messageOf } from "../../base/errors.ts";
import type { Shard } from "../../base/shard.ts";
import type { Context } from "../../cuda/context.ts";
import { NcclComm, ncclUniqueId } from "../../cuda/nccl.ts";
import { type NcclApi, UNIQUE_ID_BYTES } from "../../cuda/nccl-symbols.ts";
import type { Stream } from "../../cuda/stream.ts";
import type { Communicator } from "../communicator.ts";
import { byteLengthOf, type DeviceBuffer, Tensor } from "../tensor.ts";
import type { KernelOptions } from "./kernel.ts";
import type { KernelLibrary } from "./kernel-library.ts";
import type { KernelUnit } from "./kernel-source.ts";
import { PeerExchange } from "./ops/peer-exchange.ts";
import { largestSum, PeerMemory } from "./peer-memory.ts";
import { awaitRanks, type RankExchange, shareBytes, shareNumbers } from "./rank-exchange.ts";
import { measureCrossover } from "./reduce-choice.ts";

/** Messages beyond the compared sizes at which NCCL is run once, so that it has made its connections before steps are captured. */
const WARM_UP_BYTES = [2 ** 22, 2 ** 25];

export interface CudaCommunicatorOptions extends KernelOptions {
  readonly context: Context;
  /** The stream of all calls; work that is held back is on it when it is asked for. */
  readonly stream: () => Stream;
  readonly library: KernelLibrary;
  /** bfloat16 or float16, of residual streams. */
  readonly dtype: FloatDType;
  /** See `CudaBackendOptions`: sums then never change their way with their size, unless the GPUs do not reach each other. */
  readonly batchInvariant?: boolean;
  /** The way between the ranks' threads. */
  readonly exchange: RankExchange;
  /** @throws DeviceError where there is none. */
  readonly openNccl: () => NcclApi;
  readonly allocateZeroed: (byteLength: number) => DeviceBuffer;
}

/**
 * The ranks' exchange between GPUs of one process, a thread each. Small messages go through memory that the GPUs write into each
 * other, if they reach one another; large ones through NCCL, if it is there. With either alone all of them take that way. What
 * both can take is decided by `tune`, the same for all ranks.
 *
 * While others may be waiting for this rank on their GPUs, it should free no memory that they reach, which is all that it has:
 * the driver may wait for them first. Captured steps free nothing.
 */
export class CudaCommunicator implements Communicator {
  readonly shard: Shard;
  readonly #peerOps: PeerExchange;
  readonly #peers: PeerMemory | undefined;
  readonly #nccl: NcclComm | undefined;
  /** Bytes of the largest message that goes through peers' memory while there is another way. */
  #largestOwn: number;

  /**
   * Every rank makes its own at the same time: it waits on this thread for the others.
   * @throws DeviceError when two ranks have the same GPU or when there is no way between GPUs; as `RankExchange.share`. Whoever
   * catches it lets the other ranks know.
   */
  constructor(private readonly options: CudaCommunicatorOptions) {
    const { context, exchange, library, dtype } = options;
    const { shard } = exchange;
    this.shard = shard;
    this.#peerOps = new PeerExchange(library, dtype, shard, options);
    const nccl = openedNccl(options.openNccl);
    const ranks = shareNumbers(exchange, context.device.id, Number(typeof nccl !== "string"));
    const devices = ranks.map(([device]) => device!);
    checkDistinct(devices);
    const reaches = devices.every((device, rank) => rank === shard.rank || context.canReach(device));
    const linked = shareNumbers(exchange, Number(reaches)).every(([reached]) => reached === 1);
    if (linked) this.#peers = new PeerMemory(context, options.stream(), exchange);
    if (typeof nccl !== "string" && ranks.every(([, opened]) => opened === 1)) {
      const own = shard.rank === 0 ? ncclUniqueId(nccl) : new Uint8Array(UNIQUE_ID_BYTES);
      this.#nccl = NcclComm.join(nccl, context, shard, shareBytes(exchange, own)[0]!);
    }
    if (this.#peers === undefined && this.#nccl === undefined) {
      const missing = typeof nccl === "string" ? nccl : "another rank has no NCCL";
      throw new DeviceError(`the GPUs do not reach each other's memory, which takes NCCL: ${missing}`);
    }
    this.#largestOwn = this.#nccl === undefined || options.batchInvariant ? Infinity : largestSum(shard);
  }

  /** Units for all that is launched, for compiling ahead. */
  units(): KernelUnit[] {
    return this.#peerOps.units();
  }

  /** Bytes of the largest sum that Octavo's own kernel makes, 0 where it cannot. */
  get largestOwn(): number {
    return this.#peers === undefined ? 0 : this.#largestOwn;
  }

  /** Finds out from which size on NCCL is faster. Every rank must call it at the same point of its work, outside `capture`. */
  tune(): void {
    const [peers, nccl] = [this.#peers, this.#nccl];
    const { context, stream, dtype, allocateZeroed, exchange } = this.options;
    if (nccl === undefined) {
      // On the GPU, ranks do not wait for one that is late as long as here.
      awaitRanks(exchange);
      return;
    }
    const most = Math.max(largestSum(this.shard), ...WARM_UP_BYTES);
    const [residual, branch] = [allocateZeroed(most), allocateZeroed(most)];
    try {
      // Nobody waits on the GPU for a rank that allocates, or that frees: either may wait for all GPUs that reach the memory.
      awaitRanks(exchange);
      const view = (buffer: DeviceBuffer, bytes: number) =>
        new Tensor(buffer, dtype, [bytes / byteLengthOf(dtype, [])]);
      const nccled = (bytes: number) => this.#reduceByNccl(nccl, view(residual, bytes), view(branch, bytes));
      for (const bytes of WARM_UP_BYTES) nccled(bytes);
      if (peers !== undefined && this.#largestOwn !== Infinity) {
        const own = (bytes: number) =>
          this.#peerOps.reduceAdd(stream().value, peers, view(residual, bytes), view(branch, bytes));
        const rank = { context, stream: stream(), exchange };
        this.#largestOwn = measureCrossover(rank, { own, nccl: nccled }, largestSum(this.shard));
      }
      stream().synchronize();
      awaitRanks(exchange);
    } finally {
      for (const buffer of [branch, residual]) buffer.dispose();
    }
  }

  allReduceAdd(residual: Tensor, branch: Tensor): void {
    const { dtype } = this.options;
    invariant(
      residual.size === branch.size && residual.dtype === dtype && branch.dtype === dtype,
      `allReduceAdd: ${residual} += ${branch} in ${dtype}`,
    );
    const [peers, nccl] = [this.#peers, this.#nccl];
    if (peers !== undefined && (nccl === undefined || residual.byteLength <= this.#largestOwn))
      this.#peerOps.reduceAdd(this.options.stream().value, peers, residual, branch);
    else this.#reduceByNccl(nccl!, residual, branch);
  }

  allGather(out: Tensor, part: Tensor): void {
    const [peers, nccl] = [this.#peers, this.#nccl];
    invariant(
      out.size === part.size * this.shard.size && part.byteLength === 4 * part.size,
      `allGather: ${out} of ${part}`,
    );
    if (part.size === 0) return;
    const { value: stream } = this.options.stream();
    if (peers !== undefined && (nccl === undefined || part.size <= peers.gathers.capacity))
      this.#peerOps.gather(stream, peers, out, part);
    else nccl!.allGather(out.address, part.address, part.size, stream);
  }

  /**
   * out [rows, ranks · width] = every rank's part [rows, width] beside each other, of elements of 4 bytes. Through NCCL it is a
   * call a row.
   */
  gatherColumns(out: Tensor, part: Tensor): void {
    const [rows, width] = [part.dim(0), part.dim(1)];
    invariant(
      out.size === part.size * this.shard.size && part.byteLength === 4 * part.size,
      `gatherColumns: ${out} of ${part}`,
    );
    const [peers, { value: stream }] = [this.#peers, this.options.stream()];
    if (peers !== undefined) {
      this.#peerOps.gather(stream, peers, out, part, width);
      return;
    }
    for (let row = 0; row < rows; row++) {
      const [target, source] = [out.rows(row, row + 1), part.rows(row, row + 1)];
      this.#nccl!.allGather(target.address, source.address, width, stream);
    }
  }

  /** @throws NcclError when something enqueued has failed. Waits for nothing; own kernels fail as others do. */
  check(): void {
    this.#nccl?.check();
  }

  /** Ends, on this rank, what waits for other ranks; nothing but disposal may follow. Safe to call twice. */
  abort(): void {
    this.#peers?.giveUp();
    this.#nccl?.abort();
  }

  /** Sums round to `dtype` at every rank that they pass, unlike those of `reduceAdd`. */
  #reduceByNccl(nccl: NcclComm, residual: Tensor, branch: Tensor): void {
    const { value: stream } = this.options.stream();
    if (branch.size === 0) return;
    nccl.allReduce(branch.address, branch.address, branch.size, this.options.dtype, stream);
    this.#peerOps.add(stream, residual, branch);
  }
}

/** NCCL, or why there is none. */
function openedNccl(open: () => NcclApi): NcclApi | string {
  try {
    return open();
  } catch (error) {
    if (error instanceof DeviceError) return messageOf(error);
    throw error;
  }
}

function checkDistinct(devices: readonly number[]): void {
  for (const [rank, device] of devices.entries()) {
    const first = devices.indexOf(device);
    if (first !== rank) throw new DeviceError(`ranks ${first} and ${rank} are on the same GPU`);
  }
}
