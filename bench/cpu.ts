/**
 * Decoding and prompts on the CPU, beside what this machine's memory can be read at, the reference backend and, where it is given,
 * llama.cpp on files of the same shapes:
 *
 *   bun run bench:cpu --json bench/results/FILE.json
 *   bun run bench:cpu --llama-cpp DIR     DIR has node_modules/node-llama-cpp with its prebuilt binaries
 *
 * Weights are random. Streams together are measured with all threads alone. The limit of one stream is the bytes that a token reads, all weights but the rows of the embedding that it does
 * not look up, at the bandwidth that the same threads have measured in the same run.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { measureBandwidth } from "../src/backend/simd/bandwidth.ts";
import { findKernels } from "../src/backend/simd/x64/machine-code.ts";
import type { CpuKernels } from "../src/base/config.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { countValue } from "../src/cli/flag-values.ts";
import { type EngineOptions, LLM } from "../src/index.ts";
import { writeGguf, writeQuantisedConfig } from "./cpu-files.ts";
import { measureLlamaCpp } from "./cpu-llama.ts";
import { makeRecord, writeRecord } from "./record.ts";

interface Flags {
  readonly model: string;
  readonly threads: number;
  readonly tokens: number;
  readonly prompt: number;
  readonly streams: number;
  readonly cpuKernels: CpuKernels;
  readonly runs: number;
  readonly llamaCpp?: string;
  readonly reference: boolean;
  readonly json?: string;
}

/** Tokens a second. */
export interface Rates {
  readonly stream: number;
  readonly prefill: number;
  readonly streams?: number;
}

interface Row extends Rates {
  readonly engine: string;
  readonly weights: string;
  readonly threads: number;
  /** Bytes that one token reads, and the share of the bandwidth that one stream has. */
  readonly bytes?: number;
  readonly share?: number;
}

const command = createCommand("bench:cpu")
  .description("Measures decoding and prompts on the CPU.")
  .option("-m, --model <folder>", "folder with the config of a Qwen3 model", "bench/models/qwen3-0.6b")
  .option("--threads <count>", "threads", countValue, availableParallelism())
  .option("--tokens <count>", "tokens that a stream writes", countValue, 16)
  .option("--prompt <count>", "tokens of a prompt", countValue, 128)
  .option("--streams <count>", "streams together", countValue, 16)
  .option("--cpu-kernels <name>", "auto, avx512, avx2 or wasm", "auto")
  .option("--runs <count>", "runs of each, of which the best counts", countValue, 3)
  .option("--llama-cpp <folder>", "folder with node_modules/node-llama-cpp, to be measured beside")
  .option("--no-reference", "leave the reference backend out")
  .option("--json <file>", "write a record");

