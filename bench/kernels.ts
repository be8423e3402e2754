/**
 * Each kernel's time beside the least it could take on this GPU: what it must read at the read ceiling, or what it must
 * compute at the matrix rate, both measured in the same run. Through `Backend`, so that what is timed is what the engine
 * runs, over memory that no cache holds.
 *
 *   bun run bench:kernels                                   all cases
 *   bun run bench:kernels --only decode --only "linear 8B"  those whose line has one of these texts
 *   bun run bench:kernels --json FILE                       writes a record, see bench/results/README.md
 */
import { join } from "node:path";
import type { ModelShape } from "../src/backend/backend.ts";
import { CudaBackend } from "../src/backend/cuda/cuda-backend.ts";
import { WHOLE } from "../src/base/shard.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { listValue } from "../src/cli/flag-values.ts";
import { Context } from "../src/cuda/context.ts";
import { openCuda } from "../src/cuda/open-cuda.ts";
import { attentionFormsOf } from "../src/models/attention-forms.ts";
import { readModelConfig } from "../src/models/config.ts";
import { type AttentionHeads, BLOCK_SIZE, decodeCase, prefillCase } from "./attention-cases.ts";
import { describeCeilings, measureCeilings } from "./ceilings.ts";
import { deltaNetCases } from "./delta-net-cases.ts";
import { expertCases } from "./expert-cases.ts";
import { CaseMemory, type KernelCase, type KernelTime, timeCase } from "./kernel-case.ts";
import { linearCases, QUANTISED_FORMS, TOKEN_COUNTS } from "./linear-cases.ts";
import { describeMachine, makeRecord, writeRecord } from "./record.ts";
import { rowCases } from "./row-cases.ts";
import { headCases, samplingCases } from "./sampling-cases.ts";
import { selection } from "./selection.ts";
import { contextLengths, recordedWorkload } from "./workload.ts";

interface Flags {
  readonly only?: readonly string[];
  readonly list?: true;
  readonly json?: string;
}

const MODELS = { "0.6B": model("qwen3-0.6b"), "8B": model("qwen3-8b") } as const;
const EXPERT_MODELS = {
  "30B-A3B": model("qwen3-30b-a3b"),
  "35B-A3B": model("qwen3.5-35b-a3b"),
  "gpt-oss-20b": model("gpt-oss-20b"),
} as const;
/** Head shapes beside those of the models: of Llama 3.2 1B, of Gemma 2 9B, and of Gemma 4 31B's layers without a window. */
const OTHER_HEADS: Readonly<Record<string, AttentionHeads>> = {
  d64: { numHeads: 32, numKvHeads: 8, headDim: 64 },
  d256: { numHeads: 16, numKvHeads: 8, headDim: 256 },
  d512: { numHeads: 32, numKvHeads: 4, headDim: 512 },
  "0.6B, eight bits": { ...MODELS["0.6B"], kvDtype: "float8_e4m3" },
};
const WORKLOAD_STEPS = [1, 150, 500];
const PROMPT_LENGTHS = [2048, 8192, 16384, 32768];

/** Cases that share memory of their own. */
type Group = (memory: CaseMemory) => KernelCase[];

/** Groups on a backend of their own: it times ways to multiply with the weights that it has seen, which must still be there. */
interface Section {
  /** What kernels are compiled for ahead, in parallel. */
  readonly shape: ModelShape;
  readonly groups: readonly Group[];
}

const command = createCommand("bench:kernels")
  .description("Measures kernels beside what the GPU can do.")
  .option("--only <text>", "cases whose line has this text; may be repeated", listValue)
  .option("--list", "print the cases and run none")
  .option("--json <file>", "write a record");
