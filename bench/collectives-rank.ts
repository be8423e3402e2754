import type { CopiedSums } from "../src/backend/cuda/copied-sums.ts";
import { CudaBackend } from "../src/backend/cuda/cuda-backend.ts";
import { awaitRanks } from "../src/backend/cuda/rank-exchange.ts";
import { Tensor } from "../src/backend/tensor.ts";
import { messageOf } from "../src/base/errors.ts";
import { openCuda, openNccl, thisMachine } from "../src/cuda/open-cuda.ts";
import { CopyChecks } from "./copy-checks.ts";
import { RankChecks } from "./rank-checks.ts";
import { RankDevice } from "./rank-device.ts";
import { Rendezvous } from "./rendezvous.ts";

/** Numbers of blocks that sums are timed with beside the engine's. */
const OTHER_BLOCKS = [16, 32, 64, 128, 256];
/** The largest message that they are timed with. */
const MOST_BY_BLOCKS = 2 ** 22;
/** The smallest that copies are timed with. */
const LEAST_COPIED = 2 ** 23;
/** Messages whose copied sums are checked: one piece, some, and more than go at once. */
const LARGE_COPIES = [2 ** 21, 2 ** 25, 3 * 2 ** 25];

/** What a rank's thread is to do. */
export interface RankTask {
  readonly memory: SharedArrayBuffer;
  readonly rank: number;
  readonly size: number;
  /** Sums that are checked; 0 checks nothing. */
  readonly rounds: number;
  readonly seed: number;
  /** Message sizes to time, in bytes. */
  readonly sizes: readonly number[];
  /** At the end rank 0 waits for a sum that nobody else takes part in, and gives up. */
  readonly stuck: boolean;
}

/** Microseconds of one operation inside a graph, at one rank. */
export interface RankTime {
  readonly bytes: number;
  /** Sum over ranks and addition in one kernel of Octavo's. */
  readonly fused: number;
  /** The same with other numbers of blocks than the engine's. */
  readonly fusedByBlocks: Readonly<Record<number, number>>;
  /** Sum and addition by copy engines, of messages that are large enough. */
  readonly copied?: number;
  /** NCCL's sum alone, and with the addition after it. */
  readonly nccl?: number;
  readonly ncclAdd?: number;
}

export type RankMessage =
  | { readonly type: "line"; readonly text: string }
  | { readonly type: "failed"; readonly message: string }
  | {
      readonly type: "done";
      readonly times: readonly RankTime[];
      readonly nccl: string;
      readonly stuckMs?: number;
    };

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<RankTask>) => {
  const rendezvous = new Rendezvous(data.memory, data);
  try {
    run(data, rendezvous);
  } catch (error) {
    rendezvous.giveUp();
    post({
      type: "failed",
      message: error instanceof Error ? (error.stack ?? messageOf(error)) : messageOf(error),
    });
  }
};

function run(task: RankTask, rendezvous: Rendezvous): void {
  const device = new RankDevice(rendezvous);
  const checks = task.rounds > 0 ? new RankChecks(device, task.seed) : undefined;
  if (checks !== undefined) check(device, checks, task);
  const copied = task.size === 2 ? device.copiedSums() : undefined;
  if (copied !== undefined && task.rounds > 0) checkCopies(device, copied, task);
  const times = task.sizes.map((bytes) => timeSize(device, bytes, copied));
  if (task.rank === 0) post({ type: "line", text: `rank 0: ${JSON.stringify(times)}` });
  tune(rendezvous);
  // What may end in a trap comes last.
  const freeing = checks?.freeing() ?? 0;
  if (freeing > 0) post({ type: "line", text: `freeing memory while others wait: ${freeing.toFixed(1)} ms` });
  const stuckMs = task.stuck ? waitInVain(device) : undefined;
  // A context that has given up frees nothing, and the process ends.
  if (!task.stuck) {
    device.settle();
    device[Symbol.dispose]();
  }
  post({ type: "done", times, nccl: device.ncclVersion, ...(stuckMs !== undefined && { stuckMs }) });
}

/** What the engine would choose on this machine, and how long that takes it. */
function tune(ranks: Rendezvous): void {
  const { rank } = ranks.shard;
  const cuda = openCuda(rank);
  const openNcclHere = () => openNccl(thisMachine(), cuda.driver.version[0]).api;
  const start = performance.now();
  const backend = new CudaBackend(cuda, "bfloat16", { ranks: { exchange: ranks, openNccl: openNcclHere } });
  try {
    awaitRanks(ranks);
    const joined = performance.now();
    const communicator = backend.communicator!;
    communicator.meet();
    const end = performance.now();
    const times = `opening ${(joined - start).toFixed(0)} ms, meeting ${(end - joined).toFixed(0)} ms`;
    if (rank === 0)
      post({ type: "line", text: `Octavo's own up to ${communicator.largestOwn} bytes; ${times}` });
    awaitRanks(ranks);
  } finally {
    backend.dispose();
  }
  awaitRanks(ranks);
}

