/**
 * Sums over the ranks of a model, on as many GPUs of one machine: checked first, then timed beside NCCL's, as captured steps
 * run them. Every rank has a thread of its own, as in the engine.
 *
 *   bun run bench:collectives                      on all GPUs, of which 2, 4 or 8 take part
 *   bun run bench:collectives --ranks 2 --rounds 100000
 *   bun run bench:collectives --stuck              also the time in which a rank that waits in vain can be freed
 *   bun run bench:collectives --json FILE          writes a record, see bench/results/README.md
 *
 * Fails where a sum is not what the CPU computes, bit by bit but for the sign of zeros, or ranks differ in any bit.
 */
import { ConfigError, DeviceError } from "../src/base/errors.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { integerValue } from "../src/cli/flag-values.ts";
import { gpuCount, openCuda } from "../src/cuda/open-cuda.ts";
import type { RankMessage, RankTask, RankTime } from "./collectives-rank.ts";
import { makeRecord, writeRecord } from "./record.ts";
import { Rendezvous } from "./rendezvous.ts";

interface Flags {
  readonly ranks?: number;
  readonly rounds: number;
  readonly seed: number;
  readonly stuck?: true;
  readonly json?: string;
}

type Done = Extract<RankMessage, { type: "done" }>;

const SIZES = Array.from({ length: 16 }, (_, i) => 4096 * 2 ** i);

const command = createCommand("bench:collectives")
  .description("Checks and measures sums over GPUs.")
  .option("--ranks <count>", "GPUs that take part: 2, 4 or 8 (default: as many as there are)", integerValue)
  .option("--rounds <count>", "sums to check; 0 checks nothing", integerValue, 10_000)
  .option("--seed <seed>", "of sizes, values and delays", integerValue, 1)
  .option("--stuck", "at the end, let a rank wait in vain and give up")
  .option("--json <file>", "write a record");
command.action(async (flags: Flags) => {
  const { rounds, seed, stuck, json } = flags;
  if (flags.ranks !== undefined && ![2, 4, 8].includes(flags.ranks))
    throw new ConfigError("ranks", `ranks must be 2, 4 or 8, not ${flags.ranks}`);
  // Says what is missing, where it is more than a GPU.
  openCuda();
  const ranks = flags.ranks ?? mostRanks();
  if (gpuCount() < ranks)
    throw new DeviceError(`${ranks} ranks take as many GPUs; ${gpuCount()} can be used`);
  const memory = Rendezvous.allocate(ranks);
  const task = { memory, size: ranks, rounds, seed, sizes: SIZES, stuck: stuck === true };
  const done = await Promise.all(Array.from({ length: ranks }, (_, rank) => runRank({ ...task, rank })));
  const times = SIZES.map((_, i) => slowest(done.map((rank) => rank.times[i]!)));
  console.log(`${ranks} ranks, NCCL ${done[0]!.nccl}; µs of one among 200 in a graph, at the slowest rank`);
  for (const time of times) console.log(describeTime(time));
  const stuckMs = done.find((rank) => rank.stuckMs !== undefined)?.stuckMs;
  if (stuckMs !== undefined)
    console.log(`a rank that waits in vain is freed ${stuckMs.toFixed(0)} ms after it is told to`);
  if (json === undefined) return;
  const run = { benchmark: "collectives", model: "random operands", options: { ranks, rounds, seed } };
  writeRecord(json, makeRecord(run, { nccl: done[0]!.nccl, checked: rounds, times, stuckMs }));
  console.log(`wrote ${json}`);
});
await runCommand(command, process.argv.slice(2));

function mostRanks(): number {
  const count = gpuCount();
  return [8, 4, 2].find((ranks) => ranks <= count) ?? 2;
}

/** Runs a rank on a thread of its own, until it has said all. */
function runRank(task: RankTask): Promise<Done> {
  const worker = new Worker(new URL("./collectives-rank.ts", import.meta.url));
  const { promise, resolve, reject } = Promise.withResolvers<Done>();
  worker.onerror = (event) => reject(new DeviceError(`rank ${task.rank}: ${event.message}`));
  worker.onmessage = ({ data }: MessageEvent<RankMessage>) => {
    if (data.type === "line") console.log(data.text);
    else if (data.type === "done") resolve(data);
    else reject(new DeviceError(`rank ${task.rank}: ${data.message}`));
  };
  worker.postMessage(task);
  return promise.finally(() => worker.terminate());
}

function slowest(times: readonly RankTime[]): RankTime {
  const most = (key: "fused" | "copied" | "nccl" | "ncclAdd") =>
    Math.max(...times.map((time) => time[key] ?? Number.NaN));
  const copied = times[0]!.copied === undefined ? {} : { copied: most("copied") };
  const both = Number.isNaN(most("nccl")) ? {} : { nccl: most("nccl"), ncclAdd: most("ncclAdd") };
  const blocks = Object.keys(times[0]!.fusedByBlocks).map(Number);
  const fusedByBlocks = Object.fromEntries(
    blocks.map((count) => [count, Math.max(...times.map((time) => time.fusedByBlocks[count]!))]),
  );
  return { bytes: times[0]!.bytes, fused: most("fused"), fusedByBlocks, ...copied, ...both };
}

function describeTime({ bytes, fused, copied, fusedByBlocks, nccl, ncclAdd }: RankTime): string {
  const show = (time: number | undefined) => (time === undefined ? "–" : time.toFixed(2)).padStart(7);
  const others = Object.entries(fusedByBlocks).map(([blocks, time]) => `${blocks}:${show(time)}`);
  const ways = `fused ${show(fused)}  copied ${show(copied)}  NCCL ${show(nccl)}, with addition ${show(ncclAdd)}`;
  return `${String(bytes / 1024).padStart(6)} KiB  ${ways}  fused in blocks ${others.join("  ")}`;
}
