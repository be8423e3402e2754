import { writeFileSync } from "node:fs";
import { type Command, InvalidArgumentError, Option } from "commander";
import { ConfigError, messageOf } from "../../base/errors.ts";
import { createCommand } from "../command.ts";
import { countValue, integerValue, numberValue } from "../flag-values.ts";
import { ProgressBar } from "../progress.ts";
import { CompletionClient, EndpointError } from "./completion-client.ts";
import { generateLoad } from "./load-generator.ts";
import { formatReport, summarize } from "./report.ts";
import { randomWorkload, readWorkload, type Workload } from "./workload.ts";

/** Bun's `fetch` queues requests beyond this many; it reads the variable when the process starts. */
const CONNECTIONS_VARIABLE = "BUN_CONFIG_MAX_HTTP_REQUESTS";
const CONNECTIONS = "65336";

interface BenchFlags {
  readonly baseUrl: string;
  readonly model?: string;
  readonly apiKey?: string;
  readonly workload?: string;
  readonly numPrompts?: number;
  readonly inputLen: number;
  readonly outputLen: number;
  readonly vocabSize: number;
  readonly temperature?: number;
  readonly requestRate: number;
  readonly maxConcurrency: number;
  readonly seed: number;
  readonly json?: string;
}

/** `bench`: measurements of a running server. */
export function benchCommand(name: string): Command {
  return createCommand(name)
    .description("Measures a running server: see octavo bench serve --help.")
    .addCommand(benchServeCommand("serve"));
}

function benchServeCommand(name: string): Command {
  return createCommand(name, [
    "octavo bench serve --num-prompts 256 --input-len 512 --output-len 128",
    "octavo bench serve --workload bench/workloads/nano-vllm.json --request-rate 20 --json result.json",
  ])
    .description("Sends completions to an OpenAI-compatible server and reports throughput and latencies.")
    .optionsGroup("Server:")
    .option("--base-url <url>", "address of the server", "http://127.0.0.1:8000")
    .option("-m, --model <name>", "model to ask for (default: the first that the server lists)")
    .option("--api-key <key>", "sent as a bearer token; VLLM_API_KEY also sets it")
    .optionsGroup("Requests:")
    .option("-w, --workload <file>", "recorded requests, instead of random token ids")
    .option("--num-prompts <count>", "requests (default: 100, or all of the workload)", countValue)
    .option("--input-len <tokens>", "length of a random prompt", countValue, 256)
    .option("--output-len <tokens>", "tokens generated for a random prompt", countValue, 128)
    .option("--vocab-size <count>", "random token ids are below this", countValue, 1000)
    .option("--temperature <value>", "0 is greedy (default: 0, or the workload's)", numberValue)
    .optionsGroup("Load:")
    .addOption(
      new Option("--request-rate <number>", "requests a second, Poisson-distributed; inf: all at once")
        .argParser(rateValue)
        .default(Infinity, "inf"),
    )
    .addOption(
      new Option("--max-concurrency <count>", "requests under way at most")
        .argParser(countValue)
        .default(Infinity, "no limit"),
    )
    .option("--seed <integer>", "of prompts and arrival times", integerValue, 0)
    .optionsGroup("Options:")
    .option("--json <file>", "write the results as JSON")
    .action(benchServe);
}

function rateValue(text: string): number {
  if (/^inf(?:inity)?$/i.test(text)) return Infinity;
  const rate = numberValue(text);
  if (rate <= 0) throw new InvalidArgumentError(`"${text}" is not above 0.`);
  return rate;
}

async function benchServe(flags: BenchFlags): Promise<void> {
  if (process.env[CONNECTIONS_VARIABLE] === undefined) process.exit(await runWithMoreConnections());
  const { baseUrl, requestRate, maxConcurrency, seed } = flags;
  if (!URL.canParse(baseUrl)) throw new ConfigError("baseUrl", `--base-url ${baseUrl} is not a URL`);
  const workload = chooseWorkload(flags);
  const client = new CompletionClient(baseUrl, flags.apiKey);
  using bar = new ProgressBar();
  bar.update("Requests", 0, workload.requests.length);
  const model = flags.model ?? (await client.firstModel());
  const requests = workload.requests.map((request) => ({
    body: requestBody(model, workload, request),
    promptTokens: request.promptTokenIds.length,
  }));
  const warmUp = requestBody(model, workload, { promptTokenIds: [1, 2, 3, 4], maxTokens: 4 });
  const { failure } = await client.complete(warmUp, 4);
  if (failure !== undefined) throw new EndpointError(`${baseUrl}: ${failure}`);

  let finished = 0;
  const traces = await generateLoad(
    requests,
    { requestRate, maxConcurrency, seed },
    async ({ body, promptTokens }) => {
      const trace = await client.complete(body, promptTokens);
      bar.update("Requests", ++finished, requests.length);
      return trace;
    },
  );
  bar.stop();

  const report = summarize(traces);
  const load = {
    requestRate: requestRate === Infinity ? "inf" : requestRate,
    maxConcurrency: maxConcurrency === Infinity ? null : maxConcurrency,
  };
  console.log(formatReport(report));
  if (flags.json !== undefined) {
    const run = { model, baseUrl, date: new Date().toISOString(), requests: requests.length };
    writeReport(flags.json, { ...run, ...load, seed, ...report });
  }
  if (report.completed === 0) throw new EndpointError(`${baseUrl}: no request succeeded`);
}

/** Runs this command line again, allowed as many connections as requests may need. */
async function runWithMoreConnections(): Promise<number> {
  const child = Bun.spawn([process.execPath, Bun.main, ...process.argv.slice(2)], {
    stdio: ["inherit", "inherit", "inherit"],
    env: { ...process.env, [CONNECTIONS_VARIABLE]: CONNECTIONS },
  });
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => child.kill(signal));
  return child.exited;
}

function chooseWorkload(flags: BenchFlags): Workload {
  const { numPrompts, temperature } = flags;
  const workload =
    flags.workload === undefined
      ? randomWorkload({ ...flags, numPrompts: numPrompts ?? 100 })
      : readWorkload(flags.workload);
  return {
    ...workload,
    ...(temperature !== undefined && { temperature }),
    requests: workload.requests.slice(0, numPrompts),
  };
}

function requestBody(
  model: string,
  { temperature, ignoreEos }: Workload,
  { promptTokenIds, maxTokens }: Workload["requests"][number],
): string {
  return JSON.stringify({
    ...{ model, prompt: promptTokenIds, max_tokens: maxTokens, temperature, ignore_eos: ignoreEos },
    ...{ stream: true, stream_options: { include_usage: true }, return_token_ids: true },
  });
}

function writeReport(file: string, document: object): void {
  try {
    writeFileSync(file, `${JSON.stringify(document, null, 2)}\n`);
  } catch (cause) {
    throw new ConfigError("json", `cannot write ${file}: ${messageOf(cause)}`, { cause });
  }
}
