/**
 * Every figure that Octavo is judged by, each beside its limit on the GPU it runs on, in one table:
 *
 *   bun run bench:table                           all rows; wall-clock ones are medians of five processes
 *   bun run bench:table --only "8B" --processes 1 rows with this text
 *   bun run bench:table --json FILE               writes a record, see bench/results/README.md
 *
 * The other benchmarks do the measuring, in processes of their own, each with ceilings of its own moment; this one chooses
 * what they run and reads their records. Models have random weights in the shapes of bench/models/.
 */
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { countValue, listValue } from "../src/cli/flag-values.ts";
import { openCuda } from "../src/cuda/open-cuda.ts";
import { ChildError } from "./child-error.ts";
import type { KernelTime } from "./kernel-case.ts";
import { makeModel } from "./make-model.ts";
import { type BenchRecord, describeMachine, makeRecord, writeRecord } from "./record.ts";
import { selection } from "./selection.ts";
import { median } from "./stats.ts";
import type { ThroughputResults } from "./throughput.ts";

interface Flags {
  readonly only?: readonly string[];
  readonly processes: number;
  readonly tokenizer?: string;
  readonly list?: true;
  readonly json?: string;
}

/** A figure of one process, and the best it could be there. */
export interface Sample {
  readonly value: number;
  readonly limit?: number | undefined;
}

/** A line of the table, and how it is read from what a run of `run` found. */
interface Row {
  readonly name: string;
  readonly unit: "tokens/s" | "ms" | "µs" | "TFLOP/s" | "TB/s" | "×";
  readonly run: RunName;
  readonly read: (results: Results) => Sample;
}

/** Medians over the processes. */
export interface TableRow {
  readonly name: string;
  readonly unit: Row["unit"];
  readonly value: number;
  readonly limit?: number;
  /** Of the limit's rate, 0–1. */
  readonly share?: number;
  /** Of each process. */
  readonly samples: readonly number[];
}

/** `results` of the benchmarks' records, as far as rows are read from them. */
export type Results = Partial<ThroughputResults> & {
  readonly kernels?: readonly KernelTime[];
  readonly total?: number;
};

/** Steps behind the time of one. */
const DECODE_STEPS = 64;
const WORKLOAD = "nano-vllm";
const LENGTHS = [
  ...["1x1024+1", "1x32768+1", `1x32768+${1 + DECODE_STEPS}`, "16x16384+1", `16x16384+${1 + DECODE_STEPS}`],
  ...["64x32+1", `64x32+${1 + DECODE_STEPS}`],
  ...["64x32+1:logprobs", `64x32+${1 + DECODE_STEPS}:logprobs`],
];
const KERNELS = ["decode attention 0.6B", "prefill attention 0.6B", "sampling:"];

/** A benchmark's command. Those that take medians of many runs or processes by themselves run once. */
interface Run {
  readonly once?: true;
  readonly command: (workspace: string) => readonly string[];
}
type RunName = "0.6B" | "8B" | "lengths" | "steps" | "kernels" | "startup";
const RUNS: Readonly<Record<RunName, Run>> = {
  "0.6B": { command: () => [...throughput("qwen3-0.6b"), ...workload(), "--no-profile"] },
  "8B": { command: () => [...throughput("qwen3-8b"), ...workload(), "--no-profile"] },
  lengths: {
    command: () => [...throughput("qwen3-0.6b"), ...repeated("--streams", LENGTHS), "--no-profile"],
  },
  steps: { once: true, command: () => [...throughput("qwen3-0.6b"), ...workload()] },
  kernels: { once: true, command: () => ["bench/kernels.ts", ...repeated("--only", KERNELS)] },
  startup: {
    once: true,
    command: (workspace) => ["bench/startup.ts", "--model", modelFile(workspace)],
  },
};

export const ROWS: readonly Row[] = [
  rate("nano-vLLM workload, 0.6B", "0.6B", WORKLOAD),
  rate("nano-vLLM workload, 8B", "8B", WORKLOAD),
  rate("one greedy stream, 0.6B", "0.6B", "1x32+128"),
  rate("one greedy stream, 8B", "8B", "1x32+128"),
  decodeStep("decode step, 1 × 32k", "1x32768"),
  decodeStep("decode step, 16 × 16k", "16x16384"),
  ...[1, 150, 500].map((step) =>
    kernel(`decode attention, step ${step}`, "TB/s", `${WORKLOAD} step ${step},`),
  ),
  ...[2048, 8192, 16384, 32768].flatMap((length) => [
    kernel(`prefill attention, ${length} tokens`, "TFLOP/s", `${length} tokens`),
    prefillAlone(length),
  ]),
  time("first token, prompt of 1k", "lengths", "1x1024+1"),
  time("first token, prompt of 32k", "lengths", "1x32768+1"),
  time("prefill of 16 × 16k", "lengths", "16x16384+1"),
  idle("GPU idle between steps, p50", "p50"),
  idle("GPU idle between steps, p99", "p99"),
  {
    ...{ name: "step of 64 with one log-probability row", unit: "×", run: "lengths" },
    read: (results) => ({
      value: stepOf(results, "64x32", ":logprobs").value / stepOf(results, "64x32").value,
    }),
  },
  ...[1, 256].map(draws),
  {
    ...{ name: "first token of a 1.2 GB model", unit: "ms", run: "startup" },
    read: ({ total }) => ({ value: total! }),
  },
];

