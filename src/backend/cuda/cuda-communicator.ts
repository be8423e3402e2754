import type { FloatDType } from "../../base/dtype.ts";
import { DeviceError, invariant, messageOf } from "../../base/errors.ts";
import type { Shard, Span } from "../../base/shard.ts";
import type { Context } from "../../cuda/context.ts";
import { type BeginAbort, NcclComm, ncclUniqueId } from "../../cuda/nccl.ts";
import { type NcclApi, UNIQUE_ID_BYTES } from "../../cuda/nccl-symbols.ts";
import { Event, type Stream } from "../../cuda/stream.ts";
import type { Communicator } from "../communicator.ts";
import { byteLengthOf, type DeviceBuffer, Tensor } from "../tensor.ts";
import { CopiedSums } from "./copied-sums.ts";
import type { KernelOptions } from "./kernel.ts";
import type { KernelLibrary } from "./kernel-library.ts";
import type { KernelUnit } from "./kernel-source.ts";
import { VECTOR_BYTES } from "./ops/kernel-variants.ts";
import { PeerExchange } from "./ops/peer-exchange.ts";
import { largestSum, PeerMemory } from "./peer-memory.ts";
import { awaitRanks, type RankExchange, shareBytes, shareNumbers } from "./rank-exchange.ts";
import { measureCrossover } from "./reduce-choice.ts";

/**
 * Messages at which NCCL is run once, so that it has made its connections before steps are captured. The largest is also that of
 * the largest comparison.
 */
const WARM_UP_BYTES = [2 ** 22, 2 ** 25];
/** Looks at the GPU between two questions to NCCL, some 50 ms. */
const LOOKS_PER_CHECK = 512;

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
  /** Calls ncclCommAbort on another thread. Default: on this one. */
  readonly abortNccl?: BeginAbort;
  readonly allocateZeroed: (byteLength: number) => DeviceBuffer;
}

/**
 * The ranks' exchange between GPUs of one process, a thread each. Small messages go through memory that the GPUs write into each
 * other, if they reach one another; large ones through NCCL, if it is there. With either alone all of them take that way. What
 * both can take is decided by measurement, the same for all ranks. Between two ranks, branches that are large and come with what
 * computes them go piece by piece, see `CopiedSums`.
 *
 * While others may be waiting for this rank on their GPUs, it should allocate and free no memory that they reach, which is all
 * that it has, and load no kernel: the driver may wait for them first. So ranks meet when nothing else is under way, `rehearse`
 * what allocates, and capture at the same time.
 */
export class CudaCommunicator implements Communicator {
  readonly shard: Shard;
  readonly #peerOps: PeerExchange;
  #peers: PeerMemory | undefined;
  #nccl: NcclComm | undefined;
  /** Bytes of the largest message that goes through peers' memory while there is another way. */
  #largestOwn = 0;
  #copied: CopiedSums | undefined;
  #isAlone = false;
  #isCapturing = false;
  /** Marks the end of what was enqueued. */
  #mark: Event | undefined;
  #hasGivenUp = false;
  /** Steps were captured, which NCCL's calls may be in. */
  #hasCaptured = false;

  /** Waits for nobody: see `meet`. */
  constructor(private readonly options: CudaCommunicatorOptions) {
    this.shard = options.exchange.shard;
    this.#peerOps = new PeerExchange(options.library, options.dtype, this.shard, options);
  }

  /** Units for all that is launched, for compiling ahead. */
  units(): KernelUnit[] {
    return this.#peerOps.units();
  }

  /** Bytes of the largest sum that Octavo's own kernel makes, 0 where it cannot. */
  get largestOwn(): number {
    return this.#peers === undefined ? 0 : this.#largestOwn;
  }

