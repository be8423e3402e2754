/**
 * A workload through HTTP against the same workload offline, on the same machine in the same run:
 *
 *   bun run bench:served --workload bench/workloads/nano-vllm.json --model DIR
 *
 * `octavo serve` and `octavo bench serve` run as processes of their own, with the prefix cache off: what one run leaves
 * must not help the next. Offline is one engine; with `--data-parallel-size` the server has several, and the ratio says what
 * they add. With tokenizer files in the model folder, the served text is detokenized as in production.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { countValue, integerValue } from "../src/cli/flag-values.ts";
import { ChildError } from "./child-error.ts";
import { ready } from "./ready.ts";
import { makeRecord, writeRecord } from "./record.ts";
import { median } from "./stats.ts";

interface Flags {
  readonly model: string;
  readonly workload: string;
  readonly loadFormat?: string;
  readonly port: number;
  readonly dataParallelSize: number;
  readonly repeat: number;
  readonly json?: string;
}

/** What of an `octavo bench serve --json` file is compared. */
interface ServedRun {
  readonly failed: number;
  readonly outputTokensPerSecond: number;
}

const ROOT = join(import.meta.dir, "..");

const command = createCommand("bench:served")
  .description("Compares served with offline throughput.")
  .requiredOption("-m, --model <model>", "model folder or Hugging Face id (required)")
  .requiredOption("-w, --workload <file>", "requests to run (required)")
  .option("--load-format <name>", "auto, or dummy for random weights")
  .option("--port <port>", "port of the server", integerValue, 8123)
  .option("--data-parallel-size <count>", "engines of the server", countValue, 1)
  .option("--repeat <count>", "runs of each; medians are compared", countValue, 3)
  .option("--json <file>", "write a record");
command.action(async (flags: Flags) => {
  const folder = mkdtempSync(join(tmpdir(), "octavo-served-"));
  try {
    const offline = await offlineRate(flags, join(folder, "offline.json"));
    const served = await servedRuns(flags, folder);
    const rates = served.map(({ outputTokensPerSecond }) => outputTokensPerSecond);
    const ratio = median(rates) / offline;
    console.log(`offline  ${offline.toFixed(1)} tokens/s, median of ${flags.repeat}`);
    console.log(`served   ${median(rates).toFixed(1)} tokens/s, ${(100 * ratio).toFixed(1)}% of offline`);
    if (flags.json === undefined) return;
    const { model, workload, loadFormat = "auto", dataParallelSize } = flags;
    const options = { workload, loadFormat, dataParallelSize, enablePrefixCaching: false };
    const results = { offlineTokensPerSecond: offline, served, ratio };
    writeRecord(flags.json, makeRecord({ benchmark: "served", model, options }, results));
  } finally {
    rmSync(folder, { recursive: true });
  }
});
await runCommand(command, process.argv.slice(2));

async function offlineRate(flags: Flags, file: string): Promise<number> {
  const repeat = ["--repeat", String(flags.repeat), "--no-profile", "--json", file];
  await finish(["bench/throughput.ts", ...engineFlags(flags), "--workload", flags.workload, ...repeat]);
  const record = JSON.parse(readFileSync(file, "utf8")) as {
    results: { throughput: { tokensPerSecond: number }[] };
  };
  return record.results.throughput[0]!.tokensPerSecond;
}

async function servedRuns(flags: Flags, folder: string): Promise<ServedRun[]> {
  const { model, loadFormat, port, dataParallelSize } = flags;
  const engine = [model, "--no-enable-prefix-caching", ...(loadFormat ? ["--load-format", loadFormat] : [])];
  const replicas = ["--data-parallel-size", String(dataParallelSize)];
  const tokenizer = existsSync(join(model, "tokenizer.json")) ? [] : ["--skip-tokenizer-init"];
  const server = start(
    ["src/cli/main.ts", "serve", ...engine, ...tokenizer, ...replicas, "--port", String(port)],
    "ignore",
  );
  try {
    const url = `http://127.0.0.1:${port}`;
    await ready(url);
    const runs: ServedRun[] = [];
    for (let i = 0; i < flags.repeat; i++) {
      const file = join(folder, `served-${i}.json`);
      const client = ["src/cli/main.ts", "bench", "serve", "--base-url", url, "--workload", flags.workload];
      await finish([...client, "--json", file]);
      const run = JSON.parse(readFileSync(file, "utf8")) as ServedRun;
      if (run.failed > 0) throw new Error(`${run.failed} requests failed`);
      runs.push(run);
    }
    return runs;
  } finally {
    server.kill();
    await server.exited;
  }
}

function engineFlags({ model, loadFormat }: Flags): string[] {
  const flags = ["--model", model, "--no-enable-prefix-caching"];
  return loadFormat === undefined ? flags : [...flags, "--load-format", loadFormat];
}

function start<Err extends "pipe" | "ignore">(args: readonly string[], stderr: Err) {
  return Bun.spawn(["bun", "run", ...args], { cwd: ROOT, stdout: "ignore", stderr });
}

async function finish(args: readonly string[]): Promise<void> {
  const process = start(args, "pipe");
  const complaint = await new Response(process.stderr).text();
  const code = await process.exited;
  if (code !== 0) throw new ChildError(complaint, code);
}
