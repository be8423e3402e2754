/**
 * Tokens per second of `LLM.generate`, beside what this GPU could do at best; then, on a GPU, how long it waited between
 * steps and what a decode step's time goes to.
 *
 *   bun run bench                                 one stream and 16 streams of the embedded model
 *   bun run bench --workload FILE --model DIR     a recorded workload and one stream
 *   bun run bench --streams 1x32768+1 ...         greedy streams: count × prompt tokens + output tokens
 *   bun run bench -tp 2 ...                       on two GPUs, beside what both could do together
 *   bun run bench ... --json FILE                 writes a record, see bench/results/README.md
 */
import type { EngineConfig } from "../src/base/config.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { addEngineFlags, engineOptions } from "../src/cli/engine-flags.ts";
import { countValue } from "../src/cli/flag-values.ts";
import { LLM } from "../src/index.ts";
import type { ModelConfig } from "../src/models/config.ts";
import { describeCeilings, measureCeilings } from "./ceilings.ts";
import { type DecodeShares, type IdleTimes, type Profile, profile } from "./profile.ts";
import { describeMachine, makeRecord, writeRecord } from "./record.ts";
import {
  asLoaded,
  type DeviceLimits,
  kvElementBytes,
  type Roofline,
  requestLengths,
  roofline,
} from "./roofline.ts";
import { median, sum } from "./stats.ts";
import { type NamedWorkload, recordedWorkload, streams, streamsValue, timeGenerate } from "./workload.ts";

/** Streams are run until so many runs or seconds have passed, `repeat` times at least. */
const STREAM_RUNS = 20;
const STREAM_SECONDS = 1;

interface Flags {
  readonly model?: string;
  readonly workload?: string;
  readonly streams?: readonly NamedWorkload[];
  readonly repeat: number;
  readonly profile: boolean;
  readonly json?: string;
}

export interface Throughput {
  readonly workload: string;
  readonly requests: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** Of each run; the rest is of their median. */
  readonly seconds: readonly number[];
  readonly tokensPerSecond: number;
  /** On a GPU: the least time possible, and which share of its rate was reached. */
  readonly limit?: Roofline;
  readonly ratio?: number;
}

/** `results` of a record. */
export interface ThroughputResults extends Partial<Profile> {
  readonly throughput: readonly Throughput[];
  readonly limits?: DeviceLimits | undefined;
}

const command = createCommand("bench")
  .description("Measures offline throughput.")
  .option("-m, --model <model>", "model folder or Hugging Face id (default: the embedded model)")
  .option("-w, --workload <file>", "requests to run")
  .option("--streams <sizes>", "greedy streams to run, as 16x32+128; may be repeated", streamsValue)
  .option("--repeat <count>", "runs of each measurement; the median is printed", countValue, 3)
  .option("--no-profile", "do not look at single steps and ops")
  .option("--json <file>", "write a record of everything");
addEngineFlags(command);
command.action(async (flags: Flags) => {
  const options = { ...engineOptions(command), skipTokenizerInit: true };
  const recorded = flags.workload === undefined ? undefined : recordedWorkload(flags.workload);
  const synthetic = flags.streams ?? [streams(1, 32, 128), ...(recorded ? [] : [streams(16, 32, 128)])];
  const workloads = recorded ? [recorded, ...synthetic] : synthetic;
  const machine = describeMachine();
  const one = options.device !== "cpu" && machine.gpu !== undefined ? measureCeilings() : undefined;
  const limits = one && together(one, options.tensorParallelSize);
  const throughput: Throughput[] = [];
  const llm = await LLM.create(flags.model, options);
  const { model, device } = llm;
  console.log(`${model} on ${limits ? `${machine.gpu}: ${describeCeilings(limits)}` : device}`);
  try {
    await timeGenerate(llm, streams(1, 32, 8));
    for (const workload of workloads) {
      const seconds =
        workload === recorded
          ? await repeat(flags.repeat, () => timeGenerate(llm, workload))
          : await timeStreams(llm, workload, flags.repeat);
      throughput.push(judge(workload, seconds, llm, limits));
      console.log(describeThroughput(throughput.at(-1)!));
    }
  } finally {
    llm.dispose();
  }
  const batches = [...new Set(workloads.map(({ requests }) => requests.length))];
  const steps: Profile | undefined =
    limits && flags.profile ? await profile(flags.model, options, workloads, batches, { limits }) : undefined;
  for (const idle of steps?.idle ?? []) console.log(describeIdle(idle));
  for (const shares of steps?.decode ?? []) console.log(describeDecode(shares));
  if (flags.json === undefined) return;
  const run = { benchmark: "throughput", model, options: { ...llm.config, workload: flags.workload } };
  const results: ThroughputResults = { throughput, ...steps, limits };
  writeRecord(flags.json, makeRecord(run, results, machine));
  console.log(`wrote ${flags.json}`);
});
await runCommand(command, process.argv.slice(2));