command.action(async (flags: Flags) => {
  const folder = mkdtempSync(join(tmpdir(), "octavo-cpu-"));
  try {
    const bandwidth = await measureBandwidth({ threads: flags.threads, bytes: 2 ** 30, runs: 8 });
    const kernels = findKernels(flags.cpuKernels);
    console.log(`products are computed by ${kernels}`);
    console.log(`memory is read at ${(bandwidth / 1e9).toFixed(1)} GB/s, threads ${flags.threads}`);
    const rows: Row[] = [];
    const add = (row: Row) => {
      rows.push(row);
      console.log(describe(row));
    };
    const quantised = join(folder, "int4");
    writeQuantisedConfig(flags.model, quantised);
    for (const [weights, model] of [
      ["bfloat16", flags.model],
      ["int4", quantised],
    ] as const) {
      for (const threads of new Set([1, flags.threads])) {
        const { bytes, ...rates } = await measureOctavo(model, { device: "cpu", threads }, flags);
        const share = (rates.stream * bytes) / bandwidth;
        add({ engine: "octavo", weights, threads, ...rates, bytes, share });
      }
    }
    if (flags.reference) {
      const few = { ...flags, tokens: 2, prompt: 16, runs: 1 };
      const { bytes: _, ...rates } = await measureOctavo(flags.model, { device: "cpu-reference" }, few);
      add({ engine: "octavo, reference", weights: "float32", threads: 1, ...rates });
    }
    if (flags.llamaCpp !== undefined) {
      for (const matrices of ["BF16", "Q4_0", "Q4_K"] as const) {
        const path = join(folder, `${matrices}.gguf`);
        writeGguf(flags.model, path, matrices);
        const weights = matrices === "BF16" ? "bfloat16" : matrices;
        for (const threads of new Set([1, flags.threads])) {
          const rates = await measureLlamaCpp(flags.llamaCpp, path, threads, flags);
          add({ engine: "llama.cpp", weights, threads, ...rates });
          // The same file.
          const { bytes, ...own } = await measureOctavo(
            path,
            { device: "cpu", threads, loadFormat: "auto" },
            { ...flags, streams: 0 },
          );
          add({
            engine: "octavo",
            weights: `${weights}, the same file`,
            threads,
            ...own,
            bytes,
            share: (own.stream * bytes) / bandwidth,
          });
        }
      }
    }
    if (flags.json === undefined) return;
    const { json: _, llamaCpp, ...others } = flags;
    const options = { ...others, llamaCpp: llamaCpp !== undefined };
    writeRecord(
      flags.json,
      makeRecord({ benchmark: "cpu", model: flags.model, options }, { bandwidth, kernels, rows }),
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
});
await runCommand(command, process.argv.slice(2));

/** @returns rates, and the bytes that one token reads. */
async function measureOctavo(
  model: string,
  options: EngineOptions,
  flags: Flags,
): Promise<Rates & { readonly bytes: number }> {
  const { tokens, prompt, runs } = flags;
  const streams = options.threads === flags.threads ? flags.streams : 0;
  await using llm = await LLM.create(model, {
    ...{ loadFormat: "dummy", skipTokenizerInit: true, enablePrefixCaching: false },
    ...{
      maxModelLen: prompt + tokens + 8,
      maxNumBatchedTokens: Math.max(prompt, 64),
      maxNumSeqs: Math.max(1, streams),
      cpuKernels: flags.cpuKernels,
    },
    ...options,
  });
  const ids = (length: number, from: number) =>
    Array.from({ length }, (_, i) => 100 + ((from + 31 * i) % 2000));
  /** Seconds that it takes. */
  const generate = async (count: number, length: number, maxTokens: number) => {
    const prompts = Array.from({ length: count }, (_, i) => ({ promptTokenIds: ids(length, 7 * i) }));
    const start = performance.now();
    await llm.generate(prompts, { temperature: 0, ignoreEos: true, maxTokens });
    return (performance.now() - start) / 1000;
  };
  await generate(1, 4, 4);
  const best = async (measure: () => Promise<number>) => {
    let least = Infinity;
    for (let run = 0; run < runs; run++) least = Math.min(least, await measure());
    return least;
  };
  // What the first token takes is the prompt's.
  const stream = await best(async () => (await generate(1, 8, tokens + 1)) - (await generate(1, 8, 1)));
  const prefill = await best(() => generate(1, prompt, 1));
  const together =
    streams === 0
      ? undefined
      : await best(async () => (await generate(streams, 8, tokens + 1)) - (await generate(streams, 8, 1)));
  return {
    stream: tokens / stream,
    prefill: prompt / prefill,
    ...(together !== undefined && { streams: (streams * tokens) / together }),
    bytes: llm.weights.bytes,
  };
}

function describe({ engine, weights, threads, stream, prefill, streams, share }: Row): string {
  const parts = [
    `${stream.toFixed(1)} tokens/s${share === undefined ? "" : ` (${(100 * share).toFixed(0)}% of the bandwidth)`}`,
    `prompts ${prefill.toFixed(1)} tokens/s`,
    ...(streams === undefined ? [] : [`streams together ${streams.toFixed(1)} tokens/s`]),
  ];
  return `${engine}, ${weights}, threads ${threads}: ${parts.join(", ")}`;
}
