/**
 * Tokens per second of `LLM.generate`, beside what the GPU could do at best; then, on a GPU, how long it waited between
 * steps and what a decode step's time goes to.
 *
 *   bun run bench                                 one stream and 16 streams of the embedded model
 *   bun run bench --workload FILE --model DIR     a recorded workload and one stream
 *   bun run bench ... --json FILE                 writes a record, see bench/results/README.md
 */
import type { EngineConfig } from "../src/base/config.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { addEngineFlags, engineOptions } from "../src/cli/engine-flags.ts";
import { integerValue } from "../src/cli/flag-values.ts";
import { LLM } from "../src/index.ts";
import type { ModelConfig } from "../src/models/config.ts";
import { type DecodeShares, type IdleTimes, type Profile, profile } from "./profile.ts";
import { describeMachine, makeRecord, writeRecord } from "./record.ts";
import { type DeviceLimits, limitsOf, type Roofline, roofline } from "./roofline.ts";
import { median, sum } from "./stats.ts";
import { type NamedWorkload, recordedWorkload, streams, timeGenerate } from "./workload.ts";

const STREAM_PROMPT_TOKENS = 32;
/** Runs of streams on a GPU, which are short. */
const STREAM_RUNS = 20;

interface Flags {
  readonly model?: string;
  readonly workload?: string;
  readonly tokens: number;
  readonly repeat: number;
  readonly profile: boolean;
  readonly json?: string;
}

interface Throughput {
  readonly workload: string;
  readonly requests: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** Of each run; the rest is of their median. */
  readonly seconds: readonly number[];
  readonly tokensPerSecond: number;
  /** The least time possible, and which share of its rate was reached; where the GPU's limits are known. */
  readonly limit?: Roofline;
  readonly ratio?: number;
}

const command = createCommand("bench")
  .description("Measures offline throughput.")
  .option("-m, --model <model>", "model folder or Hugging Face id (default: the embedded model)")
  .option("-w, --workload <file>", "requests to run, instead of 16 streams")
  .option("--tokens <count>", "tokens to generate in each stream", integerValue, 128)
  .option("--repeat <count>", "runs of each measurement; the median is printed", integerValue, 3)
  .option("--no-profile", "do not look at single steps and ops")
  .option("--json <file>", "write a record of everything");
addEngineFlags(command);
command.action(async (flags: Flags) => {
  const options = { ...engineOptions(command), skipTokenizerInit: true };
  const single = streams(1, STREAM_PROMPT_TOKENS, flags.tokens);
  const recorded = flags.workload === undefined ? undefined : recordedWorkload(flags.workload);
  const workloads = recorded ? [recorded, single] : [single, streams(16, STREAM_PROMPT_TOKENS, flags.tokens)];
  const machine = describeMachine();
  const throughput: Throughput[] = [];
  const llm = await LLM.create(flags.model, options);
  const { model, device } = llm;
  const limits = device === "cuda" ? limitsOf(machine.gpu) : undefined;
  console.log(`${model} on ${device === "cuda" ? machine.gpu : device}`);
  try {
    await timeGenerate(llm, streams(1, STREAM_PROMPT_TOKENS, 8));
    for (const workload of workloads) {
      const runs = device === "cuda" && workload !== recorded ? STREAM_RUNS : flags.repeat;
      const seconds: number[] = [];
      for (let i = 0; i < runs; i++) seconds.push(await timeGenerate(llm, workload));
      throughput.push(judge(workload, seconds, llm, limits));
      console.log(describeThroughput(throughput.at(-1)!));
    }
  } finally {
    llm.dispose();
  }
  const batches = [...new Set(workloads.map(({ requests }) => requests.length))];
  const steps: Profile | undefined =
    device === "cuda" && flags.profile ? await profile(flags.model, options, workloads, batches) : undefined;
  for (const idle of steps?.idle ?? []) console.log(describeIdle(idle));
  for (const shares of steps?.decode ?? []) console.log(describeDecode(shares));
  if (flags.json === undefined) return;
  const run = { benchmark: "throughput", model, options: { ...llm.config, workload: flags.workload } };
  writeRecord(flags.json, makeRecord(run, { throughput, ...steps, limits }, machine));
  console.log(`wrote ${flags.json}`);
});
await runCommand(command, process.argv.slice(2));

function judge(
  workload: NamedWorkload,
  seconds: readonly number[],
  llm: { readonly config: EngineConfig; readonly modelConfig: ModelConfig },
  limits: DeviceLimits | undefined,
): Throughput {
  const { name, requests } = workload;
  const lengths = requests.map(({ promptTokenIds, maxTokens }) => ({
    prompt: promptTokenIds.length,
    output: maxTokens,
  }));
  const outputTokens = sum(lengths.map(({ output }) => output));
  const tokensPerSecond = outputTokens / median(seconds);
  const limit = limits && roofline(llm.modelConfig, lengths, limits, llm.config);
  return {
    ...{ workload: name, requests: requests.length, outputTokens, seconds, tokensPerSecond },
    promptTokens: sum(lengths.map(({ prompt }) => prompt)),
    ...(limit && { limit, ratio: tokensPerSecond / limit.tokensPerSecond }),
  };
}

function describeThroughput({ workload, seconds, tokensPerSecond, outputTokens, limit, ratio }: Throughput) {
  const times = `${outputTokens} tokens in ${median(seconds).toFixed(3)} s, median of ${seconds.length}`;
  const spread = `${Math.min(...seconds).toFixed(3)}–${Math.max(...seconds).toFixed(3)} s`;
  const of = limit && `, ${percent(ratio!)} of the limit of ${limit.tokensPerSecond.toFixed(0)}`;
  return `${label(workload)} ${tokensPerSecond.toFixed(1).padStart(9)} tokens/s${of ?? ""}  (${times}, ${spread})`;
}

function describeIdle({ workload, steps, p50, p99, max, busySeconds, idleSeconds }: IdleTimes): string {
  const [middle, most, longest] = [p50, p99, max].map((microseconds) => microseconds.toFixed(1));
  const total = `${idleSeconds.toFixed(3)} s beside ${busySeconds.toFixed(3)} s of work`;
  return `${label(workload)} GPU idle between ${steps} steps: p50 ${middle} µs, p99 ${most} µs, max ${longest} µs; ${total}`;
}

function describeDecode(shares: DecodeShares): string {
  const { batch, contextTokens, graphMilliseconds, opMilliseconds, classes } = shares;
  const title =
    `a decode step of ${batch} × ${contextTokens} tokens: ${graphMilliseconds.toFixed(3)} ms as a graph, ` +
    `${opMilliseconds.toFixed(3)} ms op by op`;
  const lines = classes.map(({ class: name, ops, milliseconds, share }) => {
    const each = ((1000 * milliseconds) / ops).toFixed(1).padStart(8);
    return `  ${label(name)} ${percent(share).padStart(6)}  ${milliseconds.toFixed(3).padStart(8)} ms  ${String(ops).padStart(4)} × ${each} µs`;
  });
  return [title, ...lines].join("\n");
}

function label(text: string): string {
  return text.padEnd(18);
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)}%`;
}