  /**
   * Finds the ways to the other ranks, and from which size on NCCL is faster. Every rank calls it at the same time, once, before
   * it sums or gathers anything; it waits on this thread for the others.
   * @throws DeviceError when two ranks have the same GPU or when there is no way between GPUs; as `RankExchange.share`. Whoever
   * catches it lets the other ranks know.
   */
  meet(): void {
    const { context, exchange, batchInvariant } = this.options;
    const { shard } = this;
    const nccl = openedNccl(this.options.openNccl);
    const [major, minor] = context.device.computeCapability;
    const own = [context.device.id, Number(typeof nccl !== "string"), 10 * major + minor];
    const ranks = shareNumbers(exchange, ...own);
    const devices = ranks.map(([device]) => device!);
    checkDistinct(devices);
    checkAlike(ranks.map(([, , capability]) => capability!));
    const reaches = devices.every((device, rank) => rank === shard.rank || context.canReach(device));
    const linked = shareNumbers(exchange, Number(reaches)).every(([reached]) => reached === 1);
    if (linked) this.#peers = new PeerMemory(context, this.options.stream(), exchange);
    if (typeof nccl !== "string" && ranks.every(([, opened]) => opened === 1)) {
      const id = shard.rank === 0 ? ncclUniqueId(nccl) : new Uint8Array(UNIQUE_ID_BYTES);
      this.#nccl = NcclComm.join(nccl, context, shard, shareBytes(exchange, id)[0]!);
    }
    if (this.#peers === undefined && this.#nccl === undefined) {
      const missing = typeof nccl === "string" ? nccl : "another rank has no NCCL";
      throw new DeviceError(`the GPUs do not reach each other's memory, which takes NCCL: ${missing}`);
    }
    if (this.#peers?.copies !== undefined && !batchInvariant) {
      const { stream } = this.options;
      this.#copied = new CopiedSums({ context, stream, ops: this.#peerOps, memory: this.#peers, shard });
    }
    this.#largestOwn = this.#nccl === undefined || batchInvariant ? Infinity : largestSum(shard);
    this.#tune();
  }

  /** Uses every way once, outside `capture`, and compares them. */
  #tune(): void {
    const [peers, nccl] = [this.#peers, this.#nccl];
    const { context, stream, dtype, allocateZeroed, exchange } = this.options;
    const most = Math.max(largestSum(this.shard), ...(nccl === undefined ? [] : WARM_UP_BYTES));
    const [residual, branch] = [allocateZeroed(most), allocateZeroed(most)];
    this.settle();
    const view = (buffer: DeviceBuffer, bytes: number) =>
      new Tensor(buffer, dtype, [bytes / byteLengthOf(dtype, [])]);
    const own = (bytes: number) =>
      this.#peerOps.reduceAdd(stream().value, peers!, view(residual, bytes), view(branch, bytes));
    const nccled = (bytes: number) => this.#reduceByNccl(nccl!, view(residual, bytes), view(branch, bytes));
    const words = (buffer: DeviceBuffer, count: number) => new Tensor(buffer, "uint32", [count]);
    // Whole vectors and others are kernels of their own.
    const smallest = [byteLengthOf(dtype, [1]), VECTOR_BYTES];
    if (peers !== undefined) {
      for (const bytes of smallest) own(bytes);
      this.#peerOps.gather(stream().value, peers, words(branch, this.shard.size), words(residual, 1));
      const row = (buffer: DeviceBuffer) => new Tensor(buffer, dtype, [1, VECTOR_BYTES]);
      this.#copied?.reduceAdd(row(residual), row(branch), () => {});
    }
    // NCCL allocates when it is first used.
    this.settle();
    if (nccl !== undefined) for (const bytes of [...smallest, ...WARM_UP_BYTES]) nccled(bytes);
    if (peers !== undefined && this.#largestOwn !== Infinity) {
      const rank = {
        ...{ context, stream: stream(), exchange },
        settle: () => this.settle(),
        wait: (event: Event) => this.wait(event),
      };
      this.#largestOwn = measureCrossover(rank, { own, nccl: nccled }, most);
    }
    this.settle();
    for (const buffer of [branch, residual]) buffer.dispose();
    // Nobody goes on while another frees.
    awaitRanks(exchange);
  }

  /**
   * Runs ops by themselves, whose results nobody looks at: no GPU waits for another, so memory may come and go. A sum has this
   * rank's term alone, and what is gathered is zeros.
   */
  rehearse(run: () => void): void {
    this.#isAlone = true;
    try {
      run();
    } finally {
      this.#isAlone = false;
    }
  }

