/**
 * `octavo serve` under random load for a while: completions of all kinds, among them streams that are left, shared prefixes, prompts
 * near the limit, log-probabilities and several completions of a prompt.
 *
 *   bun run bench:soak                            the embedded model, for five minutes
 *   bun run bench:soak --seconds 60 -- -tp 2      flags of `octavo serve` come after --
 *   bun run bench:soak --json FILE ...            writes a record, see bench/results/README.md
 *
 * Fails when a request is refused, gets fewer tokens than it asked for, or takes a minute; when GPUs or host hold more memory
 * towards the end than once all kinds of steps had been run; when the server is left with work, or does not end when it is told to.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { SplitMix64 } from "../src/base/random.ts";
import { createCommand, runCommand } from "../src/cli/command.ts";
import { countValue, integerValue } from "../src/cli/flag-values.ts";
import { Context } from "../src/cuda/context.ts";
import { Device } from "../src/cuda/device.ts";
import { gpuCount, openDriver, thisMachine } from "../src/cuda/open-cuda.ts";
import { makeRecord, writeRecord } from "./record.ts";

interface Flags {
  readonly seconds: number;
  readonly clients: number;
  readonly seed: number;
  readonly json?: string;
}

/** A completion to ask for. */
export interface SoakRequest {
  readonly kind: string;
  readonly body: Readonly<Record<string, unknown>>;
  /** Tokens of all completions. */
  readonly tokens: number;
  /** Events after which the reader leaves. */
  readonly leavesAfter?: number;
}

/** Bytes that the server's process has, and that are taken of each GPU. */
interface Held {
  readonly host: number;
  readonly gpus: readonly number[];
}

const ROOT = join(import.meta.dir, "..");
/** A request that takes longer hangs. */
const HANG_MS = 60_000;
/** Parts of the time whose least memory is compared: what the host has of JavaScript comes and goes between collections. */
const SETTLED = { from: 0.4, to: 0.65 } as const;
const LAST = { from: 0.75, to: 1 } as const;
/** What that may grow by. */
const GROWTH = { host: 2 ** 28, gpu: 2 ** 26 } as const;
/** A server on a machine with less memory collects more often. */
const SERVER_RAM_BYTES = 4 * 2 ** 30;
/** Prefixes that requests share. */
const PREFIXES = 4;
/** Token ids of prompts: ones that all models have. */
const TOKENS = { first: 10, count: 3000 } as const;

const command = createCommand("bench:soak")
  .description("Serves random load for a while.")
  .argument("[flags...]", "flags of octavo serve, after --")
  .option("--seconds <count>", "how long", countValue, 300)
  .option("--clients <count>", "requests at the same time", countValue, 48)
  .option("--seed <seed>", "of requests", integerValue, 1)
  .option("--json <file>", "write a record");
if (import.meta.main) {
  command.action(async (flags: readonly string[], options: Flags) => {
    const args = ["src/cli/main.ts", "serve", ...flags, "--port", "0", "--no-enable-log-requests"];
    const server = Bun.spawn([process.execPath, "run", ...args], {
      ...{ cwd: ROOT, stdout: "pipe", stderr: "inherit" },
      env: { ...process.env, BUN_JSC_forceRAMSize: String(SERVER_RAM_BYTES) },
    });
    try {
      const soak = new Soak(await addressOf(server.stdout), server.pid, options);
      const results = await soak.run();
      console.log(JSON.stringify(results));
      server.kill("SIGTERM");
      const code = await server.exited;
      if (code !== 0) throw new Error(`the server ended with ${code}`);
      if (options.json === undefined) return;
      const run = { benchmark: "soak", model: "octavo serve", options: { flags, ...options } };
      writeRecord(options.json, makeRecord(run, results));
    } finally {
      server.kill("SIGKILL");
    }
  });
  await runCommand(command, process.argv.slice(2));
}

/** Where a server serves, when it does. */
async function addressOf(output: ReadableStream<Uint8Array>): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const part of output) {
    text += decoder.decode(part, { stream: true });
    const url = /at (http:\S+)\//.exec(text)?.[1];
    if (url !== undefined) return url;
  }
  throw new Error(`the server ended: ${text}`);
}