const command = createCommand("bench:table")
  .description("Measures every figure beside its limit.")
  .option("--only <text>", "rows with this text; may be repeated", listValue)
  .option("--processes <count>", "processes of each wall-clock figure; the median is printed", countValue, 5)
  .option("--tokenizer <folder>", "tokenizer files for the model whose start is timed (default: none)")
  .option("--list", "print the rows and run nothing")
  .option("--json <file>", "write a record");
if (import.meta.main) {
  command.action(async ({ only, processes, tokenizer, list, json }: Flags) => {
    const isChosen = selection(
      only,
      ROWS.map(({ name }) => name),
    );
    const rows = ROWS.filter(({ name }) => isChosen(name));
    if (list) {
      for (const { name, unit } of rows) console.log(`${name.padEnd(40)} ${unit}`);
      return;
    }
    // Without a GPU the workload would take days: says so at once instead.
    openCuda();
    const workspace = mkdtempSync(join(tmpdir(), "octavo-table-"));
    const table: TableRow[] = [];
    try {
      if (rows.some(({ run }) => run === "startup")) prepareModel(modelFile(workspace), tokenizer);
      for (const name of new Set(rows.map(({ run }) => run))) {
        const { once, command: commandOf } = RUNS[name];
        const results: Results[] = [];
        for (let i = 0; i < (once ? 1 : processes); i++)
          results.push(await measure(commandOf(workspace), join(workspace, "record.json")));
        for (const row of rows.filter(({ run }) => run === name)) {
          table.push(summarizeRow(row, results.map(row.read)));
          console.log(describeRow(table.at(-1)!));
        }
      }
    } finally {
      rmSync(workspace, { recursive: true });
    }
    if (json === undefined) return;
    const run = { benchmark: "table", model: "bench/models", options: { only, processes } };
    const ordered = rows.map(({ name }) => table.find((row) => row.name === name)!);
    writeRecord(json, makeRecord(run, { rows: ordered }, describeMachine()));
    console.log(`wrote ${json}`);
  });
  await runCommand(command, process.argv.slice(2));
}

/** Medians of samples and of their limits. The limit of a rate is above it, that of a time below. */
export function summarizeRow(
  { name, unit }: Pick<Row, "name" | "unit">,
  samples: readonly Sample[],
): TableRow {
  const values = samples.map(({ value }) => value);
  const value = median(values);
  const limits = samples.flatMap(({ limit }) => (limit === undefined ? [] : [limit]));
  if (limits.length === 0) return { name, unit, value, samples: values };
  const limit = median(limits);
  const isTime = unit === "ms" || unit === "µs";
  return { name, unit, value, limit, share: isTime ? limit / value : value / limit, samples: values };
}

/** What a benchmark found, in a process of its own. */
async function measure(args: readonly string[], file: string): Promise<Results> {
  const child = Bun.spawn([process.execPath, "run", ...args, "--json", file], {
    ...{ cwd: join(import.meta.dir, ".."), stdout: "pipe", stderr: "inherit" },
  });
  const output = await new Response(child.stdout).text();
  const code = await child.exited;
  if (code !== 0) throw new ChildError(`${args.join(" ")} failed: ${output}`, code);
  return (JSON.parse(readFileSync(file, "utf8")) as BenchRecord<Results>).results;
}

function throughput(model: string): string[] {
  const flags = ["--load-format", "dummy", "--repeat", "1"];
  return ["bench/throughput.ts", "--model", join(import.meta.dir, "models", model), ...flags];
}

function workload(): string[] {
  return ["--workload", join(import.meta.dir, `workloads/${WORKLOAD}.json`), "--streams", "1x32+128"];
}

function repeated(flag: string, values: readonly string[]): string[] {
  return values.flatMap((value) => [flag, value]);
}

function modelFile(workspace: string): string {
  return join(workspace, "model");
}

