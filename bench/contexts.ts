/**
 * A decode step by the length of its contexts, beside what reading their keys and values takes: all else of a step should take as long
 * whatever the length. In a hybrid that is most of its layers.
 *
 *   bun run bench:contexts --model bench/models/qwen3.5-4b --load-format dummy
 *   bun run bench:contexts --contexts 128 --contexts 65536 --streams 4 ... --json FILE
 */
import { resolveEngineConfig } from "../src/base/config.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { addEngineFlags, engineOptions } from "../src/cli/engine-flags.ts";
import { countValue } from "../src/cli/flag-values.ts";
import { describeCeilings, measureCeilings } from "./ceilings.ts";
import { type DecodeShares, decodeShares, loadProfiled } from "./profile.ts";
import { describeMachine, makeRecord, writeRecord } from "./record.ts";
import { asLoaded, type DeviceLimits, decodeLimit, kvElementBytes } from "./roofline.ts";

const CONTEXTS = [128, 8192, 32768, 100_000] as const;

interface Flags {
  readonly model?: string;
  readonly contexts?: readonly number[];
  readonly streams: number;
  readonly json?: string;
}

/** A step with contexts of one length. Milliseconds. */
export interface ContextStep {
  readonly contextTokens: number;
  /** As a graph. */
  readonly step: number;
  /** Of the same step op by op: attention, and all else. */
  readonly attention: number;
  readonly others: number;
  /** Reading keys and values once at the read ceiling. */
  readonly limit: number;
  /** What the step and its limit are more than those of the first length. */
  readonly growth: number;
  readonly limitGrowth: number;
}

export interface ContextResults {
  readonly streams: number;
  readonly steps: readonly ContextStep[];
  readonly limits: DeviceLimits;
}

/** Steps in the order of their lengths, each compared with the first. @param limitOf milliseconds of a context's keys and values */
export function compareContexts(
  shares: readonly DecodeShares[],
  limitOf: (contextTokens: number) => number,
): ContextStep[] {
  const measured = shares
    .map(({ contextTokens, graphMilliseconds, opMilliseconds, classes }) => {
      const attention = classes.find((entry) => entry.class === "attention")?.milliseconds ?? 0;
      const others = opMilliseconds - attention;
      return { contextTokens, step: graphMilliseconds, attention, others, limit: limitOf(contextTokens) };
    })
    .sort((a, b) => a.contextTokens - b.contextTokens);
  return measured.map((entry) => ({
    ...entry,
    growth: entry.step - measured[0]!.step,
    limitGrowth: entry.limit - measured[0]!.limit,
  }));
}

if (import.meta.main) await run();

async function run(): Promise<void> {
  const command = createCommand("bench:contexts")
    .description("Measures decode steps by the length of their contexts.")
    .option("-m, --model <model>", "model folder or Hugging Face id (default: the embedded model)")
    .option(
      "--contexts <tokens>",
      `tokens of a context; may be repeated (default: ${CONTEXTS.join(", ")})`,
      (text, previous: readonly number[] = []) => [...previous, countValue(text)],
    )
    .option("--streams <count>", "sequences of a step", countValue, 1)
    .option("--json <file>", "write a record");
  addEngineFlags(command);
  command.action(async ({ model, contexts = CONTEXTS, streams, json }: Flags) => {
    const options = { ...engineOptions(command), skipTokenizerInit: true };
    const config = resolveEngineConfig(options);
    const limits = measureCeilings();
    const { loaded, profiler } = await loadProfiled(model, config);
    try {
      const modelConfig = asLoaded(loaded.modelConfig, config);
      const limitOf = (tokens: number) => {
        const lengths = Array<number>(streams).fill(tokens);
        return 1000 * decodeLimit(modelConfig, lengths, limits, kvElementBytes(config)).attention;
      };
      const shares = contexts.map((tokens) => decodeShares(loaded, profiler, streams, tokens));
      const results: ContextResults = { streams, steps: compareContexts(shares, limitOf), limits };
      console.log(`${loaded.name}, ${streams} × : ${describeCeilings(limits)}`);
      for (const step of results.steps) console.log(describe(step));
      if (json === undefined) return;
      const record = { benchmark: "contexts", model: loaded.name, options: config };
      writeRecord(json, makeRecord(record, results, describeMachine()));
      console.log(`wrote ${json}`);
    } finally {
      loaded.dispose();
    }
  });
  await runCommand(command, process.argv.slice(2));
}

function describe({ contextTokens, step, attention, others, growth, limitGrowth }: ContextStep): string {
  const parts = `op by op attention ${attention.toFixed(3)}, all else ${others.toFixed(3)}`;
  const grown = `${growth.toFixed(3)} more than the first, keys and values ${limitGrowth.toFixed(3)}`;
  const share = growth > 0 ? `: ${((100 * limitGrowth) / growth).toFixed(1)}%` : "";
  return `${String(contextTokens).padStart(7)} tokens  ${step.toFixed(3).padStart(7)} ms a step, ${parts}; ${grown}${share}`;
}
