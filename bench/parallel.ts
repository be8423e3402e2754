/**
 * What several GPUs give together: the 8B shape on one GPU and on ranks, at one stream and in nano-vLLM's workload; that workload on
 * as many replicas, divided among them and one for each; and a model that one card cannot hold, on ranks alone.
 *
 *   bun run bench:parallel                    on two GPUs
 *   bun run bench:parallel --ranks 4
 *   bun run bench:parallel --only 8B          rows with this text
 *   bun run bench:parallel --json FILE        writes a record, see bench/results/README.md
 *
 * `bench/throughput.ts` and `bench/replicas.ts` do the measuring, in a process of their own for each row. The model that is too large has the layers of
 * Llama 3.1 70B, as many as take 1.2 times the memory of one card, and random weights.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DeviceError } from "../src/base/errors.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { countValue, listValue } from "../src/cli/flag-values.ts";
import { inspectCuda } from "../src/cuda/cuda-report.ts";
import { type ModelConfig, readModelConfig } from "../src/models/config.ts";
import { defineModel } from "../src/models/registry.ts";
import { type BenchRecord, describeMachine, makeRecord, writeRecord } from "./record.ts";
import type { ThroughputResults } from "./throughput.ts";

interface Flags {
  readonly ranks: number;
  readonly only?: readonly string[];
  readonly repeat: number;
  readonly json?: string;
}

/** A model on so many GPUs. */
export interface ParallelRun {
  readonly name: string;
  readonly model: string;
  readonly ranks: number;
  /** Copies of the model, which share the requests. Default 1. */
  readonly replicas?: number;
  readonly workloads: readonly string[];
}

/** A figure, and how many times that of one GPU it is, where one GPU can run it. */
export interface ParallelRow {
  readonly name: string;
  readonly workload: string;
  readonly ranks: number;
  readonly replicas: number;
  readonly tokensPerSecond: number;
  readonly times?: number;
}

const MODELS = join(import.meta.dir, "models");
const STREAM = ["--streams", "1x32+128"];
const NANO = ["--workload", join(import.meta.dir, "workloads/nano-vllm.json")];
/** Of one card's memory, what the weights of a model take that it cannot hold. */
const TOO_LARGE = 1.2;
const BYTES_PER_WEIGHT = 2;

const command = createCommand("bench:parallel")
  .description("Measures one model on several GPUs.")
  .option("--ranks <count>", "GPUs that share a model", countValue, 2)
  .option("--only <text>", "rows with this text; may be repeated", listValue)
  .option("--repeat <count>", "runs of each measurement; the median is printed", countValue, 1)
  .option("--json <file>", "write a record");
if (import.meta.main) {
  command.action(async ({ ranks, only = [""], repeat, json }: Flags) => {
    const { gpus } = inspectCuda();
    if (gpus.length < ranks)
      throw new DeviceError(`${ranks} ranks take as many GPUs; there are ${gpus.length}`);
    const workspace = mkdtempSync(join(tmpdir(), "octavo-parallel-"));
    const rows: ParallelRow[] = [];
    try {
      const large = join(workspace, "large");
      const layers = writeLargeModel(large, gpus[0]!.totalMemory);
      const small = { name: "8B", model: join(MODELS, "qwen3-8b") };
      const copies = ["--copies", String(ranks)];
      const runs: readonly ParallelRun[] = [
        { ...small, ranks: 1, workloads: [...NANO, ...STREAM] },
        { ...small, ranks, workloads: [...NANO, ...STREAM] },
        { ...small, ranks: 1, replicas: ranks, workloads: NANO },
        { ...small, ranks: 1, replicas: ranks, workloads: [...NANO, ...copies] },
        {
          ...{ name: `${layers} layers of 70B`, model: large, ranks },
          workloads: [...STREAM, "--streams", "32x256+64"],
        },
      ];
      for (const run of runs.filter(({ name }) => only.some((text) => name.includes(text)))) {
        const { throughput } = await measure(run, repeat, join(workspace, "record.json"));
        for (const { workload, tokensPerSecond } of throughput!) {
          rows.push(rowOf(run, workload, tokensPerSecond, rows));
          console.log(describeRow(rows.at(-1)!));
        }
      }
    } finally {
      rmSync(workspace, { recursive: true });
    }
    if (json === undefined) return;
    const run = { benchmark: "parallel", model: "bench/models", options: { ranks, only, repeat } };
    writeRecord(json, makeRecord(run, { rows }, describeMachine()));
    console.log(`wrote ${json}`);
  });
  await runCommand(command, process.argv.slice(2));
}