  /**
   * Lets this rank capture, as all of them do at the same time: none has anything left to do before, none makes use of its
   * recording, which takes memory, while another still records, and none goes on until all are done.
   */
  capture<R extends Disposable, T>(record: () => R, instantiate: (recorded: R) => T): T {
    this.#hasCaptured = true;
    this.settle();
    using recorded = this.#recording(record);
    awaitRanks(this.options.exchange);
    const made = instantiate(recorded);
    this.settle();
    return made;
  }

  /** Without `CopiedSums`: steps that are recorded are replayed, and its messages are counted by the host. */
  #recording<R>(record: () => R): R {
    this.#isCapturing = true;
    try {
      return record();
    } finally {
      this.#isCapturing = false;
    }
  }

  /** Waits until no rank's GPU has anything left to do. Every rank calls it at the same point of its work. @throws as `wait`. */
  settle(): void {
    this.#mark ??= Event.create(this.options.context);
    this.#mark.record(this.options.stream());
    this.wait(this.#mark);
    awaitRanks(this.options.exchange);
  }

  /**
   * Waits for work that may wait for other ranks.
   * @throws EngineDeadError when a rank has failed, or does not take part in time; NcclError and CudaError when this GPU has. What
   * waits on the GPU is then given up.
   */
  wait(event: Event): void {
    let looks = 0;
    const isDone = () => {
      if (++looks % LOOKS_PER_CHECK === 0) this.#nccl?.check();
      return event.isDone;
    };
    try {
      this.options.exchange.waitUntil(isDone, "the GPU's work");
    } catch (error) {
      this.abort();
      throw error;
    }
  }

  /** See `Backend.leaveRanks`. */
  leave(): void {
    if (this.#hasGivenUp || (this.#peers === undefined && this.#nccl === undefined)) return;
    try {
      this.#mark ??= Event.create(this.options.context);
      this.#mark.record(this.options.stream());
      this.wait(this.#mark);
      // A rank that has failed would not release its end.
      if (this.options.exchange.hasFailed) this.abort();
    } catch {
      // Who waits for results has been told, or does not want them.
      this.abort();
    }
  }

  allReduceAdd(residual: Tensor, branch: Tensor, compute?: (rows: Span) => void): void {
    const { dtype } = this.options;
    invariant(
      residual.size === branch.size && residual.dtype === dtype && branch.dtype === dtype,
      `allReduceAdd: ${residual} += ${branch} in ${dtype}`,
    );
    const [peers, nccl] = [this.#peers, this.#nccl];
    const copied = this.#isAlone || this.#isCapturing ? undefined : this.#copied;
    if (compute !== undefined && copied?.suits(residual, branch)) {
      copied.reduceAdd(residual, branch, compute);
      return;
    }
    compute?.({ start: 0, end: branch.dim(0) });
    if (this.#isAlone) this.#peerOps.add(this.options.stream().value, residual, branch);
    else if (peers !== undefined && (nccl === undefined || residual.byteLength <= this.#largestOwn))
      this.#peerOps.reduceAdd(this.options.stream().value, peers, residual, branch);
    else this.#reduceByNccl(nccl!, residual, branch);
  }

  allGather(out: Tensor, part: Tensor): void {
    const [peers, nccl] = [this.#peers, this.#nccl];
    invariant(
      out.size === part.size * this.shard.size && part.byteLength === 4 * part.size,
      `allGather: ${out} of ${part}`,
    );
    if (part.size === 0 || this.#skips(out)) return;
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
    if (this.#skips(out)) return;
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

  /** Ends, on this rank, what waits for other ranks; nothing but disposal may follow. Safe to call twice. */
  abort(): void {
    this.#hasGivenUp = true;
    this.#peers?.giveUp();
    this.#nccl?.abort(this.#hasCaptured ? this.options.abortNccl : undefined);
  }

  /** Whether nothing is to be gathered: then it is zeros. */
  #skips(out: Tensor): boolean {
    if (this.#isAlone) this.options.stream().fill(out.address, 0, out.byteLength);
    return this.#isAlone;
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

/** Other kernels draw tokens on other kinds of GPUs, and ranks must do the same. */
function checkAlike(capabilities: readonly number[]): void {
  if (new Set(capabilities).size === 1) return;
  const found = capabilities.map((capability) => `${Math.floor(capability / 10)}.${capability % 10}`);
  throw new DeviceError(`ranks need GPUs of one compute capability, these have ${found.join(", ")}`);
}
