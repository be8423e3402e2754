import { expect } from "bun:test";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { eventually, temporaryFolder } from "../support.ts";

const ROOT = join(import.meta.dir, "../..");
export const MODEL = join(ROOT, "models", "tiny-stories");

export interface Result {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface StartOptions {
  readonly stdin?: string | undefined;
  readonly env?: Readonly<Record<string, string>>;
  /** A script that runs first in the main thread. */
  readonly preload?: string;
}

/** Starts `bun run generate.ts` with these arguments. */
export function start(args: readonly string[], options: StartOptions = {}) {
  return startScript("generate.ts", args, options);
}

/** Starts `octavo` with these arguments. */
export function startOctavo(args: readonly string[], options: StartOptions = {}) {
  return startScript("src/cli/main.ts", args, options);
}

function startScript(script: string, args: readonly string[], { stdin, env, preload }: StartOptions) {
  const first = preload === undefined ? [] : ["--preload", preload];
  return Bun.spawn([process.execPath, "run", ...first, join(ROOT, script), ...args], {
    ...{ stdin: stdin === undefined ? "ignore" : new Blob([stdin]), stdout: "pipe", stderr: "pipe" },
    // Where there are GPUs, these tests see none.
    env: { ...process.env, CUDA_VISIBLE_DEVICES: "", NO_COLOR: "1", ...env },
  });
}

/** Starts `octavo serve` on a free port and waits until it serves. Killed when the test ends. */
export async function serve(args: readonly string[] = [], options: StartOptions = {}) {
  const child = startOctavo(["serve", "--port", "0", ...args], options);
  const lines = textOf(child.stdout);
  let banner = "";
  while (!banner.includes(" at http://")) {
    const { done, value } = await lines.next();
    if (done) throw new Error(`the server ended: ${await new Response(child.stderr).text()}`);
    banner += value;
  }
  const url = banner.match(/at (http:\S+)\//)![1]!;
  return {
    ...{ child, banner, url },
    complete: (body: object, headers: Record<string, string> = {}) =>
      fetch(`${url}/v1/completions`, {
        ...{ method: "POST", body: JSON.stringify({ temperature: 0, ...body }) },
        headers: { "Content-Type": "application/json", ...headers },
      }),
    shuttingDown: () => eventually(async () => (await fetch(`${url}/ready`)).status === 503),
    log: () => new Response(child.stderr).text(),
    [Symbol.dispose]: () => child.kill("SIGKILL"),
  };
}

/** The text that a stream brings, as it comes. */
export async function* textOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield decoder.decode(value, { stream: true });
  }
}

/** Runs `bun run generate.ts` to its end. */
export function generate(args: readonly string[], stdin?: string): Promise<Result> {
  return finished(start(args, { stdin }));
}

/** Runs `octavo` to its end. */
export function octavo(args: readonly string[], options: StartOptions = {}): Promise<Result> {
  return finished(startOctavo(args, options));
}

/** Runs another script of the repository to its end. */
export function runScript(script: string, args: readonly string[]): Promise<Result> {
  return finished(startScript(script, args, {}));
}

/** The program ends with `code` and says why in one line. */
export function expectRefusal({ code, stderr }: Result, expected: number, ...parts: readonly string[]): void {
  expect([code, stderr]).toEqual([expected, expect.stringMatching(/^octavo: [^\n]+\n$/)]);
  for (const part of parts) expect(stderr).toContain(part);
}

async function finished(child: ReturnType<typeof start>): Promise<Result> {
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, stdout, stderr };
}

const FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];

/** A copy of the embedded model, to be spoilt. */
export function modelCopy(change: {
  readonly config?: (config: Record<string, unknown>) => unknown;
  /** Takes the weight file and returns what replaces it. */
  readonly weights?: (file: Buffer) => Uint8Array;
}) {
  const folder = temporaryFolder();
  for (const name of FILES) cpSync(join(MODEL, name), folder.file(name));
  if (change.config) {
    const config = change.config(JSON.parse(readFileSync(folder.file("config.json"), "utf8")));
    writeFileSync(folder.file("config.json"), typeof config === "string" ? config : JSON.stringify(config));
  }
  const weights = readFileSync(join(MODEL, "model.safetensors"));
  writeFileSync(folder.file("model.safetensors"), change.weights?.(weights) ?? weights);
  return folder;
}

/** Byte range of a tensor in a safetensors file. */
export function tensorRange(file: Buffer, name: string): readonly [start: number, end: number] {
  const dataStart = 8 + Number(file.readBigUInt64LE(0));
  const [start, end] = JSON.parse(file.toString("utf8", 8, dataStart))[name].data_offsets;
  return [dataStart + start, dataStart + end];
}
