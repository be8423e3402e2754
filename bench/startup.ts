/**
 * Time from process start to the first token, phase by phase: medians of several processes.
 *
 *   bun run bench:startup --model DIR            kernels and matrix choices come from the disk cache
 *   bun run bench:startup --model DIR --cold     every process compiles and tunes anew
 *
 * bench/make-model.ts writes a checkpoint of any model's shapes, to be read as a real one is.
 */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { addEngineFlags, engineOptions } from "../src/cli/engine-flags.ts";
import { countValue } from "../src/cli/flag-values.ts";
import { ChildError } from "./child-error.ts";
import { makeRecord, writeRecord } from "./record.ts";
import type { PhaseEnds, StartupTask } from "./startup-child.ts";
import { median } from "./stats.ts";

interface Flags {
  readonly model?: string;
  readonly runs: number;
  readonly cold?: true;
  readonly json?: string;
}

/** Milliseconds; each phase goes on where the one before ended. */
interface StartTimes {
  readonly phases: ReadonlyMap<string, number>;
  readonly total: number;
}

const command = createCommand("bench:startup")
  .description("Measures the time from process start to the first token.")
  .option("-m, --model <model>", "model folder (default: the embedded model)")
  .option("--runs <count>", "processes; medians are printed", countValue, 5)
  .option("--cold", "give each process an empty cache of kernels and matrix choices")
  .option("--json <file>", "write a record");
addEngineFlags(command);
command.action(async (flags: Flags) => {
  const { model, runs, cold = false } = flags;
  const hasTokenizer = model === undefined || existsSync(join(model, "tokenizer.json"));
  const options = { skipTokenizerInit: !hasTokenizer, ...engineOptions(command) };
  const task: StartupTask = { options, ...(model !== undefined && { model }) };
  // Fills the disk cache, and the page cache with the weights.
  if (!cold) await runChild(task, cold);
  const times: StartTimes[] = [];
  for (let i = 0; i < runs; i++) times.push(await runChild(task, cold));

  const phases = [...times[0]!.phases.keys()].map((phase) => ({
    phase,
    milliseconds: median(times.map((run) => run.phases.get(phase) ?? 0)),
  }));
  const totals = times.map(({ total }) => total);
  for (const { phase, milliseconds } of phases) console.log(line(phase, milliseconds));
  console.log(`${line("total", median(totals))}  (${cold ? "cold" : "warm"} caches, median of ${runs})`);
  if (flags.json === undefined) return;
  const run = { benchmark: "startup", model: model ?? "tiny-stories", options: { ...options, cold } };
  writeRecord(flags.json, makeRecord(run, { phases, totals, total: median(totals) }));
});
await runCommand(command, process.argv.slice(2));

async function runChild(task: StartupTask, cold: boolean): Promise<StartTimes> {
  const cache = cold ? mkdtempSync(join(tmpdir(), "octavo-cold-")) : undefined;
  try {
    const script = join(import.meta.dir, "startup-child.ts");
    const started = performance.timeOrigin + performance.now();
    const child = Bun.spawn([process.execPath, "run", script, JSON.stringify(task)], {
      ...{ stdout: "pipe", stderr: "inherit" },
      env: { ...process.env, ...(cache !== undefined && { OCTAVO_CACHE_DIR: cache }) },
    });
    const output = await new Response(child.stdout).text();
    const code = await child.exited;
    if (code !== 0) throw new ChildError(`the process to be timed failed: ${output}`, code);
    const ends = JSON.parse(output) as PhaseEnds;
    const phases = ends.map(([phase, at], i) => [phase, at - (i === 0 ? started : ends[i - 1]![1])] as const);
    return { phases: new Map(phases), total: ends.at(-1)![1] - started };
  } finally {
    if (cache !== undefined) rmSync(cache, { recursive: true, force: true });
  }
}

function line(phase: string, milliseconds: number): string {
  return `${phase.padEnd(22)} ${milliseconds.toFixed(0).padStart(7)} ms`;
}
