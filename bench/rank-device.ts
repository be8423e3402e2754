import { CopiedSums, type CopiedSumsOptions } from "../src/backend/cuda/copied-sums.ts";
import { KernelLibrary } from "../src/backend/cuda/kernel-library.ts";
import { PeerExchange } from "../src/backend/cuda/ops/peer-exchange.ts";
import { PeerMemory } from "../src/backend/cuda/peer-memory.ts";
import {
  awaitRanks,
  type RankExchange,
  shareBytes,
  shareNumbers,
} from "../src/backend/cuda/rank-exchange.ts";
import { type DeviceBuffer, Tensor } from "../src/backend/tensor.ts";
import { type DType, dtypeSize } from "../src/base/dtype.ts";
import { DeviceError, messageOf } from "../src/base/errors.ts";
import { Context } from "../src/cuda/context.ts";
import { Graph } from "../src/cuda/graph.ts";
import { DeviceMemory } from "../src/cuda/memory.ts";
import { NcclComm, ncclUniqueId } from "../src/cuda/nccl.ts";
import { UNIQUE_ID_BYTES } from "../src/cuda/nccl-symbols.ts";
import { type Machine, openCuda, openNccl, thisMachine } from "../src/cuda/open-cuda.ts";
import { Event, Stream } from "../src/cuda/stream.ts";
import { median } from "./stats.ts";

/** Operations of a timed graph, and its timed replays. */
const OPERATIONS = 200;
const REPLAYS = 10;
/** Major compute capability from which kernels may overlap with the one ahead of them. */
const DEPENDENT_LAUNCH_CAPABILITY = 9;

/** One rank's GPU, and its ways to the others: each by itself, whatever the engine would choose. */
export class RankDevice implements Disposable {
  readonly context: Context;
  readonly stream: Stream;
  readonly exchange: PeerExchange;
  readonly peers: PeerMemory;
  /** Undefined where a rank has no NCCL. */
  readonly nccl: NcclComm | undefined;
  readonly ncclVersion: string;

  /** All ranks at the same time. @throws DeviceError where GPUs do not reach each other. */
  constructor(
    readonly ranks: RankExchange,
    cuda = openCuda(ranks.shard.rank),
    machine = thisMachine(),
  ) {
    const { shard } = ranks;
    this.context = Context.retain(cuda.driver.api, cuda.device);
    this.stream = Stream.create(this.context);
    const library = KernelLibrary.create(this.context, cuda.nvrtc, { nvrtcFiles: cuda.nvrtcFiles });
    const dependentLaunch = cuda.device.computeCapability[0] >= DEPENDENT_LAUNCH_CAPABILITY;
    this.exchange = new PeerExchange(library, "bfloat16", shard, { dependentLaunch });
    // While no GPU waits for another: the driver may wait for GPUs when it loads them.
    for (const unit of this.exchange.units()) library.kernel(unit, unit.file.replace(/\.cu$/, ""));
    const devices = shareNumbers(ranks, cuda.device.id);
    for (const [rank, [device]] of devices.entries()) {
      if (rank !== shard.rank && !this.context.canReach(device!))
        throw new DeviceError(`GPU ${shard.rank} does not reach the memory of GPU ${rank}`);
    }
    this.peers = new PeerMemory(this.context, this.stream, ranks);
    const opened = tryNccl(machine, cuda.driver.version[0]);
    this.ncclVersion = typeof opened === "string" ? opened : opened.version;
    const all = shareNumbers(ranks, Number(typeof opened !== "string"));
    if (typeof opened === "string" || !all.every(([has]) => has === 1)) return;
    const id = shard.rank === 0 ? ncclUniqueId(opened.api) : new Uint8Array(UNIQUE_ID_BYTES);
    this.nccl = NcclComm.join(opened.api, this.context, shard, shareBytes(ranks, id)[0]!);
  }

  /** Sums of two ranks by copies, through memory of its own. All ranks at the same time. */
  copiedSums(sizes: Pick<CopiedSumsOptions, "pieceBytes" | "groupBytes"> = {}): CopiedSums {
    const { context, exchange: ops, ranks } = this;
    const memory = new PeerMemory(context, this.stream, ranks);
    return new CopiedSums({ ...sizes, context, stream: () => this.stream, ops, memory, shard: ranks.shard });
  }

  /** Device memory of no particular contents. */
  tensor(dtype: DType, ...shape: number[]): Tensor {
    const bytes = shape.reduce((product, extent) => product * extent, dtypeSize(dtype));
    const memory = DeviceMemory.allocate(this.context, Math.max(1, bytes));
    const buffer: DeviceBuffer = {
      ...{ byteLength: bytes, address: memory.value },
      dispose: () => memory.dispose(),
    };
    return new Tensor(buffer, dtype, shape);
  }

  upload(target: Tensor, values: NodeJS.TypedArray): void {
    this.stream.upload(target.address, values, values.byteLength);
  }

  /** Waits for all that was enqueued. */
  download(source: Tensor): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(source.byteLength);
    if (bytes.length > 0) this.stream.download(bytes, source.address, bytes.length);
    this.stream.synchronize();
    return bytes;
  }

  /** A launchable recording of what `enqueue` puts on the stream; everything must have run once before. */
  capture(enqueue: () => void) {
    using graph = Graph.capture(this.stream, enqueue);
    const replay = graph.instantiate();
    replay.upload(this.stream);
    return replay;
  }

  /** Microseconds of one `operation` among `count` in a graph: the median replay. All ranks at the same time. */
  time(operation: () => void, count = OPERATIONS): number {
    this.settle();
    operation();
    this.settle();
    using graph = this.capture(() => {
      for (let i = 0; i < count; i++) operation();
    });
    return this.#time(() => graph.launch(this.stream), count);
  }

  /** The same where each is launched by itself: for what takes the GPU longer than the host. */
  timeEager(operation: () => void, count: number): number {
    operation();
    return this.#time(() => {
      for (let i = 0; i < count; i++) operation();
    }, count);
  }

  #time(run: () => void, count: number): number {
    using start = Event.create(this.context, { timing: true });
    using end = Event.create(this.context, { timing: true });
    const times: number[] = [];
    for (let i = 0; i <= REPLAYS; i++) {
      this.settle();
      start.record(this.stream);
      run();
      end.record(this.stream);
      end.synchronize();
      if (i > 0) times.push((1000 * end.elapsedSince(start)) / count);
    }
    this.settle();
    return median(times);
  }

  /** Waits until no rank has anything to do: before memory is freed that others reach. */
  settle(): void {
    this.stream.synchronize();
    awaitRanks(this.ranks);
  }

  [Symbol.dispose](): void {
    this.context.dispose();
  }
}

/** NCCL with its version, or why there is none. */
function tryNccl(machine: Machine, driverMajor: number) {
  try {
    return openNccl(machine, driverMajor);
  } catch (error) {
    if (error instanceof DeviceError) return messageOf(error);
    throw error;
  }
}