command.action(async ({ only, list, json }: Flags) => {
  const unmade = new CaseMemory({ activationDtype: "bfloat16" } as CudaBackend);
  const lineOf = ({ group, name }: KernelCase) => `${group}: ${name}`;
  const every = sections();
  const all = every.flatMap(({ groups }) => groups.flatMap((group) => group(unmade)));
  const isChosen = selection(only, all.map(lineOf));
  const wanted = (each: KernelCase) => isChosen(lineOf(each));
  const selected = every.map(({ shape, groups }) => ({
    ...{ shape, groups: groups.filter((group) => group(unmade).some(wanted)) },
  }));
  if (list) {
    for (const each of all.filter(wanted)) console.log(lineOf(each));
    return;
  }
  const machine = describeMachine();
  const cuda = openCuda();
  using _ = Context.retain(cuda.driver.api, cuda.device);
  const limits = measureCeilings(cuda);
  console.log(`${machine.gpu}: ${describeCeilings(limits)}`);
  const kernels: KernelTime[] = [];
  for (const { shape, groups } of selected.filter((section) => section.groups.length > 0)) {
    const backend = new CudaBackend(cuda, "bfloat16", { quantiseActivations: true });
    try {
      await backend.prepare(shape);
      for (const group of groups) {
        using memory = new CaseMemory(backend);
        for (const each of group(memory).filter(wanted)) {
          kernels.push(timeCase(backend, each, limits));
          console.log(describeKernel(kernels.at(-1)!));
        }
      }
    } finally {
      backend.dispose();
    }
  }
  if (json === undefined) return;
  const run = { benchmark: "kernels", model: "random operands", options: { only } };
  writeRecord(json, makeRecord(run, { limits, kernels }, machine));
  console.log(`wrote ${json}`);
});
await runCommand(command, process.argv.slice(2));

function sections(): Section[] {
  const models = Object.entries(MODELS).flatMap(([name, config]): Section[] => {
    const shape = { ...config, blockSize: BLOCK_SIZE, attentionForms: attentionFormsOf(config, WHOLE) };
    const rows: Group = (memory) => rowCases(memory, config.hiddenSize);
    return [
      { shape, groups: [(memory) => linearCases(memory, name, config)] },
      ...QUANTISED_FORMS.map((form) => ({
        ...{ shape, groups: [(memory: CaseMemory) => linearCases(memory, name, config, TOKEN_COUNTS, form)] },
      })),
      { shape, groups: [(memory) => headCases(memory, name, config)] },
      { shape, groups: [rows, ...attentionGroups(name, config)] },
    ];
  });
  const experts = Object.entries(EXPERT_MODELS).map(([name, config]): Section => {
    const shape = { ...models[0]!.shape, hiddenSize: config.hiddenSize };
    return { shape, groups: [(memory) => expertCases(memory, name, config)] };
  });
  const { shape } = models[0]!;
  const heads = Object.entries(OTHER_HEADS).map(([name, other]) => ({
    ...{ shape: { ...shape, ...other, rotaryDim: other.headDim }, groups: attentionGroups(name, other) },
  }));
  const draws: Group = (memory) => samplingCases(memory, MODELS["0.6B"].vocabSize);
  return [...models, ...experts, ...heads, { shape, groups: [draws] }, { shape, groups: [deltaNetCases] }];
}

function attentionGroups(name: string, heads: AttentionHeads): Group[] {
  const workload = recordedWorkload(join(import.meta.dir, "workloads/nano-vllm.json"));
  const contexts: [string, number[]][] = [
    ...WORKLOAD_STEPS.map((step): [string, number[]] => {
      // As the scheduler orders them.
      const lengths = contextLengths(workload, step).sort((a, b) => b - a);
      return [`${workload.name} step ${step}, ${lengths.length} rows`, lengths];
    }),
    ["1 × 32768", [32768]],
    ["16 × 16384", Array<number>(16).fill(16384)],
  ];
  return [
    ...contexts.map(([context, lengths]) => (memory: CaseMemory) => [
      decodeCase(memory, `decode attention ${name}`, context, heads, lengths),
    ]),
    ...PROMPT_LENGTHS.map(
      (length) => (memory: CaseMemory) =>
        [0, 1].map((window) => prefillCase(memory, `prefill attention ${name}`, heads, length, window)),
    ),
  ];
}

function model(name: string) {
  return readModelConfig(join(import.meta.dir, "models", name));
}

function describeKernel({ group, name, bytes, flops, microseconds, limitMicroseconds, share }: KernelTime) {
  const rate = `${(bytes / microseconds / 1e6).toFixed(2)} TB/s ${(flops / microseconds / 1e6).toFixed(0).padStart(4)} TFLOP/s`;
  const times = `${microseconds.toFixed(2).padStart(9)} µs  limit ${limitMicroseconds.toFixed(2).padStart(9)} µs`;
  return `${group.padEnd(26)} ${name.padEnd(32)} ${times}  ${rate}  ${(100 * share).toFixed(1).padStart(5)}%`;
}