function check(device: RankDevice, checks: RankChecks, { rounds, rank }: RankTask): void {
  const say = (text: string) => {
    if (rank === 0) post({ type: "line", text });
  };
  const timed = (what: string, run: () => string) => {
    const start = performance.now();
    const outcome = run();
    say(`${what}: ${outcome}, ${((performance.now() - start) / 1000).toFixed(1)} s`);
  };
  const few = Math.ceil(rounds / 10);
  say(`what is expected is within ${checks.expectedError.toFixed(2)} units in the last place of float64`);
  // The shortest first: where nothing works, that is known at once.
  timed("first sums", () => `${checks.sums(8)} elements right on all ranks`);
  timed("gatherings", () => {
    checks.gathers(few);
    return `${few} right`;
  });
  timed("sums in a graph", () => {
    checks.graphs(few);
    return `${few} replays right on all ranks`;
  });
  timed("sums", () => `${rounds} rounds, ${checks.sums(rounds)} elements right on all ranks`);
  if (device.nccl === undefined) {
    say(`no NCCL: ${device.ncclVersion}`);
    return;
  }
  timed("NCCL's sums", () => {
    const largest = checks.nccl(Math.ceil(few / 10));
    return `the same on all ranks, within ${largest.toFixed(2)} units in the last place of float64`;
  });
}

function checkCopies(device: RankDevice, copied: CopiedSums, { rounds, seed, rank }: RankTask): void {
  const start = performance.now();
  const checks = new CopyChecks(device, seed);
  const elements = checks.sums(Math.ceil(rounds / 10));
  for (const bytes of LARGE_COPIES) checks.large(copied, bytes);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  const text = `sums by copies: ${elements} elements, and ${LARGE_COPIES.join(", ")} bytes, right on all ranks, ${seconds} s`;
  if (rank === 0) post({ type: "line", text });
}

function timeSize(device: RankDevice, bytes: number, copied: CopiedSums | undefined): RankTime {
  const [residual, branch] = [zeros(device, bytes), zeros(device, bytes)];
  const count = Math.max(4, Math.min(200, 2 ** 28 / bytes));
  const { exchange, peers, stream, nccl } = device;
  const reduce = () => nccl!.allReduce(branch.address, branch.address, branch.size, "bfloat16", stream.value);
  const time = {
    bytes,
    fused: device.time(() => exchange.reduceAdd(stream.value, peers, residual, branch), count),
    fusedByBlocks: Object.fromEntries(
      OTHER_BLOCKS.filter((blocks) => blocks <= peers.blocks && bytes <= MOST_BY_BLOCKS).map((blocks) => [
        blocks,
        device.time(() => exchange.reduceAdd(stream.value, peers, residual, branch, blocks)),
      ]),
    ),
    ...(copied !== undefined &&
      bytes >= LEAST_COPIED && {
        copied: device.timeEager(() => copied.reduceAdd(rowsOf(residual), rowsOf(branch), () => {}), count),
      }),
    ...(nccl !== undefined && {
      nccl: device.time(reduce, count),
      ncclAdd: device.time(() => {
        reduce();
        exchange.add(stream.value, residual, branch);
      }, count),
    }),
  };
  device.settle();
  for (const { buffer } of [residual, branch]) buffer.dispose();
  return time;
}

/** In rows of 4,096. */
function rowsOf({ buffer, dtype, size }: Tensor): Tensor {
  return new Tensor(buffer, dtype, [size / 4096, 4096]);
}

function zeros(device: RankDevice, bytes: number): Tensor {
  const tensor = device.tensor("bfloat16", bytes / 2);
  device.stream.fill(tensor.address, 0, bytes);
  return tensor;
}

/** Milliseconds from giving up to the driver's error; undefined at all ranks but the first. */
function waitInVain(device: RankDevice): number | undefined {
  const { ranks, exchange, peers, stream } = device;
  const [residual, branch] = [zeros(device, 4096), zeros(device, 4096)];
  stream.synchronize();
  awaitRanks(ranks);
  if (ranks.shard.rank !== 0) {
    // Its memory must stay until the first rank has ended.
    awaitRanks(ranks);
    return undefined;
  }
  exchange.reduceAdd(stream.value, peers, residual, branch);
  Bun.sleepSync(200);
  const start = performance.now();
  peers.giveUp();
  let error: unknown;
  try {
    stream.synchronize();
  } catch (thrown) {
    error = thrown;
  }
  const elapsed = performance.now() - start;
  awaitRanks(ranks);
  if (error === undefined) throw new Error("a sum that no other rank took part in has ended well");
  post({ type: "line", text: `a stuck sum ended with: ${messageOf(error)}` });
  return elapsed;
}

function post(message: RankMessage): void {
  postMessage(message);
}