/** Beside the row of the same model and workload, or of one copy of it, on one GPU, if there is one. */
export function rowOf(
  { name, ranks, replicas = 1 }: ParallelRun,
  workload: string,
  tokensPerSecond: number,
  before: readonly ParallelRow[],
): ParallelRow {
  const one = before.find(
    (row) =>
      row.name === name && row.ranks * row.replicas === 1 && workload.replace(/^\d+ × /, "") === row.workload,
  );
  const row = { name, workload, ranks, replicas, tokensPerSecond };
  return one === undefined ? row : { ...row, times: tokensPerSecond / one.tokensPerSecond };
}

export function describeRow({
  name,
  workload,
  ranks,
  replicas,
  tokensPerSecond,
  times,
}: ParallelRow): string {
  const beside = times === undefined ? "" : `, ${times.toFixed(2)} times one GPU`;
  const gpus = replicas > 1 ? `${replicas} replicas` : ranks === 1 ? "1 GPU" : `${ranks} ranks`;
  return `${name.padEnd(20)} ${workload.padEnd(14)} ${gpus.padEnd(10)} ${tokensPerSecond.toFixed(1).padStart(9)} tokens/s${beside}`;
}

/** Layers of a model whose weights take `bytes` at least. */
export function layersThatTake(config: ModelConfig, bytes: number): number {
  const weights = (numLayers: number) =>
    defineModel({ ...config, numLayers, layerWindows: Array<number>(numLayers).fill(0) }).parameters.reduce(
      (total, { shape }) => total + shape.reduce((size, extent) => size * extent, BYTES_PER_WEIGHT),
      0,
    );
  const [none, one] = [weights(1), weights(2) - weights(1)];
  return 1 + Math.ceil((bytes - none) / one);
}

/** Writes the config of a model that a card of so much memory cannot hold. @returns its layers. */
function writeLargeModel(folder: string, cardBytes: number): number {
  const source = join(MODELS, "llama-70b");
  const layers = layersThatTake(readModelConfig(source), TOO_LARGE * cardBytes);
  const config = JSON.parse(readFileSync(join(source, "config.json"), "utf8")) as object;
  mkdirSync(folder);
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, num_hidden_layers: layers }));
  return layers;
}

/** What a process of its own finds. */
async function measure(
  { model, ranks, replicas = 1, workloads }: ParallelRun,
  repeat: number,
  file: string,
): Promise<Partial<ThroughputResults>> {
  const flags = ["--device", "cuda", "--load-format", "dummy", "--repeat", String(repeat)];
  const script =
    replicas > 1
      ? ["bench/replicas.ts", "-dp", String(replicas)]
      : ["bench/throughput.ts", "--no-profile", "-tp", String(ranks)];
  const args = [...script, "--model", model, ...flags, ...workloads];
  const child = Bun.spawn([process.execPath, "run", ...args, "--json", file], {
    ...{ cwd: join(import.meta.dir, ".."), stdout: "inherit", stderr: "inherit" },
  });
  if ((await child.exited) !== 0) throw new Error(`${args.join(" ")} failed`);
  return (JSON.parse(readFileSync(file, "utf8")) as BenchRecord<ThroughputResults>).results;
}