/** Random requests, the same for a seed. */
export class SoakRequests {
  readonly #random: SplitMix64;
  readonly #prefixes: readonly (readonly number[])[];

  constructor(
    seed: number,
    private readonly maxModelLen: number,
  ) {
    this.#random = new SplitMix64(seed);
    this.#prefixes = Array.from({ length: PREFIXES }, (_, i) =>
      this.#prompt(Math.floor(((i + 1) * maxModelLen) / (2 * PREFIXES))),
    );
  }

  next(): SoakRequest {
    const kind = this.#below(100);
    const maxTokens = 1 + this.#below(Math.min(100, this.maxModelLen / 8));
    const short = () => this.#prompt(1 + this.#below(this.maxModelLen / 4));
    if (kind < 30) return this.#request("plain", short(), maxTokens, this.#temperature());
    if (kind < 45) {
      const drawn = { temperature: 0.8, top_p: 0.9, top_k: 40, repetition_penalty: 1.1, min_p: 0.02 };
      return this.#request("filtered", short(), maxTokens, drawn);
    }
    if (kind < 65) {
      const prompt = [...this.#prefixes[this.#below(PREFIXES)]!, ...this.#prompt(1 + this.#below(32))];
      return this.#request("prefix", prompt, maxTokens, this.#temperature());
    }
    if (kind < 75) return this.#request("logprobs", short(), maxTokens, { logprobs: 1 + this.#below(5) });
    if (kind < 83) {
      const prompt = this.#prompt(this.maxModelLen - maxTokens - this.#below(16));
      return this.#request("long", prompt, maxTokens, this.#temperature());
    }
    if (kind < 90) return this.#request("several", short(), maxTokens, { n: 3, temperature: 1 });
    const left = this.#request("left", short(), maxTokens, { ...this.#temperature(), stream: true });
    return { ...left, leavesAfter: this.#below(maxTokens) };
  }

  #request(
    kind: string,
    prompt: readonly number[],
    maxTokens: number,
    more: Readonly<Record<string, unknown>>,
  ): SoakRequest {
    const body = { prompt, max_tokens: maxTokens, ignore_eos: true, seed: this.#below(2 ** 31), ...more };
    return { kind, body, tokens: maxTokens * Number(more["n"] ?? 1) };
  }

  #temperature(): { readonly temperature: number } {
    return { temperature: this.#below(2) * 0.7 };
  }

  #prompt(length: number): number[] {
    return Array.from({ length }, () => TOKENS.first + this.#below(TOKENS.count));
  }

  /** An integer from 0. */
  #below(count: number): number {
    return Number(this.#random.next() % BigInt(Math.max(1, Math.floor(count))));
  }
}

/** Clients of one server. */
class Soak {
  readonly #done: Record<string, number> = {};
  readonly #gpus: readonly Context[];
  #tokens = 0;
  #longestMs = 0;

  constructor(
    private readonly url: string,
    private readonly pid: number,
    private readonly flags: Flags,
  ) {
    const count = gpuCount();
    const driver = count === 0 ? undefined : openDriver(thisMachine());
    this.#gpus = Array.from({ length: count }, (_, ordinal) =>
      Context.retain(driver!.api, Device.open(driver!.api, ordinal)),
    );
  }

  /** @throws Error at the first thing that is not as it must be. */
  async run() {
    const { seconds, clients, seed } = this.flags;
    const models = (await (await fetch(`${this.url}/v1/models`)).json()) as {
      readonly data: readonly { readonly max_model_len: number }[];
    };
    const maxModelLen = models.data[0]!.max_model_len;
    const started = performance.now();
    const passed = () => (performance.now() - started) / 1000;
    const client = async (_: unknown, index: number) => {
      const requests = new SoakRequests(seed + 1000 * index, maxModelLen);
      while (passed() < seconds) await this.#ask(requests.next());
    };
    const readings: { readonly at: number; readonly held: Held }[] = [];
    let described = 0;
    const watching = setInterval(() => {
      readings.push({ at: passed() / seconds, held: this.#held() });
      if (passed() - described < 15) return;
      described = passed();
      console.log(`${described.toFixed(0)} s: ${this.#describe()}`);
    }, 500);
    try {
      await Promise.all(Array.from({ length: clients }, client));
    } finally {
      clearInterval(watching);
    }
    await this.#expectIdle();
    const [settled, held] = [SETTLED, LAST].map(({ from, to }) =>
      least(readings.filter(({ at }) => at >= from && at < to).map((reading) => reading.held)),
    ) as [Held, Held];
    expectNoMore(held, settled);
    console.log(`${passed().toFixed(0)} s: ${this.#describe()}`);
    return {
      ...{ seconds: passed(), requests: this.#done, tokens: this.#tokens, longestMs: this.#longestMs },
      ...{ settled, held },
    };
  }

  async #ask({ kind, body, tokens, leavesAfter }: SoakRequest): Promise<void> {
    const started = performance.now();
    const leaving = new AbortController();
    const signal = AbortSignal.any([leaving.signal, AbortSignal.timeout(HANG_MS)]);
    const response = await fetch(`${this.url}/v1/completions`, {
      ...{ method: "POST", body: JSON.stringify(body), signal },
      headers: { "Content-Type": "application/json" },
    });
    if (response.status !== 200)
      throw new Error(`a ${kind} request got ${response.status}: ${await response.text()}`);
    if (leavesAfter === undefined) {
      const { usage } = (await response.json()) as { readonly usage: { readonly completion_tokens: number } };
      if (usage.completion_tokens !== tokens)
        throw new Error(`a ${kind} request got ${usage.completion_tokens} of ${tokens} tokens`);
      this.#tokens += tokens;
    } else {
      let events = 0;
      for await (const _ of response.body!) if (++events > leavesAfter) break;
      leaving.abort();
    }
    this.#done[kind] = (this.#done[kind] ?? 0) + 1;
    this.#longestMs = Math.max(this.#longestMs, performance.now() - started);
  }

  /** Nothing is left to do, and the last blocks are given back. */
  async #expectIdle(): Promise<void> {
    const names = ["num_requests_running", "num_requests_waiting"];
    for (let waited = 0; ; waited++) {
      const metrics = await (await fetch(`${this.url}/metrics`)).text();
      const busy = metrics.split("\n").filter((line) => {
        const value = Number(line.split(" ").at(-1));
        return names.some((name) => line.startsWith(`vllm:${name}{`)) && value !== 0;
      });
      if (busy.length === 0) return;
      if (waited === 100) throw new Error(`the server is left with work: ${busy.join(", ")}`);
      await Bun.sleep(100);
    }
  }

  #held(): Held {
    const status = readFileSync(`/proc/${this.pid}/status`, "utf8");
    const gpus = this.#gpus.map((context) => {
      context.makeCurrent();
      const { free, total } = context.memory();
      return total - free;
    });
    return { host: 1024 * Number(/VmRSS:\s*(\d+) kB/.exec(status)![1]), gpus };
  }

  #describe(): string {
    const { host, gpus } = this.#held();
    const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(0);
    const kinds = Object.entries(this.#done).map(([kind, count]) => `${count} ${kind}`);
    const memory = `host ${mib(host)} MiB, GPUs ${gpus.map(mib).join(" ")} MiB`;
    return `${kinds.join(", ")}; ${this.#tokens} tokens; longest ${this.#longestMs.toFixed(0)} ms; ${memory}`;
  }
}

/** Of each place, the least that some reading found. */
function least(readings: readonly Held[]): Held {
  const gpus = readings[0]?.gpus ?? [];
  return {
    host: Math.min(...readings.map(({ host }) => host)),
    gpus: gpus.map((_, i) => Math.min(...readings.map((reading) => reading.gpus[i]!))),
  };
}

function expectNoMore(held: Held, settled: Held): void {
  const grown = [held.host - settled.host, ...held.gpus.map((bytes, i) => bytes - settled.gpus[i]!)];
  const places = ["the host", ...held.gpus.map((_, i) => `GPU ${i}`)];
  for (const [i, bytes] of grown.entries())
    if (bytes > (i === 0 ? GROWTH.host : GROWTH.gpu))
      throw new Error(`${places[i]} holds ${(bytes / 2 ** 20).toFixed(0)} MiB more than before`);
}