function prepareModel(folder: string, tokenizer: string | undefined): void {
  makeModel(join(import.meta.dir, "models/qwen3-0.6b"), folder);
  if (tokenizer === undefined) return;
  for (const name of ["tokenizer.json", "tokenizer_config.json"])
    if (existsSync(join(tokenizer, name))) cpSync(join(tokenizer, name), join(folder, name));
}

function found({ throughput }: Results, workload: string) {
  return throughput!.find((entry) => entry.workload === workload)!;
}

/** Tokens a second of a whole workload. */
function rate(name: string, run: RunName, workload: string): Row {
  const read = (results: Results) => {
    const { tokensPerSecond, limit } = found(results, workload);
    return { value: tokensPerSecond, limit: limit?.tokensPerSecond };
  };
  return { name, unit: "tokens/s", run, read };
}

/** Milliseconds of a whole workload. */
function time(name: string, run: RunName, workload: string): Row {
  const read = (results: Results) => milliseconds(results, workload);
  return { name, unit: "ms", run, read };
}

function milliseconds(results: Results, workload: string): Sample {
  const { seconds, limit } = found(results, workload);
  return { value: 1000 * median(seconds), limit: limit && 1000 * limit.seconds };
}

/** Streams with and without many steps more; what these take, each. */
function decodeStep(name: string, streams: string): Row {
  return { name, unit: "ms", run: "lengths", read: (results) => stepOf(results, streams) };
}

function stepOf(results: Results, streams: string, suffix = ""): Sample {
  const [one, many] = [1, 1 + DECODE_STEPS].map((tokens) =>
    milliseconds(results, `${streams}+${tokens}${suffix}`),
  ) as [Sample, Sample];
  const each = (a: number, b: number) => (b - a) / DECODE_STEPS;
  const known = one.limit !== undefined && many.limit !== undefined;
  return { value: each(one.value, many.value), ...(known && { limit: each(one.limit!, many.limit!) }) };
}

/** Rate of the one attention case whose name starts so. */
function kernel(name: string, unit: "TB/s" | "TFLOP/s", start: string): Row {
  const read = ({ kernels }: Results) => {
    const { bytes, flops, microseconds, limitMicroseconds } = kernels!.find((each) =>
      each.name.startsWith(start),
    )!;
    const work = (unit === "TB/s" ? bytes : flops) / 1e6;
    return { value: work / microseconds, limit: work / limitMicroseconds };
  };
  return { name, unit, run: "kernels", read };
}

/** The rate without norm, rotation and store: what they take is known from a window of one token. */
function prefillAlone(length: number): Row {
  const read = ({ kernels }: Results) => {
    const of = (start: string) => kernels!.find(({ name }) => name === `${start}${length} tokens`)!;
    const whole = of("");
    const work = whole.flops / 1e6;
    const value = work / (whole.microseconds - of("window of 1, ").microseconds);
    return { value, limit: work / whole.limitMicroseconds };
  };
  return { name: `the same without norm, rotation, store, ${length}`, unit: "TFLOP/s", run: "kernels", read };
}

function idle(name: string, which: "p50" | "p99"): Row {
  const read = (results: Results) => ({
    value: results.idle!.find(({ workload }) => workload === WORKLOAD)![which],
  });
  return { name, unit: "µs", run: "steps", read };
}

/** What top-k and top-p cost over plain temperature, for the worse of the distributions. */
function draws(rows: number): Row {
  const read = ({ kernels }: Results) => {
    const of = (mode: string, logits: string) =>
      kernels!.find(({ name }) => name === `${mode}, ${logits} logits, ${rows} rows`)!.microseconds;
    const costs = ["flat", "Zipf"].map((logits) => of("top-k + top-p", logits) - of("temperature", logits));
    return { value: Math.max(...costs) };
  };
  return { name: `top-k + top-p over temperature, ${rows} rows`, unit: "µs", run: "kernels", read };
}

function describeRow({ name, unit, value, limit, share, samples }: TableRow): string {
  const digits = unit === "tokens/s" || unit === "TFLOP/s" ? 1 : unit === "µs" ? 1 : 2;
  const figure = `${name.padEnd(42)} ${value.toFixed(digits).padStart(9)} ${unit.padEnd(8)}`;
  const bound =
    limit === undefined
      ? ""
      : `limit ${limit.toFixed(digits).padStart(9)} ${`${(100 * share!).toFixed(1)}%`.padStart(7)}`;
  const spread = `${Math.min(...samples).toFixed(digits)}–${Math.max(...samples).toFixed(digits)}`;
  return `${figure} ${bound.padEnd(24)}${samples.length > 1 ? `  ${spread} in ${samples.length} processes` : ""}`;
}
