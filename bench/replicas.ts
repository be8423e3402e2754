/**
 * Tokens per second of several engines in one process, each with a copy of the model on a GPU of its own: all of a workload's
 * requests are submitted at once, and placed as `octavo serve` places them.
 *
 *   bun run bench/replicas.ts --workload FILE --model DIR -dp 2
 *   bun run bench/replicas.ts ... --copies 2       the workload twice, so that each of two engines has as much as one would alone
 *   bun run bench/replicas.ts ... --json FILE      writes a record, see bench/results/README.md
 */
import { createCommand, runCommand } from "../src/cli/command.ts";
import { addEngineFlags, addReplicaFlags, engineOptions, replicaOptions } from "../src/cli/engine-flags.ts";
import { countValue } from "../src/cli/flag-values.ts";
import { AsyncLLM } from "../src/index.ts";
import { makeRecord, writeRecord } from "./record.ts";
import { median, sum } from "./stats.ts";
import type { ThroughputResults } from "./throughput.ts";
import {
  checkOutputs,
  copies,
  type NamedWorkload,
  recordedWorkload,
  samplingOf,
  streams,
} from "./workload.ts";

interface Flags {
  readonly model?: string;
  readonly workload: string;
  readonly copies: number;
  readonly repeat: number;
  readonly json?: string;
}

const command = createCommand("bench/replicas.ts")
  .description("Measures the throughput of several engines together.")
  .option("-m, --model <model>", "model folder or Hugging Face id (default: the embedded model)")
  .requiredOption("-w, --workload <file>", "requests to run (required)")
  .option("--copies <count>", "how often the workload is run at the same time", countValue, 1)
  .option("--repeat <count>", "runs; their median is printed", countValue, 3)
  .option("--json <file>", "write a record");
addEngineFlags(command);
addReplicaFlags(command);
command.action(async (flags: Flags) => {
  const options = { ...engineOptions(command), ...replicaOptions(command), skipTokenizerInit: true };
  const workload = copies(recordedWorkload(flags.workload), flags.copies);
  await using llm = await AsyncLLM.create(flags.model, options);
  await time(llm, streams(2 * llm.replicas.length, 32, 8));
  const seconds: number[] = [];
  for (let i = 0; i < flags.repeat; i++) seconds.push(await time(llm, workload));
  const outputTokens = sum(workload.requests.map(({ maxTokens }) => maxTokens));
  const promptTokens = sum(workload.requests.map(({ promptTokenIds }) => promptTokenIds.length));
  const tokensPerSecond = outputTokens / median(seconds);
  const shares = llm.replicas.map(({ stats }) => stats.generationTokens).join(" and ");
  console.log(
    `${llm.model}, ${llm.replicas.length} replicas on ${llm.device}: ${workload.name} ${tokensPerSecond.toFixed(1)} tokens/s, ` +
      `median of ${seconds.length}; tokens in all ${shares}`,
  );
  if (flags.json === undefined) return;
  const run = { benchmark: "replicas", model: llm.model, options: { ...options, workload: flags.workload } };
  const results: ThroughputResults = {
    throughput: [
      {
        ...{ workload: workload.name, requests: workload.requests.length, promptTokens, outputTokens },
        ...{ seconds, tokensPerSecond },
      },
    ],
  };
  writeRecord(flags.json, makeRecord(run, results));
});
await runCommand(command, process.argv.slice(2));

/** Seconds until the last request of all has its tokens. */
async function time(llm: AsyncLLM, workload: NamedWorkload): Promise<number> {
  const prompts = workload.requests.map(({ promptTokenIds }) => ({ promptTokenIds }));
  for (let attempt = 0; !(await llm.resetPrefixCache()); attempt++) {
    if (attempt === 100) throw new Error("the prefix cache is still in use after the last run");
    await Bun.sleep(1);
  }
  const started = performance.now();
  const outputs = await llm.generate(prompts, samplingOf(workload));
  const seconds = (performance.now() - started) / 1000;
  checkOutputs(workload, outputs);
  return seconds;
}