/** The limits of several GPUs like this one. */
function together({ bytesPerSecond, flopsPerSecond }: DeviceLimits, gpus = 1): DeviceLimits {
  return { bytesPerSecond: gpus * bytesPerSecond, flopsPerSecond: gpus * flopsPerSecond };
}

/** The first run, which finds the ways to multiply for its sizes, is not counted. */
async function timeStreams(llm: LLM, workload: NamedWorkload, least: number): Promise<number[]> {
  const first = await timeGenerate(llm, workload);
  const runs = llm.device === "cuda" ? Math.min(STREAM_RUNS, Math.ceil(STREAM_SECONDS / first)) : 0;
  return repeat(Math.max(least, runs), () => timeGenerate(llm, workload));
}

async function repeat(runs: number, run: () => Promise<number>): Promise<number[]> {
  const times: number[] = [];
  for (let i = 0; i < runs; i++) times.push(await run());
  return times;
}

function judge(
  workload: NamedWorkload,
  seconds: readonly number[],
  llm: { readonly config: EngineConfig; readonly modelConfig: ModelConfig },
  limits: DeviceLimits | undefined,
): Throughput {
  const lengths = requestLengths(workload);
  const outputTokens = sum(lengths.map(({ output }) => output));
  const tokensPerSecond = outputTokens / median(seconds);
  const model = asLoaded(llm.modelConfig, llm.config);
  const options = { ...llm.config, kvBytes: kvElementBytes(llm.config) };
  const limit = limits && roofline(model, lengths, limits, options);
  return {
    ...{ workload: workload.name, requests: lengths.length, outputTokens, seconds, tokensPerSecond },
    promptTokens: sum(lengths.map(({ prompt }) => prompt)),
    ...(limit && { limit, ratio: tokensPerSecond / limit.tokensPerSecond }),
  };
}

function describeThroughput({ workload, seconds, tokensPerSecond, limit, ratio }: Throughput) {
  const [middle, least, most] = [median(seconds), Math.min(...seconds), Math.max(...seconds)].map(ms);
  const times = `${middle!.padStart(9)} ms, median of ${seconds.length}, ${least}–${most}`;
  const bound = limit && `; limit ${limit.tokensPerSecond.toFixed(1)} tokens/s, ${ms(limit.seconds)} ms`;
  const reached = ratio === undefined ? "" : `: ${percent(ratio)}`;
  return `${label(workload)} ${tokensPerSecond.toFixed(1).padStart(9)} tokens/s ${times}${bound ?? ""}${reached}`;
}

function describeIdle({ workload, steps, p50, p99, max, busySeconds, idleSeconds }: IdleTimes): string {
  const [middle, most, longest] = [p50, p99, max].map((microseconds) => microseconds.toFixed(1));
  const total = `${idleSeconds.toFixed(3)} s beside ${busySeconds.toFixed(3)} s of work`;
  return `${label(workload)} GPU idle between ${steps} steps: p50 ${middle} µs, p99 ${most} µs, max ${longest} µs; ${total}`;
}

function describeDecode(shares: DecodeShares): string {
  const { batch, contextTokens, graphMilliseconds, opMilliseconds, limitMilliseconds, classes } = shares;
  const bound = beside(graphMilliseconds, limitMilliseconds);
  const title =
    `a decode step of ${batch} × ${contextTokens} tokens: ${graphMilliseconds.toFixed(3)} ms as a graph${bound}, ` +
    `${opMilliseconds.toFixed(3)} ms op by op`;
  const lines = classes.map(({ class: name, ops, milliseconds, share, limitMilliseconds: least }) => {
    const each = ((1000 * milliseconds) / ops).toFixed(1).padStart(8);
    const time = `${milliseconds.toFixed(3).padStart(8)} ms  ${String(ops).padStart(4)} × ${each} µs`;
    return `  ${label(name)} ${percent(share).padStart(6)}  ${time}${beside(milliseconds, least)}`;
  });
  return [title, ...lines].join("\n");
}

/** A time's limit and how much of that rate was reached. */
function beside(milliseconds: number, limit: number | undefined): string {
  return limit === undefined ? "" : ` (limit ${limit.toFixed(3)} ms: ${percent(limit / milliseconds)})`;
}

function ms(seconds: number): string {
  return (1000 * seconds).toFixed(2);
}

function label(text: string): string {
  return text.padEnd(18);
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)}%`;
}
