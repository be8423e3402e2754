/**
 * Tokens per second of `LLM.generate`, wall clock around the public call: scheduling, sampling and read-back included.
 *
 *   bun run bench                                 one stream and 16 streams of the embedded model
 *   bun run bench --workload FILE --model DIR     a recorded workload, e.g. bench/workloads/nano-vllm.json
 */
import { readFileSync } from "node:fs";
import { addEngineFlags, engineOptions } from "../src/cli/engine-flags.ts";
import { createCommand, integerValue, runCommand } from "../src/cli/program.ts";
import { LLM, type SamplingParams, type TokensPrompt } from "../src/index.ts";

/** Prompts as token ids and how many tokens to generate for each. */
interface Workload {
  readonly temperature: number;
  readonly ignoreEos: boolean;
  readonly requests: readonly { readonly promptTokenIds: readonly number[]; readonly maxTokens: number }[];
}

interface Measurement {
  readonly streams: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
}

interface Flags {
  readonly model?: string;
  readonly workload?: string;
  readonly tokens: number;
  readonly repeat: number;
  readonly json?: true;
}

const command = createCommand("bench")
  .description("Measures offline throughput.")
  .option("-m, --model <model>", "model folder or Hugging Face id (default: the embedded model)")
  .option("-w, --workload <file>", "requests to run, instead of 1 and 16 streams")
  .option("--tokens <count>", "tokens to generate in each stream", integerValue, 128)
  .option("--repeat <count>", "runs of each measurement; the median is printed", integerValue, 3)
  .option("--json", "print JSON");
addEngineFlags(command);
command.action(async (flags: Flags) => {
  const options = { ...engineOptions(command), skipTokenizerInit: true, enablePrefixCaching: false };
  await using llm = await LLM.create(flags.model, options);
  const workloads = flags.workload
    ? [JSON.parse(readFileSync(flags.workload, "utf8")) as Workload]
    : [1, 16].map((streams) => syntheticWorkload(streams, flags.tokens));
  await run(llm, syntheticWorkload(1, 8));
  const measurements: Measurement[] = [];
  for (const workload of workloads) measurements.push(await median(llm, workload, flags.repeat));
  if (flags.json)
    console.log(JSON.stringify({ model: llm.model, device: llm.device, measurements }, null, 2));
  else {
    console.log(`${llm.model} on ${llm.device}, median of ${flags.repeat}`);
    for (const { streams, outputTokens, seconds, tokensPerSecond } of measurements) {
      const total = `${outputTokens} tokens in ${seconds.toFixed(2)} s`;
      console.log(
        `${String(streams).padStart(4)} streams  ${tokensPerSecond.toFixed(1).padStart(9)} tokens/s  (${total})`,
      );
    }
  }
});
await runCommand(command, process.argv.slice(2));

function syntheticWorkload(streams: number, tokens: number): Workload {
  const requests = Array.from({ length: streams }, (_, stream) => ({
    promptTokenIds: Array.from({ length: 32 }, (_, i) => (stream * 131 + i * 17) % 256),
    maxTokens: tokens,
  }));
  return { temperature: 0, ignoreEos: true, requests };
}

async function run(llm: LLM, { temperature, ignoreEos, requests }: Workload): Promise<Measurement> {
  const prompts: TokensPrompt[] = requests.map(({ promptTokenIds }) => ({ promptTokenIds }));
  const params: SamplingParams[] = requests.map(({ maxTokens }) => ({ temperature, ignoreEos, maxTokens }));
  const started = performance.now();
  const outputs = await llm.generate(prompts, params);
  const seconds = (performance.now() - started) / 1000;
  const outputTokens = outputs.reduce(
    (sum, { outputs: [completion] }) => sum + completion!.tokenIds.length,
    0,
  );
  const promptTokens = requests.reduce((sum, { promptTokenIds }) => sum + promptTokenIds.length, 0);
  return {
    streams: requests.length,
    promptTokens,
    outputTokens,
    seconds,
    tokensPerSecond: outputTokens / seconds,
  };
}

async function median(llm: LLM, workload: Workload, repeat: number): Promise<Measurement> {
  const runs: Measurement[] = [];
  for (let i = 0; i < repeat; i++) runs.push(await run(llm, workload));
  return runs.sort((a, b) => a.seconds - b.seconds)[Math.floor(runs.length / 2)]!;
}
